"""One weight coded by what its layer meets: part by part, and put together again.

Parts (a Conv's groups, an LSTM's directions, and pieces of the rows of a large matrix) are problems of their
own, and each is guarded: direct cast stands where it does better on rows held back. Spec: MODEL-5.
"""

from dataclasses import dataclass, replace

import numpy as np

from refq.blocks.quantize import Quantized
from refq.blocks.rows import Block
from refq.diffusion.diffuse import Diffused, diffuse_gram
from refq.diffusion.stack import DiffusedStack, diffuse_stack
from refq.models.choices import Casting, Choice
from refq.models.layers import Form, canonical
from refq.models.walk import Inputs
from refq.models.workers import Workers

ROWS = 2048                 # of a matrix that are coded at a time: fewer, and threads wait for each other
FIELDS = ("codes", "scales", "zeros", "tables")


@dataclass(frozen=True)
class Errors:
    """Sums over the rows held back (OutputErrors in refq.models.report says what they are), and counts of the
    parts of which direct cast was kept."""

    signal: float = 0.0
    rtn: float = 0.0
    asked: float = 0.0
    kept: float = 0.0
    local: float = 0.0
    inherited: float = 0.0
    parts: int = 0
    direct: int = 0

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Coded:
    """A weight in its new data type. rows: of input of each product that the codes come from. held: that the
    errors were measured on, 0 where it was those. seconds: that it took."""

    q: Quantized
    errors: Errors | None = None
    rows: int = 0
    held: int = 0
    seconds: float = 0.0


def whole_only(block: Block, form: Form) -> str:
    """Why a data type cannot be diffused in a layer of several products; "" where it can: its scales would
    span products."""
    if block.scale is None or form.products == 1 and len(form.parts()) == 1:
        return ""
    if block.tile == "tensor":
        return f"{block.name} has one scale for all products of the layer: cast directly"
    uncut = all(part.where[-1] == slice(None) for part in form.parts())
    return "" if uncut or not isinstance(block.tile, tuple) else \
        f"tiles of {block.name} span products of the layer: cast directly"


def solve(matrix: np.ndarray, direct: Quantized, form: Form, inputs: Inputs, choice: Choice, casting: Casting,
          workers: Workers) -> Coded:
    """A weight's codes.

    matrix: in the view of any layer that shares the weight; direct: its direct cast. form: of the layer that
    `inputs` are of. All these layers have one matrix once the axis summed over is the last.
    """
    axis = direct.axis[-1] if isinstance(direct.axis, tuple) else direct.axis
    pieces = list(_pieces(form, direct.dtype))
    source, made = canonical(matrix, axis), _Assembly(direct, axis)
    settings = {"dtype": choice.block, "method": choice.method, "recipe": casting.recipe,
                "rounding": casting.rounding, "tensor_scale": direct.tensor_scale}

    def one(task):
        part, w = task
        fit, held = inputs.fit[part.product], inputs.held[part.product]
        found = diffuse_gram(w, fit, held=held, errors=False, **settings)
        return part.where, found.quantized, _errors(w, found, held)
    many = [source[part.where].reshape(-1, form.columns) for part in pieces]
    if len(many) > 1 and [part.product for part in pieces] == list(range(form.products)) and _alike(many):
        w = np.stack(many)                      # the parts in order are the whole
        found = diffuse_stack(w, inputs.fit, held=inputs.held, errors=False, **settings)
        results = [((...,), found.quantized, _errors(w, found, inputs.held))]
    else:
        results = workers.map(one, zip(pieces, many))
    total = Errors()
    for where, quantized, errors in results:
        made.put(where, quantized)
        total += errors
    held = 0 if inputs.held is inputs.fit else inputs.held.rows
    return Coded(made.quantized(), total, inputs.fit.rows, held)


def _alike(matrices: list[np.ndarray]) -> bool:
    """Whether several problems, one a product, have one shape."""
    return len({matrix.shape for matrix in matrices}) == 1


def _pieces(form: Form, block: Block):
    """The parts of a form, those of many rows cut where tiles allow it."""
    for part in form.parts():
        rows = part.where[-1] if part.where else slice(0, 1)
        start, stop, _ = rows.indices(form.shape[-2] if part.where else 1)
        if isinstance(block.tile, tuple) or block.tile == "tensor" or stop - start <= ROWS:
            yield part
            continue
        for first in range(start, stop, ROWS):
            yield replace(part, where=(*part.where[:-1], slice(first, min(first + ROWS, stop))))


def _errors(w: np.ndarray, found: Diffused | DiffusedStack, held) -> Errors:
    w, q = w.astype(np.float64), found.quantized.dequantize(np.float64)
    methods = found.methods if isinstance(found, DiffusedStack) else (found.method,)
    asked, rtn = found.held_error, found.held_rtn_error
    sums = held.signal(w), rtn, asked, np.minimum(asked, rtn), held.local(w, q), held.inherited(w)
    return Errors(*(float(np.sum(part)) for part in sums), len(methods),
                  sum(method != found.asked for method in methods))


class _Assembly:
    """A Quantized put together from those of its parts, in the place of its direct cast."""

    def __init__(self, direct: Quantized, axis: int):
        self.direct, self.axis = direct, axis
        self.arrays = {name: self._copy(getattr(direct, name)) for name in FIELDS}
        self.offsets = [self._copy(part) for part in direct.offsets]

    def _copy(self, array):
        return None if array is None else canonical(array, self.axis).copy()

    def put(self, where: tuple, part: Quantized) -> None:
        for name, array in self.arrays.items():
            if array is not None:
                array[where] = getattr(part, name).reshape(array[where].shape)
        for array, own in zip(self.offsets, part.offsets, strict=True):
            array[where] = own.reshape(array[where].shape)

    def quantized(self) -> Quantized:
        back = {name: self._back(array) for name, array in self.arrays.items()}
        return replace(self.direct, offsets=tuple(map(self._back, self.offsets)), **back)

    def _back(self, array):
        return None if array is None else np.ascontiguousarray(np.moveaxis(array, -1, self.axis))
