"""Rotating a tile by a matrix of signs before it is quantised, and back: the exact sums, each rounded once.

Written from spec/rotation.md. A rotation arrives as plain numbers and words: size, order, signs, scaling.
Arrays are flat lists of Values in row-major order with a shape beside them; a dtype is a format's dict.
"""

from fractions import Fraction

from spec.oracle.blocks import OUT, tiles
from spec.oracle.scalar import INFINITE, NAN, NUMBER, Value, encode


# --- the matrix -----------------------------------------------------------------------------------

def hadamard(size):
    """ROT-1: Sylvester's matrix, doubled from (1): each step repeats it thrice, then negated."""
    rows = [[1]]
    while len(rows) < size:
        rows = [row + row for row in rows] + [row + [-entry for entry in row] for row in rows]
    return rows


def walsh(size):
    """ROT-1: the same rows, the one with the fewest changes of sign first."""
    return sorted(hadamard(size), key=lambda row: sum(a != b for a, b in zip(row, row[1:])))


MATRICES = {"hadamard": hadamard, "walsh": walsh}


def scales(size, scaling):
    """ROT-2: the powers of two of the rotation and of its inverse."""
    k = size.bit_length() - 1
    there = (k + 1) // 2 if scaling == "balanced" else 0
    return Fraction(1, 2 ** there), Fraction(1, 2 ** (k - there))


def columns(size, order="hadamard", signs=None, scaling="balanced", inverse=False):
    """ROT-1, ROT-2, ROT-3: for every output of a tile the exact coefficients of its inputs."""
    matrix, signs = MATRICES[order](size), signs or [1] * size
    there, back = scales(size, scaling)
    if inverse:
        return [[back * signs[j] * matrix[i][j] for i in range(size)] for j in range(size)]
    return [[there * signs[i] * matrix[i][j] for i in range(size)] for j in range(size)]


# --- sums -----------------------------------------------------------------------------------------

def total(values, coefficients):
    """ROT-4, ROT-5: the exact sum of products; a NaN, or infinities of both signs, make it a NaN."""
    infinities = {v.negative != (c < 0) for v, c in zip(values, coefficients) if v.kind == INFINITE}
    if any(v.kind == NAN for v in values) or len(infinities) == 2:
        return Value(NAN)
    if infinities:
        return Value(INFINITE, infinities.pop())
    exact = sum((-v.magnitude if v.negative else v.magnitude) * c for v, c in zip(values, coefficients))
    return Value(NUMBER, exact < 0, Fraction(abs(exact)))


def exactly(values, shape, axis, size, inverse=False, **matrix):
    """The unrounded outputs of an array, in its own order. Refuses part of a tile (ROT-6)."""
    if shape[axis] % size:
        raise ValueError(f"{shape[axis]} values are not tiles of {size}")
    out, rows = [None] * len(values), columns(size, inverse=inverse, **matrix)
    for tile in tiles(shape, axis, size):
        inputs = [values[i] for i in tile]
        for i, row in zip(tile, rows):
            out[i] = total(inputs, row)
    return out


def rotate(values, shape, axis, size, dtype, **matrix):
    """ROT-4: codes of dtype for every output."""
    return [encode(v, dtype, "rne", OUT) for v in exactly(values, shape, axis, size, **matrix)]


def unrotate(values, shape, axis, size, dtype, **matrix):
    """ROT-3, ROT-4: the same of the inverse."""
    return [encode(v, dtype, "rne", OUT) for v in exactly(values, shape, axis, size, inverse=True, **matrix)]
