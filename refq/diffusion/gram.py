"""What a method needs to know of a layer's inputs: H, G and F, sums over rows that do not grow with them.

X (rows x columns) is the float model's input of a layer, X^ that of the partly quantised model:

    H = X^T X^    G = X^T X    F = X^T X of the float stream alone    (each columns x columns, float64)

Codes need H and G; F is only for the size of errors. While both streams are one, so are all three.
Spec: ED-7, ED-12.
"""

from threading import RLock

import numpy as np

from refq.errors import InputError

ROWS = 4096                 # of inputs that are summed up at a time, or fewer of many columns:
COPIED = 1 << 22            # numbers of a batch that are copied at a time
PIECE = 256                 # rows and columns of an array turned at a time
WIDE = 512                  # columns at a time of sums over rows
STRIP = 256                 # columns at a time of products of which half is needed


class Sums:
    """H, G and F, (..., columns, columns), summed over batches of inputs, (..., rows, columns).

    What the Gram of one layer and a stack of them (stack.py) have in common. Numbers come as floats of one
    layer, as arrays of several. update and add change the sums, and nothing may use them meanwhile; all else
    may be called from several threads.
    """

    def __init__(self, h, g=None, f=None, rows: int = 0):
        self.same = g is None
        self.h, self.g, self.f = (h, h, h) if self.same else (h, g, f)
        self.columns, self.rows = h.shape[-1], rows
        self._lock, self._memory = RLock(), {}

    def update(self, x, x_hat=None, run=map):
        """Add a batch. x, x_hat: (..., rows, columns) floats; x_hat None: it is x.

        Sums are float64, in the order of the rows given. run: as map, or something that works on several
        items at a time: the bytes are the same. Raises InputError for shapes that do not fit and for NaN and
        infinities.
        """
        x, x_hat = as_streams(x, x_hat, self.h.shape[:-2], self.columns)
        if x_hat is not None:
            self._part_streams()
        self._memory.clear()

        def add_up(place):
            self._add_up(x, x_hat, *place)
        places = [(which, part) for which in self._slabs() for part in strips(self.columns, WIDE)]
        for _ in run(add_up, places):
            pass
        self._check_size()
        self.rows += x.shape[-2]

    def _add_up(self, x, x_hat, which, part):
        """One strip of the sums of some layers: rows `part` of the matrices to the diagonal, and across."""
        for start in range(0, x.shape[-2], self._rows):
            rows = slice(start, start + self._rows)
            upto = slice(0, part.stop if x_hat is None else None)
            own = np.ascontiguousarray(x[which][..., rows, upto], dtype=np.float64)
            if x_hat is None:
                _add_squares([matrix[which] for matrix in self._distinct()], part, own)
                continue
            hat = np.ascontiguousarray(x_hat[which][..., rows, : part.stop], dtype=np.float64)
            _add_squares([self.f[which]], part, own)
            _add_squares([self.h[which]], part, hat)
            self.g[which][..., part, :] += _product(hat[..., part], own)

    @property
    def _rows(self) -> int:
        """Rows at a time: the float64 copies of a batch stay small."""
        return max(min(ROWS, COPIED // self.columns), 1)

    def _slabs(self):
        """Which layers to take at a time."""
        return [...]

    def add(self, other: "Sums"):
        """Add what another of the same columns has summed up, as if its batches had come here.

        Raises InputError for another shape.
        """
        if type(other) is not type(self):
            raise InputError(f"other must be a {type(self).__name__}, got {type(other).__name__}")
        if other.h.shape != self.h.shape:
            raise InputError(f"sums of shape {other.h.shape} cannot be added to some of shape {self.h.shape}")
        if not other.same:
            self._part_streams()
        self._memory.clear()
        for matrix, more in zip(self._distinct(), (other.h, other.g, other.f)):
            matrix += more
        self._check_size()
        self.rows += other.rows

    def recall(self, name: str, make):
        """What make() gives, worked out once for these sums however many threads ask for it."""
        with self._lock:
            if name not in self._memory:
                self._memory[name] = make()
            return self._memory[name]

    def error(self, w, q):
        """The output error ||X w^T - X^ q^T||^2. w, q: (..., rows, columns) values. Spec: ED-1."""
        return self.errors(self._lines(w), self._lines(q))[0]

    def signal(self, w):
        """||X w^T||^2: what errors are measured against. w: (..., rows, columns). Spec: ED-12."""
        return self._number(quadratic(self._f, self._lines(w)))

    def local(self, w, q):
        """||X (w - q)^T||^2: the error that q makes by itself, on the float model's inputs. Spec: ED-12."""
        return self._number(quadratic(self._f, self._lines(w) - self._lines(q)))

    def inherited(self, w):
        """||(X - X^) w^T||^2: the error that comes in with the quantised stream. Spec: ED-12."""
        w = self._lines(w)
        return self._number(np.zeros(w.shape[:-2]) if self.same else quadratic(self._moved, w))

    def errors(self, w, *several):
        """The output errors of several q beside one w, all (..., columns, rows) float64."""
        lost = [w - q for q in several]
        found = [quadratic(self._h, z) for z in lost]
        if not self.same:
            # X w - X^ q = (X - X^) w + X^ (w - q): parts that are small by themselves
            fixed = quadratic(self._moved, w)
            found = [fixed + size for size in found]
            for part in strips(self.columns, STRIP):
                met = 2 * ((self.g[..., part, :] - self.h[..., part, :]) @ w)
                found = [size + inner(met, z[..., part, :]) for size, z in zip(found, lost)]
        return [self._number(size) for size in found]

    def _lines(self, values):
        """(..., rows, columns) values as lines. Raises InputError for other columns than the inputs have."""
        values = np.asarray(values)
        above = self.h.shape[:-2]
        if values.ndim != self.h.ndim or (*values.shape[:-2], values.shape[-1]) != (*above, self.columns):
            raise InputError(f"weights must have the shape {(*above, 'rows', self.columns)}, "
                             f"got {values.shape}".replace("'", ""))
        return lines(values)

    def _part_streams(self):
        """From here on there are two streams."""
        if self.same:
            self.same, self.g, self.f = False, self.h.copy(), self.h.copy()

    def _distinct(self):
        return (self.h,) if self.same else (self.h, self.g, self.f)

    def _check_size(self):
        if not all(np.isfinite(np.einsum("...kk->...", matrix)).all() for matrix in (self.h, self.f)):
            raise InputError("the inputs are too large: their squares leave the range of float64")

    # Parts of the symmetric matrices that errors are quadratic forms of; none of those is made whole

    def _h(self, rows, columns):
        return self.h[..., rows, columns]

    def _f(self, rows, columns):
        return self.f[..., rows, columns]

    def _moved(self, rows, columns):
        """Of (X - X^)^T (X - X^)."""
        back = self.g[..., columns, rows].swapaxes(-1, -2)
        return (self.f[..., rows, columns] - self.g[..., rows, columns]) - (back - self.h[..., rows, columns])

    @staticmethod
    def _number(size):
        """No square is below 0, whatever rounding says."""
        size = np.maximum(size, 0.0)
        return size if size.ndim else float(size)


class Gram(Sums):
    """H, G and F of one layer, summed over batches of its inputs. Spec: ED-7.

    columns: input features. Attributes h, g, f: float64, columns x columns; rows: how many were added; same:
    whether the two streams have been one so far (then h, g and f are one array).
    """

    def __init__(self, columns: int):
        super().__init__(np.zeros((whole_number(columns, "columns"),) * 2))

    @staticmethod
    def of(x, x_hat=None) -> "Gram":
        """The Gram matrices of one batch."""
        gram = Gram(as_stream(x, "x").shape[1])
        gram.update(x, x_hat)
        return gram


def _product(a, b):
    """Columns of a against columns of b, summed over the rows; for b = a half of it is reckoned."""
    with np.errstate(over="ignore", invalid="ignore"):      # _check_size looks
        return a.swapaxes(-1, -2) @ b


def _add_squares(matrices, part, x):
    """Add to symmetric matrices the strip `part` of x's squares: on the diagonal, before it, and across."""
    square = _product(x[..., part], x[..., part])
    before = _product(x[..., part], x[..., : part.start]) if part.start else None
    for matrix in matrices:
        matrix[..., part, part] += square
        if part.start:
            matrix[..., part, : part.start] += before
            matrix[..., : part.start, part] += before.swapaxes(-1, -2)


def quadratic(matrix, z):
    """trace(z^T M z) of a symmetric M: half of its product with z, strip by strip.

    matrix: a function (rows, columns) that gives parts of M, (..., rows, columns). z: (..., columns, rows).
    """
    total = np.zeros(z.shape[:-2])
    for part in strips(z.shape[-2], STRIP):
        strip = matrix(part, part) @ z[..., part, :]
        if part.start:
            before = slice(0, part.start)
            strip += 2 * (matrix(part, before) @ z[..., before, :])
        total = total + inner(strip, z[..., part, :])
    return total


def strips(columns: int, width: int):
    """Slices of so many columns."""
    return (slice(start, min(start + width, columns)) for start in range(0, columns, width))


def inner(a, b):
    """The sum of the products over the last two axes, in one order whatever the number of threads."""
    return np.einsum("...ij,...ij->...i", a, b).sum(axis=-1)


def lines(array):
    """(..., rows, columns) values as (..., columns, rows) float64, C-contiguous."""
    array = np.asarray(array)
    if array.ndim == 2:
        return turned(array, np.float64)
    return np.ascontiguousarray(array.swapaxes(-1, -2), dtype=np.float64)


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

def whole_number(value, what: str) -> int:
    """A number of columns or problems, from 1. Raises InputError for anything else."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise InputError(f"Gram matrices of {value!r} {what}; a whole number from 1 is allowed")
    return int(value)


def as_stream(x, name: str, ndim: int = 2):
    """An array of finite floats, (rows, columns) or with the layers of a stack before. Raises InputError."""
    x = np.asarray(x)
    if x.ndim != ndim or x.dtype.kind not in "fiu" and x.dtype.name != "bfloat16":
        shape = "(rows, columns)" if ndim == 2 else "(count, rows, columns)"
        raise InputError(f"{name} must be an array of floats of shape {shape}, "
                         f"got {x.dtype} of shape {x.shape}")
    with np.errstate(all="ignore"):
        sound = np.isfinite(x.sum(dtype=np.float64)) or np.isfinite(x).all()
    if not sound:
        place = tuple(map(int, np.argwhere(~np.isfinite(x))[0]))
        words = ("problem", "row", "column")[-ndim:]
        raise InputError(f"{name} holds {x[place]} at {', '.join(map('{} {}'.format, words, place))}; "
                         "only finite values are allowed")
    return x


def as_streams(x, x_hat, above: tuple, columns: int):
    """Both streams, (*above, rows, columns), checked against each other; x_hat None where it is x itself."""
    x = as_stream(x, "x", len(above) + 2)
    if x.shape[-1] != columns:
        raise InputError(f"x has {x.shape[-1]} columns, but the layer has {columns} inputs")
    if x.shape[:-2] != above:
        raise InputError(f"x holds inputs of {x.shape[0]} problems, but the stack has {above[0]}")
    if x_hat is None:
        return x, None
    x_hat = as_stream(x_hat, "x_hat", len(above) + 2)
    if x_hat.shape != x.shape:
        raise InputError(f"x_hat has the shape {x_hat.shape}, but x has {x.shape}; they must be equal")
    return x, x_hat
