"""From a row to exact values: the integer layout every other module computes with.

A magnitude is counted by an *index*: 0 is zero, 1 the smallest positive value, and so on upwards. For a
floating format the index is the code without its sign (one more where there is no zero), so that a carry out
of the significand moves into the next binade by itself; for an integer it is the magnitude. One formula gives
every value (Spec: VAL-2):

    index < 2^man:  index * 2^qmin
    otherwise:      (2^man + index mod 2^man) * 2^(qmin + (index >> man) - 1)
"""

from dataclasses import dataclass
from fractions import Fraction

from refq.errors import InputError

NAN, INF, NEG_INF = "nan", "inf", "-inf"


@dataclass(frozen=True)
class Layout:
    """Everything arithmetic needs to know of a number format, derived from its row (Spec: VAL-1, VAL-3)."""

    bits: int               # significant code bits, sign included, padding excluded
    pad: int                # low bits of the stored word that carry nothing
    man: int                # log2 of the codes per binade; for integers their bits: no second binade
    qmin: int               # exponent of the smallest quantum
    first: int              # index of the smallest magnitude that has a code (1 where there is no zero)
    max_index: int          # largest finite magnitude
    min_index: int          # magnitude of the least value: 0 when unsigned
    sign: str               # "bit" | "twos" | "none"
    neg_zero: bool
    nan: int | None         # the quiet NaN code with sign 0
    nan_ones: int | None    # the NaN code with all trailing bits one and sign 0
    nan_signed: bool        # NaN codes exist with either sign
    inf: int | None
    neg_inf: int | None

    @property
    def top_index(self) -> int:
        return max(self.max_index, self.min_index)

    def code(self, negative: bool, index: int) -> int:
        """The code (padding excluded) of a finite value."""
        if negative and self.sign == "twos":
            return -index % (1 << self.bits)
        if negative and self.sign == "bit" and (index or self.neg_zero):
            return (1 << (self.bits - 1)) | (index - self.first)
        return index - self.first

    def magnitude(self, index: int) -> tuple[int, int]:
        """(significand, exponent): the magnitude is significand * 2^exponent."""
        binade = index >> self.man
        if binade == 0:
            return index, self.qmin
        return (1 << self.man) + index - (binade << self.man), self.qmin + binade - 1


# Each special rule (Spec: VAL-3, VAL-6) says which codes are no plain values, from the row and the magnitude
# of all ones. "max" is the code of the largest finite magnitude; a key left out: the format has no such code.

def _ieee(row, ones):
    if row.man < 1:
        raise InputError(f"{row.name}: the ieee rule needs a trailing significand bit to tell NaN from Inf")
    inf = ones - ((1 << row.man) - 1)
    return dict(max=inf - 1, inf=inf, nan=inf | 1 << (row.man - 1), nan_ones=ones, nan_signed=row.signed)


def _fn(row, ones):
    return dict(max=ones - 1, nan=ones, nan_signed=row.signed)


def _fnuz(row, ones):
    if not row.signed:
        raise InputError(f"{row.name}: the fnuz rule puts NaN in the place of -0: the format must be signed")
    return dict(max=ones, nan=ones + 1, neg_zero=False)


def _finite(row, ones):
    return dict(max=ones)


def _scale(row, ones):
    if row.signed:
        raise InputError(f"{row.name}: the scale rule is for unsigned formats")
    first = 1 << row.man                            # index = code + first: no zero, no subnormals
    return dict(max=ones - 1 + first, first=first, nan=ones)


def _p3109(row, ones, extended):
    top = ones if row.signed else ones - 1          # NaN lies above it: in the place of -0, or at all ones
    taken = dict(max=top, nan=top + 1, neg_zero=False)
    return taken | dict(max=top - 1, inf=top) if extended else taken


SPECIALS = {
    "ieee": _ieee,
    "fn": _fn,
    "fnuz": _fnuz,
    "finite": _finite,
    "scale": _scale,
    "p3109-extended": lambda row, ones: _p3109(row, ones, extended=True),
    "p3109-finite": lambda row, ones: _p3109(row, ones, extended=False),
}


def float_layout(row) -> Layout:
    """Layout of a Float row. Raises InputError when its fields contradict its special rule."""
    sign_bit = 1 << (row.exp + row.man)
    taken = SPECIALS[row.special](row, sign_bit - 1)
    largest, nan, inf = taken["max"], taken.get("nan"), taken.get("inf")
    return Layout(
        bits=row.bits, pad=row.pad, man=row.man,
        qmin=(0 if row.special == "scale" else 1) - row.bias - row.man,
        first=taken.get("first", 0), max_index=largest, min_index=largest if row.signed else 0,
        sign="bit" if row.signed else "none", neg_zero=row.signed and taken.get("neg_zero", True),
        nan=nan, nan_ones=taken.get("nan_ones", nan), nan_signed=taken.get("nan_signed", False),
        inf=inf, neg_inf=sign_bit | inf if row.signed and inf is not None else None)


def int_layout(row) -> Layout:
    """Layout of an Int row (Spec: VAL-4)."""
    largest = (1 << (row.bits - row.signed)) - 1
    if not row.signed:
        sign, least = "none", 0
    else:
        sign, least = {"twos": ("twos", largest + 1), "sign-magnitude": ("bit", largest)}[row.encoding]
    return Layout(
        bits=row.bits, pad=0, man=row.bits, qmin=-row.frac, first=0, max_index=largest, min_index=least,
        sign=sign, neg_zero=sign == "bit", nan=None, nan_ones=None, nan_signed=False, inf=None, neg_inf=None)


def floor_log2(value: Fraction) -> int:
    """The exponent of the largest power of two that is not above a positive value."""
    guess = value.numerator.bit_length() - value.denominator.bit_length()
    return guess if value >= Fraction(2) ** guess else guess - 1


def exact(row, code: int) -> Fraction | str:
    """The exact value of one code: a Fraction (zero for both zeros), or "nan", "inf", "-inf".

    Raises InputError for a code outside 0 to 2^width - 1. Spec: VAL-2, VAL-3, VAL-4.
    """
    if row.is_listed:
        return row.value_of(code)
    check_code(row, code)
    layout = row.layout
    code >>= layout.pad
    if is_nan(layout, code):
        return NAN
    if code in (layout.inf, layout.neg_inf):
        return INF if code == layout.inf else NEG_INF
    negative, index = split(layout, code)
    significand, exponent = layout.magnitude(index)
    return Fraction(-significand if negative else significand) * Fraction(2) ** exponent


def check_code(row, code: int):
    """Raises InputError for a code outside 0 to 2^width - 1."""
    if not 0 <= code < 1 << row.width:
        raise InputError(f"{code:#x} is not a {row.name} code; allowed are 0 to {(1 << row.width) - 1:#x}")


def split(layout: Layout, code: int) -> tuple[bool, int]:
    """(negative, index) of a finite code without padding; -0 gives (True, 0)."""
    half = 1 << (layout.bits - 1)
    if layout.sign == "none" or code < half:
        return False, code + layout.first
    return (True, 2 * half - code) if layout.sign == "twos" else (True, code - half)


def is_nan(layout: Layout, code):
    """Whether a code (padding excluded), or each of an array of codes, is a NaN."""
    if layout.nan is None:
        return False
    low = code & ((1 << (layout.bits - 1)) - 1) if layout.nan_signed else code
    above_infinity = layout.inf is not None and (layout.nan_signed or layout.sign == "none")
    return low > layout.inf if above_infinity else low == layout.nan


def nan_codes(layout: Layout) -> list[int]:
    """Every NaN code, padding excluded, ascending. Raises InputError for formats of more than 16 bits."""
    if layout.bits > 16:
        raise InputError(f"a format of {layout.bits} bits has too many codes to list its NaNs")
    return [code for code in range(1 << layout.bits) if is_nan(layout, code)]
