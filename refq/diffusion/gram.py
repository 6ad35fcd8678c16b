"""What a method needs to know of a layer's inputs: H, G and F, sums over rows that do not grow with them.

X (rows x columns) is the float model's input of a layer, X^ that of the partly quantised model:

    H = X^T X^    G = X^T X    F = X^T X of the float stream alone    (each columns x columns, float64)

Codes need H and G; F is only for the size of the output error. While both streams are one, so are all three.
Spec: ED-7.
"""

import numpy as np

from refq.errors import InputError

ROWS = 4096                 # rows at a time: the float64 copies of a batch stay small
PIECE = 256                 # rows and columns of an array turned at a time
STRIP = 256                 # columns at a time of products of which half is needed


class Gram:
    """H, G and F of a layer, summed over batches of its inputs. Spec: ED-7.

    columns: input features. Attributes h, g, f: float64, columns x columns; rows: how many were added; same:
    whether the two streams have been one so far (then h, g and f are one array).
    """

    def __init__(self, columns: int):
        if not isinstance(columns, (int, np.integer)) or isinstance(columns, bool) or columns < 1:
            raise InputError(f"Gram matrices of {columns!r} columns; a whole number from 1 is allowed")
        self.columns, self.rows, self.same = int(columns), 0, True
        self.h = self.g = self.f = np.zeros((self.columns, self.columns))

    @staticmethod
    def of(x, x_hat=None) -> "Gram":
        """The Gram matrices of one batch."""
        x = as_stream(x, "x")
        gram = Gram(x.shape[1])
        gram.update(x, x_hat)
        return gram

    def update(self, x, x_hat=None):
        """Add a batch. x, x_hat: (rows, columns) floats; x_hat None: it is x.

        Sums are float64, in the order of the rows given. Raises InputError for shapes that do not fit and for
        NaN and infinities.
        """
        x, x_hat = as_streams(x, x_hat, self.columns)
        if x_hat is not None and self.same:
            self.same, self.g, self.f = False, self.h.copy(), self.h.copy()
        for start in range(0, len(x), ROWS):
            part = np.ascontiguousarray(x[start: start + ROWS], dtype=np.float64)
            with np.errstate(over="ignore"):
                own = part.T @ part
            if x_hat is None:
                for matrix in (self.h,) if self.same else (self.h, self.g, self.f):
                    matrix += own
                continue
            hat = np.ascontiguousarray(x_hat[start: start + ROWS], dtype=np.float64)
            self.f += own
            with np.errstate(over="ignore", invalid="ignore"):
                self.h += hat.T @ hat
                self.g += hat.T @ part
        if not all(np.isfinite(np.trace(matrix)) for matrix in (self.h, self.f)):
            raise InputError("the inputs are too large: their squares leave the range of float64")
        self.rows += len(x)

    def error(self, w, q) -> float:
        """The output error ||X w^T - X^ q^T||^2. w, q: (rows, columns) values. Spec: ED-1."""
        return self.errors(*(turned(np.asarray(part), np.float64) for part in (w, q)))[0]

    def errors(self, w, *several):
        """The output errors of several q beside one w, all (columns, rows) float64, C-contiguous."""
        lost = (w - q for q in several)
        if self.same:
            return [max(quadratic(self.h, z), 0.0) for z in lost]
        # X w - X^ q = (X - X^) w + X^ (w - q): parts that are small by themselves
        drift = self.g - self.h
        met, fixed = drift @ w, quadratic(self.f - self.g - drift.T, w)
        return [max(fixed + 2 * inner(met, z) + quadratic(self.h, z), 0.0) for z in lost]


def quadratic(matrix, z) -> float:
    """trace(z^T matrix z) for a symmetric matrix: half of its product with z, strip by strip."""
    total = 0.0
    for start in range(0, len(z), STRIP):
        part = slice(start, start + STRIP)
        strip = matrix[part, part] @ z[part]
        if start:
            strip += 2 * (matrix[part, :start] @ z[:start])
        total += inner(strip, z[part])
    return total


def inner(a, b) -> float:
    """The sum of the products, in one order whatever the number of threads."""
    return float(np.einsum("ij,ij->i", a, b).sum())


def turned(array, dtype=None):
    """The transpose as a C-contiguous array, piece by piece, so that neither side leaves the cache."""
    found = np.empty(array.shape[::-1], dtype or array.dtype)
    for row in range(0, array.shape[0], PIECE):
        for column in range(0, array.shape[1], PIECE):
            rows, columns = slice(row, row + PIECE), slice(column, column + PIECE)
            found[columns, rows] = array[rows, columns].T
    return found


def block_errors(gram: Gram, w, q, edges):
    """The output error of the first columns alone, up to each edge; w, q: (columns, rows) float64."""
    total, found = 0.0, []
    for start, stop in zip(edges, edges[1:]):
        part, before = slice(start, stop), slice(0, start)
        wp, qp = w[part], q[part]
        at_w = gram.f[part, part] @ wp - 2 * (gram.g[part, part].T @ qp)
        at_q = gram.h[part, part] @ qp
        if start:
            at_w += 2 * (gram.f[part, before] @ w[before] - gram.g[before, part].T @ q[before])
            at_q -= 2 * (gram.g[part, before] @ w[before] - gram.h[part, before] @ q[before])
        total += inner(at_w, wp) + inner(at_q, qp)
        found.append(max(total, 0.0))
    return found


# ------------------------------------------------------------------------------------------------------------
# arguments

def as_stream(x, name: str):
    """A (rows, columns) array of finite floats. Raises InputError for anything else."""
    x = np.asarray(x)
    if x.ndim != 2 or x.dtype.kind not in "fiu" and x.dtype.name != "bfloat16":
        raise InputError(f"{name} must be an array of floats of shape (rows, columns), "
                         f"got {x.dtype} of shape {x.shape}")
    x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)
    with np.errstate(all="ignore"):
        sound = np.isfinite(x.sum(dtype=np.float64)) or np.isfinite(x).all()
    if not sound:
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise InputError(f"{name} holds {x[row, column]} at row {row}, column {column}; "
                         "only finite values are allowed")
    return x


def as_streams(x, x_hat, columns: int):
    """Both streams, checked against each other; x_hat None where it is x itself."""
    x = as_stream(x, "x")
    if x.shape[1] != columns:
        raise InputError(f"x has {x.shape[1]} columns, but the layer has {columns} inputs")
    if x_hat is None:
        return x, None
    x_hat = as_stream(x_hat, "x_hat")
    if x_hat.shape != x.shape:
        raise InputError(f"x_hat has the shape {x_hat.shape}, but x has {x.shape}; they must be equal")
    return x, x_hat
