"""The quantiser: three stages for every data type and recipe, each a loop over cache-sized pieces.

1. amax: the largest magnitude of every tile, from exponent and significand bits (scales.py).
2. scales: the scale rule turns amaxes into codes of the scale format (scales.py; recipes.py for float32 ways).
3. elements: every value divided by its tile's scale and rounded once into the element format.

Division. A power-of-two scale is removed by an exact multiplication. A float scale divides in float64, which
decides every rounding exactly: a source of at most 51 significant bits and a product (rounding boundary x
scale) of at most 50 differ by a multiple of 2^-52 of either or not at all, which float64's 2^-53 cannot lose.
float64 sources are brought to 51 bits first by rounding to odd, which keeps their order against every such
product. The boundaries of stochastic rounding have up to 33 bits more: it divides in integers. Spec: BLOCK-9.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from refq.blocks import packing, sparsity
from refq.blocks.elements import Casting, beside, long_division, pieces
from refq.blocks.recipes import recipe as recipe_row, recipe_of
from refq.blocks.rows import Block, data_type, stored_width
from refq.blocks.scales import sum_to_odd
from refq.blocks.tiles import Tiles, sides, tile_axes
from refq.errors import InputError
from refq.formats import codec
from refq.formats.policies import rounding_rule

@dataclass(frozen=True)
class Quantized:
    """A quantised array.

    codes: element codes, shape of the source, smallest unsigned dtype.
    scales: scale codes, or None; shape of the source with every tiled axis replaced by the number of tiles, all
    ones for a tensor scale. tensor_scale: float32 of a two-level type, or None.
    offsets: for each level of subtiles with offsets their exponent offsets, uint8, shaped like scales but
    counting subtiles. zeros: zero-point codes in the shape of scales, or None. tables: which codebook each tile
    or subtile takes, uint8, or None. mask: bool in the shape of the source, True where sparsity keeps a value.
    dtype: the Block row. axis: counted from 0; the pair (cross, along) for tiles of two dimensions.
    recipe, rounding: what made it.
    """

    codes: np.ndarray
    scales: np.ndarray | None
    dtype: Block
    shape: tuple[int, ...]
    axis: int | tuple[int, int]
    recipe: str
    rounding: str = "rne"
    tensor_scale: np.float32 | None = None
    offsets: tuple[np.ndarray, ...] = ()
    zeros: np.ndarray | None = None
    tables: np.ndarray | None = None
    mask: np.ndarray | None = None

    def dequantize(self, dtype=np.float32) -> np.ndarray:
        """The values, each exact product rounded once to float64, float32 or float16 (Spec: BLOCK-11)."""
        return dequantize(self, dtype)

    def pack(self, layout="onnx", scale_layout="onnx") -> "packing.Packed":
        """Codes and scales as bytes: layout names of refq.blocks.layouts (Spec: PACK-1 to PACK-9)."""
        return packing.pack(self, layout, scale_layout=scale_layout)

    @property
    def bits_per_value(self) -> Fraction:
        """All stored bits, ragged tiles and tensor scale included, over the number of values (BLOCK-12)."""
        block, size = self.dtype, self.codes.size
        bits = block.element_row.width * size
        if self.mask is not None:
            bits = block.element_row.width * int(self.mask.sum()) + size
        if self.scales is not None:
            bits += stored_width(block.scale_row) * self.scales.size
            bits += 0 if self.tensor_scale is None else 32
            bits += 0 if self.zeros is None else stored_width(block.zero_row) * self.zeros.size
            bits += 0 if self.tables is None else block.meta_bits * self.tables.size
            bits += sum(width * part.size for width, part in zip(block.offset_bits, self.offsets))
        return Fraction(bits, max(size, 1))


def quantize(x, dtype, axis=-1, rounding=None, recipe=None, random_bits=None, random_width=None,
             tensor_scale=None) -> Quantized:
    """Quantise an array to a data type.

    x: float64, float32, float16, bfloat16 or integer array of any shape and layout (integers up to 2^53).
    dtype: a data type's name or row. axis: the axis tiles run along; for tiles of two dimensions also the pair
    (cross, along), where an axis alone goes with the one before it.
    rounding: of the elements, a key of ROUNDINGS; by default the recipe's, "rne" in most.
    recipe: a name in RECIPES, plain or modified ("ocp,rule=rceil"), or a row; by default the data type's own.
    random_bits, random_width: for stochastic roundings, as in `encode`, shape of x.
    tensor_scale: a positive float32 to use as the second scale of a two-level type; else x gives one.
    Elements and scales saturate unless the recipe says otherwise. Raises InputError for bad names, axes and
    operands. Spec: BLOCK-1 to BLOCK-16, CB-1, SPARSE-1, RULE-1, REC-1.
    """
    block, x = data_type(dtype), np.asarray(x)
    how = recipe_of(block, recipe)
    rounding = how.rounding_of(rounding)
    tensor_scale = _given_tensor_scale(block, tensor_scale)
    draws = codec.random_operand(rounding_rule(rounding), random_bits, random_width, x.shape)
    axis, mask = tile_axes(x.shape, block.tile, axis), None
    if block.sparsity:
        along = axis[1] if isinstance(axis, tuple) else axis
        mask = sparsity.keep_mask(x, *block.sparsity, axis=along)
        x = np.where(mask, x, x.dtype.type(0))
    if block.scale is None:
        codes = codec.encode(x, block.element_row, rounding, how.overflow, random_bits, random_width)
        return Quantized(codes, None, block, x.shape, axis, how.name, rounding, mask=mask)
    with np.errstate(all="ignore"):
        values = how.source_of(codec.as_floats(x))
    tiles = block.tiles_of(values.shape, axis)
    flat = tiles.cut(values)
    draws = None if draws is None else _units(tiles.cut(draws.reshape(x.shape)), tiles)
    with np.errstate(all="ignore"):         # NaN and infinities are sorted out in the scales (BLOCK-6)
        scales = how.scales_of(flat, tiles, block, tensor_scale)
        casting = Casting(_units(flat, tiles), scales, block, how, rounding, draws, random_width)
        if len(block.tables) == 1:
            codes, tables = casting.codes(), None
        else:
            valid = tiles.valid()
            codes, tables = casting.best_codes(None if valid is None else _units(valid, tiles))
    return Quantized(
        tiles.join(codes), tiles.join_parts(scales.codes, tiles.size), block, x.shape, axis, how.name, rounding,
        scales.tensor_scale, tuple(map(tiles.join_parts, scales.offsets, _offset_sizes(block))),
        None if scales.zeros is None else tiles.join_parts(scales.zeros, tiles.size),
        None if tables is None else tiles.join_parts(tables, tiles.unit), mask)


def dequantize(quantized: Quantized, dtype=np.float32) -> np.ndarray:
    """The values of a Quantized, each exact value rounded once.

    Raises InputError for a dtype other than float64, float32 and float16. Spec: BLOCK-11, BLOCK-14, BLOCK-15.
    """
    q, block, dtype = quantized, quantized.dtype, codec.float_dtype(dtype)
    if q.scales is None:
        return _unscaled_values(q.codes, block.element_row, dtype)
    tiles = block.tiles_of(q.shape, q.axis)
    codes = _units(tiles.cut(q.codes), tiles)
    # The product of two float32 values rounds once in float32; float64 holds any other, rounded at the end.
    plain = dtype == np.float32 and q.tensor_scale is None and q.zeros is None and not q.offsets
    working = np.dtype(np.float32 if plain else np.float64)
    with np.errstate(all="ignore"):
        factors, divisor = unit_factors(q)
        factors, finish = factors.astype(working), _finisher(q, tiles, divisor, dtype)
        runs = [codec.decoder(row, working, codes.size) for row in block.tables]
        chosen = None if q.tables is None else tiles.cut_parts(q.tables, tiles.unit).reshape(-1, 1)
        values = np.empty(codes.shape, dtype)
        for rows, columns in pieces(codes):
            part, out = codes[rows, columns], values[rows, columns]
            room = np.empty(part.shape, working)
            runs[0](part.reshape(-1), room.reshape(-1))
            for table, run in enumerate(runs[1:], 1):
                other = np.empty(part.shape, working)
                run(part.reshape(-1), other.reshape(-1))
                np.copyto(room, other, where=chosen[rows] == table)
            finish(room, beside(factors[rows], part), rows, out)
    return tiles.join(values)


def fake_quantize(x, dtype, axis=-1, rounding=None, recipe=None, random_bits=None,
                  random_width=None) -> np.ndarray:
    """quantize then dequantize: values on the data type's grid, float64 for float64, float32 for all else."""
    q = quantize(x, dtype, axis, rounding, recipe, random_bits, random_width)
    return q.dequantize(np.float64 if np.asarray(x).dtype == np.float64 else np.float32)


# ------------------------------------------------------------------------------------------------------------
# values again

def _unscaled_values(codes, row, dtype):
    if codec.exact_in(row, dtype):
        return codec.decode(codes, row, dtype)
    return codec.convert(codes, row, codec.source_row(dtype), "rne", "nonsat").view(dtype)


def unit_factors(q: Quantized):
    """What elements are multiplied by, and what the products are divided by.

    (float64, scale x 2^offsets x tensor scale of every unit, in the order of Tiles; None, or the float64 tensor
    scale of a recipe that keeps a divisor.) Spec: BLOCK-11, REC-6.
    """
    tiles = q.dtype.tiles_of(q.shape, q.axis)
    units = tiles.values // (tiles.unit[0] * tiles.unit[1])
    scales = codec.decode(tiles.cut_parts(q.scales, tiles.size), q.dtype.scale_row, np.float64)
    factors = np.repeat(scales, units, axis=1)
    for part, size in zip(q.offsets, _offset_sizes(q.dtype)):
        offsets = tiles.cut_parts(part, size).astype(np.int64)
        offsets = np.repeat(offsets, units // offsets.shape[1], axis=1)
        factors = np.ldexp(factors, offsets if q.dtype.rule == "hif4" else -offsets)
    factors = factors.reshape(-1)
    if q.tensor_scale is None:
        return factors, None
    if recipe_row(q.recipe).tensor == "divisor":
        return factors, np.float64(q.tensor_scale)
    return factors * np.float64(q.tensor_scale), None


def _finisher(q: Quantized, tiles: Tiles, divisor, dtype):
    """A function (elements, factors, rows, out): the product, and what else the data type has, rounded once."""
    zero_row = q.dtype.zero_row if q.zeros is not None else None
    zeros = None
    if zero_row:
        zeros = codec.decode(tiles.cut_parts(q.zeros, tiles.size), zero_row, np.float64)

    def product(elements, factors, rows, out):
        np.multiply(elements, factors, out=out, casting="same_kind")

    def quotient(elements, factors, rows, out):
        exact = elements * factors
        found = exact / divisor
        if dtype != np.float64 and 0 < divisor < np.inf:        # else it is rounded, or special, already
            sound = np.isfinite(exact)
            found[sound] = long_division(exact[sound], divisor, np.empty(int(sound.sum())))
        out[...] = found

    def from_integer_zero(elements, factors, rows, out):
        np.multiply(elements - zeros[rows], factors, out=out, casting="same_kind")

    def from_float_zero(elements, factors, rows, out):
        exact = elements * factors
        less = np.broadcast_to(-zeros[rows], exact.shape)
        out[...] = exact + less if dtype == np.float64 else sum_to_odd(exact, less)

    if zero_row:
        return from_float_zero if zero_row.is_float else from_integer_zero
    return product if divisor is None else quotient


# ------------------------------------------------------------------------------------------------------------
# arguments and shapes

def _units(flat, tiles: Tiles):
    """(units, values) of (tiles, values)."""
    return flat.reshape(-1, tiles.unit[0] * tiles.unit[1])


def _offset_sizes(block: Block):
    """The size of every level of subtiles that has offsets."""
    return [sides(size) for size, bits in block.subtiles if bits]


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
