"""The layer report: rows that add up, bounds that are called bounds, reformats that are found."""

from __future__ import annotations

import json

import pytest
from helpers.graphs import graph
from onnx import ModelProto

from engine.cost.graph import bound_ms, node_costs, total
from engine.cost.reformats import REASONS, reformats
from engine.cost.report import ReadShape, analyse, report
from kernels.cards import A40, CARDS, GTX_1080_TI

READ = ReadShape(tokens=1620, key_dim=64, value_dim=64)


def encode() -> ModelProto:
    """An image of 3 channels → a feature of 16 and tokens of 8."""
    return graph(
        """(float16[1,3,8,8] image) => (float16[1,16,8,8] feature, float16[1,64,8] key)
        <int64[3] tokens = {1, 8, 64}>
        {
          a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(image, w1)
          feature = Relu(a)
          b = Conv<kernel_shape=[1,1]>(feature, w2)
          c = Reshape(b, tokens)
          key = Transpose<perm=[0,2,1]>(c)
        }""",
        w1=(16, 3, 3, 3),
        w2=(8, 16, 1, 1),
    )


def decode() -> ModelProto:
    """A feature and a readout of one plane each → one logit, enlarged, in fp32."""
    return graph(
        """(float16[1,16,8,8] feature, float16[1,8,8,8] readout) => (float[1,1,16,16] p)
        <float[4] scales = {1, 1, 2, 2}>
        {
          x = Concat<axis=1>(feature, readout)
          a = Conv<kernel_shape=[1,1]>(x, w)
          b = Cast<to=1>(a)
          c = Resize<mode="linear">(b, , scales)
          p = Sigmoid(c)
        }""",
        w=(1, 24, 1, 1),
    )


def stages() -> dict[str, ModelProto]:
    return {"encode_query": encode(), "decode": decode()}


def kinds(model: ModelProto) -> list[tuple[str, str, str]]:
    return [(r.kind, r.tensor, r.change) for r in reformats(model)]


def test_rows_are_the_costs_of_the_graphs() -> None:
    data = analyse(stages(), "fp16", READ)
    assert list(data["stages"]) == ["encode_query", "read_memory", "decode"]
    row, costs = data["stages"]["encode_query"], node_costs(encode())
    assert (row["ops"], row["params"]) == (5, 16 * 27 + 8 * 16)
    products = 2 * 64 * (16 * 27 + 8 * 16)
    assert row["gflop"] == pytest.approx((products + 16 * 64) / 1e9)
    planes = 3 + 16 + 16 + 8
    assert row["mb_fused"] == pytest.approx((2 * row["params"] + 2 * 64 * planes) / 1e6)
    assert row["mb_unfused"] == pytest.approx(total(costs, fused=False).bytes / 1e6)
    assert row["intensity"] == pytest.approx(1e3 * row["gflop"] / row["mb_fused"])


def test_the_memory_read_is_that_of_the_kernels_roofline() -> None:
    """1620 queries, 3240 positions, 64 + 64 channels: 1.34 GFLOP; bound by products on an A40."""
    row = analyse(stages(), "fp16", READ)["stages"]["read_memory"]
    flops = 2 * 1620 * 3240 * 128
    assert row["gflop"] == pytest.approx(flops / 1e9)
    assert row["mb_fused"] == pytest.approx(2 * 64 * (1620 + 3240 + 3240 + 1620) / 1e6)
    assert row["mb_unfused"] > 30 * row["mb_fused"]
    assert row["bound_ms"]["A40"] == pytest.approx(1e3 * flops / 149.7e12)
    assert row["bound_ms"]["GTX 1080 Ti"] == pytest.approx(1e3 * flops / 11.3e12)
    assert row["layered_bound_ms"] == row["bound_ms"]


def test_a_memory_read_of_few_channels_is_bound_by_its_exponentials() -> None:
    narrow = ReadShape(tokens=1620, key_dim=16, value_dim=16)
    row = analyse(stages(), "fp16", narrow)["stages"]["read_memory"]
    exponentials = 1620 * 3240 / (132 * 16 * 1.83e9)
    assert row["bound_ms"]["H100 SXM"] == pytest.approx(1e3 * exponentials)


def test_reformats_of_an_encoder() -> None:
    assert kinds(encode()) == [
        ("boundary", "image", "read by convolutions"),
        ("channels", "image", "reads 3 channels → 8"),
        ("transpose", "key", "axes [0, 2, 1] of [1, 8, 64]"),
        ("boundary", "feature", "written by convolutions"),
    ]
    image = reformats(encode())[0]
    assert (image.dtype, image.shape, image.bytes) == ("float16", (1, 3, 8, 8), 2 * 3 * 64)


def test_reformats_of_a_decoder() -> None:
    assert kinds(decode()) == [
        ("boundary", "feature", "read by convolutions"),
        ("boundary", "readout", "read by convolutions"),
        ("channels", "a", "writes 1 channels → 8"),
        ("cast", "b", "float16 → float"),
        ("resize", "c", "from [1, 1, 8, 8]"),
    ]


def test_what_needs_no_copy_is_not_listed() -> None:
    """Views, scalars, and fp32 convolutions, whose channels have no groups to fill."""
    assert not reformats(
        graph(
            """(float[1,3,4,4] x, float[1] s) => (float[1,1,4,4] y, float[1,4,1,4] z, float16[1] t)
            {
              y = Conv<kernel_shape=[1,1]>(x, w_f32)
              z = Transpose<perm=[0,2,1,3]>(y)
              t = Cast<to=10>(s)
            }""",
            w_f32=(1, 3, 1, 1),
        )
    )


@pytest.mark.parametrize(("channels", "listed"), [(4, 1), (8, 0), (12, 1), (16, 0)])
def test_channels_come_in_eights(channels: int, listed: int) -> None:
    model = graph(
        f"(float16[1,8,4,4] x) => (float16[1,{channels},4,4] y)"
        "{ y = Conv<kernel_shape=[1,1]>(x, w) }",
        w=(channels, 8, 1, 1),
    )
    assert [r.kind for r in reformats(model)].count("channels") == listed


def test_a_reordered_plane_is_no_boundary() -> None:
    """What a transpose or a cast makes of an input is a new tensor, listed by itself."""
    model = graph(
        """(float16[1,4,4,8] x) => (float16[1,4,4,8] y)
        {
          a = Transpose<perm=[0,3,1,2]>(x)
          b = Conv<kernel_shape=[1,1]>(a, w)
          y = Transpose<perm=[0,2,3,1]>(b)
        }""",
        w=(8, 8, 1, 1),
    )
    assert [r.kind for r in reformats(model)] == ["transpose", "transpose"]


def test_markdown() -> None:
    text = report(stages(), "fp16", READ)
    lines = text.splitlines()
    assert lines[0] == "# Layer report, fp16: bounds, not measured"
    data = analyse(stages(), "fp16", READ)
    row = data["stages"]["read_memory"]
    assert "| read_memory | 1 | 0 | 1.344 | 1.24 | 43.23 | 1080 |" in lines
    times = " | ".join(f"{row['bound_ms'][gpu.name]:.3f} / " for gpu in CARDS)
    assert times.split(" | ")[0] + f"{row['layered_bound_ms']['A40']:.3f}" in text
    both = [data["total"][f"{kind}_fps"]["A40"] for kind in ("bound", "layered_bound")]
    assert f"| FPS at most (bound, not measured) | {both[0]:.0f} / {both[1]:.0f} |" in text
    for r in [*reformats(encode()), *reformats(decode())]:
        assert f"{r.tensor} {r.dtype} {list(r.shape)} | {r.bytes:,} | {r.change} |" in text
    for kind in ("transpose", "cast", "resize", "channels", "boundary"):
        assert REASONS[kind] in text
    assert "- boundary (4, 0.01 MB): " in text


def test_a_graph_without_reformats_says_so() -> None:
    text = report({"a": graph("(float[4] x) => (float[4] y) { y = Relu(x) }")}, "fp32", READ)
    assert text.endswith("## Reformats\n\nNone.\n")


def test_json_carries_everything_and_says_that_nothing_was_measured() -> None:
    data = analyse(stages(), "fp16", READ)
    copy = json.loads(json.dumps(data, allow_nan=False))
    assert copy["read"]["tokens"] == 1620
    assert [e["kind"] for e in copy["reformats"]["decode"]] == [k for k, _, _ in kinds(decode())]
    assert set(copy["reasons"]) == set(REASONS)
    assert copy["stages"].keys() == data["stages"].keys()


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision 'int8'; use fp16 or fp32"):
        report(stages(), "int8", READ)


def test_fp16_without_tensor_cores_is_computed_in_fp32() -> None:
    cost = total(node_costs(encode()))
    assert bound_ms(cost, GTX_1080_TI, "fp16") == bound_ms(cost, GTX_1080_TI, "fp32")
    assert A40.flops("fp16") > A40.flops("fp32")
