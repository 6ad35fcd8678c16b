"""A comparison of two models as a page, and the parts of it that the report of quantize_model shows too."""

import math

from refq.models import page
from refq.models.compare import Comparison, OutputFigures
from refq.models.compare_text import HEAD, MEANINGS, cells, data_words, headline, number, share
from refq.models.figures import count, decibels, grade_same, grade_sqnr, last_part


def html(report: Comparison) -> str:
    """The whole page."""
    sentence, grade = headline(report)
    blocks = [page.headline(sentence, grade), page.tiles(_tiles(report))]
    if report.answers:
        blocks.append(page.section("Against the labels", answer_bars(report), answer_lead(report)))
    if sum(row.sqnr_db is not None for row in report.outputs) > 1:
        blocks.append(page.section("Which output hurts", _output_bars(report),
                                   "The outputs that differ most come first; long bars are bad."))
    blocks.append(page.section("Every output", output_table(report.outputs),
                               "b against a. Shapes are those of the first batch."))
    if report.notes:
        blocks.append(page.section("Notes", page.bullets(report.notes)))
    blocks.append(page.section("What the columns mean", page.definitions(MEANINGS)))
    names = [last_part(name) for name in (report.a, report.b)]
    subtitle = f"a: {report.a} · b: {report.b} · {data_words(report)}"
    title = f"{names[0]} and {names[1]}: outputs compared"
    return page.page(title, subtitle, blocks, f"refq {report.version}")


def answer_bars(report: Comparison, names=("a", "b")) -> str:
    """Both models against the labels. names: of the models."""
    panels = []
    for title, facts, text in (("top-1", "top1", share), ("NLL, nats", "nll", "{:.4f}".format),
                               ("perplexity", "perplexity", "{:.4g}".format)):
        values = [getattr(answers, facts) for answers in report.answers]
        if None in values:
            continue
        full = 1.0 if facts == "top1" else max(filter(math.isfinite, values), default=0.0)
        panels.append((title, [page.Bar(name, value if math.isfinite(value) else full, text(value))
                               for name, value in zip(names, values)], full))
    return page.bars(panels)


def answer_lead(report: Comparison) -> str:
    """The sentence that explains answer_bars."""
    return (f"{report.labels:,} labels of output {report.labelled}; long bars are good for top-1 and bad for "
            "the others.")


def output_table(outputs: tuple[OutputFigures, ...]) -> str:
    """The figures of outputs, one a line."""
    head, rows = HEAD, [_row(row) for row in outputs]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return page.table(head, rows, numeric=(2, 3, 4, 5, 6))


def _row(row: OutputFigures) -> tuple:
    name, shape, sqnr, cosine, largest, kl, same, remarks = cells(row)
    if row.sqnr_db is not None:
        sqnr = page.graded(sqnr, grade_sqnr(row.sqnr_db))
    if row.same_top1 is not None:
        same = page.graded(same, grade_same(row.same_top1))
    return name, shape.replace("x", "×"), sqnr, cosine, largest, kl, same, remarks


def _output_bars(report: Comparison) -> str:
    rows = sorted((row for row in report.outputs if row.sqnr_db is not None), key=lambda row: row.sqnr_db)
    errors = [10 ** (-max(row.sqnr_db, -20.0) / 20) for row in rows]
    bars = [page.Bar(row.name, error, decibels(row.sqnr_db), grade_sqnr(row.sqnr_db))
            for row, error in zip(rows, errors)]
    return page.bars([("error against signal, SQNR dB", bars, max(errors))])


def _tiles(report: Comparison) -> list[tuple[str, str, str]]:
    worst = report.worst
    entries = [("rows of data", f"{report.rows:,}", f"{report.data}, {count(report.batches, 'batch')}")]
    if worst is None:
        return entries
    entries.append(("lowest SQNR", decibels(worst.sqnr_db, " dB"), worst.name))
    if worst.same_top1 is not None:
        entries += [("same top-1", share(worst.same_top1), f"of {count(worst.rows, 'row')}"),
                    ("KL", number(worst.kl, ".4g"), "nats, mean over rows")]
    if report.answers:
        a, b = report.answers
        entries.append(("top-1 of b", share(b.top1), f"a: {share(a.top1)}"))
        entries.append(("NLL of b", f"{b.nll:.4f}", f"a: {a.nll:.4f}") if b.perplexity is None
                       else ("perplexity of b", f"{b.perplexity:.4g}", f"a: {a.perplexity:.4g}"))
    return entries
