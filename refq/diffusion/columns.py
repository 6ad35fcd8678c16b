"""The loop of every method: blocks in order, in each the choice of scales, then column by column.

What columns owe to those before them is added in products of halves (a triangle cut into squares), so that
nearly all arithmetic lies in a few large matrix products. Spec: ED-1, ED-3, ED-5, ED-7.
"""

from dataclasses import dataclass

import numpy as np

from refq.diffusion.grid import Choice, Grid
from refq.diffusion.methods import Plan

PANEL = 32                  # columns that are added up one by one
CLOSE = 2.0 ** -30          # losses that differ by less of what they are made of count as equal (ED-5)


@dataclass(frozen=True)
class Coded:
    """What the loop gives: codes and the values they mean, (columns, rows); a choice a block; for every block the
    candidate that each of its tiles took."""

    codes: np.ndarray
    values: np.ndarray
    choices: list[Choice]
    taken: list[np.ndarray]


def code_columns(plan: Plan, grid: Grid, scale: str) -> Coded:
    """Code all columns of a grid by a plan's rule. scale: a key of SCALES in diffuse.py."""
    return _Loop(plan, grid, scale).run()


class _Loop:
    """The state of one run: what columns owe, what they have lost, their codes."""

    def __init__(self, plan: Plan, grid: Grid, scale: str):
        self.plan, self.grid, self.scale = plan, grid, scale
        self.owed = np.zeros(plan.weights.shape)
        self.lost = np.empty(plan.weights.shape)
        self.codes = np.empty(plan.weights.shape, grid.code_dtype)
        self.choices, self.taken = [], []

    def run(self) -> Coded:
        self.blocks(0, len(self.grid.edges) - 1)
        return Coded(self.codes, np.subtract(self.plan.weights, self.lost, out=self.lost), self.choices, self.taken)

    def blocks(self, low: int, high: int):
        """Blocks low to high: the first half, what the second owes to it, the second half."""
        if high - low == 1:
            return self.block(low)
        middle, edges = (low + high) // 2, self.grid.edges
        self.blocks(low, middle)
        before, after = slice(edges[low], edges[middle]), slice(edges[middle], edges[high])
        self.owed[after] += self.plan.below[after, before] @ self.lost[before]
        if self.plan.drift is not None:
            self.owed[after] += self.plan.drift[after, before] @ self.plan.weights[before]
        self.blocks(middle, high)

    def block(self, number: int):
        grid, plan = self.grid, self.plan
        start, stop = grid.edges[number], grid.edges[number + 1]
        part = slice(start, stop)
        choices = self.candidates(part)
        count, shape = len(choices), (stop - start, len(choices) * grid.rows)
        if count == 1:
            lost, codes, gaps = self.lost[part], self.codes[part], None
            self.panels(part, choices, self.owed[part], plan.weights[part], lost, codes, None)
            best = np.zeros(len(grid.tile_rows(np.zeros((1, grid.rows)))[0]) if grid.movable else 1, np.intp)
            self.choices.append(choices[0])
        else:
            lost, codes = np.empty(shape), np.empty(shape, self.codes.dtype)
            gaps = np.empty(shape) if plan.gaps else None
            before = self.owed[part].copy()
            self.panels(part, choices, np.tile(before, count), np.tile(plan.weights[part], count), lost, codes, gaps)
            best = self.best(part, before, lost, gaps, count)
            index = grid.of_rows(best)
            for own, several in ((self.lost[part], lost), (self.codes[part], codes)):
                own[...] = several[:, : grid.rows]
                for candidate in range(1, count):
                    rows = np.flatnonzero(index == candidate)
                    own[:, rows] = several[:, candidate * grid.rows + rows]
            self.choices.append(grid.merged(choices, best))
        self.taken.append(best)

    def candidates(self, part) -> list[Choice]:
        """The choices of scales to try for a block. Spec: ED-3, ED-5."""
        grid = self.grid
        values = grid.source[:, part]
        if self.scale == "target" and grid.movable:
            values = np.ascontiguousarray(self.target(part).T)
        choice = grid.of_values(values)
        return grid.neighbours(choice, values) if self.scale == "search" and grid.movable else [choice]

    def target(self, part):
        """What the block's columns would be if it lost nothing itself: (columns, rows). Spec: ED-3."""
        plan, d = self.plan, self.plan.diagonal[part, None]
        owed = self.owed[part]
        if plan.drift is not None:
            owed = owed + np.tril(plan.drift[part, part]) @ plan.weights[part]
        found = plan.weights[part] + owed / np.where(d == 0, 1, d)
        found = np.where(d == 0, plan.weights[part], found)
        return found if self.grid.mask is None else np.where(self.grid.mask[part], found, 0)

    def panels(self, part, choices, owed, weights, lost, codes, gaps):
        """Code a block. All arrays are (columns of the block, candidates x rows); `owed` is used up."""
        plan, cast = self.plan, self.grid.caster(choices, part.start)
        below, diagonal = plan.below[part, part], plan.diagonal[part]
        drift = None if plan.drift is None else np.tril(plan.drift[part, part])
        line, again, room = np.empty((3, owed.shape[1]))

        def run(low, high):
            if high - low > PANEL:
                middle = low + -(-(high - low) // (2 * PANEL)) * PANEL
                run(low, middle)
                owed[middle:high] += below[middle:high, low:middle] @ lost[low:middle]
                if drift is not None:
                    owed[middle:high] += drift[middle:high, low:middle] @ weights[low:middle]
                return run(middle, high)
            if drift is not None:
                owed[low:high] += drift[low:high, low:high] @ weights[low:high]
            for k in range(low, high):
                if diagonal[k]:
                    np.divide(_added(owed[k], below[k, low:k], lost[low:k], again), diagonal[k], out=line)
                    np.add(line, weights[k], out=line)
                else:
                    line[...] = weights[k]
                cast(k, line, codes[k], room)
                np.subtract(weights[k], room, out=lost[k])
                if gaps is not None:
                    np.subtract(line, room, out=gaps[k])
        run(0, len(owed))

    def best(self, part, owed, lost, gaps, count: int):
        """For every tile the candidate of the least loss. Spec: ED-5."""
        plan, grid = self.plan, self.grid
        if gaps is not None:
            loss = self.per_tile((gaps * plan.diagonal[part, None]) ** 2, count)
            return least(loss, loss)
        at = owed
        if plan.drift is not None:
            at = owed + plan.drift[part, part] @ plan.weights[part]
        own = self.per_tile(lost * (plan.below[part, part] @ lost), count)
        z = lost.reshape(len(lost), count, grid.rows)
        cross = 2 * np.einsum("kcr,kr->cr", z, at)
        cross_tiles = grid.tile_rows(cross)
        return least(own + cross_tiles, own + np.abs(cross_tiles))

    def per_tile(self, products, count: int):
        """(columns, candidates x rows) -> (candidates, tiles)"""
        return self.grid.tile_rows(products.sum(axis=0).reshape(count, self.grid.rows))


def least(losses, sizes):
    """The first candidate that no later one is clearly below: (candidates, tiles) -> (tiles,). Spec: ED-5.

    sizes: what the losses are sums of; differences below CLOSE of that count as none.
    """
    best = np.zeros(losses.shape[1], np.intp)
    loss, size = losses[0].copy(), sizes[0].copy()
    for candidate in range(1, len(losses)):
        better = loss - losses[candidate] > CLOSE * np.maximum(size, sizes[candidate])
        best[better] = candidate
        loss[better], size[better] = losses[candidate][better], sizes[candidate][better]
    return best


def _added(owed, factors, lines, room):
    """owed + factors @ lines"""
    if not len(factors):
        return owed
    np.dot(factors, lines, out=room)
    room += owed
    return room
