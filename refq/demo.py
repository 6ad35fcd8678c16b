"""`refq demo`: the main job on the embedded example, from a float model to a checked device."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import numpy_helper

import refq
from refq.conformance.check import Verdict, check
from refq.conformance.devices import Pipe
from refq.files import write_whole
from refq.models import example, metrics, page
from refq.models.engine import Engine, run_batches
from refq.models.quantize import quantize_model
from refq.models.report import Report, size
from refq.vectors import sets, vec

DATA_TYPES = ("mxfp8", "mxfp6", "mxfp4", "int8", "int4", "nvfp4")
CHECKED = "mxfp4"           # the data type whose golden vectors the demo makes
BATCH = 128
# Share of the float accuracy that is kept, down to which a data type has its grade.
GRADES = ((0.995, "good"), (0.98, "fair"), (0.95, "poor"), (-1.0, "bad"))


@dataclass(frozen=True)
class Score:
    """One model on the example's test images. bits: per quantised weight; kl: mean KL(float ‖ model) in nats."""

    name: str
    accuracy: float
    nll: float
    kl: float
    bits: float
    bytes: int
    report: Report | None = None


def run(folder, progress, say=print) -> tuple[list[Score], list[Verdict]]:
    """Quantise, evaluate and check the embedded example; models, vectors and pages go into `folder`.

    progress(step, steps, what) is called before each step; say(text) receives what a person reads.
    Returns the scores (the float model first) and the two verdicts (refq itself, then the wrong device).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data, steps = example.load(), len(DATA_TYPES) + 3
    progress(0, steps, "the float model")
    reference = _logits(data.model_path, data.images)
    scores = [Score("float32", metrics.accuracy(reference, data.labels), metrics.nll(reference, data.labels), 0.0, 32.0,
                    data.model_path.stat().st_size)]
    for step, name in enumerate(DATA_TYPES, 1):
        progress(step, steps, name)
        scores.append(_score(name, folder / f"fashion_cnn.{name}.onnx", data, reference))
    progress(steps - 2, steps, "golden vectors and two devices")
    vectors = _golden(data.model_path, folder)
    verdicts = [check(vectors, Pipe(f"{shlex.quote(sys.executable)} -m refq device")), check(vectors, truncating, limit=3)]
    progress(steps - 1, steps, "pages")
    _write_pages(folder, scores, verdicts, len(data.labels))
    progress(steps, steps, "done")
    say(f"\nFashion-MNIST CNN, {len(data.labels):,} test images, weights only, direct cast (rtn)\n\n{table(scores)}\n")
    say(f"golden vectors from conv1's weights: {folder / 'conv1.vec'} ({len(vectors)} tiles)")
    say("  refq as the device:      " + verdicts[0].text())
    say("  a device that truncates: " + verdicts[1].text().replace("\n", "\n    "))
    say(f"\nlook at {folder / 'index.html'}; the quantised models lie beside it")
    return scores, verdicts


def truncating(words, *_):
    """The deliberately wrong device: the right scales, but elements cut toward zero instead of rounded to nearest."""
    q = refq.quantize(words.view(np.float32), CHECKED, rounding="rtz")
    return q.scales[:, 0], q.codes


def table(scores: list[Score]) -> str:
    """The comparison for a terminal."""
    lines = [("", "accuracy", "NLL", "KL to float", "bits/weight", "file"), *(_cells(score) for score in scores)]
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    return "\n".join("  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths)))
                     for line in lines)


def _cells(score: Score) -> tuple[str, ...]:
    return (score.name, f"{100 * score.accuracy:.2f} %", f"{score.nll:.4f}", f"{score.kl:.5f}", f"{score.bits:.2f}",
            size(score.bytes))


def _logits(model, images):
    return run_batches(Engine(model), {"image": images}, BATCH)["logits"]


def _score(name: str, path: Path, data, reference) -> Score:
    report = quantize_model(data.model_path, path, dtype=name)
    logits = _logits(path, data.images)
    return Score(name, metrics.accuracy(logits, data.labels), metrics.nll(logits, data.labels),
                 metrics.kl(reference, logits), report.average_bits, report.target_bytes, report)


def _golden(model_path, folder: Path) -> vec.VectorSet:
    """A golden-vector set from the first layer's real weights, along the axis that the layer sums over."""
    model = Engine(model_path).model
    weight = next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == "conv1.weight")
    vectors = sets.from_weights("conv1", weight.reshape(weight.shape[0], -1), CHECKED)
    vec.write(vectors, folder / "conv1.vec")
    return vectors


# -- pages ------------------------------------------------------------------------------------------------------

def _write_pages(folder: Path, scores: list[Score], verdicts: list[Verdict], images: int):
    for score in scores[1:]:
        write_whole(folder / f"report-{score.name}.html", score.report.to_html())
    write_whole(folder / "index.html", _index(scores, verdicts, images))


def _index(scores: list[Score], verdicts: list[Verdict], images: int) -> str:
    best = min(scores[1:], key=lambda score: (score.bits * (score.accuracy < 0.99 * scores[0].accuracy) * 100 + score.bits))
    ratio = scores[0].bytes / best.bytes
    head = (f"{best.name} keeps {100 * best.accuracy:.2f} % of {100 * scores[0].accuracy:.2f} % accuracy at {best.bits:.2f} bits "
            f"per weight: the smallest within 1 % of the float model, and a file {ratio:.1f}× smaller.")
    lead = f"Weights only, direct cast, evaluated on {images:,} labelled test images by refq's numpy engine."
    blocks = [page.headline(head, "good"), page.tiles(_tiles(scores, verdicts, best)),
              page.section("What each data type costs", _bars(scores) + _score_table(scores), lead),
              page.section("Golden vectors and two devices", "".join(_verdict(verdict) for verdict in verdicts),
                           "A vector set made from the weights of conv1: 32 float32 words in, one scale and 32 codes out. "
                           "The first device is refq behind a pipe; the second truncates where it should round."),
              page.section(f"Weights of every layer in {CHECKED}", _histograms(scores),
                           "Grey: float weights; line: after quantisation. Heights are logarithmic.")]
    return page.page("refq demo", "A Fashion-MNIST classifier in six block-scaled data types", blocks, f"refq {refq.__version__}")


def _tiles(scores, verdicts, best):
    passed, failed = verdicts
    return [("float accuracy", f"{100 * scores[0].accuracy:.2f} %", f"NLL {scores[0].nll:.4f}"),
            (f"{best.name} accuracy", f"{100 * best.accuracy:.2f} %", f"NLL {best.nll:.4f}, KL {best.kl:.5f}"),
            ("smallest file", size(min(score.bytes for score in scores)), f"float: {size(scores[0].bytes)}"),
            ("refq as device", passed.outcome, f"{passed.cases} cases"),
            ("truncating device", failed.outcome, f"{failed.failed} of {failed.cases} cases differ")]


def _grade(score: Score, reference: Score) -> str:
    return next(grade for share, grade in GRADES if score.accuracy >= share * reference.accuracy)


def _bars(scores: list[Score]) -> str:
    panels = [("accuracy lost, points", lambda score: max(0.0, 100 * (scores[0].accuracy - score.accuracy)), "{:.2f}"),
              ("KL to float, nats", lambda score: score.kl, "{:.5f}"), ("bits per weight", lambda score: score.bits, "{:.2f}")]
    return page.bars([(title, [page.Bar(score.name, value(score), form.format(value(score)), _grade(score, scores[0]))
                               for score in scores[1:]], max(max(map(value, scores[1:])), 1e-9)) for title, value, form in panels])


def _score_table(scores: list[Score]) -> str:
    head = ("data type", "accuracy", "NLL", "KL to float", "bits per weight", "file", "report")
    links = ["", *(page.Raw(f'<a href="report-{score.name}.html">layers</a>') for score in scores[1:])]
    return page.table(head, ((*_cells(score), link) for score, link in zip(scores, links)), numeric=(1, 2, 3, 4, 5))


def _verdict(verdict: Verdict) -> str:
    mark = page.pill(verdict.outcome, "good" if verdict.passed else "bad").html
    lines = "\n".join(failure.line for failure in verdict.failures)
    more = f"<pre style='white-space:pre-wrap;overflow-wrap:anywhere;font-size:12px'>{page.escape(lines)}</pre>" if lines else ""
    counts = f"{verdict.cases} cases" if verdict.passed else f"{verdict.failed} of {verdict.cases} cases differ, the first:"
    return f"<p>{mark} <code>{page.escape(verdict.device.rpartition('/')[2])}</code> on {page.escape(verdict.set)}: {counts}</p>{more}"


def _histograms(scores: list[Score]) -> str:
    report = next(score.report for score in scores if score.name == CHECKED)
    return page.charts(page.histogram_chart(row.title, f"SQNR {row.sqnr_db:.1f} dB", row.histogram)
                       for row in report.rows if row.histogram)
