"""N:M sparsity: of every M values along an axis the N largest magnitudes stay (Spec: SPARSE-1, SPARSE-2)."""

from math import prod

import numpy as np

from refq.errors import InputError

LARGEST_RUN = 1024          # values: the largest M
PAIRWISE = 16               # up to this M values are ranked by comparing every two, above by sorting
CHUNK = 1 << 15


def check_sparsity(n: int, m: int):
    """Raises InputError unless 1 <= n < m <= 1024 (SPARSE-1)."""
    whole = all(isinstance(number, (int, np.integer)) and not isinstance(number, bool) for number in (n, m))
    if not whole or not 1 <= n < m <= LARGEST_RUN:
        raise InputError(f"sparsity {n!r}:{m!r} is not known; N:M keeps N of M values, "
                         f"1 <= N < M <= {LARGEST_RUN}")


def mask_bits(n: int, m: int) -> int:
    """Bits of the mask for each value of the array (SPARSE-2). Raises InputError as check_sparsity."""
    check_sparsity(n, m)
    return 1


def keep_mask(x, n: int, m: int, axis=-1) -> np.ndarray:
    """True where a value stays: the n largest magnitudes of every run of m along the axis (Spec: SPARSE-1).

    x: array of floats (float64, float32, float16, bfloat16) or integers. Runs start at index 0; the last may
    be shorter. Of equal magnitudes the lower index stays; NaN and infinity are compared by their bits.
    Returns bool, x's shape. Raises InputError unless 1 <= n < m, and for another dtype or axis.
    """
    check_sparsity(n, m)
    x = np.asarray(x)
    if not x.ndim or not -x.ndim <= axis < x.ndim:
        raise InputError(f"axis {axis!r} is not an axis of an array of shape {x.shape}")
    lines = np.moveaxis(x, axis, -1)
    runs = -(-lines.shape[-1] // m)
    size = _magnitudes(lines)
    if runs * m != lines.shape[-1]:                     # zeros at the end lose to everything before them
        size = np.pad(size, [(0, 0)] * (x.ndim - 1) + [(0, runs * m - lines.shape[-1])])
    flat, kept = size.reshape(-1, m), np.empty((size.size // m, m), bool)
    rows = max(1, CHUNK // m)
    for start in range(0, len(flat), rows):
        part = slice(start, start + rows)
        kept[part] = (_ranks if m <= PAIRWISE else _sorted_ranks)(flat[part]) < n
    kept = kept.reshape(*lines.shape[:-1], runs * m)[..., : lines.shape[-1]]
    return np.ascontiguousarray(np.moveaxis(kept, -1, axis))


def _magnitudes(x) -> np.ndarray:
    """Unsigned integers in the order of the magnitudes: the bits without the sign."""
    if x.dtype.kind == "u":
        return np.ascontiguousarray(x)
    bits = np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}") if x.dtype.itemsize <= 8 else None
    if x.dtype.kind == "i":
        return np.where(x < 0, -bits, bits)             # of the least integer too: its magnitude is its word
    if bits is None or x.dtype.kind not in "fV" or x.dtype.name not in (
            "float64", "float32", "float16", "bfloat16"):
        raise InputError(f"dtype {x.dtype} has no magnitudes here; allowed are float64, float32, float16, "
                         "bfloat16 and integers")
    return bits & bits.dtype.type((1 << (8 * x.dtype.itemsize - 1)) - 1)


def _ranks(size) -> np.ndarray:
    """How many values of its run each value loses to: (runs, m), by comparing every two."""
    columns = np.ascontiguousarray(size.T)
    lost = np.zeros(columns.shape, np.uint8)
    not_won, won = np.empty((2, columns.shape[1]), bool)
    for low in range(len(columns)):
        for high in range(low + 1, len(columns)):
            np.greater_equal(columns[low], columns[high], out=won)
            lost[high] += won.view(np.uint8)
            lost[low] += np.logical_not(won, out=not_won).view(np.uint8)
    return lost.T


def _sorted_ranks(size) -> np.ndarray:
    """The same by sorting."""
    order = np.argsort(np.invert(size), axis=1, kind="stable")
    ranks = np.empty(size.shape, np.uint16)
    np.put_along_axis(ranks, order, np.arange(size.shape[1], dtype=np.uint16)[None], axis=1)
    return ranks


def pack_mask(mask) -> np.ndarray:
    """The bits of a mask, eight to a byte, the first value in the lowest bit (Spec: SPARSE-2).

    mask: bool, any shape, taken in C order. Returns uint8, flat; bits past the end are 0.
    """
    return np.packbits(np.asarray(mask, bool).reshape(-1), bitorder="little")


def unpack_mask(data, shape) -> np.ndarray:
    """The mask of a shape from its bytes (Spec: SPARSE-2). Raises InputError for another number of bytes."""
    data, count = np.asarray(data), prod(shape)
    if data.dtype != np.uint8 or data.shape != (-(-count // 8),):
        raise InputError(f"a mask of {count} values takes {-(-count // 8)} bytes (uint8, flat), "
                         f"not {data.dtype} of shape {data.shape}")
    return np.unpackbits(data, count=count, bitorder="little").astype(bool).reshape(shape)
