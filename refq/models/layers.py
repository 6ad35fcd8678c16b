"""Layers as matrix products: the inputs that each row of a weight matrix meets.

A layer's weight is a matrix [..., rows, columns] (View, its reduction axis last); some operators are several
products side by side, as the groups of a Conv or the matrices of a batched MatMul are. A `Form` says which
rows belong to which product (`parts`) and gives the inputs of all products as one array
[products, rows of input, columns], piece by piece so that no piece is large. Spec: MODEL-2.
"""

import itertools
import math
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from refq.models.operators_recurrent import activations
from refq.models.operators_windows import Window, transposed_window, wide, window
from refq.models.weights import RECURRENT, WeightSite, einsum_labels, einsum_terms

SHAPED = "output_padding", "output_shape"       # attributes of ConvTranspose alone
PIECE = 1 << 22             # numbers of one piece of inputs, about
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
Read = Callable[[int], np.ndarray | None]       # operand number -> its value in one stream


@dataclass(frozen=True)
class Part:
    """Rows of the matrix, by an index into [..., rows, columns], and the number of their product."""

    where: tuple
    product: int


class Form:
    """One weight as products. products: how many; columns: of each. needs_outputs: whether inputs are known
    only once the node ran (states of recurrent layers)."""

    needs_outputs = False

    def __init__(self, site: WeightSite):
        shape = site.view.matrix_shape(site.stored_shape)
        self.site, self.axis = site, site.view.axis
        self.shape = tuple(np.delete(shape, self.axis)) + (shape[self.axis],)    # the axis summed over last
        self.columns = int(self.shape[-1])
        self.lead = tuple(map(int, self.shape[:-2]))
        self.products = math.prod(self.lead)

    def parts(self) -> list[Part]:
        """Every row of the matrix once; by default a product for every index before the rows."""
        rows = (slice(None),) if len(self.shape) > 1 else ()
        return [Part((*where, *rows), number)
                for number, where in enumerate(itertools.product(*map(range, self.lead)))]

    def inputs(self, read: Read, output: np.ndarray | None) -> Iterator[np.ndarray]:
        """Pieces [products, rows, columns] of what the products meet in one stream. output: the node's first,
        where that is needed."""
        raise NotImplementedError

    def meets(self) -> tuple | None:
        """Equal for layers of the main graph that meet equal inputs; None: for no other."""
        return None

    def row_count(self, output: np.ndarray) -> int:
        """Rows of input of each product, by the size of the node's first output."""
        return output.size * self.columns // math.prod(self.shape)


def form_of(site: WeightSite) -> Form:
    """The Form of a site that has a view."""
    return FORMS[site.node.op](site)


def canonical(array: np.ndarray, axis: int) -> np.ndarray:
    """A view with the reduction axis last: [..., rows, columns]."""
    return np.moveaxis(array, axis, -1)


def _cut(x: np.ndarray) -> Iterator[np.ndarray]:
    """[products, rows, columns] in pieces of about PIECE numbers."""
    step = max(1, PIECE // max(1, x.shape[0] * x.shape[2]))
    for start in range(0, x.shape[1], step):
        yield x[:, start:start + step]


# -- MatMul, Gemm, Einsum ------------------------------------------------------------------------------------

class MatMulForm(Form):
    """MatMul and Gemm: X W, or W X, where the rows are those of X transposed."""

    def inputs(self, read, output):
        x = read(1 - self.site.operand)
        if self._turned() and x.ndim > 1:
            x = x.swapaxes(-1, -2)
        yield from _cut(self._matched(x.reshape(1, -1) if x.ndim == 1 else x))

    def meets(self):
        return "MatMul", self._other, self._turned(), self.lead, self.columns

    @property
    def _other(self) -> str:
        """The name of the operand that is no weight."""
        return self.site.node.proto.input[1 - self.site.operand]

    def _turned(self) -> bool:
        """Whether the rows are those of the other operand transposed."""
        return self._transposes() != (self.site.operand == 0)

    def _transposes(self) -> bool:
        """Whether Gemm turns the operand that is no weight."""
        name = "transB" if self.site.operand == 0 else "transA"
        return self.site.node.op == "Gemm" and bool(self.site.node.attribute(name, 0))

    def _matched(self, x: np.ndarray) -> np.ndarray:
        """[..., rows, columns] against the weight's leading axes: [products, rows, columns]."""
        if not self.lead:
            return x.reshape(1, -1, self.columns)
        batch = np.broadcast_shapes(x.shape[:-2], self.lead)
        x = np.broadcast_to(x, (*batch, *x.shape[-2:]))
        lead = (*(1,) * (len(batch) - len(self.lead)), *self.lead)
        own = [axis for axis, size in enumerate(lead) if size > 1]
        others = [axis for axis in range(len(batch)) if axis not in own]
        x = x.transpose(*own, *others, x.ndim - 2, x.ndim - 1)
        return x.reshape(self.products, -1, self.columns)


class EinsumForm(Form):
    """Einsum: the other operands multiplied into [batch..., whatever..., summed over]."""

    def inputs(self, read, output):
        node, operand = self.site.node, self.site.operand
        equation = node.attribute("equation").decode()
        batch, rows, summed = einsum_labels(equation, operand)
        terms, result = einsum_terms(equation)
        sizes = dict(zip(terms.pop(operand), self.site.stored_shape))
        others = wide(*(read(i) for i in range(len(terms) + 1) if i != operand))
        terms, result = _written_out(terms, result, others)
        wanted = batch + "".join(label for label in result if label not in batch + rows) + summed
        alone = "".join(label for label in summed if label not in "".join(terms))
        if alone:                               # sums over the weight by itself: every row meets ones
            ones = np.ones([sizes[label] for label in alone], others[0].dtype)
            terms, others = [*terms, alone], [*others, ones]
        x = np.einsum(f"{','.join(terms)}->{wanted}", *others)
        yield from _cut(x.reshape(self.products, -1, self.columns))


def _written_out(terms: list[str], result: str, operands) -> tuple[list[str], str]:
    """Terms and result with labels in place of "...", aligned at the last axis as broadcasting does."""
    unused = [label for label in string.ascii_letters if label not in "".join(terms) + result]
    counts = [value.ndim - len(term) + 3 if "..." in term else 0 for term, value in zip(terms, operands)]
    labels = unused[:max(counts, default=0)]

    def written(term, count):
        return term.replace("...", "".join(labels[len(labels) - count:]))
    return [written(term, count) for term, count in zip(terms, counts)], written(result, len(labels))


# -- Conv, ConvTranspose -------------------------------------------------------------------------------------

class ConvForm(Form):
    """Conv: rows are the places of the window, columns the channels of a group and the taps of its kernel."""

    def __init__(self, site: WeightSite):
        super().__init__(site)
        self.products = site.node.attribute("group", 1)

    def parts(self):
        size = self.shape[0] // self.products
        return [Part((slice(start, start + size),), number)
                for number, start in enumerate(range(0, self.shape[0], size))]

    def inputs(self, read, output):
        x = read(0)
        win, padded = self._window(x)
        spread, first = math.prod(win.places[1:]), win.places[0]
        one = x.shape[1] * math.prod(win.kernel) * spread       # numbers of one line of places
        lines = min(first, max(1, PIECE // one))
        samples = max(1, PIECE // (one * first)) if lines == first else 1
        for start in range(0, len(x), samples):
            taps = [tap[start:start + samples] for tap in self._taps(win, padded)]
            for line in range(0, first, lines):
                yield self._columns([tap[:, :, line:line + lines] for tap in taps])

    def meets(self):
        node, taps = self.site.node, self.site.stored_shape[2:]
        attributes = str(self._attributes(*SHAPED))
        return node.op, node.proto.input[0], taps, self.products, attributes, self.columns

    def _columns(self, taps: list[np.ndarray]) -> np.ndarray:
        """Taps [N, C, places...] as [groups, N * places, C / groups * taps]."""
        x = np.stack(taps)                                      # [taps, N, C, places...]
        x = x.reshape(len(taps), x.shape[1], self.products, -1, math.prod(x.shape[3:]))
        return x.transpose(2, 1, 4, 3, 0).reshape(self.products, -1, self.columns)

    def _attributes(self, *more: str) -> dict:
        names = ("strides", "dilations", "pads", "auto_pad", *more)
        given = {name: self.site.node.attribute(name) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        if "auto_pad" in given:
            given["auto_pad"] = given["auto_pad"].decode()
        return given

    def _window(self, x: np.ndarray) -> tuple[Window, np.ndarray]:
        win = window(x.shape[2:], self.site.stored_shape[2:], **self._attributes())
        return win, win.padded(x, 0)

    @staticmethod
    def _taps(win: Window, padded: np.ndarray) -> list[np.ndarray]:
        return list(win.taps(padded))


class ConvTransposeForm(ConvForm):
    """ConvTranspose as a Conv over its input with zeros between: every place of the output gathers, for each
    tap of the kernel, what lies `tap` places before it."""

    def _window(self, x):
        spatial = x.shape[2:]
        win, out = transposed_window(spatial, self.site.stored_shape[2:], **self._attributes(*SHAPED))
        reach = [(taps - 1) * dilation for taps, dilation in zip(win.kernel, win.dilations)]
        room = np.zeros((*x.shape[:2], *(size + more for size, more in zip(out, reach))), x.dtype)
        inside, taken = [], []
        axes = zip(spatial, win.strides, win.before, reach, room.shape[2:])
        for size, stride, before, more, length in axes:
            places = [i for i in range(size) if 0 <= i * stride - before + more < length]
            start = places[0] * stride - before + more if places else 0
            inside.append(slice(start, start + (len(places) - 1) * stride + 1 if places else 0, stride))
            taken.append(slice(places[0], places[-1] + 1) if places else slice(0, 0))
        room[(..., *inside)] = x[(..., *taken)]
        ones = (1,) * len(spatial)
        return Window(win.kernel, ones, win.dilations, (0,) * len(spatial), (0,) * len(spatial), out), room

    @staticmethod
    def _taps(win, padded):
        """The taps of a Conv over what is padded, the last first."""
        return list(win.taps(padded))[::-1]


# -- LSTM, GRU, RNN ------------------------------------------------------------------------------------------

class InputForm(Form):
    """W of a recurrent layer: the rows are its inputs, the same for every direction."""

    def __init__(self, site: WeightSite):
        super().__init__(site)
        self.products = 1

    def parts(self):
        return [Part((direction, slice(None)), 0) for direction in range(self.shape[0])]

    def inputs(self, read, output):
        x = _time_first(read(0), self.site)
        yield from _cut(x[_active(read, x)][None])

    def row_count(self, output):
        return super().row_count(output) * GATES[self.site.node.op]


class StateForm(Form):
    """R of a recurrent layer: the rows are the states before each step, of each direction its own.

    A GRU whose reset gate scales the state itself (linear_before_reset 0) has two products a direction: the
    gates z and r meet h, the candidate meets r * h.
    """

    needs_outputs = True

    def __init__(self, site: WeightSite):
        super().__init__(site)
        self.scaled = site.node.op == "GRU" and not site.node.attribute("linear_before_reset", 0)
        self.products = self.shape[0] * (2 if self.scaled else 1)

    def parts(self):
        if not self.scaled:
            return super().parts()
        gates = 2 * self.columns
        return [Part((direction, rows), 2 * direction + place) for direction in range(self.shape[0])
                for place, rows in enumerate((slice(0, gates), slice(gates, None)))]

    def inputs(self, read, output):
        x = _time_first(read(0), self.site)
        active = _active(read, x)
        every = output.transpose(1, 2, 0, 3) if self.site.node.attribute("layout", 0) else output
        before = np.stack([self._before(read, every[:, d], active, d)[active] for d in range(every.shape[1])])
        if self.scaled:
            rows = [(h, h * self._reset(read, x[active], h, d)) for d, h in enumerate(before)]
            before = np.stack([part for pair in rows for part in pair])
        yield from _cut(before)

    def row_count(self, output):
        return super().row_count(output) * GATES[self.site.node.op]

    def _before(self, read, every, active, direction) -> np.ndarray:
        """The state [S, N, H] before every step of one direction, from those after it."""
        initial = read(5)
        first = np.zeros(every.shape[1:], every.dtype)
        if initial is not None:
            first = initial[:, direction] if self.site.node.attribute("layout", 0) else initial[direction]
        backwards = direction == 1 or self.site.node.attribute("direction", b"forward") == b"reverse"
        if not backwards:
            return np.concatenate([first[None].astype(every.dtype), every[:-1]])
        found = np.concatenate([every[1:], every[:1]])
        last = active & ~np.concatenate([active[1:], np.zeros_like(active[:1])])
        return np.where(last[..., None], first, found)

    def _reset(self, read, x, h, direction) -> np.ndarray:
        """The reset gate for rows of inputs and states."""
        node, size = self.site.node, self.columns
        w, r, b = (None if read(i) is None else read(i)[direction] for i in (1, 2, 3))
        x, h, w, r, b = wide(x, h, w, r, b)
        gate = x @ w[size:2 * size].T + h @ r[size:2 * size].T
        if b is not None:
            gate = gate + b[size:2 * size] + b[4 * size:5 * size]
        count = self.shape[0]
        names = [name.decode() for name in node.attribute("activations", [])] or ["Sigmoid", "Tanh"] * count
        clip = node.attribute("clip")
        limits = [None if clip is None else gate.dtype.type(clip)] * len(names)
        given = node.attribute("activation_alpha"), node.attribute("activation_beta")
        function = activations(names, *given, limits, gate.dtype)[2 * direction]
        return function(gate)


def _time_first(x: np.ndarray, site: WeightSite) -> np.ndarray:
    return x.swapaxes(0, 1) if site.node.attribute("layout", 0) else x


def _active(read: Read, x: np.ndarray) -> np.ndarray:
    """[S, N]: the steps that rows take."""
    lengths = read(4)
    if lengths is None:
        return np.ones(x.shape[:2], bool)
    return np.arange(x.shape[0])[:, None] < lengths


def _recurrent(site: WeightSite) -> Form:
    return InputForm(site) if site.operand == 1 else StateForm(site)


FORMS = {"MatMul": MatMulForm, "Gemm": MatMulForm, "Einsum": EinsumForm, "Conv": ConvForm,
         "ConvTranspose": ConvTransposeForm, **dict.fromkeys(RECURRENT, _recurrent)}
