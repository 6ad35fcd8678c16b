"""LSTM, GRU and RNN with every attribute that ONNX gives them.

A cell is a function (what the inputs give to its gates at one step [N, gates * H], state) -> state, a state a
tuple of arrays [N, H] of which the first is h.
"""

import numpy as np
from onnx.reference.op_run import OpRun

from refq.models.operators_windows import wide

# name -> (function of x, alpha and beta; the defaults of those it takes, None where ONNX has none)
ACTIVATIONS = {
    "sigmoid": (lambda x: _sigmoid(x), ()),
    "tanh": (np.tanh, ()),
    "relu": (lambda x: np.maximum(x, 0), ()),
    "softsign": (lambda x: x / (1 + np.abs(x)), ()),
    "softplus": (lambda x: np.logaddexp(x, x.dtype.type(0)), ()),
    "leakyrelu": (lambda x, alpha: np.where(x >= 0, x, alpha * x), (0.01,)),
    "thresholdedrelu": (lambda x, alpha: np.where(x > alpha, x, x.dtype.type(0)), (1.0,)),
    "elu": (lambda x, alpha: np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))), (1.0,)),
    "affine": (lambda x, alpha, beta: alpha * x + beta, (1.0, 0.0)),
    "scaledtanh": (lambda x, alpha, beta: alpha * np.tanh(beta * x), (None, None)),
    "hardsigmoid": (lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1), (0.2, 0.5)),
}


def _sigmoid(x):
    half = x.dtype.type(0.5)
    return half * np.tanh(half * x) + half


def activations(names, alphas, betas, limits, dtype):
    """The functions of the given names. Those that have numbers take them in turn from `alphas` and `betas`;
    what goes into a function is held within its entry of `limits` (or None)."""
    alphas, betas, made = list(alphas or ()), list(betas or ()), []
    for name, limit in zip(names, limits, strict=True):
        if name.lower() not in ACTIVATIONS:
            raise ValueError(f"activation {name!r} is none of {', '.join(ACTIVATIONS)}")
        function, defaults = ACTIVATIONS[name.lower()]
        numbers = [given.pop(0) if given else default for given, default in zip((alphas, betas), defaults)]
        if None in numbers:
            raise ValueError(f"activation {name!r} needs activation_alpha and activation_beta")
        made.append(_bounded(function, [dtype.type(number) for number in numbers], limit))
    return made


def _bounded(function, numbers, limit):
    def apply(x):
        return function(x if limit is None else np.clip(x, -limit, limit), *numbers)

    return apply


# -- cells: weights of one direction and activations -> (what one step does, the bias of its gates) ----------

def lstm_cell(r, b, p, functions, input_forget):
    """Gates i, o, f, c; peepholes p i, o, f. State (h, c)."""
    f, g, h_of = functions
    r, p_i, p_o, p_f = r.T.copy(), *np.split(p, 3)

    def step(gates, state):
        h, c = state
        i, o, forget, new = np.split(gates + h @ r, 4, axis=1)
        i = f(i + p_i * c)
        forget = 1 - i if input_forget else f(forget + p_f * c)
        c = forget * c + i * g(new)
        return f(o + p_o * c) * h_of(c), c

    return step, b.reshape(2, -1).sum(axis=0)


def gru_cell(r, b, functions, linear_before_reset):
    """Gates z, r, h. State (h,). With linear_before_reset, the reset gate scales R h and its bias, without,
    it scales h."""
    f, g = functions
    of_input, of_state = b.reshape(2, 3, -1)
    size = of_state.shape[1]
    gates_r, hidden_r = r[: 2 * size].T.copy(), r[2 * size :].T.copy()
    bias = of_input + of_state
    if linear_before_reset:
        bias[2] = of_input[2]

    def step(gates, state):
        (h,) = state
        z, reset = np.split(f(gates[:, : 2 * size] + h @ gates_r), 2, axis=1)
        recurrent = reset * (h @ hidden_r + of_state[2]) if linear_before_reset else (reset * h) @ hidden_r
        return ((1 - z) * g(gates[:, 2 * size :] + recurrent) + z * h,)

    return step, bias.ravel()


def rnn_cell(r, b, functions):
    """One gate. State (h,)."""
    (f,), r = functions, r.T.copy()
    return lambda gates, state: (f(gates + state[0] @ r),), b.reshape(2, -1).sum(axis=0)


def unroll(step, gates, state, lengths=None, reverse=False):
    """(every h [S, N, H], the last state) of a cell over gates [S, N, ...].

    `lengths` [N]: how many steps each row has; after them h is 0, and the last state is that of the last
    step, 0 (as in onnxruntime) for a row without any.
    `reverse`: every row from its own end to its beginning, each h where its input was.
    """
    count, rows = gates.shape[:2]
    times = np.arange(count)[:, None]
    inside = np.ones((count, rows), bool) if lengths is None else times < lengths
    order = None
    if reverse:
        ends = np.full(rows, count) if lengths is None else lengths
        order = np.where(inside, ends - 1 - times, times)[..., None]
        gates = np.take_along_axis(gates, order, axis=0)
    every = np.zeros((count, *state[0].shape), gates.dtype)
    for time in range(count):
        new = step(gates[time], state)
        if inside[time].all():
            every[time], state = new[0], new
            continue
        active = inside[time, :, None]
        np.copyto(every[time], new[0], where=active)
        state = tuple(np.where(active, after, before) for after, before in zip(new, state))
    if lengths is not None:
        state = tuple(np.where(lengths[:, None] > 0, array, array.dtype.type(0)) for array in state)
    return (np.take_along_axis(every, order, axis=0) if reverse else every), state


# -- the operators -------------------------------------------------------------------------------------------

class _Recurrent(OpRun):
    """What the three have in common: directions, lengths, states, layout."""

    def _directions(self, cell, functions, x, w, r, b, lengths, states, *, gates, direction, layout):
        """Outputs (Y, the last states...) of `cell(direction number, r, b, functions)`, in x's dtype.

        functions: (names, default names, alphas, betas, clip). states: initial ones or None.
        """
        count, size, dtype = len(w), r.shape[2], x.dtype
        x, w, r, b, *states = wide(x, w, r, b, *states)
        if layout:
            x = x.swapaxes(0, 1)
            states = [state if state is None else state.swapaxes(0, 1) for state in states]
        if count != (2 if direction == "bidirectional" else 1):
            raise ValueError(f"weights of {count} direction(s) do not fit direction {direction!r}")
        if w.shape[1] != gates * size or r.shape[1] != gates * size or w.shape[2] != x.shape[2]:
            raise ValueError(f"input {x.shape} and weights {w.shape} and {r.shape} do not fit each other")
        if lengths is not None and (lengths.shape != x.shape[1:2] or lengths.min(initial=0) < 0
                                    or lengths.max(initial=0) > len(x)):
            raise ValueError(f"sequence_lens {lengths.tolist()} do not fit an input of {x.shape}")
        names, default, alphas, betas, clip = functions
        names = (names or default * count)[: count * len(default)]
        if len(names) != count * len(default):
            raise ValueError(f"{len(names)} activations given for {count} times {len(default)}")
        # clip holds what goes into the gates; the third of LSTM is what comes out of the cell
        limits = [None if clip is None or position % len(default) == 2 else x.dtype.type(clip)
                  for position in range(len(names))]
        made = activations(names, alphas, betas, limits, x.dtype)
        b = np.zeros((count, 2 * gates * size), x.dtype) if b is None else b
        zero = np.zeros((count, x.shape[1], size), x.dtype)
        states = [zero if state is None else state for state in states]
        results = []
        for d in range(count):
            own = made[d * len(default) : (d + 1) * len(default)]
            step, bias = cell(d, r[d], b[d], own)
            backwards = direction == "reverse" or d == 1
            given = (x.reshape(-1, x.shape[2]) @ w[d].T + bias).reshape(*x.shape[:2], -1)
            every, last = unroll(step, given, tuple(s[d] for s in states), lengths, backwards)
            results.append((every, *last))
        every, *last = zip(*results)
        outputs = [np.stack(every, axis=1), *(np.stack(state) for state in last)]
        if layout:
            outputs = [outputs[0].transpose(2, 0, 1, 3), *(state.swapaxes(0, 1) for state in outputs[1:])]
        return tuple(output.astype(dtype, copy=False) for output in outputs)[: len(self.output)]


class LSTM(_Recurrent):
    """LSTM: Y, Y_h, Y_c."""

    def _run(self, x, w, r, b=None, lengths=None, h=None, c=None, p=None, activation_alpha=None,
             activation_beta=None, activations=None, clip=None, direction=None, hidden_size=None,
             input_forget=None, layout=None):
        p = np.zeros((len(w), 3 * r.shape[2]), x.dtype) if p is None else p
        (p,) = wide(p)
        functions = (activations, ["Sigmoid", "Tanh", "Tanh"], activation_alpha, activation_beta, clip)
        return self._directions(lambda d, r, b, own: lstm_cell(r, b, p[d], own, input_forget), functions,
                                x, w, r, b, lengths, (h, c), gates=4, direction=direction, layout=layout)


class GRU(_Recurrent):
    """GRU: Y, Y_h."""

    def _run(self, x, w, r, b=None, lengths=None, h=None, activation_alpha=None, activation_beta=None,
             activations=None, clip=None, direction=None, hidden_size=None, layout=None,
             linear_before_reset=None):
        functions = (activations, ["Sigmoid", "Tanh"], activation_alpha, activation_beta, clip)
        return self._directions(lambda d, r, b, own: gru_cell(r, b, own, linear_before_reset), functions,
                                x, w, r, b, lengths, (h,), gates=3, direction=direction, layout=layout)


class RNN(_Recurrent):
    """RNN: Y, Y_h."""

    def _run(self, x, w, r, b=None, lengths=None, h=None, activation_alpha=None, activation_beta=None,
             activations=None, clip=None, direction=None, hidden_size=None, layout=None):
        functions = (activations, ["Tanh"], activation_alpha, activation_beta, clip)
        return self._directions(lambda d, r, b, own: rnn_cell(r, b, own), functions,
                                x, w, r, b, lengths, (h,), gates=1, direction=direction, layout=layout)
