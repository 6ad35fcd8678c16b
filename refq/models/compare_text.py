"""A comparison of two models as text, and the words that its page uses too."""

import math

from refq.formats.table import columns
from refq.models.compare import IGNORED, Answers, Comparison, OutputFigures
from refq.models.figures import count, decibels, grade_same, grade_sqnr

HEAD = ("output", "shape", "SQNR dB", "cosine", "max |a-b|", "KL", "same top-1", "")
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


def text(report: Comparison) -> str:
    """The whole comparison for a terminal."""
    lines = [f"a  {report.a}", f"b  {report.b}", f"on {data_words(report)}", "",
             *tables(report, report.outputs)]
    lines += ["", headline(report)[0], *(f"note: {note}" for note in report.notes)]
    return "\n".join(lines)


def tables(report: Comparison, outputs: tuple[OutputFigures, ...], names=("a", "b")) -> list[str]:
    """Lines of the figures of some outputs, and of both models against the labels. names: of the models."""
    lines = [columns([HEAD, *map(cells, outputs)], right=range(2, 7))]
    if len(outputs) < len(report.outputs):
        lines.append(f"and {count(len(report.outputs) - len(outputs), 'more output')}")
    if report.answers:
        head = ("", "top-1", "NLL", *(["perplexity"] if report.answers[0].perplexity is not None else []))
        rows = [(name, *_answer_cells(answers)) for name, answers in zip(names, report.answers)]
        lines += ["", f"{report.labels:,} labels of output {report.labelled}",
                  columns([head, *rows], right=range(1, len(head)))]
    return lines


def cells(row: OutputFigures) -> tuple[str, ...]:
    """One output in the order of HEAD."""
    remarks = [row.reason]
    if row.values and row.sqnr_db is None:
        remarks.append(f"{row.unequal:,} of {row.values:,} values differ")
    if row.nonfinite:
        remarks.append(f"{row.nonfinite:,} of {row.values:,} values are NaN or infinite")
    if row.kl_infinite:
        remarks.append(f"KL of {row.kl_infinite:,} of {row.rows:,} rows is not finite")
    return (row.name, "x".join(map(str, row.shape)), decibels(row.sqnr_db), number(row.cosine, ".6f"),
            number(row.max_difference, ".4g"), number(row.kl, ".4g"), share(row.same_top1),
            "; ".join(filter(None, remarks)))


def headline(report: Comparison) -> tuple[str, str]:
    """What a reader should take away first, and its grade."""
    worst = report.worst
    values, unequal = (sum(getattr(row, part) for row in report.outputs) for part in ("values", "unequal"))
    if not values:
        return "No output could be measured.", "bad"
    if not unequal:
        return f"The two models give the same values on all {count(report.rows, 'row')}.", "good"
    if worst is None:
        return f"{unequal:,} of {values:,} values differ.", grade_same(1 - unequal / values)
    grade = grade_sqnr(worst.sqnr_db)
    where = f"Output {worst.name}" + (", the worst," if len(report.outputs) > 1 else "")
    if worst.sqnr_db == math.inf:
        sentences, grade = ["The outputs differ only in values that are NaN or infinite."], "bad"
    else:
        rows = "" if worst.same_top1 is None else (f", and {share(worst.same_top1)} of its rows have the "
                                                   "same first choice")
        sentences = [f"{where} has an SQNR of {worst.sqnr_db:.1f} dB{rows}."]
        if worst.same_top1 is not None:
            grade = grade_same(worst.same_top1)
    if report.answers:
        sentences.append(answer_words(report))
    return " ".join(sentences), grade


def answer_words(report: Comparison) -> str:
    """What became of the share of right answers, and of their likelihood."""
    a, b = report.answers
    likelihood = (f"perplexity from {a.perplexity:.4g} to {b.perplexity:.4g}." if a.perplexity is not None
                  else f"NLL from {a.nll:.4f} to {b.nll:.4f}.")
    return f"Top-1 goes from {share(a.top1)} to {share(b.top1)}, {likelihood}"


def data_words(report: Comparison) -> str:
    """What was run, and where."""
    counts = count(report.rows, "row"), count(report.batches, "batch")
    source = f"{report.data}: " if report.data else ""
    return f"{source}{counts[0]} in {counts[1]}, engine {report.engine}"


def number(value: float | None, form: str) -> str:
    """A figure, "" of None."""
    return "" if value is None else format(value, form)


def share(value: float | None) -> str:
    """A share of rows: "97.50 %", "" of None."""
    return "" if value is None else f"{100 * value:.2f} %"


def _answer_cells(answers: Answers) -> tuple[str, ...]:
    more = [] if answers.perplexity is None else [f"{answers.perplexity:.4g}"]
    return (share(answers.top1), f"{answers.nll:.4f}", *more)
