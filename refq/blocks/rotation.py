"""Incoherence processing: a tile times signs and a Hadamard or Walsh matrix before it is quantised, and back.

    quantize(rotate(w, "te_16"), "nvfp4")

The definition is the exact linear map; each output is its exact sum, rounded once (ROT-4). How that is kept
fast: if all values of a tile are multiples of 2^unit below 2^top, its sums are below 2^(top + log2 size).

1. If those fit in 53 bits, float64 adds them in any order without an error: one matrix product.
2. If they fit in 106, pairs of float64 hold them exactly: butterflies of TwoSums.
3. Otherwise the pairs have an error below a proven bound. An output that rounds alike at both ends of it is
   right; the few others, and tiles near the ends of float64's range, are added as Python integers.

Most arrays take one way as a whole; a piece that cannot is sorted tile by tile. Spec: ROT-1 to ROT-7.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from refq.blocks.tiles import one_axis
from refq.errors import InputError
from refq.formats import codec
from refq.formats.definition import CHUNK
from refq.formats.names import nearest

LARGEST = 1 << 16           # values in a tile
FACTOR = 64                 # matrices up to this size are multiplied as they are, larger ones as products
ORDERS = {
    "hadamard": "Sylvester's order: the entry at (i, j) is -1 where i & j has an odd number of ones",
    "walsh": "sequency order: the same rows by their number of sign changes, ascending",
}
SCALINGS = {
    "balanced": "2^-ceil(k/2) for size 2^k, the inverse 2^-floor(k/2): orthonormal where k is even",
    "unscaled": "1, the inverse 2^-k: sums of integers stay integers",
}


@dataclass(frozen=True)
class Rotation:
    """One rotation: y = (x * signs) M * 2^-shift on every tile of `size` values, M symmetric, M M = size.

    order: of the rows of M, a key of ORDERS. signs: +1 and -1, one for each value of a tile, or None.
    scaling: a key of SCALINGS. Spec: ROT-1, ROT-2.
    """

    name: str
    size: int
    order: str = "hadamard"
    signs: tuple[int, ...] | None = None
    scaling: str = "balanced"
    ref: str = ""
    aka: tuple[str, ...] = ()

    def __post_init__(self):
        whole = isinstance(self.size, int) and 1 <= self.size <= LARGEST
        if not whole or self.size & (self.size - 1):
            raise InputError(f"rotation {self.name!r}: its size is {self.size!r}; allowed are the powers "
                             f"of two from 1 to {LARGEST}")
        for key, table in ((self.order, ORDERS), (self.scaling, SCALINGS)):
            if key not in table:
                allowed = ", ".join(table)
                raise InputError(f"rotation {self.name!r}: {key!r} is not known; allowed are {allowed}")
        if self.signs is not None and (len(self.signs) != self.size or not set(self.signs) <= {1, -1}):
            raise InputError(f"rotation {self.name!r} needs {self.size} signs, each 1 or -1, "
                             f"not {len(self.signs)}: {self.signs!r}")

    @property
    def log2_size(self) -> int:
        return self.size.bit_length() - 1

    @property
    def shift(self) -> int:
        """Outputs are the sums times 2^-shift."""
        return (self.log2_size + 1) // 2 if self.scaling == "balanced" else 0

    @property
    def inverse_shift(self) -> int:
        return self.log2_size - self.shift


ROTATIONS: dict[str, Rotation] = {row.name: row for row in [
    Rotation("te_16", 16, signs=(1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1),
             ref="TransformerEngine, random Hadamard transform for NVFP4",
             aka=("te_rht_16", "torchao_rht_16")),
]}

_BY_RULE = re.compile(r"(hadamard|walsh)_([1-9]\d{0,8})(?:_(unscaled))?")


def rotation_named(name) -> Rotation:
    """The row of a rotation: a name of ROTATIONS, or by rule `(hadamard|walsh)_<size>[_unscaled]`.

    A row is returned as it is. Raises InputError for an unknown name, naming the nearest. Spec: ROT-1, ROT-2.
    """
    if isinstance(name, Rotation):
        return name
    if not isinstance(name, str):
        raise InputError(f"a rotation is named by a string or given as a row, not {name!r}")
    key = name.strip().lower()
    spellings = {spelling: row for row in ROTATIONS.values() for spelling in (row.name, *row.aka)}
    if key in spellings:
        return spellings[key]
    if shape := _BY_RULE.fullmatch(key):
        return Rotation(key, int(shape[2]), shape[1], scaling=shape[3] or "balanced", ref="by rule (ROT-2)")
    by_rule = [f"{order}_{1 << k}" for order in ORDERS for k in range(LARGEST.bit_length())]
    raise InputError(f"rotation {name!r} is not known{nearest(key, [*spellings, *by_rule])}; by rule there "
                     "are hadamard_<size> and walsh_<size>, and with the ending _unscaled")


def rotate(x, rotation, axis=-1, dtype=None, signs=None) -> np.ndarray:
    """Rotate an array tile by tile along an axis: every exact sum rounded once.

    x: float64, float32, float16, bfloat16 or integer array (integers up to 2^53) whose length along the axis
    is a multiple of the rotation's size. rotation: a name or a row.
    dtype: of the result: float64, float32 or float16; by default float64 where float32 cannot hold every
    value of x's dtype, else float32. signs: +1 and -1 for each value of a tile, for a rotation without signs.
    Returns an array of x's shape. Raises InputError for bad names, axes, lengths, signs and dtypes.
    Spec: ROT-1, ROT-2, ROT-4 to ROT-7.
    """
    row = _signed(rotation_named(rotation), signs)
    return _mapped(x, _Map(row.log2_size, row.order, row.shift, row.signs, None), axis, dtype)


def unrotate(y, rotation, axis=-1, dtype=None, signs=None) -> np.ndarray:
    """The inverse map of `rotate` with the same rotation and signs, every exact sum rounded once.

    Arguments, result and errors as `rotate`; raises InputError. What comes back bit for bit: ROT-7.
    Spec: ROT-3 to ROT-7.
    """
    row = _signed(rotation_named(rotation), signs)
    return _mapped(y, _Map(row.log2_size, row.order, row.inverse_shift, None, row.signs), axis, dtype)


# ------------------------------------------------------------------------------------------------------------
# arguments and shapes

def _signed(row: Rotation, signs) -> Rotation:
    if signs is None:
        return row
    if row.signs is not None:
        raise InputError(f"rotation {row.name!r} has signs of its own, so none can be given; "
                         f"{row.order}_{row.size} takes signs")
    given = np.asarray(signs)
    if given.ndim != 1 or given.dtype.kind not in "iuf":
        raise InputError(f"signs must be a list of {row.size} numbers, each 1 or -1, not {signs!r}")
    return replace(row, signs=tuple(given.tolist()))


def _mapped(x, linear: "_Map", axis, dtype):
    x = np.asarray(x)
    values = codec.as_floats(x)
    dtype = values.dtype if dtype is None else codec.float_dtype(dtype)
    axis = _axis(x, axis, linear.size)
    lines = np.moveaxis(values, axis, -1)
    tiles = np.ascontiguousarray(lines).reshape(-1, linear.size)
    out = np.empty(tiles.shape, dtype)
    with np.errstate(all="ignore"):             # overflow, NaN and underflow are results here (ROT-4, ROT-5)
        _run(tiles, linear, out)
    return np.ascontiguousarray(np.moveaxis(out.reshape(lines.shape), -1, axis))


def _axis(x, axis, size: int) -> int:
    place = one_axis(x.shape, axis)
    if x.shape[place] % size:
        raise InputError(f"{x.shape[place]} values along axis {axis} are not a multiple of the rotation's "
                         f"size {size}: part of a tile has no rotation")
    return place


# ------------------------------------------------------------------------------------------------------------
# the map

class _Map(NamedTuple):
    """y = (x * before) M * after * 2^-shift, M of 2^k rows."""

    k: int
    order: str
    shift: int
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None

    @property
    def size(self) -> int:
        return 1 << self.k


@lru_cache(maxsize=32)
def _sylvester(size: int):
    """float64 (size, size), read only. Spec: ROT-1."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix.setflags(write=False)
    return matrix


@lru_cache(maxsize=32)
def _rows(k: int, order: str):
    """Which row of Sylvester's matrix is at each place: itself, or by sequency the reversed Gray code."""
    places = np.arange(1 << k)
    if order == "hadamard":
        return places
    gray, rows = places ^ places >> 1, np.zeros_like(places)
    for bit in range(k):
        rows |= (gray >> bit & 1) << (k - 1 - bit)
    return rows


@lru_cache(maxsize=32)
def _vector(signs, size: int, shift: int):
    """Signs times 2^-shift."""
    return np.ldexp(np.array(signs or (1,) * size, np.float64), -shift)


# ------------------------------------------------------------------------------------------------------------
# which way

class _Span(NamedTuple):
    """Every value is a multiple of 2^unit and smaller than 2^top; not finite: some value is not."""

    top: np.ndarray
    unit: np.ndarray
    finite: np.ndarray


def _span(tiles, axis=None) -> _Span:
    """Of all values (axis None), or of each tile (axis 1), from the bits."""
    word, man = np.dtype(f"u{tiles.itemsize}").type, np.finfo(tiles.dtype).nmant
    exponents = (1 << (8 * tiles.itemsize - 1 - man)) - 1
    bias = exponents >> 1
    magnitudes = tiles.view(word) & word((1 << (8 * tiles.itemsize - 1)) - 1)
    largest = magnitudes.max(axis=axis)
    used = np.bitwise_or.reduce(magnitudes, axis=axis) & word((1 << man) - 1)
    magnitudes -= word(1)                               # a zero becomes the largest of all
    smallest = magnitudes.min(axis=axis) + word(1)      # and 0 again where nothing else was there
    free = np.frexp((used & (~used + word(1))).astype(np.float64))[1] - 1
    free = np.where(used == 0, man, free)               # low significand bits that no value uses
    low, high = (np.maximum((bits >> word(man)).astype(np.int64), 1) for bits in (smallest, largest))
    return _Span(high - bias + 1, low - bias - man + free, high < exponents)


BROKEN, SINGLE, PAIRS, BOUNDED = range(4)


def _way(span: _Span, linear: _Map, dtype):
    """How tiles of this span are added; see the top of this file."""
    width = span.top - span.unit + linear.k
    in_range = span.top + linear.k < 1023
    single = in_range & (width <= 53) & (span.unit - linear.shift >= -1074)
    # The low halves stay below k 2^(top + k - 53); they are exact while that is below 2^53 units.
    pairs = in_range & (width + linear.k.bit_length() <= 106)
    if dtype == np.float64:
        pairs &= span.unit - linear.shift >= -1074          # a subnormal result must not be rounded twice
    return np.where(~span.finite, BROKEN, np.where(single, SINGLE, np.where(pairs, PAIRS, BOUNDED)))


def _run(tiles, linear: _Map, out):
    piece = CHUNK if tiles.dtype == np.float32 else CHUNK // 8      # pairs of float64 have many temporaries
    rows = max(1, piece // linear.size)
    room = np.empty((2, min(rows, len(tiles)), linear.size))
    for start in range(0, len(tiles), rows):
        part, target = tiles[start: start + rows], out[start: start + rows]
        way = int(_way(_span(part), linear, out.dtype))
        if way == SINGLE:
            _single(part, linear, target, room[:, : len(part)])
        elif way == PAIRS:
            target[...] = _pairs(part, linear, out.dtype, None)
        else:
            _tile_by_tile(part, linear, target)


def _tile_by_tile(tiles, linear: _Map, out):
    span = _span(tiles, axis=1)
    ways = _way(span, linear, out.dtype)
    for way in set(ways.tolist()):
        chosen = ways == way
        part = tiles[chosen]
        if way == BROKEN:
            out[chosen] = _broken(part, linear)
        elif way == SINGLE:
            result = np.empty(part.shape, out.dtype)
            _single(part, linear, result, np.empty((2, *part.shape)))
            out[chosen] = result
        else:
            out[chosen] = _pairs(part, linear, out.dtype, span.top[chosen] if way == BOUNDED else None)


# ------------------------------------------------------------------------------------------------------------
# 1. sums that float64 holds

def _single(tiles, linear: _Map, out, room):
    """out = the map of tiles; room: float64 (2, tiles, size). No operation here rounds but the last."""
    values, sums = room
    np.multiply(tiles, _vector(linear.before, linear.size, linear.shift), out=values)
    values, sums = _multiplied(values, sums, linear.k)
    if linear.order == "walsh":
        np.take(sums, _rows(linear.k, linear.order), axis=1, out=values, mode="clip")
        sums = values
    if linear.after is not None:
        np.multiply(sums, _vector(linear.after, linear.size, 0), out=sums)
    np.add(sums, 0.0, out=out, casting="same_kind")         # -0 + 0 is +0 (ROT-4); then the one rounding


def _multiplied(values, sums, k: int):
    """(scratch, values times Sylvester's matrix): the Kronecker product of smaller ones, one at a time."""
    after = 1
    while after < 1 << k:
        size = min(FACTOR, (1 << k) // after)
        if after == 1:
            shape = (-1, size)
            np.matmul(values.reshape(shape), _sylvester(size), out=sums.reshape(shape))
        else:
            shape = (-1, size, after)
            np.matmul(_sylvester(size), values.reshape(shape), out=sums.reshape(shape))
        values, sums, after = sums, values, after * size
    return sums, values


def _broken(tiles, linear: _Map):
    """Sums of infinities and NaN; finite values have no say. Spec: ROT-5."""
    with np.errstate(invalid="ignore"):
        sums = np.where(np.isfinite(tiles), 0, tiles).astype(np.float64).T
        sums = _vector(linear.before, linear.size, 0)[:, None] * sums
        _butterflies(sums, lambda a, b: (a + b, a - b))
        sums = sums[_rows(linear.k, linear.order)] * _vector(linear.after, linear.size, 0)[:, None]
    return np.where(np.isnan(sums), np.nan, sums).T


# ------------------------------------------------------------------------------------------------------------
# 2. and 3. sums that pairs of float64 hold, or nearly

def _butterflies(array, step):
    """Sylvester's matrix times array (size, ...) in place: step(a, b) gives a + b and a - b."""
    half, size = 1, len(array)
    while half < size:
        view = array.reshape(-1, 2, half, *array.shape[1:])
        view[:, 0], view[:, 1] = step(view[:, 0], view[:, 1])
        half *= 2


def _two_sum(a, b):
    """(s, e): s = a + b rounded, and s + e = a + b exactly (Knuth)."""
    s = a + b
    back = s - a
    return s, (a - (s - back)) + (b - back)


def _pairs(tiles, linear: _Map, dtype, top):
    """Outputs of finite tiles from pairs of float64; top: of each tile where they are not exact, or None."""
    high = _vector(linear.before, linear.size, 0)[:, None] * np.ascontiguousarray(tiles.T)
    low = np.zeros_like(high)
    half = 1
    while half < linear.size:
        (a, b), (c, d) = (np.moveaxis(x.reshape(-1, 2, half, len(tiles)), 1, 0) for x in (high, low))
        (s, e), (t, f) = _two_sum(a, b), _two_sum(a, -b)
        e += c + d
        f += c - d
        a[...], b[...], c[...], d[...] = s, t, e, f
        half *= 2
    rows, after = _rows(linear.k, linear.order), _vector(linear.after, linear.size, 0)[:, None]
    high, low = high[rows] * after, low[rows] * after
    if top is None:
        return _rounded_once(high, low, linear.shift, dtype).T
    # Low halves are at most j 2^(top + j - 53) after stage j, so the roundings of three additions, doubled by
    # every later stage, come to less than k (k + 1) 2^(top + k - 106); a wide margin covers `low - bound`.
    bound = np.ldexp(float((linear.k + 1) ** 2), np.clip(top, -700, 1023) + linear.k - 103)
    out = _rounded_once(high, low - bound, linear.shift, dtype)
    other = _rounded_once(high, low + bound, linear.shift, dtype)
    doubtful = out.view(f"u{out.itemsize}") != other.view(f"u{out.itemsize}")
    doubtful |= (top < -700) | (top + linear.k >= 1023)
    if dtype == np.float64:
        doubtful |= np.abs(out) < 2.0 ** -1000              # not to be rounded twice
    for tile in np.flatnonzero(doubtful.any(axis=0)):
        chosen = doubtful[:, tile]
        out[chosen, tile] = _by_integers(tiles[tile], linear, chosen, dtype)
    return out.T


def _rounded_once(high, low, shift: int, dtype):
    """(high + low) 2^-shift in dtype, with one rounding; an exact zero is +0."""
    high, low = _two_sum(high, low)
    return _narrowed(high + 0.0, low, shift, dtype)


def _narrowed(high, low, shift: int, dtype):
    """high is nearest to a sum that lies beyond it in the direction of low: odd where dtype is narrower."""
    if dtype != np.float64:
        bits = high.view(np.int64)
        even = (low != 0) & (high != 0) & np.isfinite(high) & (bits & 1 == 0)
        bits += np.where(even, np.where((low > 0) == (high > 0), 1, -1), 0)
    return np.ldexp(high, -shift).astype(dtype)


def _by_integers(tile, linear: _Map, chosen, dtype):
    """The chosen outputs of one finite tile, in Python integers."""
    fractions, exponents = np.frexp(tile.astype(np.float64))
    unit = int(exponents[tile != 0].min()) - 53
    units = np.ldexp(fractions, 53).astype(np.int64).tolist()
    signs = linear.before or (1,) * linear.size
    sums = np.array([s * (u << max(e - 53 - unit, 0)) for s, u, e in zip(signs, units, exponents.tolist())],
                    object)
    _butterflies(sums, lambda a, b: (a + b, a - b))
    sums = sums[_rows(linear.k, linear.order)] * np.array(linear.after or (1,) * linear.size, object)
    nearest_64 = [_nearest(total, unit - linear.shift) for total in sums[chosen].tolist()]
    high, low = (np.array(half, np.float64) for half in zip(*nearest_64))
    return _narrowed(high, low, 0, dtype)


def _nearest(total: int, exponent: int) -> tuple[float, int]:
    """The float64 nearest to total 2^exponent, and the sign of what is left of it."""
    above, below = (total << exponent, 1) if exponent >= 0 else (total, 1 << -exponent)
    try:
        value = above / below                   # Python divides integers with one rounding
    except OverflowError:
        return (float("inf") if total > 0 else float("-inf")), 0
    whole, unit = value.as_integer_ratio()
    rest = above * unit - whole * below
    return value, (rest > 0) - (rest < 0)
