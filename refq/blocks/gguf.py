"""GGUF blocks: bytes to float32 and back, bit for bit as GGML's reference functions do it.

A row of GGUF says where in a block each number lies and what it means; one decoder reads them all, and one
encoder serves every type whose reference encoder rounds. The other reference encoders search for the scale of
the least error: what their bytes mean is defined here, how to find them is not. Spec: GGUF-1.
"""

import difflib
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from refq.errors import InputError
from refq.formats.definition import CHUNK

F32 = np.float32
QUIET_NAN = np.uint32(0x7FC00000).view(F32)


# ---------------------------------------------------------------------------------------------------------------
# where small numbers lie in a block

@dataclass(frozen=True)
class Bits:
    """`count` bytes from byte `at`, each with `groups` numbers of `width` bits, the first from bit `low` on.

    The bytes come in strides: first the lowest number of every byte of a stride, then the next of every byte,
    and so on; then the next stride. Spec: GGUF-2.
    """

    at: int
    count: int
    width: int
    stride: int = 1
    low: int = 0
    groups: int = 0             # 0: as many as fit above `low`

    def __post_init__(self):
        object.__setattr__(self, "groups", self.groups or (8 - self.low) // self.width)

    def _lanes(self, numbers):
        """(shift, view of the numbers that lie there), one pair for each number of a byte."""
        lanes = numbers.reshape(len(numbers), -1, self.groups, self.stride)
        return [(np.uint8(self.low + self.width * group), lanes[:, :, group]) for group in range(self.groups)]

    def read(self, blocks):
        """(blocks, bytes) to (blocks, numbers), both uint8."""
        part = np.ascontiguousarray(blocks[:, self.at: self.at + self.count])
        numbers = np.empty((len(blocks), self.count * self.groups), np.uint8)
        for shift, lane in self._lanes(numbers):
            lane[...] = (part >> shift).reshape(lane.shape)
        return np.bitwise_and(numbers, np.uint8((1 << self.width) - 1), out=numbers)

    def write(self, blocks, numbers):
        """The inverse of `read`, into blocks that hold zeros there; bits above `width` are dropped."""
        numbers = numbers & np.uint8((1 << self.width) - 1)
        for shift, lane in self._lanes(numbers):
            blocks[:, self.at: self.at + self.count] |= (lane << shift).reshape(len(blocks), self.count)


@dataclass(frozen=True)
class Trits:
    """`count` bytes from byte `at`, each with `groups` base-3 digits, the highest first; strides as in Bits.

    A byte is the fraction 0.ddddd in base 3, in 256ths, rounded up: times 3 moves a digit out. Spec: GGUF-3.
    """

    at: int
    count: int
    stride: int
    groups: int = 5
    width = 2                   # bits of one digit, once it is out

    def read(self, blocks):
        part = blocks[:, self.at: self.at + self.count].reshape(len(blocks), -1, 1, self.stride)
        powers = (3 ** np.arange(self.groups)).astype(np.uint8)[:, None]
        rest = (part * powers).astype(np.uint16)            # modulo 256: the digits before are gone
        return (rest * np.uint16(3) >> np.uint16(8)).astype(np.uint8).reshape(len(blocks), -1)

    def write(self, blocks, numbers):
        digits = numbers.reshape(len(blocks), -1, self.groups, self.stride)
        weights = (81 // 3 ** np.arange(self.groups)).astype(np.uint32)[:, None]
        whole = (digits * weights).sum(axis=2, dtype=np.uint32).reshape(len(blocks), -1)
        blocks[:, self.at: self.at + self.count] = (whole * np.uint32(256) + np.uint32(242)) // np.uint32(243)


@dataclass(frozen=True)
class Numbers:
    """Small numbers of a block and what they mean.

    runs: one after another, each a stack of fields, the lowest bits first. levels: what every code means.
    """

    runs: tuple[tuple[Bits | Trits, ...], ...]
    levels: tuple[int, ...]

    @property
    def zero(self) -> int:
        """The code that means 0."""
        return self.levels.index(0)

    @cached_property
    def table(self):
        return np.array(self.levels, F32)

    @cached_property
    def counting(self) -> bool:
        """Whether a level is its code plus the first level."""
        return self.levels == tuple(range(self.levels[0], self.levels[0] + len(self.levels)))

    def read(self, blocks):
        """Codes, (blocks, numbers) uint8."""
        parts = []
        for first, *others in self.runs:
            codes, at = first.read(blocks), first.width
            for field in others:
                codes |= field.read(blocks) << np.uint8(at)
                at += field.width
            parts.append(codes)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def write(self, blocks, codes):
        """The inverse of `read`, into blocks that hold zeros there."""
        start = 0
        for run in self.runs:
            part, at = codes[:, start: start + run[0].count * run[0].groups], 0
            start += part.shape[1]
            for field in run:
                field.write(blocks, part >> np.uint8(at))
                at += field.width

    def values(self, blocks):
        """What the codes mean, (blocks, numbers) float32."""
        codes = self.read(blocks)
        if not self.counting:
            return self.table.take(codes, mode="clip")      # codes are in range; "clip" avoids a buffered copy
        values = codes.astype(F32)
        return np.add(values, self.table[0], out=values) if self.levels[0] else values


# ---------------------------------------------------------------------------------------------------------------
# scales

def _ue4m3_halves():
    """Half the value of an unsigned E4M3 code: the top bit counts for nothing, 7F (but not FF) means 0."""
    code = np.arange(256)
    exponent, man = code >> 3 & 15, code & 7
    values = np.where(exponent == 0, np.ldexp(man, -10), np.ldexp(8 + man, exponent - 11))
    return np.where(code == 0x7F, 0, values).astype(F32)


# Halves, because the levels of E2M1 are doubled, to be integers. Spec: GGUF-6.
SCALE_TABLES = {
    "e8m0": np.ldexp(F32(1), np.arange(256) - 128),
    "ue4m3": _ue4m3_halves(),
}


@dataclass(frozen=True)
class Scale:
    """`count` numbers from byte `at`, times a sign, and times the block's factors, one a tile, if it has any.

    format: "binary16" or a key of SCALE_TABLES.
    """

    at: int
    format: str = "binary16"
    count: int = 1
    factors: Numbers | None = None
    sign: int = 1

    def values(self, blocks):
        """(blocks, tiles) float32. Every product is exact: 11 bits by at most 8. Spec: GGUF-6."""
        if self.format == "binary16":
            base = np.ascontiguousarray(blocks[:, self.at: self.at + 2]).view("<f2").astype(F32)
        else:
            base = SCALE_TABLES[self.format].take(blocks[:, self.at: self.at + self.count])
        if self.factors is not None:
            base = base * self.factors.values(blocks)
        return base if self.sign > 0 else -base


# ---------------------------------------------------------------------------------------------------------------
# the table

FITS = {
    "extreme": "d = the value of largest magnitude / divisor; code = x/d + 1/2 - divisor, cut (GGUF-11)",
    "range": "d = (max - min) / divisor, m = min; code = (x - m)/d + 1/2, cut (GGUF-12)",
    "amax": "d = amax / divisor; level = x/d rounded, ties away (GGUF-13)",
    "nearest": "the scale from amax; the level of least error, the lower code on a tie (GGUF-15)",
    "mean": "d = the mean magnitude; code = the sign (GGUF-18)",
    "search": "the reference encoder searches: no encoding is defined (GGUF-9)",
}


@dataclass(frozen=True)
class Gguf:
    """One block type: values = scale * level of the code (+ offset), in `bytes` bytes for `values` values.

    number: its name in the tensor headers of a file. fit, divisor: how an encoder finds the scale, a key of FITS.
    stray: the code of a quotient that is infinite or no number (GGUF-14). sum_at: the byte of d * sum of levels.
    """

    name: str
    number: int
    values: int
    bytes: int
    codes: Numbers
    scale: Scale
    offset: Scale | None = None
    fit: str = "search"
    divisor: int = 1
    stray: int = 0
    sum_at: int | None = None
    variants: tuple[str, ...] = ("reference",)

    @property
    def bits_per_value(self) -> Fraction:
        return Fraction(8 * self.bytes, self.values)

    @property
    def encodes(self) -> bool:
        """Whether an encoder is defined: the reference rounds and does not search (GGUF-9)."""
        return self.fit != "search"


@dataclass(frozen=True)
class Variant:
    """One implementation of the "amax" fit. Spec: GGUF-19.

    inverse: 1 / d ("of d") or divisor / amax ("of amax"). tie: "away" | "even".
    strays: the codes of quotients that are no number, -infinity, +infinity; None: the row's own.
    """

    name: str
    inverse: str
    tie: str
    strays: tuple[int, int, int] | None = None


VARIANTS = {row.name: row for row in [
    Variant("reference", "of d", "away"),
    Variant("x86", "of amax", "even", (0x80, 0x80, 0x80)),
    Variant("arm", "of d", "even", (0x00, 0x00, 0xFF)),
]}


def _counting(first: int, bits: int):
    return tuple(range(first, first + (1 << bits)))


def _stack(levels, *fields):
    """Numbers of one run."""
    return Numbers((fields,), levels)


_BYTE = (*range(128), *range(-128, 0))
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)               # doubled
_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

# Q4_K and Q5_K: eight scales and eight minima of 6 bits in twelve bytes. The first four of each lie whole in the
# low bits of bytes 4..7 and 8..11; of the others bytes 12..15 hold the low four bits, and the two bits left above
# the first four the high ones. Spec: GGUF-5.
_SIX = _counting(0, 6)
_K4_SCALES = Numbers(((Bits(4, 4, 6),), (Bits(12, 4, 4, groups=1), Bits(4, 4, 2, low=6))), _SIX)
_K4_MINIMA = Numbers(((Bits(8, 4, 6),), (Bits(12, 4, 4, low=4), Bits(8, 4, 2, low=6))), _SIX)
_Q2_SCALES = _stack(_counting(0, 4), Bits(0, 16, 4, groups=1))
_Q2_MINIMA = _stack(_counting(0, 4), Bits(0, 16, 4, low=4))
_Q3_SCALES = _stack(_counting(-32, 6), Bits(96, 8, 4, 8), Bits(104, 4, 2, 4))
_Q6_SCALES = _stack(_BYTE, Bits(192, 16, 8))
_IQ4_SCALES = _stack(_counting(-32, 6), Bits(4, 4, 4), Bits(2, 2, 2))
_TRITS = Numbers(((Trits(0, 32, 32),), (Trits(32, 16, 16),), (Trits(48, 4, 4, groups=4),)), (-1, 0, 1))

_Q8 = ("reference", "x86", "arm")

GGUF: dict[str, Gguf] = {row.name: row for row in [
    Gguf("Q4_0", 2, 32, 18, _stack(_counting(-8, 4), Bits(2, 16, 4, 16)), Scale(0), None, "extreme", -8),
    Gguf("Q4_1", 3, 32, 20, _stack(_counting(0, 4), Bits(4, 16, 4, 16)), Scale(0), Scale(2), "range", 15),
    Gguf("Q5_0", 6, 32, 22, _stack(_counting(-16, 5), Bits(6, 16, 4, 16), Bits(2, 4, 1)),
         Scale(0), None, "extreme", -16),
    Gguf("Q5_1", 7, 32, 24, _stack(_counting(0, 5), Bits(8, 16, 4, 16), Bits(4, 4, 1)),
         Scale(0), Scale(2), "range", 31),
    Gguf("Q8_0", 8, 32, 34, _stack(_BYTE, Bits(2, 32, 8)), Scale(0), None, "amax", 127, variants=_Q8),
    Gguf("Q8_1", 9, 32, 36, _stack(_BYTE, Bits(4, 32, 8)), Scale(0), None, "amax", 127, sum_at=2, variants=_Q8),
    Gguf("Q2_K", 10, 256, 84, _stack(_counting(0, 2), Bits(16, 64, 2, 32)),
         Scale(80, factors=_Q2_SCALES), Scale(82, factors=_Q2_MINIMA, sign=-1)),
    Gguf("Q3_K", 11, 256, 110, _stack(_counting(-4, 3), Bits(32, 64, 2, 32), Bits(0, 32, 1, 32)),
         Scale(108, factors=_Q3_SCALES)),
    Gguf("Q4_K", 12, 256, 144, _stack(_counting(0, 4), Bits(16, 128, 4, 32)),
         Scale(0, factors=_K4_SCALES), Scale(2, factors=_K4_MINIMA, sign=-1)),
    Gguf("Q5_K", 13, 256, 176, _stack(_counting(0, 5), Bits(48, 128, 4, 32), Bits(16, 32, 1, 32)),
         Scale(0, factors=_K4_SCALES), Scale(2, factors=_K4_MINIMA, sign=-1)),
    Gguf("Q6_K", 14, 256, 210, _stack(_counting(-32, 6), Bits(0, 128, 4, 64), Bits(128, 64, 2, 32)),
         Scale(208, factors=_Q6_SCALES)),
    Gguf("IQ4_NL", 20, 32, 18, _stack(_NONLINEAR, Bits(2, 16, 4, 16)), Scale(0)),
    Gguf("IQ4_XS", 23, 256, 136, _stack(_NONLINEAR, Bits(8, 128, 4, 16)), Scale(0, factors=_IQ4_SCALES)),
    Gguf("TQ1_0", 34, 256, 54, _TRITS, Scale(52), None, "amax", stray=1),
    Gguf("TQ2_0", 35, 256, 66, _stack(_counting(-1, 2), Bits(0, 64, 2, 32)), Scale(64), None, "amax", stray=1),
    Gguf("MXFP4", 39, 32, 17, _stack(_E2M1, Bits(1, 16, 4, 16)), Scale(0, "e8m0"), None, "nearest"),
    Gguf("NVFP4", 40, 64, 36, _stack(_E2M1, Bits(4, 32, 4, 8)), Scale(0, "ue4m3", 4), None, "nearest"),
    Gguf("Q1_0", 41, 128, 18, _stack((-1, 1), Bits(2, 16, 1)), Scale(0), None, "mean"),
    Gguf("Q2_0", 42, 64, 18, _stack(_counting(-1, 2), Bits(2, 16, 2)), Scale(0), None, "amax"),
]}


def gguf_type(name) -> Gguf:
    """The row of a GGUF block type by its name, in any case; a row is returned as it is.

    Raises InputError for unknown names, with the nearest known ones. Spec: GGUF-1.
    """
    if isinstance(name, Gguf):
        return name
    key = str(name).strip().upper()
    if key in GGUF:
        return GGUF[key]
    near = difflib.get_close_matches(key, GGUF, 4, 0.5) or GGUF
    raise InputError(f"GGUF block type {name!r} is not known; try {', '.join(near)}")


# ---------------------------------------------------------------------------------------------------------------
# bytes to values

def gguf_decode(data, name) -> np.ndarray:
    """The values of GGUF blocks as float32, bit for bit; every NaN is the canonical quiet one. Spec: GGUF-7.

    data: bytes, or an array of uint8 whose last axis is whole blocks. name: a key of GGUF in any case, or a row.
    Returns an array of data's shape with the last axis counted in values.
    Raises InputError for an unknown type and for pieces of blocks.
    """
    row = gguf_type(name)
    data = np.frombuffer(data, np.uint8) if isinstance(data, (bytes, bytearray, memoryview)) else np.asarray(data)
    if data.dtype != np.uint8:
        raise InputError(f"{row.name} blocks are given as bytes or an array of uint8, not {data.dtype}")
    shape = _whole(data.shape, row, row.bytes, row.values, "bytes")
    blocks = np.ascontiguousarray(data).reshape(-1, row.bytes)
    values = np.empty((len(blocks), row.values), F32)
    with np.errstate(all="ignore"):
        for part in _slabs(len(blocks), row):
            _decode(blocks[part], row, values[part])
    return values.reshape(shape)


def _decode(blocks, row: Gguf, room):
    scale = row.scale.values(blocks)
    tiles = (len(blocks), scale.shape[1], -1)
    room = room.reshape(tiles)
    np.multiply(row.codes.values(blocks).reshape(tiles), scale[:, :, None], out=room)   # exact
    finite = np.isfinite(scale).all()
    if row.offset is not None:
        offset = row.offset.values(blocks)
        np.add(room, offset[:, :, None], out=room)                                      # the one rounding
        finite = finite and np.isfinite(offset).all()
    if not finite:
        room[np.isnan(room)] = QUIET_NAN


def _whole(shape, row: Gguf, unit: int, other: int, what: str):
    """A shape whose last axis is whole blocks of `unit`, with `other` in their place."""
    if not shape or shape[-1] % unit:
        raise InputError(f"{row.name} takes rows of whole blocks of {unit} {what}, not shape {tuple(shape)}")
    return (*shape[:-1], shape[-1] // unit * other)


def _slabs(count: int, row: Gguf):
    """Slices of whole blocks, about CHUNK values each."""
    step = max(1, CHUNK // row.values)
    return (slice(start, start + step) for start in range(0, count, step))


# ---------------------------------------------------------------------------------------------------------------
# values to bytes: float32 operations in the order of the reference, each rounded to nearest even

def gguf_encode(x, name, variant="reference") -> np.ndarray:
    """GGUF blocks of an array of values, bit for bit as GGML's reference encoder makes them. Spec: GGUF-9.

    x: float32, or float16 or bfloat16 (exact in it); the last axis is whole blocks. name: as in gguf_decode.
    variant: a key of VARIANTS; other than "reference" for Q8_0 and Q8_1 only.
    Returns uint8, x's shape with the last axis counted in bytes (`.tobytes()` for bytes).
    Raises InputError for NaN, infinities, other dtypes, pieces of blocks, and types encoded by a search.
    """
    row = gguf_type(name)
    if not row.encodes:
        others = ", ".join(key for key, other in GGUF.items() if other.encodes)
        raise InputError(f"the reference encoder of {row.name} is a search for the least error, not a rounding, so "
                         f"its bytes are not defined; those of {others} are")
    if variant not in row.variants:
        raise InputError(f"variant {variant!r} of {row.name} is not known; allowed: {', '.join(row.variants)}")
    x = np.asarray(x)
    shape = _whole(x.shape, row, row.values, row.bytes, "values")
    x = _float32(x, row)
    values = x.reshape(-1, row.values)
    blocks = np.zeros((len(values), row.bytes), np.uint8)
    with np.errstate(all="ignore"):
        for part in _slabs(len(values), row):
            codes, words = _FITS[row.fit](values[part], row, VARIANTS[variant])
            row.codes.write(blocks[part], codes)
            for at, word in words:
                blocks[part, at: at + word.shape[1]] = word
    return blocks.reshape(shape)


def _float32(x, row: Gguf):
    """x as finite C-contiguous float32. Spec: GGUF-9."""
    if x.dtype.name not in ("float32", "float16", "bfloat16") or not x.dtype.isnative:
        raise InputError(f"{row.name} is encoded from float32, or from float16 and bfloat16, which are exact in it, "
                         f"not from {x.dtype}: round to float32 first")
    x = np.ascontiguousarray(x, F32)
    finite = np.isfinite(x)
    if not finite.all():
        at = tuple(int(i) for i in np.unravel_index(int(finite.argmin()), x.shape))
        raise InputError(f"{row.name} blocks hold finite values only, and x{list(at)} is {x[at]}: what the "
                         "reference makes of it depends on the compiler")
    return x


def _half(values):
    """(n,) float32 to (n, 2) bytes of binary16: to nearest even, infinity beyond the range."""
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)


def _over(fold, x):
    """One number for each row: a ufunc folded over its values."""
    return fold.reduceat(x.reshape(-1), np.arange(0, x.size, x.shape[1]))


def _inverse(d, numerator=1):
    """numerator / d in float32; 0 for 0."""
    return np.divide(F32(numerator), d, out=np.zeros_like(d), where=d != 0)


def _cut(y, row: Gguf):
    """Codes: y without its fraction, at most the largest code."""
    finite = np.isfinite(y)
    codes = np.minimum(y, F32(len(row.codes.levels) - 1), out=y).astype(np.uint8)
    return codes if finite.all() else np.where(finite, codes, np.uint8(row.stray))


def _extreme(x, row: Gguf, _):
    """Spec: GGUF-11."""
    least, most = _over(np.minimum, x), _over(np.maximum, x)
    both = np.flatnonzero(-least == most)                               # of equals the first counts
    most = np.where(-least > most, least, most)
    most[both] = x[both, np.abs(x[both]).argmax(axis=1)] + F32(0)       # -0 becomes +0
    d = most / F32(row.divisor)
    return _cut(x * _inverse(d)[:, None] + F32(0.5 - row.divisor), row), [(row.scale.at, _half(d))]


def _range(x, row: Gguf, _):
    """Spec: GGUF-12."""
    least, most = _over(np.minimum, x), _over(np.maximum, x)
    zero = np.flatnonzero(least == 0)
    least[zero] = x[zero, x[zero].argmin(axis=1)]                       # of +0 and -0 the first counts
    d = (most - least + F32(0)) / F32(row.divisor)                      # a difference of zeros is +0
    codes = _cut((x - least[:, None]) * _inverse(d)[:, None] + F32(0.5), row)
    return codes, [(row.scale.at, _half(d)), (row.offset.at, _half(least))]


def _amax(x, row: Gguf, variant: Variant):
    """Spec: GGUF-13, GGUF-19."""
    amax = _over(np.maximum, np.abs(x))
    d = amax / F32(row.divisor)
    inverse = _inverse(d) if variant.inverse == "of d" else _inverse(amax, row.divisor)
    y = x * inverse[:, None]
    finite = np.isfinite(y)
    levels = np.where(finite, np.rint(y) if variant.tie == "even" else _away(y), F32(0))
    codes = levels.astype(np.int8).view(np.uint8) + np.uint8(row.codes.zero)
    if not finite.all():
        none, below, above = variant.strays or (row.stray,) * 3
        strays = np.where(np.isnan(y), none, np.where(y < 0, below, above))
        codes = np.where(finite, codes, strays).astype(np.uint8)
    words = [(row.scale.at, _half(d))]
    if row.sum_at is not None:
        words.append((row.sum_at, _half(levels.sum(axis=1) * d)))       # the sum is exact; strays count nothing
    return codes, words


def _away(y):
    """To the nearest integer, ties away from zero. The distance to it is exact, so ties are seen exactly."""
    whole = np.rint(y)
    ties = np.abs(y - whole) == F32(0.5)
    if ties.any():
        whole[ties] = y[ties] + np.copysign(F32(0.5), y[ties])
    return whole


def _mean(x, row: Gguf, _):
    """Spec: GGUF-18. The sum runs from the first value to the last."""
    d = np.add.accumulate(np.abs(x), axis=1, dtype=F32)[:, -1] / F32(row.values)
    return (x >= 0).astype(np.uint8), [(row.scale.at, _half(d))]


def _nearest(x, row: Gguf, _):
    """Spec: GGUF-15."""
    tiles = x.reshape(len(x) * row.scale.count, -1)
    words = SCALE_RULES[row.scale.format](_over(np.maximum, np.abs(tiles)))
    codes = nearest_codes(tiles, SCALE_TABLES[row.scale.format][words][:, None])
    return codes.reshape(len(x), -1), [(row.scale.at, words.reshape(len(x), -1))]


def nearest_codes(x, d):
    """Codes of the doubled levels of E2M1 nearest to x in units of d, which broadcasts to x: float32 both.

    Codes of NaN and infinities mean nothing. While |x| < 16 d and 12 d is finite, midpoints decide exactly as
    the float32 errors do. Spec: GGUF-15.
    """
    magnitude, codes = np.abs(x), np.zeros(x.shape, np.uint8)
    for lower, upper in zip(_E2M1[:7], _E2M1[1:8]):
        codes += magnitude > d * F32((lower + upper) / 2)
    codes |= ((x < 0) & (codes > 0)).view(np.uint8) << np.uint8(3)
    if (odd := (magnitude >= 16 * d) & (magnitude > 0) | np.isinf(12 * d)).any():
        products = np.broadcast_to(d, x.shape)[odd][:, None] * np.array(_E2M1, F32)
        codes[odd] = np.abs(products - x[odd][:, None]).argmin(axis=1)
    return codes


_FITS = {"extreme": _extreme, "range": _range, "amax": _amax, "mean": _mean, "nearest": _nearest}


# ---------------------------------------------------------------------------------------------------------------
# scales from amax

LEAST_POWER = -148


def _least_near(power: int):
    """The least float32 whose log2, rounded to float32, is `power`: it lies up to 44 floats below 2^power."""
    if power == 0:
        return 1.0                                                      # float32 is fine enough around 0
    binade = math.frexp(power)[1] - 1
    toward_zero = power > 0 and power == 1 << binade                    # below a power of two floats lie closer
    half = math.ldexp(0.5, binade - 23 - toward_zero)
    ulp = max(power - 24, -149)
    count = math.floor(-math.expm1(-half * math.log(2)) * math.ldexp(1, power - ulp))
    return math.ldexp(1, power) - math.ldexp(count, ulp)


_LEAST = np.array([_least_near(power) for power in range(LEAST_POWER, 129)], F32)


def _e8m0_scale(amax):
    """floor(log2(amax)) - 2 + 127, the logarithm rounded to float32, modulo 256; 0 for 0. Spec: GGUF-16."""
    above = np.frexp(amax)[1]                                           # amax < 2^above
    near = amax >= _LEAST[above - LEAST_POWER]
    return np.where(amax > 0, above - 1 + near + 125, 0).astype(np.uint8)


def _ue4m3_scale(amax):
    """amax / 6 as unsigned E4M3, ties up; from 248 the code 7E; no subnormal becomes 2^-6. Spec: GGUF-17."""
    v = np.minimum(amax / F32(6), F32(448))
    small = np.minimum(v * F32(512) + F32(0.5), F32(7)).astype(np.uint8)
    normal = (v.view(np.uint32) + np.uint32(1 << 19) >> np.uint32(20)).astype(np.int32) - (120 << 3)
    return np.where(v < F32(2 ** -6), small, np.where(normal >= 0x78, 0x7E, normal)).astype(np.uint8)


SCALE_RULES = {"e8m0": _e8m0_scale, "ue4m3": _ue4m3_scale}
