"""From tiles to scales: the first two stages of the quantiser.

1. The largest magnitude of every tile and subtile, from exponent and significand bits.
2. A scale rule turns them into codes of the scale format and into what the values are divided by. There are few
   of these, so float64 is affordable. Sources are cut to SOURCE_BITS significant bits first, by rounding to
   odd, which keeps their order against every product of at most one bit less (quantize.py has the proof).
"""

from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from refq.blocks.rows import Block
from refq.blocks.rules import Rule
from refq.blocks.tiles import Tiles
from refq.formats import codec
from refq.formats.definition import CHUNK
from refq.formats.names import number_format

OVERFLOW = "sat"            # what scales and zero points do beyond their range (Spec: BLOCK-4)
SOURCE_BITS = 51

ZERO_TILES = {"lowest": "code 0", "one": "the code of 1"}
NAN_TILES = {"nan": "the scale's NaN, elements 0", "ignored": "the scale of the finite values"}
INF_TILES = {"nan": "the scale's NaN, elements 0", "ignored": "the scale of the finite values",
             "largest": "the largest scale"}
TINY_TILES = {"clamp": "the smallest positive scale", "flush": "code 0, elements 0"}
BOTTOMS = {"scale": "values of tiles with code 0 are divided by what it means",
           "normal": "values of tiles with code 0 are divided by 2^-126, float32's smallest normal number",
           "one": "values of tiles with code 0 are divided by 1"}

# Words of exponent scales that belong to stacks: no recipe's name may change to them (Spec: BLOCK-16, REC-1).
ZERO_TILES_OF_STACKS = {"normal": "the scale of a tile of 2^-126"}
NAN_TILES_OF_STACKS = {"lowest": "code 0", "lost": "code 0, and every value taken for a NaN"}
INF_TILES_OF_STACKS = {"binade": "the scale of a tile of 2^128", "lost": NAN_TILES_OF_STACKS["lost"]}


class Choices(NamedTuple):
    """What a recipe decides about scales, in words of the tables above (Spec: BLOCK-5 to BLOCK-7)."""

    rule: Rule
    zero: str = "lowest"
    nan: str = "nan"
    inf: str = "nan"
    tiny: str = "clamp"
    bottom: str = "scale"


class Scales(NamedTuple):
    """The scales of all tiles.

    codes: (tiles,) scale codes. divisor: (tiles, units), float64, what the values of each unit (the smallest
    subtile, or the tile) are divided by; nonzero and finite where quotients are exact. Recipes with a way of
    dividing of their own (recipes.py) have there what that way takes.
    dead: (tiles,) whether all elements of a tile become code 0.
    tensor_scale: float32, or None. offsets: (tiles, parts) of each level of subtiles with offsets.
    zeros: (tiles,) zero-point codes, or None.
    """

    codes: np.ndarray
    divisor: np.ndarray
    dead: np.ndarray
    tensor_scale: np.float32 | None = None
    offsets: tuple = ()
    zeros: np.ndarray | None = None


def scales_of(flat, tiles: Tiles, block: Block, choices: Choices, tensor_scale=None) -> Scales:
    """The exact scales of tiles in rows, (tiles, values). Spec: BLOCK-3 to BLOCK-10, BLOCK-14, BLOCK-15."""
    if choices.rule.name == "minmax":
        return _minmax(flat, block, choices)
    ignored = choices.nan == "ignored", choices.inf == "ignored"
    unit = tiles.unit[0] * tiles.unit[1]
    units = amax(flat, unit, *ignored).reshape(len(flat), tiles.values // unit)
    whole = amax(units, units.shape[1]) if units.shape[1] > 1 else units[:, 0]
    if choices.rule.kind == "exponent":
        return _exponents(whole, units, block, choices)
    if choices.rule.name == "hif4":
        return _hif4(whole, units, block, choices)
    return _floats(flat, tiles, whole, block, choices, tensor_scale)


# ------------------------------------------------------------------------------------------------------------
# magnitudes

def amax(values, size: int, no_nan=False, no_inf=False):
    """Largest magnitude of each run of `size` values of a C-contiguous array, as floats, flat.

    A NaN or infinity wins, as its bits are the largest; no_nan and no_inf leave them out.
    """
    kind = np.dtype(f"u{values.itemsize}").type
    words = values.view(kind).reshape(-1)
    count = words.size // size
    found = np.zeros(count, kind)
    magnitude = kind((1 << (8 * values.itemsize - 1)) - 1)
    infinity = np.array(np.inf, values.dtype).view(kind)
    step = max(1, CHUNK // size)
    buffer = np.empty(min(words.size, step * size), kind)
    for start in range(0, count, step):
        part = words[start * size: (start + step) * size]
        room = np.bitwise_and(part, magnitude, out=buffer[: part.size])
        if no_nan:
            room[room > infinity] = 0
        if no_inf:
            room[room == infinity] = 0
        out = found[start: start + step]
        if size > 8:
            np.maximum.reduceat(room, np.arange(0, part.size, size), out=out)
        else:
            out[...] = room[::size]
            for place in range(1, size):
                np.maximum(out, room[place::size], out=out)
    return found.view(values.dtype)


def to_odd(values):
    """float64 rounded to odd at SOURCE_BITS significant bits; infinities and NaN stay what they are."""
    kept = sticky(values.view(np.uint64), 53 - SOURCE_BITS).view(np.float64)
    return np.where(np.isnan(values), values, kept)


def sticky(words, count: int):
    """uint64 without their `count` low bits, which are or-ed into the last bit that stays."""
    low = np.uint64((1 << count) - 1)
    return (words | ((words & low) + low)) & ~low


def sum_to_odd(a, b):
    """a + b in float64, rounded to odd at 53 bits; the sum must not be beyond float64."""
    total = a + b
    back = total - a
    rest = (a - (total - back)) + (b - back)        # what the sum lost, exactly (TwoSum)
    words = total.view(np.int64)
    outward = (rest > 0) == (total > 0)             # the exact sum lies further from zero
    lost = (rest != 0) & (words & 1 == 0) & np.isfinite(total)
    return np.where(lost, words + np.where(outward, 1, -1), words).view(np.float64)


# ------------------------------------------------------------------------------------------------------------
# exponent scales

@lru_cache(maxsize=256)
def exponents(name: str) -> tuple[int, int, np.ndarray]:
    """(lowest exponent, highest exponent, code of every exponent from the lowest) of an exponent format."""
    row = number_format(name)
    if row.is_listed:
        return row.lowest_exponent, row.highest_exponent, row.exponent_codes
    return row.layout.qmin, row.emax, np.arange(row.emax - row.layout.qmin + 1)


def nan_code(row) -> int:
    """The code of a scale format's canonical NaN (BLOCK-6)."""
    return int(codec.encode(np.full(1, np.nan), row, "rne", OVERFLOW)[0])


def _exponents(whole, units, block: Block, choices: Choices) -> Scales:
    """Spec: BLOCK-3, BLOCK-5 to BLOCK-7, BLOCK-15, RULE-1 to RULE-6."""
    past = choices.rule.past(block.elements)
    scales = power_scales(shared_exponent(whole, block.elements.emax, past), whole, block, choices)
    bits = sum(block.offset_bits)
    if not bits:
        return scales
    lowest = exponents(block.scale_row.name)[0]
    exponent = np.frexp(scales.divisor)[1] - 1
    inner = shared_exponent(units, block.elements.emax, past)
    if not units.all():
        inner[units == 0] = lowest - 64
    if not np.isfinite(units).all():
        inner[np.isinf(units)] = 1 << 20
    offset = np.subtract(exponent, inner, out=inner)
    np.clip(offset, 0, (1 << bits) - 1, out=offset)
    offset[scales.codes == nan_code(block.scale_row)] = 0
    kept = offset.astype(np.uint8)
    words = np.subtract(exponent, offset, dtype=np.int64) + 1023        # 2^(exponent - offset) by its bits
    return scales._replace(divisor=(words << 52).view(np.float64), offsets=(kept,))


def power_scales(found, whole, block: Block, choices: Choices) -> Scales:
    """Scales from shared exponents that are not clamped yet; `whole` is the amaxes, which show odd tiles."""
    row = block.scale_row
    lowest, highest, code_of = exponents(row.name)
    exponent, zero, dead, lost = np.clip(found, lowest, highest), whole == 0, np.isnan(whole), None
    first = -126 - block.elements.emax
    one = min(max(0, lowest), highest)
    exponent[zero] = {"lowest": lowest, "one": one, "normal": max(first, lowest)}[choices.zero]
    if not np.isfinite(whole).all():
        infinite, past = np.isinf(whole), 128 - block.elements.emax
        top = {"largest": highest, "binade": min(past, highest), "lost": lowest}.get(choices.inf)
        lost = dead & (choices.nan == "lost") | infinite & (choices.inf == "lost")
        exponent[dead] = lowest if choices.nan in ("lowest", "lost") else 0
        exponent[infinite] = 0 if top is None else top
        dead = dead & (choices.nan == "nan") | infinite & (top is None)
    codes = np.where(dead, nan_code(row), code_of[exponent - lowest]).astype(codec.code_dtype(row))
    divisor = np.ldexp(1.0, exponent)
    if choices.bottom != "scale":
        divisor[codes == 0] = {"normal": 2.0 ** -126, "one": 1.0}[choices.bottom]
    if lost is not None:
        divisor[lost] = np.nan
    if choices.tiny == "flush":
        dead = dead | (found < lowest) & ~zero & np.isfinite(whole)
    return Scales(codes, divisor[:, None], dead)


def shared_exponent(amax, emax: int, past) -> np.ndarray:
    """floor(log2 amax) - emax, and one more past the threshold; exponents of zeros and infinities mean nothing."""
    fraction, exponent = np.frexp(amax)
    exponent -= 1 + emax
    if past is not None:
        threshold, itself = past[0] / 2, past[1]                 # frexp's fractions lie below 1
        reached = np.asarray(float(threshold), amax.dtype)
        assert Fraction(float(reached)) == threshold
        exponent += fraction >= reached if itself else fraction > reached
    return exponent


# ------------------------------------------------------------------------------------------------------------
# float scales

def _floats(flat, tiles: Tiles, whole, block: Block, choices: Choices, tensor_scale) -> Scales:
    """Spec: BLOCK-5 to BLOCK-7, BLOCK-9, BLOCK-10, BLOCK-16, RULE-7."""
    row, largest = block.scale_row, float(block.elements.max)
    sizes = _sizes(whole)
    if block.outer and tensor_scale is None:
        overall = sizes.max(initial=0.0)
        ratio = np.array([overall / (largest * float(row.max))])
        fitted = positive_scale(ratio, np.array([True]), number_format(block.outer))[1][0]
        tensor_scale = np.float32(fitted if overall else 1.0)
    outer = 1.0 if tensor_scale is None else float(tensor_scale)
    if choices.rule.name == "absmean":
        valid = tiles.valid()
        counts = np.full(len(flat), flat.shape[1]) if valid is None else valid.sum(axis=1)
        ratios = _means(flat, sizes, counts, row)
    else:
        ratios = sizes / (largest * outer)
    codes, values = positive_scale(ratios, (sizes > 0) & (choices.tiny == "clamp"), row)
    return _finish(codes, values, whole, outer, tensor_scale, row, choices)


def _sizes(whole):
    """Largest magnitudes in float64, fit for a division; 0 for infinities and NaN."""
    wide = whole.astype(np.float64) if whole.dtype == np.float32 else to_odd(whole)
    finite = np.isfinite(wide)
    return wide if finite.all() else np.where(finite, wide, 0)


def _finish(codes, values, whole, outer, tensor_scale, row, choices) -> Scales:
    """Tiles of zeros, NaN and infinities, and those flushed, under float scales; divisors. Spec: BLOCK-16."""
    dead = np.zeros(len(whole), bool)
    if values.all() and whole.all() and np.isfinite(whole).all():        # no odd tile: nothing to see to
        return Scales(codes, (values * outer)[:, None], dead, tensor_scale)
    largest = np.isinf(whole) & (choices.inf == "largest")
    zero, broken = whole == 0, ~np.isfinite(whole) & ~largest
    flushed = (values == 0) & ~zero & ~largest & ~broken
    one = codec.encode(np.ones(1), row, "rne", OVERFLOW)[0]
    most = codec.encode(np.full(1, np.inf), row, "rne", OVERFLOW)[0]
    special = [(zero, one if choices.zero == "one" else 0), (broken, nan_code(row)), (largest, most)]
    for which, code in special:
        codes = np.where(which, code, codes).astype(codes.dtype)
    values = np.where(largest, float(row.max), values)
    divisor = np.where(zero | flushed | broken, 1.0, values * outer)[:, None]
    return Scales(codes, divisor, broken | flushed, tensor_scale)


def positive_scale(quotients, positive, row):
    """Codes and values of quotients rounded to nearest even; no zero where `positive` says so (BLOCK-9)."""
    codes = codec.encode(quotients, row, "rne", OVERFLOW)
    if row.has_zero:
        codes[positive & (codes == 0)] = 1
    return codes, codec.decode(codes, row, np.float64)


def _means(flat, sizes, counts, row):
    """Mean finite magnitudes fit for one rounding: sums in float64 unless that is close. Spec: RULE-7."""
    finite = np.isfinite(flat)
    if not finite.all():
        flat, counts = np.where(finite, flat, 0), np.maximum(counts - (~finite).sum(axis=1), 1)
    means = np.where(sizes > 0, np.abs(flat, dtype=np.float64).sum(axis=1) / counts, 0)
    slack = 1 + flat.shape[1] * 2.0 ** -52              # of summing and dividing in float64, generously
    low, high = (codec.encode(part, row, "rne", OVERFLOW) for part in (means / slack, means * slack))
    for tile in np.flatnonzero(low != high):
        means[tile] = _odd_float(sum(Fraction(abs(float(value))) for value in flat[tile]) / int(counts[tile]))
    return means


def _odd_float(value: Fraction) -> float:
    """A positive fraction rounded to odd in float64."""
    near = float(value)
    below = near if Fraction(near) <= value else float(np.nextafter(near, 0))
    odd = Fraction(below) == value or np.float64(below).view(np.uint64) & np.uint64(1)
    return below if odd else float(np.nextafter(below, np.inf))


def _hif4(whole, units, block: Block, choices: Choices) -> Scales:
    """A scale of amax / 7 and two levels of one-bit exponents. Spec: RULE-9."""
    row, sizes = block.scale_row, _sizes(whole)
    codes, values = positive_scale(sizes / 7, (sizes > 0) & (choices.tiny == "clamp"), row)
    scales = _finish(codes, values, whole, 1.0, None, row, choices)
    step = scales.divisor
    small = np.where((scales.codes == nan_code(row))[:, None], 0, units.astype(np.float64))
    group = block.subtiles[0][0] // block.subtiles[1][0]        # units of a larger subtile
    large = amax(small, group).reshape(len(small), small.shape[1] // group)
    first = ((large >= 4 * step) & (large > 0)).astype(np.uint8)
    wide = np.repeat(first, group, axis=1)
    second = ((small >= np.ldexp(2 * step, wide)) & (small > 0)).astype(np.uint8)
    factor = np.ldexp(1.0, wide + second.astype(np.int64))
    return scales._replace(divisor=step * factor, offsets=(first, second))


# ------------------------------------------------------------------------------------------------------------
# asymmetric integers

def _minmax(flat, block: Block, choices: Choices) -> Scales:
    """Spec: BLOCK-14, BLOCK-16, RULE-8."""
    starts = np.arange(0, flat.size, flat.shape[1])
    line = flat.reshape(-1)
    for ignored, test in ((choices.nan, np.isnan), (choices.inf, np.isinf)):
        line = np.where(test(line), line.dtype.type(0), line) if ignored == "ignored" else line
    low = np.minimum(np.minimum.reduceat(line, starts) if flat.size else line[:0], 0).astype(np.float64)
    high = np.maximum(np.maximum.reduceat(line, starts) if flat.size else line[:0], 0).astype(np.float64)
    ends = high - low                                   # NaN and infinite where a value is
    odd = ~(np.isfinite(low) & np.isfinite(high))
    low, high = np.where(odd, 0, low), np.where(odd, 0, high)
    span, row = to_odd(sum_to_odd(high, -low)), block.scale_row
    positive = (span > 0) & (choices.tiny == "clamp")
    codes, values = positive_scale(span / float(block.elements.max), positive, row)
    scales = _finish(codes, values, np.where(odd, ends, np.minimum(span, 1)), 1.0, None, row, choices)
    zero = 0.0 - low                                    # +0 where the range begins there
    if not block.zero_row.is_float:
        zero = to_odd(zero) / scales.divisor[:, 0]
    zeros = codec.encode(zero, block.zero_row, "rne", OVERFLOW)
    zeros[odd | scales.dead] = 0
    return scales._replace(zeros=zeros)
