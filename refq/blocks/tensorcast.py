"""TensorCast's language: a number string and a scale string say a data type (Spec: TCAST-1 to TCAST-7).

`parse` gives the fields of a Block, `spell` the two strings of one. Its numbers have TensorCast's meaning:
bias 2^(E-1) - 1 under every suffix, signed integers as sign and magnitude with one integer bit.
"""

import re

from refq.blocks.codebooks import codebook
from refq.errors import InputError
from refq.formats.names import AMBIGUOUS, number_format
from refq.formats.rows import Float, Int

TILES = (0, *(2 ** n for n in range(1, 11)))        # 0: the whole axis

_WORD = re.compile(r"(float|bfloat|int|uint)(\d{1,3})")
_EMB = re.compile(r"e\d{1,3}m\d{1,3}(b\d{1,6})?(ieee|fnuz|inuz|fn)?")
_P3109 = re.compile(r"binary8p([1-6])")
_TILE = re.compile(r"t(\d{1,5})?(?:s(\d{1,5}))?(?:o(\d))?(?:d(\d{1,2}))?(?:n(\d{1,4})m(\d{1,4}))?")
_SUFFIXES = {"ieee": "", "fn": "fn", "fnuz": "fnuz", "p3109-extended": "inuz"}
_SPELLED = {"binary32": "float32", "binary16": "float16", "bfloat16": "bfloat16"}


# ------------------------------------------------------------------------------------------------------------
# numbers

def number(code: str):
    """The row of TensorCast's number string. Raises InputError for what it does not say. Spec: TCAST-1."""
    key = code.strip().lower().removeprefix("tcast:").removeprefix("torch.")
    shorter = key.removeprefix("float8").removeprefix("_")
    if key.startswith("float8") and shorter.endswith("fnuz") and "b" not in shorter:
        exp = re.match(r"e(\d)", shorter)               # torch's own fnuz types have one more
        shorter = shorter.removesuffix("fnuz") + f"b{2 ** (int(exp[1]) - 1)}fnuz" if exp else shorter
    if shape := _WORD.fullmatch(shorter):
        shorter = _word(code, shape[1], int(shape[2]))
    elif (shape := _P3109.fullmatch(shorter)) and f"tcast:{shorter}" not in AMBIGUOUS:
        p = int(shape[1])
        shorter = f"e{8 - p}m{p - 1}b{2 ** (7 - p)}inuz"
    elif not _EMB.fullmatch(shorter) and not shape:
        raise InputError(f"{code!r} is not a number of TensorCast's; they are eXmY[bZ][fn|fnuz|inuz], intK, "
                         "uintK, floatK, bfloatK and cb... for codebooks")
    return number_format(f"tcast:{shorter.removesuffix('ieee')}")


def _word(code: str, kind: str, bits: int) -> str:
    """A number by its width as exponent and significand; integers as they are."""
    least = {"bfloat": 10, "float": 9, "int": 2, "uint": 1}[kind]
    if not least <= bits <= 32:
        raise InputError(f"{code!r} is not a number of TensorCast's; {kind} has {least} to 32 bits")
    if kind.endswith("int"):
        return f"{kind}{bits}"
    return f"e5m{bits - 6}" if kind == "float" and bits <= 16 else f"e8m{bits - 9}"


def spell_number(row) -> str:
    """TensorCast's string of a number format. Raises InputError where it has none. Spec: TCAST-6."""
    said = None
    if isinstance(row, Float) and (row.special in _SUFFIXES or row.special == "scale"):
        usual = row.bias == 2 ** (row.exp - 1) - 1
        said = f"e{row.exp}m{row.man}{'' if usual else f'b{row.bias}'}{_SUFFIXES.get(row.special, '')}"
        if row.exp == row.bias == 1 and row.special == "fnuz":
            said = f"int{row.man + 2}"
    elif isinstance(row, Int) and not row.signed and not row.frac:
        said = f"uint{row.bits}"
    said = _SPELLED.get(row.name, said)
    try:
        if said and number(said) == row:
            return said
    except InputError:
        pass
    raise InputError(f"TensorCast has no number that means {row.name}")


# ------------------------------------------------------------------------------------------------------------
# scales

def _tile(segment: str):
    """(tile, subtile, offset bits, sparsity) of a tile segment, None for what it lacks; tile 0: the axis."""
    shape = _TILE.fullmatch(segment)
    if shape is None:
        raise InputError(f"{segment!r} is neither a number nor a tile; "
                         "tiles are t<size>[s<size>][o<bits>][n<N>m<M>]")
    tile, subtile, offset, dim, n, m = (int(part) if part else None for part in shape.groups())
    tile = tile or 0
    if dim is not None:
        raise InputError(f"{segment!r}: d{dim} names an axis, which is no part of a data type here; "
                         "say axis= when quantising")
    if tile not in TILES:
        raise InputError(f"{segment!r}: TensorCast has no tile of {tile}; "
                         f"allowed are {', '.join(map(str, TILES))}")
    if subtile is not None and (subtile < 2 or not tile or tile % subtile):
        raise InputError(f"{segment!r}: a subtile has at least 2 values and divides its tile")
    if offset is not None and (offset not in (1, 2) or subtile is None):
        raise InputError(f"{segment!r}: an offset has 1 or 2 bits and goes with a subtile")
    return tile, subtile, offset, None if n is None else (n, m)


def _tiling(segments: list[str]) -> dict:
    """The Block fields tile, subtiles and sparsity of the tile segments (TCAST-3)."""
    parts = [_tile(segment) for segment in segments]
    if not parts:
        return {"tile": "tensor"}
    if len(parts) > 2:
        raise InputError(f"{'_'.join(segments)!r} has {len(parts)} tile segments; one or two are allowed")
    if any(part[3] for part in parts[:-1]):
        raise InputError(f"{segments[0]!r}: sparsity goes along the last axis, in the last segment")
    tiles, subtiles, offsets, sparse = zip(*parts)
    sizes = tuple(tile or "channel" for tile in tiles)
    if sizes == ("channel", "channel"):
        raise InputError(f"{'_'.join(segments)!r}: only one of two axes can be whole")
    fields = {"tile": sizes if len(sizes) == 2 else sizes[0]}
    if any(subtiles):
        bits = {offset for offset in offsets if offset is not None}
        if len(bits) > 1:
            raise InputError(f"{'_'.join(segments)!r}: the segments say different offsets")
        if "channel" in sizes:
            raise InputError(f"{'_'.join(segments)!r}: subtiles need a tile on both axes")
        size = tuple(sub or tile for sub, tile in zip(subtiles, tiles))
        fields["subtiles"] = ((size if len(size) == 2 else size[0], bits.pop() if bits else 0),)
    if sparse[-1]:
        fields["sparsity"] = sparse[-1]
    return fields


def _role(code: str, role: str) -> str:
    """The name of a number in the role of scale, zero or tensor scale (TCAST-2)."""
    shape = _WORD.fullmatch(code)
    if role != "element" and shape and shape[1] == "int":
        number(code)
        return f"pow2int{shape[2]}" if role == "scale" else f"int{shape[2]}"
    return number(code).name


def parse(number_code: str, scale: str | None = None) -> dict:
    """The Block fields that TensorCast's two strings say, or one string behind `tcast:` (Spec: TCAST-1 to 7).

    number_code: a number, `cb...` for codebooks; alone and with the prefix also a predefined name, or a
    number and a scale joined by `_`. With the prefix all its numbers are TensorCast's; without it a number that refq
    reads otherwise is refused.
    Returns element and, with a scale, scale, zero or outer, tile, subtiles and sparsity, where they are said.
    Names are refq's; `pow2int8` is an integer used as an exponent.
    Raises InputError for strings and combinations that TensorCast refuses.
    """
    inside = number_code.strip().lower().startswith("tcast:")
    if inside and scale is None:
        return _fields(*(predefined(number_code) or split(number_code)))
    if not inside:
        _refuse_clashes(number_code, scale)
    return _fields(number_code, scale)


def _fields(number_code: str, scale: str | None) -> dict:
    """What the strings say in TensorCast's meaning (TCAST-2 to TCAST-4)."""
    code = number_code.strip().lower().removeprefix("tcast:")
    tables = codebook(code) if code.startswith(("cb", "icb")) else None
    row = None if tables else number(code)
    fields = {"element": tables.name if tables else row.name}
    unsigned = row is not None and not row.is_float and not row.signed
    if not tables and row.special == "scale":
        raise InputError(f"{number_code!r} is an exponent, which is only a scale in TensorCast")
    if scale is None:
        return fields
    segments = scale.strip().lower().removeprefix("tcast:").split("_")
    cut = next((i for i, part in enumerate(segments) if re.match("t(?!orch)", part)), len(segments))
    numbers, tiles = segments[:cut], segments[cut:]
    if not 1 <= len(numbers) <= 2:
        raise InputError(f"scale {scale!r} must say one or two numbers, then its tiles; "
                         f"it says {len(numbers)}")
    fields["scale"] = _role(numbers[0], "scale")
    if len(numbers) == 2:
        fields |= {"zero" if unsigned else "outer": _role(numbers[1], "zero" if unsigned else "tensor scale")}
    _check_zero(scale, unsigned, numbers, fields)
    return fields | _tiling(tiles)


def _check_zero(scale: str, unsigned: bool, numbers, fields):
    """TCAST-4: unsigned integers, and only they, take a zero point, and then a float scale."""
    if unsigned and len(numbers) < 2:
        raise InputError(f"scale {scale!r}: unsigned integers need a zero point after the scale, such as "
                         f"{numbers[0]}_int8")
    if unsigned:
        first = None if fields["scale"].startswith("pow2int") else number(numbers[0])
        if first is None or not first.is_float or first.special == "scale":
            raise InputError(f"scale {scale!r}: unsigned integers need a float scale, not {numbers[0]}")
        zero = number(numbers[1])
        if not zero.is_float or zero.special == "scale":
            raise InputError(f"scale {scale!r}: a zero point is a float or signed integer, not {numbers[1]}")


# ------------------------------------------------------------------------------------------------------------
# whole data types

def split(text: str) -> tuple[str, str | None]:
    """(number, scale or None) of one string; a codebook's number has two segments, torch's float8 too.

    The string is not checked further. Spec: TCAST-5.
    """
    segments = text.strip().removeprefix("tcast:").removeprefix("TCAST:").split("_")
    first = segments[0].lower()
    count = 2 if first.startswith(("cb", "icb")) or first.removeprefix("torch.") == "float8" else 1
    return "_".join(segments[:count]), "_".join(segments[count:]) or None


def predefined(text: str) -> tuple[str, str | None] | None:
    """(number, scale) of a name that TensorCast predefines, None for another. Spec: TCAST-7.

    Case matters where two names differ by it (uint8_FF, uint8_ff); then InputError is raised for a third.
    """
    name = text.strip()
    name = name[6:] if name[:6].lower() == "tcast:" else name
    if name in PREDEFINED:
        return PREDEFINED[name]
    found = [known for known in PREDEFINED if known.lower() == name.lower()]
    if len({PREDEFINED[known] for known in found}) > 1:
        raise InputError(f"{text!r} is ambiguous; say which: {', '.join(found)}")
    return PREDEFINED[found[0]] if found else None


def _refuse_clashes(number_code: str, scale: str | None):
    """Raises InputError where refq reads a number of strings without `tcast:` differently (TCAST-5)."""
    code, scale = number_code.strip().lower(), (scale or "").strip().lower()
    if not code.startswith(("cb", "icb")):
        _refuse_clash(code)
    for segment in scale.split("_") if not scale.startswith("tcast:") else ():
        if not re.match(r"t(?!orch)|int\d", segment):        # an integer has its meaning from its role
            _refuse_clash(segment)


def _refuse_clash(code: str):
    """Raises InputError where a spelling has two meanings (VAL-8)."""
    try:
        meant = number(code)
    except InputError:
        return                              # parse says what is wrong
    try:
        other = number_format(code)
    except InputError:
        if code in AMBIGUOUS:
            raise InputError(f"number {code!r} is ambiguous; say which: tcast:{code}, "
                             f"{', '.join(AMBIGUOUS[code])}") from None
        return
    if other != meant:
        raise InputError(f"number {code!r} is ambiguous; say which: tcast:{code} ({meant.name}) or "
                         f"{_unmistakable(other)}")


def _unmistakable(row) -> str:
    """refq's meaning of a spelling in words that TensorCast reads the same way or not at all."""
    try:
        return spell_number(row)
    except InputError:
        return f"refq's own {row.name}, in one string such as {row.name}_e8m0_t32"


def spell(block) -> tuple[str, str | None]:
    """TensorCast's (number, scale) of a data type. Spec: TCAST-6.

    block: any object with the fields of a Block. Only what the strings say is spelled: not rule or recipe.
    Raises InputError where TensorCast cannot say it.
    """
    tables = codebook(block.element)
    code = tables.name if tables else spell_number(number_format(block.element))
    if block.scale is None:
        scale = None
        if code.startswith(("int", "uint")):
            raise InputError(f"TensorCast casts only floats without a scale, not {block.element}")
    else:
        numbers = [_spell_role(name) for name in (block.scale, block.zero or block.outer) if name]
        scale = "_".join([*numbers, *_spell_tiles(block)])
    fields = _fields(code, scale)
    for field in ("element", "scale", "zero", "outer", "tile", "subtiles", "sparsity"):
        wanted, said = getattr(block, field) or None, fields.get(field)
        if wanted != said and not _same_number(wanted, said):
            raise InputError(f"TensorCast cannot say {field} {wanted!r} of data type {block.name}")
    return code, scale


def _same_number(wanted, said) -> bool:
    """Whether two names are the same number format."""
    try:
        texts = isinstance(wanted, str) and isinstance(said, str)
        return texts and number_format(wanted) == number_format(said)
    except InputError:
        return False


def _spell_role(name: str) -> str:
    if shape := re.fullmatch(r"(?:pow2)?int(\d+)", name):
        return f"int{shape[1]}"
    return spell_number(number_format(name))


def _spell_tiles(block) -> list[str]:
    """The tile segments of a data type."""
    if block.tile == "tensor":
        return []
    if len(block.subtiles) > 1:
        raise InputError(f"TensorCast cannot say {len(block.subtiles)} levels of subtiles ({block.name})")
    tiles = block.tile if isinstance(block.tile, tuple) else (block.tile,)
    size, bits = block.subtiles[0] if block.subtiles else (None, 0)
    sizes = size if isinstance(size, tuple) else (None,) * (len(tiles) - 1) + (size,)
    said = [f"t{0 if tile == 'channel' else tile}" + (f"s{sub}" if sub and sub != tile else "")
            for tile, sub in zip(tiles, sizes)]
    if bits:
        said = [part + f"o{bits}" if "s" in part else part for part in said]
    if block.sparsity:
        said[-1] += "n{}m{}".format(*block.sparsity)
    return said


# ------------------------------------------------------------------------------------------------------------
# the names that TensorCast predefines

_LETTERS = {"F": "float32", "f": "float16", "b": "bfloat16", "n": "e4m3", "e": "e8m0", "i": "int8"}
_MX = {"mxbf8": "e5m2", "mxfp8": "e4m3fn", "mxbf6": "e3m2fnuz", "mxfp6": "e2m3fnuz", "mxfp4": "e2m1fnuz",
       "mxint8": "int8", "mxint4": "int4"}
_LONG = {"mxfp8e5": "mxbf8", "mxfp8e4": "mxfp8", "mxfp6e3": "mxbf6", "mxfp6e2": "mxfp6", "mxfp4e2": "mxfp4"}
_NV = {"nvb8": "e5m2", "nvf8": "e4m3fn", "nvb6": "e3m2fnuz", "nvf6": "e2m3fnuz", "nvf4": "e2m1fnuz"}
_FP8 = {"bf8": "e5m2", "bf8n": "e5m2fnuz", "fp8": "e4m3fn", "fp8n": "e4m3fnuz"}


def _lettered(names, letters: str, end: str, tile: str) -> dict:
    """Names of an element, an underscore and a letter for each number of the scale."""
    return {f"{name}_{word}{end}": (code, "_".join(_LETTERS[letter] for letter in word) + tile)
            for name, code in names.items() for word in letters.split()}


PREDEFINED: dict[str, tuple[str, str]] = {
    **_lettered({"uint8": "uint8"}, "FF ff bb Fi fi bi ni", "", ""),
    **_lettered({"int8": "int8"} | _FP8, "F f b n e", "", ""),
    **_lettered({"uint8": "uint8", "uint4": "uint4"}, "FF ff bb Fi fi bi ni", "c", "_t0"),
    **_lettered({"int8": "int8", "int4": "int4", "fp8": "e4m3fn", "fp8n": "e4m3fnuz"},
                "F f b n e", "c", "_t0"),
    "fp8nF32s": ("e4m3fnuz", "float32_t32_t32"), "fp8nf32s": ("e4m3fnuz", "float16_t32_t32"),
    "fp8F32s": ("e4m3fn", "float32_t32_t32"), "fp8f32s": ("e4m3fn", "float16_t32_t32"),
    "bf8nbt32s": ("e5m2fnuz", "bfloat16_t16_t16"), "bf8bt32s": ("e5m2", "bfloat16_t16_t16"),
    **{name: (code, "e8m0_t32") for name, code in _MX.items()},
    **{name: (_MX[short], "e8m0_t32") for name, short in _LONG.items()},
    **{f"{name}t16": (code, "e8m0_t16") for name, code in _MX.items()},
    **{f"{name}t16s": (code, "e8m0_t16_t16") for name, code in _MX.items()},
    **{f"{name}{end}": (_MX[name], f"e8m0_t{size}_t{size}") for name in ("mxfp4", "mxbf6", "mxfp6", "mxfp8")
       for end, size in (("s", 32), ("s16", 16))},
    **{name: (code, "e4m3_t16") for name, code in _NV.items()},
    **{f"{name}s": (code, "e4m3_t16_t16") for name, code in _NV.items()},
    "mx9": ("cb81ie_int9", "e8m0_t16s2"), "mx6": ("cb51ie_int7", "e8m0_t16s2"),
    "mx4": ("cb31ie_int5", "e8m0_t16s2"),
    "bfp16": ("int8", "e8m0_t8"), "bfp16t16": ("int8", "e8m0_t16"),
    "mxfi4": ("cb41fi_e2m2fnuz", "e8m0_t32s4"), "mxfp4m": ("cb41f01_e2m2fnuz", "e8m0_t32s4"),
    "mxfp4e": ("cb42fe0123_e3m2fnuz", "e8m0_t32s8"), "mxfp4f4": ("cb42f1346_e2m3fnuz", "e8m0_t32s8"),
}
