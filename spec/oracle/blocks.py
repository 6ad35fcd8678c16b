"""Many numbers that share a scale: cut into tiles, choose each tile's scale, round the elements, and back.

Written from spec/blocks.md and packing.md. A data type arrives as a dict {"element", "scale", "tile", "rule",
"outer", "recipe"}; formats maps the format names in it to dicts as scalar.py wants them. Arrays are flat
lists in row-major order with a shape beside them.
"""

from fractions import Fraction
from math import prod
from typing import NamedTuple

from spec.oracle.scalar import NAN, NUMBER, INFINITE, Value, decode, encode, exact, facts

SAT = {"above": ("max",), "infinite": ("max",), "nan": ("nan", "+max"), "nan_int": "zero",          # OVER-2
       "nan_code": "quiet", "stop": "never", "negative": ("max",), "zero": "min", "lowest": "full",
       "exceptions": ()}
OUT = dict(SAT, above=("inf", "nan", "max"), infinite=("inf", "nan", "max"),                       # BLOCK-11
           negative=("nan", "max"))


class Quantised(NamedTuple):
    """Codes of the elements, scale codes of the tiles, the tensor's own scale code; None where absent."""

    codes: list
    scales: list
    outer: int


# --- tiles ----------------------------------------------------------------------------------------

def tiles(shape, axis, tile):
    """BLOCK-1, BLOCK-8: the flat indices of every tile, in the order of the scales."""
    if tile == "tensor":
        return [list(range(prod(shape)))]
    length = shape[axis]
    before, after = prod(shape[:axis % len(shape)]), prod(shape[axis % len(shape) + 1:])
    size = max(length, 1) if tile == "channel" else tile
    return [[(i * length + j) * after + k for j in range(start, min(start + size, length))]
            for i in range(before) for start in range(0, length, size) for k in range(after)]


def _amax(values):
    """The largest magnitude of a tile; None when it holds a NaN or an infinity (BLOCK-6)."""
    if any(v.kind != NUMBER for v in values):
        return None
    return max((v.magnitude for v in values), default=Fraction(0))


def _top(fmt):
    """The largest finite value of a format."""
    f = facts(fmt)
    return f.high * Fraction(2) ** f.quantum


# --- scales ---------------------------------------------------------------------------------------

def floor_log2(x):
    """The largest k with 2**k <= x, for a positive Fraction."""
    k = x.numerator.bit_length() - x.denominator.bit_length()
    return k if Fraction(2) ** k <= x else k - 1


def floor_scale(amax, element, scale):
    """BLOCK-3, BLOCK-7: the code of the shared power of two under the floor rule."""
    s = facts(scale)
    shared = floor_log2(amax) - floor_log2(_top(element))
    return min(max(shared + s.bias, 0), s.top)


def amax_scale(ratio, scale):
    """BLOCK-9: a positive ratio as a scale code: to nearest, never zero, never past the largest."""
    code = encode(exact(ratio), scale, "rne", SAT)
    return code or 1


def outer_scale(amaxes, block, formats):
    """BLOCK-10: the code of the tensor's own scale; tiles with a NaN or an infinity do not count."""
    amax = max((a for a in amaxes if a is not None), default=Fraction(0))
    fmt = formats[block["outer"]]
    if amax == 0:
        return encode(exact(1), fmt, "rne", SAT)
    return amax_scale(amax / (_top(formats[block["element"]]) * _top(formats[block["scale"]])), fmt)


def tile_scale(amax, block, formats, recipe, outer):
    """The scale code of one tile (BLOCK-3, 5, 6, 7, 9, 10); outer is the tensor's own scale, or 1."""
    element, scale = formats[block["element"]], formats[block["scale"]]
    if amax is None:
        return encode(Value(NAN), scale, "rne", SAT)
    if amax == 0:
        return 0
    if recipe == "ocp":
        return floor_scale(amax, element, scale)
    return amax_scale(amax / (_top(element) * outer), scale)


# --- quantise -------------------------------------------------------------------------------------

def quantise(values, shape, axis, block, formats, rounding="rne", random=None, recipe=None, outer=None):
    """Codes, scale codes and outer scale code of an array of Values (BLOCK-1..10).

    random holds one (R, N) per element; outer, where given, is the tensor's own scale code.
    """
    element = formats[block["element"]]
    random = random or [None] * len(values)
    if block["scale"] is None:
        codes = [encode(v, element, rounding, SAT, random=r) for v, r in zip(values, random)]
        return Quantised(codes, None, None)
    recipe = recipe or block["recipe"]
    cut = tiles(shape, axis, block["tile"])
    amaxes = [_amax([values[i] for i in tile]) for tile in cut]
    if block["outer"] and outer is None:
        outer = outer_scale(amaxes, block, formats)
    outer_value = decode(outer, formats[block["outer"]]).magnitude if block["outer"] else Fraction(1)
    codes, scales = [0] * len(values), []
    for tile, amax in zip(cut, amaxes):
        scales.append(tile_scale(amax, block, formats, recipe, outer_value))
        if amax is None:
            continue                                           # BLOCK-6: the scale says it all
        step = decode(scales[-1], formats[block["scale"]]).magnitude * outer_value
        for i in tile:
            codes[i] = element_code(values[i], step, element, rounding, random[i])
    return Quantised(codes, scales, outer)


def element_code(v, step, element, rounding, random=None):
    """BLOCK-4, BLOCK-5: one element, divided exactly by its step and rounded once."""
    quotient = v.magnitude / step if v.magnitude else v.magnitude
    return encode(v._replace(magnitude=quotient), element, rounding, SAT, random=random)


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


def dequantise(q, shape, axis, block, formats, dtype):
    """BLOCK-11: codes of dtype for every element: the exact product, rounded once."""
    element = formats[block["element"]]
    values = [decode(c, element) for c in q.codes]
    if q.scales is not None:
        for tile, code in zip(tiles(shape, axis, block["tile"]), q.scales):
            for i in tile:
                values[i] = product(values[i], decode(code, formats[block["scale"]]))
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
