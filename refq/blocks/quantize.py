"""The quantiser: three stages for every data type, each a loop over cache-sized pieces.

1. amax: the largest magnitude of every tile, from exponent and significand bits.
2. scales: the scale rule turns amaxes into codes of the scale format (one a tile, so float64 is affordable).
3. elements: every value divided by its tile's scale and rounded once into the element format.

Division. A power-of-two scale is removed by an exact multiplication. A float scale divides in float64, which
decides every rounding exactly: a source of at most 46 significant bits and a product (rounding boundary x
scale) of at most 45 differ by a multiple of 2^-47 of either or not at all, which float64's 2^-53 cannot lose.
float64 sources are brought to 46 bits first by rounding to odd, which keeps their order against every such
product. The boundaries of stochastic rounding have up to 33 bits more: it divides in integers. Spec: BLOCK-9.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np

from refq.blocks import packing
from refq.blocks.rows import Block, data_type
from refq.errors import InputError
from refq.formats import codec
from refq.formats.definition import CHUNK
from refq.formats.names import number_format
from refq.formats.policies import rounding_rule

OVERFLOW = "sat"            # what elements and scales do beyond their range (Spec: BLOCK-4)
RECIPES = {
    "ocp": ("floor", "OCP MX 6.3, with refq's choices for what it leaves open (BLOCK-3 to BLOCK-8)"),
    "exact": ("amax", "exact quotients, each rounded once (BLOCK-9, BLOCK-10)"),
}


@dataclass(frozen=True)
class Quantized:
    """A quantised array.

    codes: element codes, shape of the source, smallest unsigned dtype.
    scales: scale codes, or None; shape of the source with the axis entry replaced by the number of tiles, all
    ones for a tensor scale. tensor_scale: float32 of a two-level type, or None.
    dtype: the Block row. axis: counted from 0. recipe, rounding: what made it.
    """

    codes: np.ndarray
    scales: np.ndarray | None
    dtype: Block
    shape: tuple[int, ...]
    axis: int
    recipe: str
    rounding: str = "rne"
    tensor_scale: np.float32 | None = None

    def dequantize(self, dtype=np.float32) -> np.ndarray:
        """The values, each exact product rounded once to float64, float32 or float16 (Spec: BLOCK-11)."""
        return dequantize(self, dtype)

    def pack(self, layout="onnx", scale_layout="onnx") -> "packing.Packed":
        """Codes and scales as bytes: layout names of refq.blocks.layouts (Spec: PACK-1 to PACK-9)."""
        return packing.pack(self, layout, scale_layout=scale_layout)

    @property
    def bits_per_value(self) -> Fraction:
        """All stored bits, ragged tiles and tensor scale included, over the number of values (BLOCK-12)."""
        bits = self.codes.size * self.dtype.element_row.width
        if self.scales is not None:
            bits += 8 * self.scales.nbytes + (0 if self.tensor_scale is None else 32)
        return Fraction(bits, max(self.codes.size, 1))


def quantize(x, dtype, axis=-1, rounding="rne", recipe=None, random_bits=None, random_width=None,
             tensor_scale=None) -> Quantized:
    """Quantise an array to a data type.

    x: float64, float32, float16, bfloat16 or integer array of any shape and layout (integers up to 2^53).
    dtype: a data type's name or row. axis: the axis tiles run along.
    rounding: of the elements, a key of ROUNDINGS (scales always round to nearest even).
    recipe: a key of RECIPES, by default the data type's own.
    random_bits, random_width: for stochastic roundings, as in `encode`, shape of x.
    tensor_scale: a positive float32 to use as the second scale of a two-level type; else x gives one.
    Elements and scales saturate. Raises InputError for bad names, axes and operands.
    Spec: BLOCK-1 to BLOCK-10, BLOCK-13.
    """
    block, x = data_type(dtype), np.asarray(x)
    recipe = _recipe(block, recipe)
    tensor_scale = _given_tensor_scale(block, tensor_scale)
    if block.scale is None:
        codes = codec.encode(x, block.element_row, rounding, OVERFLOW, random_bits, random_width)
        return Quantized(codes, None, block, x.shape, _axis(x, axis, block), recipe, rounding)
    axis, values = _axis(x, axis, block), _working(x)
    tiles = _Tiles.of(values.shape, block, axis)
    flat = tiles.cut(values)
    with np.errstate(all="ignore"):         # NaN and infinities are sorted out below (BLOCK-6)
        scales, divisor, tensor_scale = _SCALES[block.rule](_amax(flat), block, tensor_scale)
    draws = codec.random_operand(rounding_rule(rounding), random_bits, random_width, x.shape)
    draws = None if draws is None else tiles.cut(draws.reshape(x.shape))
    codes = _elements(flat, divisor, block, rounding, draws, random_width)
    codes, scales = tiles.join(codes), tiles.join_scales(scales)
    return Quantized(codes, scales, block, x.shape, axis, recipe, rounding, tensor_scale)


def dequantize(quantized: Quantized, dtype=np.float32) -> np.ndarray:
    """The values of a Quantized, each exact product element x scale (x tensor scale) rounded once.

    Raises InputError for a dtype other than float64, float32 and float16. Spec: BLOCK-11.
    """
    q, row, dtype = quantized, quantized.dtype.element_row, codec.float_dtype(dtype)
    if q.scales is None:
        return _unscaled_values(q.codes, row, dtype)
    # The product of two float32 values rounds once in float32; float64 holds any other, rounded at the end.
    single = dtype == np.float32 and q.tensor_scale is None
    working = np.dtype(np.float32 if single else np.float64)
    scales = codec.decode(q.scales, q.dtype.scale_row, working)
    if q.tensor_scale is not None:
        scales = scales * np.float64(q.tensor_scale)
    tiles = _Tiles.of(q.shape, q.dtype, q.axis)
    codes, scales = tiles.cut(q.codes), tiles.cut_scales(scales)
    values, scratch = np.empty(codes.shape, dtype), np.empty(min(codes.size, CHUNK), working)
    run = codec.decoder(row, working, codes.size)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for rows, columns in _pieces(codes):
            part, out = codes[rows, columns], values[rows, columns]
            room = scratch[: part.size]
            run(part.reshape(-1), room)
            np.multiply(room.reshape(part.shape), scales[rows, None], out=out, casting="same_kind")
    return tiles.join(values)


def _unscaled_values(codes, row, dtype):
    if codec.exact_in(row, dtype):
        return codec.decode(codes, row, dtype)
    return codec.convert(codes, row, codec.source_row(dtype), "rne", "nonsat").view(dtype)


def fake_quantize(x, dtype, axis=-1, rounding="rne", recipe=None, random_bits=None,
                  random_width=None) -> np.ndarray:
    """quantize then dequantize: values on the data type's grid, float64 for float64, float32 for all else."""
    q = quantize(x, dtype, axis, rounding, recipe, random_bits, random_width)
    return q.dequantize(np.float64 if np.asarray(x).dtype == np.float64 else np.float32)


# ------------------------------------------------------------------------------------------------------------
# arguments and shapes

def _recipe(block: Block, recipe: str | None) -> str:
    name = recipe or block.recipe
    if name not in RECIPES:
        raise InputError(f"recipe {name!r} is not known; allowed are {', '.join(RECIPES)}")
    rule, _ = RECIPES[name]
    if block.rule not in (rule, "none"):
        raise InputError(f"recipe {name!r} is for scale rule {rule}, but {block.name} has rule {block.rule}")
    return name


def _given_tensor_scale(block: Block, tensor_scale) -> np.float32 | None:
    if tensor_scale is None:
        return None
    if not block.outer:
        raise InputError(f"{block.name} has no tensor scale, so none can be given")
    numeric = isinstance(tensor_scale, (float, np.floating, int, np.integer))
    real = numeric and not isinstance(tensor_scale, bool)
    largest = float(np.finfo(np.float32).max)
    if not real or not 0 < tensor_scale <= largest or float(np.float32(tensor_scale)) != float(tensor_scale):
        raise InputError(f"tensor_scale must be a positive finite float32 value, got {tensor_scale!r}")
    return np.float32(tensor_scale)


def _axis(x, axis: int, block: Block) -> int:
    if x.ndim == 0:
        if block.tile in (None, "tensor"):
            return 0
        raise InputError(f"{block.name} needs an axis to tile, but the array has no dimensions")
    if not isinstance(axis, (int, np.integer)) or isinstance(axis, bool) or not -x.ndim <= axis < x.ndim:
        raise InputError(f"axis {axis!r} is not an axis of an array of shape {x.shape}")
    return int(axis) % x.ndim


def _working(x):
    """float32 or float64 with the same values."""
    source = codec.source_row(x.dtype)
    if x.dtype in (np.float32, np.float64):
        return x
    if source.precision <= 24:
        with np.errstate(invalid="ignore"):         # signalling NaNs
            return x.astype(np.float32)
    if x.size and max(abs(int(x.max())), abs(int(x.min()))) > 1 << 53:
        raise InputError("integers to quantise must lie between -2^53 and 2^53")
    return x.astype(np.float64)


@dataclass(frozen=True)
class _Tiles:
    """How an array falls into tiles: lines along the axis, each cut into tiles, the last padded with zeros.

    Spec: BLOCK-1, BLOCK-8.
    """

    shape: tuple[int, ...]      # of the array
    axis: int                   # -1: one line, the whole array
    lines: int
    length: int                 # of a line
    size: int                   # of a tile
    count: int                  # of tiles in a line

    @staticmethod
    def of(shape, block: Block, axis: int) -> "_Tiles":
        if block.tile == "tensor":
            length = prod(shape)
            return _Tiles(tuple(shape), -1, 1, length, max(length, 1), 1)
        length, lines = shape[axis], prod(shape[:axis] + shape[axis + 1:])
        size = max(length, 1) if block.tile == "channel" else min(block.tile, max(length, 1))
        return _Tiles(tuple(shape), axis, lines, length, size, -(-length // size))

    def cut(self, array):
        """(tiles, size), C-contiguous: a view where the array already lies so."""
        lines = self._axis_last(array).reshape(self.lines, self.length)
        if self.length != self.count * self.size:
            padded = np.zeros((self.lines, self.count * self.size), array.dtype)
            padded[:, : self.length] = lines
            lines = padded
        return np.ascontiguousarray(lines).reshape(-1, self.size)

    def join(self, tiles):
        """Back from (tiles, size) to the array's shape."""
        lines = tiles.reshape(self.lines, self.count * self.size)[:, : self.length]
        return lines.reshape(self.shape) if self.axis < 0 else self._axis_back(lines)

    def cut_scales(self, scales):
        """(tiles,)"""
        return self._axis_last(scales).reshape(-1)

    def join_scales(self, scales):
        """Back from (tiles,) to the shape of a Quantized's scales."""
        if self.axis < 0:
            return scales.reshape((1,) * len(self.shape))
        return self._axis_back(scales.reshape(self.lines, self.count))

    def _axis_last(self, array):
        return array if self.axis < 0 else np.moveaxis(array, self.axis, -1)

    def _axis_back(self, lines):
        others = self.shape[: self.axis] + self.shape[self.axis + 1:]
        return np.ascontiguousarray(np.moveaxis(lines.reshape(*others, lines.shape[1]), -1, self.axis))


def _slabs(tiles):
    """Slices of whole tiles, about CHUNK values each."""
    rows = max(1, CHUNK // tiles.shape[1])
    return (slice(start, start + rows) for start in range(0, tiles.shape[0], rows))


# ------------------------------------------------------------------------------------------------------------
# stage 1

def _amax(tiles):
    """Largest magnitude of each tile as a float; a NaN or infinity wins, as its bits are the largest."""
    kind = np.dtype(f"u{tiles.itemsize}").type
    words, size = tiles.view(kind), tiles.shape[1]
    amax = np.zeros(len(tiles), kind)
    magnitude = kind((1 << (8 * tiles.itemsize - 1)) - 1)
    buffer = np.empty(min(tiles.size, max(CHUNK, size)), kind)
    for rows in _slabs(tiles):
        part = words[rows].reshape(-1)
        room = np.bitwise_and(part, magnitude, out=buffer[: part.size])
        np.maximum.reduceat(room, np.arange(0, part.size, size), out=amax[rows])
    return amax.view(tiles.dtype)


# ------------------------------------------------------------------------------------------------------------
# stage 2: amax -> (scale codes, divisors, tensor scale). The divisor is what the scale decodes to, times the
# tensor scale: NaN for a tile with NaN or infinity, 0 for a zero tile under rule amax.

def _floor_scales(amax, block: Block, _):
    """Spec: BLOCK-3, BLOCK-5, BLOCK-6, BLOCK-7."""
    row = block.scale_row
    exponent = np.frexp(amax)[1] - 1 - block.element_row.emax
    exponent = np.clip(np.where(amax == 0, row.layout.qmin, exponent), row.layout.qmin, row.emax)
    finite = np.isfinite(amax)
    codes = np.where(finite, exponent - row.layout.qmin, row.layout.nan).astype(codec.code_dtype(row))
    powers = np.ldexp(np.ones((), amax.dtype), exponent)
    return codes, np.where(finite, powers, np.nan).astype(amax.dtype), None


def _amax_scales(amax, block: Block, tensor_scale):
    """Spec: BLOCK-5, BLOCK-6, BLOCK-9, BLOCK-10."""
    row, largest = block.scale_row, float(block.element_row.max)
    finite = np.isfinite(amax)
    amax = _to_odd(amax.astype(np.float64))
    if block.outer and tensor_scale is None:
        overall = amax[finite].max(initial=0.0)
        ratio = np.array([overall / (largest * float(row.max))])
        fitted = _nearest_positive(ratio, True, number_format(block.outer))[1][0]
        tensor_scale = fitted if overall else 1.0
    outer = 1.0 if tensor_scale is None else float(tensor_scale)
    tensor_scale = None if tensor_scale is None else np.float32(outer)
    codes, values = _nearest_positive(np.where(finite, amax, np.nan) / (largest * outer), amax > 0, row)
    return codes, values * outer, tensor_scale


def _nearest_positive(quotients, positive, row):
    """Codes and values of quotients rounded to nearest even; no zero where `positive` says so (BLOCK-9)."""
    codes = codec.encode(quotients, row, "rne", OVERFLOW)
    codes = np.where(positive & (codes == 0), 1, codes).astype(codes.dtype)
    return codes, codec.decode(codes, row, np.float64)


_SCALES = {"floor": _floor_scales, "amax": _amax_scales}


# ------------------------------------------------------------------------------------------------------------
# stage 3

def _elements(tiles, divisor, block: Block, rounding, draws, random_width):
    """Codes of value / divisor. Zero tiles divide by one; tiles that decode to NaN get zeros (BLOCK-6)."""
    row, rule = block.element_row, rounding_rule(rounding)
    broken = np.isnan(divisor)
    divisor = np.where((divisor == 0) | broken, 1, divisor)
    codes = np.empty(tiles.shape, codec.code_dtype(row))
    working = np.dtype(np.float64)
    if block.rule == "floor":
        quotients, divisor = _by_power, (1 / divisor).astype(tiles.dtype)       # a power of two: exact
        if row.layout.qmin > -100:                      # else ties would drown in float32's subnormals
            working = tiles.dtype
    else:
        quotients = _by_long_division if rule.stochastic else _by_division
    run = codec.encoder(codec.source_row(working), row, rounding, OVERFLOW, tiles.size, random_width)
    scratch, tiniest = np.empty(min(tiles.size, CHUNK), working), np.finfo(working).smallest_subnormal
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for rows, columns in _pieces(tiles):
            part = tiles[rows, columns]
            y = quotients(part, divisor[rows, None], scratch[: part.size].reshape(part.shape))
            if rule.name in ("rup", "rdn", "rto"):      # what underflows is still not zero
                np.copyto(y, np.copysign(tiniest, part), where=(y == 0) & (part != 0))
            bits = None if draws is None else draws[rows, columns].reshape(-1)
            run(y.reshape(-1).view(f"u{working.itemsize}"), codes[rows, columns].reshape(-1), bits)
    codes[broken] = row.layout.code(False, row.layout.first)
    return codes


def _pieces(tiles):
    """(rows, columns) of about CHUNK values each: several whole tiles, or parts of one large tile."""
    for rows in _slabs(tiles):
        for start in range(0, tiles.shape[1], CHUNK):
            yield rows, slice(start, min(start + CHUNK, tiles.shape[1]))


def _by_power(part, inverse, room):
    return np.multiply(part, inverse, out=room, dtype=room.dtype)


def _by_division(part, divisor, room):
    return np.divide(_to_odd(part) if part.dtype == np.float64 else part, divisor, out=room)


def _by_long_division(part, divisor, room):
    """Quotients rounded to odd at 52 or 53 significant bits: enough for 32 random bits below any element."""
    fraction, exponent = np.frexp(part.astype(np.float64))
    scale, power = np.frexp(divisor)
    dividend = np.ldexp(np.abs(fraction), 63).astype(np.uint64)         # 53 bits at the top of 63
    scale = np.ldexp(scale, 32).astype(np.uint64)                       # at most 32 bits (blocks/rows.py)
    high, rest = np.divmod(dividend, scale)
    low, rest = np.divmod(rest << np.uint64(31), scale)
    quotient = high << np.uint64(31) | low | (rest != 0)                # 62 or 63 bits, the last one sticky
    quotient = _sticky(quotient, 10).astype(np.float64)
    return np.copysign(np.ldexp(quotient, exponent - power - 62), part, out=room)


def _to_odd(values):
    """float64 rounded to odd at 46 significant bits; infinities and NaN stay what they are."""
    kept = _sticky(values.view(np.uint64), 7).view(np.float64)
    return np.where(np.isnan(values), values, kept)


def _sticky(words, count: int):
    """uint64 without their `count` low bits, which are or-ed into the last bit that stays."""
    low = np.uint64((1 << count) - 1)
    return (words | ((words & low) + low)) & ~low
