"""THE table of methods: what each wants a column of weights to be once earlier columns are coded.

All of them code columns in order, and column k from what the columns before it lost:

    v_k = w_k + (p_k + sum over j < k of B_kj (w_j - q_j)) / d_k        q_k = Q(v_k)

A method is the choice of w (the weights themselves, or a refit of them), of the matrix B with its diagonal d,
and of p. Error diffusion takes B from H itself; OPTQ from its triangular factor, which is what pushing every
error into all later columns by the inverse of H comes to (ED-8). Spec: ED-6, ED-8, ED-9.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refq.diffusion.gram import Gram
from refq.errors import InputError


@dataclass(frozen=True)
class Plan:
    """What the loop needs of a method; (columns, rows) arrays lie column by column.

    weights: (columns, rows), w above. below: B, of which the part below the diagonal is used. diagonal: d, 0
    for dead columns. drift: None, or the matrix of which p_k = sum over j <= k of drift_kj w_j. gaps: whether
    a block's loss is sum of (d_k (v_k - q_k))^2, d being a triangular factor's, and not the output error
    itself.
    """

    weights: np.ndarray
    below: np.ndarray
    diagonal: np.ndarray
    drift: np.ndarray | None = None
    gaps: bool = False


@dataclass(frozen=True)
class Method:
    """One method. plan: (Gram, weights) -> Plan; None: the direct cast, which needs no data."""

    name: str
    words: str
    clause: str
    ref: str = ""
    plan: Callable | None = None


def _diffusion(gram: Gram, w) -> Plan:
    """Spec: ED-1, ED-7."""
    return Plan(w, gram.h, np.diagonal(gram.h).copy(), None if gram.same else gram.g - gram.h)


def _optq(gram: Gram, w) -> Plan:
    """Spec: ED-8."""
    diagonal = np.diagonal(gram.h)
    factor = _factor(gram.h, OPTQ_DAMPING * diagonal.mean())
    return _factored(gram, w, factor)


def _qronos(gram: Gram, w) -> Plan:
    """Spec: ED-9."""
    damping = QRONOS_DAMPING * largest_eigenvalue(gram.h)
    factor = _factor(gram.h, damping)
    return _factored(gram, w if gram.same else _refit(gram, w, factor, damping), factor)


OPTQ_DAMPING = 0.01         # of the mean of H's diagonal: GPTQ's percdamp
QRONOS_DAMPING = 1e-6       # of H's largest eigenvalue: Brevitas' alpha

METHODS: dict[str, Method] = {method.name: method for method in [
    Method("rtn", "direct cast: every weight to the nearest value, inputs not looked at", "ED-6"),
    Method("ed", "error diffusion: each column takes over what the columns before it lost of the output",
           "ED-1", "Khodamoradi, Denolf, Dellinger: Error Diffusion", _diffusion),
    Method("gptq", "each column's error is pushed into all later columns through the inverse of H",
           "ED-8", "Frantar et al.: OPTQ", _optq),
    Method("qronos", "weights are refitted to the quantised stream, then coded as by gptq",
           "ED-9", "Zhang, Zhang, Colbert, Saab: Qronos", _qronos),
]}


def method_named(name) -> Method:
    """The method of that name. Raises InputError for an unknown one."""
    if not isinstance(name, str) or name not in METHODS:
        raise InputError(f"method {name!r} is not known; allowed are {', '.join(METHODS)}")
    return METHODS[name]


def _factored(gram: Gram, w, factor) -> Plan:
    """Codes by a triangular factor R of H + damping = R R^T; dead columns have a row of their own."""
    diagonal = np.where(np.diagonal(gram.h) == 0, 0.0, np.diagonal(factor))
    return Plan(w, factor.T, diagonal, gaps=True)


def _factor(h, damping: float):
    """R, upper triangular with R R^T = H + damping, of which dead columns have damping 1. Spec: ED-8.

    Cholesky's factor of the matrix read from its last corner: no inverse is formed.
    """
    turned = h[::-1, ::-1].copy()
    places = np.arange(len(h))
    turned[places, places] += np.where(np.diagonal(turned) == 0, 1.0, damping)
    try:
        return np.ascontiguousarray(np.linalg.cholesky(turned)[::-1, ::-1])
    except np.linalg.LinAlgError:
        raise InputError("H is not positive definite even after damping; the inputs of the layer may be too "
                         "large for float64 or the Gram matrices were not made by Gram") from None


def largest_eigenvalue(h, rounds: int = 30) -> float:
    """Of a symmetric, positive semidefinite matrix: power iterations from a line of ones, a lower bound."""
    line, value = np.ones(len(h)), 0.0
    for _ in range(rounds):
        size = np.sqrt(line @ line)
        if size == 0:
            return 0.0
        line = line / size
        after = h @ line
        value, line = float(line @ after), after
    return value


def _refit(gram: Gram, w, factor, damping: float):
    """The weights that the columns of Qronos are coded from. Spec: ED-9.

    The first column answers for the whole output with the other columns as they are; the others are then the
    (damped) least-squares answer to what is left.
    """
    from scipy.linalg import solve_triangular       # on demand: only this method solves

    live = np.diagonal(gram.h) > 0
    first = int(np.argmax(live)) if live.any() else len(w)
    fitted = w.copy()
    if first == len(w):
        return fitted
    wanted = gram.g @ w                             # X^T X w, for every column of the layer
    others = gram.h[first] @ w - gram.h[first, first] * w[first]
    fitted[first] = (wanted[first] - others) / gram.h[first, first]
    rest = slice(first + 1, None)
    if first + 1 < len(w):
        dead = ~live[rest]
        right = wanted[rest] + np.where(dead, 1.0, damping)[:, None] * w[rest]
        right -= np.multiply.outer(gram.h[rest, first], fitted[first])
        upper = factor[rest, rest]
        half = solve_triangular(upper, right, lower=False)
        fitted[rest] = solve_triangular(upper, half, lower=False, trans="T", overwrite_b=True)
        fitted[rest][dead] = w[rest][dead]
    return fitted
