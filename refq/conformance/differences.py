"""Where two recipes differ: which rules, the smallest tiles that show it, how much data changes, what it costs.

Tiles are tried one by one as (tiles, 1, values): a tile alone, of one or two values. A data type with a tensor
scale sees each tile beside one whose largest magnitude is TOP, so that both recipes have a tensor to look at.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from fractions import Fraction

import numpy as np

from refq.blocks.quantize import quantize
from refq.blocks.recipes import Recipe, describe, recipe_of
from refq.blocks.rows import Block, data_type
from refq.blocks.rules import RULES
from refq.errors import InputError
from refq.formats.values import exact, floor_log2

TOP = np.float32(1000)              # of a tensor that has a tensor scale
EXPONENTS = (-149, -148, -140, -129, -128, -127, -126, -125, -124, -60, -12, -3, -1, 0, 1, 2, 8, 60, 120, 126, 127)
RANDOM = 1 << 15                    # tiles drawn where only the order of operations differs


@dataclass(frozen=True)
class Witness:
    """The smallest tile found that shows one kind of difference.

    kind: in words. values: float32, the tile. a, b: what each recipe makes of it: dicts of "scale" and "codes"
    (hex digits), "values" and, with a tensor scale, "tensor_scale"; or "refused".
    """

    kind: str
    values: tuple[float, ...]
    a: dict
    b: dict


@dataclass
class Counts:
    """What differs on data: numbers of tiles and values, and the squared errors of either recipe."""

    tiles: int = 0
    values: int = 0
    scales: int = 0
    codes: int = 0
    decoded: int = 0
    signal: float = 0.0
    error_a: float = 0.0
    error_b: float = 0.0

    @property
    def sqnr(self) -> tuple[float, float]:
        """Signal to quantisation noise of either recipe, in dB; inf without an error."""
        errors = self.error_a, self.error_b
        return tuple(10 * np.log10(self.signal / error) if error else np.inf for error in errors)


@dataclass(frozen=True)
class Difference:
    """Everything `refq diff` says. rules: (field, words of a, words of b) of every choice that differs."""

    a: Recipe
    b: Recipe
    dtype: Block
    rules: tuple[tuple[str, str, str], ...]
    witnesses: tuple[Witness, ...]
    counts: Counts
    data: str

    @property
    def differ(self) -> bool:
        """Whether any scale, code or decoded value differs anywhere that was looked."""
        return bool(self.witnesses or self.counts.scales or self.counts.codes or self.counts.decoded)


def diff(a, b, dtype, arrays=None, data="") -> Difference:
    """Compare two recipes on one data type.

    a, b: recipes, by name or row. dtype: a data type with a scale. arrays: an iterable of (array, axis) to count
    on, described by `data`; None: the boundary set of the data type itself.
    Raises InputError for recipes that do not take the data type. Spec: REC-1, CHECK-7.
    """
    block = data_type(dtype)
    if block.scale is None:
        raise InputError(f"{block.name} has no scale, so recipes do not differ on it")
    pair = recipe_of(block, a), recipe_of(block, b)
    tiles = np.unique(np.concatenate(list(boundary_tiles(block))).view(np.uint32), axis=0).view(np.float32)
    if block.outer:
        tiles = tiles[~((np.abs(tiles) > TOP) & np.isfinite(tiles)).any(axis=1)]
    counts, witnesses = Counts(), _witnesses(tiles, block, pair)
    if arrays is None:
        near = tiles[((np.abs(tiles) < 2 ** 16) & ((tiles == 0) | (np.abs(tiles) > 2 ** -16))).all(axis=1)]
        arrays = [(_alone(near, block), -1)]
        data = f"the boundary set between 2^-16 and 2^16, {len(near)} tiles of two values"
    for array, axis in arrays:
        _count(np.asarray(array), axis, block, pair, counts)
    return Difference(*pair, block, tuple(rule_differences(*pair, block)), tuple(witnesses), counts, data)


def rule_differences(a: Recipe, b: Recipe, block: Block) -> Iterator[tuple[str, str, str]]:
    """(field, words of a, words of b) of every choice that differs on a data type."""
    for one in fields(Recipe):
        if one.name not in ("name", "words", "clause", "ref", "kind", "takes"):
            words = describe(a, one.name, block), describe(b, one.name, block)
            if words[0] != words[1]:
                yield one.name, *words


# ------------------------------------------------------------------------------------------------------------
# counting

def _count(x, axis, block: Block, pair, counts: Counts):
    made = [quantize(x, block, axis, recipe=recipe) for recipe in pair]
    counts.tiles += made[0].scales.size
    counts.values += x.size
    counts.scales += int((made[0].scales != made[1].scales).sum())
    counts.codes += int((made[0].codes != made[1].codes).sum())
    values = [q.dequantize(np.float64) for q in made]
    counts.decoded += int(((values[0] != values[1]) & ~(np.isnan(values[0]) & np.isnan(values[1]))).sum())
    sound = np.isfinite(x.astype(np.float64)) & np.isfinite(values[0]) & np.isfinite(values[1])
    wide = np.where(sound, x.astype(np.float64), 0)
    counts.signal += float((wide ** 2).sum())
    counts.error_a += float(((np.where(sound, values[0], 0) - wide) ** 2).sum())
    counts.error_b += float(((np.where(sound, values[1], 0) - wide) ** 2).sum())


# ------------------------------------------------------------------------------------------------------------
# witnesses

class _Seen:
    """What one recipe makes of many tiles, each by itself: one row a tile.

    refused: the rows that the recipe refuses, and its words.
    """

    def __init__(self, tiles, block: Block, recipe: Recipe):
        count = len(tiles)
        self.scales, self.codes = np.zeros(count, np.int64), np.zeros(tiles.shape, np.int64)
        self.values, self.tensor = np.full(tiles.shape, np.nan), np.full(count, np.nan)
        self.refused: dict[int, str] = {}
        apart = np.full(count, block.tile == "tensor")
        if block.outer:                             # odd tiles could spoil the tensor scale of the others
            apart |= ~np.isfinite(tiles).all(axis=1)
        for rows in (np.flatnonzero(~apart), *np.flatnonzero(apart)[:, None]):
            self._look(tiles, rows, block, recipe)

    def _look(self, tiles, rows, block: Block, recipe: Recipe):
        """Fill in some rows; where one is refused, the halves one after the other."""
        try:
            q = quantize(_alone(tiles[rows], block), block, -1, recipe=recipe)
        except InputError as error:
            if len(rows) == 1:
                self.refused[int(rows[0])] = str(error)
            else:
                for part in np.array_split(rows, 2):
                    self._look(tiles, part, block, recipe)
            return
        first, count = (1 if block.outer else 0), len(rows) + (1 if block.outer else 0)
        self.scales[rows] = q.scales.reshape(count, -1)[first:, 0]
        self.codes[rows] = q.codes.reshape(count, -1)[first:]
        self.values[rows] = q.dequantize(np.float64).reshape(count, -1)[first:]
        if q.tensor_scale is not None:
            self.tensor[rows] = q.tensor_scale


def _witnesses(tiles, block: Block, pair) -> list[Witness]:
    """One witness for every kind of difference, smallest first: of one value where that suffices, else of two."""
    found: dict[str, tuple[float, Witness]] = {}
    for part in (tiles[:, :1], tiles):
        part = np.unique(np.ascontiguousarray(part).view(np.uint32), axis=0).view(np.float32)
        seen = [_Seen(part, block, recipe) for recipe in pair]
        for kind, row, weight in _kinds(part, seen, block):
            if kind not in found:
                shown = (_shown(one, row, block) for one in seen)
                found[kind] = weight, Witness(kind, tuple(map(float, part[row])), *shown)
    return [witness for _, witness in sorted(found.values(), key=lambda item: (len(item[1].values), item[0]))]


def _alone(tiles, block: Block):
    """(tiles, 1, values): tiles that share nothing but the tensor scale, which sees TOP in a tile of its own."""
    if block.outer:
        top = np.zeros((1, tiles.shape[1]), np.float32)
        top[0, 0] = TOP
        tiles = np.concatenate([top, tiles])
    return np.ascontiguousarray(tiles[:, None, :])


def _kinds(tiles, seen, block: Block) -> list[tuple[str, int, float]]:
    """(kind, row, weight) of the smallest tile of every kind of difference."""
    a, b = seen
    tensors = ~((a.tensor == b.tensor) | np.isnan(a.tensor) & np.isnan(b.tensor))
    scales, refused = a.scales != b.scales, _flags(a.refused, len(tiles)) != _flags(b.refused, len(tiles))
    place = (a.codes != b.codes).argmax(axis=1)
    rows = np.arange(len(tiles))
    at, value_a, value_b = (array[rows, place] for array in (tiles, a.values, b.values))
    number = np.select([np.isnan(at), np.isinf(at), at == 0, (value_a == 0) & (value_b == 0)],
                       ["the code of a NaN", "the code of an infinity", "the code of a zero",
                        "the sign of a value that becomes zero"], "the code of a number")
    what = np.select([refused, scales, (a.codes != b.codes).any(axis=1)], ["refusal", "the scale", number], "")
    kinds = np.char.add(np.char.add(what, " of "), _tile_words(tiles, block))
    groups = [(str(kind), (kinds == kind) & (what != "")) for kind in np.unique(kinds[what != ""])]
    if tensors.any():
        groups.append(("the tensor scale", tensors))        # beside whatever else the tile shows
    weights, found = _weights(tiles), []
    for kind, same in groups:
        row = np.flatnonzero(same)[weights[same].argmin()]
        found.append((kind, int(row), float(weights[row])))
    return found


def _flags(refused: dict, count: int):
    flags = np.zeros(count, bool)
    flags[list(refused)] = True
    return flags


def _tile_words(tiles, block: Block):
    amax = np.abs(tiles.astype(np.float64)).max(axis=1)
    row, largest = block.scale_row, float(block.elements.max)
    if RULES[block.rule].kind == "exponent":
        largest = 2.0 ** block.elements.emax
    ratio = amax / (largest * (float(TOP) / (largest * float(row.max)) if block.outer else 1))
    normal = float(row.min_normal or 0) if row.min_subnormal else 0
    return np.select(
        [np.isnan(tiles).any(axis=1), np.isinf(amax), amax == 0, ratio < float(row.min_positive), ratio < normal,
         ratio > float(row.max)],
        ["a tile with a NaN", "a tile with an infinity", "a tile of zeros", "a tile below the smallest scale",
         "a tile whose scale is subnormal", "a tile above the largest scale"], "an ordinary tile")


def _weights(tiles):
    """How hard tiles are to read: significant bits and a part of the exponents; zeros and specials are easy."""
    fraction, exponent = np.frexp(np.where(np.isfinite(tiles), tiles, 0))
    whole = np.ldexp(np.abs(fraction), 24).astype(np.int64)
    bits = 24 - np.log2(np.maximum(whole & -whole, 1))
    plain = np.where(whole == 0, 0, 1 + bits + np.abs(exponent - 1) / 4)
    return (plain + np.signbit(tiles) / 2).sum(axis=1)


def _shown(seen: _Seen, row: int, block: Block) -> dict:
    if row in seen.refused:
        return {"refused": seen.refused[row]}
    digits = [-(-row_.width // 4) for row_ in (block.scale_row, block.element_row)]
    shown = {"scale": f"{int(seen.scales[row]):0{digits[0]}x}",
             "codes": [f"{int(code):0{digits[1]}x}" for code in seen.codes[row]],
             "values": [float(value) for value in seen.values[row]]}
    if block.outer:
        shown["tensor_scale"] = float(seen.tensor[row])
    return shown


# ------------------------------------------------------------------------------------------------------------
# the tiles that are tried

def boundary_tiles(block: Block) -> Iterator[np.ndarray]:
    """Arrays (tiles, 2) of float32: largest magnitudes on every rule's threshold, values on every boundary."""
    special = np.float32([0, -0.0, np.nan, np.inf, -np.inf, 1, -1, 3])
    yield np.stack(np.meshgrid(special, special), axis=-1).reshape(-1, 2)
    tops = np.concatenate(list(_tops(block)))
    yield np.stack([tops, np.zeros_like(tops)], axis=1)
    yield np.stack([-tops, np.zeros_like(tops)], axis=1)
    top = np.float32(float(block.elements.max))
    if block.outer:
        top = np.float32(TOP / 4)
    beside = np.concatenate([_around(value) for value in _boundaries(block)])
    for scale in (top, top / 3, np.float32(2) ** np.float32(floor_log2(block.elements.max))):
        near = (beside.astype(np.float64) * (float(scale) / float(block.elements.max))).astype(np.float32)
        near = near[np.abs(near) <= scale]
        yield np.stack([np.full_like(near, scale), near], axis=1)
        yield np.stack([np.full_like(near, scale), -near], axis=1)
    rng = np.random.default_rng(0)
    low = np.ldexp(rng.integers(1, 256, RANDOM).astype(np.float32), rng.integers(-10, -2, RANDOM))
    high = np.ldexp(rng.integers(1, 256, RANDOM).astype(np.float32), rng.integers(-6, 0, RANDOM))
    yield np.stack([np.maximum(low, high), np.minimum(low, high)], axis=1).astype(np.float32)


def _tops(block: Block) -> Iterator[np.ndarray]:
    """Largest magnitudes: powers of two and thresholds of every exponent rule, with their float32 neighbours."""
    marks = {Fraction(1)} | {Fraction(n, 16) for n in range(16, 32)}
    for rule in RULES.values():
        past = rule.past(block.elements) if rule.past else None
        marks |= {past[0]} if past else set()
    for exponent in EXPONENTS:
        for mark in sorted(marks):
            value = mark * Fraction(2) ** exponent
            if value < Fraction(float(np.finfo(np.float32).max)):
                yield _around(np.float32(float(value)))


def _boundaries(block: Block) -> list[float]:
    """Values and midpoints of the elements, from zero up."""
    row = block.element_row
    codes = np.arange(1 << row.width) if row.width <= 8 else np.arange(1 << 8)
    values = sorted({value for code in codes if isinstance(value := exact(row, int(code)), Fraction) and value >= 0})
    points = {float(value) for value in values} | {float((low + high) / 2) for low, high in zip(values, values[1:])}
    return sorted(points | {float(row.max * 17 / 16)})


def _around(value, steps=4) -> np.ndarray:
    """float32 numbers from `steps` below to `steps` above one that is not negative."""
    word = int(np.float32(value).view(np.uint32))
    words = np.arange(max(word - steps, 0), min(word + steps, 0x7f7fffff) + 1, dtype=np.uint32)
    return words.view(np.float32)
