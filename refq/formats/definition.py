"""The definition of every conversion, in integers: source code -> sign, significand, exponent -> rounding rule ->
overflow rule -> target code. Everything faster is a table that these functions fill (fast.py).
"""

from dataclasses import dataclass

import numpy as np

from refq.formats import listed
from refq.formats.policies import STOPS, Remainder, rounding_rule
from refq.formats.rows import Row
from refq.formats.values import Layout, is_nan

CHUNK = 1 << 15             # elements per pass: working buffers stay in L2
_U64 = np.uint64


def code_dtype(row: Row) -> np.dtype:
    """The smallest unsigned integer dtype that holds the codes of a format."""
    return np.dtype(next(f"u{size}" for size in (1, 2, 4, 8) if row.width <= 8 * size))


def chunks(size: int, step: int = CHUNK):
    """Slices of at most `step` values; one empty slice for none."""
    starts = range(0, size, step) if size else (0,)
    return (slice(start, min(start + step, size)) for start in starts)


@dataclass(frozen=True)
class Parts:
    """Source values taken apart: significand m (top bit at 63, or 0 for zero) and exponent of that top bit."""

    negative: np.ndarray
    m: np.ndarray
    exponent: np.ndarray
    nan: np.ndarray
    inf: np.ndarray
    trailing: np.ndarray    # trailing significand field, for NaN payloads


def convert_words(codes, source: Row, target: Row, rule, limits, random_bits=None, width=0):
    """Flat source codes to flat target codes, by the exact rules. Spec: ROUND-1 to ROUND-7, OVER-1 to OVER-8."""
    parts = take_apart(codes, source)
    if target.is_listed:
        return listed.round_codes(parts, target, rule, limits).astype(code_dtype(target))
    if limits.negative == ("magnitude",) and target.layout.sign == "none":
        parts = Parts(np.zeros_like(parts.negative), parts.m, parts.exponent, parts.nan, parts.inf, parts.trailing)
    index = round_index(parts, target, rule, random_bits, width)
    code = settle(parts, index, source, target, rule, limits)
    return (code << _U64(target.layout.pad)).astype(code_dtype(target))


def overflows(codes, source: Row, target: Row, rounding: str, random_bits=None, random_width=None):
    """For each flat code of a finite source value: whether it rounds beyond the target's range (OVER-1)."""
    parts = take_apart(codes, source)
    index = round_index(parts, target, rounding_rule(rounding), random_bits, random_width or 0)
    return index > np.where(parts.negative, _U64(target.layout.min_index), _U64(target.layout.max_index))


def take_apart(codes, row: Row) -> Parts:
    """Flat codes as signs, significands and exponents, and which are NaN or infinite (VAL-1 to VAL-4, LIST-1)."""
    if row.is_listed:
        return Parts(*listed.taken_apart(codes, row))
    layout = row.layout
    codes = codes.astype(np.uint64) >> _U64(layout.pad)
    half = _U64(1 << (layout.bits - 1))
    negative = codes >= half if layout.sign != "none" else np.zeros(codes.shape, bool)
    low = codes & (half - _U64(1)) if layout.sign == "bit" else codes
    nan = is_nan(layout, codes) if layout.nan is not None else np.zeros(codes.shape, bool)
    inf = np.zeros_like(nan) if layout.inf is None else (codes == layout.inf)
    if layout.neg_inf is not None:
        inf |= codes == layout.neg_inf
    if layout.sign == "twos":
        low = np.where(negative, (~codes + _U64(1)) & _U64((1 << layout.bits) - 1), codes)
    index = low + _U64(layout.first)
    if row.is_float:
        man = _U64(layout.man)
        binade = (index >> man).astype(np.int64)
        trailing = index & ((_U64(1) << man) - _U64(1))
        m = np.where(binade > 0, trailing | (_U64(1) << man), index)
        exponent = layout.qmin + np.maximum(binade - 1, 0)
    else:
        m, exponent, trailing = index, np.full(codes.shape, layout.qmin, np.int64), np.zeros_like(index)
    length = _bit_length(m)
    m = m << (np.int64(64) - np.maximum(length, 1)).astype(np.uint64)
    return Parts(negative, m, exponent + length - 1, nan, inf, trailing)


def _bit_length(m):
    """Bits of each uint64. Clearing the bit below the top one keeps the conversion to float64 in its binade."""
    return np.frexp((m & ~(m >> _U64(1))).astype(np.float64))[1].astype(np.int64)


def round_index(parts: Parts, target: Row, rule, random_bits, width):
    """Index of each value rounded with unbounded exponent; anything beyond every finite value is top_index + 1."""
    layout = target.layout
    significand, exponent = layout.magnitude(layout.top_index)
    top = exponent + significand.bit_length() - 1
    exponent = np.minimum(parts.exponent, top)
    exponent = np.where(parts.m == 0, layout.qmin - 2, exponent)
    quantum = np.maximum(exponent - layout.man, layout.qmin)            # ROUND-1
    cut = np.minimum(63 - (exponent - quantum), 200).astype(np.uint64)  # bits of m below the quantum
    m = parts.m
    shift = np.minimum(cut, _U64(63))
    rest = np.where(cut > 63, m, m & ((_U64(1) << shift) - _U64(1)))
    kept = np.where(cut > 63, _U64(0), m >> shift)
    below = (quantum - layout.qmin).astype(np.uint64)
    index = (below << _U64(layout.man if target.is_float else 0)) + kept

    half_quantum = _U64(1) << np.clip(cut, _U64(1), _U64(64)) - _U64(1)
    half = np.where((cut == 0) | (cut > 64), -1, _compare(rest, half_quantum))
    odd = ((index - _U64(layout.first)) & _U64(1)).astype(bool)
    tie_up = np.ones_like(odd) if layout.man == 0 and target.tie == "up" else odd       # ROUND-6

    def fraction(n):
        n = _U64(n)
        left = rest << (n - np.minimum(cut, n))
        return np.where(cut > n, _shift_right(rest, cut - np.minimum(cut, n)), left)

    def fraction_even(n):
        down = cut.astype(np.int64) - n                                 # bits lost in units of 2^-n
        floor = fraction(n)
        bit = _shift_right(rest, np.maximum(down - 1, 0).astype(np.uint64)) & _U64(1)
        sticky = (rest & (_mask(np.maximum(down - 1, 0)))) != 0
        up = (down > 0) & (bit == 1) & (sticky | (floor & _U64(1) == 1))
        return floor + up

    remainder = Remainder(parts.negative, odd, tie_up, rest != 0, half, fraction, fraction_even, random_bits, width)
    index = index + rule.away(remainder)
    return np.where((m != 0) & (parts.exponent > top), _U64(layout.top_index + 1), index)


def _compare(a, b):
    return (a > b).astype(np.int8) - (a < b)


def _shift_right(value, by):
    """value >> by with by >= 64 giving 0."""
    return np.where(by > 63, _U64(0), value >> np.minimum(by, _U64(63)))


def _mask(bits):
    """2^bits - 1 for an array of bit counts, all ones from 64 on."""
    return np.where(bits > 63, ~_U64(0), (_U64(1) << np.minimum(bits, 63).astype(np.uint64)) - _U64(1))


def settle(parts: Parts, index, source: Row, target: Row, rule, limits):
    """Codes (padding excluded) of rounded values: range, infinities, NaN, zero. Spec: OVER-*, NAN-*, ZERO-*."""
    layout = target.layout
    code = _finite(layout, parts.negative, np.maximum(index, _U64(layout.first)))       # ROUND-7
    for where, chain, below in _out_of_range(parts, index, layout, rule, limits):
        if where.any():
            code = np.where(where, _U64(_outcome(layout, limits, chain, below)), code)
    if parts.nan.any():
        code = np.where(parts.nan, _nan_code(parts, source, target, limits), code)
    return code


def _finite(layout: Layout, negative, index):
    code = index - _U64(layout.first)
    if layout.sign == "twos":
        return np.where(negative, (~index + _U64(1)) & _U64((1 << layout.bits) - 1), code)
    if layout.sign == "bit":
        return code | ((negative & (layout.neg_zero | (index != 0))).astype(np.uint64) << _U64(layout.bits - 1))
    return code


_NO_ZERO = {"min": ("max",), "nan": ("nan", "max")}        # "max" on the lower side is the least value


def _out_of_range(parts: Parts, index, layout: Layout, rule, limits):
    """(where, chain of outcomes, on the lower side) of what has no finite code; later ones go before earlier ones."""
    negative, signed = parts.negative, layout.sign != "none"
    above, below, above_unsigned = STOPS[limits.stop]
    stops_above = rule.name in above or (rule.name in above_unsigned and not signed and layout.inf is not None)
    under = negative & (index > _least(layout, limits))
    if not signed and layout.first:     # no zero: every nonzero negative is below the least value
        under = negative & (parts.m != 0)
        yield parts.m == 0, _NO_ZERO[limits.zero], True
    lower, lower_infinite = (limits.above, limits.infinite) if signed else (limits.negative, limits.negative)
    yield ~negative & (index > layout.max_index), ("max",) if stops_above else limits.above, False
    yield under, ("max",) if rule.name in below else lower, True
    yield parts.inf & ~negative, limits.infinite, False
    yield parts.inf & negative, lower_infinite, True


def _least(layout: Layout, limits) -> int:
    """Magnitude of the least value that a result may take (OVER-7)."""
    symmetric = limits.lowest == "symmetric" and layout.sign == "twos"
    return layout.max_index if symmetric else layout.min_index


def _outcome(layout: Layout, limits, chain, below: bool) -> int:
    """The code of the first word of a chain that the format can express, on the upper or the lower side."""
    if not below:
        extreme, infinity = layout.code(False, layout.max_index), layout.inf
    elif layout.sign == "none":
        extreme, infinity = layout.code(False, layout.first), None
    else:
        extreme, infinity = layout.code(True, _least(layout, limits)), layout.neg_inf
    codes = {"max": extreme, "inf": infinity, "nan": _plain_nan(layout, limits, below)}
    return next((codes[word] for word in chain if codes[word] is not None), extreme)


def _plain_nan(layout: Layout, limits, negative: bool) -> int | None:
    """The NaN that a value without payload becomes (NAN-1)."""
    if layout.nan is None:
        return None
    signed = negative and layout.nan_signed and limits.nan_code not in ("quiet", "ones")
    return (layout.nan_ones if limits.nan_code.endswith("ones") else layout.nan) | signed << (layout.bits - 1)


def _nan_code(parts: Parts, source: Row, target: Row, limits):
    """Codes for NaN sources. Spec: NAN-1 (which NaN), NAN-2 (no NaN in the target), NAN-3 (integer targets)."""
    layout, sign_bit = target.layout, _U64(1 << (target.layout.bits - 1))
    zero, largest = layout.code(False, layout.first), layout.code(False, layout.max_index)
    if not target.is_float:
        least = layout.code(True, layout.min_index) if layout.sign != "none" else zero
        return _U64({"zero": zero, "max": largest, "min": least}[limits.nan_int])
    word = next((word for word in limits.nan if word != "nan" or layout.nan is not None), "+max")
    if word == "nan":
        plain = [_U64(_plain_nan(layout, limits, negative)) for negative in (False, True)]
        quiet = np.where(parts.negative, plain[1], plain[0])
        both_ieee = source.special == target.special == "ieee"
        return quiet | _payload(parts, source, target) if limits.nan_code == "payload" and both_ieee else quiet
    if word in ("+max", "zero") or layout.sign != "bit":
        return _U64(zero if word in ("zero", "opposite-zero") else largest)
    if word == "signed-max":
        return np.where(parts.negative, _U64(largest) | sign_bit, _U64(largest))
    minus_zero = sign_bit if layout.neg_zero else _U64(0)                # opposite-zero
    return np.where(parts.negative, _U64(0), minus_zero)


def _payload(parts: Parts, source: Row, target: Row):
    """The top trailing bits of a NaN source, as far as the target has room."""
    gap = target.layout.man - source.layout.man
    return parts.trailing << _U64(max(gap, 0)) >> _U64(max(-gap, 0))


def values_of(row: Row, codes, dtype):
    """Exact values of flat codes; significands have at most 53 bits, so every step is exact."""
    if row.is_listed:
        return listed.value_list(row, np.dtype(dtype))[codes]
    parts = take_apart(codes, row)
    with np.errstate(over="ignore"):
        value = np.ldexp((parts.m >> _U64(11)).astype(np.float64), parts.exponent.astype(np.int32) - 52)
    value[parts.inf] = np.inf
    value = np.where(parts.nan, np.nan, np.where(parts.negative & (value == 0) & (not row.has_neg_zero), 0.0,
                                                 np.where(parts.negative, -value, value)))
    return value.astype(dtype)
