"""How quantised weights are written into an ONNX graph: one table of carriers for every data type and style.

A *carrier* is a way to keep the codes of a number format in a tensor of a standard ONNX type, together with
the way a runtime gets their values back. The element codes have one carrier and the scale codes another; a
`Plan` is the pair for one data type in one style. A style that has no carrier falls back to the next:

native    packed standard types under DequantizeLinear: the smallest file, for runtimes that know the types.
portable  what onnxruntime's CPU kernels run: float4, float6 and codebooks are looked up in small tables.
float     the dequantised values in place of the weights: any runtime, no smaller than the source.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, TensorProto, helper

from refq.blocks.packing import pack_codes
from refq.blocks.recipes import recipe
from refq.errors import InputError
from refq.formats.codec import decode, encode
from refq.formats.rows import Int, Row
from refq.models.weights import FLOATS, View

STYLES = ("native", "portable", "float")
_BOTH = ("native", "portable")


@dataclass(frozen=True)
class Carrier:
    """One row of ELEMENTS or SCALES.

    type: ONNX element type. bits: what one code takes in the file. accepts: which number formats it can hold.
    read: how the values come back: "dequantize" as the first operand of DequantizeLinear, "direct" as its
    scale operand (or a factor of Mul), "cast" by Cast, "table" by Gather from the format's values (of all
    codes in one byte, where several lie in one), "values" stored as float32 values. styles: which export
    styles use it. opset: the least that reads it. blocked: the least for DequantizeLinear in tiles.
    """

    type: str
    bits: int
    read: str
    accepts: Callable[[Row], bool]
    styles: tuple[str, ...]
    opset: int
    blocked: int = 21

    @property
    def available(self) -> bool:
        """Whether the installed onnx knows the type."""
        return hasattr(TensorProto, self.type)

    @property
    def lanes(self) -> int:
        """Codes in one element of a table's index."""
        return 8 // self.bits if self.read == "table" else 1


def _named(*names):
    return lambda row: row.name in names


def _integer(bits, signed):
    def accepts(row):
        return isinstance(row, Int) and row.encoding == "twos" and row.signed == signed and row.bits <= bits
    return accepts


def _up_to(bits):
    return lambda row: row.width <= bits


# The first row that fits is taken.
ELEMENTS: tuple[Carrier, ...] = (
    *(Carrier(kind, 8, "dequantize", _named(name), _BOTH, 19) for kind, name in (
        ("FLOAT8E4M3FN", "e4m3fn"), ("FLOAT8E5M2", "e5m2"),
        ("FLOAT8E4M3FNUZ", "e4m3fnuz"), ("FLOAT8E5M2FNUZ", "e5m2fnuz"))),
    Carrier("FLOAT4E2M1", 4, "dequantize", _named("e2m1"), ("native",), 23, 23),
    Carrier("FLOAT6E2M3", 6, "dequantize", _named("e2m3"), ("native",), 28, 28),
    Carrier("FLOAT6E3M2", 6, "dequantize", _named("e3m2"), ("native",), 28, 28),
    Carrier("INT2", 2, "dequantize", _integer(2, True), ("native",), 25, 25),
    Carrier("UINT2", 2, "dequantize", _integer(2, False), ("native",), 25, 25),
    *(Carrier("UINT8", bits, "table", _up_to(bits), ("portable",), 13) for bits in (1, 2)),
    *(Carrier(f"{'' if signed else 'U'}INT{bits}", bits, "dequantize", _integer(bits, signed), _BOTH, opset)
      for bits, opset in ((4, 21), (8, 13), (16, 21)) for signed in (True, False)),
    Carrier("BFLOAT16", 16, "cast", _named("bfloat16"), _BOTH, 13),
    Carrier("FLOAT16", 16, "cast", _named("binary16"), _BOTH, 13),
    Carrier("FLOAT", 32, "cast", _named("binary32"), _BOTH, 13),
    *(Carrier("UINT8", bits, "table", _up_to(bits), ("portable",), 13) for bits in (4, 8)),
)
SCALES: tuple[Carrier, ...] = (
    Carrier("FLOAT", 32, "direct", _named("binary32"), _BOTH, 10),
    Carrier("FLOAT8E8M0", 8, "direct", _named("e8m0"), ("native",), 24),
    Carrier("FLOAT16", 16, "cast", _named("binary16"), _BOTH, 13),
    Carrier("BFLOAT16", 16, "cast", _named("bfloat16"), ("native",), 13),
    Carrier("FLOAT8E4M3FN", 8, "cast", _named("e4m3fn", "ue4m3"), _BOTH, 19),
    Carrier("FLOAT8E5M2", 8, "cast", _named("e5m2"), _BOTH, 19),
    Carrier("UINT8", 8, "table", _up_to(8), _BOTH, 13),
    Carrier("FLOAT", 32, "values", lambda row: True, _BOTH, 10),
)


@dataclass(frozen=True)
class Plan:
    """How the weights of one data type are written. style: the one used, which may be a fallback, see reason.

    element, scale: carriers (element None: float values; scale None: the data type has none). Zero points lie
    in the type of the elements, and in UINT8 beside tables.
    """

    style: str
    element: Carrier | None = None
    scale: Carrier | None = None
    reason: str = ""

    def opset_for(self, block, view: View, shape: tuple[int, ...]) -> int:
        """The opset that a weight of this view and stored shape needs, 0 for any."""
        carriers = [carrier for carrier in (self.element, self.scale) if carrier]
        blocked = [c.blocked for c in carriers[:1] if c.read == "dequantize"
                   and _Grid.of(block, view, shape, by_operator=True).block]
        return max([carrier.opset for carrier in carriers] + blocked, default=0)


FLOAT_PLAN = Plan("float")


def plan(block, style: str) -> Plan:
    """How the data type `block` is written in a style, or in the next (native, portable, float) and why.

    Raises InputError for an unknown style.
    """
    if style not in STYLES:
        raise InputError(f"export style {style!r} is not known; allowed are {', '.join(STYLES)}")
    tries = STYLES[STYLES.index(style):-1]
    if tries and (beyond := _beyond(block)):
        return Plan("float", reason=f"{beyond} have no encoding in ONNX")
    element, scale = block.element_row, block.scale and block.scale_row
    zero, what, reason = block.zero and block.zero_row, block.element_row.name, ""
    what += f" with zero points of {zero.name}" if zero and zero != element else ""
    for count, tried in enumerate(tries, 1):
        carrier = _first(ELEMENTS, element, tried, zero)
        if carrier is not None:
            return Plan(tried, carrier, scale and _first(SCALES, scale, tried), reason)
        reason = f"{what} has no {' or '.join(tries[:count])} encoding in ONNX"
        reason += _missing(element, style)
    return Plan("float", reason=reason)


def _beyond(block) -> str:
    """What of a data type no ONNX operator has; "" for nothing."""
    words = {"tiles of two dimensions": isinstance(block.tile, tuple), "subtiles": bool(block.subtiles),
             "choices among codebooks": len(block.tables) > 1,
             "floating zero points": block.zero and block.zero_row.is_float,
             "zero points with fraction bits": block.zero and any(
                 getattr(row, "frac", 0) for row in (block.element_row, block.zero_row))}
    return next((what for what, has in words.items() if has), "")


def _first(table, row: Row, style: str, zero: Row | None = None) -> Carrier | None:
    """The first carrier that holds codes of a format and, beside them, zero points."""
    return next((c for c in table if style in c.styles and c.available and c.accepts(row)
                 and (zero is None or (zero.width <= 8 if c.read == "table" else c.accepts(zero)))), None)


def _missing(row: Row, style: str) -> str:
    """What the installed onnx lacks, if that is why."""
    kinds = [c.type for c in ELEMENTS if style in c.styles and not c.available and c.accepts(row)]
    return f" (the installed onnx has no {kinds[0]})" if kinds else ""


@dataclass
class Exported:
    """What goes into the graph for one weight. The consumer reads `output`, of shape and type as before.

    bits: what a weight takes in the file, scales included. encoding: in words, for the report.
    exact: False where the chain rounds twice, so that values can differ from Quantized.dequantize by one ulp.
    """

    output: str
    encoding: str
    bits: float
    initializers: list[TensorProto] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)
    exact: bool = True


class Tables:
    """The value tables that a model's weights share: initializers of the main graph, made when first used."""

    def __init__(self, unique: Callable[[str], str]):
        self.unique = unique
        self.initializers: dict[tuple[str, int, int], TensorProto] = {}

    def name(self, row: Row, exponent: int = 0, lanes: int = 1) -> str:
        """The table of a format's values times 2^exponent, indexed by code; with several lanes [256, lanes],
        indexed by bytes that hold as many codes, the first in the lowest bits.

        Raises InputError when a value is not exact in float32.
        """
        key = row.name, exponent, lanes
        if key not in self.initializers:
            codes = np.arange(1 << row.width) if lanes == 1 else _codes_in_bytes(8 // lanes, lanes)
            values = np.ldexp(decode(codes & (1 << row.width) - 1, row, np.float64), exponent)
            name = self.unique(f"refq_{row.name}_values" + (f"_e{exponent}" if exponent else ""))
            self.initializers[key] = _float_tensor(name, _exact_float32(values, row.name))
        return self.initializers[key].name


def _codes_in_bytes(bits: int, lanes: int) -> np.ndarray:
    """[256, lanes]: the codes in every byte."""
    return np.arange(256)[:, None] >> bits * np.arange(lanes) & (1 << bits) - 1


def encode_weight(q, view: View, shape: tuple[int, ...], type: int, base: str, plan: Plan,
                  tables: Tables) -> Exported:
    """A quantised matrix as initializers and nodes that give the weight back.

    q: Quantized, of the matrix `view` makes of the stored `shape`. type: the ONNX element type the consumer
    reads. base: the weight's name, to which onnxruntime's suffixes are added. Raises InputError when the plan
    cannot hold these very codes exactly (the caller then writes float values).
    """
    out = _Builder(base, tables)
    if plan.element is None:
        return float_weight(q, view, shape, type, base, tables)
    grid = _Grid.of(q.dtype, view, shape, by_operator=plan.element.read == "dequantize")
    raw = _element_bytes(grid.codes(q), q.dtype.element_row, plan.element)
    dims = grid.codes_shape if plan.element.lanes == 1 else [len(raw)]
    codes = out.tensor("quantized", plan.element.type, dims, raw)
    name = _READERS[plan.element.read](out, codes, q, plan, grid)
    name = grid.restore(out, name)
    if type != TensorProto.FLOAT:
        name = out.node("Cast", [name], "Cast", to=type)
    stored = sum(len(tensor.raw_data) for tensor in out.initializers if tensor.data_type != TensorProto.INT64)
    words = _in_words(out, plan) + ("" if q.mask is None else ", dropped values as zeros")
    return Exported(name, words, stored * 8 / q.codes.size, out.initializers, out.nodes, out.exact)


def float_weight(q, view: View, shape: tuple[int, ...], type: int, base: str, tables: Tables) -> Exported:
    """The dequantised values of a weight as one initializer of the consumer's type."""
    stored = view.restore(_as_stored(q, type)[1], shape)
    tensor = helper.make_tensor(tables.unique(f"{base}_dequantized"), type, shape, stored.tobytes(), raw=True)
    return Exported(tensor.name, f"{FLOATS[type]} values", 8.0 * stored.itemsize, [tensor])


def restored(q, type: int) -> np.ndarray:
    """The values that a file of element type `type` gives back, as numpy floats.

    Dequantised into float32 and rounded from there to nearest even (data types finer than float32: from
    float64).
    """
    return _as_stored(q, type)[0]


def _as_stored(q, type: int) -> tuple[np.ndarray, np.ndarray]:
    """The values of a matrix in a file's element type: (as numpy floats, little-endian as in the file)."""
    try:
        values = q.dequantize(np.float32)
    except InputError:
        values = q.dequantize(np.float64)
    if type == TensorProto.BFLOAT16:
        codes = encode(values, "bfloat16", overflow="ieee")
        return decode(codes, "bfloat16"), codes.astype("<u2")
    with np.errstate(over="ignore"):
        array = values.astype(FLOATS[type], copy=False)
    return array, array.astype(array.dtype.newbyteorder("<"), copy=False)


# -- the parts of an encoding --------------------------------------------------------------------------------

class _Builder:
    """Collects the tensors and nodes of one weight under onnxruntime's names: <w>_quantized, <w>_scale."""

    def __init__(self, base: str, tables: Tables):
        self.base, self.tables = base, tables
        self.initializers: list[TensorProto] = []
        self.nodes: list[NodeProto] = []
        self.exact = True

    def tensor(self, suffix: str, type: str, shape, raw: bytes) -> str:
        name = self.tables.unique(f"{self.base}_{suffix}")
        self.initializers.append(helper.make_tensor(name, getattr(TensorProto, type), shape, raw, raw=True))
        return name

    def integers(self, suffix: str, values) -> str:
        return self.tensor(f"shape_{suffix}" if suffix else "shape", "INT64", [len(values)],
                           np.array(values, "<i8").tobytes())

    def node(self, op: str, inputs: list[str], suffix: str, **attributes) -> str:
        """Adds a node <w>_<suffix> and returns its output <w>_<suffix>_Output."""
        output = self.tables.unique(f"{self.base}_{suffix}_Output")
        name = self.tables.unique(f"{self.base}_{suffix}")
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output


@dataclass(frozen=True)
class _Grid:
    """How codes and scales lie in the file, to each other and to the weight of shape `stored`.

    codes_shape, scale_shape: the dims of the two tensors. axis, block: attributes of DequantizeLinear (None:
    left out). whole: the codes lie as the weight does, not as its matrix. padded: the matrix shape with the
    reduction axis filled up to whole tiles, where codes are kept in tiles.
    """

    view: View
    stored: tuple[int, ...]
    codes_shape: tuple[int, ...]
    scale_shape: tuple[int, ...]
    axis: int | None = None
    block: int | None = None
    whole: bool = False
    padded: tuple[int, ...] | None = None

    @classmethod
    def of(cls, block, view: View, stored: tuple[int, ...], by_operator: bool) -> "_Grid":
        """by_operator: scales are operands of DequantizeLinear, not factors that broadcast."""
        matrix = view.matrix_shape(stored)
        scales = _scales_shape(block, matrix, view.axis)
        if math.prod(scales) == 1:
            return cls(view, stored, stored, (), whole=True)
        if isinstance(block.tile, int) and by_operator:
            return cls._tiles(view, stored, scales, block.tile)
        if scales[view.axis] > 1:
            return cls._split(view, stored, scales, block.tile)
        beside = _beside(view, stored)
        operands = _operands(stored, beside) if beside and by_operator else (beside, None, None)
        if operands[0]:
            return cls(view, stored, stored, *operands, whole=True)
        operands = _operands(matrix, scales) if by_operator else (scales, None, None)
        return cls(view, stored, matrix, *operands)

    @classmethod
    def _tiles(cls, view, stored, scales, tile):
        """Tiles as DequantizeLinear knows them, along an axis of the weight or else of its matrix."""
        sides, count = _sides(view, stored), scales[view.axis]
        along = [place for place, side in enumerate(sides) if side == view.axis and stored[place] > 1]
        if view.perm or len(along) > 1:
            return cls(view, stored, view.matrix_shape(stored), scales, view.axis, tile)
        place = along[0] if along else stored.index(1)
        counts = (*stored[:place], count, *stored[place + 1:])
        return cls(view, stored, stored, counts, place, tile, whole=True)

    @classmethod
    def _split(cls, view, stored, scales, tile):
        """Tiles as an axis of their own [..., tiles, tile, ...], against scales [..., tiles, 1, ...]."""
        axis, tiles = view.axis, scales[view.axis]
        before, after = scales[:axis], scales[axis + 1:]
        return cls(view, stored, (*before, tiles, tile, *after), (*before, tiles, 1, *after),
                   padded=(*before, tiles * tile, *after))

    def codes(self, q) -> np.ndarray:
        if self.whole:
            return self.view.restore(q.codes, self.stored)
        if self.padded is None:
            return q.codes
        return np.pad(q.codes, [(0, full - have) for full, have in zip(self.padded, q.codes.shape)])

    def restore(self, out: _Builder, name: str) -> str:
        """Nodes that bring a tensor of codes_shape to the weight of shape `stored`."""
        view, shape, matrix = self.view, self.codes_shape, self.view.matrix_shape(self.stored)
        if self.whole:
            return name
        if self.padded is not None and self.padded != matrix:
            name = out.node("Reshape", [name, out.integers("tiles", self.padded)], "Reshape_tiles")
            cut = [out.integers(word, [value]) for word, value in (
                ("start", 0), ("end", matrix[view.axis]), ("axis", view.axis))]
            name, shape = out.node("Slice", [name, *cut], "Slice"), matrix
        if shape != view.between(self.stored):
            name = out.node("Reshape", [name, out.integers("", view.between(self.stored))], "Reshape")
        if view.perm:
            name = out.node("Transpose", [name], "Transpose", perm=view.inverse)
        if view.split:
            name = out.node("Reshape", [name, out.integers("stored", self.stored)], "Reshape_stored")
        return name


def _scales_shape(block, matrix: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape of a matrix's scales; () for none or a single one."""
    if block.scale is None or block.tile == "tensor":
        return ()
    count = -(-matrix[axis] // block.tile) if isinstance(block.tile, int) else 1
    return (*matrix[:axis], count, *matrix[axis + 1:])


def _sides(view: View, stored: tuple[int, ...]) -> tuple[int, ...]:
    """For every axis of a weight the axis of its matrix that it is part of; () where one is split."""
    if view.split:
        return ()
    if not view.shape:
        return view.inverse or tuple(range(len(stored)))
    sides, axis, have = {}, 0, 1
    for place in view.perm or range(len(stored)):
        if stored[place] > 1 and have == view.shape[axis]:      # that one is complete
            axis, have = next(i for i in range(axis + 1, len(view.shape)) if view.shape[i] > 1), 1
        sides[place], have = axis, have * stored[place]
    return tuple(sides[place] for place in range(len(stored)))


def _beside(view: View, stored: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which scales of whole rows meet a weight as it is stored; () where they would have to be
    put into another order."""
    sides = _sides(view, stored)
    rows = [place for place in view.perm if sides and sides[place] != view.axis and stored[place] > 1]
    if not sides or rows != sorted(rows):
        return ()
    return tuple(1 if side == view.axis else count for side, count in zip(sides, stored))


def _operands(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple:
    """(shape of the scale, axis, block_size) for DequantizeLinear with scales that broadcast to `shape`; all
    None where it cannot do so: it shares scales along one axis, or has them along one."""
    own = [place for place, count in enumerate(scales) if count > 1]
    if len(own) == 1:
        return (scales[own[0]],), own[0], None
    along = [place for place, count in enumerate(scales) if count < shape[place]] or [scales.index(1)]
    return (scales, along[0], shape[along[0]]) if len(along) == 1 else (None, None, None)


def _by_dequantize(out: _Builder, codes: str, q, plan: Plan, grid: _Grid) -> str:
    """The element codes under DequantizeLinear. A format with fraction bits has them moved into the scale."""
    exponent = -getattr(q.dtype.element_row, "frac", 0)
    outer = _outer_scale(out, q)
    attributes = {k: v for k, v in (("axis", grid.axis), ("block_size", grid.block)) if v is not None}
    if outer is not None and plan.style == "native" and plan.scale.read == "cast" and not _divides(q):
        scale = out.tensor("scale", plan.scale.type, grid.scale_shape, _packed(q.scales, plan.scale.bits))
        scale = out.node("DequantizeLinear", [scale, outer], "scale_DequantizeLinear")
        outer, out.exact = None, False
    else:
        scale = _scale(out, q, plan, grid, exponent)
    if out.initializers[-1].data_type == getattr(TensorProto, "FLOAT8E8M0", None):
        attributes["output_dtype"] = TensorProto.FLOAT  # it would be E8M0, like the scale
    operands = [codes, scale]
    if q.zeros is not None:
        raw = _packed(q.zeros, plan.element.bits)
        operands.append(out.tensor("zero_point", plan.element.type, grid.scale_shape, raw))
    name = out.node("DequantizeLinear", operands, "DequantizeLinear", **attributes)
    return name if outer is None else _by_outer(out, q, name, outer)


def _by_cast(out: _Builder, codes: str, q, plan: Plan, grid: _Grid) -> str:
    return _times_scales(out, out.node("Cast", [codes], "Cast_values", to=TensorProto.FLOAT), q, plan, grid)


def _by_table(out: _Builder, codes: str, q, plan: Plan, grid: _Grid) -> str:
    lanes, size = plan.element.lanes, int(np.prod(grid.codes_shape))
    name = _look_up(out, codes, q.dtype.element_row, "", 0, lanes)
    if size % lanes:  # the last byte holds fewer codes
        name = out.node("Reshape", [name, out.integers("flat", [-1])], "Reshape_flat")
        ends = [out.integers(word, [value]) for word, value in (("zero", 0), ("size", size))]
        name = out.node("Slice", [name, *ends], "Slice_codes")
    if lanes > 1:
        name = out.node("Reshape", [name, out.integers("codes", grid.codes_shape)], "Reshape_codes")
    if q.zeros is not None:
        zeros = out.tensor("zero_point", "UINT8", grid.scale_shape, _packed(q.zeros, 8))
        zeros = _look_up(out, zeros, q.dtype.zero_row, "zero_point_", 0)
        name = out.node("Sub", [name, zeros], "Sub_zero_point")
    return _times_scales(out, name, q, plan, grid)


_READERS = {"dequantize": _by_dequantize, "cast": _by_cast, "table": _by_table}


def _times_scales(out: _Builder, name: str, q, plan: Plan, grid: _Grid) -> str:
    """Element values times block scale, an exact product for small formats, then times the tensor's scale."""
    if q.scales is not None:
        name = out.node("Mul", [name, _scale(out, q, plan, grid, 0)], "Mul_scale")
    outer = _outer_scale(out, q)
    return name if outer is None else _by_outer(out, q, name, outer)


def _divides(q) -> bool:
    """Whether the tensor scale that is kept divides."""
    return recipe(q.recipe).tensor == "divisor"


def _by_outer(out: _Builder, q, name: str, outer: str) -> str:
    op = "Div" if _divides(q) else "Mul"
    return out.node(op, [name, outer], f"{op}_scale_2")


def _outer_scale(out: _Builder, q) -> str | None:
    if q.tensor_scale is None:
        return None
    return out.tensor("scale_2", "FLOAT", (), _float_bytes(q.tensor_scale))


def _scale(out: _Builder, q, plan: Plan, grid: _Grid, exponent: int) -> str:
    """The scales times 2^exponent as a float32 tensor, or as one of E8M0 that DequantizeLinear takes."""
    if q.scales is None:
        return out.tensor("scale", "FLOAT", (), _float_bytes(np.ldexp(1.0, exponent)))
    row, carrier = q.dtype.scale_row, plan.scale
    if carrier.read == "table":
        codes = out.tensor("scale", carrier.type, grid.scale_shape, _packed(q.scales, carrier.bits))
        return _look_up(out, codes, row, "scale_", exponent)
    codes = None if exponent else q.scales
    if carrier.type == "FLOAT8E8M0":
        codes = _shifted_codes(q, row, exponent)
    if codes is None or carrier.type == "FLOAT":
        values = np.ldexp(decode(q.scales, row, np.float64), exponent)
        return out.tensor("scale", "FLOAT", grid.scale_shape, _float_bytes(_exact_float32(values, row.name)))
    name = out.tensor("scale", carrier.type, grid.scale_shape, _packed(codes, carrier.bits))
    return name if carrier.read == "direct" else out.node("Cast", [name], "scale_Cast", to=TensorProto.FLOAT)


def _shifted_codes(q, row: Row, exponent: int) -> np.ndarray | None:
    """E8M0 codes of scale * 2^exponent (exponent <= 0); None when one would fall below the format.

    A tile of zeros may keep the lowest code: zero times any scale is zero.
    """
    nan, codes = row.nan_codes[0], q.scales.astype(np.int64)
    shifted = np.where(codes == nan, nan, codes + exponent)
    if (shifted < 0).any():
        starts = range(0, q.shape[q.axis], q.dtype.tile if isinstance(q.dtype.tile, int) else q.shape[q.axis])
        used = np.logical_or.reduceat(q.codes != 0, list(starts), axis=q.axis)
        if q.dtype.tile == "tensor":
            used = np.full(codes.shape, q.codes.any())
        if (used & (shifted < 0)).any():
            return None
    return np.maximum(shifted, 0).astype(np.uint8)


def _look_up(out: _Builder, codes: str, row: Row, prefix: str, exponent: int, lanes: int = 1) -> str:
    index = out.node("Cast", [codes], f"{prefix}Cast_index", to=TensorProto.INT32)
    return out.node("Gather", [out.tables.name(row, exponent, lanes), index], f"{prefix}Gather", axis=0)


def _element_bytes(codes: np.ndarray, row: Row, carrier: Carrier) -> bytes:
    """Element codes in the carrier's width; two's complement integers are sign-extended into a wider one."""
    codes = codes.astype(np.uint32)
    if isinstance(row, Int) and row.signed and carrier.read == "dequantize":
        sign = codes >> (row.bits - 1) & 1
        codes = codes | sign * ((1 << carrier.bits) - (1 << row.bits))
    return _packed(codes, carrier.bits)


def _packed(codes: np.ndarray, bits: int) -> bytes:
    kind = np.uint32 if bits > 16 else np.uint16 if bits > 8 else np.uint8
    return pack_codes(codes.astype(kind), bits).tobytes()


def _float_bytes(values) -> bytes:
    return np.asarray(values, "<f4").tobytes()


def _float_tensor(name: str, values: np.ndarray) -> TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, values.shape, _float_bytes(values), raw=True)


def _exact_float32(values: np.ndarray, what: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = values.astype(np.float32)
    if not np.array_equal(result, values, equal_nan=True):
        raise InputError(f"some values of {what} are not exact in float32")
    return result


def _in_words(out: _Builder, plan: Plan) -> str:
    """The encoding for the report, such as "FLOAT4E2M1 under DequantizeLinear, FLOAT8E8M0 scale"."""
    how = {"dequantize": "under DequantizeLinear", "cast": "under Cast", "table": "looked up in a table"}
    kind = plan.element.type if plan.element.lanes == 1 else f"{plan.element.bits}-bit codes in UINT8"
    scales = [t for t in out.initializers if t.name.startswith(f"{out.base}_scale") and t.dims]
    words = [f"{TensorProto.DataType.Name(t.data_type)} scale" for t in scales[:1]]
    zeros = [t for t in out.initializers if t.name.startswith(f"{out.base}_zero_point")]
    words += [f"{TensorProto.DataType.Name(t.data_type)} zero point" for t in zeros]
    return ", ".join([f"{kind} {how[plan.element.read]}", *words])
