"""Error diffusion by its definition: the residual U is kept, whole. Spec: ED-1.

The Gram form (columns.py) gives the same codes with memory that does not grow with the rows of X; this one is
what it is judged by.
"""

import numpy as np

from refq.diffusion.columns import Coded, least
from refq.diffusion.grid import Choice, Grid


def code_by_residual(w, x, x_hat, grid: Grid, scale: str) -> tuple[Coded, list[float]]:
    """Code all columns; also ||U||^2 after each block.

    w: (columns, rows) float64. x, x_hat: (M, columns) float64. scale: a key of SCALES in diffuse.py.
    """
    residual = np.zeros((len(x), grid.rows))
    codes, values = np.empty(w.shape, grid.code_dtype), np.empty(w.shape)
    choices, taken, errors = [], [], []
    for start, stop in zip(grid.edges, grid.edges[1:]):
        part = slice(start, stop)
        tried = []
        candidates = _candidates(w, x, x_hat, grid, part, residual, scale)
        for choice in candidates:
            tried.append(_block(w, x, x_hat, grid, part, residual.copy(), choice))
        best = np.zeros(1, np.intp)
        if len(candidates) > 1:
            best = least(*_losses(w, x, x_hat, grid, part, residual, [values for _, _, values in tried]))
        elif grid.movable:
            best = np.zeros(grid.tile_lines, np.intp)
        index = grid.of_rows(best) if len(candidates) > 1 else np.zeros(grid.rows, np.intp)
        for candidate, (after, some, meant) in enumerate(tried):
            rows = index == candidate
            for own, part_of in ((residual, after), (codes[part], some), (values[part], meant)):
                own[:, rows] = part_of[:, rows]
        choices.append(grid.merged(candidates, best) if len(candidates) > 1 else candidates[0])
        taken.append(best)
        errors.append(float((residual * residual).sum()))
    return Coded(codes, values, choices, taken), errors


def _block(w, x, x_hat, grid: Grid, part, residual, choice: Choice):
    """(U after the block, codes, values) with one choice of scales."""
    cast = grid.caster([choice], part.start)
    shape = part.stop - part.start, grid.rows
    codes, values = np.empty(shape, grid.code_dtype), np.empty(shape)
    for place, k in enumerate(range(part.start, part.stop)):
        residual += np.multiply.outer(x[:, k], w[k])
        norm = x_hat[:, k] @ x_hat[:, k]
        line = x_hat[:, k] @ residual / norm + 0.0 if norm else w[k].copy()
        cast(place, line[None], codes[place: place + 1], values[place: place + 1])
        residual -= np.multiply.outer(x_hat[:, k], values[place])
    return residual, codes, values


def _candidates(w, x, x_hat, grid: Grid, part, residual, scale: str) -> list[Choice]:
    values = grid.source[:, part]
    if scale == "target" and grid.movable:
        values = np.ascontiguousarray(_target(w, x, x_hat, grid, part, residual.copy()).T)
    choice = grid.of_values(values)
    return grid.neighbours(choice, values) if scale == "search" and grid.movable else [choice]


def _target(w, x, x_hat, grid: Grid, part, residual):
    """What each column would be if the columns of the block before it were coded without loss. Spec: ED-3."""
    found = w[part].copy()
    for place, k in enumerate(range(part.start, part.stop)):
        residual += np.multiply.outer(x[:, k], w[k])
        norm = x_hat[:, k] @ x_hat[:, k]
        if norm:
            found[place] = x_hat[:, k] @ residual / norm
        residual -= np.multiply.outer(x_hat[:, k], w[k])
    return found if grid.mask is None else np.where(grid.mask[part], found, 0)


def _losses(w, x, x_hat, grid: Grid, part, residual, tried):
    """Losses of the candidates, and what they are sums of: (candidates, tiles). Spec: ED-5.

    ||T - X^_b Q^T||^2 less what all candidates share, ||T - X^_b W_b^T||^2.
    """
    own = x_hat[:, part]
    base = residual + x[:, part] @ w[part] - own @ w[part]
    losses, sizes = [], []
    for values in tried:
        moved = own @ (w[part] - values)
        square, cross = (moved * moved).sum(axis=0), 2 * (moved * base).sum(axis=0)
        square, cross = grid.tile_rows(square[None])[0], grid.tile_rows(cross[None])[0]
        losses.append(square + cross)
        sizes.append(square + np.abs(cross))
    return np.array(losses), np.array(sizes)
