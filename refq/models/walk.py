"""A model as a composite function: both streams through it on calibration data, one node at a time.

Every node runs for all batches before the next one does. The float stream is the model as it was, the
quantised stream the same with the weights that were quantised so far. Tensors that are equal in both are kept
once, and all are dropped after their last use. Spec: MODEL-1.
"""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from refq.diffusion.stack import GramStack
from refq.models.choices import Group
from refq.models.engine import Engine, Step, key_of
from refq.models.layers import Form
from refq.models.store import Store
from refq.models.workers import Workers

HOLD_BACK = 4               # of so many batches one is held back; of a single batch, one of so many rows
FLOAT, HAT = "float", "quantised"
SMALL = 1 << 20             # numbers in the sums of a layer, up to which each task has sums of its own


@dataclass(frozen=True)
class Inputs:
    """What a layer met: sums over the rows its codes are made from, and over those held back (the same where
    there are too few to hold any back)."""

    fit: GramStack
    held: GramStack


class StreamsPart(Exception):
    """A layer meets other rows in the quantised stream than in the float stream, as behind a NonZero."""


class Walk:
    """The state of both streams.

    engine: the float model; quantised: the same, or another one that differs in the bodies of If, Loop and
    Scan, or in constants. overrides: node key -> {tensor name: array} that the quantised stream reads
    instead.
    """

    def __init__(self, engine: Engine, store: Store, workers: Workers):
        self.engine, self.store, self.workers = engine, store, workers
        self.steps = engine.steps()
        self.count, self.labels, self.rows = 0, [], []
        self.overrides: dict[str, dict[str, np.ndarray]] = {}
        self._differs: set[str] = set()
        self._met = self._inputs = None
        self._keys = {name: key_of(step.node) for step in self.steps for name in step.node.output}
        self.quantised = engine

    @property
    def quantised(self) -> Engine:
        """The engine of the quantised stream."""
        return self._quantised

    @quantised.setter
    def quantised(self, engine: Engine) -> None:
        self._quantised = engine
        self._others = {key_of(node): node for node in engine.model.graph.node}
        self._constants = _changed(self.engine, engine)

    def override(self, group: Group, seen) -> None:
        """Let every layer of a group in the main graph read its new weight in the quantised stream.

        seen: site -> array, or None where the weight stays.
        """
        for site in group.sites if seen else ():
            if site.key in self._keys:
                reads = self.overrides.setdefault(self._keys[site.key], {})
                reads[site.node.proto.input[site.operand]] = seen(site)

    def start(self, data) -> str:
        """Read all batches (refq.models.data.Batches). Returns a digest of them."""
        digest = hashlib.sha256()
        for number, batch in enumerate(data):
            labels = {} if batch.labels is None else {"labels": batch.labels}
            for name, array in (*batch.feeds.items(), *labels.items()):
                digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
            for name, value in self.engine.start(batch.feeds).items():
                self.store.put((FLOAT, number, name), value)
            self.labels.append(batch.labels)
            self.rows.append(batch.rows)
        self.count = len(self.rows)
        return digest.hexdigest()

    def feeds(self, batch: int) -> dict[str, np.ndarray]:
        """What a run begins with, before the walk."""
        return self._read(FLOAT, batch, self.engine.inputs)

    def probe(self, look) -> int:
        """Run the float stream for the first batch alone. look(step, values) is called after every node.

        Returns the bytes of the activations that were alive at most at one time.
        """
        values, most = self.feeds(0), 0
        for step in self.steps:
            values.update(self.engine.run_node(step.node, values))
            look(step, values)
            most = max(most, sum(getattr(value, "nbytes", 0) for value in values.values()))
            for name in step.finished:
                values.pop(name, None)
        return most

    def held(self, batch: int) -> bool:
        """Whether a batch is held back: the last of every HOLD_BACK, at least one of several."""
        return batch % HOLD_BACK == min(HOLD_BACK, self.count) - 1 and self.count > 1

    # -- one node --------------------------------------------------------------------------------------------

    def run_float(self, step: Step) -> None:
        def run(batch):
            self._keep(FLOAT, batch, self.engine.run_node(step.node, self._read(FLOAT, batch, step.reads)))
        for _ in self.workers.map(run, range(self.count)):
            pass

    def run_quantised(self, step: Step) -> None:
        """Where nothing that the node reads differs, its outputs are those of the float stream."""
        key = key_of(step.node)
        node = self._others.get(key, step.node)
        if not (key in self.overrides or self._differs.intersection(step.reads) or self._is_other(step)):
            return

        def run(batch):
            self._keep(HAT, batch, self.run_one(node, step, batch))
        for _ in self.workers.map(run, range(self.count)):
            pass
        self._differs.update(filter(None, step.node.output))

    def run_one(self, node: NodeProto, step: Step, batch: int) -> dict:
        """The outputs of a node in the quantised stream."""
        values = self._read(HAT, batch, step.reads) | self.overrides.get(key_of(node), {})
        return self.quantised.run_node(node, values)

    def finish(self, step: Step) -> None:
        """Drop what nothing reads any more."""
        for batch in range(self.count):
            for name in step.finished:
                for stream in (FLOAT, HAT):
                    self.store.drop((stream, batch, name))
        self.overrides.pop(key_of(step.node), None)

    def outputs(self, stream: str, batch: int) -> dict:
        """The model's outputs once all nodes ran."""
        engine = self.engine if stream == FLOAT else self.quantised
        values = self._read(stream, batch, engine.outputs)
        return {name: values[name] if name in values else engine.constants[name] for name in engine.outputs}

    def _is_other(self, step: Step) -> bool:
        """Whether the quantised stream has another node there, or other constants for it."""
        node = self._others.get(key_of(step.node), step.node)
        bodies = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        return node != step.node or bool(self._constants.intersection(node.input)) \
            or bodies and bool(self._constants)

    def _read(self, stream: str, batch: int, names) -> dict:
        keys = ((name, (HAT, batch, name)) for name in names)
        found = {}
        for name, key in keys:
            key = key if stream == HAT and key in self.store else (FLOAT, batch, name)
            if key in self.store:
                found[name] = self.store.get(key)
        return found

    def _keep(self, stream: str, batch: int, outputs: dict) -> None:
        for name, value in outputs.items():
            self.store.put((stream, batch, name), value)

    # -- what a layer meets ----------------------------------------------------------------------------------

    def inputs(self, form: Form, step: Step) -> Inputs:
        """The sums over a layer's inputs in both streams, after run_float of its node.

        Those of the last layer are kept for the next, which often meets the same, as the projections of an
        attention do.
        """
        met = form.meets()
        if met is None or met != self._met:
            self.forget()                                       # not two at a time
            self._met, self._inputs = met, self._summed(form, step)
        return self._inputs

    def forget(self) -> None:
        """Drop the sums that are kept for a next layer."""
        self._met = self._inputs = None

    def _summed(self, form: Form, step: Step) -> Inputs:
        found = Inputs(*(GramStack(form.products, form.columns) for _ in range(2)))
        blocks = self._blocks(form, step)
        tasks = [(found.held if self.held(block[0]) else found.fit, block) for block in blocks]
        if self.count == 1:
            for x, hat in self._pieces(form, step, 0):
                cut = x.shape[1] - x.shape[1] // HOLD_BACK
                for sums, rows in ((found.fit, slice(0, cut)), (found.held, slice(cut, None))):
                    sums.update(x[:, rows], None if hat is None else hat[:, rows], self.workers.map)
        elif form.products * form.columns ** 2 > SMALL:         # the products of a block in parallel
            for sums, block in tasks:
                for x, hat in self._rows(form, step, block):
                    sums.update(x, hat, self.workers.map)
        else:                                                   # blocks in parallel
            def one(task):
                part = GramStack(form.products, form.columns)
                for x, hat in self._rows(form, step, task[1]):
                    part.update(x, hat)
                return part
            for (sums, _), part in zip(tasks, self.workers.map(one, tasks)):
                sums.add(part)
        if found.fit.rows and found.held.rows:
            return found
        one = found.fit if found.fit.rows else found.held
        return Inputs(one, one)

    def _blocks(self, form: Form, step: Step) -> list[list[int]]:
        """Batches to sum over together, all held back or none: a product of few rows would cost less than to
        add it up."""
        output = self._read(FLOAT, 0, step.node.output[:1])
        rows = form.row_count(output[step.node.output[0]])
        per = max(1, -(-form.columns // max(1, rows)))
        batches = range(self.count)
        return [several[start:start + per]
                for several in ([b for b in batches if self.held(b) == held] for held in (False, True))
                for start in range(0, len(several), per)]

    def _rows(self, form: Form, step: Step, block: list[int]) -> Iterator[tuple]:
        """(x, x^ or None) of a block, of one batch in pieces."""
        if len(block) == 1:
            yield from self._pieces(form, step, block[0])
            return
        pieces = [piece for batch in block for piece in self._pieces(form, step, batch)]
        if not pieces:                                  # a layer may meet no rows at all
            return
        x, hat = zip(*pieces)
        yield np.concatenate(x, axis=1), None if hat[0] is None else np.concatenate(hat, axis=1)

    def _pieces(self, form: Form, step: Step, batch: int) -> Iterator[tuple]:
        """(x, x^ or None where they are one) of a form."""
        node, key = step.node, key_of(step.node)
        values = self._read(FLOAT, batch, (*step.reads, *filter(None, node.output)))
        ours = form.inputs(_reader(node, values, self.engine.constants), values.get(node.output[0]))
        moved = self._differs.intersection(step.reads) or self._is_other(step) \
            or form.needs_outputs and key in self.overrides
        if not moved:
            yield from ((x, None) for x in ours)
            return
        node = self._others.get(key, node)
        values = self._read(HAT, batch, step.reads) | self.overrides.get(key, {})
        output = self.quantised.run_node(node, values)[node.output[0]] if form.needs_outputs else None
        theirs = form.inputs(_reader(node, values, self.quantised.constants), output)
        for x, hat in itertools.zip_longest(ours, theirs):
            if x is None or hat is None or x.shape != hat.shape:
                raise StreamsPart
            yield x, hat


def _reader(node: NodeProto, values: dict, constants):
    """Operand number -> its value, None for one that is left out."""
    def read(number):
        name = node.input[number] if number < len(node.input) else ""
        return None if not name else values[name] if name in values else constants[name]
    return read


def _changed(engine: Engine, other: Engine) -> set[str]:
    """Names of constants that differ between two models."""
    if other is engine:
        return set()
    ours, theirs = engine.constants, other.constants
    return {name for name, array in theirs.items() if name not in ours or not _equal(ours[name], array)}


def _equal(a, b) -> bool:
    return isinstance(a, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape \
        and a.tobytes() == b.tobytes()


