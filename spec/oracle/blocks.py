"""Many numbers that share a scale: choose each tile's scale, round the elements, and back.

Written from spec/blocks.md, rules.md and packing.md. A data type arrives as a dict {"element", "scale",
"tile", "rule", "outer", "recipe", "subtiles", "zero"}; formats maps the format names in it to dicts as
scalar.py or listed.py want them. Arrays are flat lists in row-major order with a shape beside them.
"""

from fractions import Fraction
from typing import NamedTuple

from spec.oracle import listed, rules
from spec.oracle.common import OUT, SAT, floor_log2
from spec.oracle.scalar import INFINITE, NAN, NUMBER, Value, decode, encode, exact, facts
from spec.oracle.tiles import tiles

EXPONENT_RULES = tuple(rules.THRESHOLDS)


class Quantised(NamedTuple):
    """Codes of the elements, scale codes of the tiles, the tensor's own scale code, offsets of every level of
    subtiles that has some, zero-point codes of the tiles; None where absent."""

    codes: list
    scales: list
    outer: int
    offsets: tuple = ()
    zeros: list = None


class Choices(NamedTuple):
    """What a recipe's name says (BLOCK-16)."""

    rule: str
    zero_tile: str = "lowest"
    nan_tile: str = "nan"
    inf_tile: str = "nan"
    tiny_tile: str = "clamp"
    rounding: str = "rne"


class Tile(NamedTuple):
    """A tile's scale code, the values of its shared number, and whether its elements all become zero."""

    code: int
    step: Fraction
    dead: bool = False
    zero: int = None


def choices(recipe, block):
    """`ocp,rule=rceil,zero_tile=one`: the data type's own rule and the usual choices, but for those named."""
    name, *changes = recipe.split(",")
    usual = Choices(block["rule"], rounding="rna" if name == "hif4" else "rne")                 # RULE-9
    return usual._replace(**dict(part.strip().split("=") for part in changes))


# --- numbers of either kind of format -------------------------------------------------------------

def is_listed(fmt):
    return isinstance(fmt, dict) and fmt["kind"] not in ("float", "int")


def value_of(code, fmt):
    """The Value of a code of any format."""
    if not is_listed(fmt):
        return decode(code, fmt)
    found = listed.decode(code, fmt)
    if isinstance(found, str):
        return Value(NAN) if found == "nan" else Value(INFINITE, found == "-inf")
    return Value(NUMBER, found < 0 or listed.is_minus_zero(code, fmt), abs(found))


def code_of(v, fmt, rounding="rne", random=None):
    """The code that a Value becomes, saturated (BLOCK-4)."""
    if not is_listed(fmt):
        return encode(v, fmt, rounding, SAT, random=random)
    if v.kind != NUMBER:
        return listed.encode("nan" if v.kind == NAN else "-inf" if v.negative else "inf", fmt, rounding)
    return listed.encode(signed(v), fmt, rounding)


def signed(v):
    """The number of a Value that is one."""
    return -v.magnitude if v.negative else v.magnitude


def _top(fmt):
    """The largest finite value of a format."""
    if not is_listed(fmt):
        return rules.largest(fmt)
    if fmt["kind"] == "codebook":
        return max(Fraction(value) for value in fmt["values"])
    last = {"hifloat8": lambda: 0x6E, "lns": lambda: (1 << (fmt["bits"] - 2)) - 1}
    return value_of(last.get(fmt["kind"], lambda: (1 << (fmt["bits"] - 1)) - 1)(), fmt).magnitude


def shared_exponent(rule, amax, element):
    """RULE-1: the exponent of the scale before it is clamped."""
    if is_listed(element):
        if rule != "floor":
            raise ValueError(f"rule {rule!r} has no threshold for a listed format")
        return floor_log2(amax) - floor_log2(_top(element))
    return rules.shared_exponent(rule, amax, element)


# --- largest magnitudes ---------------------------------------------------------------------------

LARGEST = "largest"


def amax_of(values, how):
    """The largest magnitude of a tile; None where it makes the scale a NaN, LARGEST where it makes it the
    largest one (BLOCK-6, BLOCK-16)."""
    if any(v.kind == NAN for v in values) and how.nan_tile == "nan":
        return None
    if any(v.kind == INFINITE for v in values) and how.inf_tile != "ignored":
        return None if how.inf_tile == "nan" else LARGEST
    return max((v.magnitude for v in values if v.kind == NUMBER), default=Fraction(0))


# --- scales ---------------------------------------------------------------------------------------

def outer_scale(amaxes, block, formats):
    """BLOCK-10: the code of the tensor's own scale; tiles with a NaN or an infinity do not count."""
    amax = max((a for a in amaxes if a not in (None, LARGEST)), default=Fraction(0))
    fmt = formats[block["outer"]]
    if amax == 0:
        return encode(exact(1), fmt, "rne", SAT)
    return rules.float_scale(amax / (_top(formats[block["element"]]) * _top(formats[block["scale"]])), fmt)


def _shared(code, scale, outer=1, dead=False, zero=None):
    """A tile of that scale code; of a NaN there is no step."""
    v = value_of(code, scale)
    return Tile(code, v.magnitude * outer if v.kind == NUMBER else None, dead or v.kind == NAN, zero)


def zero_or_special(amax, scale, how):
    """BLOCK-5, BLOCK-6, BLOCK-16: the scale code of a tile of zeros, NaNs or infinities, else None."""
    if amax is None:
        return code_of(Value(NAN), scale)
    if amax == LARGEST:
        return code_of(Value(INFINITE), scale)
    if amax == 0:
        lowest = code_of(exact(0), scale) if is_listed(scale) else 0
        return lowest if how.zero_tile == "lowest" else code_of(exact(1), scale)
    return None


def exponent_tile(amax, element, scale, how):
    """BLOCK-3, BLOCK-7, RULE-1 to RULE-6: the shared power of two."""
    k = shared_exponent(how.rule, amax, element)
    lowest = _bottom(scale)
    highest = floor_log2(_top(scale))
    code = code_of(exact(Fraction(2) ** min(max(k, lowest), highest)), scale)
    return _shared(code, scale, dead=k < lowest and how.tiny_tile == "flush")


def _bottom(scale):
    """The least exponent of an exponent format."""
    return 1 - 2 ** (scale["bits"] - 1) if is_listed(scale) else -facts(scale).bias         # LIST-8


def float_tile(ratio, scale, how, outer=1):
    """BLOCK-9: a positive ratio as a scale: to nearest, saturated, not zero unless tiny tiles are flushed."""
    code = encode(exact(ratio), scale, "rne", SAT)
    if decode(code, scale).magnitude == 0:
        return _shared(1, scale, outer) if how.tiny_tile == "clamp" else _shared(0, scale, outer, dead=True)
    return _shared(code, scale, outer)


def ratio_of(values, amax, element, how, outer):
    """BLOCK-9, BLOCK-10, RULE-7, RULE-9: what a float scale is before it is rounded."""
    finite = [v.magnitude for v in values if v.kind == NUMBER]
    match how.rule:
        case "amax":
            return amax / (_top(element) * outer)
        case "absmean":
            return sum(finite) / Fraction(len(finite))
        case "hif4":
            return amax / 7
    raise ValueError(f"scale rule {how.rule!r} is not known")


def scale_of(values, amax, block, formats, how, outer):
    """One Tile; outer is the tensor's own scale, or 1."""
    element, scale = formats[block["element"]], formats[block["scale"]]
    code = zero_or_special(amax, scale, how)
    if how.rule == "minmax":
        return minmax_tile(values, code, element, scale, formats[block["zero"]], how)
    if code is not None:
        return _shared(code, scale, outer)
    if how.rule in EXPONENT_RULES:
        return exponent_tile(amax, element, scale, how)
    return float_tile(ratio_of(values, amax, element, how, outer), scale, how, outer)


def minmax_tile(values, code, element, scale, zero, how):
    """BLOCK-14, RULE-8: scale and zero point; code is that of a tile of zeros or with a NaN, else None."""
    if code is not None:
        return _shared(code, scale, zero=0)
    finite = [signed(v) for v in values if v.kind == NUMBER]
    low, high = min([Fraction(0), *finite]), max([Fraction(0), *finite])
    tile = float_tile((high - low) / _top(element), scale, how)
    if tile.dead:
        return tile._replace(zero=0)
    point = -low / tile.step if facts(zero).integer else -low
    return tile._replace(zero=encode(exact(point), zero, "rne", SAT))


# --- subtiles -------------------------------------------------------------------------------------

def exponent_offsets(subtiles, owners, shared, element, scale, bits, how):
    """BLOCK-15: the offset of every subtile, a list of Values in the tile of that number among owners."""
    found = []
    for values, owner in zip(subtiles, owners):
        tile, amax = shared[owner], amax_of(values, how)
        if tile.step is None or amax == LARGEST:
            found.append(0)
            continue
        room = (1 << bits) - 1
        k = floor_log2(tile.step)
        found.append(room if amax == 0 else max(0, min(k - shared_exponent(how.rule, amax, element), room)))
    return found


def hif4_bits(subtiles, owners, shared, threshold, before, how):
    """RULE-9: 1 where an amax reaches threshold times s times 2 to the bits of the level before."""
    found = []
    for place, (values, owner) in enumerate(zip(subtiles, owners)):
        tile, amax = shared[owner], amax_of(values, how)
        if tile.dead:
            found.append(0)
        elif amax == LARGEST:
            found.append(1)
        else:
            found.append(int(amax >= threshold * tile.step * 2 ** before[place] and amax > 0))
    return found


def offsets_of(values, shape, axis, block, formats, shared, owner, how):
    """The offsets of every level, and for every value the exponent that they add to its tile's step."""
    powers, levels = [0] * len(values), []
    for level, (size, bits) in enumerate(block.get("subtiles") or ()):
        if not bits:
            continue
        cut = tiles(shape, axis, size)
        subtiles, owners = [[values[i] for i in part] for part in cut], [owner[part[0]] for part in cut]
        if how.rule == "hif4":
            before = [powers[part[0]] for part in cut]
            found = hif4_bits(subtiles, owners, shared, 2 if level else 4, before, how)
        else:
            element, scale = formats[block["element"]], formats[block["scale"]]
            found = exponent_offsets(subtiles, owners, shared, element, scale, bits, how)
        levels.append(found)
        for part, offset in zip(cut, found):
            for i in part:
                powers[i] += offset if how.rule == "hif4" else -offset
    return tuple(levels), powers


# --- quantise -------------------------------------------------------------------------------------

def quantise(values, shape, axis, block, formats, rounding=None, random=None, recipe=None, outer=None):
    """Codes, scale codes and all else of an array of Values (BLOCK-1 to BLOCK-10, BLOCK-14 to BLOCK-16).

    random holds one (R, N) per element; outer, where given, is the tensor's own scale code; rounding is that
    of the elements, by default the recipe's.
    """
    element, random = formats[block["element"]], random or [None] * len(values)
    how = choices(recipe or block["recipe"], block)
    rounding = rounding or how.rounding
    if block["scale"] is None:
        return Quantised([code_of(v, element, rounding, r) for v, r in zip(values, random)], None, None)
    cut = tiles(shape, axis, block["tile"])
    amaxes = [amax_of([values[i] for i in tile], how) for tile in cut]
    if block["outer"] and outer is None:
        outer = outer_scale(amaxes, block, formats)
    outer_value = decode(outer, formats[block["outer"]]).magnitude if block["outer"] else Fraction(1)
    shared = [scale_of([values[i] for i in tile], amax, block, formats, how, outer_value)
              for tile, amax in zip(cut, amaxes)]
    owner = {i: number for number, tile in enumerate(cut) for i in tile}
    offsets, powers = offsets_of(values, shape, axis, block, formats, shared, owner, how)
    zero_code = code_of(exact(0), element)
    codes = [zero_code] * len(values)
    for tile, own in zip(cut, shared):
        for i in () if own.dead else tile:                     # BLOCK-6: the scale says it all
            if block.get("zero"):
                codes[i] = asymmetric_code(values[i], own, element, formats[block["zero"]], rounding)
            else:
                step = own.step * Fraction(2) ** powers[i] if powers[i] else own.step
                codes[i] = element_code(values[i], step, element, rounding, random[i])
    zeros = [own.zero for own in shared] if block.get("zero") else None
    return Quantised(codes, [own.code for own in shared], outer, offsets, zeros)


def element_code(v, step, element, rounding, random=None):
    """BLOCK-4, BLOCK-5: one element, divided exactly by its step and rounded once."""
    quotient = v.magnitude / step if v.magnitude else v.magnitude
    return code_of(v._replace(magnitude=quotient), element, rounding, random)


WIDE = {"kind": "int", "bits": 2400, "frac": 0, "signed": True, "encoding": "twos"}     # than any quotient


def asymmetric_code(v, tile, element, zero, rounding):
    """BLOCK-14: an integer element beside a zero point; a NaN counts as 0, an infinity as an extreme."""
    point, high = decode(tile.zero, zero), facts(element).high
    if v.kind == INFINITE:
        return 0 if v.negative else high
    x = Fraction(0)
    if v.kind == NUMBER and tile.step:
        x = (signed(v) if facts(zero).integer else signed(v) + signed(point)) / tile.step
    q = to_integer(x, rounding) + (signed(point) if facts(zero).integer else 0)
    return int(min(max(q, 0), high))


def to_integer(x, rounding):
    """A Fraction rounded to an integer."""
    code = encode(exact(x), WIDE, rounding, SAT)
    return code - (1 << WIDE["bits"]) if code >> (WIDE["bits"] - 1) else code


# --- dequantise -----------------------------------------------------------------------------------

def product(a, b):
    """The exact product of two Values: NaN if either is NaN or it is infinity times zero."""
    kinds = a.kind, b.kind
    if NAN in kinds or (INFINITE in kinds and any(v.kind == NUMBER and v.magnitude == 0 for v in (a, b))):
        return Value(NAN)
    negative = a.negative != b.negative
    if INFINITE in kinds:
        return Value(INFINITE, negative)
    return Value(NUMBER, negative, a.magnitude * b.magnitude)


def difference(a, b):
    """The exact difference of two Values: NaN if either is or both are the same infinity; a zero is +0."""
    if NAN in (a.kind, b.kind) or (a.kind == b.kind == INFINITE and a.negative == b.negative):
        return Value(NAN)
    if INFINITE in (a.kind, b.kind):
        return a if a.kind == INFINITE else b._replace(negative=not b.negative)
    return exact(signed(a) - signed(b))


def dequantise(q, shape, axis, block, formats, dtype):
    """BLOCK-11, BLOCK-14, BLOCK-15: codes of dtype for every element: the exact value, rounded once."""
    values = [value_of(c, formats[block["element"]]) for c in q.codes]
    for number, tile in enumerate(tiles(shape, axis, block["tile"]) if q.scales is not None else ()):
        scale = value_of(q.scales[number], formats[block["scale"]])
        zero = decode(q.zeros[number], formats[block["zero"]]) if q.zeros is not None else None
        for i in tile:
            if zero is None:
                values[i] = product(values[i], scale)
            elif facts(formats[block["zero"]]).integer:
                values[i] = product(difference(values[i], zero), scale)
            else:
                values[i] = difference(product(values[i], scale), zero)
    levels = [size for size, bits in block.get("subtiles") or () if bits]
    for size, offsets in zip(levels, q.offsets):
        sign = 1 if block["rule"] == "hif4" else -1            # RULE-9: a bit raises the exponent
        for part, offset in zip(tiles(shape, axis, size), offsets):
            for i in part:
                values[i] = product(values[i], exact(Fraction(2) ** (sign * offset)))
    if q.outer is not None:
        values = [product(v, decode(q.outer, formats[block["outer"]])) for v in values]
    return [encode(v, dtype, "rne", OUT) for v in values]


# --- storage --------------------------------------------------------------------------------------

def pack(codes, bits):
    """PACK-1: one stream of bits, least significant first, zeros to the end of the last byte."""
    stream = 0
    for place, code in enumerate(codes):
        stream |= code << (place * bits)
    return stream.to_bytes((len(codes) * bits + 7) // 8, "little")


def unpack(data, bits, count):
    """PACK-1 backwards."""
    stream = int.from_bytes(data, "little")
    return [stream >> (place * bits) & ((1 << bits) - 1) for place in range(count)]
