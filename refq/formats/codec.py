"""Codes from values and values from codes, on whole arrays.

The definition is one integer algorithm, `_convert`: source code -> sign, significand, exponent -> rounding rule ->
overflow rule -> target code. The fast path is a table that this algorithm fills (`plan`), indexed by the source's
leading bits with everything below them or-ed into the last place (round to odd), so that it cannot disagree.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from refq.errors import InputError
from refq.formats.names import number_format
from refq.formats.policies import STOPS, Remainder, overflow_rule, rounding_rule
from refq.formats.rows import Int, Row
from refq.formats.values import Layout, is_nan

CHUNK = 1 << 15             # elements per pass: working buffers stay in L2
TABLE_LIMIT = 1 << 19       # entries of the largest fast-path table
TABLE_FROM = 1 << 12        # smaller arrays go through the definition: filling a table would cost more
PAIRS_FROM = 1 << 14        # smaller arrays are decoded one code at a time
_U64 = np.uint64

# Sources beside the rows of the table: integers of any numpy width.
_INTEGER_SOURCES = {np.dtype(f"{kind}{bits // 8}"): Int(f"{word}{bits}", bits, signed=kind == "i")
                    for kind, word in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)}


# ---------------------------------------------------------------------------------------------------------------
# the public three

def encode(x, format, rounding="rne", overflow="sat", random_bits=None, random_width=None, out=None):
    """Round an array of numbers into a number format, once, from the source (Spec: CAST-1, CAST-2, CAST-3).

    x: array of any shape and layout, of float64, float32, float16, ml_dtypes.bfloat16 or any integer dtype.
    format: a name or a row. rounding: a key of ROUNDINGS. overflow: a key of OVERFLOWS.
    random_bits: for the stochastic roundings, unsigned integers below 2^random_width, broadcast to x.
    out: array of x's shape and the returned dtype, which receives the codes.
    Returns codes: the smallest unsigned integer dtype that holds the format, x's shape.
    Defaults: to nearest even, saturating (OFP8 SAT): what is out of range becomes the nearest finite value.
    Raises InputError for an unknown name, dtype or operand.
    """
    x = np.asarray(x)
    source = source_row(x.dtype)
    return convert(_words(x), source, format, rounding, overflow, random_bits, random_width, out)


def decode(codes, format, dtype=np.float32, out=None):
    """The values of codes as an array of float64, float32 or float16, always exact (Spec: VAL-7).

    codes: array of unsigned integers below 2^width. Every NaN code gives the canonical quiet NaN.
    out: array of codes' shape and the dtype asked for.
    Raises InputError when some value of the format is not exact in the dtype, or a code is out of range.
    """
    row, dtype = number_format(format), float_dtype(dtype)
    codes = _codes_array(codes, row)
    result = _result(out, codes.shape, dtype, codes)
    decoder(row, dtype, codes.size)(codes.reshape(-1), result.reshape(-1))
    return _deliver(result, out)


def convert(codes, source, target, rounding="rne", overflow="sat", random_bits=None, random_width=None, out=None):
    """Codes of one format to codes of another with a single rounding, no float in between (Spec: CAST-4).

    codes: array of unsigned integers below 2^width of the source format. Other arguments and errors as `encode`.
    """
    source, target = number_format(source), number_format(target)
    codes = _codes_array(codes, source)
    run = encoder(source, target, rounding, overflow, codes.size, random_width)
    bits = random_operand(rounding_rule(rounding), random_bits, random_width, codes.shape)
    result = _result(out, codes.shape, code_dtype(target), codes)
    run(codes.reshape(-1), result.reshape(-1), bits)
    return _deliver(result, out)


def encoder(source: Row, target: Row, rounding="rne", overflow="sat", size=1 << 62, random_width=None):
    """A function (words, room, random_bits=None) that converts flat source codes into flat room, any number of times.

    It owns its scratch memory, so a loop over pieces of one array makes it once. size: values expected in all; a few
    are converted by the definition, many by a table.
    """
    rule, limits = rounding_rule(rounding), overflow_rule(overflow, target.special)
    fast = plan(source, target, rounding, overflow) if size >= TABLE_FROM and not rule.stochastic else None
    length = min(size, CHUNK)
    if fast is None:
        def run(words, room, random_bits=None):
            for part in _chunks(words.size):
                bits = None if random_bits is None else random_bits[part]
                room[part] = _convert(words[part], source, target, rule, limits, bits, random_width or 0)
    else:
        word, index = np.empty(length, code_dtype(source)), np.empty(length, np.intp)

        def run(words, room, random_bits=None):
            for part in _chunks(words.size):
                u = words[part]
                fast.look_up(u, word[: u.size], index[: u.size], room[part])
    return run


def decoder(row: Row, dtype: np.dtype, size=1 << 62):
    """A function (codes, room) that writes the values of flat codes into flat room; see `encoder`."""
    _refuse_inexact(row, dtype)
    if row.width > 16:
        def run(codes, room):
            for part in _chunks(codes.size):
                room[part] = _values(row, codes[part], dtype)
        return run
    pairs = _pair_table(row, dtype) if row.width <= 8 and size >= PAIRS_FROM else None
    single, index = value_table(row, dtype), np.empty(min(size, CHUNK), np.intp)

    def look_up(table, words, room):
        for part in _chunks(words.size):
            i = index[: words[part].size]
            i[...] = words[part]
            table.take(i, out=room[part], mode="clip")      # indices are in range; "clip" avoids a buffered copy

    def run(codes, room):
        even = codes.size & ~1 if pairs is not None else 0
        if even:
            look_up(pairs, codes[:even].view(np.uint16), room[:even].view(pairs.dtype))
        look_up(single, codes[even:], room[even:])
    return run


def code_dtype(row: Row) -> np.dtype:
    """The smallest unsigned integer dtype that holds the codes of a format."""
    return np.dtype(next(f"u{size}" for size in (1, 2, 4, 8) if row.width <= 8 * size))


def source_row(dtype: np.dtype) -> Row:
    """The number format of a numpy dtype. Raises InputError for one that refq does not take values from (CAST-2)."""
    dtype = np.dtype(dtype)
    if dtype in _INTEGER_SOURCES:
        return _INTEGER_SOURCES[dtype]
    names = {"float64": "binary64", "float32": "binary32", "float16": "binary16", "bfloat16": "bfloat16"}
    if dtype.name not in names or not dtype.isnative:
        raise InputError(f"values of dtype {dtype} are not accepted; allowed are float64, float32, float16, bfloat16 and "
                         "integers, in native byte order")
    return number_format(names[dtype.name])


# ---------------------------------------------------------------------------------------------------------------
# the definition: integers only

@dataclass(frozen=True)
class _Parts:
    """Source values taken apart: significand m (top bit at 63, or 0 for zero) and exponent of that top bit."""

    negative: np.ndarray
    m: np.ndarray
    exponent: np.ndarray
    nan: np.ndarray
    inf: np.ndarray
    trailing: np.ndarray    # trailing significand field, for NaN payloads


def _convert(codes, source: Row, target: Row, rule, limits, random_bits=None, width=0):
    """Flat source codes to flat target codes, by the exact rules. Spec: ROUND-1 to ROUND-7, OVER-1 to OVER-8."""
    parts = _take_apart(codes, source)
    if limits.negative == ("magnitude",) and target.layout.sign == "none":
        parts = _Parts(np.zeros_like(parts.negative), parts.m, parts.exponent, parts.nan, parts.inf, parts.trailing)
    index = _round(parts, target, rule, random_bits, width)
    code = _settle(parts, index, source, target, rule, limits)
    return (code << _U64(target.layout.pad)).astype(code_dtype(target))


def overflows(codes, source: Row, target: Row, rounding: str, random_bits=None, random_width=None):
    """For each flat source code of a finite value: whether, once rounded, it lies beyond the target's range (OVER-1)."""
    parts = _take_apart(codes, source)
    index = _round(parts, target, rounding_rule(rounding), random_bits, random_width or 0)
    return index > np.where(parts.negative, _U64(target.layout.min_index), _U64(target.layout.max_index))


def _take_apart(codes, row: Row) -> _Parts:
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
    return _Parts(negative, m, exponent + length - 1, nan, inf, trailing)


def _bit_length(m):
    """Bits of each uint64. Clearing the bit below the top one keeps the conversion to float64 in its binade."""
    return np.frexp((m & ~(m >> _U64(1))).astype(np.float64))[1].astype(np.int64)


def _round(parts: _Parts, target: Row, rule, random_bits, width):
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

    half = np.where(cut > 64, -1, _compare(rest, _U64(1) << (np.minimum(cut, _U64(64)) - np.minimum(cut, _U64(1)))))
    half = np.where(cut == 0, -1, half)
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

    away = rule.away(Remainder(parts.negative, odd, tie_up, rest != 0, half, fraction, fraction_even, random_bits, width))
    index = index + away
    return np.where((m != 0) & (parts.exponent > top), _U64(layout.top_index + 1), index)


def _compare(a, b):
    return (a > b).astype(np.int8) - (a < b)


def _shift_right(value, by):
    """value >> by with by >= 64 giving 0."""
    return np.where(by > 63, _U64(0), value >> np.minimum(by, _U64(63)))


def _mask(bits):
    """2^bits - 1 for an array of bit counts, all ones from 64 on."""
    return np.where(bits > 63, ~_U64(0), (_U64(1) << np.minimum(bits, 63).astype(np.uint64)) - _U64(1))


def _settle(parts: _Parts, index, source: Row, target: Row, rule, limits):
    """Codes (padding excluded) of rounded values: range, infinities, NaN, zero. Spec: OVER-*, NAN-*, ZERO-*."""
    layout = target.layout
    negative, m = parts.negative, parts.m
    least = layout.max_index if limits.lowest == "symmetric" and layout.sign == "twos" else layout.min_index
    index = np.maximum(index, _U64(layout.first))                       # ROUND-7
    code = _finite(layout, negative & (m != 0 if layout.first else True), index)
    signed = layout.sign != "none"
    over, under = ~negative & (index > layout.max_index), negative & (index > least)
    if layout.first:
        under = negative & (m != 0)                                     # every nonzero negative is below the least value
        code = np.where(m == 0, _U64(_outcome(layout, ("nan", "max") if limits.zero == "nan" else ("max",), True, least, limits.nan_code)), code)
    above, below, unsigned_unbounded = STOPS[limits.stop]
    high = ("max",) if rule.name in above or (rule.name in unsigned_unbounded and not signed and layout.inf is not None) \
        else limits.above
    low = ("max",) if rule.name in below else limits.above if signed else limits.negative
    infinite_low = limits.infinite if signed else limits.negative
    for where, chain, side in ((over, high, False), (under, low, True), (parts.inf & ~negative, limits.infinite, False),
                               (parts.inf & negative, infinite_low, True)):
        if where.any():
            code = np.where(where, _U64(_outcome(layout, chain, side, least, limits.nan_code)), code)
    return np.where(parts.nan, _nan_code(parts, source, target, limits), code) if parts.nan.any() else code


def _finite(layout: Layout, negative, index):
    code = index - _U64(layout.first)
    if layout.sign == "twos":
        return np.where(negative, (~index + _U64(1)) & _U64((1 << layout.bits) - 1), code)
    if layout.sign == "bit":
        return code | ((negative & (layout.neg_zero | (index != 0))).astype(np.uint64) << _U64(layout.bits - 1))
    return code


def _outcome(layout: Layout, chain, negative: bool, least: int, nan_code: str) -> int:
    """The code of the first word of a chain that the format can express."""
    unsigned = layout.sign == "none"
    extreme = layout.code(True, least) if negative and not unsigned else \
        layout.code(False, layout.first if negative else layout.max_index)
    codes = {"max": extreme, "inf": layout.neg_inf if negative else layout.inf, "nan": _default_nan(layout, negative, nan_code)}
    return next((codes[word] for word in chain if codes[word] is not None), extreme)


def _default_nan(layout: Layout, negative: bool, nan_code: str) -> int | None:
    """The NaN that a value without payload becomes."""
    if layout.nan is None:
        return None
    signed = negative and layout.nan_signed and nan_code in ("signed-quiet", "signed-ones", "payload")
    return (layout.nan_ones if nan_code.endswith("ones") else layout.nan) | signed << (layout.bits - 1)


def _nan_code(parts: _Parts, source: Row, target: Row, limits):
    """Codes for NaN sources. Spec: NAN-1 (which NaN), NAN-2 (no NaN in the target), NAN-3 (integer targets)."""
    layout = target.layout
    sign = parts.negative.astype(np.uint64) << _U64(layout.bits - 1) if layout.nan_signed or layout.sign == "bit" else _U64(0)
    largest, least, zero = layout.code(False, layout.max_index), layout.code(True, layout.min_index), layout.code(False, layout.first)
    if not target.is_float:
        return _U64({"zero": zero, "max": largest, "min": least if layout.sign != "none" else zero}[limits.nan_int])
    word = next((word for word in limits.nan if word != "nan" or layout.nan is not None), "+max")
    if word != "nan":
        return {"+max": _U64(largest), "zero": _U64(zero), "signed-max": _U64(largest) | sign,
                "opposite-zero": _U64(zero) | (sign ^ _U64(layout.neg_zero << (layout.bits - 1)))}[word]
    quiet = _U64(layout.nan_ones if limits.nan_code.endswith("ones") else layout.nan)
    if limits.nan_code == "payload" and target.special == "ieee" and source.special == "ieee":
        gap = target.layout.man - source.layout.man
        payload = parts.trailing << _U64(max(gap, 0)) >> _U64(max(-gap, 0))
        return quiet | payload | sign
    return quiet | sign if layout.nan_signed and limits.nan_code.startswith(("signed", "payload")) else quiet


# ---------------------------------------------------------------------------------------------------------------
# the fast path: a table filled by the definition

@dataclass(frozen=True)
class _Plan:
    """How a source word becomes a table index: shifted right, sticky bit or-ed into the last place.

    A plan with a window first clips the magnitude to [low, high], counts from low and puts the sign on top; words it
    cannot tell apart (infinities and NaN, and zeros where tiny values round away from them) go to the definition.
    """

    table: np.ndarray
    shift: int
    define: object                  # flat source codes -> flat target codes, by the definition
    low: int | None = None
    high: int = 0
    infinity: int = 0
    zeros: bool = False

    def look_up(self, u, t, i, room):
        """One chunk: source words u, scratch t (as u) and i (intp), codes into room."""
        special = self.low is not None and self._window(u, t, i.view(u.dtype)[: u.size])
        if self.low is None:
            self._upper(u, t)
        if t.itemsize == i.itemsize:
            i = t.view(np.intp)
        else:
            i[...] = t
        self.table.take(i, out=room, mode="clip")       # indices are in range; "clip" avoids a buffered copy
        if special:
            odd = (u & self._magnitude(u)) >= self.infinity
            room[odd] = self.define(u[odd])
        if self.zeros and (zero := u & self._magnitude(u) == 0).any():
            room[zero] = self.define(u[zero])

    def _upper(self, u, t):
        if not self.shift:
            t[...] = u
            return
        mask = u.dtype.type((1 << self.shift) - 1)      # low bits + mask carry into the last kept place iff any is set
        np.bitwise_and(u, mask, out=t)
        np.add(t, mask, out=t)
        np.bitwise_or(t, u, out=t)
        np.right_shift(t, u.dtype.type(self.shift), out=t)

    def _window(self, u, t, s):
        """Table indices into t, with scratch s; True where infinities or NaN need the definition."""
        kind, width = u.dtype.type, 8 * u.itemsize
        mask = kind((1 << self.shift) - 1)
        np.bitwise_and(u, self._magnitude(u), out=t)
        special = bool(t.size) and t.max() >= self.infinity
        np.clip(t, kind(self.low), kind(self.high), out=t)
        np.subtract(t, kind(self.low), out=t)
        np.bitwise_and(t, mask, out=s)
        np.add(s, mask, out=s)
        np.bitwise_or(t, s, out=t)
        np.right_shift(t, kind(self.shift), out=t)
        np.right_shift(u, kind(width - 1), out=s)
        np.left_shift(s, kind(self.sign_at), out=s)
        np.bitwise_or(t, s, out=t)
        return special

    @property
    def sign_at(self) -> int:
        return ((self.high - self.low) >> self.shift).bit_length()

    @staticmethod
    def _magnitude(u):
        return u.dtype.type((1 << (8 * u.itemsize - 1)) - 1)


@lru_cache(maxsize=256)
def plan(source: Row, target: Row, rounding: str, overflow: str) -> _Plan | None:
    """The fast path for a deterministic conversion, or None where the definition itself must run."""
    rule, limits = rounding_rule(rounding), overflow_rule(overflow, target.special)

    def define(words):
        return np.concatenate([_convert(words[part], source, target, rule, limits) for part in _chunks(words.size)])

    bits, kind = source.width, code_dtype(source).type
    if bits <= 16:
        return _Plan(define(np.arange(1 << bits, dtype=kind)), 0, define)
    if not source.is_float or source.special != "ieee" or source.layout.pad:
        return None
    # Round to odd is invisible to a later rounding when two more bits are kept than the target can use, in every
    # binade; below the source's normal range the kept quantum must still be a quarter of the target's.
    shift = min(source.layout.man - target.precision - 1, target.layout.qmin - 2 - source.layout.qmin)
    if shift < 1:
        return None
    if bits - shift <= 18:
        shift = min(shift, bits - 16)
        return _Plan(define(np.arange(1 << (bits - shift)).astype(kind) << kind(shift)), shift, define)
    return _windowed_plan(source, target, shift, define)


def _windowed_plan(source: Row, target: Row, shift: int, define) -> _Plan | None:
    """A table over the binades that matter: from an eighth of the smallest quantum to four times the largest value."""
    man, kind, infinity = source.layout.man, code_dtype(source).type, source.layout.inf
    bias = 1 - source.layout.qmin - man
    low, high = target.layout.qmin - 3 + bias << man, target.emax + 2 + bias << man
    count = 1 << ((high - low) >> shift).bit_length()
    if low < 1 << man or high >= infinity or 2 * count > TABLE_LIMIT:
        return None
    words = kind(low) + (np.arange(count).astype(kind) << kind(shift))
    words = np.concatenate([words, words | kind(1 << (source.width - 1))])
    table = define(np.where(words & kind(infinity) == kind(infinity), kind(0), words))     # beyond high: never looked up
    zero = define(np.array([0, 1 << (source.width - 1)], kind))
    return _Plan(table, shift, define, low, high, infinity, zeros=bool((zero != table[[0, count]]).any()))


@lru_cache(maxsize=256)
def value_table(row: Row, dtype: np.dtype) -> np.ndarray:
    """The value of every code of a format of at most 16 bits (read only)."""
    table = _values(row, np.arange(1 << row.width, dtype=code_dtype(row)), dtype)
    table.flags.writeable = False
    return table


_PAIR = {2: np.uint32, 4: np.uint64, 8: np.complex128}      # any dtype of twice the size: only its bytes matter


@lru_cache(maxsize=64)
def _pair_table(row: Row, dtype: np.dtype) -> np.ndarray:
    """Two values for each pair of neighbouring codes (little endian), packed into one word of twice the size."""
    single = np.zeros(256, dtype)
    single[: 1 << row.width] = value_table(row, dtype)
    pairs = np.empty((65536, 2), dtype)
    pairs[:, 0], pairs[:, 1] = np.tile(single, 256), np.repeat(single, 256)
    return pairs.reshape(-1).view(_PAIR[dtype.itemsize])


def _values(row: Row, codes, dtype):
    """Exact values of flat codes; significands have at most 53 bits, so every step is exact."""
    parts = _take_apart(codes, row)
    with np.errstate(over="ignore"):
        value = np.ldexp((parts.m >> _U64(11)).astype(np.float64), parts.exponent.astype(np.int32) - 52)
    value[parts.inf] = np.inf
    value = np.where(parts.nan, np.nan, np.where(parts.negative & (value == 0) & ~row.has_neg_zero, 0.0,
                                                 np.where(parts.negative, -value, value)))
    return value.astype(dtype)


# ---------------------------------------------------------------------------------------------------------------
# arguments and results

def _chunks(size: int):
    return (slice(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK)) if size else (slice(0, 0),)


def _words(x):
    """The bit patterns of an array of numbers as unsigned integers, C-contiguous, same shape."""
    return np.ascontiguousarray(x).reshape(x.shape).view(f"u{x.dtype.itemsize}")


def _codes_array(codes, row: Row):
    codes = np.asarray(codes)
    if codes.dtype.kind not in "ui":
        raise InputError(f"codes of {row.name} must be unsigned integers, got dtype {codes.dtype}")
    if codes.size and (codes.dtype.kind == "i" or 8 * codes.itemsize > row.width):
        least, most = int(codes.min()), int(codes.max())
        if least < 0 or most >= 1 << row.width:
            raise InputError(f"{least if least < 0 else most:#x} is not a {row.name} code; allowed are 0 to {(1 << row.width) - 1:#x}")
    return np.ascontiguousarray(codes, dtype=code_dtype(row)).reshape(codes.shape)


def float_dtype(dtype) -> np.dtype:
    """A dtype that values can be decoded into. Raises InputError for any other."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found not in (np.float64, np.float32, np.float16):
        raise InputError(f"cannot decode into dtype {dtype}; allowed are float64, float32 and float16, in native byte order")
    return found


def _refuse_inexact(row: Row, dtype: np.dtype):
    room = source_row(dtype)
    if row.precision > room.precision or row.layout.qmin < room.layout.qmin or row.emax > room.emax:
        raise InputError(f"not every value of {row.name} is exact in {dtype}; decode into a wider dtype, or use "
                         "refq.formats.values.exact for fractions")


def random_operand(rule, random_bits, width, shape):
    """The random operand as flat uint64, or None for a deterministic rule."""
    if not rule.stochastic:
        if random_bits is not None or width is not None:
            raise InputError(f"rounding {rule.name!r} takes no random_bits; the stochastic ones are sra, srb and src")
        return None
    whole = isinstance(width, (int, np.integer)) and not isinstance(width, bool)
    if random_bits is None or not whole or not 1 <= width <= 32:
        raise InputError(f"rounding {rule.name!r} needs random_bits and a random_width of 1 to 32, got random_width={width!r}")
    bits = np.asarray(random_bits)
    if bits.dtype.kind not in "ui" or bits.size and (int(bits.min()) < 0 or int(bits.max()) >> width):
        raise InputError(f"random_bits must be integers from 0 to 2^{width} - 1")
    try:
        return np.broadcast_to(bits.astype(np.uint64), shape).reshape(-1)
    except ValueError:
        raise InputError(f"random_bits of shape {bits.shape} do not broadcast to {tuple(shape)}") from None


def _result(out, shape, dtype, operand):
    """A C-contiguous array to fill: `out` itself where it is one and shares no memory with the operand."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.shape != tuple(shape) or out.dtype != dtype or not out.flags.writeable:
        raise InputError(f"out must be a writeable array of shape {tuple(shape)} and dtype {np.dtype(dtype)}")
    return out if out.flags.c_contiguous and not np.may_share_memory(out, operand) else np.empty(shape, dtype)


def _deliver(result, out):
    if out is None or result is out:
        return result
    out[...] = result
    return out
