"""The loop of every method: blocks in order, in each the choice of scales, then column by column.

What columns owe to those before them is added in products of halves (a triangle cut into squares), so that
nearly all arithmetic lies in a few large matrix products. Spec: ED-1, ED-3, ED-5, ED-7.
"""

from dataclasses import dataclass

import numpy as np

from refq.diffusion.grid import Choice, Grid
from refq.diffusion.methods import Plan

PANEL = 16                  # columns that are added up one by one
CLOSE = 2.0 ** -30          # losses that differ by less of what they are made of count as equal (ED-5)


@dataclass(frozen=True)
class Coded:
    """What the loop gives: codes and the values they mean, (columns, rows); a choice a block; for every block
    the candidate that each of its tiles took; the output error of every line of tiles from the top row down
    where the loop has met it, or None."""

    codes: np.ndarray
    values: np.ndarray
    choices: list[Choice]
    taken: list[np.ndarray]
    errors: np.ndarray | None = None


def code_columns(plan: Plan, grid: Grid, scale: str) -> Coded:
    """Code all columns of a grid by a plan's rule. scale: a key of SCALES in diffuse.py."""
    return _Loop(plan, grid, scale).run()


class _Loop:
    """The state of one run: what columns owe, what they have lost, their codes.

    Arrays of one block have an axis for the candidates: (columns of the block, candidates, rows).
    """

    def __init__(self, plan: Plan, grid: Grid, scale: str):
        self.plan, self.grid, self.scale = plan, grid, scale
        self.owed = np.zeros(plan.weights.shape)
        self.lost = np.empty(plan.weights.shape)
        self.codes = np.empty(plan.weights.shape, grid.code_dtype)
        self.choices, self.taken = [], []
        self.dead = plan.diagonal == 0                          # they owe nothing
        self.divisor = np.where(self.dead, 1.0, plan.diagonal)
        # With one stream the losses of the blocks add up to the output error (ED-5)
        counted = grid.movable and plan.drift is None and not plan.gaps
        self.errors = np.zeros(grid.tile_lines) if counted else None

    def run(self) -> Coded:
        self.blocks(0, len(self.grid.edges) - 1)
        values = np.subtract(self.plan.weights, self.lost, out=self.lost)
        return Coded(self.codes, values, self.choices, self.taken, self.errors)

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
        grid, part = self.grid, slice(*self.grid.edges[number: number + 2])
        choices = self.candidates(part)
        owed = self.owed[part]
        if len(choices) == 1:
            kept = None if self.errors is None else owed.copy()
            lost, codes = self.lost[part][:, None], self.codes[part][:, None]
            self.panels(part, choices, owed[:, None], lost, codes, None)
            best = np.zeros(grid.tile_lines if grid.movable else 1, np.intp)
            if kept is not None:
                self.errors += sum(self.losses(part, kept, lost))[0]
        else:
            shape = len(owed), len(choices), grid.rows
            lost, codes = np.empty(shape), np.empty(shape, self.codes.dtype)
            gaps = np.empty(shape) if self.plan.gaps else None
            self.panels(part, choices, owed[:, None], lost, codes, gaps)
            best = self.best(part, owed, lost, gaps)
            index = grid.of_rows(best)
            for own, several in ((self.lost[part], lost), (self.codes[part], codes)):
                own[...] = several[:, 0]
                for candidate in range(1, len(choices)):
                    np.copyto(own, several[:, candidate], where=index == candidate)
            choices = [grid.merged(choices, best)]
        self.choices += choices
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
        plan, owed = self.plan, self.owed[part]
        if plan.drift is not None:
            owed = owed + plan.drift[part, part].lower() @ plan.weights[part]
        found = plan.weights[part] + owed / self.divisor[part]
        return found if self.grid.mask is None else np.where(self.grid.mask[part], found, 0)

    def panels(self, part, choices, owed, lost, codes, gaps):
        """Code a block. owed: (columns of the block, 1, rows); the other arrays are filled."""
        plan, weights, cast = self.plan, self.plan.weights[part], self.grid.caster(choices, part.start)
        below, divisor, dead = plan.below[part, part], self.divisor[part], self.dead[part]
        some_dead = dead.any(axis=1)
        drift = None if plan.drift is None else plan.drift[part, part].lower()
        if len(owed) > PANEL and len(choices) > 1 or drift is not None:
            owed = np.repeat(owed, len(choices), axis=1)        # it changes here, and differs by candidate
        line, again, room = np.empty((3, len(choices), self.grid.rows))

        def add(low, middle, high):
            """What columns from middle owe to those from low."""
            owed[middle:high] += below[middle:high, low:middle] @ lost[low:middle]
            if drift is not None:
                owed[middle:high] += (drift[middle:high, low:middle] @ weights[low:middle])[:, None]

        def run(low, high):
            if high - low > PANEL:
                middle = low + -(-(high - low) // (2 * PANEL)) * PANEL
                run(low, middle)
                add(low, middle, high)
                return run(middle, high)
            if drift is not None:
                owed[low:high] += (drift[low:high, low:high] @ weights[low:high])[:, None]
            add_up = below[low:high, low:high].sums(lost[low:high], again)
            for k in range(low, high):
                if k > low:
                    add_up(k - low)
                    np.add(again, owed[k], out=again)
                    np.divide(again, divisor[k], out=line)
                else:
                    np.divide(owed[k], divisor[k], out=line)
                np.add(line, weights[k], out=line)
                if some_dead[k]:
                    np.copyto(line, weights[k], where=dead[k])
                if gaps is not None:
                    gaps[k] = line
                cast(k, line, codes[k], room)
                np.subtract(weights[k], room, out=lost[k])
                if gaps is not None:
                    gaps[k] -= room
        run(0, len(owed))

    def best(self, part, owed, lost, gaps):
        """For every tile the candidate of the least loss. Spec: ED-5."""
        if gaps is not None:
            loss = self.grid.tile_rows(((gaps * self.plan.diagonal[part, None]) ** 2).sum(axis=0))
            return least(loss, loss)
        own, cross = self.losses(part, owed, lost)
        best = least(own + cross, own + np.abs(cross))
        if self.errors is not None:
            self.errors += (own + cross)[best, np.arange(len(best))]
        return best

    def losses(self, part, owed, lost):
        """L of ED-5 in two parts, (candidates, tiles) each."""
        plan = self.plan
        if plan.drift is not None:
            owed = owed + plan.drift[part, part] @ plan.weights[part]
        moved = plan.below[part, part] @ lost
        own, cross = np.einsum("kcr,kcr->cr", lost, moved), 2 * np.einsum("kcr,kr->cr", lost, owed)
        return self.grid.tile_rows(own), self.grid.tile_rows(cross)


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
