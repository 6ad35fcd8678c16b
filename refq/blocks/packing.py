"""Codes as bytes, and back: arrays and quantised arrays in layouts of layouts.py (Spec: PACK-1 to 11)."""

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from refq.blocks import layouts
from refq.blocks.layouts import BLOCK_LAYOUTS, LAYOUTS, LINE, BlockLayout, Layout, Swizzle
from refq.blocks.elements import Casting, zero_code
from refq.blocks.recipes import recipe_of
from refq.blocks.rows import Block, data_type, stored_width
from refq.blocks.scales import Scales
from refq.blocks.sparsity import pack_mask
from refq.blocks.tiles import Tiles, one_axis, sides, tile_axes
from refq.errors import InputError
from refq.formats import codec

STREAM = LAYOUTS["onnx"]


@dataclass(frozen=True)
class Packed:
    """A quantised array as bytes, and what it takes to read them.

    codes: uint8 array of element codes in `layout`, under a mask of kept values only; of whole blocks where
    that is a block layout.
    scales: uint8 array of scale codes in `scale_layout`; None where unscaled or inside the blocks.
    tensor_scale: float32 of a two-level type, or None.
    dtype (a row or a name), shape, axis, recipe, rounding: of the Quantized.
    offsets: of each level of subtiles that has some. zeros, tables, mask: bits of the parts of that name, or
    None. All are flat uint8 in layout "onnx".
    Spec: PACK-10, PACK-11.
    """

    codes: np.ndarray
    scales: np.ndarray | None
    tensor_scale: np.float32 | None
    dtype: Block | str | None = None
    shape: tuple[int, ...] | None = None
    axis: int | tuple[int, int] = -1
    layout: str = "onnx"
    scale_layout: str = "onnx"
    recipe: str = "exact"
    rounding: str = "rne"
    offsets: tuple[np.ndarray, ...] = ()
    zeros: np.ndarray | None = None
    tables: np.ndarray | None = None
    mask: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all parts, 4 of a tensor scale included."""
        parts = (self.codes, self.scales, *self.offsets, self.zeros, self.tables, self.mask)
        outer = 0 if self.tensor_scale is None else 4
        return outer + sum(_bytes(part).size for part in parts if part is not None)

    def unpack(self):
        """The Quantized again, bit for bit."""
        return unpack(self)


def pack(values, layout="onnx", bits=None, axis=None, scale_layout="onnx", fill=None):
    """Codes or a Quantized as bytes.

    values: an array of unsigned codes of any shape, or a Quantized.
    layout: a name in LAYOUTS; for an array also in SCALE_LAYOUTS; for a Quantized also in BLOCK_LAYOUTS.
    bits: width of the codes of an array; may be left out where the layout takes one width only.
    axis: of an array, the axis that rows, blocks and tiles run along (default -1); a Quantized has its own.
    scale_layout: of a Quantized, for scales that lie apart: a name in SCALE_LAYOUTS or LAYOUTS.
    fill: the code that fills lines up; default 0, or the code of +0 where the layout says "zero value".
    Returns for an array a contiguous uint8 array, shaped as PACK-5 and PACK-8 say; for a Quantized a Packed.
    Raises InputError for unknown layouts, widths the layout does not take and codes that do not fit.
    Spec: PACK-1 to PACK-11.
    """
    if _is_quantized(values):
        if bits is not None or axis is not None:
            raise InputError("a Quantized has its own code width and axis; leave bits and axis out")
        return _pack_quantized(values, layout, scale_layout, fill)
    _not_a_block_layout(layout)
    row, bits = layouts.layout(layout, bits)
    codes = np.atleast_1d(_codes(values, bits))
    axis, fill = one_axis(codes.shape, -1 if axis is None else axis), _fill(0 if fill is None else fill, bits)
    if isinstance(row, Swizzle):
        matrices = codes.reshape(_matrices(codes.shape))
        return layouts.swizzle(np.moveaxis(matrices, _matrix_axis(codes.shape, axis), -1), row)
    if row.span == "tensor":
        return np.ascontiguousarray(layouts.pack_lines(codes.reshape(1, codes.size), row, bits, fill)[0])
    return _join(layouts.pack_lines(_lines(codes, axis), row, bits, fill), row, codes.shape, axis)


def unpack(packed, shape=None, layout="onnx", bits=None, axis=-1):
    """The inverse of `pack`: codes of the shape given, or the Quantized of a Packed (which knows the rest).

    packed: bytes, or an integer array of any shape and width, whose words count as little-endian.
    shape: of the array of codes. layout, bits, axis: as in `pack`.
    Returns codes in the smallest unsigned dtype. What fills lines up and pads matrices is ignored.
    Raises InputError when the bytes are too few or too many. Spec: PACK-6.
    """
    if isinstance(packed, Packed):
        return _unpack_quantized(packed)
    _not_a_block_layout(layout)
    row, bits = layouts.layout(layout, bits)
    wanted, packed = _shape(shape), _bytes(packed)
    shape = wanted or (1,)
    axis = one_axis(shape, axis)
    if isinstance(row, Swizzle):
        at = _matrix_axis(shape, axis)
        codes = np.moveaxis(_unswizzled(packed, row, _moved(_matrices(shape), at), shape, bits), -1, at)
    elif row.span == "tensor":
        _check_size(packed, row.bytes_of(prod(shape), bits), shape, bits)
        codes = layouts.unpack_lines(packed.reshape(1, packed.size), row, bits, prod(shape))
    else:
        lines = layouts.unpack_lines(_cut(packed, row, shape, axis, bits), row, bits, shape[axis])
        codes = _array(lines, shape, axis)
    return np.ascontiguousarray(codes).reshape(wanted)


def pack_codes(codes, bits: int) -> np.ndarray:
    """Codes of `bits` bits as one little-endian bit stream, row-major, zero padded to bytes: layout "onnx".

    codes: unsigned integer array below 2^bits, any shape. Returns flat uint8, ceil(size * bits / 8) of them.
    4-bit codes lie low nibble first, 2-bit codes four a byte, 6-bit codes four in three bytes. Spec: PACK-1.
    """
    return pack(codes, STREAM, bits)


def unpack_codes(packed, bits: int, size: int) -> np.ndarray:
    """The first `size` codes of `bits` bits from a packed uint8 array: the inverse of `pack_codes` (flat).

    Raises InputError when the bytes are too few or too many.
    """
    return unpack(packed, (size,), STREAM, bits)


# ------------------------------------------------------------------------------------------------------------
# arrays <-> lines

def _lines(array, axis: int):
    """(lines, values): the axis last, the others in row-major order."""
    return np.moveaxis(array, axis, -1).reshape(_others(array.shape, axis), array.shape[axis])


def _array(lines, shape, axis: int):
    return np.ascontiguousarray(np.moveaxis(lines.reshape(_moved(shape, axis)), -1, axis))


def _join(lines, row: Layout, shape, axis: int):
    """Lines of bytes in the place of their axis, in words of row.word bytes (Spec: PACK-5, PACK-9)."""
    others = shape[:axis] + shape[axis + 1:]
    if row.shuffle:
        return layouts.swizzle(lines.reshape(*_matrices(others + lines.shape[1:])), row.shuffle)
    if row.word == LINE:
        return np.ascontiguousarray(lines).reshape(*others, lines.shape[1])
    words = np.moveaxis(lines.reshape(*others, lines.shape[1] // row.word, row.word), -2, axis)
    return np.ascontiguousarray(words).reshape(*words.shape[:-2], words.shape[-2] * row.word)


def _cut(packed, row: Layout, shape, axis: int, bits: int):
    """Flat bytes back to lines: the inverse of `_join`."""
    others, size = shape[:axis] + shape[axis + 1:], row.bytes_of(shape[axis], bits)
    if row.shuffle:
        lines = _unswizzled(packed, row.shuffle, _matrices((*others, size)), shape, bits)
        return lines.reshape(prod(others), size)
    _check_size(packed, prod(others) * size, shape, bits)
    if row.word == LINE:
        return packed.reshape(prod(others), size)
    words = packed.reshape(*shape[:axis], size // row.word, *shape[axis + 1:], row.word)
    return np.moveaxis(words, axis, -2).reshape(prod(others), size)


def _matrices(shape) -> tuple[int, ...]:
    """At least two dimensions: a row of values is a matrix of one row (PACK-8)."""
    return (1,) * (2 - len(shape)) + tuple(shape)


def _matrix_axis(shape, axis: int) -> int:
    return axis if len(shape) > 1 else 1


def _unswizzled(packed, row: Swizzle, matrices, shape, bits: int):
    """(..., rows, cols) of the shape `matrices` from flat swizzled bytes."""
    *batch, rows, cols = matrices
    full = row.shape(rows, cols)
    _check_size(packed, prod(batch) * prod(full), shape, bits)
    return layouts.unswizzle(packed.reshape(*batch, *full), row, rows, cols)


def _others(shape, axis: int) -> int:
    return prod(shape[:axis] + shape[axis + 1:])


def _moved(shape, axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1:], shape[axis])


# ------------------------------------------------------------------------------------------------------------
# arguments

def _is_quantized(values) -> bool:
    return hasattr(values, "codes") and hasattr(values, "scales")


def _not_a_block_layout(layout):
    if isinstance(layout, BlockLayout) or (isinstance(layout, str) and layout.lower() in BLOCK_LAYOUTS):
        raise InputError(f"layout {getattr(layout, 'name', layout)!r} stores scales and codes together: "
                         "pack a Quantized, unpack a Packed")


def _codes(values, bits: int):
    codes = np.asarray(values)
    if codes.dtype == bool:
        codes = codes.view(np.uint8)
    if codes.dtype.kind != "u":
        raise InputError(f"packing takes unsigned codes, got an array of dtype {codes.dtype}")
    if codes.size and bits < 8 * codes.itemsize and int(codes.max()) >> bits:
        raise InputError(f"code {int(codes.max()):#x} does not fit {bits} bits")
    return codes.astype(layouts.code_kind(bits), copy=False)


def _fill(code, bits: int) -> int:
    if isinstance(code, bool) or not isinstance(code, (int, np.integer)) or not 0 <= code < 1 << bits:
        raise InputError(f"fill must be a code of {bits} bits, 0 to {(1 << bits) - 1}, got {code!r}")
    return int(code)


def _shape(shape) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, (int, np.integer)) else shape
    listed = isinstance(sizes, (tuple, list))
    if not listed or not all(isinstance(n, (int, np.integer)) and n >= 0 for n in sizes):
        raise InputError(f"unpacking needs the shape of the codes, a tuple of sizes from 0, got {shape!r}")
    return tuple(map(int, sizes))


def _bytes(packed):
    """Flat uint8: bytes as they are, an array's words in little-endian order."""
    if isinstance(packed, (bytes, bytearray, memoryview)):
        return np.frombuffer(packed, np.uint8)
    packed = np.asarray(packed) if hasattr(packed, "dtype") else np.asarray(packed, np.uint8)
    if packed.dtype.kind not in "iu":
        raise InputError(f"unpacking takes bytes or an integer array, got dtype {packed.dtype}")
    return np.ascontiguousarray(packed, packed.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)


def _check_size(packed, size: int, shape, bits: int):
    if packed.size != size:
        raise InputError(f"{prod(shape)} codes of {bits} bits in the shape {tuple(shape)} take {size} bytes, "
                         f"got {packed.size}")


# ------------------------------------------------------------------------------------------------------------
# quantised arrays

def _pack_quantized(q, layout, scale_layout, fill) -> Packed:
    bits, scales = q.dtype.element_row.width, None
    if block := _block_layout(layout):
        row, codes = block, _Blocks.of(block, q.dtype, q.shape, q.axis).pack(q.codes, q.scales, fill)
    else:
        row, _ = layouts.layout(layout, bits)
        if isinstance(row, Swizzle):
            raise InputError(f"layout {row.name!r} is for scales; give it as scale_layout")
        if fill is None and row.fill == "zero value":
            fill = int(codec.encode(np.zeros(1, np.float32), q.dtype.element_row)[0])
        codes = q.codes if q.mask is None else _kept(q)
        codes = pack(codes, row, bits, _along(q.axis), fill=fill)
        if q.scales is not None:
            scales = pack(q.scales, scale_layout, stored_width(q.dtype.scale_row), _along(q.axis))
    return Packed(codes, scales, q.tensor_scale, q.dtype, q.shape, q.axis, row.name,
                  getattr(scale_layout, "name", scale_layout), q.recipe, q.rounding,
                  tuple(map(pack_codes, q.offsets, q.dtype.offset_bits)),
                  None if q.zeros is None else pack_codes(q.zeros, stored_width(q.dtype.zero_row)),
                  None if q.tables is None else pack_codes(q.tables, q.dtype.meta_bits),
                  None if q.mask is None else pack_mask(q.mask))


def _unpack_quantized(packed: Packed):
    from refq.blocks.quantize import Quantized     # it imports this module
    if packed.dtype is None or packed.shape is None:
        raise InputError("a Packed that is to be unpacked needs dtype and shape")
    dtype, shape = data_type(packed.dtype), _shape(packed.shape)
    axis = tile_axes(shape, dtype.tile, packed.axis)
    facts = dtype, shape, axis, packed.recipe, packed.rounding, packed.tensor_scale
    if block := _block_layout(packed.layout):
        codes, scales = _Blocks.of(block, dtype, shape, axis).unpack(packed.codes)
        return Quantized(codes, scales, *facts)
    sizes, along = _part_shapes(dtype, shape, axis), _along(axis)

    def part(name: str, bits: int):
        """Codes of one part, or None where the data type has no such part."""
        data = getattr(packed, name)
        if (data is None) != (name not in sizes):
            verb = "has no" if name not in sizes else "needs"
            raise InputError(f"{dtype.name} {verb} {name} apart from its codes in layout {packed.layout!r}")
        how = packed.scale_layout if name == "scales" else STREAM
        return None if data is None else unpack(data, sizes[name], how, bits, along)

    scales = part("scales", stored_width(dtype.scale_row) if dtype.scale else 0)
    zeros = part("zeros", stored_width(dtype.zero_row) if dtype.zero else 0)
    tables, mask = part("tables", dtype.meta_bits), part("mask", 1)
    if len(packed.offsets) != len(sizes["offsets"]):
        levels = len(sizes["offsets"])
        raise InputError(f"{dtype.name} has {levels} levels of offsets, not {len(packed.offsets)}")
    offsets = tuple(map(unpack, packed.offsets, sizes["offsets"], [STREAM] * 2, dtype.offset_bits))
    codes = unpack(packed.codes, sizes["codes"], packed.layout, dtype.element_row.width, along)
    mask = None if mask is None else mask.astype(bool)
    q = Quantized(codes, scales, *facts, offsets, zeros, tables, mask)
    return q if mask is None else replace(q, codes=_spread(q))


def _part_shapes(dtype: Block, shape, axis) -> dict:
    """The shape of every part that a quantised array of this data type has; of offsets one a level."""
    sizes, along = {"codes": shape, "offsets": []}, _along(axis)
    if dtype.sparsity:
        n, m = dtype.sparsity
        runs, rest = divmod(shape[along], m)
        sizes["codes"] = (*shape[:along], n * runs + min(n, rest), *shape[along + 1:])
        sizes["mask"] = shape
    if dtype.scale is None:
        return sizes
    tiles = dtype.tiles_of(shape, axis)
    sizes["scales"] = _counts(tiles, tiles.size)
    sizes["offsets"] = [_counts(tiles, sides(size)) for size, bits in dtype.subtiles if bits]
    if dtype.zero:
        sizes["zeros"] = sizes["scales"]
    if dtype.meta_bits:
        sizes["tables"] = _counts(tiles, tiles.unit)
    return sizes


def _counts(tiles: Tiles, size) -> tuple[int, ...]:
    """The array's shape with every tiled axis replaced by its number of parts of `size` values."""
    if not tiles.axes:
        return (1,) * len(tiles.shape)
    per = dict(zip(tiles.axes, size[-len(tiles.axes):]))
    return tuple(-(-have // per.get(a, 1)) for a, have in enumerate(tiles.shape))


def _along(axis) -> int:
    """The axis that runs of kept values, rows and tiles run along: of a pair (cross, along) the second."""
    return axis[1] if isinstance(axis, tuple) else axis


def _block_layout(layout) -> BlockLayout | None:
    rows = layouts.find(layout, (LAYOUTS, layouts.SCALE_LAYOUTS, BLOCK_LAYOUTS))
    return rows[0] if isinstance(rows[0], BlockLayout) else None


# ------------------------------------------------------------------------------------------------------------
# sparsity: only what the mask keeps is stored (Spec: PACK-11)

def _kept(q):
    """The codes of kept values, shaped like the array but for the axis, which counts them."""
    along = _along(q.axis)
    size = _part_shapes(q.dtype, q.shape, q.axis)["codes"]
    if q.mask.shape != q.shape or (q.mask.sum(axis=along) != size[along]).any():
        n, m = q.dtype.sparsity
        raise InputError(f"the mask must keep {n} of every {m} values, {size[along]} of a line of "
                         f"{q.shape[along]}, in an array of shape {q.shape}")
    if (np.where(q.mask, 0, q.codes) != np.where(q.mask, 0, _dropped(q))).any():
        raise InputError("values that the mask drops must have the code of +0 in their tile")
    lines = np.moveaxis(q.codes, along, -1)[np.moveaxis(q.mask, along, -1)]
    return _array(lines, size, along)


def _spread(q):
    """The codes of all values, from those of kept ones."""
    along = _along(q.axis)
    mask = np.moveaxis(q.mask, along, -1)
    codes = np.array(np.moveaxis(np.broadcast_to(_dropped(q), q.shape), along, -1))
    kept = np.moveaxis(q.codes, along, -1).reshape(-1)
    if np.count_nonzero(mask) != kept.size:
        raise InputError(f"the mask keeps {np.count_nonzero(mask)} values, "
                         f"but there are codes of {kept.size}")
    codes[mask] = kept
    return np.ascontiguousarray(np.moveaxis(codes, -1, along))


def _dropped(q):
    """Codes that +0 has in the place of every value: what quantising a dropped value gave. Broadcastable."""
    block = q.dtype
    codes = np.array([zero_code(row) for row in block.tables], codec.code_dtype(block.element_row))
    if q.zeros is None and len(set(codes.tolist())) == 1:
        return codes[0]
    tiles = block.tiles_of(q.shape, q.axis)
    if q.zeros is None:
        units = codes[tiles.cut_parts(q.tables, tiles.unit).reshape(-1, 1)]
        return tiles.join(np.repeat(units, tiles.unit[0] * tiles.unit[1], axis=1))
    values = codec.decode(tiles.cut_parts(q.scales, tiles.size).reshape(-1), block.scale_row, np.float64)
    divisor = np.where(np.isfinite(values) & (values != 0), values, 1)[:, None]
    scales = Scales(q.scales, divisor, np.isnan(values),
                    zeros=tiles.cut_parts(q.zeros, tiles.size).reshape(-1))
    units = Casting(np.zeros((len(values), 1)), scales, block, recipe_of(block), q.rounding).codes()
    return tiles.join(np.repeat(units, tiles.values, axis=1))


# ------------------------------------------------------------------------------------------------------------
# blocks of scales and codes

@dataclass(frozen=True)
class _Blocks:
    """The codes and scales of one array as blocks of bytes (Spec: PACK-7)."""

    row: BlockLayout
    inner: Layout               # of the codes of one tile
    dtype: Block
    shape: tuple[int, ...]
    axis: int                   # -1: the tensor is one line
    lines: int
    length: int                 # values of a line
    size: int                   # values of a tile
    count: int                  # tiles of a line
    blocks: int                 # of a line
    scale: int                  # bits a scale takes
    fields: dict[str, int]      # bits of each field of a block, in the order they lie

    @staticmethod
    def of(row: BlockLayout, dtype: Block, shape, axis: int) -> "_Blocks":
        _check_stored(row, dtype)
        whole, bits = dtype.tile == "tensor", dtype.element_row.width
        lines, length = (1, prod(shape)) if whole else (_others(shape, axis), shape[axis])
        size = dtype.tile if isinstance(dtype.tile, int) else max(1, length)
        count = 1 if whole else -(-length // size)
        inner, _ = layouts.layout(row.codes, bits)
        scale = 8 * codec.code_dtype(dtype.scale_row).itemsize
        sizes = {"codes": row.tiles * 8 * inner.bytes_of(size, bits), "scales": row.tiles * scale}
        if row.join == "bits":
            scale = dtype.scale_row.width
            sizes = {"codes": row.tiles * size * bits, "scales": row.tiles * scale}
        fields = {name: sizes[name] for name in row.fields}
        return _Blocks(row, inner, dtype, tuple(shape), -1 if whole else axis, lines, length, size, count,
                       -(-count // row.tiles), scale, fields)

    @property
    def block_bytes(self) -> int:
        return -(-sum(self.fields.values()) // 8)

    @property
    def scales_shape(self) -> tuple[int, ...]:
        return _counts(Tiles.of(self.shape, self.dtype.tile, self.axis), (1, self.size))

    def pack(self, codes, scales, fill):
        """uint8, the array's shape with the axis last and counted in bytes."""
        if scales.shape != self.scales_shape:
            raise InputError(f"layout {self.row.name!r} takes one scale for each tile, an array of shape "
                             f"{self.scales_shape}, not {scales.shape}")
        bits, tiles, blocks = self.dtype.element_row.width, self.row.tiles, self.lines * self.blocks
        codes = layouts.filled(self._lines(codes), self.blocks * tiles * self.size, _fill(fill or 0, bits))
        codes = (codes ^ codes.dtype.type(self.row.invert)).reshape(blocks * tiles, self.size)
        scales = layouts.filled(self._lines(scales), self.blocks * tiles).reshape(blocks, tiles)
        parts = {"codes": layouts.pack_lines(codes, self.inner, bits),
                 "scales": layouts.pack_lines(scales, STREAM, self.scale)}
        parts = [parts[name].reshape(blocks, -(-size // 8)) for name, size in self.fields.items()]
        others = () if self.axis < 0 else (*self.shape[: self.axis], *self.shape[self.axis + 1:])
        return _joined(parts, list(self.fields.values())).reshape(*others, self.blocks * self.block_bytes)

    def unpack(self, packed):
        """Codes and scales in their public shapes: the inverse of `pack`."""
        packed, bits = _bytes(packed), self.dtype.element_row.width
        tiles, blocks = self.row.tiles, self.lines * self.blocks
        _check_size(packed, blocks * self.block_bytes, self.shape, bits)
        parts = _parted(packed.reshape(blocks, self.block_bytes), list(self.fields.values()))
        parts = dict(zip(self.fields, parts))
        codes = parts["codes"].reshape(blocks * tiles, parts["codes"].shape[1] // tiles)
        codes = layouts.unpack_lines(codes, self.inner, bits, self.size)
        codes = codes.reshape(self.lines, self.blocks * tiles * self.size)[:, : self.length]
        scales = layouts.unpack_lines(parts["scales"], STREAM, self.scale, tiles)
        scales = scales.reshape(self.lines, self.blocks * tiles)[:, : self.count]
        codes = codes ^ codes.dtype.type(self.row.invert)
        return self._array(codes, self.shape), self._array(scales, self.scales_shape)

    def _lines(self, array):
        return array.reshape(1, array.size) if self.axis < 0 else _lines(array, self.axis)

    def _array(self, lines, shape):
        if self.axis < 0:
            return np.ascontiguousarray(lines).reshape(shape)
        return _array(lines, shape, self.axis)


def _check_stored(row: BlockLayout, dtype: Block):
    if dtype.scale is None:
        raise InputError(f"layout {row.name!r} stores scales beside codes, but {dtype.name} has no scale")
    parts = {"tiles of two dimensions": isinstance(dtype.tile, tuple), "subtiles": dtype.subtiles,
             "zero points": dtype.zero, "tables of elements": dtype.meta_bits, "a mask": dtype.sparsity}
    if found := [name for name, has in parts.items() if has]:
        raise InputError(f"layout {row.name!r} has no place for {found[0]}; "
                         f"{dtype.name} needs a layout of codes")
    has = {"element": dtype.element_row.name, "scale": dtype.scale_row.name, "tile": dtype.tile}
    if wrong := [key for key, wanted in row.wants.items() if has[key] != wanted]:
        wanted = ", ".join(f"{key} {value}" for key, value in row.wants.items())
        raise InputError(f"layout {row.name!r} is for {wanted}; {dtype.name} has {wrong[0]} {has[wrong[0]]}")


def _joined(fields, sizes):
    """Fields one after another in every block; bit by bit where the first ends within a byte (PACK-7)."""
    if sizes[0] % 8 == 0:
        return np.concatenate(fields, axis=1)
    bits = [np.unpackbits(field, axis=1, count=size, bitorder="little") for field, size in zip(fields, sizes)]
    return np.packbits(np.concatenate(bits, axis=1), axis=1, bitorder="little")


def _parted(packed, sizes):
    """The fields of every block: the inverse of `_joined`."""
    if sizes[0] % 8 == 0:
        return packed[:, : sizes[0] // 8], packed[:, sizes[0] // 8:]
    bits = np.unpackbits(packed, axis=1, count=sum(sizes), bitorder="little")
    parts = bits[:, : sizes[0]], bits[:, sizes[0]:]
    return [np.packbits(part, axis=1, bitorder="little") for part in parts]
