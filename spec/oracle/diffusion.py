"""Error diffusion of one layer's weights, in exact rationals.

Written from spec/diffusion.md (ED-1 to ED-5) over blocks.py. Weights and inputs are lists of rows of numbers
that Fraction takes; the residual is kept whole, and nothing is rounded but the codes. A data type arrives as
in blocks.py; of a collection of codebooks `tables` are the formats, and the format of its name is any one
whose largest value lies in the binade of the collection's emax.
"""

from bisect import bisect_left
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from spec.oracle import blocks, codebooks
from spec.oracle.common import SAT
from spec.oracle.scalar import NUMBER, decode, encode, exact, facts
from spec.oracle.tiles import is_pair, tiles

CLOSE = Fraction(1, 2 ** 30)
SIXTEENTHS = (18, 15, 14, 13, 12, 11)
NEAREST = ("rne", "rna", "rnz")


class Diffused(NamedTuple):
    """Codes (rows of them), one entry a block of scale codes, offsets, zero-point codes and tables (each as
    blocks.py gives them for the block, None where absent), the tensor's scale code, the mask, the final
    residual's square, and the margin: how near any quotient came to where it would round elsewhere, and any
    search to another end."""

    codes: list
    scales: list
    offsets: list
    zeros: list
    tables: list
    outer: int
    mask: list
    error: Fraction
    margin: Fraction


class Choice(NamedTuple):
    """The scales of one block: codes by tile, offsets by level, zero-point codes by tile, tables by unit;
    then for every element of the block, row by row, its step, zero-point code and element format."""

    scales: list
    offsets: tuple
    zeros: list
    tables: list
    step: list
    point: list
    element: list


class Layer(NamedTuple):
    """What does not change from block to block."""

    w: list
    x: list
    x_hat: list
    block: dict
    formats: dict
    tables: list
    mask: list
    outer: int
    rounding: str


# --- small linear algebra -------------------------------------------------------------------------

def dot(a, b):
    return sum((m * n for m, n in zip(a, b)), Fraction(0))


def column(rows, k):
    return [row[k] for row in rows]


def add(residual, line, column_of_w, sign=1):
    """U += sign line column^T, in place."""
    for own, factor in zip(residual, line):
        if factor:
            for place, value in enumerate(column_of_w):
                own[place] += sign * factor * value


def square(rows):
    return sum((value * value for row in rows for value in row), Fraction(0))


# --- the definition (ED-1) ------------------------------------------------------------------------

def diffuse(w, x, x_hat, block, formats, scale="weights", tables=None, rounding=None):
    """One layer. w: (outputs x inputs), x and x_hat: (M x inputs). scale: a word of ED-3. rounding: of the
    elements, by default the recipe's."""
    w, x, x_hat = ([[Fraction(value) for value in row] for row in rows] for rows in (w, x, x_hat))
    rounding = rounding or blocks.choices(block["recipe"], block).rounding
    layer = prepared(w, x, x_hat, block, formats, tables, rounding)
    residual = [[Fraction(0)] * len(w) for _ in x]
    found, codes, margin = [], [[] for _ in w], []
    for start, stop in edges(block, len(w[0])):
        values = [row[start:stop] for row in kept(layer)]
        if scale == "target" and not whole(block):
            values = target(layer, residual, start, stop)
        choices = [of_values(layer, values)]
        if scale == "search" and not whole(block):
            choices += neighbours(layer, values, choices[0])
        tried = [code_block(layer, residual, start, stop, choice) for choice in choices]
        choice, best, owner = choices[0], [0], None
        if len(choices) > 1:
            best, owner, near = search(layer, residual, start, stop, tried)
            choice = merged(layer, choices, best, stop - start)
            margin.append(near)
        pick = [best[owner[row]] if owner else 0 for row in range(len(w))]
        for row, own in enumerate(pick):
            codes[row] += tried[own].codes[row]
            for line, after in zip(residual, tried[own].residual):
                line[row] = after[row]
        margin += [tried[own].margins[row] for row, own in enumerate(pick)]
        found.append(choice)
    return Diffused(codes, [c.scales for c in found], [c.offsets for c in found], [c.zeros for c in found],
                    [c.tables for c in found], layer.outer, layer.mask, square(residual), min(margin))


def prepared(w, x, x_hat, block, formats, tables, rounding):
    """The mask of SPARSE-1, and the tensor's scale of BLOCK-10 from all of W."""
    mask, outer = [[True] * len(row) for row in w], None
    if block["sparsity"]:
        mask = [codebooks.keep([exact(value) for value in row], *block["sparsity"]) for row in w]
    layer = Layer(w, x, x_hat, block, formats, tables, mask, None, rounding)
    if block["outer"]:
        flat = [exact(value) for row in kept(layer) for value in row]
        outer = blocks.quantise(flat, (len(w), len(w[0])), 1, block, formats).outer
    return layer._replace(outer=outer)


def kept(layer):
    return [[value if stays else Fraction(0) for value, stays in zip(row, mask)]
            for row, mask in zip(layer.w, layer.mask)]


def along(block):
    """Columns of a tile; None where it is all of them."""
    tile = block["tile"][1] if is_pair(block["tile"]) else block["tile"]
    return tile if isinstance(tile, int) else None


def whole(block):
    return block["scale"] is None or along(block) is None


def edges(block, columns):
    """ED-2: where blocks begin and end."""
    width = columns if whole(block) else along(block)
    return [(start, min(start + width, columns)) for start in range(0, columns, width)]


class Tried(NamedTuple):
    """A block coded with one choice of scales: codes and values by row, U after it, least margins by row."""

    codes: list
    values: list
    residual: list
    margins: list


def code_block(layer, residual, start, stop, choice):
    """ED-1: the columns of a block in order."""
    residual = [list(row) for row in residual]
    rows, width = len(layer.w), stop - start
    codes, values, margins = [[] for _ in range(rows)], [[] for _ in range(rows)], [FAR] * rows
    for k in range(start, stop):
        own, weights = column(layer.x_hat, k), column(layer.w, k)
        add(residual, column(layer.x, k), weights)
        norm = dot(own, own)
        for row in range(rows):
            v = dot(own, column(residual, row)) / norm if norm else weights[row]
            i = row * width + k - start
            code, value, margin = cast(layer, choice, i, v if layer.mask[row][k] else Fraction(0))
            codes[row].append(code)
            values[row].append(value)
            if norm and layer.mask[row][k]:
                margins[row] = min(margins[row], margin)
        add(residual, own, [line[-1] for line in values], -1)
    return Tried(codes, values, residual, margins)


def target(layer, residual, start, stop):
    """ED-3: what each column would be if those of the block before it lost nothing."""
    residual, found = [list(row) for row in residual], [[] for _ in layer.w]
    for k in range(start, stop):
        own, weights = column(layer.x_hat, k), column(layer.w, k)
        add(residual, column(layer.x, k), weights)
        norm = dot(own, own)
        for row, line in enumerate(found):
            v = dot(own, column(residual, row)) / norm if norm else weights[row]
            line.append(v if layer.mask[row][k] else Fraction(0))
        add(residual, own, weights, -1)
    return found


# --- one element (ED-4) ---------------------------------------------------------------------------

FAR = Fraction(10 ** 9)


def cast(layer, choice, i, v):
    """(code, value, margin) of element i of a block."""
    element, step, point, way = choice.element[i], choice.step[i], choice.point[i], layer.rounding
    if not step:
        return blocks.code_of(exact(0), element), Fraction(0), FAR
    if point is None:
        code = blocks.element_code(exact(v), step, element, way)
        margin = distance(v / step, boundaries(element, way), way)
        return code, blocks.signed(blocks.value_of(code, element)) * step, margin
    zero = layer.formats[layer.block["zero"]]
    code = blocks.asymmetric_code(exact(v), blocks.Tile(0, step, zero=point), element, zero, way)
    moved, top = blocks.signed(decode(point, zero)), facts(element).high
    if facts(zero).integer:
        lines = tuple(line - moved for line in edges_of(range(top + 1), way))
        return code, (code - moved) * step, distance(v / step, lines, way)
    lines = edges_of(range(top + 1), way)
    return code, code * step - moved, distance((v + moved) / step, lines, way)


def edges_of(values, rounding):
    """Where rounding goes elsewhere among ascending values: halfway between neighbours, or at the values."""
    if rounding not in NEAREST:
        return tuple(map(Fraction, values))
    return tuple(Fraction(low + high) / 2 for low, high in zip(values, values[1:]))


def boundaries(element, rounding):
    """The edges among the finite values of a format, ascending."""
    key = element if not isinstance(element, dict) else tuple(
        (name, tuple(part) if isinstance(part, (list, tuple)) else part) for name, part in element.items())
    return _boundaries(key, rounding)


@lru_cache(maxsize=None)
def _boundaries(key, rounding):
    element = dict(key) if isinstance(key[0], tuple) else key
    if isinstance(element, dict):
        count = len(element["values"]) if "values" in element else 1 << element["bits"]
    else:
        count = 1 << element.body + element.signed
    found = (blocks.value_of(code, element) for code in range(count))
    return edges_of(sorted({blocks.signed(v) for v in found if v.kind == NUMBER}), rounding)


def distance(y, lines, rounding):
    """How far, relative to the larger of the two, y lies from the nearest of some ascending boundaries.

    What is an element already stays one under a directed rounding, where float64 holds it (ED-10).
    """
    place = bisect_left(lines, y)
    hit = Fraction(0) if rounding in NEAREST or y.denominator & (y.denominator - 1) else FAR
    return min((abs(y - line) / max(abs(y), abs(line)) if y != line else hit
                for line in lines[max(place - 1, 0): place + 1]), default=FAR)


# --- scales (ED-3) --------------------------------------------------------------------------------

def of_values(layer, values):
    """The choice that the data type's rule makes for a block of values."""
    rows, width = len(values), len(values[0])
    flat, block = [exact(value) for row in values for value in row], layer.block
    if block["scale"] is None:
        return Choice(None, (), None, None, [Fraction(1)] * len(flat), [None] * len(flat),
                      [layer.formats[block["element"]]] * len(flat))
    q = blocks.quantise(flat, (rows, width), 1, block, layer.formats, outer=layer.outer)
    return spread(layer, values, q.scales, q.offsets, q.zeros)


def spread(layer, values, scales, offsets, zeros):
    """Scale codes and all else by tile -> a Choice; tables by CB-4 for the values."""
    rows, width = len(values), len(values[0])
    shape, block = (rows, width), layer.block
    outer = decode(layer.outer, layer.formats[block["outer"]]).magnitude if block["outer"] else 1
    step, point = [None] * (rows * width), [None] * (rows * width)
    for number, part in enumerate(tiles(shape, 1, block["tile"])):
        for i in part:
            step[i] = decode(scales[number], layer.formats[block["scale"]]).magnitude * outer
            point[i] = zeros[number] if zeros is not None else None
    levels = [size for size, bits in block["subtiles"] if bits]
    for size, level in zip(levels, offsets):
        for part, offset in zip(tiles(shape, 1, size), level):
            for i in part:
                step[i] *= Fraction(2) ** (offset if block["rule"] == "hif4" else -offset)
    element, chosen = [layer.formats[block["element"]]] * len(step), None
    if layer.tables:
        flat, chosen = [value for row in values for value in row], []
        for part in tiles(shape, 1, block["subtiles"][-1][0] if block["subtiles"] else block["tile"]):
            chosen.append(table_of(layer, [flat[i] for i in part], step[part[0]]))
            for i in part:
                element[i] = layer.tables[chosen[-1]]
    return Choice(list(scales), tuple(offsets), zeros, chosen, step, point, element)


def table_of(layer, values, step):
    """CB-4: the table of least squared error."""
    if not step:
        return 0
    way = layer.rounding
    rounded = [[blocks.signed(blocks.value_of(blocks.element_code(exact(v), step, table, way), table))
                for v in values] for table in layer.tables]
    return codebooks.select(values, rounded, step)


# --- the search (ED-5) ----------------------------------------------------------------------------

def neighbours(layer, values, choice):
    """The other candidates: codes beside a choice's own, with its offsets and zero points of their own."""
    fmt = layer.formats[layer.block["scale"]]
    if layer.block["rule"] in blocks.EXPONENT_RULES:
        moves = [lambda code, move=move: min(max(code + move, 0), facts(fmt).top) for move in (1, -1)]
    else:
        moves = [lambda code, count=count: moved_float(code, fmt, count) for count in SIXTEENTHS]
    found = []
    for move in moves:
        scales = [move(code) for code in choice.scales]
        zeros = None if choice.zeros is None else zero_points(layer, values, scales)
        found.append(spread(layer, values, scales, choice.offsets, zeros))
    return found


def moved_float(code, fmt, count):
    value = decode(code, fmt).magnitude * Fraction(count, 16)
    return (encode(exact(value), fmt, "rne", SAT) or code) if code else code


def zero_points(layer, values, scales):
    """BLOCK-14: the zero points of given scales."""
    fmt, zero = layer.formats[layer.block["scale"]], layer.formats[layer.block["zero"]]
    flat, found = [value for row in values for value in row], []
    for number, part in enumerate(tiles((len(values), len(values[0])), 1, layer.block["tile"])):
        reach, step = -min([Fraction(0), *(flat[i] for i in part)]), decode(scales[number], fmt).magnitude
        point = reach / (step or 1) if facts(zero).integer else reach
        found.append(encode(exact(point), zero, "rne", SAT))
    return found


def search(layer, residual, start, stop, tried):
    """(best candidate of every tile, the tile of every row, margin): least ||T - X^_b Q^T||^2."""
    rows = len(layer.w)
    base = [list(row) for row in residual]
    for k in range(start, stop):
        add(base, column(layer.x, k), column(layer.w, k))
        add(base, column(layer.x_hat, k), column(layer.w, k), -1)
    parts = tiles((rows, stop - start), 1, layer.block["tile"])
    owner = {i // (stop - start): number for number, part in enumerate(parts) for i in part}
    losses, sizes = [], []
    for one in tried:
        own, cross = [Fraction(0)] * len(parts), [Fraction(0)] * len(parts)
        for row in range(rows):
            lost = [layer.w[row][k] - one.values[row][k - start] for k in range(start, stop)]
            moved = [dot(line[start:stop], lost) for line in layer.x_hat]
            own[owner[row]] += dot(moved, moved)
            cross[owner[row]] += 2 * dot(moved, column(base, row))
        losses.append([a + b for a, b in zip(own, cross)])
        sizes.append([a + abs(b) for a, b in zip(own, cross)])
    best, margin = [], FAR
    for tile in range(len(parts)):
        least = 0
        for candidate in range(1, len(tried)):
            gain = losses[least][tile] - losses[candidate][tile]
            size = max(sizes[least][tile], sizes[candidate][tile])
            if gain:
                margin = min(margin, abs(gain / size))
            if gain > CLOSE * size:
                least = candidate
        best.append(least)
    return best, owner, margin


def merged(layer, choices, best, width):
    """The choice in which every tile has its own best candidate. Offsets are the same in all."""
    first, unit_tiles = choices[0], None
    if first.tables is not None:
        rows = len(layer.w)
        parts = tiles((rows, width), 1, layer.block["tile"])
        owner = {i: number for number, part in enumerate(parts) for i in part}
        size = layer.block["subtiles"][-1][0] if layer.block["subtiles"] else layer.block["tile"]
        unit_tiles = [owner[part[0]] for part in tiles((rows, width), 1, size)]
    return first._replace(
        scales=[choices[own].scales[tile] for tile, own in enumerate(best)],
        zeros=None if first.zeros is None else [choices[own].zeros[tile] for tile, own in enumerate(best)],
        tables=None if unit_tiles is None else [choices[best[tile]].tables[unit]
                                                for unit, tile in enumerate(unit_tiles)])
