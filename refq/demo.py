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
from refq.formats.table import columns
from refq.models import example, metrics, page
from refq.models.engine import Engine, run_batches
from refq.models.quantize import quantize_model
from refq.models.report import Report, size
from refq.vectors import sets, vec

DATA_TYPES = ("mxfp8", "mxfp6", "mxfp4", "int8", "int4", "nvfp4")
CHECKED = "mxfp4"           # the data type whose golden vectors the demo makes
BATCH = 128
CLOSE = 0.99                # share of the float accuracy that the data type in the headline keeps
# Share of the float accuracy that is kept, down to which a data type has its grade.
GRADES = ((0.995, "good"), (0.98, "fair"), (0.95, "poor"), (-1.0, "bad"))


@dataclass(frozen=True)
class Score:
    """One model on the example's test images.

    nll and kl: means in nats; kl of the float model's answers to this one's. bits: per quantised weight.
    bytes: of the file.
    """

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
    float_bytes = data.model_path.stat().st_size
    scores = [_score("float32", data.labels, reference, reference, 32.0, float_bytes)]
    for step, name in enumerate(DATA_TYPES, 1):
        progress(step, steps, name)
        scores.append(_quantised_score(name, folder, data, reference))
    progress(steps - 2, steps, "golden vectors and two devices")
    vectors = _golden(data.model_path, folder)
    itself = Pipe(f"{shlex.quote(sys.executable)} -m refq device")
    verdicts = [check(vectors, itself), check(vectors, truncating, limit=3)]
    progress(steps - 1, steps, "pages")
    _write_pages(folder, scores, verdicts, len(data.labels))
    progress(steps, steps, "done")
    say(f"\nFashion-MNIST CNN, {len(data.labels):,} test images, weights only, direct cast (rtn)")
    say(f"\n{table(scores)}\n")
    say(f"golden vectors from conv1's weights: {folder / 'conv1.vec'} ({len(vectors)} tiles)")
    say("  refq as the device:      " + verdicts[0].text())
    say("  a device that truncates: " + verdicts[1].text().replace("\n", "\n    "))
    say(f"\nlook at {folder / 'index.html'}; the quantised models lie beside it")
    return scores, verdicts


def truncating(words, *_):
    """The deliberately wrong device: the right scales, but elements cut toward zero instead of rounded."""
    q = refq.quantize(words.view(np.float32), CHECKED, rounding="rtz")
    return q.scales[:, 0], q.codes


def table(scores: list[Score]) -> str:
    """The comparison for a terminal."""
    head = ("", "accuracy", "NLL", "KL to float", "bits/weight", "file")
    return columns([head, *map(_cells, scores)], right=range(1, 6))


def _cells(score: Score) -> tuple[str, ...]:
    return (score.name, _percent(score.accuracy), f"{score.nll:.4f}", f"{score.kl:.5f}", f"{score.bits:.2f}",
            size(score.bytes))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _logits(model, images):
    return run_batches(Engine(model), {"image": images}, BATCH)["logits"]


def _quantised_score(name: str, folder: Path, data, reference) -> Score:
    path = folder / f"fashion_cnn.{name}.onnx"
    report = quantize_model(data.model_path, path, dtype=name)
    logits = _logits(path, data.images)
    return _score(name, data.labels, logits, reference, report.average_bits, report.target_bytes, report)


def _score(name: str, labels, logits, reference, *facts) -> Score:
    """facts: bits, bytes and report of the Score."""
    return Score(name, metrics.accuracy(logits, labels), metrics.nll(logits, labels),
                 metrics.kl(reference, logits), *facts)


def _golden(model_path, folder: Path) -> vec.VectorSet:
    """A golden-vector set from the first layer's real weights, along the axis that the layer sums over."""
    model = Engine(model_path).model
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "conv1.weight")
    weight = numpy_helper.to_array(tensor)
    vectors = sets.from_weights("conv1", weight.reshape(weight.shape[0], -1), CHECKED)
    vec.write(vectors, folder / "conv1.vec")
    return vectors


# -- pages ---------------------------------------------------------------------------------------------------

def _write_pages(folder: Path, scores: list[Score], verdicts: list[Verdict], images: int):
    for score in scores[1:]:
        write_whole(folder / f"report-{score.name}.html", score.report.to_html())
    write_whole(folder / "index.html", _index(scores, verdicts, images))


def _index(scores: list[Score], verdicts: list[Verdict], images: int) -> str:
    reference, *others = scores
    best = min(others, key=lambda score: (score.accuracy < CLOSE * reference.accuracy, score.bits))
    head = (f"{best.name} keeps {_percent(best.accuracy)} of {_percent(reference.accuracy)} accuracy at "
            f"{best.bits:.2f} bits per weight: the smallest within 1 % of the float model, and a file "
            f"{reference.bytes / best.bytes:.1f}× smaller.")
    costs = f"Weights only, direct cast, evaluated on {images:,} labelled test images by refq's numpy engine."
    devices = ("A vector set made from the weights of conv1: 32 float32 words in, one scale and 32 codes "
               "out. The first device is refq behind a pipe; the second truncates where it should round.")
    layers = "Grey: float weights; line: after quantisation. Heights are logarithmic."
    blocks = [
        page.headline(head, "good"),
        page.tiles(_tiles(scores, verdicts, best)),
        page.section("What each data type costs", _bars(scores) + _score_table(scores), costs),
        page.section("Golden vectors and two devices", "".join(map(_verdict, verdicts)), devices),
        page.section(f"Weights of every layer in {CHECKED}", _histograms(scores), layers),
    ]
    title = "A Fashion-MNIST classifier in six block-scaled data types"
    return page.page("refq demo", title, blocks, f"refq {refq.__version__}")


def _tiles(scores: list[Score], verdicts: list[Verdict], best: Score) -> list[tuple[str, str, str]]:
    reference, (passed, failed) = scores[0], verdicts
    smallest = min(score.bytes for score in scores)
    return [("float accuracy", _percent(reference.accuracy), f"NLL {reference.nll:.4f}"),
            (f"{best.name} accuracy", _percent(best.accuracy), f"NLL {best.nll:.4f}, KL {best.kl:.5f}"),
            ("smallest file", size(smallest), f"float: {size(reference.bytes)}"),
            ("refq as device", passed.outcome, f"{passed.cases} cases"),
            ("truncating device", failed.outcome, f"{failed.failed} of {failed.cases} cases differ")]


def _grade(score: Score, reference: Score) -> str:
    return next(grade for share, grade in GRADES if score.accuracy >= share * reference.accuracy)


def _bars(scores: list[Score]) -> str:
    reference, *others = scores

    def lost(score: Score) -> float:
        return max(0.0, 100 * (reference.accuracy - score.accuracy))

    def panel(title: str, value, form: str):
        bars = [page.Bar(score.name, value(score), format(value(score), form), _grade(score, reference))
                for score in others]
        return title, bars, max(1e-9, *map(value, others))
    return page.bars([panel("accuracy lost, points", lost, ".2f"),
                      panel("KL to float, nats", lambda score: score.kl, ".5f"),
                      panel("bits per weight", lambda score: score.bits, ".2f")])


def _score_table(scores: list[Score]) -> str:
    head = ("data type", "accuracy", "NLL", "KL to float", "bits per weight", "file", "report")
    links = ["", *(page.Raw(f'<a href="report-{score.name}.html">layers</a>') for score in scores[1:])]
    lines = ((*_cells(score), link) for score, link in zip(scores, links))
    return page.table(head, lines, numeric=(1, 2, 3, 4, 5))


def _verdict(verdict: Verdict) -> str:
    mark = page.pill(verdict.outcome, "good" if verdict.passed else "bad").html
    device, name = page.escape(verdict.device.rpartition("/")[2]), page.escape(verdict.set)
    if verdict.passed:
        return f"<p>{mark} <code>{device}</code> on {name}: {verdict.cases} cases</p>"
    counts = f"{verdict.failed} of {verdict.cases} cases differ, the first:"
    lines = page.escape("\n".join(failure.line for failure in verdict.failures))
    style = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:12px"
    first = f"<pre style='{style}'>{lines}</pre>" if lines else ""
    return f"<p>{mark} <code>{device}</code> on {name}: {counts}</p>{first}"


def _histograms(scores: list[Score]) -> str:
    report = next(score.report for score in scores if score.name == CHECKED)
    return page.charts(page.histogram_chart(row.title, f"SQNR {row.sqnr_db:.1f} dB", row.histogram)
                       for row in report.rows if row.histogram)
