"""What quantising a model did to each of its weights: measured, and told as text, as JSON and as a page."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import onnx

from refq.blocks.quantize import unit_factors
from refq.formats.codec import decode
from refq.formats.listed import key
from refq.models import page

SCHEMA = 1              # of to_json; raised when a key changes its meaning or goes away
SLAB = 1 << 20          # weights measured at a time
WORST = 40              # layers in the bar plot
# SQNR in dB from which a layer has a grade, and shares of weights up to which it has one. Four-bit elements
# flush about a tenth of normally distributed weights, so that this alone is no alarm.
SQNR_GRADES = ((30.0, "good"), (18.0, "fair"), (12.0, "poor"), (-np.inf, "bad"))
SHARE_GRADES = {"saturated": ((0.002, "good"), (0.02, "fair"), (0.1, "poor"), (np.inf, "bad")),
                "flushed": ((0.02, "good"), (0.2, "fair"), (0.4, "poor"), (np.inf, "bad"))}

MEANINGS = (
    ("SQNR",
     "signal to quantisation noise of the weights: 10 log10(sum w^2 / sum (w - q)^2), q the weights that the "
     "written file gives back. Six dB more is half the error."),
    ("saturated",
     "share of the weights cut off at the end of their block's range: rounded to nearest without a range, "
     "they would have gone beyond the largest value that the block can represent (OVER-1)."),
    ("flushed", "share of the weights that were not zero and became zero."),
    ("bits",
     "bits per weight of the data type, its scales included and short tiles counted as they are; stored: "
     "what the weight takes in this file."),
)


@dataclass(frozen=True)
class Measure:
    """Numbers about one quantised weight. sqnr_db is None if nothing was lost; shares are of all weights."""

    sqnr_db: float | None
    saturated: float
    flushed: float
    histogram: page.Histogram


@dataclass(frozen=True)
class Row:
    """One weight-bearing node.

    node: its name (may be empty). output: its first output, the layer's key. where: the body it is in, "" for
    the main graph. tensor: the weight. reached: operators between the stored weight and the node. shape: of
    the weight as the node reads it. axis: reduction axis of the matrix that was cast. dtype: the data type,
    or the file's type when skipped. status: "quantised" or "skipped". reason: why it was skipped, or what
    else to know. shared: keys of the other layers that use the same quantised weight. bits, stored_bits: per
    weight (MEANINGS). encoding: in words.
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
    histogram: page.Histogram | None = None

    @property
    def quantised(self) -> bool:
        return self.status == "quantised"

    @property
    def title(self) -> str:
        """The node's name where it has one, else its output."""
        return self.node or self.output


@dataclass(frozen=True)
class Report:
    """The outcome of quantize_model: settings, one row per weight-bearing node in file order, totals.

    model: the quantised ModelProto when no output path was given, else None. parameters: floating-point
    values stored in the source. source_bytes, target_bytes: sizes of the two models, data files included.
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
    model: onnx.ModelProto | None = field(default=None, repr=False, compare=False)

    @property
    def weights(self) -> tuple[Row, ...]:
        """The quantised rows, of those that share a weight only the first."""
        seen: set[str] = set()
        kept = []
        for row in self.rows:
            if row.quantised and row.output not in seen:
                kept.append(row)
            seen.update(row.shared if row.quantised else ())
        return tuple(kept)

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
        """The quantised row of lowest SQNR; None when none lost anything."""
        lossy = [row for row in self.weights if row.sqnr_db is not None]
        return min(lossy, key=lambda row: row.sqnr_db, default=None)

    def table(self) -> str:
        """The report as text of at most about 120 columns, with totals and the worst layer below."""
        return _text_table(self)

    def to_json(self) -> dict:
        """The report as a dict that json.dumps takes. "refq_report" is the schema's number; an SQNR of None
        means that nothing was lost (or that the row was skipped).
        """
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            facts = row["histogram"] or {}
            for part in (row, facts):
                part.update((key, list(value)) for key, value in part.items() if isinstance(value, tuple))
        settings = {name: getattr(self, name) for name in ("dtype", "method", "export", "rounding", "recipe")}
        return {
            "refq_report": SCHEMA, "refq_version": self.version, "source": self.source, "target": self.target,
            "settings": settings, "totals": self._totals(), "warnings": list(self.warnings), "rows": rows
        }

    def to_html(self, extra_sections=()) -> str:
        """The report as one self-contained page. extra_sections: (title, HTML) pairs for the end of it."""
        return _html(self, extra_sections)

    def _totals(self) -> dict:
        worst = self.worst
        return {
            "layers": len(self.rows), "quantised_layers": sum(row.quantised for row in self.rows),
            "parameters": self.parameters, "quantised_parameters": self.quantised_parameters,
            "average_bits": self.average_bits, "average_stored_bits": self.average_stored_bits,
            "source_bytes": self.source_bytes, "target_bytes": self.target_bytes,
            "worst_output": worst.output if worst else None, "worst_sqnr_db": worst.sqnr_db if worst else None
        }

    def _average(self, bits) -> float | None:
        total = self.quantised_parameters
        return sum(bits(row) * row.parameters for row in self.weights) / total if total else None


# -- measuring -----------------------------------------------------------------------------------------------

def measure(x: np.ndarray, q, effective: np.ndarray) -> Measure:
    """Compare a weight matrix with what became of it.

    x: the matrix in its file's dtype. q: its Quantized. effective: the float values the written file gives
    back. Sums are taken in float64, slab by slab, so that the result does not depend on the machine's
    threads.
    """
    signal = noise = 0.0
    saturated = flushed = 0
    bounds = _Bounds.of(q)
    for part in bounds.slabs(x.shape):
        before, after = x[part].astype(np.float64), effective[part].astype(np.float64)
        signal += float(np.sum(before * before))
        noise += float(np.sum((before - after) ** 2))
        flushed += int(np.count_nonzero((before != 0) & (after == 0)))
        kept = before if q.mask is None else np.where(q.mask[part], before, 0)
        saturated += bounds.count_beyond(kept, part)
    ratio = None if noise == 0 else 10 * float(np.log10(signal / noise))
    return Measure(ratio, saturated / x.size, flushed / x.size, page.histogram(x, effective))


@dataclass(frozen=True)
class _Bounds:
    """Where the values of every tile (or subtile) saturate to nearest: above `high` and below `low` (OVER-1).

    low, high: float64, one for each tile; exact for elements, scales and tensor scales of at most 10 + 4 + 24
    significant bits. size: values of a tile on each axis. An axis of one tile is broadcast.
    """

    low: np.ndarray
    high: np.ndarray
    size: tuple[int, ...]

    @classmethod
    def of(cls, q) -> "_Bounds":
        reach = np.array([_reach(row) for row in q.dtype.tables])[0 if q.tables is None else q.tables]
        low, high, low_ties, high_ties = np.moveaxis(reach, -1, 0)
        factors, divisor, size = _factors(q)
        zeros = 0.0 if q.zeros is None else decode(q.zeros, q.dtype.zero_row, np.float64)
        if q.zeros is not None and not q.dtype.zero_row.is_float:       # (q - z) s
            low_ties, high_ties = zeros % 2, (q.dtype.element_row.layout.max_index - zeros) % 2
            low, high, zeros = low - zeros, high - zeros, 0.0
        low, high = low * factors - zeros, high * factors - zeros       # q s - z
        low, high = low / divisor, high / divisor
        low = np.where(low_ties, np.nextafter(low, np.inf), low)        # x <= low is x < the next number
        high = np.where(high_ties, np.nextafter(high, -np.inf), high)
        return cls(low, high, size)

    def slabs(self, shape) -> Iterator[tuple[slice, ...]]:
        """Pieces of about SLAB values of a matrix: whole tiles along the first axis that has enough."""
        tiles = [count if count > 1 else have for count, have in zip(self.high.shape, shape)]
        pieces = -(-int(np.prod(shape)) // SLAB)
        across = max(range(len(shape)), key=lambda axis: min(tiles[axis], pieces))
        size = self.size[across] if self.high.shape[across] > 1 else 1
        step = size * max(1, tiles[across] // max(pieces, 1))
        for start in range(0, shape[across], step):
            yield tuple(slice(start, min(start + step, have)) if axis == across else slice(0, have)
                        for axis, have in enumerate(shape))

    def count_beyond(self, values: np.ndarray, part: tuple[slice, ...]) -> int:
        """How many values, float64, of a piece from `slabs` saturate."""
        beyond = (values > self._beside(self.high, part)) | (values < self._beside(self.low, part))
        return int(np.count_nonzero(beyond & (values != 0)))

    def _beside(self, bounds: np.ndarray, part: tuple[slice, ...]) -> np.ndarray:
        for axis, (cut, size) in enumerate(zip(part, self.size)):
            if bounds.shape[axis] > 1:
                ahead = (slice(None),) * axis
                own = bounds[(*ahead, slice(cut.start // size, -(-cut.stop // size)))]
                bounds = np.repeat(own, size, axis)[(*ahead, slice(cut.stop - cut.start))]
        return bounds


def _reach(row) -> tuple[float, float, bool, bool]:
    """(low, high) of a number format, half a step beyond its extremes, and whether a value there saturates.

    It does where the extreme is odd, since a tie goes to the even neighbour. Listed formats go on by their
    last gap.
    """
    if row.is_listed:
        values = [_float(key(value)) for value, _ in row.ascending]
        return 1.5 * values[0] - values[1] / 2, 1.5 * values[-1] - values[-2] / 2, False, False
    half = row.overflow_threshold - row.max
    return (_float(row.lowest - half), _float(row.max + half),
            bool(row.layout.min_index % 2), bool(row.layout.max_index % 2))


def _factors(q) -> tuple[np.ndarray, float, tuple[int, ...]]:
    """(what the elements of every tile or subtile are multiplied by, what they are divided by, values on each
    axis that share a factor).
    """
    ones = (1,) * len(q.shape)
    if q.scales is None:
        return np.ones(ones), 1.0, ones
    tiles, (factors, divisor) = q.dtype.tiles_of(q.shape, q.axis), unit_factors(q)
    units = tiles.values // (tiles.unit[0] * tiles.unit[1])
    lengths = dict(zip(tiles.axes, tiles.unit[-len(tiles.axes):])) if tiles.axes else {}
    return (tiles.join_parts(factors.reshape(-1, units), tiles.unit), 1.0 if divisor is None else divisor,
            tuple(lengths.get(axis, 1) for axis in range(len(q.shape))))


def _float(number) -> float:
    """A Fraction as a float; beyond float64, infinity."""
    try:
        return float(number)
    except OverflowError:
        return float(np.copysign(np.inf, 1 if number > 0 else -1))


# -- grades and words ----------------------------------------------------------------------------------------

def grade_sqnr(db: float | None) -> str:
    """The grade of an SQNR in dB; None (nothing lost) is good."""
    return "good" if db is None else next(grade for least, grade in SQNR_GRADES if db >= least)


def grade_share(kind: str, share: float) -> str:
    """kind: "saturated" or "flushed"."""
    return next(grade for most, grade in SHARE_GRADES[kind] if share <= most)


def decibels(db: float | None) -> str:
    """An SQNR as text, "exact" for None (nothing lost)."""
    return "exact" if db is None else f"{db:.1f}"


def percent(share: float | None) -> str:
    """A share in per cent: "0", "<0.01", "0.35", "12.4"."""
    if share is None:
        return ""
    if share == 0:
        return "0"
    return "<0.01" if share < 1e-4 else f"{100 * share:.2f}" if share < 0.1 else f"{100 * share:.1f}"


def size(count: int) -> str:
    """A number of bytes: "873 B", "1.24 MB" (powers of ten)."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.3g} {unit}"
    return f"{count} B"


def _headline(report: Report) -> tuple[list[str], str]:
    """What a reader should take away first, in sentences, and its grade."""
    worst = report.worst
    if not report.weights:
        return ["No weight was quantised."], "bad"
    if worst is None:
        return ["Every quantised weight is exact."], "good"
    values = sorted(row.sqnr_db for row in report.weights if row.sqnr_db is not None)
    median = values[len(values) // 2]
    sentences = [f"{worst.title} ({worst.op}) hurts most: {worst.sqnr_db:.1f} dB SQNR, "
                 f"{_distance(median - worst.sqnr_db)}."]
    for share, word in (("saturated", "saturated"), ("flushed", "flushed to zero")):
        top = max(report.weights, key=lambda row: getattr(row, share))
        if grade_share(share, getattr(top, share)) in ("poor", "bad"):
            sentences.append(f"{top.title} has {percent(getattr(top, share))} % of its weights {word}.")
    return sentences, grade_sqnr(worst.sqnr_db)


def _distance(below: float) -> str:
    return f"{below:.1f} dB below the median layer" if below >= 1 else "level with the other layers"


# -- text ----------------------------------------------------------------------------------------------------

_HEAD = ("layer", "op", "weight", "data type", "bits", "SQNR dB", "satur. %", "flush. %", "")
_NUMBERS = (4, 5, 6, 7)


def _text_table(report: Report) -> str:
    lines = [_HEAD, *(_text_row(row, row is report.worst) for row in report.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD) - 1)]

    def joined(line):
        cells = [cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
                 for column, (cell, width) in enumerate(zip(line, widths, strict=False))]
        return "  ".join((*cells, line[-1])).rstrip()
    rule = "-" * len(joined(_HEAD))
    return "\n".join([joined(_HEAD), rule, *map(joined, lines[1:]), rule, *_text_totals(report)])


def _text_row(row: Row, worst: bool) -> tuple[str, ...]:
    name = row.title if len(row.title) <= 40 else f"{row.title[:18]}...{row.title[-19:]}"
    facts = (name, row.op, "x".join(map(str, row.shape)), row.dtype)
    where = f"in {row.where}" if row.where else ""
    if not row.quantised:
        return (*facts, "", "", "", "", "; ".join(filter(None, (f"skipped: {row.reason}", where))))
    end = "; ".join(filter(None, ("<- worst" if worst else "", where, row.reason, _shared(row))))
    shares = percent(row.saturated), percent(row.flushed)
    return (*facts, f"{row.bits:.2f}", decibels(row.sqnr_db), *shares, end)


def _shared(row: Row) -> str:
    return f"shared with {', '.join(row.shared)}" if row.shared else ""


def _text_totals(report: Report) -> list[str]:
    done = sum(row.quantised for row in report.rows)
    lines = [f"{done} of {len(report.rows)} layers quantised, {report.quantised_parameters:,} of "
             f"{report.parameters:,} parameters"]
    if report.average_bits is not None:
        stored = report.average_stored_bits
        extra = f", {stored:.2f} stored" if abs(stored - report.average_bits) >= 0.005 else ""
        lines[0] += f", {report.average_bits:.2f} bits per weight{extra}"
    ratio = report.source_bytes / report.target_bytes if report.target_bytes else 0
    lines.append(f"file {size(report.source_bytes)} -> {size(report.target_bytes)} ({ratio:.2f}x smaller)"
                 if ratio >= 1 else f"file {size(report.source_bytes)} -> {size(report.target_bytes)}")
    lines += _headline(report)[0]
    return lines + [f"note: {warning}" for warning in report.warnings]


# -- the page ------------------------------------------------------------------------------------------------

def _html(report: Report, extra_sections) -> str:
    name = report.source.replace("\\", "/").rsplit("/", 1)[-1] or "model"
    subtitle = " · ".join(
        filter(None, (f"{report.dtype}, method {report.method}, rounding {report.rounding}",
                      f"recipe {report.recipe}" if report.recipe else "", f"export {report.export}")))
    sentences, grade = _headline(report)
    blocks = [page.headline(" ".join(sentences), grade), page.tiles(_tiles(report))]
    if report.weights:
        blocks.append(_worst_first(report))
    stored = _encodings(report)
    lead = "In the order of the file." + (f" Stored as {stored[0]}." if len(stored) == 1 else "")
    blocks.append(page.section("Every layer", _html_table(report), lead))
    if report.weights:
        blocks.append(_histograms(report))
    blocks += [page.section(title, html) for title, html in extra_sections]
    if report.warnings:
        blocks.append(page.section("Notes", page.bullets(report.warnings)))
    blocks.append(page.section("What the columns mean", page.definitions(MEANINGS)))
    return page.page(f"{name}: quantised weights", subtitle, blocks, f"refq {report.version}")


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    worst, weights = report.worst, report.weights
    done = sum(row.quantised for row in report.rows)
    total = max(1, report.quantised_parameters)
    ratio = report.source_bytes / max(1, report.target_bytes)
    entries = [
        ("layers quantised", f"{done} of {len(report.rows)}",
         f"{report.quantised_parameters:,} of {report.parameters:,} parameters"),
        ("file size", size(report.target_bytes), f"{ratio:.2f}× smaller than {size(report.source_bytes)}"
         if ratio >= 1 else f"was {size(report.source_bytes)}"),
    ]
    if not weights:
        return entries
    shares = [
        sum(getattr(row, share) * row.parameters
            for row in weights) / total
        for share in ("saturated", "flushed")
    ]
    return [
        *entries,
        ("bits per weight", f"{report.average_bits:.2f}",
         f"{report.average_stored_bits:.2f} stored in the file"),
        ("lowest SQNR", "exact" if worst is None else f"{worst.sqnr_db:.1f} dB",
         worst.title if worst else ""), ("saturated", f"{percent(shares[0])} %", "of the quantised weights"),
        ("flushed to zero", f"{percent(shares[1])} %", "of the quantised weights")
    ]


def _worst_first(report: Report) -> str:
    rows = sorted(report.weights, key=lambda row: np.inf if row.sqnr_db is None else row.sqnr_db)
    shown = rows[:WORST]
    errors = [0.0 if row.sqnr_db is None else 10 ** (-max(row.sqnr_db, -20.0) / 20) for row in shown]
    panels = [("error against signal, SQNR", [
        page.Bar(row.title, error,
                 decibels(row.sqnr_db) + ("" if row.sqnr_db is None else " dB"), grade_sqnr(row.sqnr_db))
        for row, error in zip(shown, errors, strict=True)
    ], max(errors))]
    for share, title in (("saturated", "saturated"), ("flushed", "flushed to zero")):
        full = max([0.01] + [getattr(row, share) for row in shown])
        panels.append((title, [page.Bar(row.title, getattr(row, share), f"{percent(getattr(row, share))} %",
                                        grade_share(share, getattr(row, share))) for row in shown], full))
    lead = "The layers whose weights lost most come first; long bars are bad." \
        + (f" The worst {WORST} of {len(rows)} are shown." if len(rows) > WORST else "")
    return page.section("Which layer hurts", page.bars(panels), lead)


def _encodings(report: Report) -> list[str]:
    return sorted({row.encoding for row in report.weights})


def _html_table(report: Report) -> str:
    head = ("layer", "op", "weight", "shape", "data type", "bits", "SQNR dB", "saturated %", "flushed %", "")
    plain = len(_encodings(report)) == 1
    rows = [_html_row(row, plain) for row in report.rows]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return page.table(head, rows, numeric=(5, 6, 7, 8), long=(2,))


def _html_row(row: Row, plain: bool) -> tuple:
    path = " → ".join((row.tensor, *row.reached)) if row.reached else row.tensor
    facts = (row.title, row.op, path, "×".join(map(str, row.shape)), row.dtype)
    where = f"in {row.where}" if row.where else ""
    if not row.quantised:
        words = page.escape("; ".join(filter(None, (row.reason, where))))
        return (*facts, "", "", "", "", page.Raw(f"{page.pill('skipped', 'poor').html} {words}"))
    end = "; ".join(filter(None, ("" if plain else row.encoding, row.reason, where, _shared(row))))
    return (*facts, f"{row.bits:.2f}", page.graded(decibels(row.sqnr_db), grade_sqnr(row.sqnr_db)),
            page.graded(percent(row.saturated), grade_share("saturated", row.saturated)),
            page.graded(percent(row.flushed), grade_share("flushed", row.flushed)), end)


def _histograms(report: Report) -> str:
    figures = (page.histogram_chart(row.title,
                                    decibels(row.sqnr_db) + ("" if row.sqnr_db is None else " dB"),
                                    row.histogram) for row in report.weights)
    return page.section("Weights before and after", page.charts(figures),
                        "Filled: the weights; line: what they became. Heights are logarithmic.")
