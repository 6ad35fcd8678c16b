"""The weights of a model: which operand of which node is a matrix that can be cast, and along which axis.

A layer computes X times a constant matrix. Its weight is known by where it stands in the graph, never by its
name, and the layer by its first output tensor, which is unique where node names need not be.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from refq.errors import InputError
from refq.models.graph import Graph, Node, Static

FLOATS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16",
          TensorProto.DOUBLE: "float64"}
_FIXED = "the weight was a default that a caller could replace (initializer and graph input); it is fixed now"
_TWICE = "the weight was quantised before: its dequantised values are cast"


@dataclass(frozen=True)
class View:
    """How a stored weight becomes the matrix that is cast: the axis that the layer sums over.

    axis: the reduction axis of the matrix. flat: the stored axes from 1 on are one axis of the matrix, as a
    Conv's C/g, kh, kw are.
    """

    axis: int
    flat: bool = False

    def matrix(self, array: np.ndarray) -> np.ndarray:
        """The stored array as the matrix; Conv [M, C/g, k...] as [M, C/g*k...]."""
        return array.reshape(self.matrix_shape(array.shape)) if self.flat else array

    def axes(self, stored: tuple[int, ...]) -> tuple[int, int] | None:
        """(cross, along) of tiles of two dimensions, along the reduction axis; None for a single axis."""
        last = len(self.matrix_shape(stored)) - 1
        return (2 * last - 1 - self.axis, self.axis) if last > 0 else None

    def matrix_shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        return (stored[0], int(np.prod(stored[1:]))) if self.flat else tuple(stored)


@dataclass(frozen=True)
class WeightOp:
    """One row of WEIGHT_OPS.

    operands: where weights may stand, in order of preference. view: from (node, operand, shape) to the matrix
    view, None when refq does not cast this operator; `reason` then says why. always: the operand is a weight
    by its role, so that one computed at run time is worth a row too. rank: the least rank that makes a
    constant a weight.
    """

    op: str
    operands: tuple[int, ...]
    view: Callable[[Node, int, tuple[int, ...]], View] | None = None
    reason: str = ""
    domain: str = ""
    always: bool = False
    rank: int = 1
    table: bool = False


@dataclass(frozen=True, eq=False)
class WeightSite:
    """A node that bears a weight, and what can be done with it.

    node, operand: the weight is `node.proto.input[operand]`. static: what that operand is. stored_shape,
    type: of the tensor the node reads (type: an ONNX element type). view: the matrix, None when the site is
    skipped for `reason`. note: something the reader of the report should know about a weight that is cast.
    """

    node: Node
    operand: int
    static: Static | None
    stored_shape: tuple[int, ...] = ()
    type: int = TensorProto.UNDEFINED
    view: View | None = None
    reason: str = ""
    note: str = ""

    @property
    def key(self) -> str:
        """The layer's name in refq: the node's first output tensor."""
        return self.node.key

    @property
    def place(self) -> tuple:
        """What tells it from every other site of the model: the body it is in, and its key."""
        return self.node.scope.path, self.key

    @property
    def tensor(self) -> str:
        """The stored tensor's name if the node reads it directly or through Identity, else what it reads."""
        if self.static is None:
            return self.node.proto.input[self.operand]
        return self.static.root.name if set(self.static.chain) <= {"Identity"} else self.static.name

    @property
    def reached(self) -> tuple[str, ...]:
        """The operators between the stored tensor and the node, in order of execution."""
        return () if self.static is None else self.static.chain[::-1]

    @property
    def group(self) -> tuple:
        """Equal for sites that share one weight seen in one way, which is then cast once."""
        return self.static.key, self.view

    @property
    def names(self) -> frozenset[str]:
        """Every name by which --include and --exclude find the site."""
        weights = {self.tensor, self.node.proto.input[self.operand]}
        weights |= {self.static.root.name} if self.static else set()
        return frozenset(name for name in (self.node.proto.name, self.key, *weights) if name)

    @property
    def parameters(self) -> int:
        return int(np.prod(self.stored_shape)) if self.stored_shape else 0


def find_weights(graph: Graph) -> list[WeightSite]:
    """Every weight-bearing node of a model in file order, those that refq cannot cast included.

    Raises InputError when the data of a weight cannot be read or folded.
    """
    rows = {(row.domain, row.op): row for row in WEIGHT_OPS}
    sites = []
    for node in graph.nodes():
        row = rows.get(("" if node.is_standard else node.proto.domain, node.op))
        if row is not None and node.key:
            sites.extend(_sites(graph, node, row))
    return sites


def read_weight(graph: Graph, site: WeightSite) -> np.ndarray:
    """The matrix of a site in its file's dtype.

    Raises InputError, naming the tensor, when a value is NaN or infinite or the data cannot be read.
    """
    matrix = site.view.matrix(graph.array(site.static))
    finite = np.isfinite(matrix)
    if not finite.all():
        where = np.unravel_index(int(np.argmin(finite)), matrix.shape)
        raise InputError(
            f"weight {site.tensor!r} of {site.node.op} {site.node.title!r} holds {matrix[where]} at "
            f"{tuple(map(int, where))} of its matrix {matrix.shape}; allowed are finite values. "
            "Repair the model or exclude the layer")
    return matrix


def _sites(graph: Graph, node: Node, row: WeightOp) -> Iterator[WeightSite]:
    operands = [i for i in row.operands if i < len(node.proto.input) and node.proto.input[i]]
    statics = {i: graph.static(node.scope, node.proto.input[i]) for i in operands}
    known = [i for i in operands if statics[i] is not None]
    if not known:
        if row.always and operands:
            yield WeightSite(node, operands[0], None, reason="its weight is computed at run time")
        return
    site = _site(graph, node, row, known[0], statics[known[0]])
    if row.table and (graph.static(node.scope, site.key) or site.type not in FLOATS):
        return
    if site.static.unfoldable or len(site.stored_shape) >= row.rank:
        yield site


def _site(graph: Graph, node: Node, row: WeightOp, operand: int, static: Static) -> WeightSite:
    if static.unfoldable:
        reason = f"its weight is computed from constants by {static.unfoldable}, which refq does not fold"
        return WeightSite(node, operand, static, reason=reason)
    shape, element = graph.shape_and_type(static)
    reason, view = row.reason, None
    if row.view is not None:
        view = row.view(node, operand, shape)
        reason = _refusal(graph, node, row, shape, element)
    note = _FIXED if static.overridable and graph.model.ir_version >= 4 else ""
    note = _TWICE if "DequantizeLinear" in static.chain else note
    return WeightSite(node, operand, static, shape, element, None if reason else view, reason, note)


def _refusal(graph: Graph, node: Node, row: WeightOp, shape: tuple[int, ...], element: int) -> str:
    """Why this operand of a castable operator is not cast; "" when it is."""
    if element not in FLOATS:
        kind = TensorProto.DataType.Name(element).lower()
        return f"its weight is {kind}; cast are {', '.join(FLOATS.values())}"
    if not shape or 0 in shape:
        return f"its weight of shape {list(shape)} has nothing to cast"
    if len(row.operands) > 1 and all(graph.static(node.scope, node.proto.input[i]) for i in row.operands):
        return "both operands are constant: nothing is multiplied at run time"
    return ""


def _matmul_view(node: Node, operand: int, shape: tuple[int, ...]) -> View:
    """B [..., K, N] or [K] sums over its last axis but one; A [..., M, K] over its last."""
    return View(max(len(shape) - 2, 0) if operand == 1 else len(shape) - 1)


def _gemm_view(node: Node, operand: int, shape: tuple[int, ...]) -> View:
    transposed = bool(node.attribute("transB" if operand == 1 else "transA", 0))
    return View(int(transposed) if operand == 1 else int(not transposed))


def _conv_view(node: Node, operand: int, shape: tuple[int, ...]) -> View:
    """W [M, C/g, k...]: every output channel sums over its C/g*k... weights."""
    return View(1, flat=True)


_LATER = "{} weights are not cast yet"
_DONE = "its weights are quantised already"
_TABLE = "a lookup table is not summed over: tables are not cast yet"

WEIGHT_OPS: tuple[WeightOp, ...] = (
    WeightOp("MatMul", (1, 0), _matmul_view),
    WeightOp("Gemm", (1, 0), _gemm_view, rank=2),
    WeightOp("Conv", (1,), _conv_view, always=True, rank=2),
    *(WeightOp(op, operands, reason=_LATER.format(op), always=True) for op, operands in (
        ("ConvTranspose", (1,)), ("DeformConv", (1,)), ("LSTM", (1, 2)), ("GRU", (1, 2)), ("RNN", (1, 2)))),
    WeightOp("Einsum", tuple(range(8)), reason=_LATER.format("Einsum"), rank=2),
    WeightOp("Gather", (0,), reason=_TABLE, rank=2, table=True),
    *(WeightOp(op, operands, reason=_DONE, always=True) for op, operands in (
        ("MatMulInteger", (1, 0)), ("ConvInteger", (1,)), ("QLinearMatMul", (3, 0)), ("QLinearConv", (3,)))),
    *(WeightOp(op, (1,), reason=_DONE, domain="com.microsoft", always=True) for op in (
        "MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "QAttention", "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat")),
    *(WeightOp(op, operands, reason=_LATER.format(f"com.microsoft {op}"), domain="com.microsoft")
      for op, operands in (("FusedMatMul", (1, 0)), ("FusedGemm", (1, 0)), ("FusedConv", (1,)),
                           ("Attention", (1,)), ("MoE", (2, 3)))),
)
