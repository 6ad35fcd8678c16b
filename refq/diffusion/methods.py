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

from refq.diffusion.gram import Gram, Sums
from refq.diffusion.products import Many, One, products
from refq.errors import InputError


@dataclass(frozen=True)
class Plan:
    """What the loop needs of a method; (columns, rows) arrays lie column by column.

    weights: (columns, rows), w above. below: B, of which the part below the diagonal is used. diagonal: d,
    (columns, 1) or (columns, rows), 0 for dead columns. drift: None, or the matrix of which p_k = sum over
    j <= k of drift_kj w_j. gaps: whether a block's loss is sum of (d_k (v_k - q_k))^2, d being a triangular
    factor's, and not the output error itself.
    """

    weights: np.ndarray
    below: One | Many
    diagonal: np.ndarray
    drift: One | Many | None = None
    gaps: bool = False


@dataclass(frozen=True)
class Method:
    """One method. plan: (sums, weights) -> Plan; None: the direct cast, which needs no data.

    The sums are a Gram, or a GramStack with the rows of all its problems side by side.
    """

    name: str
    words: str
    clause: str
    ref: str = ""
    plan: Callable | None = None


def _diffusion(sums: Sums, w) -> Plan:
    """Spec: ED-1, ED-7."""
    drift = None if sums.same else products(sums.recall("drift", lambda: sums.g - sums.h), w)
    below = products(sums.h, w)
    return Plan(w, below, below.spread(diagonals(sums.h)), drift)


def _optq(sums: Sums, w) -> Plan:
    """Spec: ED-8."""
    def factor():
        return _factor(sums.h, OPTQ_DAMPING * diagonals(sums.h).mean(axis=-1))
    return _factored(sums, w, sums.recall("optq", factor))


def _qronos(sums: Sums, w) -> Plan:
    """Spec: ED-9."""
    def damped():
        damping = QRONOS_DAMPING * largest_eigenvalue(sums.h)
        return damping, _factor(sums.h, damping)
    damping, factor = sums.recall("qronos", damped)
    return _factored(sums, w if sums.same else _refits(sums, w, factor, damping), factor)


LEAF = 64                   # columns of a triangle that is solved at once
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


def diagonals(matrix):
    """(..., columns) of (..., columns, columns), a view."""
    return np.einsum("...kk->...k", matrix)


def _factored(sums: Sums, w, factor) -> Plan:
    """Codes by a triangular factor R of H + damping = R R^T; dead columns have a row of their own."""
    below = products(factor.swapaxes(-1, -2), w)
    return Plan(w, below, below.spread(np.where(diagonals(sums.h) == 0, 0.0, diagonals(factor))), gaps=True)


def _factor(h, damping):
    """R, upper triangular with R R^T = H + damping, of which dead columns have damping 1. Spec: ED-8.

    Cholesky's factor of the matrix read from its last corner: no inverse is formed.
    """
    turned = h[..., ::-1, ::-1].copy()
    places = np.arange(h.shape[-1])
    dead = diagonals(turned) == 0
    turned[..., places, places] += np.where(dead, 1.0, np.asarray(damping)[..., None])
    try:
        return np.ascontiguousarray(np.linalg.cholesky(turned)[..., ::-1, ::-1])
    except np.linalg.LinAlgError:
        raise InputError("H is not positive definite even after damping; the inputs of the layer may be too "
                         "large for float64 or the Gram matrices were not made by Gram") from None


def largest_eigenvalue(h, rounds: int = 30):
    """Of symmetric, positive semidefinite matrices: power iterations from a line of ones, a lower bound."""
    line = np.ones((*h.shape[:-1], 1))
    value = np.zeros(h.shape[:-2])
    for _ in range(rounds):
        size = np.sqrt((line * line).sum(axis=(-2, -1), keepdims=True))
        line = line / np.where(size == 0, 1.0, size)
        after = h @ line
        value, line = (line * after).sum(axis=(-2, -1)), after
    return value


def _refits(sums: Sums, w, factor, damping):
    """The weights that the columns of Qronos are coded from, problem by problem."""
    if isinstance(sums, Gram):
        return _refit(sums.h, sums.g, w, factor, damping)
    several = w.reshape(len(w), len(sums.h), -1)
    found = np.empty_like(several)
    for problem, matrices in enumerate(zip(sums.h, sums.g)):
        found[:, problem] = _refit(*matrices, several[:, problem], factor[problem], damping[problem])
    return found.reshape(w.shape)


def _refit(h, g, w, factor, damping: float):
    """The weights that the columns of Qronos are coded from. Spec: ED-9.

    The first column answers for the whole output with the other columns as they are; the others are then the
    (damped) least-squares answer to what is left.
    """
    live = np.diagonal(h) > 0
    if not live.any():
        return w.copy()
    first = int(np.argmax(live))
    fitted, wanted = w.copy(), g @ w                # X^T X w, for every column of the layer
    others = h[first] @ w - h[first, first] * w[first]
    fitted[first] = (wanted[first] - others) / h[first, first]
    dead = ~live
    wanted += np.where(dead, 1.0, damping)[:, None] * w
    wanted -= np.multiply.outer(h[:, first], fitted[first])
    rest = slice(first + 1, None)                   # the last of an upper triangle R solve by themselves
    _solve(factor[rest, rest], wanted[rest], False)
    _solve(factor[rest, rest], wanted[rest], True)
    fitted[rest] = wanted[rest]
    fitted[dead] = w[dead]
    return fitted


def _solve(triangle, lines, turned: bool):
    """triangle z = lines (or its transpose), the triangle being an upper one; z takes the place of lines.

    By halves, so that nearly all of it is one product of matrices after the other.
    """
    if len(lines) <= LEAF:
        lines[...] = np.linalg.solve(triangle.T if turned else triangle, lines)
        return
    parts = slice(0, len(lines) // 2), slice(len(lines) // 2, None)
    known, other = parts if turned else parts[::-1]
    corner = triangle[parts]
    _solve(triangle[known, known], lines[known], turned)
    lines[other] -= (corner.T if turned else corner) @ lines[known]
    _solve(triangle[other, other], lines[other], turned)
