"""How an array falls into tiles and subtiles (Spec: BLOCK-1, BLOCK-8, BLOCK-15)."""

from dataclasses import dataclass
from math import prod

import numpy as np

from refq.errors import InputError


def sides(size) -> tuple:
    """(cross, along) of a tile or subtile size: a number or "channel" is one line of values."""
    return size if isinstance(size, tuple) else (1, size)


def tile_axes(shape, tile, axis):
    """The axis tiles run along, from 0; for tiles of two dimensions the pair (cross, along).

    axis: an axis, or a pair of them for tiles of two dimensions; of one axis the other is the axis before it
    (of axis 0 the axis after it). Raises InputError for anything else.
    """
    flat = not isinstance(tile, tuple)
    if not shape and (tile is None or tile == "tensor"):
        return 0
    if len(shape) < (1 if flat else 2):
        raise InputError(f"tiles of {tile!r} values need {'an axis' if flat else 'two axes'} to lie on, "
                         f"but the array has the shape {tuple(shape)}")
    if flat:
        return one_axis(shape, axis)
    if isinstance(axis, (tuple, list)) and len(axis) == 2:
        pair = tuple(one_axis(shape, part) for part in axis)
        if pair[0] == pair[1]:
            raise InputError(f"axis {axis!r}: tiles of two dimensions need two different axes")
        return pair
    along = one_axis(shape, axis)
    return (along - 1 if along else 1), along


def one_axis(shape, axis) -> int:
    """An axis counted from 0. Raises InputError for what is no axis of an array of that shape."""
    whole = isinstance(axis, (int, np.integer)) and not isinstance(axis, bool)
    if not whole or not -len(shape) <= axis < len(shape):
        raise InputError(f"axis {axis!r} is not an axis of an array of shape {tuple(shape)}")
    return int(axis) % len(shape)


@dataclass(frozen=True)
class Tiles:
    """An array as planes of values, each plane cut into tiles, each tile into subtiles: all in rows.

    A plane is `rows` x `columns` values: the cross axis (one row where there is none) and the tile axis. Tiles
    are size[0] x size[1] values of it, subtiles unit[0] x unit[1] of a tile; what sticks out is padded with
    zeros. Cut arrays are (tiles, values of a tile), the values of a subtile side by side.
    """

    shape: tuple[int, ...]              # of the array
    axes: tuple[int, ...]               # (cross, along), (along,) or () for one tile of everything
    plane: tuple[int, int]
    size: tuple[int, int]
    unit: tuple[int, int]               # of the smallest subtile; the tile where there is none

    @staticmethod
    def of(shape, tile, axis, subtiles=()) -> "Tiles":
        """axis: as tile_axes gives it. subtiles: the size of every level of them, from large to small."""
        shape = tuple(shape)
        if tile == "tensor":
            whole = 1, max(prod(shape), 1)
            return Tiles(shape, (), (1, prod(shape)), whole, whole)
        axes = axis if isinstance(axis, tuple) else (axis,)
        plane = (1, *(shape[a] for a in axes))[-2:]
        largest = sides(subtiles[0]) if subtiles else (1, 1)
        size = tuple(_length(want, have, step) for want, have, step in zip(sides(tile), plane, largest))
        return Tiles(shape, axes, plane, size, sides(subtiles[-1]) if subtiles else size)

    @property
    def values(self) -> int:
        """Values of a tile, padding included."""
        return prod(self.size)

    def cut(self, array):
        """(tiles, values), C-contiguous: a view where the array already lies so."""
        split = self._split(array, self.plane, self.size, self.unit)
        return np.ascontiguousarray(split).reshape(-1, self.values)

    def join(self, tiles):
        """Back from (tiles, values) to the array's shape."""
        return self._merge(tiles, self.plane, self.size, self.unit)

    def cut_parts(self, parts, size):
        """One number a part of `size` values (a tile or a subtile) -> (tiles, parts of a tile)."""
        split = self._split(parts, *self._parts(size))
        return np.ascontiguousarray(split).reshape(-1, prod(self._parts(size)[1]))

    def join_parts(self, parts, size):
        """(tiles, parts of a tile) -> the array's shape, every tiled axis replaced by its number of parts."""
        return self._merge(parts, *self._parts(size))

    def valid(self):
        """(tiles, values): False where a tile is padded; None where none is."""
        if all(self._count(have, size) * size == have for have, size in zip(self.plane, self.size)):
            return None
        return self.cut(np.ones(self.shape, bool))

    def _parts(self, size):
        """Of the array of parts: its plane, and how many make a tile and a unit."""
        plane = tuple(self._count(have, part) for have, part in zip(self.plane, size))
        per_tile = tuple(tile // part for tile, part in zip(self.size, size))
        per_unit = tuple(max(1, unit // part) for unit, part in zip(self.unit, size))
        return plane, per_tile, per_unit

    def _count(self, have: int, size: int) -> int:
        return -(-have // size) if self.axes else 1         # an empty array has a tensor scale

    def _split(self, array, plane, size, unit):
        planes = self._planes(array, plane)
        count = [self._count(have, one) for have, one in zip(plane, size)]
        full = tuple(n * one for n, one in zip(count, size))
        if full != plane:
            padded = np.zeros((len(planes), *full), array.dtype)
            padded[:, : plane[0], : plane[1]] = planes
            planes = padded
        shape = (count[0], size[0] // unit[0], unit[0], count[1], size[1] // unit[1], unit[1])
        return planes.reshape(len(planes), *shape).transpose(0, 1, 4, 2, 5, 3, 6)

    def _merge(self, tiles, plane, size, unit):
        count = [self._count(have, one) for have, one in zip(plane, size)]
        shape = (*count, size[0] // unit[0], size[1] // unit[1], *unit)
        planes = tiles.reshape(self._others, *shape).transpose(0, 1, 3, 5, 2, 4, 6)
        planes = planes.reshape(self._others, *(n * one for n, one in zip(count, size)))
        planes = planes[:, : plane[0], : plane[1]]
        if not self.axes:
            return planes.reshape(self.shape if plane == self.plane else (1,) * len(self.shape))
        others = [n for a, n in enumerate(self.shape) if a not in self.axes]
        lines = planes.reshape(*others, *plane[-len(self.axes):])
        return np.ascontiguousarray(np.moveaxis(lines, range(-len(self.axes), 0), self.axes))

    def _planes(self, array, plane):
        if self.axes:
            array = np.moveaxis(array, self.axes, range(-len(self.axes), 0))
        return array.reshape(self._others, *plane)

    @property
    def _others(self) -> int:
        return prod(n for a, n in enumerate(self.shape) if a not in self.axes) if self.axes else 1


def _length(want, have: int, step: int) -> int:
    """Values of a tile on one axis: no more than there are, in whole subtiles."""
    whole = max(-(-have // step) * step, step)
    return whole if want == "channel" else min(want, whole)
