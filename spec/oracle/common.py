"""What several pages of the oracle need: the two overflow rules of blocks, and an exact logarithm."""

from fractions import Fraction

SAT = {"above": ("max",), "infinite": ("max",), "nan": ("nan", "+max"), "nan_int": "zero",          # OVER-2
       "nan_code": "quiet", "stop": "never", "negative": ("max",), "zero": "min", "lowest": "full",
       "exceptions": ()}
OUT = dict(SAT, above=("inf", "nan", "max"), infinite=("inf", "nan", "max"),                       # BLOCK-11
           negative=("nan", "max"))


def floor_log2(x):
    """The largest k with 2**k <= x, for a positive Fraction."""
    k = x.numerator.bit_length() - x.denominator.bit_length()
    return k if Fraction(2) ** k <= x else k - 1
