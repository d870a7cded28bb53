"""What an ONNX graph of fixed shapes must compute and move: arithmetic, not measurements.

FLOPs of a node: Conv, ConvTranspose, MatMul and Gemm two a multiply-add, their bias free; pooling
one for each element of each window; other arithmetic one an element of its largest tensor; moving
data none.

Bytes of activations are counted in two ways:

- *unfused*: every node reads its inputs from memory and writes its outputs there, as eager
  frameworks do; only views (Reshape, Squeeze, …) are free;
- *fused*: only products (Conv, ConvTranspose, MatMul, Gemm) and the graph's own inputs and outputs
  touch memory; whatever stands between is free. A product's elementwise followers belong to it:
  what they write is what it writes. The second operand of an addition is free too, so no compiler
  that runs product after product does better, unless its tensors stay in the GPU's cache.

Weights are read once by every node that uses them, in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import onnx
from onnx import NodeProto, TensorProto, helper

from engine.errors import InputError
from kernels.cards import Card

PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
_MOVES = VIEWS | {"Cast", "Concat", "Expand", "Gather", "Pad", "Slice", "Split", "Tile"}
_MOVES |= {"Transpose", "Where"}
_PARTIAL = frozenset({"Gather", "Slice"})  # read no more than they write
_FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
)


@dataclass(frozen=True)
class Value:
    """A tensor of the graph. dtype: a ``TensorProto.DataType``; constant: known before any run."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    constant: bool = False

    @property
    def elements(self) -> int:
        """Number of elements, 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        return self.elements * helper.tensor_dtype_to_np_dtype(self.dtype).itemsize

    @property
    def dtype_name(self) -> str:
        """The dtype as ONNX names it, in lower case: ``float16``, ``float`` (32 bits), ``bool``."""
        return str(TensorProto.DataType.Name(self.dtype)).lower()


@dataclass(frozen=True)
class Cost:
    """flops: operations, a multiply-add counting two. params: weights. The rest in bytes."""

    flops: int
    params: int
    bytes_weights: int
    bytes_activations: int

    @property
    def bytes(self) -> int:
        """Bytes of weights and activations."""
        return self.bytes_weights + self.bytes_activations

    @property
    def intensity(self) -> float:
        """FLOPs per byte; 0 if no byte moves."""
        return self.flops / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class NodeCost:
    """One node. read, written: unfused bytes of activations by dtype; fused_bytes: both, fused.

    params counts a weight at the first node that uses it, and scalars only of products.
    """

    name: str
    op: str
    flops: int
    params: int
    bytes_weights: int
    read: Mapping[str, int] = field(default_factory=dict)
    written: Mapping[str, int] = field(default_factory=dict)
    fused_bytes: int = 0

    @property
    def unfused_bytes(self) -> int:
        """Bytes of activations, read and written."""
        return sum(self.read.values()) + sum(self.written.values())


class Graph:
    """The nodes that constant folding leaves, and the shape and dtype of every tensor.

    Raises InputError for control flow, and for a tensor whose shape is open or cannot be inferred.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        try:
            model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            first = str(error).splitlines()[0]
            raise InputError(f"cannot infer the graph's shapes: {first}; check the graph") from None
        graph = model.graph
        self._values = {
            t.name: Value(t.name, t.data_type, tuple(t.dims), True) for t in graph.initializer
        }
        declared = [v for v in graph.input if v.name not in self._values]
        for info in [*declared, *graph.value_info, *graph.output]:
            self._values.setdefault(info.name, _value(info))
        self.inputs = [info.name for info in declared]
        self.outputs = [info.name for info in graph.output]
        self.nodes = []
        for node in graph.node:
            if any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute):
                raise InputError(f"cannot count '{node.op_type}': control flow has no fixed cost")
            folds = all(v.constant for v in self.operands(node))
            if folds or node.op_type in ("Shape", "Size"):
                for value in self.results(node):
                    self._values[value.name] = replace(value, constant=True)
            else:
                self.nodes.append(node)

    def value(self, name: str) -> Value:
        """Return the tensor of that name."""
        if name not in self._values:
            raise InputError(f"tensor '{name}' has no shape; costs need a graph of known operators")
        return self._values[name]

    def operands(self, node: NodeProto) -> list[Value]:
        """Return the inputs of a node that are given, constants included."""
        return [self.value(name) for name in node.input if name]

    def activations(self, node: NodeProto) -> list[Value]:
        """Return the inputs that depend on the graph's inputs, each once."""
        values = {v.name: v for v in self.operands(node) if not v.constant}
        return list(values.values())

    def results(self, node: NodeProto) -> list[Value]:
        """Return the outputs that are in use."""
        return [self.value(name) for name in node.output if name]


def node_costs(model: onnx.ModelProto) -> list[NodeCost]:
    """The cost of every node of `Graph`, in its order; raises InputError as it does."""
    graph = Graph(model)
    fused = _fused_bytes(graph)
    counted: set[str] = set()
    costs = []
    for i, node in enumerate(graph.nodes):
        weights = _weights(graph, node)
        new = {v.name: v.elements for v in weights if v.name not in counted}
        counted.update(new)
        read, written = _traffic(graph, node)
        costs.append(
            NodeCost(
                name=node_name(node, i),
                op=node.op_type,
                flops=_flops(graph, node),
                params=sum(new.values()),
                bytes_weights=sum(v.bytes for v in weights),
                read=read,
                written=written,
                fused_bytes=fused[i],
            )
        )
    return costs


def node_name(node: NodeProto, index: int) -> str:
    """Return the node's name, or its operator and place in the graph."""
    return node.name or f"{node.op_type}_{index}"


def total(costs: Iterable[NodeCost], fused: bool = True) -> Cost:
    """Sum over nodes; ``fused`` says which bytes of activations count."""
    costs = list(costs)
    return Cost(
        flops=sum(c.flops for c in costs),
        params=sum(c.params for c in costs),
        bytes_weights=sum(c.bytes_weights for c in costs),
        bytes_activations=sum(c.fused_bytes if fused else c.unfused_bytes for c in costs),
    )


def bound_ms(cost: Cost, card: Card, precision: str) -> float:
    """Lower bound in milliseconds: max(FLOPs / peak, bytes / bandwidth), the roofline model.

    The peak is the card's highest for ``precision`` (`Card.flops`), though depthwise and
    elementwise work cannot reach it. Launches cost nothing. Not a measurement.
    """
    compute, memory = cost.flops / card.flops(precision), cost.bytes / card.bandwidth
    return 1e3 * max(compute, memory)


def layered_bound_ms(costs: Iterable[NodeCost], card: Card, precision: str) -> float:
    """Sum of every node's own `bound_ms` (fused), in milliseconds: nodes run one after another."""
    return sum(bound_ms(total([cost]), card, precision) for cost in costs)


def _value(info: onnx.ValueInfoProto) -> Value:
    tensor = info.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    shape = tuple(d for d in dims if d is not None)
    if not tensor.HasField("shape") or len(shape) < len(dims):
        raise InputError(
            f"tensor '{info.name}' has no fixed shape; export the graph for one size to count it"
        )
    return Value(info.name, tensor.elem_type, shape)


def _weights(graph: Graph, node: NodeProto) -> list[Value]:
    floats = [v for v in graph.operands(node) if v.constant and v.dtype in _FLOATS]
    return [v for v in floats if v.elements > 1 or node.op_type in PRODUCTS]


def _flops(graph: Graph, node: NodeProto) -> int:
    op, operands, out = node.op_type, graph.operands(node), graph.results(node)[0]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if op in _MOVES:
        return 0
    if op == "Conv":  # weight [Cout, Cin / groups, kernel…]
        return 2 * out.elements * math.prod(operands[1].shape[1:])
    if op == "ConvTranspose":  # weight [Cin, Cout / groups, kernel…]
        return 2 * operands[0].elements * math.prod(operands[1].shape[1:])
    if op == "MatMul":
        return 2 * out.elements * operands[0].shape[-1]
    if op == "Gemm":
        return 2 * out.elements * operands[0].shape[0 if attributes.get("transA") else 1]
    if op in ("MaxPool", "AveragePool"):
        return out.elements * int(math.prod(attributes["kernel_shape"]))
    return max(v.elements for v in [*graph.activations(node), out])


def _traffic(graph: Graph, node: NodeProto) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes read and written by dtype, unfused."""
    read: dict[str, int] = {}
    written: dict[str, int] = {}
    if node.op_type not in VIEWS:
        results = graph.results(node)
        for value in results:
            written[value.dtype_name] = written.get(value.dtype_name, 0) + value.bytes
        for value in graph.activations(node):
            size = value.bytes
            if node.op_type in _PARTIAL:
                size = min(size, results[0].bytes)
            read[value.dtype_name] = read.get(value.dtype_name, 0) + size
    return read, written


def _fused_bytes(graph: Graph) -> list[int]:
    """Bytes of activations a node, fused.

    An *origin* stands for a tensor in memory: a graph input or what a product writes. A node
    between products that keeps the number of elements passes its latest origin on, so that a graph
    input that is cast for a convolution, or a graph output behind a ReLU, is not charged twice.
    """
    origin = {name: name for name in graph.inputs}
    age = dict.fromkeys(graph.inputs, -1)
    covered: set[str] = set()
    for i, node in enumerate(graph.nodes):
        if node.op_type in PRODUCTS:
            covered.update(origin[v.name] for v in graph.activations(node) if v.name in origin)
            origin |= {name: name for name in node.output}
            age |= dict.fromkeys(node.output, i)
            covered.update(node.output)
            continue
        for out in graph.results(node):
            same = [v for v in graph.activations(node) if v.elements == out.elements]
            sources = [origin[v.name] for v in same if v.name in origin]
            if sources:
                origin[out.name] = max(sources, key=age.__getitem__)
    unread = {name for name in graph.inputs if name not in covered}
    result = []
    for node in graph.nodes:
        reads, writes = graph.activations(node), graph.results(node)
        if node.op_type not in PRODUCTS:
            reads = [v for v in reads if v.name in unread]
            unread.difference_update(v.name for v in reads)
            writes = [
                v for v in writes if v.name in graph.outputs and origin.get(v.name) not in covered
            ]
        result.append(sum(v.bytes for v in [*reads, *writes]))
    return result
