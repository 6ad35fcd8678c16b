"""One number: what a code means, how a value is rounded, how a rounded value becomes a code.

Written from spec/values.md, rounding.md, overflow.md and casts.md. Exact and unhurried: the only arithmetic
is on integers and fractions.Fraction. Formats and overflow rules arrive as dicts of plain numbers and words:

    float    {"kind": "float", "exp", "man", "bias", "special", "signed", "tie", "pad"}
    integer  {"kind": "int", "bits", "frac", "signed", "encoding"}
    overflow {"above", "infinite", "nan", "nan_int", "nan_code", "stop", "negative", "zero", "lowest",
              "exceptions"}

    code --decode--> Value --prepared--> Value --rounded--> Rounded --settle--> code
"""

from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

NUMBER, INFINITE, NAN = "number", "inf", "nan"
P3109 = ("p3109-extended", "p3109-finite")


class Value(NamedTuple):
    """An exact value: ±magnitude, ±infinity, or a NaN with its sign and payload.

    The payload is the trailing field read as a binary fraction: 1/2 is the quiet bit alone (NAN-1).
    """

    kind: str
    negative: bool = False
    magnitude: Fraction = 0
    payload: Fraction = 0


class Rounded(NamedTuple):
    """A value rounded to the target's precision with no upper limit on its exponent (OVER-1).

    units counts the target's smallest quantum; nonzero says whether the source was a number other than zero.
    """

    kind: str
    negative: bool = False
    units: int = 0
    nonzero: bool = False
    payload: Fraction = 0


class Facts(NamedTuple):
    """What the clauses need to know about a format, worked out once from its fields (VAL-1, VAL-5)."""

    integer: bool
    signed: bool
    body: int          # bits below the sign; all bits of an unsigned or two's-complement code
    man: int           # trailing significand bits
    bias: int
    special: str       # special-value rule; an integer's encoding
    tie: str
    pad: int           # low bits of the stored word that carry nothing
    quantum: int       # the smallest quantum is 2**quantum
    precision: int     # significand bits of a normal number; 0: fixed point, the quantum never grows
    top: int           # body of the largest finite code
    high: int          # largest finite value, in units of the smallest quantum
    low: int           # magnitude of the least finite value, in the same units
    has_inf: bool
    has_nan: bool
    has_minus_zero: bool


# --- the format's own numbers ---------------------------------------------------------------------

def facts(fmt):
    """Facts of a format given as a dict (Facts are returned as they are)."""
    if isinstance(fmt, Facts):
        return fmt
    if fmt["kind"] == "int":
        return _integer_facts(fmt["bits"], fmt["frac"], fmt["signed"], fmt["encoding"])
    return _float_facts(*(fmt[k] for k in ("exp", "man", "bias", "special", "signed", "tie", "pad")))


@lru_cache(maxsize=None)
def _integer_facts(bits, frac, signed, encoding):
    magnitude_sign = signed and encoding == "sign-magnitude"
    high = (1 << (bits - 1 if signed else bits)) - 1
    low = 0 if not signed else high if magnitude_sign else high + 1
    return Facts(integer=True, signed=signed, body=bits - 1 if magnitude_sign else bits, man=0, bias=0,
                 special=encoding, tie="even", pad=0, quantum=-frac, precision=0,
                 top=high, high=high, low=low,
                 has_inf=False, has_nan=False, has_minus_zero=magnitude_sign)


@lru_cache(maxsize=None)
def _float_facts(exp, man, bias, special, signed, tie, pad):
    body = exp + man
    ones = (1 << body) - 1
    top = {                                                    # the body of the largest number (VAL-3)
        "ieee": ones - (1 << man),                             # below the row of infinity and NaNs
        "fn": ones - 1,                                        # below the NaN
        "scale": ones - 1,
        "fnuz": ones,
        "finite": ones,
        "p3109-finite": ones if signed else ones - 1,
        "p3109-extended": ones - 1 if signed else ones - 2,
    }[special]
    f = Facts(integer=False, signed=signed, body=body, man=man, bias=bias, special=special, tie=tie, pad=pad,
              quantum=(0 if special == "scale" else 1) - bias - man, precision=man + 1,
              top=top, high=0, low=0,
              has_inf=special in ("ieee", "p3109-extended"),
              has_nan=special in ("fn", "fnuz", "scale") + P3109 or (special == "ieee" and man > 0),
              has_minus_zero=signed and special in ("ieee", "fn", "finite"))
    high = _units(top, f)
    return f._replace(high=high, low=high if signed else _units(0, f))


def _units(body, f):
    """VAL-2: the magnitude of a finite floating code, counted in the format's smallest quantum."""
    e, t = body >> f.man, body & ((1 << f.man) - 1)
    if f.special == "scale":
        return ((1 << f.man) + t) << e
    return t if e == 0 else ((1 << f.man) + t) << (e - 1)


def _body(units, f):
    """VAL-2 backwards: the floating code, without its sign, of a magnitude that the format has."""
    grow = max(units.bit_length() - f.precision, 0)
    return (grow << f.man) + (units >> grow) - ((f.special == "scale") << f.man)


# --- decode ---------------------------------------------------------------------------------------

def decode(code, fmt):
    """The Value of a code (VAL-2, VAL-3, VAL-4, VAL-6)."""
    f = facts(fmt)
    code >>= f.pad
    if f.special == "twos":
        n = code - (1 << f.body) if f.signed and code >> (f.body - 1) else code
        return Value(NUMBER, n < 0, _scaled(abs(n), f.quantum))
    negative, body = bool(code >> f.body), code & ((1 << f.body) - 1)
    if f.integer:
        return Value(NUMBER, negative, _scaled(body, f.quantum))
    return _special(negative, body, f) or Value(NUMBER, negative, _scaled(_units(body, f), f.quantum))


def _special(negative, body, f):
    """VAL-3: the infinity or NaN a code stands for, None when it is a number."""
    if negative and body == 0 and f.special in ("fnuz",) + P3109:          # the code 100..0
        return Value(NAN, negative)
    if body <= f.top:
        return None
    if f.special == "ieee":
        t = body & ((1 << f.man) - 1)
        return Value(NAN, negative, payload=Fraction(t, 1 << f.man)) if t else Value(INFINITE, negative)
    if f.special in P3109 and (f.signed or body == f.top + 1 < (1 << f.body) - 1):
        return Value(INFINITE, negative)
    return Value(NAN, negative)


def _scaled(n, exponent):
    """n * 2**exponent as a Fraction."""
    return Fraction(n << exponent) if exponent >= 0 else Fraction(n, 1 << -exponent)


def exact(x):
    """A Python int, float or Fraction as a Value; a float NaN is quiet and positive."""
    if x != x:
        return Value(NAN, payload=Fraction(1, 2))
    if x in (float("inf"), -float("inf")):
        return Value(INFINITE, x < 0)
    return Value(NUMBER, x < 0 or str(x) == "-0.0", abs(Fraction(x)))


# --- stage one: rounding --------------------------------------------------------------------------

def rule_for(fmt, overflow, overflows=None):
    """OVER-6: the rule that holds for this target; a rule may name another for some kinds of target."""
    for special, name in overflow["exceptions"]:
        if special == facts(fmt).special:
            return overflows[name]
    return overflow


def prepared(v, fmt, overflow, overflows=None):
    """OVER-8: the source with its sign dropped, where the overflow rule says so for unsigned targets."""
    magnitude = "magnitude" in rule_for(fmt, overflow, overflows)["negative"]
    return v._replace(negative=False) if magnitude and not facts(fmt).signed else v


def rounded(v, fmt, rounding, random=None):
    """Round to a format's precision, exponent unbounded above (ROUND-1..7). random is (R, N) for sr*."""
    if v.kind != NUMBER:
        return Rounded(v.kind, v.negative, payload=v.payload)
    f = facts(fmt)
    n, d = v.magnitude.numerator, v.magnitude.denominator      # |x| = n/d ...
    if f.quantum < 0:
        n <<= -f.quantum
    else:
        d <<= f.quantum                                        # ... now counted in smallest quanta
    grow = max((n // d).bit_length() - f.precision, 0) if f.precision else 0
    d <<= grow                                                 # the quantum at |x| is 2**grow smallest ones
    whole, rest = divmod(n, d)
    if rest:
        whole += _away(whole, rest, d, v.negative, grow, f, rounding, random)
    return Rounded(NUMBER, v.negative, whole << grow, n != 0)


def _away(whole, rest, d, negative, grow, f, rounding, random):
    """Whether the magnitude whole + rest/d, 0 < rest < d, goes to whole + 1 (True) or to whole (False)."""
    even = whole % 2 == 0
    if f.precision == 1 and whole:                             # ROUND-6: every exponent is a code of its own
        even = (f.quantum + grow + f.bias) % 2 == 0
    match rounding:
        case "rne":
            to_upper = not even or (f.precision == 1 and f.tie == "up")
            return 2 * rest > d or (2 * rest == d and to_upper)
        case "rna":
            return 2 * rest >= d
        case "rnz":
            return 2 * rest > d
        case "rtz":
            return False
        case "rup":
            return not negative
        case "rdn":
            return negative
        case "rto":
            return even
    if rounding not in ("sra", "srb", "src") or random is None:
        raise ValueError(f"rounding {rounding!r} is not known, or lacks its random word (R, N)")
    r, n = random                                              # ROUND-5: 0 <= R < 2**N
    match rounding:
        case "sra":
            return rest * 2**n // d + r >= 2**n
        case "srb":
            return rest * 2**(n + 1) // d + 2 * r + 1 >= 2**(n + 1)
    return round(Fraction(rest * 2**n, d)) + r >= 2**n         # src; round(): nearest integer, ties to even


# --- stage two: range and special values ----------------------------------------------------------

def settle(r, fmt, rounding, overflow, overflows=None):
    """The code of a Rounded under an overflow rule (OVER-1..8, NAN-1..3, ZERO-1..2).

    overflows maps names to rules; needed only for a rule that has exceptions.
    """
    f, overflow = facts(fmt), rule_for(fmt, overflow, overflows)
    if r.kind == NAN:
        return _nan(r, f, overflow)
    below = r.nonzero if f.special == "scale" else r.units     # OVER-8: without a zero, nothing negative fits
    if r.negative and not f.signed and (r.kind == INFINITE or below):
        stop = r.kind == NUMBER and _stops(overflow["stop"], rounding, True, f)
        return _least(f, overflow) if stop else _first(overflow["negative"], r, f, overflow)
    if r.kind == INFINITE:
        return _first(overflow["infinite"], r, f, overflow)
    if r.units > (_depth(f, overflow) if r.negative else f.high):
        stop = _stops(overflow["stop"], rounding, r.negative, f)
        return _first(("max",) if stop else overflow["above"], r, f, overflow)
    if r.units < (f.special == "scale") << f.man:              # ROUND-7, ZERO-2
        return _nan_code(r, f, overflow) if overflow["zero"] == "nan" and not r.nonzero else 0
    return _number(r, f)


def encode(v, fmt, rounding, overflow, overflows=None, random=None):
    """The code of a Value: sign policy, one rounding, then range (CAST-1)."""
    source = prepared(v, fmt, overflow, overflows)
    return settle(rounded(source, fmt, rounding, random), fmt, rounding, overflow, overflows)


def _first(words, r, f, overflow):
    """The first outcome of a chain that the format has; every chain ends in the finite extreme."""
    for word in words:
        if word == "inf" and f.has_inf:
            body = f.top + 1
            return (_sign(r.negative, f) | body) << f.pad
        if word == "nan" and f.has_nan:
            return _nan_code(r, f, overflow)
        if word == "max":
            break
    return _least(f, overflow) if r.negative else f.top << f.pad


def _stops(stop, rounding, negative, f):
    """OVER-4, OVER-5: whether this rounding holds a finite overflow on this side at the finite extreme."""
    inward = rounding == "rtz" or rounding == ("rup" if negative else "rdn")
    match stop:
        case "never":
            return False
        case "ieee":
            return inward or rounding == "rto"
        case "p3109":
            odd = rounding == "rto" and not negative and not f.signed and f.has_inf
            return inward or odd
        case "p3109-main":
            return inward
    raise ValueError(f"stop {stop!r} is not one of never ieee p3109 p3109-main")


def _number(r, f):
    """The code of a number in range."""
    if f.special == "twos":
        return (-r.units if r.negative else r.units) & ((1 << f.body) - 1)
    body = r.units if f.integer else _body(r.units, f)
    if r.units == 0 and not f.has_minus_zero:                  # ZERO-1
        return 0
    return (_sign(r.negative, f) | body) << f.pad


def _sign(negative, f):
    return 1 << f.body if negative and f.signed else 0


def _depth(f, overflow):
    """OVER-7: the magnitude of the least value a rule allows, in smallest quanta."""
    return f.high if f.special == "twos" and f.signed and overflow["lowest"] == "symmetric" else f.low


def _least(f, overflow):
    """The code of the least finite value a rule allows."""
    if f.special == "twos" and f.signed:
        return -_depth(f, overflow) & ((1 << f.body) - 1)
    return (_sign(True, f) | f.top) << f.pad if f.signed else 0


def _nan(r, f, overflow):
    """NAN-1, NAN-2, NAN-3: what a source NaN becomes."""
    if f.integer:
        return {"zero": 0, "max": f.top, "min": _least(f, overflow)}[overflow["nan_int"]]
    for word in overflow["nan"]:
        if word == "nan" and f.has_nan:
            return _nan_code(r, f, overflow)
        if word == "+max":
            break
        if word == "signed-max":
            return _least(f, overflow) if r.negative and f.signed else f.top << f.pad
        if word == "zero":
            return 0
        if word == "opposite-zero":
            return _sign(not r.negative, f) << f.pad if f.has_minus_zero else 0
    return f.top << f.pad


def _nan_code(r, f, overflow):
    """NAN-1: which of the format's NaN codes, and with which sign."""
    kind = overflow["nan_code"]
    if f.special == "fnuz" or (f.special in P3109 and f.signed):
        return 1 << f.body << f.pad
    sign = _sign(r.negative and kind in ("signed-quiet", "signed-ones", "payload"), f)
    ones = (1 << f.body) - 1
    if f.special != "ieee" or kind in ("ones", "signed-ones"):
        return (sign | ones) << f.pad
    quiet = 1 << (f.man - 1)
    payload = int(r.payload * (1 << f.man)) if kind == "payload" else 0
    return (sign | f.top + 1 | quiet | payload) << f.pad
