"""Many small problems in one: a layer whose weight falls into parts that each have inputs of their own.

The groups of a convolution and the matrices of a batched product are such parts. Each is quantised as
`diffuse` would quantise it alone; the columns of all are coded together, since a problem of nine columns and
one row costs as much as one of nine columns and a thousand rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from refq.blocks.quantize import Quantized, quantize
from refq.blocks.recipes import recipe_of
from refq.blocks.rows import Block, data_type
from refq.blocks.tiles import one_axis, sides
from refq.diffusion.diffuse import SCALES, Diffused, coded_by, direct, errors_of, one_of, scale_used
from refq.diffusion.gram import COPIED, Gram, Sums, as_stream, whole_number
from refq.diffusion.grid import Grid
from refq.diffusion.methods import Method, method_named
from refq.errors import InputError

LINES = 4096            # rows of weights coded together; problems of more rows are coded one by one


class GramStack(Sums):
    """The sums of several problems of the same size. Spec: ED-7.

    count: problems. columns: input features of each. Attributes h, g, f: float64, (count, columns, columns);
    rows, same: as in Gram, of all problems. stack[i]: the Gram of one problem, a view that cannot be updated
    and holds until the stack is.
    """

    def __init__(self, count: int, columns: int):
        columns = whole_number(columns, "columns")
        super().__init__(np.zeros((whole_number(count, "problems"), columns, columns)))

    @staticmethod
    def of(x, x_hat=None) -> "GramStack":
        """The sums of one batch, (count, rows, columns)."""
        x = as_stream(x, "x", 3)
        stack = GramStack(x.shape[0], x.shape[2])
        stack.update(x, x_hat)
        return stack

    def __len__(self) -> int:
        return len(self.h)

    def __getitem__(self, problem: int) -> Gram:
        number = range(len(self))[problem]
        return self.recall(f"problem {number}", lambda: self._view(Gram, number))

    def __iter__(self) -> Iterator[Gram]:
        return (self[problem] for problem in range(len(self)))

    def part(self, problems: slice) -> "GramStack":
        """Some of the problems: a view, as of one."""
        return self._view(GramStack, problems)

    def _view(self, kind, which):
        parts = [matrix[which] for matrix in self._distinct()]
        for matrix in parts:
            matrix.flags.writeable = False
        found = kind.__new__(kind)
        Sums.__init__(found, *parts, rows=self.rows)
        return found

    def _slabs(self):
        step = max(1, COPIED // (self._rows * self.columns))
        return [slice(start, min(start + step, len(self))) for start in range(0, len(self), step)]


@dataclass(frozen=True)
class DiffusedStack:
    """The weights of several problems, quantised beside their inputs.

    quantized: of all, in the shape of w and as `quantize` lays it out. methods: for each problem what its
    codes come from. asked, scale: as in Diffused, for all. error, rtn_error, held_error, held_rtn_error: as
    in Diffused, (count,) float64, or None. stack[i]: the Diffused of one problem.
    """

    quantized: Quantized
    methods: tuple[str, ...]
    asked: str
    scale: str
    error: np.ndarray | None
    rtn_error: np.ndarray | None
    held_error: np.ndarray | None = None
    held_rtn_error: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.methods)

    def __getitem__(self, problem: int) -> Diffused:
        number = range(len(self))[problem]
        errors = (self.error, self.rtn_error, self.held_error, self.held_rtn_error)
        errors = (None if several is None else float(several[number]) for several in errors)
        one = _problem(self.quantized, number)
        return Diffused(one, self.methods[number], self.asked, self.scale, *errors)

    def __iter__(self) -> Iterator[Diffused]:
        return (self[problem] for problem in range(len(self)))


def diffuse_stack(w, grams: GramStack, dtype="mxfp4", method="ed", axis=-1, scale="search", recipe=None,
                  rounding=None, tensor_scale=None, held: GramStack | None = None,
                  errors=True) -> DiffusedStack:
    """Quantise the weights of several problems by the inputs that each meets: each as `diffuse_gram` would.

    w: (count, rows, columns) floats, or (count, columns, rows) with axis=1: `axis` is that of the inputs.
    held: direct cast is kept for every problem where it is better on these. Other arguments as in `diffuse`.
    What is above problems comes from the whole weight: the tensor scale of a two-level type, and the scale of
    a type with one for a tensor. Tiles of two dimensions begin anew in every problem.
    Raises InputError as `diffuse` does. Spec: ED-1 to ED-10.
    """
    method, block = method_named(method), data_type(dtype)
    one_of(scale, SCALES, "scale")
    w, axis = _weights(w, axis)
    grams, held = _sums(grams, w, "grams"), None if held is None else _sums(held, w, "held")
    how, (count, rows, columns) = recipe_of(block, recipe), w.shape
    step = together(block, count, rows)
    if block.outer and tensor_scale is None and step < count:
        tensor_scale = quantize(w.reshape(-1, columns), block, 1, rounding, how).tensor_scale
    done = []
    for start in range(0, count, step):
        some = slice(start, min(start + step, count))
        flat = np.ascontiguousarray(w[some]).reshape(-1, columns)
        grid = Grid(flat, block, how, 1, tensor_scale, rounding)
        done.append(_several(grid, flat, some, grams, held, method, scale, errors))
    quantized, worse, *found = zip(*done)
    found = (None if parts[0] is None else np.concatenate(parts) for parts in found)
    methods = tuple("rtn" if one else method.name for one in np.concatenate(worse))
    return DiffusedStack(_joined(quantized, w.shape, axis), methods, method.name,
                         scale_used(grid, method, scale), *found)


def together(block: Block, count: int, rows: int) -> int:
    """How many problems are coded together: none where they would share tiles, all that share one scale."""
    across = sides(block.tile)[0] if block.scale else 1
    if block.tile == "tensor":
        return count
    if across == "channel" or rows % across:
        return 1
    return min(count, max(1, LINES // rows))


def _several(grid: Grid, flat, some: slice, grams: GramStack, held, method: Method, scale: str, wanted: bool):
    """Problems whose rows make one grid: Quantized, where direct cast was better, and four errors of each."""
    count = some.stop - some.start
    lines = grid.lines(flat, np.float64)
    sums = grams[some.start] if count == 1 else grams.part(some)
    coded = coded_by(method, sums, lines, grid, scale_used(grid, method, scale))
    quantized = grid.quantized(coded.codes, coded.choices) if coded.choices else grid.direct
    worse, errors = np.zeros(count, bool), [None] * 4
    if held is not None or wanted:
        met = coded.errors
        met = None if met is None else np.maximum(met.reshape(count, -1).sum(axis=1), 0.0)
        parts = (array.reshape(grid.columns, count, -1).transpose(1, 0, 2)
                 for array in (lines, coded.values, direct(grid).values))
        errors = errors_of(met, grams.part(some) if wanted else None, held and held.part(some), *parts)
    if held is not None:
        worse = errors[3] < errors[2]
        quantized = _either(worse, grid.direct, quantized)
        errors[0] = np.where(worse, errors[1], errors[0]) if wanted else None
    return quantized, worse, *errors


# ------------------------------------------------------------------------------------------------------------
# codes and scales of several problems

def _each(change, *several: Quantized) -> Quantized:
    """The first of them, each of its arrays replaced by what becomes of that array of all of them."""
    def changed(name):
        return None if getattr(several[0], name) is None else change(*(getattr(q, name) for q in several))
    offsets = tuple(change(*parts) for parts in zip(*(q.offsets for q in several)))
    names = "codes", "scales", "zeros", "tables", "mask"
    return replace(several[0], offsets=offsets, **{name: changed(name) for name in names})


def _either(which, yes: Quantized, no: Quantized) -> Quantized:
    """For each problem one of two, (rows of all problems, columns)."""
    def pick(a, b):
        lines = len(a) // len(which)            # none where all share one scale, which is the same in both
        return np.where(np.repeat(which, lines)[:, None], a, b) if lines else b
    return _each(pick, yes, no) if which.any() else no


def _joined(parts, shape, axis: int) -> Quantized:
    """Runs of problems, row after row, as one array of the shape of the weights."""
    count, rows, columns = shape

    def join(*arrays):
        lines = np.concatenate(arrays)
        lines = lines.reshape(min(count, len(lines)), -1, lines.shape[1])
        return lines if axis == 2 else np.ascontiguousarray(lines.swapaxes(1, 2))
    made = _each(join, *parts)
    axes = (3 - axis, axis) if isinstance(made.dtype.tile, tuple) else axis
    return replace(made, shape=shape if axis == 2 else (count, columns, rows), axis=axes)


def _problem(q: Quantized, number: int) -> Quantized:
    """One problem of a result."""
    made = _each(lambda array: array[number if len(array) > 1 else 0], q)
    axis = tuple(a - 1 for a in q.axis) if isinstance(q.axis, tuple) else q.axis - 1
    return replace(made, shape=q.shape[1:], axis=axis)


# ------------------------------------------------------------------------------------------------------------
# arguments

def _weights(w, axis):
    """(w as (count, rows, columns), the axis that inputs lie along)."""
    w = np.asarray(w)
    if w.ndim != 3 or 0 in w.shape:
        raise InputError(f"w must be an array of shape (count, rows, columns), none of them 0, got the shape "
                         f"{w.shape}")
    axis = one_axis(w.shape, axis)
    if axis == 0:
        raise InputError("axis 0 counts problems; inputs lie along axis 1 or 2")
    as_stream(w, "w", 3)
    return w if axis == 2 else w.swapaxes(1, 2), axis


def _sums(grams, w, name: str) -> GramStack:
    """The sums given. Raises InputError where they are no GramStack, not of these problems, or of no rows."""
    if not isinstance(grams, GramStack):
        raise InputError(f"{name} must be a GramStack, got {type(grams).__name__}")
    if (len(grams), grams.columns) != (len(w), w.shape[2]):
        raise InputError(f"{name} has {len(grams)} problems of {grams.columns} columns, but the weight has "
                         f"{len(w)} of {w.shape[2]}")
    if not grams.rows:
        raise InputError(f"{name} has 0 rows; at least 1 is needed")
    return grams
