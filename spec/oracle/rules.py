"""Scale rules: the shared exponent of a tile, or its float scale, from the values of the tile.

Written from spec/rules.md. An exponent rule is one threshold on the significand of the largest magnitude;
formats arrive as dicts or as scalar.Facts.
"""

from fractions import Fraction

from spec.oracle.common import SAT, floor_log2
from spec.oracle.scalar import decode, encode, exact, facts


# --- what a rule asks of an element format (RULE-1) -------------------------------------------------

def largest(fmt):
    """Mhi."""
    f = facts(fmt)
    return f.high * Fraction(2) ** f.quantum


def emax(fmt):
    return floor_log2(largest(fmt))


def precision(fmt):
    """Significand bits of the largest value's binade: of an integer, the bits of its largest value."""
    f = facts(fmt)
    return f.precision or f.high.bit_length()


def ulp(fmt):
    return Fraction(2) ** (emax(fmt) + 1 - precision(fmt))


def midmax(fmt):
    """Where rounding leaves the format: half a unit above Mhi."""
    return largest(fmt) + ulp(fmt) / 2


def odd(fmt):
    """Whether Mhi is an odd number of units, so that the tie at midmax rounds up and away."""
    return largest(fmt) / ulp(fmt) % 2 == 1


# --- exponent rules (RULE-1 to RULE-6) --------------------------------------------------------------

EVEN_E2M1 = Fraction(7, 4)

THRESHOLDS = {
    "floor": lambda fmt: None,
    "ceil": lambda fmt: (Fraction(1), ">"),
    "rceil": lambda fmt: (largest(fmt) / Fraction(2) ** emax(fmt), ">"),
    "even": lambda fmt: (2 - Fraction(1, 2 ** precision(fmt)), ">="),
    "even_e2m1": lambda fmt: (EVEN_E2M1, ">="),
    "midmax": lambda fmt: (midmax(fmt) / Fraction(2) ** emax(fmt), ">"),
    "midmax_ge": lambda fmt: (midmax(fmt) / Fraction(2) ** emax(fmt), ">="),
    "tosa": lambda fmt: (midmax(fmt) / Fraction(2) ** emax(fmt), ">=" if odd(fmt) else ">"),
}


def bump(rule, amax, fmt):
    """RULE-1: 1 where the significand of a positive amax lies past the rule's threshold, else 0."""
    threshold = THRESHOLDS[rule](fmt)
    if threshold is None:
        return 0
    at, how = threshold
    significand = amax / Fraction(2) ** floor_log2(amax)
    return int(significand > at or (how == ">=" and significand == at))


def shared_exponent(rule, amax, fmt):
    """RULE-1: the exponent of the scale before it is clamped to the scale format."""
    return floor_log2(amax) - emax(fmt) + bump(rule, amax, fmt)


# --- float rules (RULE-7 to RULE-9) -----------------------------------------------------------------

def float_scale(ratio, scale):
    """BLOCK-9: a ratio rounded to nearest even into a scale format; positive ones never become zero."""
    if ratio == 0:
        return 0
    return encode(exact(ratio), scale, "rne", SAT) or 1


def amax_scale(magnitudes, fmt, scale):
    """BLOCK-9."""
    return float_scale(max(magnitudes, default=Fraction(0)) / largest(fmt), scale)


def absmean_scale(magnitudes, scale):
    """RULE-7."""
    return float_scale(sum(magnitudes, Fraction(0)) / len(magnitudes), scale)


def minmax_scale(numbers, fmt, scale, zero):
    """RULE-8: (scale code, zero-point code); numbers are signed Fractions."""
    low, high = min([0, *numbers]), max([0, *numbers])
    code = float_scale(Fraction(high - low) / largest(fmt), scale)
    step = decode(code, scale).magnitude
    point = Fraction(-low) if not facts(zero).integer else -low / step if step else Fraction(0)
    return code, encode(exact(point), zero, "rne", SAT)
