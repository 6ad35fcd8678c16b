"""How far the answers of two models lie apart, measured on data, batch by batch.

One batch is in memory at a time; sums are taken in float64 in the order of the data, so that the figures are
the same on every run.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import onnx

from refq.errors import InputError
from refq.models import data as model_data
from refq.models.engine import ENGINES
from refq.models.figures import plain
from refq.models.metrics import log_softmax, ratio_db
from refq.version import __version__

SCHEMA = 1              # of to_json; raised when a key changes its meaning or goes away
SLAB = 1 << 20          # values measured at a time
IGNORED = -100          # a label that does not count, as padding of texts is marked


@dataclass(frozen=True)
class OutputFigures:
    """One output of the two models. shape: of the first batch. values: compared. unequal: that differ at all.

    sqnr_db, cosine: of floats; sqnr_db is inf when no value differs, -inf when only a is all zero. nonfinite:
    values that are NaN or infinite in one model at least; sqnr_db, cosine and max_difference leave them out.
    rows: of probabilities; kl is over those of a finite one, kl_infinite counts the others. None: does not
    apply. reason: why nothing could be measured.
    """

    name: str
    shape: tuple[int, ...]
    values: int = 0
    unequal: int = 0
    nonfinite: int = 0
    sqnr_db: float | None = None
    cosine: float | None = None
    max_difference: float | None = None
    rows: int = 0
    kl: float | None = None
    kl_infinite: int = 0
    same_top1: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Answers:
    """One model against the labels. perplexity: None where the output is no text's."""

    model: str
    top1: float
    nll: float
    perplexity: float | None


@dataclass(frozen=True)
class Comparison:
    """The outcome of compare_models. a, b: names of the models. data: in words. rows: of data. labelled: the
    output that the labels are of, "" without labels, and `labels` how many counted. answers: of a and b, with
    labels that count."""

    a: str
    b: str
    data: str
    engine: str
    rows: int
    batches: int
    outputs: tuple[OutputFigures, ...]
    labelled: str
    labels: int
    answers: tuple[Answers, ...]
    notes: tuple[str, ...]
    version: str = __version__

    @property
    def worst(self) -> OutputFigures | None:
        """The output of lowest SQNR; None when none is of floats."""
        return min((row for row in self.outputs if row.sqnr_db is not None), key=lambda row: row.sqnr_db,
                   default=None)

    def table(self) -> str:
        """The comparison as text for a terminal."""
        from refq.models.compare_text import text
        return text(self)

    def to_json(self) -> dict:
        """The comparison as a dict that json.dumps takes. "refq_comparison" is the schema's number. Numbers
        that are not finite are the strings "inf", "-inf" and "nan"; null: does not apply."""
        facts = asdict(self)
        return {"refq_comparison": SCHEMA, "refq_version": facts.pop("version"), **plain(facts)}

    def to_html(self) -> str:
        """The comparison as one self-contained page."""
        from refq.models.compare_page import html
        return html(self)


def compare_models(a, b, data, labels=None, engine="numpy", batch=None, progress=None) -> Comparison:
    """Run two models on the same data and measure how far b's outputs lie from a's.

    a, b: paths or ModelProtos; their inputs and outputs have the same names and shapes (float types may
    differ). data, labels, batch: as in refq.models.data.batches. Labels go with the first output of 2 or 3
    axes whose shape without the last axis they have. engine: "numpy" or "onnxruntime". progress: True for a
    bar on the terminal, or a function of (batches done, all of them or None).

    Raises InputError when the models, or the data and the models, do not fit together.
    """
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r} is unknown; there are {', '.join(ENGINES)}")
    first, second = ENGINES[engine](a), ENGINES[engine](b)
    _require_same_interface(first, second)
    inputs = {name: declared for name, declared in first.inputs.items()
              if name not in first.defaults or name in second.inputs}
    found = model_data.batches(data, inputs, batch, labels, inputs.keys() & first.defaults.keys())
    comparer = Comparer(first.model, second.model)
    tell, close = _teller(progress)
    try:
        for count, part in enumerate(found, 1):
            tell(count - 1, found.total)
            comparer.add(part.rows, part.labels, first.run(part.feeds),
                         second.run(_for_second(part.feeds, second)))
            tell(count, found.total)
    finally:
        close()
    result = comparer.result(_name(a, "model a"), _name(b, "model b"), found.source, engine, found.notes)
    if result.labelled and not result.labels:
        raise InputError(f"every label is {IGNORED}, so that none counts")
    return result


class Comparer:
    """Compares the outputs of two models that somebody else runs.

    a, b: ModelProtos, of which only the outputs are looked at; b None: b ends as a does.

        comparer = Comparer(a, b)
        for part in data:
            comparer.add(part.rows, part.labels, outputs_of_a, outputs_of_b)
        comparison = comparer.result("a.onnx", "b.onnx", data.source)
    """

    def __init__(self, a: onnx.ModelProto, b: onnx.ModelProto | None = None):
        makers = [_makers(model) for model in (a, a if b is None else b)]
        self._sums = {name: _Sums(name, *(_is_softmax(each, name) for each in makers))
                      for name in (value.name for value in a.graph.output)}
        self._score: _Score | None = None
        self.rows = self.batches = 0

    def check(self, labels: np.ndarray, outputs: dict) -> None:
        """Raises InputError where `add` would for these labels: before long work, say, on outputs of a."""
        output = _labelled(labels, {name: outputs[name] for name in self._sums})
        _check_labels(labels, output, outputs[output])

    def add(self, rows: int, labels: np.ndarray | None, ours: dict, theirs: dict) -> None:
        """One batch. rows: of data, to be counted. labels: of the first output of 2 or 3 axes whose shape
        without the last axis they have. ours, theirs: the outputs of a and b, name -> array; others may be
        among them. Raises InputError for labels or outputs that do not fit."""
        for name, measured in self._sums.items():
            measured.add(ours[name], theirs[name])
        if labels is not None:
            if self._score is None:
                own = {name: ours[name] for name in self._sums}
                self._score = _Score(_labelled(labels, own), self._sums)
            self._score.add(labels, ours, theirs)
        self.rows += rows
        self.batches += 1

    def result(self, a: str = "float model", b: str = "quantised model", data: str = "",
               engine: str = "numpy", notes=()) -> Comparison:
        """What all batches together say. a, b: names of the models. data: where it is from, in words."""
        score = self._score
        return Comparison(a, b, data, engine, self.rows, self.batches,
                          tuple(map(_Sums.figures, self._sums.values())), score.output if score else "",
                          score.count if score else 0, score.answers((a, b)) if score else (), tuple(notes))


# -- do they fit together ------------------------------------------------------------------------------------

def _require_same_interface(first, second) -> None:
    needed = [{name for name in each.inputs if name not in each.defaults} for each in (first, second)]
    _require_same("inputs", *needed)
    _require_same("outputs", set(first.outputs), set(second.outputs))
    for name in sorted(needed[0]):
        ours, theirs = first.inputs[name], second.inputs[name]
        if (ours is None) != (theirs is None) or ours and not _same_type(ours, theirs):
            raise InputError(f"input {name!r} is {_type_words(ours)} in a and {_type_words(theirs)} in b; "
                             "two models are compared on the same inputs")


def _require_same(what: str, ours: set, theirs: set) -> None:
    words = [f"only {model} has {', '.join(map(repr, sorted(more)))}"
             for model, more in (("a", ours - theirs), ("b", theirs - ours)) if more]
    if words:
        raise InputError(f"the models differ in their {what}: {' and '.join(words)}")


def _same_type(ours, theirs) -> bool:
    """Whether data of one fits the other: equal numbers in the shape, the same dtype or both floats."""
    (kind, dims), (other, others) = ours, theirs
    if kind != other and not ("float" in kind.name and "float" in other.name):
        return False
    return dims is None or others is None or len(dims) == len(others) and all(
        x == y for x, y in zip(dims, others) if isinstance(x, int) and isinstance(y, int))


def _type_words(declared) -> str:
    if declared is None:
        return "no tensor of numbers"
    dtype, dims = declared
    shape = "any shape" if dims is None else ", ".join("any" if dim is None else str(dim) for dim in dims)
    return f"{dtype} ({shape})"


def _for_second(feeds: dict, second) -> dict:
    """The same data in b's float types."""
    return {name: model_data.fit_dtype(array, second.inputs[name][0], f"b's input {name!r}")[0]
            for name, array in feeds.items()}


def _labelled(labels: np.ndarray, outputs: dict) -> str:
    """The output that labels of this shape are of."""
    for name, value in outputs.items():
        if _has_rows(value) and value.shape[:-1] == labels.shape:
            return name
    shapes = ", ".join(f"{name!r} {getattr(value, 'shape', '')}" for name, value in outputs.items())
    raise InputError(f"the labels of a batch have shape {labels.shape}, which goes with none of the outputs: "
                     f"{shapes}; labels have the shape of the logits without the last axis")


def _check_labels(labels: np.ndarray, output: str, values: np.ndarray) -> None:
    """InputError where labels are none of the output of that name."""
    if labels.dtype.kind not in "iu":
        raise InputError(f"labels are {labels.dtype}; they must be integers")
    if labels.shape != values.shape[:-1]:
        raise InputError(f"labels have shape {labels.shape}; output {output!r} of shape "
                         f"{values.shape} needs {values.shape[:-1]}")
    wrong = labels[((labels < 0) | (labels >= values.shape[-1])) & (labels != IGNORED)]
    if wrong.size:
        raise InputError(f"a label is {wrong.flat[0]}; the {values.shape[-1]} classes of output {output!r} "
                         f"allow 0..{values.shape[-1] - 1}, and {IGNORED} for what does not count")


def _has_rows(value) -> bool:
    """Whether an output may be logits."""
    return _is_float(value) and value.ndim in (2, 3) and value.shape[-1] > 1


def _is_float(value) -> bool:
    return isinstance(value, np.ndarray) and (value.dtype.kind == "f" or "float" in value.dtype.name)


def _is_numeric(value) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind not in "OUST"


def _makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Tensor of the main graph -> the node that makes it."""
    return {name: node for node in model.graph.node for name in node.output}


def _is_softmax(makers: dict[str, onnx.NodeProto], output: str) -> bool:
    """Whether a Softmax makes an output; along which axis, the values tell."""
    node = makers.get(output)
    while node is not None and node.op_type in ("Identity", "Cast", "Reshape", "Flatten"):
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "Softmax"


def _sums_to_one(values: np.ndarray) -> bool:
    """Whether rows may be probabilities, rounded to few bits perhaps."""
    rows = values.reshape(-1, values.shape[-1])[:SLAB // values.shape[-1] + 1].astype(np.float64)
    return bool((rows >= 0).all() and (np.abs(rows.sum(axis=-1) - 1) < 0.02).all())


def _name(model, otherwise: str) -> str:
    return otherwise if isinstance(model, onnx.ModelProto) else str(model)


def _teller(progress) -> tuple[Callable, Callable]:
    """(what is told of (batches done, all), what is called at the end)."""
    if callable(progress):
        return progress, lambda: None
    if not progress:
        return lambda done, total: None, lambda: None
    from tqdm import tqdm
    bar = tqdm(unit="batch", leave=False)

    def tell(done, total):
        bar.total = total
        bar.update(done - bar.n)
    return tell, bar.close


# -- measuring -----------------------------------------------------------------------------------------------

class _Sums:
    """What is known of one output so far. ours, theirs: whether it is probabilities, not logits."""

    def __init__(self, name: str, ours: bool, theirs: bool):
        self.name, self.probabilities, self.reason = name, (ours, theirs), ""
        self.shape, self.floats, self.classes = None, False, False
        self.values = self.unequal = self.nonfinite = self.rows = self.kl_rows = self.same = 0
        self.signal = self.other = self.product = self.noise = self.largest = self.kl = 0.0

    def add(self, ours, theirs) -> None:
        """The values of one batch."""
        if not (_is_numeric(ours) and _is_numeric(theirs)):
            self.shape, self.reason = self.shape or (), "no tensor of numbers"
            return
        if ours.shape != theirs.shape:
            raise InputError(f"output {self.name!r} has shape {ours.shape} in a and {theirs.shape} in b; two "
                             "models are compared on the same outputs")
        if self.shape is None:
            self.shape, self.floats = ours.shape, _is_float(ours) and _is_float(theirs)
            self.classes = self.floats and _has_rows(ours)
            self.probabilities = tuple(said and self.classes and _sums_to_one(value)
                                       for said, value in zip(self.probabilities, (ours, theirs)))
        x, y = ours.reshape(-1), theirs.reshape(-1)
        for start in range(0, x.size, SLAB):
            self._add_values(*(part[start:start + SLAB].astype(np.float64) for part in (x, y)))
        if self.classes and _has_rows(ours):
            for parts in _row_slabs(ours, theirs):
                self._add_rows(*parts)

    def _add_values(self, x: np.ndarray, y: np.ndarray) -> None:
        self.values += x.size
        self.unequal += int(np.count_nonzero((x != y) & ~(np.isnan(x) & np.isnan(y))))
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            self.nonfinite += int(x.size - np.count_nonzero(finite))
            x, y = x[finite], y[finite]
        with np.errstate(over="ignore"):        # float64 outputs beyond 1e154: the sums are infinite
            difference = x - y
            self.signal += float(np.sum(x * x))
            self.other += float(np.sum(y * y))
            self.product += float(np.sum(x * y))
            self.noise += float(np.sum(difference * difference))
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))

    def _add_rows(self, x: np.ndarray, y: np.ndarray) -> None:
        log_p, log_q = (_log_probabilities(*pair) for pair in zip((x, y), self.probabilities))
        with np.errstate(invalid="ignore"):     # -Inf - -Inf where p is 0
            p = np.exp(log_p)
            kl = np.where(p == 0, 0.0, p * (log_p - log_q)).sum(axis=-1)
        finite = np.isfinite(kl)
        self.rows += len(kl)
        self.kl_rows += int(np.count_nonzero(finite))
        self.kl += float(np.sum(kl[finite]))
        clean = ~(np.isnan(x) | np.isnan(y)).any(axis=-1)
        self.same += int(np.count_nonzero((x.argmax(axis=-1) == y.argmax(axis=-1)) & clean))

    def figures(self) -> OutputFigures:
        """The figures of all batches."""
        if self.reason or not self.values:
            return OutputFigures(self.name, self.shape or (), reason=self.reason or "no values")
        rows = {}
        if self.rows:
            rows = {"rows": self.rows, "kl": self.kl / self.kl_rows if self.kl_rows else math.inf,
                    "kl_infinite": self.rows - self.kl_rows, "same_top1": self.same / self.rows}
        measured = {}
        if self.values > self.nonfinite:
            measured = {"max_difference": self.largest}
            if self.floats:
                measured |= {"sqnr_db": ratio_db(self.signal, self.noise), "cosine": self._cosine()}
        counts = self.values, self.unequal, self.nonfinite
        return OutputFigures(self.name, self.shape, *counts, **measured, **rows)

    def _cosine(self) -> float:
        if not self.signal or not self.other:
            return float(self.signal == self.other)
        cosine = self.product / (math.sqrt(self.signal) * math.sqrt(self.other))
        return max(-1.0, min(1.0, cosine))


class _Score:
    """How often, and how surely, two models are right so far."""

    def __init__(self, output: str, sums: dict):
        self.output, self.probabilities = output, sums[output].probabilities
        self.count, self.text, self.right, self.loss = 0, False, [0, 0], [0.0, 0.0]

    def add(self, labels: np.ndarray, *outputs: dict) -> None:
        """The labels of one batch and the outputs of a and b."""
        values = [each[self.output] for each in outputs]
        _check_labels(labels, self.output, values[0])
        self.text = values[0].ndim == 3
        flat = labels.reshape(-1).astype(np.int64)
        self.count += int(np.count_nonzero(flat != IGNORED))
        for model, value in enumerate(values):
            start = 0
            for (rows,) in _row_slabs(value):
                part = flat[start:start + len(rows)]
                start += len(rows)
                self._add(model, rows[part != IGNORED], part[part != IGNORED])

    def _add(self, model: int, rows: np.ndarray, labels: np.ndarray) -> None:
        right = (rows.argmax(axis=-1) == labels) & ~np.isnan(rows).any(axis=-1)
        self.right[model] += int(np.count_nonzero(right))
        chosen = _log_probabilities(rows, self.probabilities[model])[np.arange(len(labels)), labels]
        self.loss[model] -= float(np.sum(chosen))

    def answers(self, names) -> tuple[Answers, ...]:
        """Of both models; none when no label counts."""
        if not self.count:
            return ()
        losses = [loss / self.count for loss in self.loss]
        return tuple(Answers(name, right / self.count, loss, _exp(loss) if self.text else None)
                     for name, right, loss in zip(names, self.right, losses))


def _row_slabs(*values: np.ndarray):
    """Tuples of about SLAB values each as float64 rows [rows, classes], in order."""
    classes = values[0].shape[-1]
    flat, step = [value.reshape(-1, classes) for value in values], max(1, SLAB // classes)
    for start in range(0, len(flat[0]), step):
        yield tuple(rows[start:start + step].astype(np.float64) for rows in flat)


def _log_probabilities(rows: np.ndarray, probabilities: bool) -> np.ndarray:
    if not len(rows):
        return rows
    if not probabilities:
        return log_softmax(rows)
    with np.errstate(divide="ignore", invalid="ignore"):        # log 0 is -Inf, and of what is negative NaN
        return np.log(rows)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
