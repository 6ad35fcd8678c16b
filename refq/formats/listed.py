"""Number formats whose values are a list in code order instead of sign, exponent and significand fields:
codebooks, posits, takums, HiFloat8, logarithmic numbers and exponents (Spec: LIST-1 to LIST-8).

A row gives the value of every code and, for a rounding, its *rungs*: for either sign the codes by ascending
magnitude, each with the boundary from which magnitudes take it. Rounding is a search among the boundaries.
"""

from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from functools import cached_property, lru_cache
from math import isqrt
from typing import NamedTuple

import numpy as np

from refq.errors import InputError
from refq.formats.values import INF, NAN, NEG_INF, check_code, exact, floor_log2

_DIGITS = 45                # decimal digits of exp: 149 bits
_SPARE_BITS = 60            # so many bits behind 64 say that the 64 are right


@dataclass(frozen=True)
class Irrational:
    """A number strictly between significand * 2^exponent and (significand + 1) * 2^exponent.

    The significand has 64 bits, so that the next 64-bit number on either side is known.
    """

    negative: bool
    significand: int
    exponent: int
    text: str

    def __str__(self):
        return self.text

    def __neg__(self):
        text = self.text.removeprefix("-") if self.negative else f"-{self.text}"
        return Irrational(not self.negative, self.significand, self.exponent, text)

    @property
    def inside(self) -> Fraction:
        """A number of 65 bits that every comparison with numbers of at most 64 bits treats as this one."""
        magnitude = _dyadic(2 * self.significand + 1, self.exponent - 1)
        return -magnitude if self.negative else magnitude


class Rung(NamedTuple):
    """Magnitudes above `boundary` (and it, when `closed`) take `code`, up to the next rung.

    The first rung has no boundary: it takes every smaller nonzero magnitude. code None: past the last value.
    """

    code: int | None
    boundary: object = None
    closed: bool = False


class Columns(NamedTuple):
    """The meaning of every code as arrays: significands m (top bit at 63, or 0), exponents of that bit."""

    negative: np.ndarray        # of -0 too
    m: np.ndarray
    exponent: np.ndarray        # -1 where m is 0
    nan: np.ndarray
    inf: np.ndarray
    irrational: np.ndarray      # the value lies strictly between m and m + 1


class Listed:
    """What follows from the list of values. A kind supplies `meaning` and `rungs`."""

    is_listed, is_float, signed, pad = True, False, True, 0
    special, tie = "listed", "own"
    clause = "LIST-1"
    own_specials = False        # infinities and NaN become NaN under every overflow rule
    roundings = ("rne",)

    def meaning(self, code: int):
        """The value of a code: a Fraction, an Irrational, or "nan", "inf", "-inf"."""
        raise NotImplementedError

    def rungs(self, rounding: str, negative: bool) -> list[Rung]:
        """The rungs of one side; `rounding` is one of self.roundings."""
        raise NotImplementedError

    def columns(self) -> Columns:
        """The meaning of every code, for array arithmetic."""
        table = []
        for code, value in enumerate(self.meanings):
            irrational = isinstance(value, Irrational)
            if isinstance(value, str) or not irrational and value == 0:
                negative = value == NEG_INF or self.is_minus_zero(code)
                table.append((negative, 0, -1, value == NAN, value in (INF, NEG_INF), False))
            elif irrational:
                table.append((value.negative, value.significand, value.exponent + 63, False, False, True))
            else:
                m = abs(value.numerator) << 64 >> value.numerator.bit_length()      # the top bit at 63
                table.append((value < 0, m, floor_log2(abs(value)), False, False, False))
        kinds = (bool, np.uint64, np.int64, bool, bool, bool)
        return Columns(*(np.array(column, kind) for column, kind in zip(zip(*table), kinds)))

    def side(self, rounding: str, negative: bool) -> tuple:
        """The rungs of one side as (exponents, m, codes); each starts at m * 2^(exponent - 63)."""
        rungs = self.rungs(rounding, negative)
        exponent, m = zip(*map(_start, rungs))
        return np.array(exponent, np.int64), np.array(m, np.uint64), [rung.code for rung in rungs]

    @property
    def width(self) -> int:
        return self.bits

    def value_of(self, code: int):
        """The value of a code as values.exact gives it. Raises InputError for an irrational one."""
        check_code(self, code)
        value = self.meaning(code)
        if isinstance(value, Irrational):
            raise InputError(f"{self.name} {code:#x} is {value}, which is irrational and no fraction; "
                             "decode gives it rounded to nearest")
        return value

    @cached_property
    def meanings(self) -> tuple:
        """The meaning of every code."""
        return tuple(self.meaning(code) for code in range(1 << self.bits))

    @cached_property
    def ascending(self) -> list[tuple]:
        """(value, code) of every finite value in order; of two zeros the first."""
        pairs = [(value, code) for code, value in enumerate(self.meanings) if not isinstance(value, str)]
        seen = {}
        for value, code in pairs:
            seen.setdefault(key(value), (value, code))
        return [seen[place] for place in sorted(seen)]

    @property
    def max(self):
        return self.ascending[-1][0]

    @property
    def lowest(self):
        return self.ascending[0][0]

    @property
    def min_positive(self):
        return next((value for value, _ in self.ascending if key(value) > 0), None)

    @property
    def min_normal(self) -> None:
        return None

    min_subnormal = emin = min_normal

    @property
    def emax(self) -> int:
        largest = key(self.max) if key(self.max) > 0 else -key(self.lowest)
        return floor_log2(largest) if largest else 0

    @cached_property
    def exact(self) -> bool:
        """Whether every value is a rational number."""
        return not columns(self).irrational.any()

    @cached_property
    def precision(self) -> int:
        """The most significant bits that a value has; 65 where some value is irrational."""
        low = columns(self).m & (~columns(self).m + np.uint64(1))
        return 65 - int(bit_length(low[low != 0]).min(initial=64)) if self.exact else 65

    @property
    def code_of_one(self) -> int | None:
        return next((code for value, code in self.ascending if value == 1), None)

    @property
    def nan_codes(self) -> list[int]:
        return np.flatnonzero(columns(self).nan).tolist()

    @property
    def inf_codes(self) -> list[int]:
        return np.flatnonzero(columns(self).inf).tolist()

    @property
    def nan_code(self) -> int | None:
        """The code that a NaN becomes."""
        return next(iter(self.nan_codes), None)

    @property
    def zero(self) -> int:
        """The code of zero; where there is none, the code that zero becomes."""
        return next(code for value, code in self.ascending if value == 0)

    def of_zero(self, rounding: str) -> int:
        """The code that zero becomes."""
        return self.zero

    @property
    def minus_zero(self) -> int | None:
        return None

    def is_minus_zero(self, code: int) -> bool:
        """Whether a code is -0: the one that is encoded, or another."""
        return code == self.minus_zero

    @property
    def has_neg_zero(self) -> bool:
        return self.minus_zero is not None

    @property
    def has_zero(self) -> bool:
        return any(value == 0 for value, _ in self.ascending)

    @property
    def has_nan(self) -> bool:
        return self.nan_code is not None

    @property
    def has_inf(self) -> bool:
        return bool(self.inf_codes)

    @property
    def count_finite(self) -> int:
        return len(self.ascending)


@dataclass(frozen=True)
class Codebook(Listed):
    """Values given one by one, in code order (Spec: LIST-2). Codes past the list are no values.

    tie: where the midpoint of two values goes: "lower" to the lesser value, "toward-zero", "away".
    Of equal values (0 and -0 are equal) the lowest code is taken.
    Raises InputError for an unknown tie, or a list of other than 2 to 65536 finite numbers.
    """

    name: str
    values: tuple[float, ...]
    tie: str = "lower"
    ref: str = ""
    aka: tuple[str, ...] = ()

    kind, clause = "codebook", "LIST-2"
    words = "to the nearest value"
    roundings = ("rne", "rna", "rnz", "rtz", "rup", "rdn")

    def __post_init__(self):
        if self.tie not in _TIES:
            raise InputError(f"{self.name}: tie {self.tie!r} is not a rule; allowed are {', '.join(_TIES)}")
        object.__setattr__(self, "values", tuple(map(float, self.values)))
        if not 2 <= len(self.values) <= 1 << 16:
            raise InputError(f"{self.name}: needs 2 to 65536 values, got {len(self.values)}")
        if not np.isfinite(self.values).all():
            raise InputError(f"{self.name}: its values must be finite numbers")

    # Compared by the bits of its values: -0.0 == 0.0, but a list with the one rounds otherwise. The bits are
    # taken once, for a table is looked up in every cache by its hash.

    def __eq__(self, other):
        return type(other) is Codebook and self._identity == other._identity

    def __hash__(self):
        return hash(self._identity)

    @cached_property
    def _identity(self) -> tuple:
        return self.name, np.array(self.values).tobytes(), self.tie, self.ref, self.aka

    @property
    def bits(self) -> int:
        return (len(self.values) - 1).bit_length()

    @property
    def minus_zero(self) -> int | None:
        """The first code of -0, which a negative number that rounds to zero takes."""
        return next(filter(self.is_minus_zero, range(len(self.values))), None)

    def is_minus_zero(self, code: int) -> bool:
        return code < len(self.values) and repr(self.values[code]) == "-0.0"

    @property
    def zero(self) -> int:
        return self.of_zero("rne")

    def of_zero(self, rounding: str) -> int:
        if self.has_zero:
            return self.values.index(0.0)
        above = next((at for at, (value, _) in enumerate(self.ascending) if value > 0), len(self.ascending))
        if not 0 < above < len(self.ascending):
            return self.ascending[0 if above == 0 else -1][1]
        (low, below), (high, code) = self.ascending[above - 1: above + 1]
        boundary, upper = _boundary(low, high, rounding, self.tie, negative=True)
        return code if boundary < 0 or boundary == 0 and upper else below

    @property
    def has_zero(self) -> bool:
        return 0.0 in self.values

    @property
    def nan_code(self) -> None:
        return None         # codes past the list read as NaN; nothing becomes one

    def meaning(self, code: int):
        return Fraction(self.values[code]) if code < len(self.values) else NAN

    @cached_property
    def ascending(self) -> list[tuple]:
        found, codes = np.unique(self.values, return_index=True)        # of equal values the first
        return [(Fraction(value), code) for value, code in zip(found.tolist(), codes.tolist())]

    def columns(self) -> Columns:
        values = np.full(1 << self.bits, np.nan)
        values[: len(self.values)] = self.values
        nan = np.isnan(values)
        fraction, exponent = np.frexp(np.where(nan, 0, np.abs(values)))
        m = np.ldexp(fraction, 53).astype(np.uint64) << np.uint64(11)
        no = np.zeros_like(nan)
        return Columns(np.signbit(values) & ~nan, m, exponent.astype(np.int64) - 1, nan, no, no)

    def rungs(self, rounding: str, negative: bool) -> list[Rung]:
        first, found = None, []
        steps = list(zip(self.ascending, self.ascending[1:]))
        for (low, below), (high, above) in reversed(steps) if negative else steps:
            boundary, upper = _boundary(low, high, rounding, self.tie, negative)
            code, edge = (self._signed(low, below), -boundary) if negative else (above, boundary)
            if edge <= 0:
                first = code
            else:
                found.append(Rung(code, edge, upper != negative))
        if first is None:
            low, code = self.ascending[-1 if negative else 0]
            first = self._signed(low, code) if negative else code
        return [Rung(first), *found]

    def _signed(self, value, code):
        """A negative number that rounds to zero becomes -0 where the list has it."""
        return self.minus_zero if value == 0 and self.minus_zero is not None else code


# Whether a midpoint goes to the upper value, by the sign of the midpoint.
_TIES = {"lower": lambda middle: False,
         "toward-zero": lambda middle: middle < 0,
         "away": lambda middle: middle > 0}


def _boundary(low: Fraction, high: Fraction, rounding: str, tie: str, negative: bool):
    """(boundary, whether it goes up itself) between two values, for one sign of the source. Spec: LIST-2."""
    if rounding == "rtz":
        rounding = "rup" if negative else "rdn"
    if rounding == "rup":
        return low, False
    if rounding == "rdn":
        return high, True
    middle = (low + high) / 2
    return middle, _TIES[{"rne": tie, "rna": "away", "rnz": "toward-zero"}[rounding]](middle)


class _Extended(Listed):
    """Rounded as bit strings: the boundary of two neighbours is the value between them of one bit more, and
    it goes to the even code. Nonzero values never become zero (Spec: LIST-3)."""

    own_specials = True
    words = "to nearest on the bit string, ties to even"

    def positive(self) -> range:
        """The codes of the positive values, ascending."""
        return range(1, 1 << (self.bits - 1))

    def magnitudes(self, codes, bits: int) -> tuple[np.ndarray, np.ndarray]:
        """(m, exponent) of positive codes (int64) of the format with that many bits, as in Columns."""
        raise NotImplementedError

    def fraction(self, code: int, bits: int, m: int, exponent: int):
        """The value of a positive code that has this significand and exponent."""
        return _dyadic(m >> 44, exponent - 19)                  # at most 17 bits are not zero

    def of_strings(self, codes, bits: int) -> list:
        """The values of positive codes of the format with that many bits."""
        m, exponent = self.magnitudes(np.asarray(codes, np.int64), bits)
        return [self.fraction(code, bits, *parts)
                for code, *parts in zip(codes, m.tolist(), exponent.tolist())]

    def meaning(self, code: int):
        if code in (0, self.nan_code):
            return NAN if code else Fraction(0)
        (value,) = self.of_strings([min(code, (1 << self.bits) - code)], self.bits)
        return value if code < self.nan_code else -value

    @cached_property
    def meanings(self) -> tuple:
        upper = self.of_strings(self.positive(), self.bits)
        return (Fraction(0), *upper, NAN, *(-value for value in reversed(upper)))

    @cached_property
    def ascending(self) -> list[tuple]:
        half = 1 << (self.bits - 1)
        return [(self.meanings[code], code) for code in (*range(half + 1, 2 * half), *range(half))]

    # What the list of values would say, without the list.

    exact, inf_codes, zero, has_zero = True, (), 0, True

    @property
    def nan_code(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def nan_codes(self) -> list[int]:
        return [self.nan_code]

    @property
    def max(self):
        return self.meaning(self.nan_code - 1)

    @property
    def lowest(self):
        return self.meaning(self.nan_code + 1)

    @property
    def min_positive(self):
        return self.meaning(1)

    @property
    def code_of_one(self) -> int:
        return 1 << (self.bits - 2)

    @property
    def count_finite(self) -> int:
        return (1 << self.bits) - 1

    def columns(self) -> Columns:
        m, exponent = self.magnitudes(np.array(self.positive()), self.bits)
        codes = np.arange(1 << self.bits)
        none = np.zeros(1, m.dtype), np.full(1, -1)
        m = np.concatenate([none[0], m, none[0], m[::-1]])
        exponent = np.concatenate([none[1], exponent, none[1], exponent[::-1]])
        one = (m == np.uint64(1 << 63)) & (exponent == 0)
        irrational = (m != 0) & ~one & (not self.exact)
        nan = codes == self.nan_code
        return Columns(codes > self.nan_code, m, exponent, nan, np.zeros_like(nan), irrational)

    @cached_property
    def edges(self) -> tuple:
        """The boundary below each positive code but the first."""
        return tuple(self.of_strings([2 * code - 1 for code in self.positive()[1:]], self.bits + 1))

    def rungs(self, rounding: str, negative: bool) -> list[Rung]:
        first, *codes = self.positive()
        signed = (lambda code: (1 << self.bits) - code) if negative else int
        found = (Rung(signed(code), edge, code % 2 == 0) for code, edge in zip(codes, self.edges))
        return [Rung(signed(first)), *found]

    def side(self, rounding: str, negative: bool) -> tuple:
        codes = np.array(self.positive())
        m, exponent = self.magnitudes(2 * codes[1:] - 1, self.bits + 1)
        # The next 64-bit number where the boundary itself, or what an irrational one is cut to, is not taken.
        m += ((codes[1:] % 2 == 1) | (not self.exact)).astype(np.uint64)
        taken = (1 << self.bits) - codes if negative else codes
        return np.append(_NO_EDGE[0], exponent), np.append(np.uint64(_NO_EDGE[1]), m), taken.tolist()


_NO_EDGE = -(1 << 40), 0        # where the first rung starts, as (exponent, m)


def _check_size(row, least: int, most: int = 16):
    if not least <= row.bits <= most:
        raise InputError(f"{row.name}: {row.bits} bits are not allowed; {least} to {most} are")


@dataclass(frozen=True)
class Posit(_Extended):
    """A posit of 3 to 16 bits with `es` exponent bits; the 2022 standard has es = 2 (Spec: LIST-4)."""

    name: str
    bits: int
    es: int = 2
    ref: str = ""
    aka: tuple[str, ...] = ()

    kind, clause = "posit", "LIST-4"

    def __post_init__(self):
        _check_size(self, 3)
        if not 0 <= self.es <= 3:
            raise InputError(f"{self.name}: es={self.es} is not allowed; 0 to 3 are")

    def magnitudes(self, codes, bits: int):
        size = bits - 1                                             # bits below the sign
        ones = codes >> (size - 1) & 1
        flipped = np.where(ones, codes ^ ((1 << size) - 1), codes)  # the regime run is now leading zeros
        run = size - bit_length(flipped.astype(np.uint64))
        left = np.maximum(size - run - 1, 0)
        tail = (codes & ((1 << left) - 1)) << self.es               # room for exponent bits cut off: zeros
        exponent = (np.where(ones, run - 1, -run) << self.es) + (tail >> left)
        return _normal(tail & ((1 << left) - 1), left), exponent


def _normal(trailing, size):
    """The significands 1.trailing of `size` trailing bits, with the top bit at 63."""
    return np.uint64(1 << 63) | trailing.astype(np.uint64) << (63 - size).astype(np.uint64)


def _dyadic(significand: int, exponent: int) -> Fraction:
    """significand * 2^exponent."""
    return Fraction(significand << exponent) if exponent >= 0 else Fraction(significand, 1 << -exponent)


@dataclass(frozen=True)
class Takum(_Extended):
    """A takum of 3 to 16 bits, variant "linear" or "log" (Spec: LIST-5)."""

    name: str
    bits: int
    variant: str
    ref: str = ""
    aka: tuple[str, ...] = ()

    kind, clause = "takum", "LIST-5"

    def __post_init__(self):
        _check_size(self, 3)
        if self.variant not in ("linear", "log"):
            raise InputError(f"{self.name}: variant {self.variant!r} is not known; "
                             "allowed are linear and log")

    @property
    def exact(self) -> bool:
        return self.variant == "linear"

    def magnitudes(self, codes, bits: int):
        characteristic, m, tail = _takum(codes, bits)
        if self.variant == "linear":
            return _normal(m, tail), characteristic
        return _roots_of_e((characteristic << _TAKUM_TAIL) + (m << (_TAKUM_TAIL - tail)))

    def fraction(self, code: int, bits: int, m: int, exponent: int):
        if self.variant == "linear" or (m, exponent) == (1 << 63, 0):
            return super().fraction(code, bits, m, exponent)
        characteristic, trailing, tail = (int(part) for part in _takum(np.int64(code), bits))
        power = characteristic + Fraction(trailing, 1 << tail)
        return Irrational(False, m, exponent - 63, f"sqrt(e)^({power})")


_TAKUM_TAIL = 12                # mantissa bits of a takum of 17 bits at most


def _takum(codes, bits: int):
    """(characteristic, m, bits of m) of positive n-bit takums; short ones are read with zeros behind them."""
    size = max(bits, 12)
    codes = codes << (size - bits)
    direction, regime = codes >> (size - 2), codes >> (size - 5) & 7
    length = np.where(direction, regime, 7 - regime)
    tail = size - 5 - length
    start = np.where(direction, (1 << length) - 1, 1 - (2 << length))
    return start + (codes >> tail & ((1 << length) - 1)), codes & ((1 << tail) - 1), tail


@dataclass(frozen=True)
class HiFloat8(Listed):
    """HiFloat8: a prefix code says how many of the seven bits below the sign are exponent (Spec: LIST-6)."""

    name: str
    ref: str = ""
    aka: tuple[str, ...] = ()

    kind, clause, bits = "hifloat8", "LIST-6", 8
    roundings = ("rne", "rna")
    words = "to nearest, ties away from zero"

    def meaning(self, code: int):
        if code == 0x80:
            return NAN
        magnitude = _hifloat8(code & 0x7F)
        if code & 0x7F == _HIFLOAT8_INFINITY:
            return NEG_INF if code & 0x80 else INF
        return -magnitude if code & 0x80 else magnitude

    def rungs(self, rounding: str, negative: bool) -> list[Rung]:
        ladder = sorted((_hifloat8(code), code) for code in range(128))
        found = [Rung(0)]
        for (low, _), (high, code) in zip(ladder, ladder[1:]):
            taken = None if code == _HIFLOAT8_INFINITY else code | negative << 7
            found.append(Rung(taken, (low + high) / 2, closed=True))
        return found


_HIFLOAT8_INFINITY = 0x6F       # where 1.5 * 2^15 would be
_DOTS = (("11", 4), ("10", 3), ("01", 2), ("001", 1), ("0001", 0))


def _hifloat8(body: int) -> Fraction:
    """The magnitude of the seven bits below the sign, infinity read as the number in its place."""
    text = f"{body:07b}"
    if text.startswith("0000"):
        return Fraction(2) ** (body - 23) if body else Fraction(0)
    prefix, size = next(dot for dot in _DOTS if text.startswith(dot[0]))
    field, mantissa = text[len(prefix):][:size], text[len(prefix) + size:]
    exponent = int("1" + field[1:], 2) * (-1 if field[0] == "1" else 1) if field else 0
    return (1 + Fraction(int(mantissa, 2), 1 << len(mantissa))) * Fraction(2) ** exponent


@dataclass(frozen=True)
class LNS(Listed):
    """Logarithmic numbers: a sign and a two's-complement exponent with `frac` fraction bits (LIST-7)."""

    name: str
    bits: int
    frac: int
    ref: str = ""
    aka: tuple[str, ...] = ()

    kind, clause = "lns", "LIST-7"
    words = "to the nearest exponent"

    def __post_init__(self):
        _check_size(self, 3)
        if not 0 <= self.frac <= 8 or self.bits - self.frac > 11:
            raise InputError(f"{self.name}: frac={self.frac} is not allowed with {self.bits} bits; "
                             "0 to 8 are, and bits - frac up to 11")

    @property
    def reserved(self) -> int:
        """The exponent field that means zero, and with the sign NaN."""
        return 1 << (self.bits - 2)

    def meaning(self, code: int):
        field = code & (2 * self.reserved - 1)
        negative = code >> (self.bits - 1)
        if field == self.reserved:
            return NAN if negative else Fraction(0)
        exponent = field - (2 * self.reserved if field > self.reserved else 0)
        value = _power_of_two(Fraction(exponent, 1 << self.frac))
        return -value if negative else value

    def rungs(self, rounding: str, negative: bool) -> list[Rung]:
        half, found, sign = Fraction(1, 2 << self.frac), [], negative << (self.bits - 1)
        for exponent in range(1 - self.reserved, self.reserved):
            code = sign | exponent % (2 * self.reserved)
            found.append(Rung(code, _power_of_two(Fraction(exponent, 1 << self.frac) - half)))
        beyond = Rung(None, _power_of_two(Fraction(self.reserved - 1, 1 << self.frac) + half))
        return [Rung(found[0].code), *found[1:], beyond]


@dataclass(frozen=True)
class Exponent(Listed):
    """Powers of two, given by their exponent in two's complement; the least code is NaN (Spec: LIST-8).

    Exponents from the least to the greatest leave none out: block scales are made from these three.
    lowest_exponent, highest_exponent; exponent_codes: the code of every exponent in order, int64.
    """

    name: str
    bits: int
    ref: str = ""
    aka: tuple[str, ...] = ()

    kind, clause = "exponent", "LIST-8"
    signed, has_zero = False, False
    roundings = ("rne", "rna")
    words = "to nearest, ties up"

    def __post_init__(self):
        _check_size(self, 2, 8)         # block scales reach from 2^-127 up

    @property
    def highest_exponent(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def lowest_exponent(self) -> int:
        return -self.highest_exponent

    @cached_property
    def exponent_codes(self) -> np.ndarray:
        return np.arange(self.lowest_exponent, self.highest_exponent + 1) & ((1 << self.bits) - 1)

    @property
    def zero(self) -> int:
        return int(self.exponent_codes[0])

    def meaning(self, code: int):
        exponent = code - (code >> (self.bits - 1) << self.bits)
        return NAN if exponent < self.lowest_exponent else Fraction(2) ** exponent

    def rungs(self, rounding: str, negative: bool) -> list[Rung]:
        if negative:
            return [Rung(None)]         # whatever is below zero: an overflow rule says what becomes of it
        exponents = range(self.lowest_exponent + 1, self.highest_exponent + 2)
        codes = [*self.exponent_codes.tolist(), None]
        ties = (Fraction(3, 4) * Fraction(2) ** exponent for exponent in exponents)
        return [Rung(codes[0]), *(Rung(code, tie, closed=True) for code, tie in zip(codes[1:], ties))]


def _roots_of_e(powers) -> tuple[np.ndarray, np.ndarray]:
    """(m, exponent) of sqrt(e)^(power / 2^12) for an array of integers, cut to 64 bits.

    Three factors make each: of the power's whole part and of either half of the rest.
    """
    half = _TAKUM_TAIL // 2
    found = []
    for power in powers.tolist():
        whole, high, low = power >> 2 * half << 2 * half, power >> half & 63, power & 63
        (a, shift_a), (b, shift_b), (c, shift_c) = map(_root_of_e, (whole, high << half, low))
        product = a * b * c
        drop = product.bit_length() - 64 - _SPARE_BITS
        wide = product >> drop
        rest = wide & ((1 << _SPARE_BITS) - 1)
        if power and not 4 < rest < (1 << _SPARE_BITS) - 4:       # the factors are off by 2^-126 in all
            raise ArithmeticError(f"sqrt(e)^({power}/4096) is too close to a 64-bit number to be cut there")
        found.append((wide >> _SPARE_BITS, drop + _SPARE_BITS + 63 - (shift_a + shift_b + shift_c)))
    m, exponent = zip(*found)
    return np.array(m, np.uint64), np.array(exponent, np.int64)


@lru_cache(maxsize=1 << 10)
def _root_of_e(power: int) -> tuple[int, int]:
    """(w, shift): sqrt(e)^(power / 2^12) is w / 2^shift, w of 129 or 130 bits and cut off; 1 is exact."""
    context = Context(prec=_DIGITS)
    value = context.exp(context.divide(Decimal(power), Decimal(2 << _TAKUM_TAIL)))
    numerator, denominator = value.as_integer_ratio()
    shift = 129 - numerator.bit_length() + denominator.bit_length()
    return (numerator << max(shift, 0)) // (denominator << max(-shift, 0)), shift


def _power_of_two(power: Fraction) -> Fraction | Irrational:
    """2^power for a dyadic power, by square roots of integers."""
    if power.denominator == 1:
        return Fraction(2) ** int(power)
    whole = power.numerator // power.denominator
    root = 1 << (63 * power.denominator + power.numerator - whole * power.denominator)
    for _ in range(power.denominator.bit_length() - 1):
        root = isqrt(root)
    return Irrational(False, root, whole - 63, f"2^({power})")


def meaning(row, code: int):
    """The value of a code of any format; an Irrational where it has no fraction."""
    return row.meanings[code] if row.is_listed else exact(row, code)


def key(value) -> Fraction:
    """A Fraction that sorts a finite value among others."""
    return value.inside if isinstance(value, Irrational) else value


def significant_bits(value: Fraction) -> int:
    """Bits of a dyadic's odd part."""
    odd = abs(value.numerator)
    return odd.bit_length() - ((odd & -odd).bit_length() - 1 if odd else 0)


# ------------------------------------------------------------------------------------------------------------
# rounding by search

@dataclass(frozen=True)
class Ladder:
    """The rungs of both signs as arrays: rung i starts at m[i] * 2^(exponent[i] - 63), in magnitude."""

    exponent: np.ndarray
    m: np.ndarray
    codes: np.ndarray
    sides: tuple[tuple[int, int], ...]      # first and last rung of the positive, of the negative side


def rule_of(row, rounding: str) -> str:
    """The rounding, when the format has it. Raises InputError for any other."""
    if rounding not in row.roundings:
        raise InputError(f"{row.name} has no rounding {rounding!r}; it is rounded by its own rule, "
                         f"{'and has' if len(row.roundings) > 1 else 'named'} {', '.join(row.roundings)}")
    return rounding


@lru_cache(maxsize=256)
def ladder(row, rounding: str, limits) -> Ladder:
    """Where each code starts. Spec: LIST-1, OVER-8."""
    exponents, significands, codes, sides = [], [], [], []
    for negative in (False, True):
        chain, lower = _outcomes(row, limits, limits.above, negative)
        exponent, m, side = row.side(rule_of(row, rounding), lower)
        sides.append((len(codes), len(codes) + len(side) - 1))
        exponents.append(exponent)
        significands.append(m)
        beyond = outcome(row, chain, lower) if None in side else None
        codes += [beyond if code is None else code for code in side]
    return Ladder(np.concatenate(exponents), np.concatenate(significands), np.array(codes, np.uint64),
                  tuple(sides))


def _start(rung: Rung) -> tuple[int, int]:
    """(exponent, m): the least 64-bit number m * 2^(exponent - 63) on a rung."""
    edge = rung.boundary
    if edge is None:
        return _NO_EDGE
    if isinstance(edge, Irrational):
        m, exponent = edge.significand + 1, edge.exponent + 63
    else:
        exponent = floor_log2(edge)
        up, down = edge.numerator << max(63 - exponent, 0), edge.denominator << max(exponent - 63, 0)
        m = -(-up // down) if rung.closed else up // down + 1
    return (exponent + 1, m >> 1) if m >> 64 else (exponent, m)


def round_codes(parts, row, rule, limits):
    """Codes of source values taken apart (definition.Parts), uint64. Spec: LIST-1, OVER-8, ZERO-2."""
    steps = ladder(row, rule.name, limits)
    code = steps.codes[_climb(parts, steps)]
    no_zero = limits.zero == "nan" and row.has_nan and not row.has_zero
    zero = row.nan_code if no_zero else row.of_zero(rule.name)
    code = np.where((parts.m == 0) & ~parts.nan & ~parts.inf, np.uint64(zero), code)
    for negative in (False, True):
        side = parts.negative == negative
        infinity = outcome(row, *_outcomes(row, limits, limits.infinite, negative))
        code = np.where(parts.inf & side, np.uint64(infinity), code)
        code = np.where(parts.nan & side, np.uint64(_nan(row, limits, negative)), code)
    return code


def _climb(parts, steps: Ladder):
    """Index of the rung that each value stands on: the last that starts at or below it."""
    (first, last), (first_negative, last_negative) = steps.sides
    low = np.where(parts.negative, first_negative, first)
    high = np.where(parts.negative, last_negative, last)
    for _ in range(max(last - first, last_negative - first_negative).bit_length()):
        middle = (low + high + 1) >> 1
        exponent = steps.exponent[middle]
        reached = (parts.exponent > exponent) | (parts.exponent == exponent) & (parts.m >= steps.m[middle])
        low, high = np.where(reached, middle, low), np.where(reached, high, middle - 1)
    return low


def starts(row, rounding: str, limits) -> list[tuple[np.ndarray, np.ndarray]]:
    """For either sign the least 64-bit number (exponent, m) of every rung that has one."""
    steps = ladder(row, rounding, limits)
    return [(steps.exponent[first + 1: last + 1], steps.m[first + 1: last + 1])
            for first, last in steps.sides]


def bit_length(words) -> np.ndarray:
    """Bits of each uint64. Clearing the bit below the top one keeps the float64 in its binade."""
    return np.frexp((words & ~(words >> np.uint64(1))).astype(np.float64))[1].astype(np.int64)


def _outcomes(row, limits, chain, negative: bool):
    """(chain of outcomes, whether on the lower side) past the end of one side of the source. Spec: OVER-8."""
    if row.signed or not negative:
        return chain, negative
    return (chain, False) if limits.negative == ("magnitude",) else (limits.negative, True)


def outcome(row, chain, negative: bool) -> int:
    """The code of the first word of a chain (OVER-*) that the format can express, on one side."""
    if row.own_specials:
        return row.nan_code
    wanted = NEG_INF if negative else INF
    infinity = next((code for code in row.inf_codes if row.meanings[code] == wanted), None)
    codes = {"max": row.ascending[0 if negative else -1][1], "inf": infinity, "nan": row.nan_code}
    return next((codes[word] for word in chain if codes[word] is not None), codes["max"])


def _nan(row, limits, negative: bool) -> int:
    """What a NaN source becomes. Spec: NAN-2, LIST-1."""
    if row.has_nan and (row.own_specials or limits.nan[0] == "nan"):
        return row.nan_code
    word = next((word for word in limits.nan if word != "nan"), "+max")
    if word in ("zero", "opposite-zero"):
        return row.zero
    return row.ascending[0 if negative and word == "signed-max" else -1][1]


def boundaries(row, rounding="rne", negative=False) -> list:
    """The boundaries of one side as magnitudes (Fractions or Irrationals), ascending."""
    return [rung.boundary for rung in row.rungs(rule_of(row, rounding), negative)[1:]]


# ------------------------------------------------------------------------------------------------------------
# as a source, and decoded

def taken_apart(codes, row) -> tuple[np.ndarray, ...]:
    """The fields of definition.Parts for flat codes. Raises InputError where values are irrational."""
    if not row.exact:
        raise InputError(f"values of {row.name} are irrational, so it cannot be the source of an exact "
                         "conversion; decode it first")
    found = columns(row)
    return *(column[codes] for column in found[:5]), np.zeros(codes.shape, np.uint64)


@lru_cache(maxsize=64)
def columns(row) -> Columns:
    """row.columns(), kept."""
    return row.columns()


@lru_cache(maxsize=64)
def value_list(row, dtype: np.dtype) -> np.ndarray:
    """The value of every code, exact or (irrational ones) correctly rounded to nearest. Spec: LIST-1."""
    table = columns(row)
    drop = np.where(table.irrational, 63 - np.finfo(dtype).nmant, 11).astype(np.uint64)     # exact: 53 bits
    carry = (table.m >> (drop - np.uint64(1)) & np.uint64(1)) * table.irrational            # never a tie
    kept = ((table.m >> drop) + carry).astype(np.float64)
    values = np.ldexp(kept, (table.exponent - 63).astype(np.int32) + drop.astype(np.int32))
    values = np.where(table.nan, np.nan, np.where(table.inf, np.inf, values))
    return np.where(table.negative, -values, values).astype(dtype)


@lru_cache(maxsize=256)
def holds(dtype: np.dtype, row) -> bool:
    """Whether a float dtype holds every finite value; irrational ones only need to be in its normal range."""
    info, (_, m, exponent, *_) = np.finfo(dtype), columns(row)
    m, exponent = m[m != 0], exponent[m != 0]
    precision, emax = info.nmant + 1, int(info.maxexp) - 1
    largest = np.uint64(((1 << precision) - 1) << (64 - precision))
    if ((exponent > emax) | (exponent == emax) & (m > largest)).any():
        return False
    if not row.exact:
        return bool((exponent >= int(info.minexp)).all())
    lowest_bit = exponent - 64 + bit_length(m & (~m + np.uint64(1)))
    room = np.maximum(exponent - info.nmant, int(info.minexp) - info.nmant)
    return bool((lowest_bit >= room).all())


# ------------------------------------------------------------------------------------------------------------
# the rows

def _single(*values: float, divisor: float = 1) -> tuple[float, ...]:
    """Numbers as float32 has them, after one float32 division."""
    return tuple(float(np.float32(value) / np.float32(divisor)) for value in values)


_BITSANDBYTES = "bitsandbytes functional.py get_4bit_type"

ROWS = [
    Codebook("nf4", _single(
        -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1), ref=_BITSANDBYTES, aka=("normalfloat4", "bnb_nf4")),
    Codebook("af4", _single(
        1, 0.72424863, 0.55496234, 0.42563882, 0.31675666, 0.21961274, 0.12934483, 0.04273164, 0, -0.04934812,
        -0.14982478, -0.25607552, -0.3736951, -0.51243739, -0.69441008, -1),
        ref=_BITSANDBYTES, aka=("bnb_af4",)),
    Codebook("bnb_fp4", _single(
        0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3, divisor=12), tie="toward-zero",
        ref=_BITSANDBYTES),
    Codebook("ternary", (-1.0, 0.0, 1.0), tie="toward-zero", ref="BitNet b1.58; GGML TQ1_0 digits"),
    Posit("posit8", 8, ref="Posit Standard 2022", aka=("posit8_es2",)),
    Posit("posit16", 16, ref="Posit Standard 2022", aka=("posit16_es2",)),
    *(Takum(f"takum_{variant}{bits}", bits, variant, ref="libtakum 543811a")
      for variant in ("linear", "log") for bits in (8, 16)),
    HiFloat8("hif8", ref="ddddwee1/HiFloat8; en_dtypes 0.0.4", aka=("hifloat8",)),
    LNS("lns8f3", 8, 3, ref="LIST-7"),
    Exponent("pow2int8", 8, ref="TensorCast, an integer as the scale"),
]
