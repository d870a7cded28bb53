"""Costs counted by hand: what each node computes and moves, and what the whole is bound by."""

from __future__ import annotations

import math

import pytest
from helpers.graphs import graph

from engine.cost.graph import Cost, NodeCost, bound_ms, layered_bound_ms, node_costs, total
from engine.errors import InputError
from kernels.cards import A40, GTX_1080_TI, Card

CARD = Card("a card", (), 1e12, 2e12, 1e9, math.inf)  # 1 or 2 TFLOP/s, 1 GB/s
NONE = Cost(0, 0, 0, 0)


def only(text: str, **weights: tuple[int, ...]) -> NodeCost:
    """The cost of a graph's one node."""
    (cost,) = node_costs(graph(text, **weights))
    return cost


def test_convolution() -> None:
    cost = only(
        "(float16[1,8,10,12] x) => (float16[1,16,5,6] y)"
        "{ y = Conv<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x, w, b) }",
        w=(16, 8, 3, 3),
        b=(16,),
    )
    assert cost.flops == 2 * (16 * 5 * 6) * (8 * 9)
    assert cost.params == 16 * 8 * 9 + 16
    assert cost.bytes_weights == 2 * cost.params
    assert cost.read == {"float16": 2 * 8 * 10 * 12}
    assert cost.written == {"float16": 2 * 16 * 5 * 6}
    assert cost.fused_bytes == cost.unfused_bytes == 2 * (8 * 10 * 12 + 16 * 5 * 6)


def test_depthwise_convolution_in_fp32() -> None:
    cost = only(
        "(float[2,8,4,4] x) => (float[2,8,4,4] y)"
        "{ y = Conv<kernel_shape=[3,3], group=8, pads=[1,1,1,1]>(x, w_f32) }",
        w_f32=(8, 1, 3, 3),
    )
    assert cost.flops == 2 * (2 * 8 * 4 * 4) * 9
    assert (cost.params, cost.bytes_weights) == (72, 288)
    assert cost.read == cost.written == {"float": 4 * 2 * 8 * 4 * 4}


def test_transposed_convolution() -> None:
    cost = only(
        "(float16[1,4,5,5] x) => (float16[1,6,10,10] y)"
        "{ y = ConvTranspose<kernel_shape=[2,2], strides=[2,2]>(x, w) }",
        w=(4, 6, 2, 2),
    )
    assert cost.flops == 2 * (4 * 5 * 5) * (6 * 4)


def test_matrix_products() -> None:
    batched = only(
        "(float16[3,5,7] a, float16[3,7,11] b) => (float16[3,5,11] y) { y = MatMul(a, b) }"
    )
    assert batched.flops == 2 * 3 * 5 * 7 * 11
    assert (batched.params, batched.bytes_weights) == (0, 0)
    assert batched.read == {"float16": 2 * (3 * 5 * 7 + 3 * 7 * 11)}

    plain = "(float16[5,7] a) => (float16[5,11] y) { y = Gemm<transB=1>(a, w, b) }"
    assert only(plain, w=(11, 7), b=(11,)).flops == 2 * 5 * 7 * 11
    turned = "(float16[7,5] a) => (float16[5,11] y) { y = Gemm<transA=1>(a, w) }"
    assert only(turned, w=(7, 11)).flops == 2 * 5 * 7 * 11


def test_other_nodes() -> None:
    assert only("(float16[1,4,6] x) => (float16[1,4,6] y) { y = Sigmoid(x) }").flops == 24
    mean = only(
        "(float[4,6] x) => (float[4,1] y) <int64[1] axis = {1}> { y = ReduceMean(x, axis) }"
    )
    assert mean.flops == 24
    pool = only(
        "(float16[1,4,8,8] x) => (float16[1,4,4,4] y)"
        "{ y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x) }"
    )
    assert pool.flops == 4 * 4 * 4 * 9
    cast = only("(float[3,4] x) => (float16[3,4] y) { y = Cast<to=10>(x) }")
    assert (cast.flops, cast.read, cast.written) == (0, {"float": 48}, {"float16": 24})
    chosen = only(
        "(float16[100,4] x) => (float16[2,4] y) <int64[2] rows = {3, 1}> { y = Gather(x, rows) }"
    )
    assert chosen.read == chosen.written == {"float16": 16}
    view = only(
        "(float16[2,6] x) => (float16[3,4] y) <int64[2] shape = {3, 4}> { y = Reshape(x, shape) }"
    )
    assert (view.flops, view.unfused_bytes) == (0, 0)


def test_an_operand_used_twice_is_read_once() -> None:
    assert only("(float16[4] x) => (float16[4] y) { y = Mul(x, x) }").read == {"float16": 8}


RESIDUAL = """(float[1,8,4,4] image) => (float16[1,8,4,4] y, float16[1,8,4,4] features)
{
  x = Cast<to=10>(image)
  a = Conv<kernel_shape=[1,1]>(x, w)
  features = Relu(a)
  b = Conv<kernel_shape=[1,1]>(features, w)
  c = Add(b, features)
  y = Relu(c)
}"""
PLANE = 2 * 8 * 4 * 4  # bytes of a float16 [1, 8, 4, 4]


def test_fused_bytes_are_those_of_products() -> None:
    """Neither the cast of the input nor a ReLU before an output goes to memory a second time."""
    costs = node_costs(graph(RESIDUAL, w=(8, 8, 1, 1)))
    assert [c.fused_bytes for c in costs] == [0, 2 * PLANE, 0, 2 * PLANE, 0, 0]
    assert [c.unfused_bytes // PLANE for c in costs] == [3, 2, 2, 2, 3, 2]


def test_a_weight_used_twice_is_one_weight_read_twice() -> None:
    cost = total(node_costs(graph(RESIDUAL, w=(8, 8, 1, 1))))
    assert cost.params == 64
    assert cost.bytes_weights == 2 * 128
    assert cost.bytes_activations == 4 * PLANE
    assert total(node_costs(graph(RESIDUAL, w=(8, 8, 1, 1))), fused=False).bytes_activations == (
        14 * PLANE
    )


def test_ends_away_from_products_are_charged() -> None:
    """The given mask is read, the mean is written, though no product sees them."""
    costs = node_costs(
        graph(
            """(float16[1,8,4,4] x, float16[1,8,4,4] given) => (float16[1,8,1,1] mean)
            <int64[2] axes = {2, 3}>
            {
              a = Conv<kernel_shape=[1,1]>(x, w)
              b = Mul(a, given)
              c = Mul(b, given)
              mean = ReduceMean(c, axes)
            }""",
            w=(8, 8, 1, 1),
        )
    )
    assert [c.fused_bytes for c in costs] == [2 * PLANE, PLANE, 0, 16]


def test_a_sum_with_an_input_is_written_by_its_product() -> None:
    costs = node_costs(
        graph(
            "(float16[1,8,4,4] x, float16[1,8,4,4] skip) => (float16[1,8,4,4] y)"
            "{ a = Conv<kernel_shape=[1,1]>(x, w) y = Add(skip, a) }",
            w=(8, 8, 1, 1),
        )
    )
    assert [c.fused_bytes for c in costs] == [2 * PLANE, PLANE]  # the Add reads skip


def test_constant_folding_and_shapes_cost_nothing() -> None:
    costs = node_costs(
        graph(
            """(float16[2,6] x) => (float16[12,1] y) <int64[1] one = {1}>
            {
              size = Shape(x)
              elements = ReduceProd<keepdims=1>(size)
              shape = Concat<axis=0>(elements, one)
              w2 = Mul(w, w)
              z = Mul(x, w2)
              y = Reshape(z, shape)
            }""",
            w=(2, 6),
        )
    )
    assert [c.op for c in costs] == ["Mul", "Reshape"]
    assert (costs[0].flops, costs[0].read) == (12, {"float16": 24})


def test_names_come_from_the_graph_or_the_operator() -> None:
    model = graph("(float16[4] x) => (float16[4] y) { z = Relu(x) y = Relu(z) }")
    model.graph.node[1].name = "last"
    assert [c.name for c in node_costs(model)] == ["Relu_0", "last"]


def test_bounds() -> None:
    compute = Cost(flops=4 * 10**9, params=0, bytes_weights=0, bytes_activations=10**6)
    assert bound_ms(compute, CARD, "fp32") == pytest.approx(4.0)
    assert bound_ms(compute, CARD, "fp16") == pytest.approx(2.0)
    memory = Cost(flops=10**9, params=0, bytes_weights=2 * 10**6, bytes_activations=3 * 10**6)
    assert bound_ms(memory, CARD, "fp32") == pytest.approx(5.0)
    assert memory.intensity == pytest.approx(200.0)
    assert (bound_ms(NONE, CARD, "fp16"), NONE.intensity) == (0.0, 0.0)


def test_a_sequence_of_nodes_is_bound_by_the_sum_of_its_nodes() -> None:
    busy = NodeCost("a", "Conv", flops=4 * 10**9, params=0, bytes_weights=0)
    moving = NodeCost("b", "Add", 0, 0, 0, {"float": 9}, {"float": 9}, fused_bytes=3 * 10**6)
    assert layered_bound_ms([busy, moving], CARD, "fp32") == pytest.approx(7.0)
    assert bound_ms(total([busy, moving]), CARD, "fp32") == pytest.approx(4.0)


def test_cards() -> None:
    assert (A40.flops("fp16"), A40.flops("fp32")) == (149.7e12, 37.4e12)
    assert GTX_1080_TI.flops("fp16") == GTX_1080_TI.flops("fp32") == 11.3e12
    assert A40.precisions == ("fp16", "fp32") and GTX_1080_TI.precisions == ("fp32",)
    with pytest.raises(ValueError, match=r"precision 'int8'; use fp16 or fp32"):
        A40.flops("int8")


def test_open_shapes_and_control_flow_are_refused() -> None:
    with pytest.raises(InputError, match=r"tensor 'x' has no fixed shape; export"):
        node_costs(graph("(float16[n] x) => (float16[n] y) { y = Relu(x) }"))
    loop = "(bool go, float[2] x) => (float[2] y)"
    branch = "{ z = Relu(x) y = If<then_branch = a () => (float[2] p) { p = Relu(x) },"
    branch += " else_branch = b () => (float[2] q) { q = Neg(x) }>(go) }"
    with pytest.raises(InputError, match=r"cannot count 'If': control flow"):
        node_costs(graph(loop + branch))


def test_a_graph_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(InputError, match=r"cannot infer the graph's shapes: "):
        node_costs(
            graph("(float16[2,3] a, float16[2,3] b) => (float16[2,3] y) { y = MatMul(a, b) }")
        )
