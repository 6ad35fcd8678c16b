"""Quantise a weight array so that a layer's output, not each weight alone, comes out near (ED-1 to ED-11).

A layer computes O = X W^T: a sum of outer products, one a column of W. The residual U is what the output
still owes; each column is coded to pay what it can, and what it leaves is owed by the next.
"""

from dataclasses import dataclass

import numpy as np

from refq.blocks.quantize import Quantized
from refq.blocks.recipes import recipe_of
from refq.blocks.rows import data_type
from refq.blocks.tiles import one_axis
from refq.diffusion.columns import Coded, code_columns
from refq.diffusion.gram import Gram, Sums, as_stream, as_streams, block_errors
from refq.diffusion.grid import Grid
from refq.diffusion.methods import METHODS, Method, method_named
from refq.diffusion.residual import code_by_residual
from refq.errors import InputError

SCALES = {
    "weights": "the data type's rule on the block's weights",
    "target": "the data type's rule on what the block's columns would be if it lost nothing itself",
    "search": "of the weights' scale and those next to it the one that leaves the least output error",
}
FORMS = {
    "gram": "from sums of products of the inputs",
    "residual": "by the definition; the residual is kept whole",
}


@dataclass(frozen=True)
class Step:
    """One block of a trace. columns: its first and the one after its last. taken: for every tile from the top
    row down the candidate scale it took, 0 for the rule's own. scales: their codes, or None where nothing has
    a scale.
    error: the output error of all columns up to here."""

    columns: tuple[int, int]
    taken: np.ndarray
    scales: np.ndarray | None
    error: float


@dataclass(frozen=True)
class Diffused:
    """A weight array, quantised beside its inputs.

    quantized: as `quantize` makes it. method: what its codes come from; "rtn" where that was better on
    held-back rows than the method asked for. asked: that one. scale: where blocks' scales came from, a key of
    SCALES; "weights" where there was nothing to choose. error, rtn_error: ||X W^T - X^ Q^T||^2 on the rows
    given, of `quantized` and of direct cast, or None. held_error, held_rtn_error: of the method asked for and
    of direct cast on the rows held back, or None. trace: a Step a block, or None.
    """

    quantized: Quantized
    method: str
    asked: str
    scale: str
    error: float | None
    rtn_error: float | None
    held_error: float | None = None
    held_rtn_error: float | None = None
    trace: tuple[Step, ...] | None = None


def diffuse(w, x, x_hat=None, dtype="mxfp4", method="ed", axis=-1, scale="search", recipe=None,
            tensor_scale=None, held=None, trace=False, errors=True, form="gram", rounding=None) -> Diffused:
    """Quantise the weights of a layer O = X W^T by the inputs that it meets.

    w: (outputs, inputs) floats of any dtype and layout, or (inputs, outputs) with axis=0: `axis` is the one
    that inputs lie along.
    x: (rows, inputs) float: inputs in the float model; or a Gram that has them summed up, and no x_hat.
    x_hat: the same rows in the partly quantised model; None: they are x.
    dtype: a data type's name or row. method: a key of METHODS. scale: a key of SCALES. recipe, tensor_scale:
    as in `quantize`, and rounding, but for the stochastic ones. held: rows kept back, x or (x, x_hat) or a
    Gram; direct cast is returned where it is better on them. trace: whether to return what happened block by
    block. errors: whether to work out the errors on x: one to three products of the size of the codes' own.
    form: a key of FORMS.
    Rows are independent of each other but for tiles of two dimensions, a tensor's scale and the guard: parts
    of w may be coded in several threads beside one Gram, which works out once what they have in common.
    Raises InputError for shapes that do not fit, NaN and infinities, no rows and unknown names.
    Spec: ED-1 to ED-11.
    """
    method, block = method_named(method), data_type(dtype)
    one_of(scale, SCALES, "scale")
    one_of(form, FORMS, "form")
    w, axis = _weights(w, axis)
    grid = Grid(w, block, recipe_of(block, recipe), axis, tensor_scale, rounding)
    lines = grid.lines(w, np.float64)
    gram = _gram(x, x_hat, grid.columns, "x")
    if held is not None:
        held = _gram(*(held if isinstance(held, tuple) else (held, None)), grid.columns, "held")
    scale = scale_used(grid, method, scale)
    if form == "residual":
        if method.name != "ed" or isinstance(x, Gram):
            raise InputError("the residual form is the definition of method 'ed' and needs x itself; "
                             f"got method {method.name!r}")
        streams = as_streams(x, x if x_hat is None else x_hat, (), grid.columns)
        streams = (np.ascontiguousarray(stream, np.float64) for stream in streams)
        coded = code_by_residual(lines, *streams, grid, scale)[0]
    else:
        coded = coded_by(method, gram, lines, grid, scale)
    return _result(grid, method.name, scale, coded, gram, held, lines, trace, errors)


def diffuse_gram(w, gram: Gram, dtype="mxfp4", method="ed", axis=-1, scale="search", recipe=None,
                 tensor_scale=None, held=None, trace=False, errors=True, rounding=None) -> Diffused:
    """As `diffuse`, from Gram matrices summed over batches. Spec: ED-7."""
    if not isinstance(gram, Gram):
        raise InputError(f"gram must be a Gram, got {type(gram).__name__}; diffuse takes inputs as they are")
    return diffuse(w, gram, None, dtype, method, axis, scale, recipe, tensor_scale, held, trace, errors,
                   rounding=rounding)


def one_of(word, known, what: str):
    """Raises InputError for a word that is not among the known ones."""
    if not isinstance(word, str) or word not in known:
        raise InputError(f"{what} {word!r} is not known; allowed are {', '.join(known)}")


def scale_used(grid: Grid, method: Method, scale: str) -> str:
    """The key of SCALES that holds, which is "weights" where there is nothing to choose."""
    return scale if grid.movable and method.plan and (scale != "search" or grid.plain) else "weights"


def coded_by(method: Method, sums: Sums, lines, grid: Grid, scale: str) -> Coded:
    """All columns of a grid by a method. scale: as scale_used says."""
    return code_columns(method.plan(sums, lines), grid, scale) if method.plan else direct(grid)


def direct(grid: Grid) -> Coded:
    """Direct cast as the loop would give it. Spec: ED-6."""
    return Coded(grid.lines(grid.direct.codes), grid.lines(grid.direct.dequantize(np.float64)), [], [])


def errors_of(met, sums: Sums | None, held: Sums | None, w, values, others):
    """(error, rtn_error, held_error, held_rtn_error): None where there are no sums.

    met: the output error where it is known, or None. w, values, others: weights, what codes mean, what those
    of direct cast mean: all (..., columns, rows).
    """
    found = [None] * 4
    if held is not None:
        found[2:] = held.errors(w, values, others)
    if sums is not None:
        found[:2] = sums.errors(w, values, others) if met is None else (met, *sums.errors(w, others))
    return found


def _result(grid: Grid, asked: str, scale: str, coded: Coded, gram: Gram, held, lines, trace,
            wanted) -> Diffused:
    quantized = grid.quantized(coded.codes, coded.choices) if coded.choices else grid.direct
    used, errors = asked, [None] * 4
    if held is not None or wanted:
        cast = direct(grid)
        met = None if coded.errors is None else max(float(coded.errors.sum()), 0.0)
        errors = errors_of(met, gram if wanted else None, held, lines, coded.values, cast.values)
        if held is not None and errors[3] < errors[2]:
            used, quantized, coded, errors[0] = "rtn", grid.direct, cast, errors[1]
    steps = _trace(grid, coded, gram, lines) if trace else None
    return Diffused(quantized, used, asked, scale, *errors, steps)


def _trace(grid: Grid, coded: Coded, gram: Gram, lines):
    errors = block_errors(gram, lines, coded.values, grid.edges)
    choices = coded.choices or [None] * len(errors)
    taken = coded.taken or [np.zeros(1, np.intp)] * len(errors)
    return tuple(Step((start, stop), which, None if choice is None else choice.codes, error)
                 for start, stop, which, choice, error in
                 zip(grid.edges, grid.edges[1:], taken, choices, errors))


def _weights(w, axis):
    """(w, axis from 0) of a (outputs, inputs) array."""
    w = np.asarray(w)
    if w.ndim != 2 or 0 in w.shape:
        raise InputError("w must be an array of shape (outputs, inputs), none of them 0, "
                         f"got the shape {w.shape}")
    axis = one_axis(w.shape, axis)
    as_stream(w, "w")
    return w, axis


def _gram(x, x_hat, columns: int, name: str) -> Gram:
    """Gram matrices of the inputs given, or those given. Raises InputError where there are no rows."""
    if isinstance(x, Gram):
        if x_hat is not None:
            raise InputError(f"{name} is a Gram, which has both streams: x_hat must be None")
        gram = x
        if gram.columns != columns:
            raise InputError(f"{name} has {gram.columns} columns, but the layer has {columns} inputs")
    else:
        gram = Gram(columns)
        gram.update(x, x_hat)
    if not gram.rows:
        raise InputError(f"{name} has 0 rows; at least 1 is needed")
    return gram


__all__ = ["METHODS", "SCALES", "Diffused", "Gram", "Step", "diffuse", "diffuse_gram"]
