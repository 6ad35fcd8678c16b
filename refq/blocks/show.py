"""Saying what a block of a data type holds: a drawing of its bits, and its facts in words and formulas."""

import textwrap
from fractions import Fraction

from refq.blocks.anatomy import FIELDS, LEAD, Part, block_bits, block_kind, block_values, parts_of
from refq.blocks.gguf import FITS, Gguf
from refq.blocks.one_block import one_block, pairs, short, values_text
from refq.blocks.recipes import recipe_of
from refq.blocks.rows import Block
from refq.blocks.rules import RULES
from refq.formats.listed import meaning
from refq.formats.rows import Row
from refq.formats.show import hex_code, number

WIDTH = 100                                 # columns of a drawing
EXAMPLE = (1.0, 2.5, -7.0, 0.3)             # values of the worked example, of which MAIN is worked out
MAIN = 2
_GAP, _LEFT_OUT = "   ", " ... "
_PLAIN = str.maketrans("┌┬┐└┴┘─│", "++++++-|")


def show_block(name) -> str:
    """The drawing of one block and the facts of its type. name: as in block_kind; InputError as there."""
    kind = block_kind(name)
    facts = _gguf_facts(kind) if isinstance(kind, Gguf) else _facts(kind)
    return f"{drawing(kind)}\n\n{pairs(facts)}"


def plain(text: str) -> str:
    """A drawing in ASCII."""
    return text.translate(_PLAIN)


# ------------------------------------------------------------------------------------------------------------
# the drawing

def drawing(name, width: int = WIDTH) -> str:
    """The bits of one block in boxes, a letter of anatomy.FIELDS a bit, in lines of at most `width`."""
    parts = parts_of(name)
    rows, room = [[]], width
    for part in parts:
        box = _box(part, width)
        if rows[-1] and len(box[0]) > room:
            rows.append([])
            room = width
        rows[-1].append(box)
        room -= len(box[0]) + len(_GAP)
    lines = []
    for boxes in rows:
        lines += [line for line in (_GAP.join(cells).rstrip() for cells in zip(*boxes)) if line] + [""]
    letters = dict.fromkeys(letter for part in parts for letter, _ in part.fields)
    legend = "; ".join(f"{letter} {FIELDS[letter]}" for letter in letters)
    return "\n".join([*lines, *textwrap.wrap(legend, width)])


def _box(part: Part, width: int) -> list[str]:
    """Title, size, box and labels of a part, all lines of one width."""
    inside = f" {' '.join(letter * bits for letter, bits in part.fields)} "
    fits = (width - 1 - len(_LEFT_OUT) - 1) // (len(inside) + 1)
    few = part.count is not None and part.count <= min(LEAD + 1, fits)
    shown = part.shown(LEAD if few else min(3, max(1, fits - 1)))
    shown = shown[:2] if None in shown and fits < 2 else shown
    cells = [_LEFT_OUT if label is None else inside for label in shown]
    bars = ["─" * len(cell) for cell in cells]
    below = " ".join((label or "").center(len(cell)) for label, cell in zip(shown, cells))
    lines = [f"{part.name} {part.format}".strip(), sizes(part), f"┌{'┬'.join(bars)}┐", f"│{'│'.join(cells)}│",
             f"└{'┴'.join(bars)}┘", f" {below}"]
    longest = max(len(line.rstrip()) for line in lines)
    return [line.rstrip().ljust(longest) for line in lines]


def sizes(part: Part) -> str:
    """How many bits a part takes, in words."""
    one = f"{part.bits} bit{'s' * (part.bits != 1)}"
    if part.shared != "block":
        return f"{one}, one a {part.shared}"
    if part.count == 1:
        return one
    return f"n x {one}" if part.count is None else f"{part.count} x {one} = {part.total}"


# ------------------------------------------------------------------------------------------------------------
# facts of a data type

def _facts(block: Block) -> list[tuple[str, str]]:
    name = f"{block.name} (also {', '.join(block.aka)})" if block.aka else block.name
    lines = [("data type" if block.scale else "number format", name)]
    if block.scale:
        lines += _scaled_facts(block)
    lines += [("stored", _stored(block)), ("bits/value", _ratio(block.bits_per_value)), ("source", block.ref)]
    return [*lines, *_formulas(block), *_example(block)]


def _scaled_facts(block: Block) -> list[tuple[str, str]]:
    row, rule, how = block.element_row, RULES[block.rule], recipe_of(block)
    tables = f"{len(block.tables)} tables of {1 << row.width} values, " if len(block.tables) > 1 else ""
    largest = number(block.elements.max)
    lines = [("element", f"{block.element}, {tables}{row.width} bits, largest value {largest}"),
             ("scale", f"{block.scale}, one for {values_text(block)}")]
    if block.outer:
        lines.append(("tensor scale", f"{block.outer}, one for the whole tensor"))
    if block.zero:
        lines.append(("zero point", f"{block.zero}, one a scale"))
    if block.sparsity:
        lines.append(("sparsity", "{} of every {} values along the axis are kept".format(*block.sparsity)))
    return [*lines, ("rule", f"{rule.name}: {rule.words} ({rule.clause})"),
            ("recipe", f"{how.name}: {how.words} ({how.clause})")]


def _stored(block: Block) -> str:
    parts, values = parts_of(block), block_values(block)
    total = block_bits(parts)
    if total is None:
        return "; ".join(f"{part.name} {sizes(part)}" for part in parts)
    size = f"{total} bits" + (f" = {_ratio(Fraction(total, 8))} bytes" if total > 8 else "")
    return f"{size} for {values} values" if values > 1 else size


def _ratio(value: Fraction) -> str:
    text = number(value) if value.denominator > 1 else str(value.numerator)
    return f"{text} = {float(value):.5g}" if "/" in text else text


# ------------------------------------------------------------------------------------------------------------
# what codes mean, and a worked example

def _formulas(block: Block) -> list[tuple[str, str]]:
    """What the codes mean, in the letters of their fields."""
    row = block.element_row
    element = formula(row) if len(block.tables) == 1 else "table[T][C]"
    if block.scale is None:
        return [("value", element), *_tables(block)]
    lines = [("value", _product(block)), ("  element", element), ("  scale", formula(block.scale_row))]
    if block.zero:
        lines.append(("  zero point", formula(block.zero_row)))
    return lines + _tables(block)


def _product(block: Block) -> str:
    offsets = sum(bits > 0 for _, bits in block.subtiles)
    scale = "scale" + (" * 2^offset" * offsets if block.rule == "hif4" else " / 2^offset" * offsets)
    scale += " * tensor scale" * bool(block.outer)
    if block.zero and not block.zero_row.is_float:
        return f"(element - zero point) * {scale}"
    return f"element * {scale}{' - zero point' * bool(block.zero)}"


def _tables(block: Block) -> list[tuple[str, str]]:
    if len(block.tables) > 1:
        lines = [(f"  table {place}", _levels(table)) for place, table in enumerate(block.tables[:8])]
        return lines + [("", f"and {len(block.tables) - 8} more tables")] * (len(block.tables) > 8)
    row = block.element_row
    return [("  table", _levels(row))] if row.is_listed and row.kind == "codebook" else []


def _levels(row: Row) -> str:
    values = [meaning(row, code) for code in range(1 << row.bits)]
    texts = [number(value) if isinstance(value, str) else f"{float(value):.4g}" for value in values]
    return " ".join(texts if len(texts) <= 16 else [*texts[:8], "...", *texts[-8:]])


def formula(row: Row) -> str:
    """The value of a code in the letters of its fields."""
    if row.is_listed:
        if row.kind == "exponent":
            return "2^E, E an integer in two's complement"
        return "table[C]" if row.kind == "codebook" else f"by the rules of {row.kind} numbers ({row.clause})"
    sign = "(-1)^S * " if row.signed else ""
    if not row.is_float:
        step = f" * 2^-{row.frac}" if row.frac else ""
        twos = row.signed and row.encoding == "twos"
        return f"SM{step}, SM an integer in two's complement" if twos else f"{sign}M{step}"
    text = f"{sign}{'1.M * ' * bool(row.man)}2^(E - {row.bias})"
    if not row.has_zero:
        return text
    return f"{text}; where E = 0: {f'{sign}0.M * 2^{1 - row.bias}' if row.man else '0'}"


def worked(row: Row, code: int) -> str:
    """The value of a code by its formula, with the numbers put in."""
    value = meaning(row, code)
    text = number(value)
    if isinstance(value, str) or value == 0:
        return text
    if row.is_listed:
        return f"table[{code}] = {text}" if row.kind == "codebook" else text
    sign = f"(-1)^{int(value < 0)} * " if row.signed else ""
    if not row.is_float:
        return f"{number(value * 2 ** row.frac)} * 2^-{row.frac} = {text}" if row.frac else text
    exponent = code >> row.pad >> row.man & ((1 << row.exp) - 1)
    subnormal = exponent == 0 and row.has_zero
    power = 1 - row.bias if subnormal else exponent - row.bias
    significand = f"{number(abs(value) / Fraction(2) ** power)} * " if row.man else ""
    spelled = f"2^{power}" if subnormal else f"2^({exponent} - {row.bias})"
    return f"{sign}{significand}{spelled} = {text}"


def _example(block: Block) -> list[tuple[str, str]]:
    """One value of a small quantised block, worked out."""
    given = EXAMPLE[: block_values(block)] if block.scale else (EXAMPLE[MAIN],)
    place = min(MAIN, len(given) - 1)
    if not block.scale and not block.element_row.signed:
        given = (EXAMPLE[1],)
    shown = one_block(given, block)
    element, code, result = shown.elements[place], shown.codes[place], short(shown.decoded[place])
    ahead = f"{' '.join(f'{value:g}' for value in given)} as one block: " if len(given) > 1 else ""
    lines = [("example", f"{ahead}{given[place]:g} becomes {result}"),
             ("  element", f"{hex_code(element, code)} = {worked(element, code)}")]
    for label, row, word in (("scale", "scale_row", shown.scale), ("zero point", "zero_row", shown.zero)):
        if word is not None:
            row = getattr(block, row)
            lines.append((f"  {label}", f"{hex_code(row, word)} = {worked(row, word)}"))
    if shown.offsets:
        lines.append(("  offset", " and ".join(str(level[place]) for level in shown.offsets)))
    if shown.tensor_scale is not None:
        lines.append(("  tensor scale", short(shown.tensor_scale)))
    return [*lines, ("  value", _sum(block, shown, place, result))] if block.scale else lines


def _sum(block: Block, shown, place: int, result: str) -> str:
    """The product that gives an example's value."""
    element = short(meaning(shown.elements[place], shown.codes[place]))
    scale = short(meaning(block.scale_row, shown.scale))
    sign = "*" if block.rule == "hif4" else "/"
    scale += "".join(f" {sign} 2^{level[place]}" for level in shown.offsets)
    if shown.tensor_scale is not None:
        scale += f" * {short(shown.tensor_scale)}"
    if not block.zero:
        return f"{element} * {scale} = {result}"
    zero = short(meaning(block.zero_row, shown.zero))
    text = f"{element} * {scale} - {zero}" if block.zero_row.is_float else f"({element} - {zero}) * {scale}"
    return f"{text} = {result}"


# ------------------------------------------------------------------------------------------------------------
# facts of a GGUF block

_D = {"binary16": "binary16", "e8m0": "2^(E - 128): half of e8m0, as the levels are doubled",
      "ue4m3": "half of ue4m3, as the levels are doubled"}


def _gguf_facts(row: Gguf) -> list[tuple[str, str]]:
    levels = row.codes.levels
    factor = " * factor" if row.scale.factors else ""
    minimum = " * factor" if row.offset and row.offset.factors else ""
    offset = f" {'-' if row.offset.sign < 0 else '+'} m{minimum}" if row.offset else ""
    lines = [("GGUF block", f"{row.name}, type {row.number} of the file format"),
             ("holds", f"{row.values} values in {row.bytes} bytes"),
             ("bits/value", _ratio(row.bits_per_value)),
             ("value", f"d{factor} * level{offset}"), ("  d", _D[row.scale.format]),
             ("  level", " ".join(map(str, levels)) if len(levels) <= 16
              else f"{min(levels)} to {max(levels)}")]
    if factor:
        factors = row.scale.factors
        count = sum(run[0].count * run[0].groups for run in factors.runs)
        lines.append(("  factor", f"{min(factors.levels)} to {max(factors.levels)}, "
                                  f"one for {row.values // count} values"))
    return [*lines, *_first_values(row), ("encode", encoding(row)), ("source", "GGML ggml-quants (GGUF-1)")]


def _first_values(row: Gguf) -> list[tuple[str, str]]:
    """Which values the first byte of every field of the codes holds (Spec: GGUF-2, GGUF-3)."""
    lines, start = [], 0
    for run in row.codes.runs:
        for bits in run:
            held = [str(start + group * bits.stride) for group in range(bits.groups)]
            if hasattr(bits, "low"):
                held.reverse()                              # drawn from the top
            lines.append((f"  byte {bits.at}", f"of value{'s' * (len(held) > 1)} {', '.join(held)}"))
        start += run[0].count * run[0].groups
    return lines


def encoding(row: Gguf) -> str:
    """How an encoder finds a GGUF block, in words."""
    return f"plain rounding: {FITS[row.fit]}" if row.encodes else f"decode only: {FITS[row.fit]}"
