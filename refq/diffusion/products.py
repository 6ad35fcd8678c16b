"""Products of a method's matrices with lines of weights: one matrix for all rows, or one for each problem.

Lines are (columns, ..., rows): what lies between (candidates of a scale) is carried along. The rows of a
stack of problems lie side by side, problem by problem. Spec: ED-7.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class One:
    """A matrix (columns, columns) that all rows share."""

    matrix: np.ndarray

    def __getitem__(self, places) -> "One":
        """A part: [rows of the matrix, its columns]."""
        return One(self.matrix[places])

    def __matmul__(self, lines):
        found = self.matrix @ lines.reshape(len(lines), -1)
        return found.reshape(len(found), *lines.shape[1:])

    def lower(self) -> "One":
        """The triangle up to the diagonal."""
        return One(np.tril(self.matrix))

    def spread(self, numbers):
        """One number a column, (columns,), beside lines of rows."""
        return numbers[:, None]

    def sums(self, lines, out):
        """A function of k for columns added one by one: out = the sum over j < k of matrix_kj lines_j."""
        flat, room = lines.reshape(len(lines), -1), out.reshape(-1)

        def add_up(k):
            # no matrix library: a call so small is slower on several threads than on one
            np.einsum("k,kr->r", self.matrix[k, :k], flat[:k], out=room)
        return add_up


@dataclass(frozen=True)
class Many:
    """A matrix for each of several problems, (count, columns, columns), each for so many rows in turn."""

    matrix: np.ndarray
    rows: int

    def __getitem__(self, places) -> "Many":
        """A part: [rows of every matrix, their columns]."""
        return Many(self.matrix[(slice(None), *places)], self.rows)

    def __matmul__(self, lines):
        count = len(self.matrix)
        split = lines.reshape(len(lines), -1, count, self.rows).transpose(2, 0, 1, 3)
        found = self.matrix @ split.reshape(count, len(lines), -1)
        found = found.reshape(count, found.shape[1], -1, self.rows).transpose(1, 2, 0, 3)
        return found.reshape(len(found), *lines.shape[1:])

    def lower(self) -> "Many":
        """As One.lower."""
        return Many(np.tril(self.matrix), self.rows)

    def spread(self, numbers):
        """(count, columns) numbers -> (columns, rows of all problems)."""
        return np.repeat(numbers.T, self.rows, axis=1)

    def sums(self, lines, out):
        """As One.sums; the matrix is written out for every row, so it should be small."""
        wide = np.repeat(self.matrix.transpose(1, 2, 0), self.rows, axis=-1)
        return lambda k: np.einsum("kr,kcr->cr", wide[k, :k], lines[:k], out=out)


def products(matrix, lines) -> One | Many:
    """The products of a matrix, or of a stack of them, with lines of weights (columns, rows)."""
    return One(matrix) if matrix.ndim == 2 else Many(matrix, lines.shape[-1] // len(matrix))
