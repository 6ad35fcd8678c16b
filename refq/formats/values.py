"""From a row to exact values: the integer layout every other module computes with.

A magnitude is counted by an *index*: 0 is zero, 1 the smallest positive value, and so on upwards. For a
floating format the index is the code without its sign, so that carrying out of the significand moves into the
next binade by itself; for an integer it is the magnitude. One formula gives every value (Spec: VAL-2):

    index < 2^man:  index * 2^qmin
    otherwise:      (2^man + index mod 2^man) * 2^(qmin + (index >> man) - 1)
"""

from dataclasses import dataclass
from fractions import Fraction

NAN, INF, NEG_INF = "nan", "inf", "-inf"


@dataclass(frozen=True)
class Layout:
    """Everything arithmetic needs to know of a number format, derived from its row (Spec: VAL-1, VAL-3)."""

    bits: int               # significant code bits, sign included, padding excluded
    pad: int                # low bits of the stored word that carry nothing
    man: int                # log2 of the number of codes per binade; for integers >= bits: no second binade
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


# Each special rule (Spec: VAL-3, VAL-6): from the all-ones magnitude `ones` and the row to the codes it takes away.
# "max" is the largest finite magnitude code; None stands for "this format has none".

def _ieee(row, ones):
    if row.man < 1:
        raise ValueError(f"{row.name}: the ieee rule needs a trailing significand of at least 1 bit to tell NaN from Inf")
    inf = ones - ((1 << row.man) - 1)
    return dict(max=inf - 1, inf=inf, nan=inf | 1 << (row.man - 1), nan_ones=ones, nan_signed=row.signed)


def _fn(row, ones):
    return dict(max=ones - 1, nan=ones, nan_signed=row.signed)


def _fnuz(row, ones):
    if not row.signed:
        raise ValueError(f"{row.name}: the fnuz rule uses the code of -0 for NaN, so the format must be signed")
    return dict(max=ones, nan=ones + 1, neg_zero=False)


def _finite(row, ones):
    return dict(max=ones)


def _scale(row, ones):
    if row.signed or row.man:
        raise ValueError(f"{row.name}: the scale rule is for unsigned formats without trailing significand")
    return dict(max=ones, first=1, nan=ones)        # index = code + 1: there is no zero


def _p3109(row, ones, extended):
    if row.signed:
        taken = dict(max=ones - extended, nan=ones + 1, neg_zero=False)
        return taken | (dict(inf=ones) if extended else {})
    taken = dict(max=ones - 1 - extended, nan=ones)
    return taken | (dict(inf=ones - 1) if extended else {})


SPECIALS = {
    "ieee": _ieee,
    "fn": _fn,
    "fnuz": _fnuz,
    "finite": _finite,
    "scale": _scale,
    "p3109-extended": lambda row, ones: _p3109(row, ones, 1),
    "p3109-finite": lambda row, ones: _p3109(row, ones, 0),
}


def float_layout(row) -> Layout:
    """Layout of a Float row. Raises ValueError when its fields contradict its special rule."""
    bits = row.exp + row.man + row.signed
    taken = SPECIALS[row.special](row, (1 << (row.exp + row.man)) - 1)
    scale = row.special == "scale"
    nan, inf = taken.get("nan"), taken.get("inf")
    return Layout(
        bits=bits, pad=row.pad, man=row.man,
        qmin=-row.bias if scale else 1 - row.bias - row.man,
        first=taken.get("first", 0), max_index=taken["max"], min_index=taken["max"] if row.signed else 0,
        sign="bit" if row.signed else "none", neg_zero=row.signed and taken.get("neg_zero", True),
        nan=nan, nan_ones=taken.get("nan_ones", nan), nan_signed=taken.get("nan_signed", False),
        inf=inf, neg_inf=inf | 1 << (bits - 1) if inf is not None and row.signed else None)


def int_layout(row) -> Layout:
    """Layout of an Int row (Spec: VAL-4)."""
    largest = (1 << (row.bits - row.signed)) - 1
    least = {"twos": largest + 1, "sign-magnitude": largest}[row.encoding] if row.signed else 0
    sign = {"twos": "twos", "sign-magnitude": "bit"}[row.encoding] if row.signed else "none"
    return Layout(bits=row.bits, pad=0, man=row.bits, qmin=-row.frac, first=0, max_index=largest, min_index=least,
                  sign=sign, neg_zero=sign == "bit", nan=None, nan_ones=None, nan_signed=False, inf=None, neg_inf=None)


def exact(row, code: int) -> Fraction | str:
    """The exact value of one code: a Fraction (zero for both zeros), or "nan", "inf", "-inf".

    Spec: VAL-2, VAL-3, VAL-4. Raises ValueError for a code outside 0 .. 2^width - 1.
    """
    layout = row.layout
    if not 0 <= code < 1 << row.width:
        raise ValueError(f"code {code:#x} is not a {row.name} code: allowed are 0 to {(1 << row.width) - 1:#x}")
    code >>= layout.pad
    if is_nan(layout, code):
        return NAN
    if code in (layout.inf, layout.neg_inf):
        return INF if code == layout.inf else NEG_INF
    negative, index = split(layout, code)
    significand, exponent = layout.magnitude(index)
    return Fraction(-significand if negative else significand) * Fraction(2) ** exponent


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
    """Every NaN code, padding excluded, ascending. Raises ValueError for formats of more than 16 bits."""
    if layout.bits > 16:
        raise ValueError(f"a format of {layout.bits} bits has too many codes to list its NaNs")
    return [code for code in range(1 << layout.bits) if is_nan(layout, code)]
