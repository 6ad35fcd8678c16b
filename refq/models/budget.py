"""Data types by layer under a budget of bits, from how much each layer disturbs the model's outputs.

For every layer and data type the model runs once on the first batch with that layer alone cast directly: the
noise of the outputs over their power is what the layer costs. Costs of layers are taken to add up, and bits
go where they buy most: along the lower convex hull of each layer's (bits, cost), steepest step first.
Spec: MODEL-7.
"""

import heapq
from dataclasses import dataclass, replace

import numpy as np

from refq.blocks.rows import Block
from refq.errors import InputError
from refq.models.choices import DEFAULT, Choice, Group, grouped
from refq.models.engine import key_of
from refq.models.export import restored
from refq.models.graph import Graph
from refq.models.weights import read_weight


@dataclass(frozen=True)
class Option:
    """A data type for one weight: bits of all of it, and what it costs."""

    block: Block
    bits: float
    cost: float


def within_budget(budget: float, candidates: list[Block], resolved, graph: Graph, run, casting, tell):
    """The sites with choices of at most `budget` bits per weight on average.

    What a rule names keeps its type, and counts. run: refq.models.calibrate.Calibration, started. Raises
    InputError where even the smallest data types take more.
    """
    groups = grouped(resolved)
    options = _measured(groups, candidates, graph, run, casting, tell)
    sizes = [group.first.parameters for group in groups]
    taken = allocate(options, budget * sum(sizes))
    if taken is None:
        least = sum(min(option.bits for option in several) for several in options) / sum(sizes)
        raise InputError(f"a budget of {budget:g} bits per weight is below {least:.4g}, what the smallest of "
                         f"{', '.join(block.name for block in candidates)} and the rules take")
    chosen = {site.place: _moved(group.choice, option.block, budget)
              for group, option in zip(groups, taken) for site in group.sites}
    return [(site, chosen.get(site.place, choice)) for site, choice in resolved]


def _moved(choice: Choice, block: Block, budget: float) -> Choice:
    return choice if choice.origin != DEFAULT else replace(choice, block=block, origin=f"budget {budget:g}")


def allocate(options: list[list[Option]], room: float) -> list[Option] | None:
    """One option of each list, of little cost, that take at most `room` bits together; None where none do."""
    ladders = [_hull(several) for several in options]
    places, room = [0] * len(ladders), room - sum(ladder[0].bits for ladder in ladders)
    if room < 0:
        return None
    steps = [(*_slope(ladder, 0), number) for number, ladder in enumerate(ladders) if len(ladder) > 1]
    heapq.heapify(steps)
    while steps:
        _, bits, number = heapq.heappop(steps)
        if bits > room:
            continue                                    # too large a step; others may still fit
        room -= bits
        places[number] += 1
        if places[number] + 1 < len(ladders[number]):
            heapq.heappush(steps, (*_slope(ladders[number], places[number]), number))
    return [ladder[place] for ladder, place in zip(ladders, places)]


def _hull(several: list[Option]) -> list[Option]:
    """The lower convex hull of options by bits: each step down in cost is less steep than the one before."""
    found: list[Option] = []
    for option in sorted(several, key=lambda option: (option.bits, option.cost)):
        if found and option.cost >= found[-1].cost:
            continue
        while len(found) > 1 and _over(found[-2], found[-1]) >= _over(found[-2], option):
            found.pop()
        found.append(option)
    return found


def _over(low: Option, high: Option) -> float:
    """Change of cost per bit."""
    return (high.cost - low.cost) / (high.bits - low.bits)


def _slope(ladder: list[Option], place: int) -> tuple[float, float]:
    low, high = ladder[place:place + 2]
    return _over(low, high), high.bits - low.bits


# -- measuring -----------------------------------------------------------------------------------------------

def _measured(groups: list[Group], candidates, graph: Graph, run, casting, tell) -> list[list[Option]]:
    """The options of every group. A weight whose effect cannot be measured, as only bodies use it or nothing
    does, costs its squared error over its power."""
    engine, options = run.engine, [[] for _ in groups]
    at: dict[str, list[int]] = {}
    order = {name: key_of(step.node) for step in engine.steps() for name in step.node.output}
    for number, group in enumerate(groups):
        keys = [order[site.key] for site in group.sites if site.key in order and not site.in_body]
        at |= {key: [*at.get(key, []), number] for key in keys[:1]}
    done, exact = 0, _outputs(engine, run.walk.feeds(0))

    def measure(number, values, rest):
        nonlocal done
        group, site = groups[number], groups[number].first
        matrix = read_weight(graph, site)
        for block in candidates if group.choice.origin == DEFAULT else [group.choice.block]:
            tell(done, len(groups), f"sensitivity of {group.name}: {block.name}")
            axis = site.tile_axis(block)
            if axis is None:                            # tiles of two dimensions, a weight of one
                continue
            q = casting(matrix, block, axis)
            effective = restored(q, site.type)
            cost = _noise(matrix, effective) if values is None else _disturbance(
                engine, exact, values, rest, group, site.view.restore(effective, site.stored_shape))
            options[number].append(Option(block, float(q.bits_per_value) * matrix.size, cost))
        done += 1

    values, steps = run.walk.feeds(0), engine.steps()
    for place, step in enumerate(steps):
        for number in at.get(key_of(step.node), ()):
            measure(number, values, steps[place:])
        _advance(engine, step, values, {})
    for number, several in enumerate(options):
        if not several:
            measure(number, None, None)
    return options


def _disturbance(engine, exact, values, rest, group: Group, stored) -> float:
    """Noise over power of the outputs, summed over outputs, with one weight replaced."""
    replaced = {site.key: {site.node.proto.input[site.operand]: group.first.as_seen(stored, site)}
                for site in group.sites if not site.in_body}
    values = dict(values)
    for step in rest:
        _advance(engine, step, values, next((replaced[n] for n in step.node.output if n in replaced), {}))
    found = {name: values.get(name, engine.constants.get(name)) for name in engine.outputs}
    return sum(_noise(exact[name], found[name]) for name in exact)


def _noise(exact: np.ndarray, other: np.ndarray) -> float:
    """Squared difference over the power; numbers that are not finite are left out. Of another shape, as
    outputs that are picked by their values may come, nothing is right: 1."""
    exact, other = (np.asarray(part, np.float64) for part in (exact, other))
    if exact.shape != other.shape:
        return 1.0
    sound = np.isfinite(exact) & np.isfinite(other)
    power = float(np.sum(exact[sound] ** 2))
    return float(np.sum((exact[sound] - other[sound]) ** 2)) / power if power else 0.0


def _outputs(engine, feeds) -> dict[str, np.ndarray]:
    found = engine.run({name: value for name, value in feeds.items() if name in engine.inputs})
    floats = {name: value for name, value in found.items()
              if isinstance(value, np.ndarray) and (value.dtype.kind == "f" or "float" in value.dtype.name)}
    if not floats:
        raise InputError(f"a budget needs an output of floats to see noise in; those of the model, "
                         f"{', '.join(map(repr, found))}, are none")
    return floats


def _advance(engine, step, values: dict, replaced: dict) -> None:
    values.update(engine.run_node(step.node, values | replaced))
    for name in step.finished:
        values.pop(name, None)
