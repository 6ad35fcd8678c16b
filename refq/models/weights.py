"""The weights of a model: which operand of which node is a matrix that can be cast, and along which axis.

A layer computes X times a constant matrix. Its weight is known by where it stands in the graph, never by its
name, and the layer by its first output tensor, which is unique where node names need not be.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from refq.errors import InputError
from refq.models.graph import Graph, Node, Static

FLOATS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16",
          TensorProto.DOUBLE: "float64"}
RECURRENT = ("LSTM", "GRU", "RNN")
_FIXED = "the weight was a default that a caller could replace (initializer and graph input); it is fixed now"
_TWICE = "the weight was quantised before: its dequantised values are cast"


@dataclass(frozen=True)
class View:
    """How a stored weight becomes the matrix that is cast, [..., rows, columns] or [..., columns, rows].

    It is reshaped to `split`, transposed by `perm` and reshaped to `shape`; what is empty is left out.
    axis: the axis of the matrix that the layer sums over.
    """

    axis: int
    split: tuple[int, ...] = ()
    perm: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()

    @classmethod
    def of(cls, stored: tuple[int, ...], axis: int, split=(), perm=(), shape=()) -> "View":
        """The view of a weight of shape `stored`, without the steps that change nothing."""
        stored = tuple(stored)
        split = tuple(split or stored)
        perm = tuple(perm or range(len(split)))
        shape = tuple(shape or (split[place] for place in perm))
        moved = [place for place in perm if split[place] != 1]
        if moved == sorted(moved):
            return cls(axis, shape=() if shape == stored else shape)
        between = tuple(split[place] for place in perm)
        return cls(axis, () if split == stored else split, perm, () if shape == between else shape)

    def matrix(self, array: np.ndarray) -> np.ndarray:
        """The matrix of a stored array."""
        array = array.reshape(self.split) if self.split else array
        array = array.transpose(self.perm) if self.perm else array
        return array.reshape(self.shape) if self.shape else array

    def restore(self, matrix: np.ndarray, stored: tuple[int, ...]) -> np.ndarray:
        """The array of shape `stored` whose matrix this is."""
        array = matrix.reshape(self.between(stored))
        return (array.transpose(self.inverse) if self.perm else array).reshape(stored)

    @property
    def inverse(self) -> tuple[int, ...]:
        """The permutation that undoes `perm`."""
        return tuple(self.perm.index(place) for place in range(len(self.perm)))

    def between(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape before the last step."""
        cut = self.split or tuple(stored)
        return tuple(cut[place] for place in self.perm) if self.perm else cut

    def matrix_shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        return self.shape or self.between(stored)

    def axes(self, stored: tuple[int, ...]) -> tuple[int, int] | None:
        """(cross, along) of tiles of two dimensions, along the reduction axis; None for a single axis."""
        last = len(self.matrix_shape(stored)) - 1
        return (2 * last - 1 - self.axis, self.axis) if last > 0 else None


@dataclass(frozen=True)
class WeightOp:
    """One row of WEIGHT_OPS.

    operands: where weights may stand, in order of preference; none: anywhere. each: all of them are weights,
    not only the first that is constant. view: from (node, operand, shape) to the matrix view, raising
    InputError for what it cannot be; None when refq does not cast this operator, `reason` then says why.
    always: the operand is a weight by its role, so that one computed at run time is worth a row too. rank:
    the least rank that makes a constant a weight. table: it is looked up, no product is summed.
    """

    op: str
    operands: tuple[int, ...] = ()
    view: Callable[[Node, int, tuple[int, ...]], View] | None = None
    reason: str = ""
    domain: str = ""
    always: bool = False
    rank: int = 1
    table: bool = False
    each: bool = False


@dataclass(frozen=True, eq=False)
class WeightSite:
    """A node that bears a weight, and what can be done with it.

    node, operand: the weight is `node.proto.input[operand]`. static: what that operand is. stored_shape,
    type: of the tensor the node reads (type: an ONNX element type). view: the matrix, None when the site is
    skipped for `reason`. note: something the reader of the report should know about a weight that is cast.
    table: the weight is looked up, no product is summed.
    """

    node: Node
    operand: int
    static: Static | None
    stored_shape: tuple[int, ...] = ()
    type: int = TensorProto.UNDEFINED
    view: View | None = None
    reason: str = ""
    note: str = ""
    table: bool = False

    @property
    def key(self) -> str:
        """The layer's name in refq: the node's first output tensor."""
        return self.node.key

    @property
    def place(self) -> tuple:
        """What tells it from every other site of the model: the body it is in, its key, and the operand."""
        return self.node.scope.path, self.key, self.operand

    @property
    def label(self) -> str:
        """The place in words: the key, behind what it lies in; with the weight's name for recurrent layers,
        which have two."""
        own = f"{self.key}[{self.tensor}]" if self.node.op in RECURRENT else self.key
        return "/".join((*self.node.scope.path, own))

    @property
    def in_body(self) -> bool:
        """Whether its node is in a body of If, Loop or Scan, and not in the main graph."""
        return self.node.scope.owner is not None

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
        """Equal for sites of one stored weight, read as it is or transposed, whose matrices are equal with
        the axis summed over at the end: one set of codes serves them all.
        """
        if self.view.shape or self.view.perm:
            return self.static.key, self.view
        origin, axes = self._origin
        along = axes[self.view.axis]
        return origin.key, (*(axis for axis in axes if axis != along), along)

    @property
    def _origin(self) -> tuple[Static, tuple[int, ...]]:
        """The tensor before the Identity and Transpose nodes, and its axes in the order of what is read."""
        static, axes = self.static, tuple(range(len(self.stored_shape)))
        while static.op in ("Identity", "Transpose") and static.node.is_standard:
            if static.op == "Transpose":
                perm = static.node.attribute("perm", range(len(axes))[::-1])
                axes = tuple(perm[axis] for axis in axes)
            static = static.inputs[0]
        return static, axes

    def turn_to(self, other: "WeightSite") -> tuple[int, ...]:
        """The permutation from what this site reads to what `other`, of its group, reads; () for none."""
        own, wanted = self._origin[1], other._origin[1]
        return () if own == wanted else tuple(own.index(axis) for axis in wanted)

    def as_seen(self, array: np.ndarray, other: "WeightSite") -> np.ndarray:
        """What `other`, of the same group, reads where this site reads `array`."""
        turn = self.turn_to(other)
        return array.transpose(turn) if turn else array

    def tile_axis(self, block) -> int | tuple[int, int] | None:
        """The axis of the matrix that tiles of a data type (refq.blocks.rows.Block) run along, or the pair
        (cross, along); None where tiles of two dimensions have no second axis to lie on."""
        return self.view.axes(self.stored_shape) if isinstance(block.tile, tuple) else self.view.axis

    @property
    def names(self) -> frozenset[str]:
        """Every name by which patterns find the site."""
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
            "Repair the model or keep the layer float")
    return matrix


def _sites(graph: Graph, node: Node, row: WeightOp) -> Iterator[WeightSite]:
    places = row.operands or range(len(node.proto.input))
    present = [i for i in places if i < len(node.proto.input) and node.proto.input[i]]
    statics = {i: graph.static(node.scope, node.proto.input[i]) for i in present}
    known = [i for i in present if statics[i] is not None]
    for operand in present if row.each else known[:1] or (present[:1] if row.always else []):
        if statics[operand] is None:
            yield WeightSite(node, operand, None, reason="its weight is computed at run time")
            continue
        site = _site(graph, node, row, operand, statics[operand])
        if row.table and (graph.static(node.scope, site.key) or site.type not in FLOATS):
            continue
        if site.static.unfoldable or len(site.stored_shape) >= row.rank:
            crowded = "" if site.view is None or row.each else _crowded(present, known, row)
            yield replace(site, view=None, reason=crowded) if crowded else site


def _site(graph: Graph, node: Node, row: WeightOp, operand: int, static: Static) -> WeightSite:
    if static.unfoldable:
        reason = f"its weight is computed from constants by {static.unfoldable}, which refq does not fold"
        return WeightSite(node, operand, static, reason=reason)
    shape, element = graph.shape_and_type(static)
    reason, view = row.reason, None
    if row.view is not None:
        reason = _unfit(shape, element)
        if not reason and len(shape) >= row.rank:
            try:
                view = row.view(node, operand, shape)
            except InputError as error:
                reason = str(error)
    note = _FIXED if static.overridable and graph.model.ir_version >= 4 else ""
    note = _TWICE if "DequantizeLinear" in static.chain else note
    return WeightSite(node, operand, static, shape, element, view, reason, note, row.table)


def _unfit(shape: tuple[int, ...], element: int) -> str:
    """Why a tensor is nothing that can be cast; "" when it is."""
    if element not in FLOATS:
        kind = TensorProto.DataType.Name(element).lower()
        return f"its weight is {kind}; cast are {', '.join(FLOATS.values())}"
    if not shape or 0 in shape:
        return f"its weight of shape {list(shape)} has nothing to cast"
    return ""


def _crowded(present: list[int], known: list[int], row: WeightOp) -> str:
    """Why a weight is not cast for other operands' sake; "" when it is."""
    if len(row.operands) != 1 and known == present:
        which = "both" if len(known) == 2 else "all"
        return f"{which} operands are constant: nothing is multiplied at run time"
    if len(known) > 1:
        return f"{len(known)} of its operands are constant; cast is a single one"
    return ""


# -- matrix views --------------------------------------------------------------------------------------------

def _matmul_view(node: Node, operand: int, shape: tuple[int, ...]) -> View:
    """B [..., K, N] or [K] sums over its last axis but one; A [..., M, K] over its last."""
    return View(max(len(shape) - 2, 0) if operand == 1 else len(shape) - 1)


def _gemm_view(node: Node, operand: int, shape: tuple[int, ...]) -> View:
    transposed = bool(node.attribute("transB" if operand == 1 else "transA", 0))
    return View(int(transposed) if operand == 1 else int(not transposed))


def _conv_view(node: Node, operand: int, shape: tuple[int, ...]) -> View:
    """W [M, C/g, k...] as [M, C/g*k...]: an output channel sums over the channels of its group and taps."""
    return View.of(shape, 1, shape=(shape[0], math.prod(shape[1:])))


def _conv_transpose_view(node: Node, operand: int, shape: tuple[int, ...]) -> View:
    """W [C, M/g, k...] as [M, C/g*k...], the columns ordered as those of a Conv."""
    groups, (channels, rows, *taps) = node.attribute("group", 1), shape
    if groups < 1 or channels % groups:
        raise InputError(f"its weight of shape {list(shape)} does not fall into {groups} groups")
    split = (groups, channels // groups, rows, *taps) if groups > 1 else shape
    perm = (0, 2, 1, *range(3, len(split))) if groups > 1 else (1, 0, *range(2, len(split)))
    return View.of(shape, 1, split, perm, (groups * rows, channels // groups * math.prod(taps)))


def _recurrent_view(node: Node, operand: int, shape: tuple[int, ...]) -> View:
    """W [directions, gates*H, I] and R [directions, gates*H, H]: every gate sums over the last axis."""
    if len(shape) != 3:
        raise InputError(f"its weight of shape {list(shape)} has not three axes, as those of {node.op} have")
    return View(2)


def _einsum_view(node: Node, operand: int, shape: tuple[int, ...]) -> View:
    """[batch..., summed, rows] where the labels stand in this order, else [batch..., rows, summed]."""
    equation = node.attribute("equation", b"").decode()
    batch, rows, summed = einsum_labels(equation, operand)
    own = einsum_terms(equation)[0][operand]
    if len(own) != len(shape):
        raise InputError(f"its weight of shape {list(shape)} does not fit {own!r} of equation {equation!r}")
    sizes = dict(zip(own, shape))
    lead = tuple(sizes[label] for label in batch)
    count, depth = (math.prod(sizes[label] for label in labels) for labels in (rows, summed))
    if rows and own == batch + summed + rows:
        return View.of(shape, len(lead), shape=(*lead, depth, count))
    perm = tuple(own.index(label) for label in batch + rows + summed)
    return View.of(shape, len(lead) + 1, perm=perm, shape=(*lead, count, depth))


class EinsumLabels(NamedTuple):
    """The labels of one operand of an Einsum, in its order. batch: in the output and in another operand.
    rows: in the output alone. summed: not in the output."""

    batch: str
    rows: str
    summed: str


def einsum_labels(equation: str, operand: int) -> EinsumLabels:
    """What the labels of operand number `operand` are for.

    Raises InputError where it is no matrix: labels repeated or left open by "...", or none summed over.
    """
    terms, result = einsum_terms(equation)
    own = terms[operand] if operand < len(terms) else ""
    others = "".join(term for place, term in enumerate(terms) if place != operand)
    if "." in own or len(set(own)) < len(own):
        what = "leaves axes of its weight open" if "." in own else "repeats a label of its weight"
        raise InputError(f"equation {equation!r} {what}")
    labels = EinsumLabels("".join(label for label in own if label in result and label in others),
                          "".join(label for label in own if label in result and label not in others),
                          "".join(label for label in own if label not in result))
    if not labels.summed:
        raise InputError(f"equation {equation!r} sums over no axis of its weight")
    return labels


def einsum_terms(equation: str) -> tuple[list[str], str]:
    """(labels of every operand, labels of the output), the output being those that occur once if it is not
    given."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow:
        labels = left.replace(",", "").replace(".", "")
        once = "".join(sorted(label for label in set(labels) if labels.count(label) == 1))
        result = "..." * ("..." in left) + once
    return left.split(","), result


def _gather_view(node: Node, operand: int, shape: tuple[int, ...]) -> View:
    """A table's last axis that is not the one looked up: an entry's values share scales."""
    last = len(shape) - 1
    return View(last - 1 if node.attribute("axis", 0) % len(shape) == last else last)


_LATER = "{} weights are not cast yet"
_DONE = "its weights are quantised already"

WEIGHT_OPS: tuple[WeightOp, ...] = (
    WeightOp("MatMul", (1, 0), _matmul_view),
    WeightOp("Gemm", (1, 0), _gemm_view, rank=2),
    WeightOp("Conv", (1,), _conv_view, always=True, rank=2),
    WeightOp("ConvTranspose", (1,), _conv_transpose_view, always=True, rank=2),
    *(WeightOp(op, (1, 2), _recurrent_view, always=True, each=True) for op in RECURRENT),
    WeightOp("Einsum", (), _einsum_view),
    WeightOp("Gather", (0,), _gather_view, rank=2, table=True),
    WeightOp("DeformConv", (1,), reason=_LATER.format("DeformConv"), always=True),
    *(WeightOp(op, operands, reason=_DONE, always=True) for op, operands in (
        ("MatMulInteger", (1, 0)), ("ConvInteger", (1,)), ("QLinearMatMul", (3, 0)), ("QLinearConv", (3,)))),
    *(WeightOp(op, (1,), reason=_DONE, domain="com.microsoft", always=True) for op in (
        "MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "QAttention", "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat")),
    *(WeightOp(op, operands, reason=_LATER.format(f"com.microsoft {op}"), domain="com.microsoft")
      for op, operands in (("FusedMatMul", (1, 0)), ("FusedGemm", (1, 0)), ("FusedConv", (1,)),
                           ("Attention", (1,)), ("MoE", (2, 3)))),
)
