"""What a weight lost by being quantised, counted value by value."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from refq.blocks.quantize import unit_factors
from refq.formats.codec import decode
from refq.formats.listed import key
from refq.models import page
from refq.models.metrics import ratio_db

SLAB = 1 << 20          # weights measured at a time


@dataclass(frozen=True)
class Measure:
    """Numbers about one quantised weight. sqnr_db is inf if nothing was lost; shares are of all weights."""

    sqnr_db: float
    saturated: float
    flushed: float
    histogram: page.Histogram


def measure(x: np.ndarray, q, effective: np.ndarray) -> Measure:
    """Compare a weight matrix with what became of it.

    x: the matrix in its file's dtype. q: its Quantized. effective: the float values the written file gives
    back. Sums are taken in float64, slab by slab, so that the result does not depend on the machine's
    threads.
    """
    signal = noise = 0.0
    saturated = flushed = 0
    bounds = _Bounds.of(q)
    for part in bounds.slabs(x.shape):
        before, after = x[part].astype(np.float64), effective[part].astype(np.float64)
        signal += float(np.sum(before * before))
        noise += float(np.sum((before - after) ** 2))
        flushed += int(np.count_nonzero((before != 0) & (after == 0)))
        kept = before if q.mask is None else np.where(q.mask[part], before, 0)
        saturated += bounds.count_beyond(kept, part)
    return Measure(ratio_db(signal, noise), saturated / x.size, flushed / x.size,
                   page.histogram(x, effective))


@dataclass(frozen=True)
class _Bounds:
    """Where the values of every tile (or subtile) saturate to nearest: above `high` and below `low` (OVER-1).

    low, high: float64, one for each tile; exact for elements, scales and tensor scales of at most 10 + 4 + 24
    significant bits. size: values of a tile on each axis. An axis of one tile is broadcast.
    """

    low: np.ndarray
    high: np.ndarray
    size: tuple[int, ...]

    @classmethod
    def of(cls, q) -> "_Bounds":
        reach = np.array([_reach(row) for row in q.dtype.tables])[0 if q.tables is None else q.tables]
        low, high, low_ties, high_ties = np.moveaxis(reach, -1, 0)
        factors, divisor, size = _factors(q)
        zeros = 0.0 if q.zeros is None else decode(q.zeros, q.dtype.zero_row, np.float64)
        if q.zeros is not None and not q.dtype.zero_row.is_float:       # (q - z) s
            low_ties, high_ties = zeros % 2, (q.dtype.element_row.layout.max_index - zeros) % 2
            low, high, zeros = low - zeros, high - zeros, 0.0
        low, high = low * factors - zeros, high * factors - zeros       # q s - z
        low, high = low / divisor, high / divisor
        low = np.where(low_ties, np.nextafter(low, np.inf), low)        # x <= low is x < the next number
        high = np.where(high_ties, np.nextafter(high, -np.inf), high)
        return cls(low, high, size)

    def slabs(self, shape) -> Iterator[tuple[slice, ...]]:
        """Pieces of about SLAB values of a matrix: whole tiles along the first axis that has enough."""
        tiles = [count if count > 1 else have for count, have in zip(self.high.shape, shape)]
        pieces = -(-int(np.prod(shape)) // SLAB)
        across = max(range(len(shape)), key=lambda axis: min(tiles[axis], pieces))
        size = self.size[across] if self.high.shape[across] > 1 else 1
        step = size * max(1, tiles[across] // max(pieces, 1))
        for start in range(0, shape[across], step):
            yield tuple(slice(start, min(start + step, have)) if axis == across else slice(0, have)
                        for axis, have in enumerate(shape))

    def count_beyond(self, values: np.ndarray, part: tuple[slice, ...]) -> int:
        """How many values, float64, of a piece from `slabs` saturate."""
        beyond = (values > self._beside(self.high, part)) | (values < self._beside(self.low, part))
        return int(np.count_nonzero(beyond & (values != 0)))

    def _beside(self, bounds: np.ndarray, part: tuple[slice, ...]) -> np.ndarray:
        for axis, (cut, size) in enumerate(zip(part, self.size)):
            if bounds.shape[axis] > 1:
                ahead = (slice(None),) * axis
                own = bounds[(*ahead, slice(cut.start // size, -(-cut.stop // size)))]
                bounds = np.repeat(own, size, axis)[(*ahead, slice(cut.stop - cut.start))]
        return bounds


def _reach(row) -> tuple[float, float, bool, bool]:
    """(low, high) of a number format, half a step beyond its extremes, and whether a value there saturates.

    It does where the extreme is odd, since a tie goes to the even neighbour. Listed formats go on by their
    last gap.
    """
    if row.is_listed:
        values = [_float(key(value)) for value, _ in row.ascending]
        return 1.5 * values[0] - values[1] / 2, 1.5 * values[-1] - values[-2] / 2, False, False
    half = row.overflow_threshold - row.max
    return (_float(row.lowest - half), _float(row.max + half),
            bool(row.layout.min_index % 2), bool(row.layout.max_index % 2))


def _factors(q) -> tuple[np.ndarray, float, tuple[int, ...]]:
    """(what the elements of every tile or subtile are multiplied by, what they are divided by, values on each
    axis that share a factor).
    """
    ones = (1,) * len(q.shape)
    if q.scales is None:
        return np.ones(ones), 1.0, ones
    tiles, (factors, divisor) = q.dtype.tiles_of(q.shape, q.axis), unit_factors(q)
    units = tiles.values // (tiles.unit[0] * tiles.unit[1])
    lengths = dict(zip(tiles.axes, tiles.unit[-len(tiles.axes):])) if tiles.axes else {}
    return (tiles.join_parts(factors.reshape(-1, units), tiles.unit), 1.0 if divisor is None else divisor,
            tuple(lengths.get(axis, 1) for axis in range(len(q.shape))))


def _float(number) -> float:
    """A Fraction as a float; beyond float64, infinity."""
    try:
        return float(number)
    except OverflowError:
        return float(np.copysign(np.inf, 1 if number > 0 else -1))
