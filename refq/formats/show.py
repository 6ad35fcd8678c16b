"""Saying in words what a code is, and why a value becomes the code it becomes."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from refq.errors import InputError
from refq.formats import codec, definition
from refq.formats.names import number_format
from refq.formats.policies import overflow_rule, rounding_rule
from refq.formats.rows import Row
from refq.formats.values import INF, NAN, NEG_INF, exact, split


def number(value) -> str:
    """An exact value in as few characters as stay exact: an integer, a decimal, or significand * 2^exponent."""
    if isinstance(value, str):
        return {NAN: "NaN", INF: "+Inf", NEG_INF: "-Inf"}[value]
    if value.denominator == 1 and abs(value) < 10 ** 9:
        return str(value.numerator)
    twos = value.denominator.bit_length() - 1
    if twos <= 16 and abs(value) < 10 ** 6:
        return f"{float(value):.{twos}f}".rstrip("0")
    return dyadic(value)


def dyadic(value: Fraction) -> str:
    """significand * 2^exponent with an odd integer significand."""
    if value == 0:
        return "0"
    exponent = (value.numerator & -value.numerator).bit_length() - value.denominator.bit_length()
    significand = value / Fraction(2) ** exponent
    return f"{significand.numerator} * 2^{exponent}" if significand.denominator == 1 else str(value)


def described(row: Row, code: int) -> str:
    """A code with its value, as in `0x7e (448)`; zeros say their sign."""
    value = exact(row, code)
    text = "-0" if value == 0 and row.has_neg_zero and split(row.layout, code >> row.layout.pad)[0] else number(value)
    return f"{code:#0{(row.width + 3) // 4 + 2}x} ({text})"


def fields(row: Row, code: int) -> str:
    """The bits of a code, its fields set apart by blanks: sign exponent significand (padding)."""
    bits = f"{code:0{row.width}b}"
    sizes = (row.signed, row.exp, row.man, row.layout.pad) if row.is_float else (row.width,)
    cut, start = [], 0
    for size in sizes:
        cut.append(bits[start: start + size])
        start += size
    return " ".join(part for part in cut if part)


def show_code(row: Row, code: int) -> list[tuple[str, str]]:
    """What there is to say about one code, as (label, text) pairs. Raises InputError for a code out of range."""
    if not 0 <= code < 1 << row.width:
        raise InputError(f"{code:#x} is not a {row.name} code; allowed are 0 to {(1 << row.width) - 1:#x}")
    value, layout = exact(row, code), row.layout
    lines = [("code", described(row, code)), ("fields", fields(row, code) + f"   ({_field_names(row)})"),
             ("class", _class(row, code, value))]
    if isinstance(value, str):
        return lines
    lines += [("exact", dyadic(value))]
    if abs(row.emax) < 1000 and value:
        lines += [("hex float", float(value).hex())]
    negative, index = split(layout, code >> layout.pad)
    signed = -index if negative else index
    below = _neighbour(row, signed - 1)
    above = _neighbour(row, signed + 1)
    lines += [("next below", "none: the least value" if below is None else described(row, below)),
              ("next above", "none: the largest value" if above is None else described(row, above))]
    return lines


def source_code(source: Row, value) -> tuple[int, list[tuple[str, str]]]:
    """(code, notes): a Fraction (or a float for inf, nan, -0) as a code of a source format, rounded to nearest even.

    The note says so when the source cannot hold the value.
    """
    if not isinstance(value, Fraction):
        return int(codec.encode(np.float64(value), source, overflow="ieee")), []
    if value == 0:
        return int(codec.encode(np.float64(0), source)), []
    layout, negative = source.layout, value < 0
    below, above = _gap(source, abs(value))
    up = abs(value) - below > (above - below) / 2 or (
        abs(value) - below == (above - below) / 2 and (below / (above - below)) % 2 == 1)
    rounded = above if up else below
    if rounded > (abs(source.lowest) if negative else source.max) or negative and not source.signed:
        raise InputError(f"{number(value) if abs(value) < 10 ** 9 else format(float(value), '.6g')} is outside the range of the source format {source.name}")
    index = _index(layout, rounded)
    note = [] if rounded == abs(value) else [("taken as", f"{number(-rounded if negative else rounded)}, the nearest {source.name}")]
    return layout.code(negative, max(index, layout.first)) << layout.pad, note


def _index(layout, magnitude: Fraction) -> int:
    """The index of a magnitude that the format holds."""
    steps = magnitude / Fraction(2) ** layout.qmin
    binade = max(steps.numerator.bit_length() - layout.man - 1, 0)
    return (binade << layout.man) + (steps.numerator >> binade)


@dataclass(frozen=True)
class Cast:
    """One cast, explained. code: the result; why: a sentence; clauses: of the spec; steps: (label, text) pairs."""

    code: int
    why: str
    clauses: tuple[str, ...]
    steps: tuple[tuple[str, str], ...]


def show_cast(source, code: int, target, rounding="rne", overflow="sat", random_bits=None, random_width=None) -> Cast:
    """Why one source code becomes the target code it becomes.

    source, target: names or rows; code: of the source. Other arguments as `encode`; errors too.
    """
    source, target = number_format(source), number_format(target)
    word = np.array([code], codec.code_dtype(source))
    bits = None if random_bits is None else np.array([random_bits])
    result = int(codec.convert(word, source, target, rounding, overflow, bits, random_width)[0])
    rule, limits = rounding_rule(rounding), overflow_rule(overflow, target.special)
    value = exact(source, code)
    steps = [("source", f"{source.name} {described(source, code)}")]
    if isinstance(value, str) or value == 0:
        why, clauses = _special(target, value, limits)
    elif value < 0 and not target.signed:
        fate = "drops the sign before rounding" if limits.negative == ("magnitude",) else f"makes it {described(target, result)}"
        why, clauses = f"negative into an unsigned format: {limits.name} {fate}", ("OVER-8",)
    else:
        draws = None if bits is None else bits.astype(np.uint64)
        beyond = bool(definition.overflows(word, source, target, rounding, draws, random_width)[0])
        more, why, clauses = _finite(value, target, rule, limits, result, beyond)
        steps += more
    steps += [("result", f"{target.name} {described(target, result)}"), ("because", why), ("clauses", ", ".join(clauses))]
    return Cast(result, why, clauses, tuple(steps))


def _finite(value: Fraction, target: Row, rule, limits, result: int, beyond: bool):
    """(steps, sentence, clauses) of a finite nonzero source."""
    below, above = _gap(target, abs(value))
    middle, sign = (below + above) / 2, "-" if value < 0 else ""
    inexact = below != abs(value)
    steps = [("between", f"{sign}{number(below)} and {sign}{number(above)}, half way {sign}{number(middle)}")] if inexact else []
    if beyond:
        extreme = target.lowest if value < 0 else target.max
        how = f"{rule.words} gives {sign}{number(above)}, beyond" if below <= abs(extreme) and inexact else "beyond"
        why = f"{how} the {'least' if value < 0 else 'largest'} value {number(extreme)}: {limits.name} makes it {described(target, result)}"
        return steps, why, (rule.clause, "OVER-1", overflow_clause(limits.name))
    if not inexact:
        return steps, "the value is exact in the target", ("VAL-2",)
    if not target.has_zero and above <= target.min_positive:
        return steps, "below the smallest value, and there is no zero: the smallest value", ("ROUND-7",)
    if abs(value) == middle and target.precision == 1 and rule.name == "rne":
        tie = {"up": "the tie goes up", "even": "the tie goes to the even code"}[target.tie]
        return steps, f"exactly half way; with one significant bit {tie}: {described(target, result)}", ("ROUND-2", "ROUND-6")
    place = "exactly half way" if abs(value) == middle else "below half way" if abs(value) < middle else "above half way"
    return steps, f"{place}; {rule.words} takes {described(target, result)}", (rule.clause,)


def _gap(row: Row, magnitude: Fraction) -> tuple[Fraction, Fraction]:
    """The neighbours of a positive value in the format with unbounded exponent; both the value itself when exact."""
    layout = row.layout
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent
    quantum = Fraction(2) ** max(exponent - (layout.man if row.is_float else layout.bits), layout.qmin)
    below = magnitude // quantum * quantum
    return below, below + quantum


def _special(target: Row, value, limits) -> tuple[str, tuple[str, ...]]:
    """(sentence, clauses) of a NaN, infinite or zero source."""
    if value == NAN and not target.is_float:
        return f"NaN into an integer format: {limits.name} gives {limits.nan_int}", ("NAN-3",)
    if value == NAN:
        return (f"NaN stays NaN; {limits.name} writes the {limits.nan_code} code", ("NAN-1",)) if target.has_nan else \
            (f"NaN into a format without NaN: {limits.name} gives {limits.nan[-1]}", ("NAN-2",))
    if value in (INF, NEG_INF):
        return f"an infinite source under {limits.name}", (overflow_clause(limits.name),)
    if not target.has_zero:
        return f"zero into a format without zero: {limits.name} gives {limits.zero}", ("ZERO-2",)
    return "zero stays zero" + ("" if target.has_neg_zero else "; the target has only +0"), ("ZERO-1",)


def overflow_clause(name: str) -> str:
    """The clause that defines an overflow rule."""
    return {"sat": "OVER-2", "nonsat": "OVER-3", "satfinite": "OVER-4", "satpropagate": "OVER-4", "satnone": "OVER-4",
            "satnone-main": "OVER-4", "ieee": "OVER-5", "satsym": "OVER-7"}.get(name, "OVER-6")


def _neighbour(row: Row, signed_index: int) -> int | None:
    """The code of the value a signed index away, skipping -0; None beyond the ends."""
    layout = row.layout
    if layout.first and signed_index < layout.first or signed_index > layout.max_index or -signed_index > layout.min_index:
        return None
    return layout.code(signed_index < 0, abs(signed_index)) << layout.pad


def _class(row: Row, code: int, value) -> str:
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
    if not row.is_float:
        return {"twos": "two's complement", "sign-magnitude": "sign and magnitude"}[row.encoding] if row.signed else "unsigned"
    names = (("sign", row.signed), (f"exponent, bias {row.bias}", row.exp), ("significand", row.man), ("padding", row.pad))
    return " | ".join(name for name, size in names if size)
