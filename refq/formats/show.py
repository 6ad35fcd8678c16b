"""Saying in words what a code is, and why a value becomes the code it becomes."""

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate, pairwise

import numpy as np

from refq.errors import InputError
from refq.formats import codec, definition
from refq.formats.listed import Irrational, key, meaning
from refq.formats.names import number_format
from refq.formats.policies import overflow_rule, rounding_rule
from refq.formats.rows import Row
from refq.formats.values import INF, NAN, NEG_INF, check_code, exact, floor_log2, split


def number(value) -> str:
    """An exact value in few characters: an integer, a decimal, or significand * 2^exponent."""
    if isinstance(value, str):
        return {NAN: "NaN", INF: "+Inf", NEG_INF: "-Inf"}[value]
    if isinstance(value, Irrational):
        return str(value)
    if value.denominator == 1 and abs(value) < 10 ** 9:
        return str(value.numerator)
    places = value.denominator.bit_length() - 1
    if value.denominator == 1 << places and places <= 16 and abs(value) < 10 ** 6:
        return f"{float(value):.{places}f}".rstrip("0")
    return dyadic(value)


def dyadic(value: Fraction) -> str:
    """significand * 2^exponent with an odd integer significand; other fractions as they are."""
    if value == 0:
        return "0"
    exponent = (value.numerator & -value.numerator).bit_length() - value.denominator.bit_length()
    significand = value / Fraction(2) ** exponent
    return f"{significand.numerator} * 2^{exponent}" if significand.denominator == 1 else str(value)


def described(row: Row, code: int) -> str:
    """A code with its value, as in `0x7e (448)`; zeros say their sign."""
    value = meaning(row, code)
    minus_zero = row.is_minus_zero(code) if row.is_listed else (
        value == 0 and split(row.layout, code >> row.layout.pad)[0])
    return f"{hex_code(row, code)} ({'-0' if minus_zero else number(value)})"


def hex_code(row: Row, code: int) -> str:
    """A code in hex, with as many digits as the format's word has."""
    return f"{code:#0{2 + -(-row.width // 4)}x}"


def fields(row: Row, code: int) -> str:
    """The bits of a code, its fields set apart by blanks: sign exponent significand (padding)."""
    bits = f"{code:0{row.width}b}"
    sizes = (row.signed, row.exp, row.man, row.pad) if row.is_float else (row.width,)
    ends = [0, *accumulate(sizes)]
    return " ".join(bits[start:end] for start, end in pairwise(ends) if end > start)


def show_code(row: Row, code: int) -> list[tuple[str, str]]:
    """What there is to say about one code, as (label, text) pairs. Raises InputError for one out of range."""
    if row.is_listed:
        return _show_listed(row, code)
    value = exact(row, code)
    lines = [("code", described(row, code)),
             ("fields", f"{fields(row, code)}   ({_field_names(row)})"),
             ("class", _class(row, value))]
    if isinstance(value, str):
        return lines
    lines.append(("exact", dyadic(value)))
    if value and codec.exact_in(row, np.float64):
        lines.append(("hex float", float(value).hex()))
    negative, index = split(row.layout, code >> row.layout.pad)
    signed = -index if negative else index
    below, above = _neighbour(row, signed - 1), _neighbour(row, signed + 1)
    return [*lines,
            ("next below", "none: the least value" if below is None else described(row, below)),
            ("next above", "none: the largest value" if above is None else described(row, above))]


def _show_listed(row: Row, code: int) -> list[tuple[str, str]]:
    check_code(row, code)
    value = row.meanings[code]
    lines = [("code", described(row, code)), ("bits", f"{code:0{row.width}b}"), ("kind", row.kind)]
    if isinstance(value, str):
        return lines
    if value:
        label = "nearest float64" if isinstance(value, Irrational) else "hex float"
        lines.append((label, float(key(value)).hex()))
    below, above = _around(row, value)
    return [*lines,
            ("next below", "none: the least value" if below is None else described(row, below[1])),
            ("next above", "none: the largest value" if above is None else described(row, above[1]))]


def _around(row: Row, value):
    """(value, code) of the listed values next below and next above a value."""
    place = key(value)
    return (max((pair for pair in row.ascending if key(pair[0]) < place), key=_place, default=None),
            min((pair for pair in row.ascending if key(pair[0]) > place), key=_place, default=None))


def _place(pair):
    return key(pair[0])


def source_code(source: Row, value) -> tuple[int, list[tuple[str, str]]]:
    """(code, notes): a value as a code of a source format, finite ones rounded to nearest even.

    value: a Fraction, or a float for inf, nan and -0. A note says what the source has instead of the value.
    Raises InputError for what is beyond the source's range, and for an infinity or NaN that it does not have.
    """
    if isinstance(value, Fraction) and value and source.is_listed:
        code, wanted = int(codec.encode(np.float64(float(value)), source)), value
    elif isinstance(value, Fraction) and value:
        code, wanted = _nearest_code(source, value), value
    else:
        code = int(codec.encode(np.float64(value), source, overflow="ieee"))
        wanted = NAN if value != value else 0 if value == 0 else INF if value > 0 else NEG_INF
    found = exact(source, code)
    if found == wanted:
        return code, []
    if isinstance(wanted, str):
        raise InputError(f"the source format {source.name} has no {number(wanted)}")
    return code, [("taken as", f"{number(found)}, the nearest {source.name}")]


def _nearest_code(row: Row, value: Fraction) -> int:
    layout, magnitude = row.layout, abs(value)
    below, above = _gap(row, magnitude)
    rounded = round(magnitude / (above - below)) * (above - below)      # Python's round: ties to even
    if value < 0 and not row.signed or rounded > (row.max if value > 0 else -row.lowest):
        decimal = Decimal(value.numerator) / value.denominator         # a float might overflow
        decimal = decimal if magnitude < 10 ** 9 else decimal.normalize()
        raise InputError(f"{decimal:.6g} is outside the range of the source format {row.name}")
    return layout.code(value < 0, max(_index(layout, rounded), layout.first)) << layout.pad


def _index(layout, magnitude: Fraction) -> int:
    """The index of a magnitude that the format holds."""
    steps = (magnitude / Fraction(2) ** layout.qmin).numerator
    binade = max(steps.bit_length() - layout.man - 1, 0)
    return (binade << layout.man) + (steps >> binade)


@dataclass(frozen=True)
class Cast:
    """One cast, explained. code: the result; why: a sentence; clauses: of the spec; steps: (label, text)."""

    code: int
    why: str
    clauses: tuple[str, ...]
    steps: tuple[tuple[str, str], ...]


def show_cast(source, code: int, target, rounding="rne", overflow="sat", random_bits=None,
              random_width=None) -> Cast:
    """Why one source code becomes the target code it becomes.

    source, target: names or rows; code: of the source. Other arguments as `encode`; errors too.
    """
    source, target = number_format(source), number_format(target)
    check_code(source, code)
    word = np.array([code], codec.code_dtype(source))
    bits = None if random_bits is None else np.array([random_bits])

    def converted(overflow: str) -> int:
        return int(codec.convert(word, source, target, rounding, overflow, bits, random_width)[0])

    result, value = converted(overflow), exact(source, code)
    rule, limits = rounding_rule(rounding), overflow_rule(overflow, target.special)
    steps = [("source", f"{source.name} {described(source, code)}")]
    if target.is_listed:
        between, why, clauses = _listed_cast(value, target, rule, limits, result)
        steps += between
    elif isinstance(value, str) or value == 0 or (value < 0 and not target.signed):
        why, clauses = _special(value, target, limits, result)
    else:
        draws = None if bits is None else bits.astype(np.uint64)
        beyond = bool(definition.overflows(word, source, target, rounding, draws, random_width)[0])
        if limits.lowest == "symmetric":        # the full range goes one step further down (OVER-7)
            beyond |= result != converted("sat")
        between, why, clauses = _finite(value, target, rule, limits, result, beyond)
        steps += between
    steps += [("result", f"{target.name} {described(target, result)}"),
              ("because", why),
              ("clauses", ", ".join(clauses))]
    return Cast(result, why, clauses, tuple(steps))


def _finite(value: Fraction, target: Row, rule, limits, result: int, beyond: bool):
    """(steps, sentence, clauses) of a finite nonzero source; beyond: once rounded it is out of range."""
    magnitude, sign = abs(value), "-" if value < 0 else ""
    below, above = _gap(target, magnitude)
    middle, inexact = (below + above) / 2, below != magnitude
    low, half, high = (sign + number(point) for point in (below, middle, above))
    steps = [("between", f"{low} and {high}, half way {half}")] if inexact else []
    code = described(target, result)
    if beyond:
        symmetric = limits.lowest == "symmetric" and target.layout.sign == "twos"
        least = -target.max if symmetric else target.lowest
        side, extreme = ("least", least) if value < 0 else ("largest", target.max)
        how = f"{rule.words} gives {high}, beyond" if inexact and below <= abs(extreme) else "beyond"
        why = f"{how} the {side} value {number(extreme)}: {limits.name} makes it {code}"
        return steps, why, (rule.clause, "OVER-1", overflow_clause(limits.name))
    if not inexact:
        return steps, "the value is exact in the target", ("VAL-2",)
    if not target.has_zero and above <= target.min_positive:
        return steps, "below the smallest value, and there is no zero: the smallest value", ("ROUND-7",)
    if magnitude == middle and target.precision == 1 and rule.name == "rne":
        tie = {"up": "the tie goes up", "even": "the tie goes to the even code"}[target.tie]
        why = f"exactly half way; with one significant bit {tie}: {code}"
        return steps, why, ("ROUND-2", "ROUND-6")
    place = "exactly" if magnitude == middle else "below" if magnitude < middle else "above"
    return steps, f"{place} half way; {rule.words} takes {code}", (rule.clause,)


def _listed_cast(value, target: Row, rule, limits, result: int):
    """(steps, sentence, clauses) of a cast into a listed format."""
    code = described(target, result)
    if not target.signed and not isinstance(value, str) and value <= 0:
        return [], *_special(value, target, limits, result)
    if isinstance(value, str) or value == 0:
        return [], f"{number(value)} becomes {code}", ("LIST-1",)
    rungs = target.rungs(rule.name, value < 0)
    passed = [rung for rung in rungs[1:] if abs(value) > key(rung.boundary)
              or rung.closed and abs(value) == rung.boundary]
    ahead = rungs[1 + len(passed):]
    ends = [*(rung.boundary for rung in passed[-1:]), *(rung.boundary for rung in ahead[:1])]
    steps = [("boundaries", f"of this code, in magnitude: {' and '.join(map(number, ends))}")] if ends else []
    words = f"{target.words} ({target.name}'s own rule)" if rule.name == "rne" else rule.words
    return steps, f"{words}: {code}", (target.clause,)


def _gap(row: Row, magnitude: Fraction) -> tuple[Fraction, Fraction]:
    """(below, above) of a positive value, exponent unbounded; below is the value itself where it is exact."""
    layout = row.layout
    finest = floor_log2(magnitude) - layout.man if row.is_float else layout.qmin
    quantum = Fraction(2) ** max(finest, layout.qmin)
    below = magnitude // quantum * quantum
    return below, below + quantum


def _special(value, target: Row, limits, result: int) -> tuple[str, tuple[str, ...]]:
    """(sentence, clauses) of a NaN, infinite or zero source, or a negative one into an unsigned format."""
    if value == NAN and not target.is_float:
        return f"NaN into an integer format: {limits.name} gives {limits.nan_int}", ("NAN-3",)
    if value == NAN and target.has_nan:
        return f"NaN stays NaN; {limits.name} writes the {limits.nan_code} code", ("NAN-1",)
    if value == NAN:
        return f"NaN into a format without NaN: {limits.name} gives {limits.nan[-1]}", ("NAN-2",)
    if value in (INF, NEG_INF):
        return f"an infinite source under {limits.name}", (overflow_clause(limits.name),)
    if value < 0:
        drops = limits.negative == ("magnitude",)
        fate = "drops the sign before rounding" if drops else f"makes it {described(target, result)}"
        return f"negative into an unsigned format: {limits.name} {fate}", ("OVER-8",)
    if not target.has_zero:
        return f"zero into a format without zero: {limits.name} gives {limits.zero}", ("ZERO-2",)
    return "zero stays zero" + ("" if target.has_neg_zero else "; the target has only +0"), ("ZERO-1",)


def overflow_clause(name: str) -> str:
    """The clause that defines an overflow rule."""
    clauses = {"sat": "OVER-2", "nonsat": "OVER-3", "satfinite": "OVER-4", "satpropagate": "OVER-4",
               "satnone": "OVER-4", "satnone-main": "OVER-4", "ieee": "OVER-5", "satsym": "OVER-7"}
    return clauses.get(name, "OVER-6")


def _neighbour(row: Row, signed_index: int) -> int | None:
    """The code of the value a signed index away, skipping -0; None beyond the ends."""
    layout = row.layout
    if not (layout.first or -layout.min_index) <= signed_index <= layout.max_index:
        return None
    return layout.code(signed_index < 0, abs(signed_index)) << layout.pad


def _class(row: Row, value) -> str:
    if value == NAN:
        return "NaN"
    if isinstance(value, str):
        return "infinity"
    if value == 0:
        return "zero"
    if not row.is_float:
        return "integer" if row.layout.qmin == 0 else f"integer * 2^{row.layout.qmin}"
    return "normal" if row.min_normal is not None and abs(value) >= row.min_normal else "subnormal"


def _field_names(row: Row) -> str:
    if not row.is_float and not row.signed:
        return "unsigned"
    if not row.is_float:
        return {"twos": "two's complement", "sign-magnitude": "sign and magnitude"}[row.encoding]
    sizes = (row.signed, row.exp, row.man, row.pad)
    names = ("sign", f"exponent, bias {row.bias}", "significand", "padding")
    return " | ".join(name for name, size in zip(names, sizes) if size)
