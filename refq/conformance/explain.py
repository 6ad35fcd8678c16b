"""Why a case has the result it has, in words: the text of a failure line.

Everything here is exact (fractions), and nothing decides a verdict. Spec: CHECK-6.
"""

from fractions import Fraction

from refq.blocks.recipes import recipe
from refq.formats.listed import key, meaning
from refq.formats.policies import rounding_rule
from refq.formats.show import show_cast
from refq.formats.values import INF, NAN, NEG_INF, exact, split
from refq.vectors import sets
from refq.vectors.vec import Header, format_of


def failure_line(header: Header, operand: str, got: str, want: str) -> str:
    """One line: set, operand and its exact value, got, want, why, clauses, and a `refq show` command."""
    name = sets.parse(header.name)
    story = _tile_story if name.op == "quantize" else _cast_story
    return f"{name.op} {name.src}->{name.dst} {name.round}{'-' * bool(name.policy)}{name.policy}  " \
           + story(name, header, operand, got, want)


# ------------------------------------------------------------------------------------------------------------
# one number

def _cast_story(name, header: Header, operand: str, got: str, want: str) -> str:
    source, target = format_of(name.src), format_of(name.dst)
    code, want_code, got_code = int(operand.split("_")[0], 16), int(want, 16), _code(got)
    random = operand.split("_")[1] if "_" in operand else ""
    if name.op == "decode":
        why, clauses = _decode_why(source, code)
        show = f"refq show {source.name} {code:#x}"
    else:
        rounding, width = name.rounding
        draw = int(random, 16) if width else None
        cast = show_cast(source, code, target, rounding, name.policy, draw, width)
        gap = "".join(f"between {text}: " for label, text in cast.steps if label == "between")
        why, clauses, show = gap + cast.why, cast.clauses, _show(source, code, target, name, random)
    extra = f" random {random}" if random else ""
    wrong = difference(target, got_code, want_code)
    return (f"in {operand.split('_')[0]} ({value_text(source, code)}){extra} "
            f"got {got} ({value_text(target, got_code)}) want {want} ({value_text(target, want_code)}): "
            f"{why}; the answer {wrong} [{', '.join(clauses)}]  {show}")


def quotient_why(value: Fraction, target, rounding: str, want: int) -> tuple[str, list[str]]:
    """(words, clauses) for a quotient that rounds, saturating, into an element format."""
    rule = rounding_rule(rounding)
    below, above, part = bracket(target, abs(value))
    largest = -target.lowest if value < 0 and target.lowest < 0 else target.max
    if below > largest or below == largest and part:
        beyond = f"beyond the largest magnitude {decimal(largest)}" if below > largest \
            else f"{_position(below, above, part)} (out of range)"
        return f"{beyond}; {rule.words}, saturating: {value_text(target, want)}", [rule.clause, "OVER-2"]
    if not part:
        return "a value of the format", ["VAL-2"]
    return f"{_position(below, above, part)}; {rule.words}: {value_text(target, want)}", [rule.clause]


def bracket(target, magnitude: Fraction) -> tuple[Fraction, Fraction, Fraction]:
    """(value not above, next value of the unbounded format, position between them from 0 to 1)."""
    layout = target.layout
    units = magnitude / Fraction(2) ** layout.qmin
    shift = 0
    if target.is_float:
        shift = max(0, (units.numerator // units.denominator).bit_length() - 1 - layout.man)
    whole = units / 2 ** shift
    floor = whole.numerator // whole.denominator
    step = Fraction(2) ** (layout.qmin + shift)
    return floor * step, (floor + 1) * step, whole - floor


def _position(below: Fraction, above: Fraction, part: Fraction) -> str:
    if not part:
        return f"magnitude {decimal(below)}"
    half = Fraction(1, 2)
    where = "halfway" if part == half else "above the middle" if part > half else "below the middle"
    return f"magnitude {where} between {decimal(below)} and {decimal(above)}"


def _decode_why(row, code: int) -> tuple[str, list[str]]:
    value = exact(row, code)
    if value == NAN:
        return f"{code:#x} is a NaN code; decoding gives the canonical NaN", ["VAL-3", "VAL-7"]
    if isinstance(value, str):
        return f"{code:#x} is the code of {value}", ["VAL-3"]
    if row.is_listed:
        return f"{code:#x} is listed as {decimal(value)}", [row.clause]
    negative, index = split(row.layout, code >> row.layout.pad)
    if not row.is_float:
        return f"integer {decimal(value * 2 ** row.frac)} in units of 2^-{row.frac}", ["VAL-4"]
    if value == 0:
        return "the code of minus zero" if negative else "the code of zero", ["VAL-2"]
    if not row.layout.first and index < 1 << row.layout.man:
        return f"a subnormal: {index} * 2^{row.layout.qmin}", ["VAL-2"]
    significand, exponent = row.layout.magnitude(index)
    return f"{'-' * negative}{significand} * 2^{exponent}", ["VAL-2"]


def difference(row, got: int | None, want: int) -> str:
    """How an answer is wrong, in words."""
    if got is None:
        return "has unknown bits"
    if got >= 1 << row.width:
        return "is not a code of the format"
    a, b = (value if isinstance(value, str) else key(value)
            for value in (meaning(row, got), meaning(row, want)))
    if isinstance(a, str) or isinstance(b, str):
        if a == b:
            return f"is another {a} code"
        return {NAN: "is NaN", INF: "is infinity", NEG_INF: "is minus infinity"}.get(a, f"is finite, not {b}")
    if a == b:
        return "has the wrong sign of zero" if a == 0 else "has padding bits set"
    if a == -b:
        return "has the wrong sign"
    if a == 0:
        return "is zero"
    steps = _rank(row, got) - _rank(row, want)
    if a * b < 0:
        return "has the wrong sign and magnitude"
    if not steps:
        return "is wrong"
    plural, side = "s" * (abs(steps) > 1), "large" if steps > 0 else "small"
    return f"is {abs(steps)} value{plural} too {side} in magnitude"


def _rank(row, code: int) -> int:
    """Place of a finite code among the magnitudes of its sign."""
    if not row.is_listed:
        return split(row.layout, code >> row.layout.pad)[1]
    place = key(row.meanings[code])
    between = (place, 0) if place < 0 else (0, place)
    return sum(key(value) != 0 and between[0] <= key(value) <= between[1] for value, _ in row.ascending)


def _minus_zero(row, code: int) -> bool:
    if row.is_listed:
        return row.is_minus_zero(code)
    return exact(row, code) == 0 and split(row.layout, code >> row.layout.pad)[0]


# ------------------------------------------------------------------------------------------------------------
# one tile

def _tile_story(name, header: Header, operand: str, got: str, want: str) -> str:
    fields = header.result_fields
    for field, had, due in zip(fields, got.split("_"), want.split("_")):
        place = _first_wrong(field, had, due)
        if place is not None:
            break
    had, due = (text[place * field.digits:(place + 1) * field.digits] for text in (had, due))
    row, want_code = format_of(field.token), int(due, 16)
    words = operand.split("_")
    elements = _element_codes(header.operand_fields[-1], words[-1])
    source = format_of(name.src)
    if field is not fields[-1]:
        what = "scale" if field is fields[-2] else "tensor scale"
        which = f"{what} {place}" if field.count > 1 else what
        amax = _amax(source, elements)
        why, clauses = f"largest magnitude of the operands {amax}", sets.clause(name).split(",")[:1]
        where = f"in {_shortened(operand)}"
        show = f"refq show {row.name} {want_code:#x}"
    else:
        which = f"element {place}"
        where = (f"in {_shortened(operand)} at {_element_text(header, words, place)} "
                 f"({value_text(source, elements[place])})")
        why, clauses, show = _element_why(name, header, words, want, place, elements[place], want_code)
    return (f"{where} {which} got {had} ({value_text(row, _code(had))}) "
            f"want {due} ({value_text(row, want_code)}): {why}; "
            f"the answer {difference(row, _code(had), want_code)} [{', '.join(clauses)}]  {show}")


def _element_why(name, header: Header, words: list[str], want: str, place: int, code: int, want_code: int):
    """(words, clauses, show command) for an element: its exact quotient by the wanted scales."""
    source, target = format_of(name.src), format_of(header.result_fields[-1].token)
    parts, show = want.split("_"), f"refq show {target.name} {want_code:#x}"
    how = recipe(name.policy)
    if how.takes:                   # a stack's own operations, which its clause lists
        return f"by the float32 operations of recipe {how.name}", [how.clause], show
    scale_field = header.result_fields[-2]
    codes = _element_codes(scale_field, parts[-2])
    scale = exact(format_of(scale_field.token), codes[place * len(codes) // header.result_fields[-1].count])
    value = exact(source, code)
    if isinstance(scale, str) or isinstance(value, str):
        return "the tile holds a NaN or an infinity, so every element code is 0", ["BLOCK-6"], show
    outer = parts[0] if len(parts) == 3 else words[0] if len(words) == 2 else None
    step = scale * (exact(format_of("f32"), int(outer, 16)) if outer else 1)
    if not step or not value:
        return f"zero over a scale of {decimal(step)}", ["BLOCK-5"], show
    rounding, _ = name.rounding
    why, clauses = quotient_why(value / step, target, rounding, want_code)
    return f"over the scale {decimal(step)}: {why}", ["BLOCK-4", *clauses], show


def _first_wrong(field, had: str, due: str) -> int | None:
    cells = [slice(i * field.digits, (i + 1) * field.digits) for i in range(field.count)]
    return next((i for i, cell in enumerate(cells) if had[cell] != due[cell]), None)


def _element_codes(field, text: str) -> list[int]:
    return [int(text[i:i + field.digits], 16) for i in range(0, len(text), field.digits)]


def _element_text(header: Header, words: list[str], place: int) -> str:
    digits = header.operand_fields[-1].digits
    return words[-1][place * digits:(place + 1) * digits]


def _amax(source, codes: list[int]) -> str:
    values = [exact(source, code) for code in codes]
    if any(isinstance(value, str) for value in values):
        return "is not finite"
    return decimal(max(map(abs, values)))


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:24]}...{text[-8:]}"


# ------------------------------------------------------------------------------------------------------------
# numbers as text

def value_text(row, code: int | None) -> str:
    """The value of a code in words: NaN, Inf, -0, or a decimal."""
    if code is None:
        return "unknown bits"
    if code >= 1 << row.width:
        return "no code"
    value = meaning(row, code)
    if isinstance(value, str):
        return {NAN: "NaN", INF: "Inf", NEG_INF: "-Inf"}[value]
    return "-0" if _minus_zero(row, code) else decimal(value) if isinstance(value, Fraction) else str(value)


def decimal(value: Fraction, digits: int = 12) -> str:
    """A dyadic number in decimal: exact where it is short, else cut with an ellipsis; far ones as m*2^e."""
    if value.denominator == 1 and abs(value.numerator) < 10 ** digits:
        return str(value.numerator)
    places = value.denominator.bit_length() - 1
    if value.denominator == 1 << places and places <= digits:
        text = f"{abs(value.numerator) * 5 ** places:0{places + 1}d}"
        return "-" * (value < 0) + (f"{text[:-places]}.{text[-places:]}" if places else text)
    if Fraction(1, 10 ** 300) < abs(value) < 10 ** 300:
        text = f"{float(value):.{digits}g}"
        return text if Fraction(text) == value else text + "..."
    low = (value.numerator & -value.numerator).bit_length() - 1 - places
    return f"{value / Fraction(2) ** low}*2^{low}"


def _code(text: str) -> int | None:
    """The code of hex text, or None when a simulator printed unknown bits in it."""
    try:
        return int(text, 16)
    except ValueError:
        return None


def _show(source, code: int, target, name, random: str) -> str:
    """The command that explains the wanted result; a negative number stands behind `--`."""
    value = exact(source, code)
    negative = _minus_zero(source, code)
    number = value if isinstance(value, str) else hex_float(value, negative)
    rounding, width = name.rounding
    options = [("--source", source.name, "binary32"), ("--round", rounding, "rne"),
               ("--overflow", name.policy, "sat"),
               ("--random-bits", f"0x{random}", "0x"), ("--random-width", width, None)]
    words = [f"{option} {value}" for option, value, default in options if value != default]
    return " ".join(["refq show", target.name, *words, *(["--"] if number.startswith("-") else []), number])


def hex_float(value: Fraction, negative: bool = False) -> str:
    """A dyadic number as 0x1.8p+3, exact at any size."""
    if not value:
        return "-0.0" if negative else "0.0"
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - 1 - (magnitude.denominator.bit_length() - 1)
    scaled = magnitude / Fraction(2) ** exponent
    if scaled < 1:
        scaled, exponent = scaled * 2, exponent - 1
    fraction, text = scaled - 1, ""
    while fraction:
        fraction *= 16
        text += f"{fraction.numerator // fraction.denominator:x}"
        fraction -= fraction.numerator // fraction.denominator
    return f"{'-' * (value < 0)}0x1{'.' + text if text else ''}p{exponent:+d}"


