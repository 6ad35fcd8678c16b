"""How arrays fall into tiles: shapes and orders by hand, cuts that join again, and the oracle's tiles."""

import numpy as np
import pytest

from refq.blocks.tiles import Tiles, sides, tile_axes
from refq.errors import InputError
from spec.oracle.tiles import axes, tiles

SHAPES = [(1,), (7,), (16,), (3, 5), (4, 16), (6, 6), (2, 3, 4), (5, 1, 7), (0,), (0, 5), (5, 0), (2, 0, 3),
          (2, 3, 2, 5)]
SIZES = [1, 2, 4, 100, "channel", "tensor", (1, 4), (4, 1), (2, 3), (4, 4), (100, 2), ("channel", 2),
         (2, "channel"), ("channel", "channel")]


def pairs_of(shape, size):
    """Every axis argument that a shape allows: axes, negative ones, and pairs for tiles of two dimensions."""
    n = len(shape)
    yield from range(-n, n)
    if isinstance(size, tuple):
        yield from ((a, b) for a in range(-n, n) for b in range(n) if a % n != b)


@pytest.mark.parametrize("size", SIZES, ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_tiles_are_the_oracles(shape, size):
    """Tiles and their order, the shape of the scales, and padding (BLOCK-1, BLOCK-8)."""
    if isinstance(size, tuple) and len(shape) < 2:
        with pytest.raises(InputError, match="need two axes"):
            tile_axes(shape, size, -1)
        return
    numbers = np.arange(1, np.prod(shape, dtype=int) + 1).reshape(shape)
    for axis in pairs_of(shape, size):
        found = tile_axes(shape, size, axis)
        if size != "tensor":
            assert (found if isinstance(found, tuple) else (found,)) == axes(shape, axis, size)
        cut = Tiles.of(shape, size, found)
        rows, want = cut.cut(numbers), tiles(shape, axis, size)
        assert [sorted(row[row > 0] - 1) for row in rows] == [sorted(tile) for tile in ordered(cut, want)]
        assert np.array_equal(cut.join(rows), numbers)
        valid = cut.valid()
        assert np.array_equal(rows > 0, np.ones(rows.shape, bool) if valid is None else valid)
        counts = cut.join_parts(np.arange(len(rows)).reshape(-1, 1), cut.size)
        assert counts.shape == scale_shape(shape, size, found)
        assert np.array_equal(cut.cut_parts(counts, cut.size).ravel(), np.arange(len(rows)))


def ordered(cut, want):
    """The oracle's tiles, which come in the order of the scales, in the order of refq's rows."""
    place = cut.join_parts(np.arange(len(want)).reshape(-1, 1), cut.size).ravel()
    found = [None] * len(want)
    for number, tile in zip(place, want):
        found[number] = tile
    return found


def scale_shape(shape, size, axis):
    if size == "tensor":
        return (1,) * len(shape)
    found, where = list(shape), axis if isinstance(axis, tuple) else (axis,)
    for a, n in zip(where, sides(size)[-len(where):]):
        found[a] = -(-shape[a] // (max(shape[a], 1) if n == "channel" else n))
    return tuple(found)


@pytest.mark.parametrize("shape, tile, subtiles", [
    ((3, 40), 16, [4]), ((3, 41), 16, [8, 4]), ((3, 5), 64, [8, 4]), ((1, 9), 16, [2]), ((2, 1), 8, [1]),
    ((7, 9), (4, 8), [(2, 2)]), ((7, 9), (4, 8), [(4, 2)]), ((1, 3), (8, 8), [(2, 4)]), ((0, 9), 16, [4]),
    ((5, 0), (4, 4), [(2, 2)]), ((17, 3), (16, 16), [(1, 16)])])
def test_subtiles(shape, tile, subtiles):
    """Values of a subtile lie side by side, and every level comes back in its own shape (BLOCK-15)."""
    axis = tile_axes(shape, tile, -1)
    cut, numbers = Tiles.of(shape, tile, axis, subtiles), np.arange(1, np.prod(shape) + 1).reshape(shape)
    rows = cut.cut(numbers)
    assert np.array_equal(cut.join(rows), numbers) and rows.shape[1] == cut.values
    unit = cut.unit[0] * cut.unit[1]
    assert cut.unit == sides(subtiles[-1]) and cut.values % unit == 0
    for group in rows.reshape(-1, unit):
        spread = [(group[group > 0] - 1) // shape[1], (group[group > 0] - 1) % shape[1]]
        assert all(np.unique(part // n).size <= 1 for part, n in zip(spread, cut.unit))
    for size in map(sides, subtiles):
        counts = tuple(-(-have // n) for have, n in zip(shape, size))
        labels = np.arange(np.prod(counts)).reshape(counts)
        parts = cut.cut_parts(labels, size)
        assert parts.shape == (len(rows), cut.values // (size[0] * size[1]))
        assert np.array_equal(cut.join_parts(parts, size), labels)


def test_rows_by_hand():
    x = np.arange(24).reshape(4, 6)
    assert Tiles.of((4, 6), (2, 4), (0, 1)).cut(x).tolist() == [
        [0, 1, 2, 3, 6, 7, 8, 9], [4, 5, 0, 0, 10, 11, 0, 0],
        [12, 13, 14, 15, 18, 19, 20, 21], [16, 17, 0, 0, 22, 23, 0, 0]]
    assert Tiles.of((4, 6), (2, 4), (0, 1), [(1, 2)]).cut(x)[0].tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert Tiles.of((4, 6), (2, 4), (0, 1), [(2, 2)]).cut(x)[0].tolist() == [0, 1, 6, 7, 2, 3, 8, 9]
    assert Tiles.of((4, 6), (4, 2), (1, 0)).cut(x)[0].tolist() == [0, 6, 1, 7, 2, 8, 3, 9]
    assert Tiles.of((4, 6), 4, 0).cut(x)[0].tolist() == [0, 6, 12, 18]


@pytest.mark.parametrize("axis, found", [
    (-1, (1, 2)), (2, (1, 2)), (1, (0, 1)), (0, (1, 0)), ((0, 2), (0, 2)), ((-1, 0), (2, 0)),
    ([1, 2], (1, 2)),
    (np.int64(1), (0, 1))])
def test_axes_of_pairs(axis, found):
    assert tile_axes((3, 4, 5), (2, 2), axis) == found


@pytest.mark.parametrize("shape, tile, axis, words", [
    ((), 4, -1, "need an axis to lie on"), ((5,), (2, 2), 0, "need two axes to lie on"),
    ((3, 4), 4, (0, 1), "is not an axis"), ((3, 4), (2, 2), (0, 0), "two different axes"),
    ((3, 4), (2, 2), (0, -2), "two different axes"), ((3, 4), (2, 2), (0, 2), "axis 2 is not an axis"),
    ((3, 4), (2, 2), (0, 1, 2), "is not an axis"), ((3, 4), (2, 2), "rows", "is not an axis"),
    ((3, 4), 2, True, "is not an axis"), ((3, 4), 2, 1.0, "is not an axis"),
    ((3,), "tensor", 1, "is not an axis")])
def test_refused(shape, tile, axis, words):
    with pytest.raises(InputError, match=words):
        tile_axes(shape, tile, axis)
