"""How arrays fall into tiles and subtiles.

Written from spec/blocks.md, BLOCK-1, BLOCK-8 and BLOCK-15. Arrays are flat lists in row-major order with a
shape beside them; a tile is a number of values, "channel", "tensor", or a pair (cross, along) of numbers or
"channel".
"""

from itertools import product
from math import prod


def tiles(shape, axis, tile):
    """BLOCK-1, BLOCK-8: the flat indices of every tile, in the order of the scales."""
    if tile == "tensor":
        return [list(range(prod(shape)))]
    sizes = [1] * len(shape)
    for where, size in zip(axes(shape, axis, tile), tile if is_pair(tile) else (tile,)):
        sizes[where] = max(shape[where], 1) if size == "channel" else size
    cuts = [[range(start, min(start + size, length)) for start in range(0, length, size)]
            for length, size in zip(shape, sizes)]
    return [_indices(shape, box) for box in product(*cuts)]


def is_pair(size):
    return isinstance(size, (tuple, list))


def axes(shape, axis, tile):
    """BLOCK-1: the axes a tile lies on, counted from 0: (cross, along) for a pair, else (along,)."""
    if is_pair(axis):
        return tuple(a % len(shape) for a in axis)
    along = axis % len(shape)
    return (along - 1 if along else 1, along) if is_pair(tile) else (along,)


def _indices(shape, box):
    """Flat indices of a box given by one range of indices per axis."""
    found = [0]
    for length, places in zip(shape, box):
        found = [start * length + place for start in found for place in places]
    return found
