"""The report of quantize_model: what became of each weight, and of the outputs of each layer."""

import math
import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field

import onnx

from refq.models.compare import Comparison
from refq.models.figures import plain, size
from refq.models.measure import Measure, measure
from refq.models.metrics import ratio_db
from refq.models.page import Histogram

SCHEMA = 2              # of to_json; raised when a key changes its meaning or goes away
DIRECT = "rtn"          # the method that every other one is held against
# What OutputErrors work out; with its fields they make the object "errors" of a row's JSON.
DERIVED = ("ratio", "asked_ratio", "added_error", "accumulated_sqnr_db", "rtn_sqnr_db", "inherited_sqnr_db",
           "local_sqnr_db")


@dataclass(frozen=True)
class OutputErrors:
    """What quantising one layer O = X W^T did to its outputs, as sums of squares.

    X: the layer's inputs in the float model; X^: those it meets behind the quantised layers before it; Q: its
    quantised weights.

    asked: the method asked for (what was kept is Row.method). rows: calibration rows that the codes were made
    from. held: rows held back, on which everything here is measured; 0: measured on the former.
    signal: ||X W^T||^2.
    rtn_error, asked_error, error: ||X W^T - X^ Q^T||^2 with Q of direct cast, of the method asked for, and as
    kept.
    local_error: ||X (W - Q)^T||^2, the layer alone behind float layers. inherited_error: ||(X - X^) W^T||^2,
    what its outputs would have lost had it stayed in float. None: not measured.
    seconds: that the layer took.
    """

    asked: str
    rows: int
    held: int
    signal: float
    rtn_error: float
    asked_error: float
    error: float
    local_error: float | None = None
    inherited_error: float | None = None
    seconds: float | None = None

    @property
    def ratio(self) -> float | None:
        """The error over that of direct cast; None where that has none."""
        return _over(self.error, self.rtn_error)

    @property
    def asked_ratio(self) -> float | None:
        """The same for the method asked for."""
        return _over(self.asked_error, self.rtn_error)

    @property
    def added_error(self) -> float | None:
        """What the layer's own quantisation adds; below 0 where it makes good for layers before it."""
        if self.inherited_error is None:
            return None
        return _cut(self.error) - _cut(self.inherited_error)

    @property
    def accumulated_sqnr_db(self) -> float:
        """Of the outputs, with all that earlier layers lost; inf: exact."""
        return ratio_db(self.signal, self.error)

    @property
    def rtn_sqnr_db(self) -> float:
        """The same, had this layer been cast directly."""
        return ratio_db(self.signal, self.rtn_error)

    @property
    def inherited_sqnr_db(self) -> float | None:
        """The same, had this layer stayed in float."""
        return None if self.inherited_error is None else ratio_db(self.signal, self.inherited_error)

    @property
    def local_sqnr_db(self) -> float | None:
        """Of the outputs behind float layers."""
        return None if self.local_error is None else ratio_db(self.signal, self.local_error)

    @property
    def hurt(self) -> float:
        """The error that the layer adds (where that was not measured, all of it) over the signal. What is not
        a number hurts without limit."""
        added = _cut(self.error) if self.added_error is None else self.added_error
        if self.signal > 0 and math.isfinite(added / self.signal):
            return added / self.signal
        return 0.0 if added <= 0 else math.inf


@dataclass(frozen=True)
class Row:
    """One weight-bearing node.

    node: its name (may be empty). output: its first output, the layer's key. where: the body it is in, "" for
    the main graph. tensor: the weight. reached: operators between the stored weight and the node. shape: of
    the weight as the node reads it. axis: reduction axis of the matrix that was cast. dtype: the data type,
    or the file's type when skipped. status: "quantised" or "skipped". reason: why it was skipped, or what
    else to know. method: what the codes come from, in words: "ed", or "ed, rtn in 3 of 144 parts". shared:
    keys of the other layers that use the same quantised weight. bits, stored_bits: per weight. encoding: in
    words. sqnr_db: of the weights, inf when nothing was lost. saturated, flushed: shares of the weights.
    errors: of the outputs, None without calibration data. first: of the layers that share its weight.
    """

    node: str
    op: str
    output: str
    tensor: str
    shape: tuple[int, ...]
    dtype: str
    status: str
    reason: str = ""
    where: str = ""
    reached: tuple[str, ...] = ()
    axis: int | None = None
    method: str = ""
    parameters: int = 0
    bits: float | None = None
    stored_bits: float | None = None
    encoding: str = ""
    sqnr_db: float | None = None
    saturated: float | None = None
    flushed: float | None = None
    shared: tuple[str, ...] = ()
    histogram: Histogram | None = None
    errors: OutputErrors | None = None
    first: bool = True

    @property
    def quantised(self) -> bool:
        return self.status == "quantised"

    @property
    def title(self) -> str:
        """The node's name where it has one, else its output."""
        return self.node or self.output

    @property
    def decisive_db(self) -> float | None:
        """The SQNR that counts: of the outputs where they were measured, else of the weights."""
        return self.errors.accumulated_sqnr_db if self.errors else self.sqnr_db

    @property
    def rtn_kept(self) -> bool:
        """Whether direct cast was better than the method asked for."""
        return self.errors is not None and self.method == DIRECT != self.errors.asked


@dataclass(frozen=True)
class Gain:
    """The output errors of a model's weights over those of direct cast.

    layers: weights measured for which another method was asked. better, worse: whose error is below, above
    that of direct cast. rtn_kept: where direct cast was kept. mean_ratio, median_ratio: geometric mean and
    median of the ratios that are finite and above 0; None where none is.
    """

    layers: int
    better: int
    worse: int
    rtn_kept: int
    mean_ratio: float | None
    median_ratio: float | None


@dataclass(frozen=True)
class Report:
    """The outcome of quantize_model: settings, one row per weight-bearing node in file order, totals.

    File order is an order of running. dtype, method: the defaults; rules: (pattern, "data type[:method]" or
    "float") of what differs, in the order given. model: the quantised ModelProto when no output path was
    given, else None. parameters: floating-point values stored in the source. source_bytes, target_bytes:
    sizes of the two models, data files included. calibration: the data, in words; "" without. comparison:
    the outputs of the float and the quantised model on data held back. memory: in words. seconds: in all.
    """

    rows: tuple[Row, ...]
    dtype: str
    method: str
    export: str
    rounding: str
    recipe: str
    version: str
    parameters: int
    source_bytes: int
    target_bytes: int
    source: str = ""
    target: str = ""
    warnings: tuple[str, ...] = ()
    rules: tuple[tuple[str, str], ...] = ()
    calibration: str = ""
    comparison: Comparison | None = None
    memory: str = ""
    seconds: float | None = None
    model: onnx.ModelProto | None = field(default=None, repr=False, compare=False)

    @property
    def weights(self) -> tuple[Row, ...]:
        """The quantised rows, of those that share a weight only the first."""
        return tuple(row for row in self.rows if row.quantised and row.first)

    @property
    def measured(self) -> tuple[Row, ...]:
        """The weights whose layers' outputs were measured."""
        return tuple(row for row in self.weights if row.errors)

    @property
    def dtypes(self) -> dict[str, int]:
        """Data type -> number of layers, the most frequent first."""
        return dict(Counter(row.dtype for row in self.rows if row.quantised).most_common())

    @property
    def quantised_parameters(self) -> int:
        return sum(row.parameters for row in self.weights)

    @property
    def average_bits(self) -> float | None:
        """Bits per quantised weight, scales included; None when nothing was quantised."""
        return self._average(lambda row: row.bits)

    @property
    def average_stored_bits(self) -> float | None:
        return self._average(lambda row: row.stored_bits)

    @property
    def worst(self) -> Row | None:
        """The layer that hurts most: whose quantisation adds the largest error to its outputs for their
        signal, where outputs were measured; else the one of lowest SQNR of the weights. None when nothing was
        lost."""
        if self.measured:
            return max((row for row in self.measured if row.errors.hurt > 0),
                       key=lambda row: row.errors.hurt, default=None)
        return _lowest(self.weights)

    @property
    def lowest(self) -> Row | None:
        """The row of lowest SQNR, whatever earlier layers have to do with it; None when nothing was lost."""
        return _lowest(self.measured or self.weights)

    @property
    def gain(self) -> Gain | None:
        """What the method gained over direct cast; None where nothing was measured or nothing else asked."""
        rows = [row for row in self.measured if row.errors.asked != DIRECT]
        ratios = [row.errors.ratio for row in rows if row.errors.ratio and math.isfinite(row.errors.ratio)]
        if not rows:
            return None
        return Gain(len(rows), sum(row.errors.error < row.errors.rtn_error for row in rows),
                    sum(row.errors.error > row.errors.rtn_error for row in rows),
                    sum(row.rtn_kept for row in rows),
                    statistics.geometric_mean(ratios) if ratios else None,
                    statistics.median(ratios) if ratios else None)

    def table(self) -> str:
        """The report as text of about 120 columns, with totals and the worst layer below."""
        from refq.models.report_text import text
        return text(self)

    def to_html(self, extra_sections=()) -> str:
        """The report as one self-contained page. extra_sections: (title, HTML) pairs for the end of it."""
        from refq.models.report_page import html
        return html(self, extra_sections)

    def to_json(self) -> dict:
        """The report as a dict that json.dumps takes.

        "refq_report" is the schema's number. "settings": names as in quantize_model, "rules" as [pattern,
        data type and method] pairs. "totals": counts, bits, bytes; "worst_output" is the key of the layer
        that hurts most (Report.worst) and "worst_sqnr_db" the SQNR of its outputs, where outputs were
        measured ("measured_layers" above 0), else of its weights; "gain" is Gain or null. "rows": Row; of
        "errors", the fields of OutputErrors and, worked out from them, DERIVED. "comparison":
        Comparison.to_json, or null.

        An SQNR in dB of "inf" means that nothing was lost; other numbers that are not finite are "-inf" and
        "nan". null: does not apply, or was not measured.
        """
        settings = ("dtype", "method", "export", "rounding", "recipe", "rules", "calibration")
        return plain({
            "refq_report": SCHEMA, "refq_version": self.version, "source": self.source, "target": self.target,
            "settings": {name: getattr(self, name) for name in settings}, "totals": self._totals(),
            "warnings": self.warnings, "rows": [_row_json(row) for row in self.rows],
            "comparison": self.comparison.to_json() if self.comparison else None
        })

    def _totals(self) -> dict:
        worst = self.worst
        return {
            "layers": len(self.rows), "quantised_layers": sum(row.quantised for row in self.rows),
            "measured_layers": sum(row.errors is not None for row in self.rows), "dtypes": self.dtypes,
            "parameters": self.parameters, "quantised_parameters": self.quantised_parameters,
            "average_bits": self.average_bits, "average_stored_bits": self.average_stored_bits,
            "source_bytes": self.source_bytes, "target_bytes": self.target_bytes,
            "worst_output": worst.output if worst else None,
            "worst_sqnr_db": worst.decisive_db if worst else None,
            "gain": asdict(self.gain) if self.gain else None, "memory": self.memory, "seconds": self.seconds
        }

    def _average(self, bits) -> float | None:
        total = self.quantised_parameters
        return sum(bits(row) * row.parameters for row in self.weights) / total if total else None


def _over(error: float, rtn_error: float) -> float | None:
    if not rtn_error > 0:
        return None
    return _cut(error) / rtn_error


def _cut(error: float) -> float:
    """A sum of squares, which rounding may have left just below 0."""
    return 0.0 if error < 0 else error


def _lowest(rows) -> Row | None:
    lossy = [row for row in rows if row.decisive_db is not None and row.decisive_db != math.inf]
    return min(lossy, key=lambda row: -math.inf if math.isnan(row.decisive_db) else row.decisive_db,
               default=None)


def _row_json(row: Row) -> dict:
    facts = asdict(row)
    if row.errors:
        facts["errors"] |= {name: getattr(row.errors, name) for name in DERIVED}
    return facts


__all__ = ["DERIVED", "SCHEMA", "Gain", "Measure", "OutputErrors", "Report", "Row", "measure", "size"]
