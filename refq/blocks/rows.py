"""THE table of data types: a number format for the elements, and what shares a scale in which format.

A data type outside the table is named by rule, `<element>_<scale format>[_<second format>]_<tile>`, as in
`int4_bfloat16_t32`, `e2m1_ue4m3_binary32_t16` or `uint4_binary16_int8_t32`, or in TensorCast's two strings; a
bare number format is the unscaled cast. Spec: BLOCK-2.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

from refq.blocks import codebooks, sparsity, tensorcast
from refq.blocks.rules import RULES, Elements
from refq.blocks.tiles import Tiles, sides
from refq.errors import InputError
from refq.formats.codec import exact_in
from refq.formats.listed import significant_bits
from refq.formats.names import nearest, number_format
from refq.formats.rows import Row, registered_in

STORED_WIDTHS = {"ue4m3": 8}        # formats that everybody stores wider than they are (CUTLASS)
EXACT_BITS = 50                     # of boundary x scale x tensor scale: what a float64 quotient decides
ODD_BITS = 52                       # of a boundary: what a float64 quotient rounded to odd decides


@dataclass(frozen=True)
class Block:
    """One data type.

    element: a number format, or a collection of codebooks. scale: a number format (None: unscaled).
    tile: the values that share a scale: a number of them along the axis, "channel" (the whole axis), "tensor",
    or a pair (cross, along) of numbers or "channel" for tiles of two dimensions.
    rule: how a tile's values become its scale, a key of RULES. outer: format of a second, per-tensor scale.
    subtiles: (size, bits) of every level inside a tile, from large to small: values that share an exponent
    offset of so many bits; 0 bits where they share a codebook only. zero: format of the zero point of unsigned
    elements. sparsity: (N, M) where N of M values along the axis are kept. recipe: the default recipe.
    Spec: BLOCK-2, BLOCK-14, BLOCK-15, CB-1, SPARSE-1.
    """

    name: str
    element: str
    scale: str | None = None
    tile: int | str | tuple | None = None
    rule: str = "none"
    outer: str | None = None
    recipe: str = "exact"
    ref: str = ""
    aka: tuple[str, ...] = ()
    subtiles: tuple[tuple, ...] = ()
    zero: str | None = None
    sparsity: tuple[int, int] | None = None

    def __post_init__(self):
        if self.sparsity is not None:
            sparsity.check_sparsity(*self.sparsity)
        for wrong, words in self._mistakes():
            if wrong:
                raise InputError(f"{self.name}: {words}")

    def _mistakes(self):
        """(whether it is one, words) of everything a row can get wrong; later ones rely on earlier ones."""
        scaled = self.scale is not None
        known = self.rule in RULES
        yield not known, f"scale rule {self.rule!r} is not known; allowed are {', '.join(RULES)}"
        yield (not scaled == (self.tile is not None) == (self.rule != "none"),
               "a scale needs a rule and a tile, and the other way round")
        yield not scaled and (self.outer or self.zero or self.subtiles), "it has no scale to go with"
        yield (scaled and not _is_tile(self.tile),
               f"tile {self.tile!r} is not allowed; a number from 1, 'channel', 'tensor' or a pair of the first "
               "two is")
        yield (len(self.tables) > 1 and not scaled, "codebooks to choose from need a scale")
        if scaled:
            yield from self._scale_mistakes()
            yield from self._subtile_mistakes()

    def _scale_mistakes(self):
        """What the arithmetic of quantize.py needs to be exact."""
        rule, scale, element = RULES[self.rule], self.scale_row, self.element_row
        yield (self.outer not in (None, "float32") or (self.outer and self.rule != "amax"),
               f"the outer scale is float32 or none, and goes with rule amax, not {self.outer!r}")
        yield (not scale.has_nan or any(not row.has_zero or row.max <= 0 for row in self.tables),
               "the scale format must have a NaN and the element a zero and a positive value")
        yield (rule.kind == "exponent" and not is_exponent(scale),
               f"rule {self.rule} needs an exponent scale format from 2^-127 up, such as e8m0, not {self.scale}")
        yield (rule.kind == "float" and (not scale.has_zero and self.rule != "hif4" or not scale.is_float),
               f"rule {self.rule} needs a floating scale format with a zero, not {self.scale}")
        yield (not all(exact_in(row, "float32") for row in (*self.tables, scale)),
               f"float32 must hold every value of {self.element} and {self.scale}")
        yield (rule.kind == "float" and (self.needs_odd and (self.scale_bits > 24 or self.boundary_bits > ODD_BITS)
                                         or self.outer is not None and scale.precision > 8),
               f"{self.element} and {self.scale} have too many significant bits together to divide exactly")
        yield ((self.zero is not None) != (self.rule == "minmax"),
               "a zero point goes with rule minmax, and the other way round")
        if self.zero is not None:
            plain = not element.is_listed and not element.is_float and not element.signed and element.bits <= 16
            yield not plain, f"a zero point needs unsigned integer elements of at most 16 bits, not {self.element}"
            ok = not self.zero_row.is_listed and self.zero_row.width <= 32 and exact_in(self.zero_row, "float64")
            yield not ok, f"zero point format {self.zero!r} is not an integer or a float of at most 32 bits"

    def _subtile_mistakes(self):
        plain = isinstance(self.tile, int) or isinstance(self.tile, tuple) and "channel" not in self.tile
        yield self.subtiles and not plain, f"subtiles need a tile of a fixed size, not {self.tile!r}"
        outer = sides(self.tile)
        for size, bits in self.subtiles:
            inner = sides(size)
            fits = all(isinstance(n, int) and n >= 1 and m % n == 0 for n, m in zip(inner, outer))
            yield (not fits or inner == outer or not 0 <= bits <= 4,
                   f"subtile {size!r} with {bits!r} offset bits is not allowed; its size must divide "
                   "what it lies in, and offsets have 0 to 4 bits")
            outer = inner
        two = isinstance(self.tile, tuple) and len(self.subtiles) > 1
        yield two, "tiles of two dimensions have one level of subtiles"
        yield ((self.rule == "hif4") != (tuple(bits for _, bits in self.subtiles) == (1, 1)),
               "rule hif4 goes with two levels of one-bit subtiles, and the other way round")
        offsets = any(bits for _, bits in self.subtiles) and self.rule != "hif4"
        yield (offsets and (RULES[self.rule].kind != "exponent" or len(self.subtiles) > 1),
               "exponent offsets need one level of subtiles and an exponent scale")
        yield (self.subtiles and not offsets and self.rule != "hif4" and len(self.tables) == 1,
               "subtiles without offset bits are for the choice among codebooks")

    @cached_property
    def tables(self) -> tuple[Row, ...]:
        """The element formats of which a tile or subtile takes one: a single one but for codebooks."""
        found = codebooks.codebook(self.element)
        return found.tables if found else (number_format(self.element),)

    @property
    def element_row(self) -> Row:
        """The element format; of a collection of codebooks the first."""
        return self.tables[0]

    @property
    def scale_row(self) -> Row:
        return number_format(self.scale)

    @property
    def zero_row(self) -> Row:
        return number_format(self.zero)

    @cached_property
    def elements(self) -> Elements:
        """What the scale rule wants to know of the elements."""
        found, largest = codebooks.codebook(self.element), max(row.max for row in self.tables)
        row = self.element_row
        if row.is_listed:
            emax = found.emax if found else row.emax
            precision = max(table.precision for table in self.tables)
            return Elements(largest, emax, largest, precision, False)
        return Elements(row.max, row.emax, row.overflow_threshold, row.precision,
                        bool(row.layout.magnitude(row.layout.max_index)[0] & 1))

    @cached_property
    def boundary_bits(self) -> int:
        """Significant bits of the boundaries between elements."""
        return max(_boundary_bits(row) for row in self.tables)

    @property
    def scale_bits(self) -> int:
        """Significant bits of scale x tensor scale."""
        return self.scale_row.precision + (24 if self.outer else 0)

    @property
    def needs_odd(self) -> bool:
        """Whether quotients must be rounded to odd to decide every rounding (elements.py)."""
        return self.boundary_bits + self.scale_bits > EXACT_BITS

    @property
    def meta_bits(self) -> int:
        """Bits that say which table a tile or subtile takes."""
        return (len(self.tables) - 1).bit_length()

    @property
    def bits_per_value(self) -> Fraction:
        """What is stored in a full tile over its values; scales per channel or tensor count as nothing (BLOCK-12)."""
        bits = Fraction(self.element_row.width)
        if self.sparsity:
            bits = bits * Fraction(*self.sparsity) + 1          # the mask: a bit a value
        values = _values(self.tile)
        if not values:
            return bits
        shared = stored_width(self.scale_row) + (stored_width(self.zero_row) if self.zero else 0)
        for size, width in self.subtiles:
            shared += width * (values // _values(size))
        return bits + Fraction(shared, values) + Fraction(self.meta_bits, _values(self.select_size) or 1)

    def tiles_of(self, shape, axis) -> Tiles:
        """How an array of that shape falls into tiles along an axis as tile_axes gives it."""
        return Tiles.of(shape, self.tile, axis, [size for size, _ in self.subtiles])

    @property
    def offset_bits(self) -> tuple[int, ...]:
        """Bits of the exponent offsets of every level of subtiles that has some."""
        return tuple(bits for _, bits in self.subtiles if bits)

    @property
    def select_size(self):
        """The values that share a codebook: the smallest subtile, or the tile."""
        return self.subtiles[-1][0] if self.subtiles else self.tile


def _values(size) -> int:
    """Values of a tile or subtile; 0 where the array decides."""
    ways = sides(size)
    return ways[0] * ways[1] if all(isinstance(n, int) for n in ways) else 0


def _is_tile(tile) -> bool:
    if isinstance(tile, tuple):
        return len(tile) == 2 and all(part == "channel" or _is_size(part) for part in tile)
    return tile in ("channel", "tensor") or _is_size(tile)


def _is_size(size) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 1


def is_exponent(row: Row) -> bool:
    """Whether every value of a scale format is a power of two, from 2^-127 up."""
    if row.is_listed:
        return row.kind == "exponent"
    return row.special == "scale" and row.man == 0 and row.layout.qmin >= -127


def stored_width(row: Row) -> int:
    """Bits that a scale or zero point of that format takes."""
    return STORED_WIDTHS.get(row.name, row.width)


@lru_cache(maxsize=256)
def _boundary_bits(row: Row) -> int:
    if not row.is_listed:
        return row.precision + 1
    values = [value for value, _ in row.ascending]
    return max(significant_bits(low + high) for low, high in zip(values, values[1:])) if row.exact else 99


# ------------------------------------------------------------------------------------------------------------
# the table

def _mx(name, element, ref, *aka):
    """An OCP MX type, and its relatives with other tiles."""
    yield Block(name, element, "e8m0", 32, "floor", recipe="ocp", ref=ref, aka=aka)
    for label, tile in (("t16", 16), ("16x16", (16, 16)), ("32x32", (32, 32))):
        yield Block(f"{name}_{label}", element, "e8m0", tile, "floor", recipe="ocp", ref=f"{ref}, other tile")


def _nv(name, element, tile=16, ref="NVFP4, other element"):
    return Block(name, element, "ue4m3", tile, "amax", outer="float32", ref=ref)


def _bfp(name, bits, scale, tile, ref, *aka, subtiles=()):
    """Block floating point: sign, one integer bit, fraction; a shared exponent."""
    element = f"smint{bits}" + f"f{bits - 2}" * (bits > 2)
    return Block(name, element, scale, tile, "floor", None, "ocp", ref, aka, subtiles)


DATA_TYPES: dict[str, Block] = {row.name: row for row in [
    # OCP MX and its relatives
    *_mx("mxfp8_e4m3", "e4m3fn", "OCP MX 5.3.1", "mxfp8", "mxfp8_e4m3fn", "mx_e4m3"),
    *_mx("mxfp8_e5m2", "e5m2", "OCP MX 5.3.1", "mx_e5m2"),
    *_mx("mxfp6_e2m3", "e2m3", "OCP MX 5.3.2", "mxfp6", "mx_e2m3"),
    *_mx("mxfp6_e3m2", "e3m2", "OCP MX 5.3.2", "mx_e3m2"),
    *_mx("mxfp4", "e2m1", "OCP MX 5.3.3", "mxfp4_e2m1", "mx_e2m1"),
    *_mx("mxint8", "mxint8", "OCP MX 5.3.4"),
    *_mx("mxint4", "int4f2", "OCP MX 5.3.4, 4 bits"),
    # two levels
    _nv("nvfp4", "e2m1", ref="NVFP4"),
    _nv("nvfp4_16x16", "e2m1", (16, 16), "TransformerEngine weights"),
    _nv("nvfp6_e2m3", "e2m3"), _nv("nvfp6_e3m2", "e3m2"), _nv("nvfp8_e4m3", "e4m3fn"), _nv("nvfp8_e5m2", "e5m2"),
    # block floating point
    *(_bfp(f"msfp{bits + 8}", bits, "e8m0", 16, "MSFP") for bits in range(4, 9)),
    _bfp("bfp16", 8, "e8m0", 8, "AMD block floating point", "bfp16_t8"),
    _bfp("bfp16_t16", 8, "e8m0", 16, "AMD block floating point"),
    *(_bfp(f"mx{bits + 1}", bits, "e8m0", 16, "shared microexponents", subtiles=((2, 1),)) for bits in (8, 5, 3)),
    *(_bfp(f"tt_bfp{bits}_{kind}", bits, scale, 16, f"Tenstorrent BFP{bits}_{kind}")
      for kind, scale in (("a", "e5m0scale"), ("b", "e8m0")) for bits in (8, 4, 2)),
    _bfp("b4int3", 3, "e4m0scale", 4, "error diffusion paper, b4int3"),
    Block("hif4", "smint4f2", "e6m2b48scale", 64, "hif4", recipe="hif4", ref="HiFloat4",
          subtiles=((8, 1), (4, 1))),
    # float scales
    Block("int8", "int8", "binary32", "channel", "amax", ref="ONNX DequantizeLinear-21",
          aka=("int8_float32_channel",)),
    Block("int4", "int4", "binary16", 32, "amax", ref="ONNX DequantizeLinear-21", aka=("int4_float16_t32",)),
    Block("uint8", "uint8", "binary32", "channel", "minmax", ref="ONNX DynamicQuantizeLinear-11", zero="uint8"),
    Block("uint4", "uint4", "binary16", 32, "minmax", ref="ONNX DequantizeLinear-21", zero="uint4"),
    Block("fp8_128x128", "e4m3fn", "binary32", (128, 128), "amax", ref="DeepSeek-V3 weights"),
    Block("fp8_1x128", "e4m3fn", "binary32", 128, "amax", ref="DeepSeek-V3 activations"),
    Block("bitnet", "ternary", "binary32", "tensor", "absmean", ref="BitNet b1.58", aka=("bitnet_b158",)),
    *(Block(f"{name}_t64", name, "binary32", 64, "amax", ref="bitsandbytes, block 64")
      for name in ("nf4", "af4", "bnb_fp4")),
    # codebooks and sparsity
    Block("cb42f1346", "cb42f1346_e2m3fnuz", "e8m0", 32, "floor", recipe="ocp", ref="TensorCast",
          subtiles=((8, 0),)),
    Block("cb41fi", "cb41fi_e2m3fnuz", "e8m0", 32, "floor", recipe="ocp", ref="TensorCast", subtiles=((8, 0),)),
    Block("mxfp4_2of4", "e2m1", "e8m0", 32, "floor", recipe="ocp", ref="OCP MX 5.3.3, 2:4 sparse", sparsity=(2, 4)),
]}

AMBIGUOUS = {
    "fp8": ("e4m3fn_float32_channel", "e5m2_float32_channel", "mxfp8_e4m3"),
    "fp4": ("mxfp4", "nvfp4"),
    "fp6": ("mxfp6_e2m3", "mxfp6_e3m2"),
    "mxfp": ("mxfp8_e4m3", "mxfp6_e2m3", "mxfp4"),
}

_BY_RULE = re.compile(r"(.+)_(channel|tensor|t(?:[1-9]\d{0,5}|\d{1,6}x\d{1,6}))"
                      r"(?:s(\d{1,4}(?:x\d{1,4})?)(?:o(\d))?)?(?:n(\d{1,4})m(\d{1,4}))?")


def data_type(name, scale: str | None = None) -> Block:
    """The row of a data type from any of its spellings; a row is returned as it is.

    scale: with a TensorCast number as the name, TensorCast's scale specification such as "e8m0_t32".
    Raises InputError for unknown and for ambiguous spellings, naming the candidates. Spec: BLOCK-2, TCAST-1.
    """
    if scale is not None:
        return _from_tensorcast(name, scale)
    if isinstance(name, Block):
        return name
    if isinstance(name, Row):
        return _unscaled(name)
    if not isinstance(name, str):
        raise InputError(f"a data type is named by a string or given as a row, not {name!r}")
    key = name.strip().lower()
    spellings = {spelling: row for row in DATA_TYPES.values() for spelling in (row.name, *row.aka)}
    if key in spellings:
        return spellings[key]
    if key in AMBIGUOUS:
        raise InputError(f"data type {name!r} is ambiguous; say which: {', '.join(AMBIGUOUS[key])}")
    if found := _by_rule(key):
        return found
    if key.startswith("tcast:") and ("_" in key or tensorcast.predefined(name)):
        return _from_tensorcast(name, None)
    if codebooks.codebook(key):
        raise InputError(f"data type {name!r} is a collection of codebooks, which needs a scale: {key}_e8m0_t32s8")
    try:
        return _unscaled(number_format(key))
    except InputError as error:
        raise InputError(f"data type {name!r} is not known{nearest(key, spellings)}; and {error}") from None


def _unscaled(row: Row) -> Block:
    return Block(row.name, row.name, ref=row.ref)


def _from_tensorcast(number: str, scale: str | None) -> Block:
    return described(**tensorcast.parse(number, scale))


@lru_cache(maxsize=1024)
def _by_rule(key: str) -> Block | None:
    shape = _BY_RULE.fullmatch(key)
    if shape is None:
        return None
    head, tile, subtile, offset, n, m = shape.groups()
    element, *scales = _numbers(head)
    second = scales[1] if len(scales) > 1 else None
    asymmetric = second is not None and not (row := number_format(element)).is_float and not row.signed
    return described(element=element, scale=scales[0], tile=_size(tile),
                     subtiles=((_size(subtile), int(offset or 0)),) if subtile else (),
                     zero=second if asymmetric else None, outer=None if asymmetric else second,
                     sparsity=(int(n), int(m)) if n else None)


def _numbers(head: str) -> list[str]:
    """Canonical names: element, scale and, where the head says so, the outer scale or zero point."""
    parts = head.split("_")
    if len(parts) < 2:
        raise InputError(f"data type {head!r} names no scale format")
    refusal = None
    for tail in (1, 2):
        element = "_".join(parts[:-tail])
        try:
            known = codebooks.codebook(element) or number_format(element)
        except InputError as error:
            refusal = refusal or error
        else:
            return [known.name, *(number_format(part).name for part in parts[-tail:])]
    raise refusal


def _size(text: str):
    """"t32" -> 32, "t0x32" -> ("channel", 32)"""
    if text in ("channel", "tensor"):
        return text
    parts = tuple(int(part) or "channel" for part in text.removeprefix("t").split("x"))
    return parts if len(parts) == 2 else parts[0]


def described(element, scale=None, tile=None, outer=None, zero=None, subtiles=(), sparsity=None) -> Block:
    """The data type of these fields under its name by rule, with the usual rule and recipe (BLOCK-2)."""
    ref = "by rule (BLOCK-2)"
    if scale is None:
        return Block(element, element, ref=ref, sparsity=sparsity)
    exponent = is_exponent(number_format(scale))
    rule = "minmax" if zero else "floor" if exponent else "amax"
    parts = [element, scale, *filter(None, (outer, zero)), _spelled(tile)]
    name = "_".join(parts) + "".join(f"s{_size_text(size)}" + f"o{bits}" * bool(bits) for size, bits in subtiles)
    name += f"n{sparsity[0]}m{sparsity[1]}" if sparsity else ""
    outer = "float32" if outer and number_format(outer).name == "binary32" else outer
    return Block(name, element, scale, tile, rule, outer, "ocp" if exponent else "exact", ref, (), subtiles, zero,
                 sparsity)


def _spelled(tile) -> str:
    return tile if tile in ("channel", "tensor") else f"t{_size_text(tile)}"


def _size_text(size) -> str:
    parts = size if isinstance(size, tuple) else (size,)
    return "x".join("0" if part == "channel" else str(part) for part in parts)


def registered(*rows: Block):
    """Put data types into the table for the length of a `with` block. Raises InputError if one is taken."""
    return registered_in(DATA_TYPES, rows)
