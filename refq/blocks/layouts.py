"""THE tables of layouts: where the bits of codes lie in memory. Rows say causes, one mechanism serves all.

LAYOUTS        element codes: planes of bits, lanes in bytes, the span they run over (Spec: PACK-2 to PACK-6)
BLOCK_LAYOUTS  a tile's scale and its codes side by side (Spec: PACK-7)
SCALE_LAYOUTS  matrices of scale codes in the order a matrix engine reads them (Spec: PACK-8)

The mechanism knows lines of codes, (lines, values), and lines of bytes, (lines, bytes); packing.py brings
arrays into that form. Every pack has its exact inverse; what fills a line up is ignored when it is read.
"""

import difflib
from dataclasses import dataclass
from functools import cached_property
from math import gcd, lcm, prod

import numpy as np

from refq.errors import InputError

CHUNK = 1 << 16
ANY = tuple(range(1, 65))
SPANS = ("tensor", "row")
ORDERS = ("sequence", "split")
FIRSTS = ("low", "high")
JOINS = ("bytes", "bits")
FILLS = ("zero bits", "zero value")
LINE = 0                        # Layout.word: the bytes of a line all stay together


@dataclass(frozen=True)
class Plane:
    """Some bits of every code of a block, one code after another (Spec: PACK-3, PACK-4).

    low, width: the bits of a code that lie in this plane; width None: all from `low` up.
    order: "sequence": values lie in order; "split": each stretch of `stretch` values (None: the whole block)
    is cut into as many runs as a byte has lanes, and a byte takes one value from each; a tuple: which value
    of each stretch of that length lies first, second, ...
    first: "low": the first value starts at a byte's lowest bit; "high": its top bit is the byte's top bit.
    """

    low: int = 0
    width: int | None = None
    order: str | tuple[int, ...] = "sequence"
    stretch: int | None = None
    first: str = "low"

    def bits_of(self, bits: int) -> int:
        """Bits of a `bits`-bit code in this plane."""
        return bits - self.low if self.width is None else self.width

    def lanes(self, bits: int) -> tuple[int, ...]:
        """The values of the smallest run that fills whole bytes, in the order they lie."""
        whole = 8 // gcd(self.bits_of(bits), 8)
        return self.order if isinstance(self.order, tuple) else tuple(range(whole))


@dataclass(frozen=True)
class Swizzle:
    """A matrix of bytes cut into tiles, one after another, their bytes in a fixed order (Spec: PACK-8).

    A row index is cut into (row tile, *rows), a column index into (column tile, *cols), from coarse to fine.
    order: which of these parts, counted in that sequence, changes slowest, ..., fastest in memory.
    pad: rows and columns are filled up to multiples of these. bits: widths of the codes it takes.
    """

    name: str
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    order: tuple[int, ...]
    pad: tuple[int, int]
    bits: tuple[int, ...] = (8,)
    ref: str = ""
    aka: tuple[str, ...] = ()

    def __post_init__(self):
        if sorted(self.order) != list(range(len(self.rows) + len(self.cols) + 2)):
            raise InputError(f"{self.name}: order {self.order} must name each part of the two indices once")
        if self.pad[0] % prod(self.rows) or self.pad[1] % prod(self.cols):
            tile = prod(self.rows), prod(self.cols)
            raise InputError(f"{self.name}: pad {self.pad} must be multiples of the tile {tile}")

    def shape(self, rows: int, cols: int) -> tuple[int, int]:
        """Rows and columns after filling up."""
        return _up(rows, self.pad[0]), _up(cols, self.pad[1])

    def view(self, matrices):
        """(..., rows, cols) of filled matrices as (..., parts in memory order), a view."""
        *batch, rows, cols = matrices.shape
        parts = (rows // prod(self.rows), *self.rows, cols // prod(self.cols), *self.cols)
        ahead = len(batch)
        order = (*range(ahead), *(ahead + part for part in self.order))
        return matrices.reshape(*batch, *parts).transpose(order)


@dataclass(frozen=True)
class Layout:
    """How element codes become bytes (Spec: PACK-2).

    bits: code widths it takes. planes: parts of the codes, one plane after another in every block.
    span: "tensor": one line of all values in row-major order; "row": a line for each row along the axis.
    block: values after which the planes start again; lines are filled up to whole blocks. None: no blocks.
    word: bytes that stay together when the axis is not the last one; LINE: all of a line (Spec: PACK-5).
    fill: what fills a line up: "zero bits" (code 0) or "zero value" (the code of +0) (Spec: PACK-6).
    shuffle: the rows of bytes are then swizzled as a matrix (Spec: PACK-9).
    """

    name: str
    bits: tuple[int, ...]
    planes: tuple[Plane, ...] = (Plane(),)
    span: str = "row"
    block: int | None = None
    word: int = 1
    fill: str = "zero bits"
    shuffle: Swizzle | None = None
    ref: str = ""
    aka: tuple[str, ...] = ()

    def __post_init__(self):
        words = [(self.span, SPANS), (self.fill, FILLS)] + [(plane.first, FIRSTS) for plane in self.planes]
        words += [(plane.order, ORDERS) for plane in self.planes if isinstance(plane.order, str)]
        for word, allowed in words:
            _one_of(self.name, word, allowed)
        for bits in self.bits:
            taken = sorted(plane.low + bit for plane in self.planes for bit in range(plane.bits_of(bits)))
            if taken != list(range(bits)):
                raise InputError(f"{self.name}: planes must take each of {bits} bits once, they take {taken}")

    def multiple(self, bits: int) -> int:
        """Values that a line is filled up to multiples of (Spec: PACK-6)."""
        if self.block:
            return self.block
        return lcm(*(len(plane.lanes(bits)) for plane in self.planes if plane.order != "sequence"))

    def bytes_of(self, count: int, bits: int) -> int:
        """Bytes of a line of `count` codes."""
        return -(-_up(count, self.multiple(bits)) * bits // 8)


@dataclass(frozen=True)
class BlockLayout:
    """Blocks of `tiles` tiles each: their scales and their codes side by side (Spec: PACK-7).

    fields: "scales" and "codes" in the order they lie. codes: the layout of one tile's codes, in LAYOUTS.
    element, scale, tile: what a data type must have to be stored so; None: any.
    invert: bits of every code that are stored inverted (the sign bit of an integer: offset binary).
    join: "bytes": every tile's codes and every scale take whole bytes; "bits": the fields are one stream of
    bits from the low end, and only the block is filled up to whole bytes.
    """

    name: str
    fields: tuple[str, str]
    codes: str = "onnx"
    tiles: int = 1
    element: str | None = None
    scale: str | None = None
    tile: int | None = None
    invert: int = 0
    join: str = "bytes"
    ref: str = ""
    aka: tuple[str, ...] = ()

    def __post_init__(self):
        _one_of(self.name, self.join, JOINS)
        if sorted(self.fields) != ["codes", "scales"]:
            raise InputError(f"{self.name}: fields are 'scales' and 'codes' in some order, not {self.fields}")
        if self.join == "bits" and self.tiles != 1:
            raise InputError(f"{self.name}: fields joined by bits need blocks of one tile, not {self.tiles}")

    @cached_property
    def wants(self) -> dict:
        wants = {"element": self.element, "scale": self.scale, "tile": self.tile}
        return {key: value for key, value in wants.items() if value is not None}


def _one_of(name: str, word: str, allowed: tuple[str, ...]):
    if word not in allowed:
        raise InputError(f"{name}: {word!r} is not allowed; one of {', '.join(map(repr, allowed))} is")


# ------------------------------------------------------------------------------------------------------------
# the tables

def _split(bits: int | None, stretch: int | None = None, low: int = 0, first: str = "low") -> Plane:
    return Plane(low, bits, "split", stretch, first)


def _high(low: int = 0, width: int | None = None, order="sequence") -> Plane:
    return Plane(low, width, order, first="high")


def _gguf(name: str, bits: int, block: int, *planes: Plane, aka=()) -> Layout:
    """The quants of one GGUF block type, without its scales."""
    planes = planes or (Plane(),)
    return Layout(f"gguf-{name}-qs", (bits,), planes, block=block, word=LINE, ref="GGML ggml-quants", aka=aka)


def _shards(*widths: int) -> Layout:
    """torchao's uintX: the code cut into shards of 4, 2 and 1 bits from its low end, the low shard first."""
    planes = tuple(_split(width, low=sum(widths[:i])) for i, width in enumerate(widths))
    return Layout(f"torchao-uint{sum(widths)}", (sum(widths),), planes, aka=("torchao-uintx",),
                  ref="torchao uintx/bitpacking.py; it keeps the shards apart, joining them is refq's choice")


def _pairs_apart(block: int) -> tuple[int, ...]:
    """The first two of every four values, then the last two of every four."""
    return tuple(4 * quad + half + i for half in (0, 2) for quad in range(block // 4) for i in (0, 1))


_AMD_WEIGHT = Swizzle("amd-16x16", (16,), (2, 16), (0, 2, 3, 1, 4), (16, 32), ref="aiter shuffle_weight")

LAYOUTS: dict[str, Layout] = {row.name: row for row in [
    Layout("onnx", ANY, span="tensor", aka=("lsb-first",),
           ref="ONNX onnx.proto raw_data: 2, 4 and 8n bits; other widths refq's choice"),
    Layout("msb-first", ANY, (_high(),), span="tensor", aka=("numpy-packbits",),
           ref="numpy.packbits, bitorder big; wider codes refq's choice"),
    Layout("torch", (4, 8, 16, 32), ref="torch.float4_e2m1fn_x2", aka=("float4_e2m1fn_x2", "torchao-fp4")),
    Layout("fp4-torchao-2025", (4,), (_high(),), ref="torchao before 2025-10-08, pack_uint4"),
    Layout("fp6-torchao-2025", (6,), (_high(2, 4, (0, 1, 3, 2)), _high(0, 2, (0, 1, 3, 2))), block=4,
           ref="torchao 2025, pack_uint6_pytorch"),
    Layout("fp6-torchao-2025-triton", (6,), (_high(2, 4, _pairs_apart(32)), _high(0, 2)), block=32,
           ref="torchao 2025, triton_pack_uint6_kernel, MX block of 32"),
    Layout("bitsandbytes", (4,), (_high(),), span="tensor", block=2, fill="zero value", aka=("bnb",),
           ref="bitsandbytes quantize_4bit"),
    Layout("gptq", (2, 3, 4, 8), block=32, word=4, ref="AutoGPTQ qweight, along the input channels"),
    Layout("awq", (4,), (Plane(order=(0, 2, 4, 6, 1, 3, 5, 7)),), block=8, word=4, ref="AutoAWQ qweight"),
    Layout("hqq", (2, 4, 8), (_split(None, first="high"),), ref="HQQ BitPack pack_*bit_u8, along axis 0"),
    Layout("bitnet", (2,), (_split(2),), ref="transformers BitNet pack_weights, along axis 0"),
    *(_shards(*widths) for widths in [(1,), (2,), (2, 1), (4,), (4, 1), (4, 2), (4, 2, 1)]),
    _gguf("q1_0", 1, 128),
    _gguf("q2_0", 2, 64),
    _gguf("q4_0", 4, 32, _split(4), aka=("gguf", "gguf-mxfp4-qs", "gguf-q4_1-qs", "gguf-iq4_nl-qs")),
    _gguf("q5_0", 5, 32, Plane(4, 1), _split(4), aka=("gguf", "gguf-q5_1-qs")),
    _gguf("q8_0", 8, 32, aka=("gguf",)),
    _gguf("nvfp4", 4, 16, _split(4)),
    _gguf("q2_k", 2, 256, _split(2, 128), aka=("gguf-tq2_0-qs",)),
    _gguf("q3_k", 3, 256, _split(1, low=2), _split(2, 128)),
    _gguf("q4_k", 4, 256, _split(4, 64)),
    _gguf("q5_k", 5, 256, _split(1, low=4), _split(4, 64)),
    _gguf("q6_k", 6, 256, _split(4, 128), _split(2, 128, low=4)),
    Layout("amd-preshuffle", (4, 8), shuffle=_AMD_WEIGHT, aka=("amd-fp4-preshuffle",),
           ref="aiter shuffle_weight, layout (16, 16)"),
]}

SCALE_LAYOUTS: dict[str, Swizzle] = {row.name: row for row in [
    Swizzle("cublas-128x4", (4, 32), (4,), (0, 3, 2, 1, 4), (128, 4),
            ref="TE swizzle.cuh; torchao to_blocked; CUTLASS SfKMajorAtom",
            aka=("tcgen05-128x4", "cublas-vec32-ue8m0", "cublas-vec16-ue4m3")),
    Swizzle("amd-e8m0-shuffle", (2, 16), (2, 4), (0, 3, 5, 2, 4, 1), (256, 8),
            ref="aiter e8m0_shuffle; hipBLASLt scale mode 1001", aka=("hipblaslt-blk32-ue8m0-32-8",)),
]}

_SCALES_FIRST = ("scales", "codes")

BLOCK_LAYOUTS: dict[str, BlockLayout] = {row.name: row for row in [
    BlockLayout("scale-first", _SCALES_FIRST, ref="refq's name"),
    BlockLayout("scale-last", ("codes", "scales"), ref="refq's name"),
    BlockLayout("scale-first-bits", _SCALES_FIRST, join="bits", ref="refq's name"),
    BlockLayout("scale-last-bits", ("codes", "scales"), join="bits", ref="refq's name"),
    BlockLayout("gguf-mxfp4", _SCALES_FIRST, "gguf-q4_0-qs", 1, "e2m1", "e8m0", 32, ref="GGML block_mxfp4"),
    BlockLayout("gguf-nvfp4", _SCALES_FIRST, "gguf-nvfp4-qs", 4, "e2m1", "ue4m3", 16, ref="GGML block_nvfp4"),
    BlockLayout("gguf-q4_0", _SCALES_FIRST, "gguf-q4_0-qs", 1, "int4", "binary16", 32, 1 << 3,
                ref="GGML block_q4_0"),
    BlockLayout("gguf-q5_0", _SCALES_FIRST, "gguf-q5_0-qs", 1, "int5", "binary16", 32, 1 << 4,
                ref="GGML block_q5_0"),
    BlockLayout("gguf-q8_0", _SCALES_FIRST, "gguf-q8_0-qs", 1, "int8", "binary16", 32, ref="GGML block_q8_0"),
]}


def find(name, tables=(LAYOUTS, SCALE_LAYOUTS)) -> list:
    """All rows of the tables with this name or alias; several take different widths. A row gives itself.

    Raises InputError for an unknown name, with the nearest ones.
    """
    if isinstance(name, Layout | Swizzle | BlockLayout):
        return [name]
    rows = [row for table in tables for row in table.values()]
    key = str(name).strip().lower()
    if found := [row for row in rows if key in (row.name, *row.aka)]:
        return found
    spellings = [spelling for row in rows for spelling in (row.name, *row.aka)]
    near = ", ".join(difflib.get_close_matches(key, spellings, 4, 0.5))
    known = f"nearest names: {near}" if near else f"allowed are {', '.join(row.name for row in rows)}"
    raise InputError(f"layout {name!r} is not known; {known}")


def layout(name, bits: int | None = None) -> tuple[Layout | Swizzle, int]:
    """The row of an element or scale layout that takes codes of `bits` bits, and the width.

    bits None: the one width the layout takes. Raises InputError for unknown names and for other widths.
    """
    rows = find(name)
    allowed = sorted(width for row in rows for width in row.bits)
    if bits is None and len(allowed) > 1:
        raise InputError(f"layout {name!r} takes codes of several widths; say which bits: {_listed(allowed)}")
    bits = allowed[0] if bits is None else bits
    if isinstance(bits, bool) or bits not in allowed:
        name = getattr(name, "name", name)
        raise InputError(f"layout {name!r} takes codes of {_listed(allowed)} bits, not {bits!r}")
    return next(row for row in rows if bits in row.bits), int(bits)


def _listed(widths) -> str:
    if len(widths) > 2 and widths == list(range(widths[0], widths[-1] + 1)):
        return f"{widths[0]} to {widths[-1]}"
    return ", ".join(map(str, widths))


# ------------------------------------------------------------------------------------------------------------
# the mechanism: lines of codes <-> lines of bytes

def code_kind(bits: int) -> np.dtype:
    """The smallest unsigned dtype for codes of `bits` bits."""
    return np.dtype(next(f"u{size}" for size in (1, 2, 4, 8) if bits <= 8 * size))


def pack_lines(lines, row: Layout, bits: int, fill: int = 0) -> np.ndarray:
    """(lines, values) unsigned codes to (lines, row.bytes_of(values, bits)) uint8.

    fill: the code that lines are filled up with. Spec: PACK-3, PACK-4, PACK-6.
    """
    count = lines.shape[1]
    block, blocks = _blocks(row, bits, count)
    lines = filled(lines.astype(code_kind(bits), copy=False), _up(count, row.multiple(bits)), fill)
    codes = filled(lines, blocks * block).reshape(len(lines) * blocks, block)
    packed = np.empty((len(codes), block * bits // 8), np.uint8)
    for part in _slabs(codes):
        for plane, room in _rooms(row, bits, packed[part], block):
            _put(_ordered(codes[part], plane, bits), room, plane, bits)
    return packed.reshape(len(lines), blocks * block * bits // 8)[:, : row.bytes_of(count, bits)]


def unpack_lines(packed, row: Layout, bits: int, count: int) -> np.ndarray:
    """(lines, row.bytes_of(count, bits)) uint8 to (lines, count) codes: the inverse of `pack_lines`."""
    lines, (block, blocks) = len(packed), _blocks(row, bits, count)
    packed = filled(packed, blocks * block * bits // 8).reshape(lines * blocks, block * bits // 8)
    codes = np.empty((len(packed), block), code_kind(bits))
    for part in _slabs(codes):
        for plane, room in _rooms(row, bits, packed[part], block):
            _take(room, _ordered(codes[part], plane, bits), plane, bits, plane is not row.planes[0])
    return codes.reshape(lines, blocks * block)[:, :count]


def swizzle(matrices, row: Swizzle) -> np.ndarray:
    """(..., rows, cols) to (..., *row.shape(rows, cols)): zero padded, in memory order. Spec: PACK-8."""
    *batch, rows, cols = matrices.shape
    full = np.zeros((*batch, *row.shape(rows, cols)), matrices.dtype)
    full[..., :rows, :cols] = matrices
    return np.ascontiguousarray(row.view(full)).reshape(full.shape)


def unswizzle(packed, row: Swizzle, rows: int, cols: int) -> np.ndarray:
    """The inverse of `swizzle`: (..., rows, cols) from the filled and swizzled matrices."""
    full = np.empty(packed.shape, packed.dtype)
    view = row.view(full)
    view[...] = packed.reshape(view.shape)
    return full[..., :rows, :cols]


def filled(lines, count: int, fill: int = 0) -> np.ndarray:
    """(lines, n) filled up to (lines, count) with the code `fill`; the array itself where none is missing."""
    if lines.shape[1] == count:
        return lines
    full = np.full((len(lines), count), fill, lines.dtype)
    full[:, : lines.shape[1]] = lines
    return full


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _blocks(row: Layout, bits: int, count: int) -> tuple[int, int]:
    """Values the planes run over, and how often in a line: the row's block, else as many as fill whole bytes.

    One plane in sequence may start again at every byte boundary; else a line without blocks is one.
    """
    unit = lcm(*(len(plane.lanes(bits)) for plane in row.planes))
    simple = len(row.planes) == 1 and row.planes[0].order == "sequence"
    block = row.block or (unit if simple else max(unit, _up(count, unit)))
    return block, -(-count // block)


def _slabs(codes):
    """Slices of whole blocks, about CHUNK values each, so that temporaries stay in cache."""
    rows = max(1, CHUNK // codes.shape[1])
    return (slice(start, start + rows) for start in range(0, len(codes), rows))


def _rooms(row: Layout, bits: int, packed, block: int):
    """Each plane with its bytes: (blocks, stretches, runs in a stretch, bytes of a run), a view."""
    at = 0
    for plane in row.planes:
        width, lanes = plane.bits_of(bits), len(plane.lanes(bits))
        end, stretches = at + block * width // 8, block // (plane.stretch or block)
        shape = len(packed), stretches, block // stretches // lanes, lanes * width // 8
        yield plane, packed[:, at:end].reshape(shape)
        at = end


def _ordered(codes, plane: Plane, bits: int):
    """(blocks, stretches, runs in a stretch, values of a run): the codes as a plane takes them, a view."""
    blocks, block = codes.shape
    stretch, lanes = plane.stretch or block, len(plane.lanes(bits))
    if plane.order == "split":
        return codes.reshape(blocks, block // stretch, lanes, stretch // lanes).swapaxes(-1, -2)
    return codes.reshape(blocks, block // stretch, stretch // lanes, lanes)


def _moves(plane: Plane, bits: int):
    """(value, byte, shift) for every byte that bits of a value reach, in one run; shift > 0 is upwards.

    High-first is low-first with values and bytes counted from the other end (Spec: PACK-3).
    """
    width, lanes = plane.bits_of(bits), plane.lanes(bits)
    last = len(lanes) * width // 8 - 1
    for position, value in enumerate(lanes):
        start = width * (position if plane.first == "low" else len(lanes) - 1 - position)
        for byte in range(start // 8, (start + width - 1) // 8 + 1):
            yield value, byte if plane.first == "low" else last - byte, start - 8 * byte


def _put(values, room, plane: Plane, bits: int):
    """One plane's bits of the values into its bytes."""
    width, begun = plane.bits_of(bits), set()
    for value, byte, shift in _moves(plane, bits):
        part = values[..., value]
        if width != bits:
            part = (part >> plane.low) & ((1 << width) - 1)
        part = part << shift if shift > 0 else part >> -shift if shift else part
        part = part.astype(np.uint8, copy=False)
        if byte in begun:
            room[..., byte] |= part
        else:
            room[..., byte] = part
        begun.add(byte)


def _take(room, values, plane: Plane, bits: int, begun: bool):
    """One plane's bytes into the values. begun: other planes have written bits of the values already."""
    mask = values.dtype.type((1 << plane.bits_of(bits)) - 1)
    begun = set(plane.lanes(bits)) if begun else set()
    for value, byte, shift in _moves(plane, bits):
        part = room[..., byte]
        part = part >> shift if shift >= 0 else part.astype(values.dtype) << -shift
        part = (part.astype(values.dtype, copy=False) & mask) << plane.low
        if value in begun:
            values[..., value] |= part
        else:
            values[..., value] = part
        begun.add(value)
