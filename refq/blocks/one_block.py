"""A few values quantised as one block, and in words why its scale and codes are what they are."""

import textwrap
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import prod

import numpy as np

from refq.blocks.anatomy import block_kind
from refq.blocks.gguf import FITS, Gguf, gguf_decode, gguf_encode
from refq.blocks.quantize import Quantized, quantize
from refq.blocks.recipes import Recipe, describe, recipe_of
from refq.blocks.rows import Block
from refq.blocks.rules import RULES, Rule
from refq.blocks.scales import (INF_TILES, INF_TILES_OF_STACKS, NAN_TILES, NAN_TILES_OF_STACKS, ZERO_TILES,
                                ZERO_TILES_OF_STACKS, exponents)
from refq.blocks.tiles import sides
from refq.errors import InputError
from refq.formats import codec
from refq.formats.listed import key, meaning
from refq.formats.rows import Row
from refq.formats.show import fields, hex_code, number
from refq.formats.table import columns, limit
from refq.formats.values import INF, NAN, NEG_INF, floor_log2

LABEL, LINE = 15, 100                       # columns of labels and of whole lines
CHOICES = ("source", "scales", "quotient")  # of a recipe, told where they are not exact


def pairs(lines) -> str:
    """(label, text) pairs as lines of at most LINE columns."""
    wrapped = (textwrap.wrap(text, LINE - LABEL, break_on_hyphens=False) or [""] for _, text in lines)
    return "\n".join(f"{label if place == 0 else '':{LABEL}}{piece}".rstrip()
                     for (label, _), pieces in zip(lines, wrapped) for place, piece in enumerate(pieces))


def short(value) -> str:
    """A number as it is where that is short, else in six digits."""
    text = number(value)
    if len(text) <= 12 and " " not in text:
        return text
    value = Fraction(key(value))
    if abs(floor_log2(abs(value))) < 1000:
        return f"{float(value):.6g}"
    return f"{Decimal(value.numerator) / value.denominator:.6g}"            # beyond every float


def values_text(block: Block) -> str:
    """The values that share a scale, in words."""
    if block.tile in ("channel", "tensor"):
        return {"channel": "all values along the axis", "tensor": "the whole tensor"}[block.tile]
    ways = ("all" if way == "channel" else str(way) for way in sides(block.tile))
    text = f"{' x '.join(ways)} values"
    return text if isinstance(block.tile, tuple) else f"{block.tile} values along the axis"


# ------------------------------------------------------------------------------------------------------------
# one block

@dataclass(frozen=True)
class OneBlock:
    """A quantised block in plain numbers, an entry for each of the values given.

    elements: the number format of every code. decoded: Fractions or "nan", "inf", "-inf", rounded to float64.
    scale, zero: codes. offsets: a list for every level. tables: the codebook taken. quantized: all of it.
    """

    codes: list[int]
    elements: list[Row]
    decoded: list
    scale: int | None
    zero: int | None
    tensor_scale: Fraction | None
    offsets: list[list[int]]
    tables: list[int] | None
    kept: list[bool]
    quantized: Quantized


def one_block(values, block: Block, recipe=None, rounding=None, random_bits=None,
              random_width=None) -> OneBlock:
    """Values as one block, row by row where tiles have two dimensions.

    values: sequence of floats or float array. random_bits: one operand for all of them. Others, and errors,
    as `quantize`; InputError also for more values than a block holds.
    """
    values = np.asarray(values)
    x = _as_tile(values, block)
    draws = None if random_bits is None else np.full(x.shape, random_bits)
    q = quantize(x, block, -1, rounding, recipe, draws, random_width)
    count, levels = len(values), [size for size, bits in block.subtiles if bits]
    tables = None if q.tables is None else _spread(q.tables, block.select_size, q)[:count]
    return OneBlock(
        [int(code) for code in q.codes.reshape(-1)[:count]],
        [block.tables[table] for table in tables or [0] * count],
        [exactly(value) for value in q.dequantize(np.float64).reshape(-1)[:count]],
        None if q.scales is None else int(q.scales.reshape(-1)[0]),
        None if q.zeros is None else int(q.zeros.reshape(-1)[0]),
        None if q.tensor_scale is None else exactly(q.tensor_scale),
        [_spread(part, size, q)[:count] for part, size in zip(q.offsets, levels)],
        tables, [True] * count if q.mask is None else q.mask.reshape(-1)[:count].tolist(), q)


def _as_tile(values, block: Block):
    """The values in the shape of a tile, filled up with zeros to whole rows and subtiles."""
    count = len(values)
    tile = block.tile if block.scale and block.tile != "tensor" else "channel"
    across, along = (count if way == "channel" else way for way in sides(tile))
    if count > across * along:
        raise InputError(f"a block of {block.name} holds {across * along} values, but {count} are given")
    unit = sides(block.subtiles[0][0])[1] if block.subtiles else 1
    columns_used = min(along, -(-count // unit) * unit)
    if isinstance(tile, tuple):
        columns_used = max(columns_used, -(-count // across))
    rows = -(-count // columns_used) if isinstance(tile, tuple) else 1
    filled = np.zeros(rows * columns_used, values.dtype)
    filled[:count] = values
    return filled.reshape(rows, columns_used) if isinstance(tile, tuple) else filled


def _spread(parts, size, q: Quantized) -> list[int]:
    """One entry a value of an array that has one for each part of `size` values."""
    if size == q.dtype.tile:
        return [int(parts.reshape(-1)[0])] * q.codes.size
    for axis, way in zip((-1, -2), reversed(sides(size))):
        parts = np.repeat(parts, way, axis) if parts.ndim >= -axis else parts
    return parts[tuple(slice(0, length) for length in q.shape)].reshape(-1).tolist()


def exactly(value):
    """A float as a Fraction, or "nan", "inf", "-inf"."""
    value = float(value)
    if value != value:
        return NAN
    return Fraction(value) if abs(value) != float("inf") else INF if value > 0 else NEG_INF


def from_source(codes, source: Row) -> np.ndarray:
    """Codes of a source format as an array to quantise: float32 where that holds all values, else float64."""
    dtype = np.float32 if codec.exact_in(source, np.float32) else np.float64
    return codec.decode(np.array(codes, codec.code_dtype(source)), source, dtype)


# ------------------------------------------------------------------------------------------------------------
# in words

def show_values(name, values, recipe=None, rounding=None, random_bits=None, random_width=None) -> str:
    """Values as one block: its scale and why, and for every value its code, decoded value and error.

    name: as in block_kind. values: float32 or float64 array. Others, and errors, as one_block; GGUF blocks
    take no recipe and no rounding, and only those whose encoding is defined can be shown (InputError).
    """
    kind, values = block_kind(name), np.asarray(values)
    if isinstance(kind, Gguf):
        if (recipe, rounding, random_bits, random_width) != (None,) * 4:
            raise InputError(f"{kind.name} is encoded in one way: it takes no recipe and no rounding")
        return _gguf_values(kind, values)
    how = recipe_of(kind, recipe)
    shown = one_block(values, kind, recipe, rounding, random_bits, random_width)
    given = [exactly(value) for value in values]
    lines = [("data type", kind.name)]
    if kind.scale:
        lines += [("recipe", f"{how.name}: {how.words} ({how.clause})"), *_why(kind, how, given, shown)]
    return f"{pairs(lines)}\n\n{_value_table(kind, given, shown)}"


def _value_table(block: Block, given, shown: OneBlock) -> str:
    cells = {"value": [short(value) for value in given]}
    if block.sparsity:
        cells["kept"] = ["yes" if kept else "no" for kept in shown.kept]
    if shown.tables is not None:
        cells["table"] = list(map(str, shown.tables))
    coded = list(zip(shown.elements, shown.codes))
    cells["code"] = [hex_code(row, code) for row, code in coded]
    cells["bits"] = [fields(row, code) for row, code in coded]
    cells["element"] = [short(meaning(row, code)) for row, code in coded]
    for place, level in enumerate(shown.offsets, 1):
        cells[f"offset {place}" if len(shown.offsets) > 1 else "offset"] = list(map(str, level))
    return _with_errors(cells, given, shown.decoded)


def _with_errors(cells: dict, given, decoded) -> str:
    """The columns, those of decoded values and errors added, and the sum of the squared errors."""
    errors = [_error(value, found) for value, found in zip(given, decoded)]
    cells |= {"decoded": [short(found) for found in decoded], "error": [short(error) for error in errors]}
    text = columns([tuple(cells), *zip(*cells.values())], right=range(len(cells)))
    if NAN in errors:
        return text
    return f"{text}\n\nsum of squared errors: {short(sum((error ** 2 for error in errors), Fraction(0)))}"


def _error(value, decoded):
    if isinstance(value, str) or isinstance(decoded, str):
        return Fraction(0) if value == decoded else NAN
    return decoded - value


# ------------------------------------------------------------------------------------------------------------
# why the scale is what it is

def _why(block: Block, how: Recipe, given, shown: OneBlock) -> list[tuple[str, str]]:
    rule, exact = RULES[how.rule or block.rule], how.scales == "exact"
    scale = ("scale", f"{block.scale} {hex_code(block.scale_row, shown.scale)} "
                      f"({short(meaning(block.scale_row, shown.scale))})")
    lines = [("rule", f"{rule.name}: {rule.words} ({rule.clause})")] * (exact or how.rule is not None)
    lines += [(f"  {field}", describe(how, field, block)) for field in CHOICES
              if getattr(how, field) != "exact"]
    kept = [value for value, keep in zip(given, shown.kept) if keep]
    finite = [value for value in kept if not isinstance(value, str)]
    if special := _special(how, kept):
        return [*lines, ("because", f"the block holds {special} (BLOCK-6)"), scale]
    if not any(finite):
        return [*lines, ("because", f"every value is zero; a zero block gets "
                                    f"{(ZERO_TILES | ZERO_TILES_OF_STACKS)[how.zero_tile]} (BLOCK-5)"), scale]
    if not exact:
        stored = "" if shown.tensor_scale is None else f"{short(shown.tensor_scale)}, a {how.tensor}"
        lines.append(("amax", short(max(map(abs, finite)))))
        return [*lines, *[("tensor scale", stored)] * bool(stored), scale]
    if rule.kind == "exponent":
        steps, exponent = _exponent_steps(block, rule, finite)
        return [*lines, *steps, scale, *_offset_lines(block, rule, exponent, given, shown)]
    return [*lines, *_float_steps(block, rule, finite, shown), scale]


def _special(how: Recipe, values) -> str:
    """What decides a block with NaN or infinities, in words; "" where they are ignored or there are none."""
    if NAN in values and how.nan_tile != "ignored":
        return f"NaN: {(NAN_TILES | NAN_TILES_OF_STACKS)[how.nan_tile]}"
    if (INF in values or NEG_INF in values) and how.inf_tile != "ignored":
        return f"an infinity: {(INF_TILES | INF_TILES_OF_STACKS)[how.inf_tile]}"
    return ""


def _exponent_steps(block: Block, rule: Rule, finite):
    """(lines, the exponent of the scale) of an exponent rule (Spec: BLOCK-3, BLOCK-7, RULE-1 to RULE-6)."""
    amax = max(map(abs, finite))
    (e, m, bump), past, emax = _binade(amax, rule, block), rule.past(block.elements), block.elements.emax
    exponent = e - emax + bump
    lines = [("amax", f"{short(amax)} = m * 2^e with m = {short(m)} and e = {e}"),
             ("threshold", "none: the exponent is never raised")]
    if past:
        lines[-1] = ("threshold", f"raised by one where m {'>=' if past[1] else '>'} {number(past[0])}: "
                                  f"{short(m)} is{'' if bump else ' not'}")
    lines.append(("exponent", f"e - emax of the element{' + 1' * bump} = {e} - "
                              f"{f'({emax})' if emax < 0 else emax}{' + 1' * bump} = {exponent}"))
    lowest, highest, _ = exponents(block.scale)
    clamped = min(max(exponent, lowest), highest)
    if clamped != exponent:
        reach = f"{block.scale} goes from 2^{lowest} to 2^{highest}"
        lines.append(("clamped", f"to {clamped}: {reach} (BLOCK-7)"))
    return lines, clamped


def _binade(amax: Fraction, rule: Rule, block: Block):
    """(e, m, bump) of a positive magnitude m * 2^e, 1 <= m < 2."""
    e = floor_log2(amax)
    m, past = amax / Fraction(2) ** e, rule.past(block.elements)
    return e, m, bool(past) and (m > past[0] or past[1] and m == past[0])


def _offset_lines(block: Block, rule: Rule, exponent: int, given, shown: OneBlock) -> list[tuple[str, str]]:
    """Why the exponents of the subtiles with given values lie below the block's (Spec: BLOCK-15)."""
    lines = []
    for (size, bits), offsets in zip([level for level in block.subtiles if level[1]], shown.offsets):
        lines.append(("offset", f"of {prod(sides(size))} values: {exponent} less their own exponent by the "
                                f"rule, from 0 to {(1 << bits) - 1} (BLOCK-15)"))
        parts = _parts(size, shown.quantized)
        for part in sorted(set(parts[: len(given)]))[:6]:
            here = [place for place in range(len(given)) if parts[place] == part]
            amax = max((abs(given[place]) for place in here if shown.kept[place]), default=0)
            own = "only zeros"
            if amax:
                e, _, bump = _binade(amax, rule, block)
                own = f"amax {short(amax)}, exponent {e - block.elements.emax + bump}"
            lines.append((f"  subtile {part}", f"{own}: offset {offsets[here[0]]}"))
    return lines


def _parts(size, q: Quantized) -> list[int]:
    """For every value of the flat array the number of its subtile."""
    across, along = sides(size)
    width = q.shape[-1]
    wide = -(-width // along)
    return [place // width // across * wide + place % width // along for place in range(q.codes.size)]


def _float_steps(block: Block, rule: Rule, finite, shown: OneBlock) -> list[tuple[str, str]]:
    """Lines of a float rule (Spec: BLOCK-9, BLOCK-10, BLOCK-14, RULE-7 to RULE-9)."""
    largest, rounded = block.elements.max, f"rounded to nearest even in {block.scale}"
    amax = ("amax", short(max(map(abs, finite))))
    if rule.name == "minmax":
        return _range_steps(block, finite, largest, rounded, shown)
    if rule.name == "absmean":
        mean = sum(map(abs, finite)) / len(finite)
        return [("quotient", f"mean magnitude = {short(mean)}, {rounded}")]
    if rule.name == "hif4":
        return [amax, ("quotient", f"amax / 7 = {short(max(map(abs, finite)) / 7)}, {rounded}"),
                ("offsets", "1 where a value of 8 reaches 4 scales; then 1 where one of 4 reaches 2 of the "
                            "scales so far")]
    quotient, lines = max(map(abs, finite)) / largest, [amax]
    words = f"amax / {limit(largest)}"
    if shown.tensor_scale is not None:
        top = block.scale_row.max
        overall = f"amax of all / ({limit(largest)} * {limit(top)}) = {short(quotient / top)}"
        lines.append(("tensor scale", f"{overall}, kept in {block.outer} as {short(shown.tensor_scale)}"))
        quotient, words = quotient / shown.tensor_scale, f"{words} / tensor scale"
    return [*lines, ("quotient", f"{words} = {short(quotient)}, {rounded}")]


def _range_steps(block: Block, finite, largest, rounded: str, shown: OneBlock) -> list[tuple[str, str]]:
    low, high = min(0, *finite), max(0, *finite)
    row, code = block.zero_row, shown.zero
    sources = "" if row.is_float else " / scale"
    return [("range", f"from {short(Fraction(low))} to {short(Fraction(high))}, zero included"),
            ("quotient", f"range / {limit(largest)} = {short((high - low) / largest)}, {rounded}"),
            ("zero point", f"{block.zero} {hex_code(row, code)} ({short(meaning(row, code))}): "
                           f"-least value{sources}, rounded (BLOCK-14)")]


# ------------------------------------------------------------------------------------------------------------
# GGUF

def _gguf_values(row: Gguf, values) -> str:
    count, filled = len(values), np.zeros(row.values, np.float32)
    if count > row.values:
        raise InputError(f"a block of {row.name} holds {row.values} values, but {count} are given")
    with np.errstate(all="ignore"):
        filled[:count] = values
    if not np.array_equal(filled[:count], values, equal_nan=True):
        raise InputError(f"{row.name} is encoded from float32: take a source format that float32 holds")
    block = gguf_encode(filled, row)
    levels = [row.codes.levels[code] for code in row.codes.read(block[None])[0][:count]]
    lines = [("GGUF block", row.name), ("encode", FITS[row.fit])]
    for label, scale in (("d", row.scale), ("m", row.offset)):
        if scale:
            lines.append((label, short(exactly(scale.values(block[None])[0, 0]))))
    lines.append(("bytes", block.tobytes().hex(" ")))
    given = [exactly(value) for value in values]
    decoded = [exactly(value) for value in gguf_decode(block, row)[:count]]
    return f"{pairs(lines)}\n\n" + _with_errors(
        {"value": [short(value) for value in given], "level": list(map(str, levels))}, given, decoded)
