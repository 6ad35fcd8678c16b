"""Listed number formats: codebooks, posits, takums, HiFloat8, logarithmic numbers, exponents.

Written from spec/listed.md. Exact and unhurried: integers, fractions and, for e, a series with
both its bounds. A format is a dict of plain numbers and words:

    {"kind": "codebook", "values": [floats], "tie": "lower" | "toward-zero" | "away"}
    {"kind": "posit", "bits", "es"}        {"kind": "takum", "bits", "variant": "linear" | "log"}
    {"kind": "hifloat8"}                   {"kind": "lns", "bits", "frac"}
    {"kind": "exponent", "bits"}

A value is a Fraction, "nan", "inf", "-inf", or (irrational) a Power.
"""

from bisect import bisect_left
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple


class Power(NamedTuple):
    """±base^exponent, base "e" or "2"."""

    negative: bool
    base: str
    exponent: Fraction


# --- comparing with a power ---------------------------------------------------------------------------------

def compare(x: Fraction, power: Power) -> int:
    """-1 or 1 as a positive x lies below or above |power|, which is irrational."""
    if power.base == "2":       # x < 2^(p/q) as x^q < 2^p, in integers
        return 1 if x ** power.exponent.denominator > Fraction(2) ** power.exponent.numerator else -1
    terms = 40
    while True:
        low, high = _bounds(power.exponent, terms)
        if x <= low or x >= high:
            return 1 if x >= high else -1
        terms += 40


@lru_cache(maxsize=1 << 14)
def _bounds(exponent: Fraction, terms: int):
    """Bounds of e^exponent: the series at exponent / 2^k, of at most 1/2, its rest at most twice its last
    term, squared k times; cut to 4 bits a term, outwards."""
    halvings = max(0, (abs(exponent.numerator) // exponent.denominator).bit_length() + 1)
    small, total, term = abs(exponent) / 2 ** halvings, Fraction(0), Fraction(1)
    for n in range(1, terms):
        total, term = total + term, term * small / n
    low, high = total, total + 2 * term
    for _ in range(halvings):
        low, high = _cut(low * low, 4 * terms, 0), _cut(high * high, 4 * terms, 1)
    return (1 / high, 1 / low) if exponent < 0 else (low, high)


def _cut(x: Fraction, bits: int, up: int) -> Fraction:
    scale = Fraction(2) ** (bits - x.numerator.bit_length() + x.denominator.bit_length())
    return ((x * scale).__floor__() + up) / scale


def nearest(power: Power, precision: int) -> Fraction:
    """The number of so many significant bits nearest to |power| (LIST-1)."""
    top = 0
    while compare(Fraction(2) ** top, power) < 0:
        top += 1
    while compare(Fraction(2) ** top, power) > 0:
        top -= 1                                                # 2^top < |power| < 2^(top + 1)
    half_step, low, high = Fraction(2) ** (top - precision), 1 << precision, 2 << precision
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if compare(middle * half_step, power) < 0 else (low, middle)
    return (low + low % 2) * half_step                          # low half steps are below, one more is above


# --- decoding -----------------------------------------------------------------------------------------------

def decode(code: int, fmt):
    """The value of a code."""
    return DECODERS[fmt["kind"]](code, fmt)


def _codebook(code, fmt):
    if code >= len(fmt["values"]):
        return "nan"
    return Fraction(fmt["values"][code])


def _posit(code, fmt):
    """LIST-4, reading the bits as text."""
    bits, es = fmt["bits"], fmt["es"]
    if code in (0, 1 << (bits - 1)):
        return "nan" if code else Fraction(0)
    negative = code >> (bits - 1)
    text = f"{(1 << bits) - code if negative else code:0{bits}b}"[1:]
    run = len(text) - len(text.lstrip(text[0]))
    regime = run - 1 if text[0] == "1" else -run
    rest = text[run + 1:]
    exponent = int((rest[:es] + "0" * es)[:es] or "0", 2)
    fraction = rest[es:]
    significand = 1 + Fraction(int(fraction or "0", 2), 1 << len(fraction))
    value = significand * Fraction(2) ** (2 ** es * regime + exponent)
    return -value if negative else value


def _takum(code, fmt):
    """LIST-5, by the published formula, both signs alike."""
    bits = fmt["bits"]
    if code in (0, 1 << (bits - 1)):
        return "nan" if code else Fraction(0)
    text = f"{code:0{bits}b}".ljust(12, "0")
    s, d, r = int(text[0]), int(text[1]), int(text[2:5], 2)
    r = r if d else 7 - r
    c = int(text[5:5 + r] or "0", 2)
    c = 2 ** r - 1 + c if d else -2 ** (r + 1) + 1 + c
    tail = text[5 + r:]
    m = Fraction(int(tail or "0", 2), 1 << len(tail))
    if fmt["variant"] == "linear":
        return ((1 - 3 * s) + m) * Fraction(2) ** ((-1) ** s * (c + s))
    exponent = (-1) ** s * (c + m) / 2
    return Power(bool(s), "e", exponent) if exponent else Fraction((-1) ** s)


def _hifloat8(code, fmt):
    """LIST-6, the table of prefixes written out."""
    if code in (0x80, 0x6F, 0xEF):
        return {0x80: "nan", 0x6F: "inf", 0xEF: "-inf"}[code]
    sign, body = (-1) ** (code >> 7), code & 0x7F
    if body < 0x08:
        return Fraction(0) if body == 0 else sign * Fraction(2) ** (body - 23)
    if body < 0x10:                                             # 0001 mmm
        size, exponent = 3, 0
    elif body < 0x20:                                           # 001 s mmm
        size, exponent = 3, -1 if body & 8 else 1
    elif body < 0x40:                                           # 01 sx mmm
        size, exponent = 3, (2 + (body >> 3 & 1)) * (-1 if body & 0x10 else 1)
    elif body < 0x60:                                           # 10 sxx mm
        size, exponent = 2, (4 + (body >> 2 & 3)) * (-1 if body & 0x10 else 1)
    else:                                                       # 11 sxxx m
        size, exponent = 1, (8 + (body >> 1 & 7)) * (-1 if body & 0x10 else 1)
    return sign * (1 + Fraction(body % (1 << size), 1 << size)) * Fraction(2) ** exponent


def _lns(code, fmt):
    """LIST-7."""
    size = fmt["bits"] - 1
    negative, field = bool(code >> size), code % (1 << size)
    if field == 1 << (size - 1):
        return "nan" if negative else Fraction(0)
    exponent = Fraction(field - (1 << size) if field >> (size - 1) else field, 1 << fmt["frac"])
    if exponent.denominator > 1:
        return Power(negative, "2", exponent)
    return (-1) ** negative * Fraction(2) ** exponent.numerator


def _exponent(code, fmt):
    """LIST-8."""
    half = 1 << (fmt["bits"] - 1)
    exponent = code if code < half else code - 2 * half
    return "nan" if exponent == -half else Fraction(2) ** exponent


def is_minus_zero(code: int, fmt) -> bool:
    """Whether a code of a codebook is -0."""
    return fmt["kind"] == "codebook" and [str(value) for value in fmt["values"]][code:code + 1] == ["-0.0"]


DECODERS = {"codebook": _codebook, "posit": _posit, "takum": _takum, "hifloat8": _hifloat8, "lns": _lns,
            "exponent": _exponent}


# --- encoding -----------------------------------------------------------------------------------------------

def encode(x, fmt, rounding="rne", nonsat=False):
    """The code that a Fraction, "nan", "inf" or "-inf" becomes under sat, or under nonsat (LIST-1)."""
    return ENCODERS[fmt["kind"]](x, fmt, rounding, nonsat)


def _to_codebook(x, fmt, rounding, nonsat):
    """LIST-2."""
    values = [Fraction(value) for value in fmt["values"]]
    if isinstance(x, str):
        x = {"inf": max(values), "-inf": min(values), "nan": max(values)}[x]
    inside = min(max(x, min(values)), max(values))
    below, above = max(v for v in values if v <= inside), min(v for v in values if v >= inside)
    taken = _choose(inside, below, above, rounding, fmt["tie"])
    if taken == 0 and x < 0:
        return next((code for code in range(len(values)) if is_minus_zero(code, fmt)), values.index(0))
    return values.index(taken)


def _choose(x, below, above, rounding, tie):
    rounding = {"rtz": "rdn" if x > 0 else "rup"}.get(rounding, rounding)
    if rounding in ("rdn", "rup"):
        return below if rounding == "rdn" else above
    if x - below != above - x:
        return below if x - below < above - x else above
    tie = {"rne": tie, "rna": "away", "rnz": "toward-zero"}[rounding]
    less, more = (below, below) if below == -above else sorted((below, above), key=abs)
    return {"lower": below, "away": more, "toward-zero": less}[tie]


def _signed(function):
    """Special values and the sign of the formats whose negative codes are two's complements (LIST-3)."""
    def run(x, fmt, rounding, nonsat):
        bits = fmt["bits"]
        if isinstance(x, str):
            return 1 << (bits - 1)
        if x == 0:
            return 0
        code = min(max(function(abs(x), fmt), 1), (1 << (bits - 1)) - 1)
        return code if x > 0 else (1 << bits) - code
    return run


def _round_text(text: str, bits: int) -> int:
    """A bit string, zeros following, to so many bits: to nearest, ties to even."""
    text = text.ljust(bits + 1, "0")
    code, rest = int(text[:bits], 2), text[bits:]
    if rest[0] == "0":
        return code
    tie = not rest[1:].strip("0")
    return code + (code % 2 if tie else 1)


def _binary(x: Fraction):
    """(exponent, fraction bits as text) of a positive number; of a fraction without end 64 bits and a 1."""
    exponent = 0
    while x >= 2:
        x, exponent = x / 2, exponent + 1
    while x < 1:
        x, exponent = x * 2, exponent - 1
    digits = x.denominator.bit_length() - 1
    if x.denominator != 1 << digits:
        return exponent, f"{int((x - 1) * (1 << 64)):064b}1"
    return exponent, f"{int((x - 1) * (1 << digits)):0{digits}b}" if digits else ""


def _to_posit(x, fmt):
    exponent, fraction = _binary(x)
    regime, low = divmod(exponent, 2 ** fmt["es"])
    run = "1" * (regime + 1) + "0" if regime >= 0 else "0" * -regime + "1"
    text = run + (f"{low:0{fmt['es']}b}" if fmt["es"] else "") + fraction
    return _round_text(text, fmt["bits"] - 1)


def _to_takum(x, fmt):
    if fmt["variant"] == "log":
        return _to_takum_log(x, fmt)
    c, fraction = _binary(x)
    if not -255 <= c <= 254:
        return 0 if c < 0 else 1 << fmt["bits"]
    d = c >= 0
    r = (c + 1).bit_length() - 1 if d else (-c).bit_length() - 1
    field = c - (2 ** r - 1) if d else c + 2 ** (r + 1) - 1
    text = f"{int(d)}{r if d else 7 - r:03b}" + (f"{field:0{r}b}" if r else "") + fraction
    return _round_text(text, fmt["bits"] - 1)


def _to_takum_log(x, fmt):
    """The largest code whose lower boundary, the value of one bit more, does not exceed x."""
    low, high = 1, (1 << (fmt["bits"] - 1)) - 1
    while low < high:
        middle = (low + high + 1) // 2
        edge = _takum(2 * middle - 1, fmt | {"bits": fmt["bits"] + 1})
        low, high = (middle, high) if compare(x, edge) > 0 else (low, middle - 1)
    return low


def _to_hifloat8(x, fmt, rounding, nonsat):
    """LIST-6: nearest, ties away, with 1.5 * 2^15 in the place of infinity."""
    if x == "nan":
        return 0x80
    if isinstance(x, str):
        return (0x6F if nonsat else 0x6E) | 0x80 * (x == "-inf")
    places = _hifloat8_places()
    at = bisect_left(places, (abs(x), 0))
    value = min(places[max(at - 1, 0):at + 1], key=lambda place: (abs(abs(x) - place[0]), -place[0]))[0]
    if value == 0:
        return 0
    return (dict(places)[value] - (value == 3 << 14 and not nonsat)) | 0x80 * (x < 0)


@lru_cache(maxsize=1)
def _hifloat8_places():
    places = {_hifloat8(code, None): code for code in range(128) if code != 0x6F}
    return sorted((places | {Fraction(3 << 14): 0x6F}).items())


def _to_lns(x, fmt, rounding, nonsat):
    """LIST-7: the nearest exponent, by integer powers."""
    size = fmt["bits"] - 1
    zero, largest = 1 << (size - 1), (1 << (size - 1)) - 1
    nan = zero | 1 << size
    if x == "nan":
        return nan
    if isinstance(x, str):
        return nan if nonsat else largest | (x == "-inf") << size
    if x == 0:
        return zero
    low, high = -largest, largest + 1
    while low < high:
        middle = (low + high + 1) // 2
        edge = Power(False, "2", Fraction(2 * middle - 1, 2 << fmt["frac"]))
        low, high = (middle, high) if compare(abs(x), edge) > 0 else (low, middle - 1)
    if low > largest:
        return nan if nonsat else largest | (x < 0) << size
    return low % (1 << size) | (x < 0) << size


def _to_exponent(x, fmt, rounding, nonsat):
    """LIST-8: the nearest power, ties up, with one more power in the place of what is past the end."""
    half = 1 << (fmt["bits"] - 1)
    nan, least = half, half + 1
    if x == "nan":
        return nan
    if x == "-inf" or x != "inf" and x < 0:
        return nan if nonsat else least
    if x == 0:
        return least
    powers = [Fraction(2) ** exponent for exponent in range(1 - half, half + 1)]
    at = len(powers) - 1 if x == "inf" else bisect_left(powers, min(x, powers[-1]))
    if x != "inf" and at and x - powers[at - 1] < powers[at] - x:
        at -= 1
    if at == len(powers) - 1:
        return nan if nonsat else half - 1
    return (at + 1 - half) % (2 * half)


ENCODERS = {"codebook": _to_codebook, "posit": _signed(_to_posit), "takum": _signed(_to_takum),
            "hifloat8": _to_hifloat8, "lns": _to_lns, "exponent": _to_exponent}
