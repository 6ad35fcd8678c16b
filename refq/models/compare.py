"""How far the answers of two models lie apart, measured on data and told as text, as JSON and as a page.

One batch is in memory at a time; sums are taken in float64 in the order of the data, so that the figures are
the same on every run.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import onnx

from refq.errors import InputError
from refq.formats.table import columns
from refq.models import data as model_data
from refq.models import page
from refq.models.engine import ENGINES
from refq.models.metrics import log_softmax
from refq.models.report import grade_sqnr
from refq.version import __version__

SCHEMA = 1              # of to_json; raised when a key changes its meaning or goes away
SLAB = 1 << 20          # values measured at a time
IGNORED = -100          # a label that does not count, as padding of texts is marked
# Share of rows with the same first choice, down to which it has a grade.
SAME_GRADES = ((0.995, "good"), (0.98, "fair"), (0.95, "poor"), (-1.0, "bad"))
LOSSLESS = "exact"

MEANINGS = (
    ("SQNR", "signal to quantisation noise of an output: 10 log10(sum a^2 / sum (a - b)^2), in dB. Six dB "
             "more is half the error."),
    ("cosine", "of the angle between the two models' values, taken as vectors."),
    ("max |a - b|", "the largest difference of two values."),
    ("KL", "mean over rows of KL(a || b) in nats, the probabilities being the softmax along the last axis, "
           "or the values themselves where a Softmax makes them. Given for outputs of floats of 2 or 3 axes, "
           "the last of 2 or more entries; it means something where these are logits or probabilities."),
    ("same top-1", "share of rows in which the largest entry is at the same place (of equal ones the "
                   "first)."),
    ("top-1, NLL", "share of the labels that have the largest entry, and mean negative log-likelihood of the "
                   "labels in nats. Perplexity is its exponential, given for [batch, time, vocabulary]. A "
                   f"label of {IGNORED} does not count."),
)


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
    """The outcome of compare_models. rows: of data. labelled: the output that the labels are of, "" without
    labels, and `labels` how many counted. answers: of a and b, with labels."""

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
        return _text(self)

    def to_json(self) -> dict:
        """The comparison as a dict that json.dumps takes. "refq_comparison" is the schema's number. Numbers
        that are not finite are the strings "inf", "-inf" and "nan"; null: does not apply."""
        facts = asdict(self)
        return {"refq_comparison": SCHEMA, "refq_version": facts.pop("version"), **_plain(facts)}

    def to_html(self) -> str:
        """The comparison as one self-contained page."""
        return _html(self)


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
    sums = {name: _Sums(name, _is_softmax(first, name), _is_softmax(second, name)) for name in first.outputs}
    score, rows, count = None, 0, 0
    tell, close = _teller(progress)
    try:
        for count, part in enumerate(found, 1):
            tell(count - 1, found.total)
            ours, theirs = first.run(part.feeds), second.run(_for_second(part.feeds, second))
            for name, measured in sums.items():
                measured.add(ours[name], theirs[name])
            if part.labels is not None:
                score = score or _Score(_labelled(part.labels, ours), sums)
                score.add(part.labels, ours, theirs)
            rows += part.rows
            tell(count, found.total)
    finally:
        close()
    names = _name(a, "model a"), _name(b, "model b")
    return Comparison(*names, found.source, engine, rows, count, tuple(map(_Sums.figures, sums.values())),
                      score.output if score else "", score.count if score else 0,
                      score.answers(names) if score else (), tuple(found.notes))


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


def _has_rows(value) -> bool:
    """Whether an output may be logits."""
    return _is_float(value) and value.ndim in (2, 3) and value.shape[-1] > 1


def _is_float(value) -> bool:
    return isinstance(value, np.ndarray) and (value.dtype.kind == "f" or "float" in value.dtype.name)


def _is_numeric(value) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind not in "OUST"


def _is_softmax(engine, output: str) -> bool:
    """Whether a Softmax makes an output; along which axis, the values tell."""
    makers = {name: node for node in engine.model.graph.node for name in node.output}
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
                measured |= {"sqnr_db": self._sqnr(), "cosine": self._cosine()}
        counts = self.values, self.unequal, self.nonfinite
        return OutputFigures(self.name, self.shape, *counts, **measured, **rows)

    def _sqnr(self) -> float:
        if not self.noise:
            return math.inf
        return 10 * (math.log10(self.signal) - math.log10(self.noise)) if self.signal else -math.inf

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
        self._check(labels, values[0])
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

    def _check(self, labels: np.ndarray, values: np.ndarray) -> None:
        if labels.dtype.kind not in "iu":
            raise InputError(f"labels are {labels.dtype}; they must be integers")
        if labels.shape != values.shape[:-1]:
            raise InputError(f"labels have shape {labels.shape}; output {self.output!r} of shape "
                             f"{values.shape} needs {values.shape[:-1]}")
        wrong = labels[((labels < 0) | (labels >= values.shape[-1])) & (labels != IGNORED)]
        if wrong.size:
            raise InputError(f"a label is {wrong.flat[0]}; the {values.shape[-1]} classes of output "
                             f"{self.output!r} allow 0..{values.shape[-1] - 1}, and {IGNORED} for what does "
                             "not count")

    def answers(self, names) -> tuple[Answers, ...]:
        """Of both models."""
        if not self.count:
            raise InputError(f"every label is {IGNORED}, so that none counts")
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


# -- text ----------------------------------------------------------------------------------------------------

def _plain(value):
    """Dicts and lists of numbers that JSON has."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _text(report: Comparison) -> str:
    head = ("output", "shape", "SQNR dB", "cosine", "max |a-b|", "KL", "same top-1", "")
    lines = [f"a  {report.a}", f"b  {report.b}", f"on {_data_words(report)}", "",
             columns([head, *map(_cells, report.outputs)], right=range(2, 7))]
    if report.answers:
        head = ("", "top-1", "NLL", *(["perplexity"] if report.answers[0].perplexity is not None else []))
        cells = [(letter, *_answer_cells(answers)) for letter, answers in zip("ab", report.answers)]
        lines += ["", f"{report.labels:,} labels of output {report.labelled}",
                  columns([head, *cells], right=range(1, len(head)))]
    lines += ["", _headline(report)[0], *(f"note: {note}" for note in report.notes)]
    return "\n".join(lines)


def _cells(row: OutputFigures) -> tuple[str, ...]:
    remarks = [row.reason]
    if row.values and row.sqnr_db is None:
        remarks.append(f"{row.unequal:,} of {row.values:,} values differ")
    if row.nonfinite:
        remarks.append(f"{row.nonfinite:,} of {row.values:,} values are NaN or infinite")
    if row.kl_infinite:
        remarks.append(f"KL of {row.kl_infinite:,} of {row.rows:,} rows is not finite")
    return (row.name, "x".join(map(str, row.shape)), _decibels(row), _number(row.cosine, ".6f"),
            _number(row.max_difference, ".4g"), _number(row.kl, ".4g"), _percent(row.same_top1),
            "; ".join(filter(None, remarks)))


def _answer_cells(answers: Answers) -> tuple[str, ...]:
    more = [] if answers.perplexity is None else [f"{answers.perplexity:.4g}"]
    return (_percent(answers.top1), f"{answers.nll:.4f}", *more)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _decibels(row: OutputFigures) -> str:
    if row.sqnr_db is None:
        return ""
    return LOSSLESS if row.sqnr_db == math.inf else f"{row.sqnr_db:.1f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _data_words(report: Comparison) -> str:
    counts = _count(report.rows, "row"), _count(report.batches, "batch")
    return f"{report.data}: {counts[0]} in {counts[1]}, engine {report.engine}"


def _count(number: int, word: str) -> str:
    plural = f"{word}es" if word.endswith("ch") else f"{word}s"
    return f"{number:,} {word if number == 1 else plural}"


def _headline(report: Comparison) -> tuple[str, str]:
    """What a reader should take away first, and its grade."""
    worst = report.worst
    values, unequal = (sum(getattr(row, part) for row in report.outputs) for part in ("values", "unequal"))
    if not values:
        return "No output could be measured.", "bad"
    if not unequal:
        return f"The two models give the same values on all {_count(report.rows, 'row')}.", "good"
    if worst is None:
        return f"{unequal:,} of {values:,} values differ.", _grade_same(1 - unequal / values)
    grade = grade_sqnr(worst.sqnr_db)
    where = f"Output {worst.name}" + (", the worst," if len(report.outputs) > 1 else "")
    if worst.sqnr_db == math.inf:
        sentences, grade = ["The outputs differ only in values that are NaN or infinite."], "bad"
    else:
        rows = "" if worst.same_top1 is None else (f", and {_percent(worst.same_top1)} of its rows have the "
                                                   "same first choice")
        sentences = [f"{where} has an SQNR of {worst.sqnr_db:.1f} dB{rows}."]
        if worst.same_top1 is not None:
            grade = _grade_same(worst.same_top1)
    if report.answers:
        a, b = report.answers
        sentences.append(f"Top-1 goes from {_percent(a.top1)} to {_percent(b.top1)}, " + (
            f"perplexity from {a.perplexity:.4g} to {b.perplexity:.4g}." if a.perplexity is not None
            else f"NLL from {a.nll:.4f} to {b.nll:.4f}."))
    return " ".join(sentences), grade


def _grade_same(share: float) -> str:
    return next(grade for least, grade in SAME_GRADES if share >= least)


# -- the page ------------------------------------------------------------------------------------------------

def _html(report: Comparison) -> str:
    sentence, grade = _headline(report)
    blocks = [page.headline(sentence, grade), page.tiles(_tiles(report))]
    if report.answers:
        blocks.append(_answers(report))
    if sum(row.sqnr_db is not None for row in report.outputs) > 1:
        blocks.append(_worst_first(report))
    head = ("output", "shape", "SQNR dB", "cosine", "max |a - b|", "KL", "same top-1", "")
    rows = [_html_row(row) for row in report.outputs]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    blocks.append(page.section("Every output", page.table(head, rows, numeric=(2, 3, 4, 5, 6)),
                               "b against a. Shapes are those of the first batch."))
    if report.notes:
        blocks.append(page.section("Notes", page.bullets(report.notes)))
    blocks.append(page.section("What the columns mean", page.definitions(MEANINGS)))
    names = [name.replace("\\", "/").rsplit("/", 1)[-1] for name in (report.a, report.b)]
    subtitle = f"a: {report.a} · b: {report.b} · {_data_words(report)}"
    title = f"{names[0]} and {names[1]}: outputs compared"
    return page.page(title, subtitle, blocks, f"refq {report.version}")


def _tiles(report: Comparison) -> list[tuple[str, str, str]]:
    worst = report.worst
    entries = [("rows of data", f"{report.rows:,}", f"{report.data}, {_count(report.batches, 'batch')}")]
    if worst is None:
        return entries
    decibels = _decibels(worst)
    entries.append(("lowest SQNR", decibels if decibels == LOSSLESS else f"{decibels} dB", worst.name))
    if worst.same_top1 is not None:
        entries += [("same top-1", _percent(worst.same_top1), f"of {_count(worst.rows, 'row')}"),
                    ("KL", _number(worst.kl, ".4g"), "nats, mean over rows")]
    if report.answers:
        a, b = report.answers
        entries.append(("top-1 of b", _percent(b.top1), f"a: {_percent(a.top1)}"))
        entries.append(("NLL of b", f"{b.nll:.4f}", f"a: {a.nll:.4f}") if b.perplexity is None
                       else ("perplexity of b", f"{b.perplexity:.4g}", f"a: {a.perplexity:.4g}"))
    return entries


def _answers(report: Comparison) -> str:
    panels = []
    for title, facts, text in (("top-1", "top1", _percent), ("NLL, nats", "nll", "{:.4f}".format),
                               ("perplexity", "perplexity", "{:.4g}".format)):
        values = [getattr(answers, facts) for answers in report.answers]
        if None in values:
            continue
        full = 1.0 if facts == "top1" else max(filter(math.isfinite, values), default=0.0)
        panels.append((title, [page.Bar(letter, value if math.isfinite(value) else full, text(value))
                               for letter, value in zip("ab", values)], full))
    return page.section("Against the labels", page.bars(panels),
                        f"{report.labels:,} labels of output {report.labelled}; long bars are good for top-1 "
                        "and bad for the others.")


def _worst_first(report: Comparison) -> str:
    rows = sorted((row for row in report.outputs if row.sqnr_db is not None), key=lambda row: row.sqnr_db)
    errors = [10 ** (-max(row.sqnr_db, -20.0) / 20) for row in rows]
    bars = [page.Bar(row.name, error, _decibels(row), grade_sqnr(row.sqnr_db))
            for row, error in zip(rows, errors)]
    panel = ("error against signal, SQNR dB", bars, max(errors))
    return page.section("Which output hurts", page.bars([panel]),
                        "The outputs that differ most come first; long bars are bad.")


def _html_row(row: OutputFigures) -> tuple:
    name, shape, decibels, cosine, largest, kl, same, remarks = _cells(row)
    if row.sqnr_db is not None:
        decibels = page.graded(decibels, grade_sqnr(row.sqnr_db))
    if row.same_top1 is not None:
        same = page.graded(same, _grade_same(row.same_top1))
    return name, shape.replace("x", "×"), decibels, cosine, largest, kl, same, remarks
