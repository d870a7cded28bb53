"""The memory read against its rivals: ``pytest bench/bench_memory_read.py``.

On a GPU: the fused kernel, eager product-softmax-product, and PyTorch's scaled dot-product
attention, each checked against float64 before it is timed. A CUDA graph of many reads is replayed,
so that the host's launch overhead is not in the figures. Without a GPU: only the model of FLOPs and
bytes, labelled as such.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.cards import CARDS
from kernels.memory_read import memory_read, roofline
from kernels.memory_read.reference import memory_read_reference

READS_A_GRAPH = 50
POSITIONS, KEY_DIM, VALUE_DIM = 1620, 64, 64  # 480×864
TOLERANCE = {torch.float16: 2e-2, torch.float32: 1e-4}


def fused(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> Tensor:
    """This project's kernel."""
    return memory_read(query, keys, values, slots, impl="triton")


def attention(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> Tensor:
    """PyTorch's fused attention: the key norms go in as an additive mask.

    Every slot must be in use; the gather of the slots is part of the cost, as in eager.
    """
    objects = slots.shape[0]
    index = slots.long()
    memory = keys[index].flatten(1, 2)  # [K, R·N, Ck]
    owner = torch.arange(objects, device=slots.device)[:, None]
    value = values[index, owner].flatten(1, 2)
    scale = memory.shape[2] ** -0.5
    norms = memory.float().square().sum(-1).mul(-scale).to(query.dtype)
    bias = norms[:, None, None, :].expand(-1, 1, query.shape[0], -1)
    q = query.expand(objects, 1, -1, -1)
    return scaled_dot_product_attention(
        q, memory[:, None], value[:, None], attn_mask=bias, scale=2 * scale
    )[:, 0]


RIVALS: dict[str, Callable[..., Tensor]] = {
    "fused": fused,
    "eager": memory_read_reference,
    "sdpa": attention,
}


def inputs(dtype: torch.dtype, objects: int, reads: int, device: str) -> tuple[Tensor, ...]:
    """Random query, keys, values; every object reads all slots."""
    query = torch.randn(POSITIONS, KEY_DIM, dtype=dtype, device=device)
    keys = torch.randn(reads, POSITIONS, KEY_DIM, dtype=dtype, device=device)
    values = torch.randn(reads, objects, POSITIONS, VALUE_DIM, dtype=dtype, device=device)
    slots = torch.arange(reads, dtype=torch.int32, device=device).repeat(objects, 1)
    return query, keys, values, slots


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine")
@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
@pytest.mark.parametrize(("objects", "reads"), [(1, 2), (4, 2), (1, 20)])
def test_memory_read(
    benchmark: Any, rival: str, dtype: torch.dtype, objects: int, reads: int
) -> None:
    torch.manual_seed(0)
    arguments = inputs(dtype, objects, reads, "cuda")
    run = RIVALS[rival]
    wide = [t.double() if t.is_floating_point() else t for t in arguments]
    error = (run(*arguments).double() - memory_read_reference(*wide)).abs().max().item()
    assert error <= TOLERANCE[dtype], "a wrong result is not worth timing"

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(READS_A_GRAPH):
            run(*arguments)

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    torch.cuda.reset_peak_memory_stats()
    benchmark.pedantic(replay, rounds=20, warmup_rounds=3)
    seconds = benchmark.stats.stats.median / READS_A_GRAPH
    name = "fp16" if dtype == torch.float16 else "fp32"
    work = roofline.count(name, POSITIONS, KEY_DIM, VALUE_DIM, objects, reads)
    properties = torch.cuda.get_device_properties("cuda")
    benchmark.extra_info.update(
        device=properties.name,
        torch=torch.__version__,
        shape=f"N {POSITIONS}, Ck {KEY_DIM}, Cv {VALUE_DIM}, K {objects}, R {reads}, {name}",
        microseconds_a_read=1e6 * seconds,
        tflops=work.flops / seconds / 1e12,
        # The traffic that the op must have: an eager read moves more than it is credited with.
        gigabytes_a_second=work.fused_bytes / seconds / 1e9,
        largest_error=error,
    )
    for card in CARDS:
        if set(card.words) <= set(properties.name.split()):
            bound = roofline.bounds(card, name, work)
            del bound["eager traffic"]
            benchmark.extra_info["percent_of_roofline"] = 100 * max(bound.values()) / seconds


@pytest.mark.parametrize("rival", ["eager", "sdpa"])
def test_rivals_agree(rival: str) -> None:
    """On any machine: what would be compared computes the same."""
    torch.manual_seed(0)
    query, keys, values, slots = inputs(torch.float32, 2, 2, "cpu")
    small = query[:50], keys[:, :50], values[:, :, :50], slots
    wide = [t.double() if t.is_floating_point() else t for t in small]
    error = (RIVALS[rival](*small).double() - memory_read_reference(*wide)).abs().max().item()
    assert error <= TOLERANCE[torch.float32]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_model_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints lower bounds by arithmetic. Nothing is measured here."""
    with capsys.disabled():
        print("\nMODEL, not measured: lower bounds in microseconds from data sheets")
        for objects, reads in ((1, 2), (4, 2), (1, 20)):
            print(f"\n480x864, {objects} object(s), {reads} slots\n")
            print(roofline.table(POSITIONS, objects, reads))
