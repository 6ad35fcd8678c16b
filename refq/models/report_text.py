"""The report of quantize_model as text, and the words that its page uses too."""

import math
import textwrap

from refq.models import compare_text
from refq.models.figures import (
    count,
    decibels,
    grade_share,
    grade_sqnr,
    percent,
    seconds,
    size,
    times,
)
from refq.models.page import short_names
from refq.models.report import Report, Row

WIDTH = 120             # of the table, where names and remarks allow it
NAME = (20, 40)         # letters of a layer's name at least and at most
OUTPUTS = 6             # of the model, at most, in the text
WEIGHT_HEAD = ("layer", "op", "weight", "data type", "bits", "SQNR dB", "sat. %", "flush. %", "")
OUTPUT_HEAD = ("layer", "op", "weight", "data type", "method", "bits", "float dB", "rtn dB", "kept dB",
               "ratio", "local dB", "sat. %", "flush. %", "s", "")
LEFT = ("layer", "op", "weight", "data type", "method", "")      # the other columns end flush
# What the columns of outputs mean, in a line each; those of columns that are left out are not said.
LEGEND = (
    ("kept dB", "SQNR of the layer's outputs behind the quantised layers before it"),
    ("float dB", "the same, had this layer stayed in float"),
    ("rtn dB", "the same, had this layer been cast directly"),
    ("ratio", "output error over that of direct cast"),
    ("local dB", "SQNR of the layer's outputs behind float layers"),
)


# -- words ---------------------------------------------------------------------------------------------------

def headline(report: Report) -> tuple[list[str], str]:
    """What a reader should take away first, in sentences, and its grade."""
    if not report.weights:
        return ["No weight was quantised."], "bad"
    sentences, grade = (_hurt_outputs if report.measured else _hurt_weights)(report)
    if report.gain and report.gain.mean_ratio is not None:
        sentences.append(f"Output errors are {times(report.gain.mean_ratio)} times those of direct cast, the "
                         f"geometric mean of {count(report.gain.layers, 'layer')}.")
    if report.comparison:
        words, grade = compare_text.headline(report.comparison)
        sentences.append(f"The whole model: {words[0].lower()}{words[1:]}")
    return sentences, grade


def _hurt_outputs(report: Report) -> tuple[list[str], str]:
    worst, lowest = report.worst, report.lowest
    if worst is None:
        return ["The outputs of every layer are exact."], "good"
    own, before = worst.errors.accumulated_sqnr_db, worst.errors.inherited_sqnr_db
    rest = {None: "", math.inf: ", and would be exact had it stayed in float"}.get(
        before, f", and would have {decibels(before, ' dB')} had it stayed in float")
    sentences = [f"{worst.title} ({worst.op}) hurts most: its outputs have an SQNR of {decibels(own, ' dB')}"
                 f"{rest}."]
    if lowest is not worst and lowest.decisive_db < own - 1:
        sentences.append(f"The lowest SQNR, {decibels(lowest.decisive_db, ' dB')}, is that of "
                         f"{lowest.title}, most of it from layers before it.")
    return sentences, grade_sqnr(lowest.decisive_db)


def _hurt_weights(report: Report) -> tuple[list[str], str]:
    worst = report.worst
    if worst is None:
        return ["Every quantised weight is exact."], "good"
    values = sorted(row.sqnr_db for row in report.weights if math.isfinite(row.sqnr_db))
    below = values[len(values) // 2] - worst.sqnr_db if values else 0
    distance = f"{below:.1f} dB below the median layer" if below >= 1 else "level with the other layers"
    sentences = [f"{worst.title} ({worst.op}) hurts most: {decibels(worst.sqnr_db, ' dB')} SQNR, {distance}."]
    for share, word in (("saturated", "saturated"), ("flushed", "flushed to zero")):
        top = max(report.weights, key=lambda row: getattr(row, share))
        if grade_share(share, getattr(top, share)) in ("poor", "bad"):
            sentences.append(f"{top.title} has {percent(getattr(top, share))} % of its weights {word}.")
    return sentences, grade_sqnr(worst.sqnr_db)


def gain_words(report: Report) -> str:
    """How the method did against direct cast, "" where nothing says."""
    gain = report.gain
    if gain is None:
        return ""
    parts = [f"{gain.better} of {count(gain.layers, 'layer')} better"]
    if gain.rtn_kept:
        parts.append(f"direct cast kept in {gain.rtn_kept}")
    if gain.worse:
        parts.append(f"{gain.worse} worse")
    if gain.mean_ratio is not None:
        parts.append(f"geometric mean {times(gain.mean_ratio)}, median {times(gain.median_ratio)}")
    return "; ".join(parts)


def dtype_words(report: Report) -> str:
    """Which data types there are: "mxfp4 in 10 layers, nvfp4 in 2"; "" of one."""
    (first, number), *others = list(report.dtypes.items()) or [("", 0)]
    if not others:
        return ""
    return ", ".join([f"{first} in {count(number, 'layer')}", *(f"{name} in {n}" for name, n in others)])


def rows_words(report: Report) -> str:
    """What rows the outputs were measured on."""
    parts = []
    for held, words in ((True, "held back"), (False, "that the codes were made from")):
        counts = sorted({row.errors.held or row.errors.rows for row in report.measured
                         if bool(row.errors.held) == held})
        if counts:
            numbers = " to ".join(f"{n:,}" for n in dict.fromkeys((counts[0], counts[-1])))
            parts.append(f"{numbers} {'row' if counts[-1] == 1 else 'rows'} {words}")
    return " or ".join(parts)


def remarks(row: Row, *before: str, measured: bool = False) -> str:
    """What else there is to say of a quantised row. measured: whether outputs of others were."""
    errors = row.errors
    words = [*before, f"in {row.where}" if row.where else ""]
    if row.rtn_kept:
        words.append(f"{errors.asked} had {times(errors.asked_ratio)} times the error" if errors.asked_ratio
                     else f"{errors.asked} was worse")
    elif row.method != method_cell(row):
        words.append(row.method)
    if measured and not errors:
        words.append(f"outputs not measured; weights {decibels(row.sqnr_db, ' dB')}")
    words += [row.reason, f"shared with {', '.join(row.shared)}" if row.shared else ""]
    return "; ".join(filter(None, words))


def method_cell(row: Row) -> str:
    """The method in a word: "ed", "rtn", "ed+rtn"."""
    method, _, others = row.method.partition(", ")
    return f"{method}+{others.split()[0]}" if others else method


# -- the table -----------------------------------------------------------------------------------------------

def text(report: Report) -> str:
    """The whole report for a terminal."""
    head, rows = _columns(report)
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    room = WIDTH - sum(widths[1:-1]) - 2 * (len(widths) - 2)
    names = _fitted([row[0] for row in rows], min(NAME[1], max(NAME[0], room)))
    rows = [(name, *row[1:]) for name, row in zip(names, rows)]
    widths[0] = max(map(len, [head[0], *names]))

    def joined(line):
        sides = (str.ljust if title in LEFT else str.rjust for title in head)
        cells = [side(cell, width) for side, cell, width in zip(sides, line, widths)]
        return "  ".join((*cells[:-1], line[-1])).rstrip()
    rule = "-" * len(joined(head))
    lines = [joined(head), rule, *map(joined, rows), rule, *_legend(report, head), *_whole_model(report)]
    return "\n".join([*lines, *_totals(report)])


def _fitted(names: list[str], most: int) -> list[str]:
    """The names, at most so long: without what all share, and what is still longer without its beginning.
    They are longer than that where two would be the same."""
    if max(map(len, names), default=0) <= most:
        return names
    short = short_names(names)
    for room in range(most, max(map(len, short)) + 1):
        fitted = [name if len(name) <= room else f"...{name[3 - room:]}" for name in short]
        if len(set(fitted)) == len(set(names)):
            return fitted
    return short


def _columns(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(head, lines) without the columns that have nothing to say."""
    worst = report.worst
    head = OUTPUT_HEAD if report.measured else WEIGHT_HEAD
    mark = "<- hurts most" if report.measured else "<- worst"
    facts = [_facts(row, mark if row is worst else "", bool(report.measured)) for row in report.rows]
    told = [title for title in head if title in LEFT or any(row.get(title) for row in facts)
            or not report.measured]
    if report.gain is None:
        told = [title for title in told if title not in ("rtn dB", "ratio")]
    return tuple(told), [tuple(row.get(title, "") for title in told) for row in facts]


def _facts(row: Row, mark: str, measured: bool) -> dict[str, str]:
    """Title of a column -> cell."""
    cells = {"layer": row.title, "op": row.op, "weight": "x".join(map(str, row.shape)),
             "data type": shortened(row.dtype, 18)}
    if not row.quantised:
        where = f"in {row.where}" if row.where else ""
        return cells | {"": "; ".join(filter(None, (f"skipped: {row.reason}", where)))}
    cells |= {"method": method_cell(row), "bits": f"{row.bits:.2f}", "SQNR dB": decibels(row.sqnr_db),
              "sat. %": percent(row.saturated), "flush. %": percent(row.flushed),
              "": remarks(row, mark, measured=measured)}
    if row.errors:
        found = row.errors
        cells |= {"float dB": decibels(found.inherited_sqnr_db), "rtn dB": decibels(found.rtn_sqnr_db),
                  "kept dB": decibels(found.accumulated_sqnr_db), "ratio": times(found.ratio),
                  "local dB": decibels(found.local_sqnr_db), "s": duration(found.seconds)}
    return cells


def duration(taken: float | None) -> str:
    """Seconds as a bare number."""
    return "" if taken is None else f"{taken:.1f}" if taken < 99.95 else f"{taken:.0f}"


def shortened(name: str, most: int) -> str:
    """A name of at most so many letters, its middle left out."""
    if len(name) <= most:
        return name
    return f"{name[:(most - 3) // 2]}...{name[len(name) - (most - 3 - (most - 3) // 2):]}"


# -- below it ------------------------------------------------------------------------------------------------

def _legend(report: Report, head: tuple[str, ...]) -> list[str]:
    if not report.measured:
        return []
    words = [f"{title}: {meaning}" for title, meaning in LEGEND if title in head]
    return [*textwrap.wrap(f"{'; '.join(words)}. Measured on {rows_words(report)}.", WIDTH), ""]


def _totals(report: Report) -> list[str]:
    done = sum(row.quantised for row in report.rows)
    line = (f"{done} of {len(report.rows)} layers quantised, {report.quantised_parameters:,} of "
            f"{report.parameters:,} parameters")
    if report.average_bits is not None:
        stored = report.average_stored_bits
        extra = f", {stored:.2f} stored" if abs(stored - report.average_bits) >= 0.005 else ""
        line += f", {report.average_bits:.2f} bits per weight{extra}"
    lines = [line, dtype_words(report), _file_words(report)]
    if report.gain:
        lines.append(f"against direct cast: {gain_words(report)}")
    if report.calibration:
        lines.append(f"calibration: {report.calibration}")
    lines += [f"rule: {pattern} = {what}" for pattern, what in report.rules]
    spent = [f"time: {seconds(report.seconds)}" if report.seconds is not None else "",
             f"memory: {report.memory}" if report.memory else ""]
    lines.append("; ".join(filter(None, spent)))
    lines += headline(report)[0]
    notes = dict.fromkeys((*report.warnings, *(report.comparison.notes if report.comparison else ())))
    return [*filter(None, lines), *(f"note: {note}" for note in notes)]


def _file_words(report: Report) -> str:
    words = f"file {size(report.source_bytes)} -> {size(report.target_bytes)}"
    ratio = report.source_bytes / report.target_bytes if report.target_bytes else 0
    return f"{words} ({ratio:.2f}x smaller)" if ratio >= 1 else words


def _whole_model(report: Report) -> list[str]:
    """Lines about the model's outputs, of many the labelled one and those of lowest SQNR."""
    found = report.comparison
    if found is None:
        return []
    ranked = sorted(found.outputs, key=lambda row: (row.name != found.labelled, row.sqnr_db is None,
                                                    row.sqnr_db or 0.0))
    outputs = found.outputs if len(found.outputs) <= OUTPUTS else tuple(ranked[:OUTPUTS])
    lead = f"float model (a) against quantised model (b) on {compare_text.data_words(found)}"
    return [lead, *compare_text.tables(found, outputs, ("float", "quantised")), ""]
