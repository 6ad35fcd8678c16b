"""Error diffusion over a whole model: the walk, and at each layer the weights coded by what it meets.

Which weights are diffused: those of layers in the main graph that sum over them. Cast directly, before the
walk, are tables, weights that bodies of If, Loop and Scan use, and those of layers that meet constants alone
or whose outputs nothing uses. A weight that several layers share gets its codes from the first of them in the
order of running. Spec: MODEL-1 to MODEL-6.
"""

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import numpy_helper

from refq.errors import InputError
from refq.models import files
from refq.models.checkpoint import Checkpoint
from refq.models.choices import Group
from refq.models.compare import Comparer, Comparison
from refq.models.data import batches
from refq.models.engine import ENGINES, Engine, key_of
from refq.models.figures import size
from refq.models.graph import Graph, Use
from refq.models.layers import Form, form_of
from refq.models.solve import ROWS, Coded, Errors, solve, whole_only
from refq.models.store import Store
from refq.models.walk import FLOAT, HAT, SMALL, Inputs, StreamsPart, Walk
from refq.models.weights import RECURRENT, find_weights
from refq.models.workers import Workers, give_back_memory

UNITS = {"": 1, "k": 10 ** 3, "m": 10 ** 6, "g": 10 ** 9, "t": 10 ** 12}
COPIES = 12                 # float64 arrays of the size of a weight that coding it takes, about
DIRECT = {"table": "a lookup table: cast directly",
          "tied": "shared with a lookup table, which comes first: cast directly; keep the lookup float "
                  "(--keep-float) to have this layer diffused",
          "body": "used in the body of a control-flow operator: cast directly",
          "constant": "meets constants alone: cast directly",
          "unmet": "no row of the data reaches it: cast directly",
          "parted": "the two streams bring it different rows: cast directly",
          "unused": "no output of the model depends on it: cast directly"}


@dataclass(frozen=True)
class Options:
    """How a walk is done; nothing here changes a byte of the result, but for the engine and the data.

    memory: bytes of activations kept in memory. workers: threads, None for all processors.
    """

    data: object
    engine: str = "numpy"
    memory: int = 10 ** 9
    workers: int | None = None
    labels: object = None
    batch: int | None = None

    def __post_init__(self):
        if self.engine not in ENGINES:
            raise InputError(f"engine {self.engine!r} is unknown; there are {', '.join(ENGINES)}")


@dataclass(eq=False)
class Task:
    """A weight to be coded in the walk. number: the group's among all. rows: of input of each product, about.
    cost: what it takes, in operations, about."""

    number: int
    group: Group
    form: Form
    rows: int = 0

    @property
    def cost(self) -> float:
        k, size = self.form.columns, float(np.prod(self.form.shape))
        return self.form.products * self.rows * 3.0 * k * k + 4.0 * k * size + 1e6


def byte_count(text) -> int:
    """Bytes of "512M", "2G", "64MB" or a number. Raises InputError."""
    if isinstance(text, int) and not isinstance(text, bool):
        number, unit = float(text), ""
    else:
        plain = str(text).strip().lower().removesuffix("b").removesuffix("i")
        unit = plain[-1:] if plain[-1:].isalpha() else ""
        try:
            number = float(plain.removesuffix(unit))
        except ValueError:
            number = -1.0
    if unit not in UNITS or not 0 <= number < float("inf"):
        raise InputError(f"memory {text!r} is no number of bytes such as 512M or 2G")
    return int(number * UNITS[unit])


def sort_groups(groups: list[Group], engine: Engine) -> tuple[dict[int, str], dict[int, Form]]:
    """({group's place: why it is cast directly}, {group's place: its form})."""
    order = {name: position for position, step in enumerate(engine.steps()) for name in step.node.output}
    direct, forms = {}, {}
    for number, group in enumerate(groups):
        running = [(order[site.key], place) for place, site in enumerate(group.sites) if site.key in order]
        if any(site.in_body for site in group.sites):
            direct[number] = DIRECT["body"]
        elif any(site.key in engine.constants for site in group.sites):
            direct[number] = DIRECT["constant"]
        elif not running:
            direct[number] = DIRECT["unused"]
        elif (first := group.sites[min(running)[1]]).table:
            direct[number] = DIRECT["table" if all(site.table for site in group.sites) else "tied"]
        else:
            form = form_of(first)
            if reason := whole_only(group.choice.block, form):
                direct[number] = reason
            forms[number] = form
    return direct, forms


def ready_model(graph: Graph) -> files.Source:
    """A copy of a graph's model in which every recurrent layer gives its states."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for node in model.graph.node:
        if node.op_type in RECURRENT and not (node.output and node.output[0]):
            name = graph.unique(f"{key_of(node)}_states")
            if node.output:
                node.output[0] = name
            else:
                node.output.append(name)
    return files.Source(model, None, graph.directory, 0)


class Calibration:
    """One run over calibration data, as a context: activations and threads live as long as it does."""

    def __init__(self, graph: Graph, options: Options):
        self.graph, self.options, self.digest = graph, options, ""
        self.engine = ENGINES[options.engine](ready_model(graph))
        weights = {site.static.root.name for site in find_weights(graph) if site.static}
        inputs = {name: declared for name, declared in self.engine.inputs.items() if name not in weights}
        optional = inputs.keys() & self.engine.defaults.keys()
        self.data = batches(options.data, inputs, options.batch, options.labels, optional)
        self.tasks: list[Task] = []
        self._stack, self._alive = ExitStack(), 0

    def __enter__(self) -> "Calibration":
        with ExitStack() as stack:                      # what is open is closed where the rest fails
            self.workers = stack.enter_context(Workers(self.options.workers))
            self.store = stack.enter_context(Store(self.options.memory))
            self.walk = Walk(self.engine, self.store, self.workers)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)

    def start(self) -> list[str]:
        """Read the data. Returns notes for the report."""
        self.digest = self.walk.start(self.data)
        return self.data.notes

    def code(self, weights, checkpoint: Checkpoint | None, facts: dict[str, str] | None, say, tell) -> None:
        """Code all weights.

        weights: refq.models.quantize.Weights, which takes the codes. facts: what decides the result, for the
        checkpoint. say: is given what will be needed, before the work. tell: is told of progress, as
        refq.models.progress.teller makes it.
        """
        for group in weights.groups:
            weights.matrix(group)                           # what is not finite is said now, not after hours
        direct, forms = sort_groups(weights.groups, self.engine)
        seen = {number: weights.cast(number, reason) for number, reason in direct.items()}
        built_in = {number: weights.groups[number] for number, reason in direct.items()
                    if reason in (DIRECT["body"], DIRECT["constant"]) and seen[number]}
        self.walk.quantised = self._with_built_in(built_in, seen)
        for number in direct.keys() - built_in.keys():
            self.walk.override(weights.groups[number], seen[number])
        del seen                                            # it holds whole tables
        at = self._plan({number: weights.groups[number] for number in forms.keys() - direct.keys()}, forms)
        say(self.memory_words())
        if checkpoint:
            checkpoint.begin(facts)
        done, total = 0.0, sum(task.cost for task in self.tasks)
        for step in self.walk.steps:
            self.walk.run_float(step)
            for task in at.get(key_of(step.node), ()):
                tell(done, total, task.group.name)
                errors = self._code(task, step, weights, checkpoint)
                done += task.cost
                tell(done, total, f"{task.group.name}: {_ratio(errors)}")
                give_back_memory()
            self.walk.run_quantised(step)
            self.walk.finish(step)
        self.walk.forget()

    def _with_built_in(self, groups: dict[int, Group], seen: dict) -> Engine:
        """The engine of the quantised stream: another one where bodies, or nodes that run once for all, have
        new weights."""
        if not groups:
            return self.engine
        source = ready_model(self.graph)
        graph = Graph(source.model, source.directory)
        sites = {site.place: site for site in find_weights(graph)}
        for number, group in groups.items():
            for site in (sites[site.place] for site in group.sites):
                name = graph.unique(f"{site.tensor}_dequantized")
                graph.model.graph.initializer.append(numpy_helper.from_array(seen[number](site), name))
                graph.rewire(Use(site.node, site.operand, site.node.scope), name)
        graph.commit()
        return ENGINES[self.options.engine](source)

    def _plan(self, groups: dict[int, Group], forms: dict[int, Form]) -> dict[str, list[Task]]:
        """The tasks of each node; the first batch runs to learn how large everything is."""
        wanted: dict[str, list[Task]] = {}
        for number, group in sorted(groups.items()):
            wanted.setdefault(forms[number].site.key, []).append(Task(number, group, forms[number]))
        at: dict[str, list[Task]] = {}
        found: dict[str, np.ndarray] = {}

        def look(step, values):
            found.update((name, values[name]) for name in step.node.output if name in self.engine.outputs)
            for task in (task for name in step.node.output for task in wanted.get(name, ())):
                task.rows = task.form.row_count(values[step.node.output[0]]) * self.walk.count
                at.setdefault(key_of(step.node), []).append(task)
        self._alive = self.walk.probe(look)
        if self.walk.labels[0] is not None:             # labels that do not fit: said now, not at the end
            outputs = {name: found.get(name, self.engine.constants.get(name)) for name in self.engine.outputs}
            Comparer(self.engine.model).check(self.walk.labels[0], outputs)
        for tasks in at.values():
            tasks.sort(key=lambda task: task.form.site.operand)
        self.tasks = [task for tasks in at.values() for task in tasks]
        return at

    def memory_words(self) -> str:
        """What the run takes, in words."""
        parts = {"weights": sum(getattr(a, "nbytes", 0) for a in self.engine.constants.values())}
        alive = 2 * self._alive * self.walk.count
        parts["activations"] = kept = min(alive, self.store.limit)
        sums = 8 * max((task.form.products * task.form.columns ** 2 for task in self.tasks), default=0)
        parts["sums of products of the largest layer"] = \
            sums * (6 + (3 * (self.workers.count + 1) if sums <= 8 * SMALL else 0))
        lines = max((min(ROWS, math.prod(task.form.shape[:-1])) * task.form.columns for task in self.tasks),
                    default=0)
        parts["weights being coded"] = COPIES * 8 * lines * self.workers.count
        words = {name: size(count) for name, count in parts.items()}
        words["activations"] += f" and {size(alive - kept)} on disk" if alive > kept else ""
        return (f"memory: about {size(sum(parts.values()))} beyond the program's own "
                f"({', '.join(f'{name} {count}' for name, count in words.items())})")

    def _code(self, task: Task, step, weights, checkpoint) -> Errors | None:
        group, began = task.group, time.perf_counter()
        matrix = weights.matrix(group)
        direct = weights.direct(matrix, group)
        coded = checkpoint.load(task.number, direct) if checkpoint else None
        if coded is None:
            inputs, reason = self._inputs(task, step)
            if reason:
                self.walk.override(group, weights.finish(task.number, matrix, Coded(direct), reason))
                return None
            coded = solve(matrix, direct, task.form, inputs, group.choice, weights.casting, self.workers)
            coded = replace(coded, seconds=time.perf_counter() - began)
            if checkpoint:
                checkpoint.save(task.number, coded)
        self.walk.override(group, weights.finish(task.number, matrix, coded))
        return coded.errors

    def _inputs(self, task: Task, step) -> tuple[Inputs | None, str]:
        """(what the layer meets, "" or why its weight is cast directly)."""
        try:
            inputs = self.walk.inputs(task.form, step)
            return inputs, "" if inputs.fit.rows else DIRECT["unmet"]
        except StreamsPart:
            return None, DIRECT["parted"]
        except InputError as error:
            site = task.form.site
            raise InputError(
                f"the inputs of {site.node.op} {site.node.title!r} (x in the float model, x_hat in the "
                f"quantised one): {error}. Repair the data, or keep layers before it float") from error

    def words(self, source, target, warnings: list[str]) -> dict:
        """What the report says of the run: calibration, memory and comparison of Report."""
        rows = sum(self.walk.rows)
        held = [batch for batch in range(self.walk.count) if self.walk.held(batch)]
        words = f"{len(held)} of them held back" if held else "a quarter of each layer's rows held back"
        names = str(source.path or "float model"), str(target or "quantised model")
        where = f"{self.data.source}, {'held back' if held else 'the calibration data itself'}"
        return {"calibration": f"{self.data.source}: {rows:,} rows in {self.walk.count} batches, {words}",
                "memory": self.memory_words().removeprefix("memory: "),
                "comparison": self._compared(held or range(self.walk.count), names, where, warnings)}

    def _compared(self, chosen, names, where: str, warnings: list[str]) -> Comparison | None:
        """The outputs of both streams on some batches; None where they are of different shapes, as outputs
        that are picked by their values may be."""
        comparer = Comparer(self.engine.model)
        for batch in chosen:
            ours, theirs = (self.walk.outputs(stream, batch) for stream in (FLOAT, HAT))
            for name, value in ours.items():
                if np.shape(value) != np.shape(theirs[name]):
                    warnings.append(
                        f"the outputs are not compared: {name!r} has the shape {np.shape(value)} in the "
                        f"float model and {np.shape(theirs[name])} in the quantised one")
                    return None
            comparer.add(self.walk.rows[batch], self.walk.labels[batch], ours, theirs)
        return comparer.result(*names, where, self.options.engine)


def _ratio(errors: Errors | None) -> str:
    """The output error of a layer beside that of direct cast, in words."""
    if errors is None:
        return "cast directly"
    return f"{errors.kept / errors.rtn:.3f} of the error of rtn" if errors.rtn else "exact"
