"""The report of quantize_model as one self-contained page."""

import math

from refq.models import compare_page, compare_text, page
from refq.models.figures import (
    EXACT,
    count,
    decibels,
    grade_ratio,
    grade_share,
    grade_sqnr,
    last_part,
    percent,
    seconds,
    size,
    times,
)
from refq.models.metrics import ratio_db
from refq.models.profile import Series, profile
from refq.models.report import DIRECT, Report, Row
from refq.models.report_text import (
    LEGEND,
    dtype_words,
    duration,
    gain_words,
    headline,
    method_cell,
    remarks,
    rows_words,
)

WORST = 40              # layers in the bar plot
FIRST = 14              # of them, those that show at once where outputs are measured
WEIGHT_HEAD = ("layer", "op", "weight", "shape", "data type", "bits", "SQNR dB", "saturated %", "flushed %",
               "")
OUTPUT_HEAD = ("layer", "data type", "method", "bits", "float dB", "rtn dB", "kept dB", "ratio", "local dB",
               "weights dB", "sat. %", "flush. %", "s")
WORDS = ("layer", "data type", "method")        # columns that do not end flush
WEIGHT_MEANINGS = (
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
OUTPUT_MEANINGS = (
    ("SQNR of outputs",
     "10 log10(|X W^T|^2 / |error|^2): X the layer's inputs in the float model, W its weights. The error "
     "compares with what the quantised model computes, X^ Q^T. Six dB more is half the error."),
    *((title, f"{meaning}.") for title, meaning in LEGEND),
    ("hurts most",
     "the layer that adds the largest error for its signal: the error of its outputs less what they would "
     "have lost had this layer stayed in float. A layer that adds less than nothing makes good what earlier "
     "ones lost."),
    ("method", "what the codes come from. rtn is direct cast, which is kept where it was better on the rows "
               "held back."),
)
COLOURS = ("colours", "of an SQNR: green from 30 dB, blue from 18, yellow from 12, red below.")


def html(report: Report, extra_sections=()) -> str:
    """The whole page. extra_sections: (title, HTML) pairs for the end of it."""
    name = last_part(report.source) or "model"
    sentences, grade = headline(report)
    blocks = [page.headline(" ".join(sentences), grade), page.tiles(_tiles(report))]
    if report.measured:
        blocks += [_hurting_outputs(report), _depth(report)]
    elif report.weights:
        blocks.append(_hurting_weights(report))
    blocks += [*_whole_model(report), _layers(report)]
    if any(row.histogram for row in report.weights):
        blocks.append(_histograms(report))
    blocks += [page.section(title, html) for title, html in extra_sections]
    return page.page(f"{name}: quantised weights", _subtitle(report), blocks + _end(report),
                     f"refq {report.version}")


def _subtitle(report: Report) -> str:
    rules = f", {count(len(report.rules), 'rule')} beside it" if report.rules else ""
    return " · ".join(filter(None, (
        f"{report.dtype}, method {report.method}, rounding {report.rounding}{rules}",
        f"recipe {report.recipe}" if report.recipe else "", f"export {report.export}", report.calibration)))


def _end(report: Report) -> list[str]:
    """Settings, notes, meanings."""
    blocks = []
    facts = [("calibration", report.calibration), ("time", seconds(report.seconds)),
             ("memory", report.memory), *((f"rule {pattern}", what) for pattern, what in report.rules)]
    if any(text for _, text in facts):
        first = ("default", f"{report.dtype}:{report.method}")
        blocks.append(page.section("How it was made", page.definitions(
            [first, *((term, text) for term, text in facts if text)])))
    notes = dict.fromkeys((*report.warnings, *(report.comparison.notes if report.comparison else ())))
    if notes:
        blocks.append(page.section("Notes", page.bullets(notes)))
    meanings = [*(OUTPUT_MEANINGS if report.measured else ()), *WEIGHT_MEANINGS, COLOURS]
    blocks.append(page.section("What the columns mean", page.definitions(meanings)))
    if report.comparison:
        blocks.append(page.section("What is said of the whole model",
                                   page.definitions(compare_text.MEANINGS),
                                   "a is the float model, b the quantised one."))
    return blocks


# -- tiles ---------------------------------------------------------------------------------------------------

def _tiles(report: Report) -> list[tuple[str, str, str]]:
    done = sum(row.quantised for row in report.rows)
    ratio = report.source_bytes / max(1, report.target_bytes)
    entries = [("layers quantised", f"{done} of {len(report.rows)}",
                f"{report.quantised_parameters:,} of {report.parameters:,} parameters"),
               ("file size", size(report.target_bytes),
                f"{ratio:.2f}× smaller than {size(report.source_bytes)}" if ratio >= 1
                else f"was {size(report.source_bytes)}")]
    if not report.weights:
        return entries
    stored = f"{report.average_stored_bits:.2f} stored in the file"
    mixed = dtype_words(report)
    entries.append(("bits per weight", f"{report.average_bits:.2f}",
                    f"{mixed}; {stored}" if mixed else stored))
    lowest, what = report.lowest, "output " if report.measured else ""
    entries.append((f"lowest {what}SQNR", decibels(lowest.decisive_db, " dB") if lowest else "exact",
                    lowest.title if lowest else ""))
    return entries + (_output_tiles(report) if report.measured else _weight_tiles(report))


def _weight_tiles(report: Report) -> list[tuple[str, str, str]]:
    total = max(1, report.quantised_parameters)
    shares = [sum(getattr(row, share) * row.parameters for row in report.weights) / total
              for share in ("saturated", "flushed")]
    return [(title, f"{percent(share)} %", "of the quantised weights")
            for title, share in zip(("saturated", "flushed to zero"), shares)]


def _output_tiles(report: Report) -> list[tuple[str, str, str]]:
    entries, found = [], report.comparison
    if report.gain and report.gain.mean_ratio is not None:
        entries.append(("error vs direct cast", f"{times(report.gain.mean_ratio)}×", gain_words(report)))
    if found and found.answers:
        a, b = (compare_text.share(answers.top1) for answers in found.answers)
        before, after = (answers.perplexity for answers in found.answers)
        entries.append(("top-1", b, f"float: {a}, of {count(found.labels, 'label')}") if after is None else
                       ("perplexity", f"{after:.4g}", f"float: {before:.4g}; top-1 {b}"))
    elif found and found.worst:
        same = found.worst.same_top1
        entries.append(("SQNR of the model", decibels(found.worst.sqnr_db, " dB"), found.worst.name + (
            "" if same is None else f", {compare_text.share(same)} same top-1")))
    return entries


# -- which layer hurts ---------------------------------------------------------------------------------------

def _hurting_weights(report: Report) -> str:
    rows = sorted(report.weights, key=lambda row: row.sqnr_db)
    shown = rows[:WORST]
    panels = [_decibel_bars("error against signal, SQNR", shown, [row.sqnr_db for row in shown])]
    for share, title in (("saturated", "saturated"), ("flushed", "flushed to zero")):
        full = max([0.01] + [getattr(row, share) for row in shown])
        panels.append((title, [page.Bar(row.title, getattr(row, share), f"{percent(getattr(row, share))} %",
                                        grade_share(share, getattr(row, share))) for row in shown], full))
    lead = f"The layers whose weights lost most come first; long bars are bad.{_left_out(rows)}"
    return page.section("Which layer hurts", page.bars(panels), lead)


def _hurting_outputs(report: Report) -> str:
    rows = sorted(report.measured, key=lambda row: -row.errors.hurt)
    shown = rows[:WORST]
    panels = [_noise_bars(shown)]
    if any(row.errors.local_error is not None for row in shown):
        panels.append(_decibel_bars("error behind float layers, SQNR", shown,
                                    [row.errors.local_sqnr_db for row in shown], 10))
    if report.gain:
        panels.append(_ratio_bars(shown))
    lead = ("The layers whose quantisation adds most error to their outputs come first; long bars are bad."
            f"{_left_out(rows)}")
    key = page.key((("weight", "error from layers before it"),
                    ("bad", "error that the layer adds, coloured by its SQNR")))
    chart = page.bars([(title, bars[:FIRST], full) for title, bars, full in panels]) + key
    if len(shown) > FIRST:
        others = page.bars([(title, bars[FIRST:], full) for title, bars, full in panels])
        chart += page.details(f"the next {len(shown) - FIRST}", others)
    return page.section("Which layer hurts", chart, lead)


def _ratio_bars(rows: list[Row]) -> tuple:
    ratios = [row.errors.ratio for row in rows]
    full = max([1.0, *(ratio for ratio in ratios if ratio is not None and math.isfinite(ratio))])
    bars = [page.Bar(row.title, _drawable(ratio, full), EXACT if ratio is None else f"{times(ratio)}×",
                     grade_ratio(ratio) or "good") for row, ratio in zip(rows, ratios)]
    return "error vs direct cast", bars, full


def _noise_bars(rows: list[Row]) -> tuple:
    """The panel of shares of the signal that are error, in grey what was inherited."""
    def share(row, error):
        return _drawable(error / row.errors.signal if row.errors.signal > 0 else float(error > 0), 1.0)
    totals = [share(row, row.errors.error) for row in rows]
    bars = []
    for row, total in zip(rows, totals):
        found = row.errors
        bars.append(page.Bar(row.title, total, decibels(found.accumulated_sqnr_db, " dB"),
                             grade_sqnr(ratio_db(1.0, found.hurt)), share(row, found.inherited_error or 0.0)))
    return "error in its outputs, SQNR", bars, max(totals) or 1.0


def _decibel_bars(title: str, rows: list[Row], values: list[float | None], decade: int = 20) -> tuple:
    """A panel of errors against signal, labelled in dB; no bar for None. decade: dB of a bar ten times as
    long: 20 for amplitudes, 10 for sums of squares."""
    errors = [0.0 if db is None else 10 ** (-max(db, -20.0) / decade) for db in values]
    bars = [page.Bar(row.title, error, decibels(db, " dB"), grade_sqnr(db) or "good")
            for row, error, db in zip(rows, errors, values)]
    return title, bars, max(errors)


def _drawable(value: float | None, full: float) -> float:
    """A length from 0 on; what is not finite fills the bar."""
    return 0.0 if value is None else max(0.0, value) if math.isfinite(value) else full


def _left_out(rows: list) -> str:
    return f" The worst {WORST} of {len(rows)} are shown." if len(rows) > WORST else ""


# -- along the depth -----------------------------------------------------------------------------------------

def _depth(report: Report) -> str:
    rows = report.measured
    found = [row.errors for row in rows]
    kept = [errors.accumulated_sqnr_db for errors in found]
    series = [Series("line", "SQNR of the outputs, as kept", kept, [grade_sqnr(db) for db in kept])]
    if report.gain:
        series.append(Series("ring", "had the layer been cast directly",
                             [errors.rtn_sqnr_db for errors in found]))
    if any(errors.inherited_error is not None for errors in found):
        series.append(Series("dashed", "had the layer stayed in float",
                             [errors.inherited_sqnr_db for errors in found]))
    texts = [_told(number, row) for number, row in enumerate(rows, 1)]
    mark = rows.index(report.worst) if report.worst else None
    plot = profile([row.title for row in rows], series, texts, "dB", mark)
    return page.section("Along the depth of the network", plot,
                        "In the order of running, every layer behind the quantised layers before it; high is "
                        f"good. Measured on {rows_words(report)}.")


def _told(number: int, row: Row) -> str:
    found = row.errors
    parts = [f"{number}: {row.title}", f"{row.dtype}, {row.method}",
             f"{decibels(found.accumulated_sqnr_db, ' dB')} as kept",
             f"{decibels(found.rtn_sqnr_db, ' dB')} cast directly"]
    if found.inherited_error is not None:
        parts.append(f"{decibels(found.inherited_sqnr_db, ' dB')} in float")
    return "\n".join(parts)


# -- the model and its layers --------------------------------------------------------------------------------

def _whole_model(report: Report) -> list[str]:
    found, names = report.comparison, ("float", "quantised")
    if found is None:
        return []
    blocks = [page.section("The whole model", compare_page.output_table(found.outputs),
                           f"Outputs of the quantised model (b) against the float model (a) on "
                           f"{compare_text.data_words(found)}.")]
    if found.answers:
        blocks.append(page.section("Against the labels", compare_page.answer_bars(found, names),
                                   compare_page.answer_lead(found)))
    return blocks


def _layers(report: Report) -> str:
    stored = sorted({row.encoding for row in report.weights})
    lead = "In the order of the file." + (f" Stored as {stored[0]}." if len(stored) == 1 else "")
    made = _output_table if report.measured else _weight_table
    return page.section("Every layer", made(report, len(stored) == 1), lead)


def _weight_table(report: Report, plain: bool) -> str:
    """plain: whether all weights are stored alike."""
    head, rows = WEIGHT_HEAD, [_weight_cells(row, plain) for row in report.rows]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return page.table(head, rows, numeric=(5, 6, 7, 8), long=(2,))


def _output_table(report: Report, plain: bool) -> str:
    """As _weight_table, without the columns that have nothing to say."""
    facts = [_output_cells(report, row, plain) for row in report.rows]
    hidden = () if report.gain else ("rtn dB", "ratio")
    head = [title for title in OUTPUT_HEAD
            if title not in hidden and any(cells.get(title) for cells in facts)]
    numeric = [place for place, title in enumerate(head) if title not in WORDS]
    return page.table(head, [[cells.get(title, "") for title in head] for cells in facts], numeric)


def _path(row: Row) -> str:
    return " → ".join((row.tensor, *row.reached)) if row.reached else row.tensor


def _shape(row: Row) -> str:
    return "×".join(map(str, row.shape))


def _skipped(row: Row) -> page.Raw:
    words = "; ".join(filter(None, (row.reason, f"in {row.where}" if row.where else "")))
    return page.Raw(f"{page.pill('skipped', 'poor').html} {page.escape(words)}")


def _weight_cells(row: Row, plain: bool) -> tuple:
    facts = (row.title, row.op, _path(row), _shape(row), row.dtype)
    if not row.quantised:
        return (*facts, "", "", "", "", _skipped(row))
    end = "; ".join(filter(None, ("" if plain else row.encoding, remarks(row))))
    return (*facts, f"{row.bits:.2f}", _graded_db(row.sqnr_db), *_shares(row), end)


def _output_cells(report: Report, row: Row, plain: bool) -> dict:
    """Title of a column -> cell; what has no column stands below the layer's name."""
    cells = {"layer": _described(report, row, plain), "data type": row.dtype}
    if not row.quantised:
        return cells
    cells |= dict(zip(("sat. %", "flush. %"), _shares(row)))
    cells |= {"method": method_cell(row), "bits": f"{row.bits:.2f}", "weights dB": decibels(row.sqnr_db)}
    found = row.errors
    if found is None:
        return cells
    ratio = page.graded(times(found.ratio), grade_ratio(found.ratio)) if found.ratio is not None else ""
    return cells | {"float dB": decibels(found.inherited_sqnr_db), "rtn dB": decibels(found.rtn_sqnr_db),
                    "kept dB": _graded_db(found.accumulated_sqnr_db),
                    "ratio": "" if found.asked == DIRECT else ratio,
                    "local dB": decibels(found.local_sqnr_db), "s": duration(found.seconds)}


def _described(report: Report, row: Row, plain: bool) -> page.Raw:
    lines = [page.escape(f"{row.op} {_shape(row)}, {_path(row)}")]
    mark = ""
    if not row.quantised:
        lines.append(_skipped(row).html)
    else:
        lines.append(page.escape("; ".join(filter(None, ("" if plain else row.encoding,
                                                         remarks(row, measured=True))))))
        mark = f" {page.pill('hurts most', 'bad').html}" if row is report.worst else ""
    small = "".join(f"<small>{line}</small>" for line in filter(None, lines))
    return page.Raw(f'<div class="wide">{page.escape(row.title)}{mark}{small}</div>')


def _graded_db(db: float | None):
    return "" if db is None else page.graded(decibels(db), grade_sqnr(db))


def _shares(row: Row) -> tuple:
    return tuple(page.graded(percent(getattr(row, share)), grade_share(share, getattr(row, share)))
                 for share in ("saturated", "flushed"))


def _histograms(report: Report) -> str:
    figures = (page.histogram_chart(row.title, decibels(row.sqnr_db, " dB"), row.histogram)
               for row in report.weights if row.histogram)
    return page.section("Weights before and after", page.charts(figures),
                        "Filled: the weights; line: what they became. Heights are logarithmic.")
