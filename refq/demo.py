"""`refq demo`: the main job on the embedded example, from a float model to a checked device.

Every data type comes twice: by direct cast (rtn), and by error diffusion (ed) on calibration images.
"""

import io
import math
import shlex
import sys
import textwrap
from collections.abc import Callable
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
from refq.models.figures import count, decibels, size, times
from refq.models.quantize import quantize_model
from refq.models.report import Report
from refq.models.report_text import headline
from refq.models.workers import Workers
from refq.vectors import sets, vec

DATA_TYPES = ("mxfp8", "mxfp6", "mxfp4", "int8", "int4", "nvfp4", "int2_binary16_t32")
CHECKED = "mxfp4"           # the data type whose golden vectors the demo makes, and whose layers it shows
MODEL, CALIBRATION, TEST = "fashion_cnn.onnx", "calibration.npz", "test.npz"
BATCH = 250
CLOSE = 0.99                # share of the float accuracy that the data type in the headline keeps
# Share of the float accuracy that is kept, down to which a data type has its grade.
GRADES = ((0.995, "good"), (0.98, "fair"), (0.95, "poor"), (-1.0, "bad"))
WIDTH = 100                 # of the text for a terminal
HEAD = ("data type", "method", "accuracy", "NLL", "KL to float", "output error", "bits per weight", "file",
        "report")
NUMERIC = range(2, 8)       # of these columns
NEXT = (f"refq quantize {MODEL} --calibration {CALIBRATION} --dtype nf4_t64 -o mine.onnx",
        f"refq compare {MODEL} mine.onnx --data {TEST}")


@dataclass(frozen=True)
class Score:
    """One model on the example's test images.

    nll and kl: means in nats; kl of the float model's answers to this one's. bits: per quantised weight.
    bytes: of the file.
    """

    name: str
    method: str
    accuracy: float
    nll: float
    kl: float
    bits: float
    bytes: int
    report: Report | None = None


@dataclass(frozen=True)
class Pair:
    """A data type by direct cast and by error diffusion. rtn_only, ed_only: test images that only one of them
    gets right."""

    rtn: Score
    ed: Score
    rtn_only: int
    ed_only: int

    @property
    def name(self) -> str:
        return self.ed.name

    @property
    def output_error(self) -> float:
        """Of ed over that of rtn, the geometric mean of the layers; on calibration images held back."""
        return self.ed.report.gain.mean_ratio

    @property
    def gained(self) -> float:
        """Accuracy of ed less that of rtn, in points."""
        return 100 * (self.ed.accuracy - self.rtn.accuracy)

    @property
    def told_apart(self) -> bool:
        """Whether the accuracies differ by more than two standard errors of a fair coin, thrown for every
        image that only one of the two gets right."""
        return abs(self.ed_only - self.rtn_only) > 2 * math.sqrt(self.ed_only + self.rtn_only)


@dataclass(frozen=True)
class Outcome:
    """What the demo measured. images, calibration: numbers of test and of calibration images."""

    reference: Score
    pairs: tuple[Pair, ...]
    images: int
    calibration: int

    @property
    def best(self) -> Pair:
        """The data type of fewest bits that by error diffusion is close to the float model."""
        enough = CLOSE * self.reference.accuracy
        return min(self.pairs, key=lambda pair: (pair.ed.accuracy < enough, pair.ed.bits))

    @property
    def least(self) -> Pair:
        """The data type of fewest bits."""
        return min(self.pairs, key=lambda pair: pair.ed.bits)

    @property
    def shown(self) -> Pair:
        """The data type whose layers are shown."""
        return next(pair for pair in self.pairs if pair.name == CHECKED)

    @property
    def noise(self) -> float:
        """Standard error of an accuracy on the test images, in points."""
        share = self.reference.accuracy
        return 100 * math.sqrt(share * (1 - share) / self.images)


def run(folder, progress, say=print) -> tuple[Outcome, list[Verdict]]:
    """Quantise, evaluate and check the embedded example; models, data, vectors and pages go into `folder`.

    progress(step, steps, what) is called before each step; say(text) receives what a person reads.
    Returns what was measured and the two verdicts (refq itself, then the wrong device).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data, steps = example.load(), len(DATA_TYPES) + 3
    progress(0, steps, "the float model")
    _write_inputs(folder, data)
    reference, = _logits([folder / MODEL], data.images)
    first = _score("float32", "", data.labels, reference, reference, 32.0, (folder / MODEL).stat().st_size)
    pairs = []
    for step, name in enumerate(DATA_TYPES, 1):
        progress(step, steps, name)
        pairs.append(_pair(name, folder, data, reference))
    outcome = Outcome(first, tuple(pairs), len(data.images), len(data.calibration))
    progress(steps - 2, steps, "golden vectors and two devices")
    vectors = _golden(folder)
    itself = Pipe(f"{shlex.quote(sys.executable)} -m refq device")
    verdicts = [check(vectors, itself), check(vectors, truncating, limit=3)]
    progress(steps - 1, steps, "pages")
    _write_pages(folder, outcome, verdicts)
    progress(steps, steps, "done")
    say(_text(folder, outcome, verdicts))
    return outcome, verdicts


def truncating(words, *_):
    """The deliberately wrong device: the right scales, but elements cut toward zero instead of rounded."""
    q = refq.quantize(words.view(np.float32), CHECKED, rounding="rtz")
    return q.scales[:, 0], q.codes


# -- measuring -----------------------------------------------------------------------------------------------

def _write_inputs(folder: Path, data) -> None:
    """The float model and the images, as the commands take them."""
    write_whole(folder / MODEL, data.model_path.read_bytes())
    for name, images, labels in ((CALIBRATION, data.calibration, data.calibration_labels),
                                 (TEST, data.images, data.labels)):
        packed = io.BytesIO()
        np.savez_compressed(packed, image=images, labels=labels)
        write_whole(folder / name, packed.getvalue())


def _logits(models, images) -> list[np.ndarray]:
    """The answers of several models, which run side by side."""
    with Workers() as workers:
        return list(workers.map(lambda model: run_batches(model, {"image": images}, BATCH)["logits"], models))


def _pair(name: str, folder: Path, data, reference) -> Pair:
    paths = {"rtn": folder / _model_name(name, "rtn"), "ed": folder / _model_name(name, "ed")}
    reports = [quantize_model(folder / MODEL, path, dtype=name, method=method,
                              calibration=None if method == "rtn" else folder / CALIBRATION)
               for method, path in paths.items()]
    answers = _logits(paths.values(), data.images)
    scores = [_score(name, method, data.labels, logits, reference, report.average_bits, report.target_bytes,
                     report) for method, logits, report in zip(paths, answers, reports)]
    rtn, ed = (logits.argmax(1) == data.labels for logits in answers)
    return Pair(*scores, int(np.sum(rtn & ~ed)), int(np.sum(ed & ~rtn)))


def _score(name: str, method: str, labels, logits, reference, *facts) -> Score:
    """facts: bits, bytes and report of the Score."""
    return Score(name, method, metrics.accuracy(logits, labels), metrics.nll(logits, labels),
                 metrics.kl(reference, logits), *facts)


def _golden(folder: Path) -> vec.VectorSet:
    """A golden-vector set from the first layer's real weights, along the axis that the layer sums over."""
    model = Engine(folder / MODEL).model
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "conv1.weight")
    weight = numpy_helper.to_array(tensor)
    vectors = sets.from_weights("conv1", weight.reshape(weight.shape[0], -1), CHECKED)
    vec.write(vectors, folder / "conv1.vec")
    return vectors


def _model_name(name: str, method: str) -> str:
    return f"fashion_cnn.{name}.onnx" if method == "ed" else f"fashion_cnn.{name}.{method}.onnx"


def _report_name(score: Score) -> str:
    return f"report-{score.name}.html" if score.method == "ed" else f"report-{score.name}.{score.method}.html"


# -- text ----------------------------------------------------------------------------------------------------

def table(outcome: Outcome) -> str:
    """The comparison for a terminal."""
    one = outcome.reference
    lines = [("", "accuracy", "", "NLL", "", "KL to", "float", "output", "bits per", ""),
             ("", "rtn", "ed", "rtn", "ed", "rtn", "ed", "error", "weight", "file"),
             (one.name, _percent(one.accuracy), "", f"{one.nll:.4f}", "", "", "", "", f"{one.bits:.2f}",
              size(one.bytes))]
    for pair in outcome.pairs:
        both = pair.rtn, pair.ed
        lines.append((pair.name, *(_percent(score.accuracy) for score in both),
                      *(f"{score.nll:.4f}" for score in both), *(f"{score.kl:.6f}" for score in both),
                      f"{times(pair.output_error)}x", f"{pair.ed.bits:.2f}", size(pair.ed.bytes)))
    return columns(lines, right=range(1, 10))


def findings(outcome: Outcome) -> list[str]:
    """What the figures say of error diffusion beside direct cast, in sentences."""
    pairs, images = outcome.pairs, f"{outcome.images:,} images"
    apart = [pair for pair in pairs if pair.told_apart]
    alike = [pair for pair in pairs if not pair.told_apart]
    accuracies = (("is higher with ed", [pair for pair in apart if pair.gained > 0]),
                  ("is lower with ed", [pair for pair in apart if pair.gained < 0]),
                  (f"cannot be told apart on {images} (less than two standard errors)", alike))
    worse = (("accuracy", [pair.name for pair in pairs if pair.gained <= 0]),
             ("NLL", [pair.name for pair in pairs if pair.ed.nll >= pair.rtn.nll]),
             ("KL", [pair.name for pair in pairs if pair.ed.kl >= pair.rtn.kl]))
    sentences = [*_nearer(pairs), *(f"Accuracy, in points, {what} in {_gains(found)}."
                                    for what, found in accuracies if found)]
    if any(names for _, names in worse):
        words = "; ".join(f"{what} in {', '.join(names)}" for what, names in worse if names)
        sentences.append(f"Not better with ed on these {images}: {words}.")
    return sentences


def _nearer(pairs) -> list[str]:
    factors = sorted(pair.rtn.kl / pair.ed.kl for pair in pairs if pair.ed.kl < pair.rtn.kl)
    if not factors:
        return []
    span = " to ".join(dict.fromkeys(f"{factor:.2g}" for factor in (factors[0], factors[-1])))
    where = f"all {len(pairs)}" if len(factors) == len(pairs) else f"{len(factors)} of {len(pairs)}"
    return ["Answers are nearer to the float model's with ed: the KL is "
            + f"{span} times lower than with rtn, in {where} data types."]


def _gains(pairs) -> str:
    return ", ".join(f"{pair.name} ({pair.gained:+.2f})" for pair in pairs)


def _text(folder: Path, outcome: Outcome, verdicts: list[Verdict]) -> str:
    """What a person reads at the end."""
    head = (f"Fashion-MNIST CNN, {outcome.images:,} test images, weights only: direct cast (rtn) beside "
            f"error diffusion (ed), which looked at {outcome.calibration} other images")
    notes = ("output error: ed over rtn, geometric mean of the layers, on images held back. Standard error "
             f"of an accuracy here: {outcome.noise:.1f} points.")
    said = [textwrap.fill(sentence, WIDTH, initial_indent="- ", subsequent_indent="  ")
            for sentence in findings(outcome)]
    return "\n".join([
        "", textwrap.fill(head, WIDTH), "", table(outcome), "", textwrap.fill(notes, WIDTH), *said, "",
        f"golden vectors from conv1's weights: {folder / 'conv1.vec'} ({verdicts[0].cases} tiles)",
        "  refq as the device:      " + verdicts[0].text(),
        "  a device that truncates: " + verdicts[1].text().replace("\n", "\n    "), "",
        f"look at {folder / 'index.html'}; beside it lie the models (.onnx is ed, .rtn.onnx direct cast),",
        "a report on each, and what it takes to go on:", *(f"  {command}" for command in NEXT)])


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


# -- pages ---------------------------------------------------------------------------------------------------

def _write_pages(folder: Path, outcome: Outcome, verdicts: list[Verdict]) -> None:
    for pair in outcome.pairs:
        for score in (pair.rtn, pair.ed):
            write_whole(folder / _report_name(score), score.report.to_html([_both(pair)]))
    write_whole(folder / "index.html", _index(outcome, verdicts))


def _both(pair: Pair) -> tuple[str, str]:
    """The section that ends the reports of both methods."""
    back = '<p><a href="index.html">all data types</a></p>'
    return f"{pair.name} by both methods, on the test images", page.table(*_table([pair]), NUMERIC) + back


def _index(outcome: Outcome, verdicts: list[Verdict]) -> str:
    costs = (f"Weights only. Error diffusion looked at {outcome.calibration} calibration images; accuracy "
             f"and KL are of {outcome.images:,} others, labelled, run by refq's numpy engine. Short bars are "
             "good.")
    figures = ("Output error: of ed over rtn, the geometric mean of the layers, on calibration images that "
               "were held back.")
    devices = ("A vector set made from the weights of conv1: 32 float32 words in, one scale and 32 codes "
               "out. The first device is refq behind a pipe; the second truncates where it should round.")
    weights = "Grey: float weights; line: after error diffusion. Heights are logarithmic."
    commands = f"<pre style='{PRE}'>{page.escape(chr(10).join(NEXT))}</pre>"
    blocks = [
        page.headline(_headline(outcome), "good"),
        page.tiles(_tiles(outcome, verdicts)),
        page.section("What each data type costs", _costs(outcome), costs),
        page.section("All figures", page.table(*_table(outcome.pairs, outcome.reference), NUMERIC), figures),
        _hurting(outcome.shown),
        page.section(f"Weights of every layer in {CHECKED}", _histograms(outcome.shown), weights),
        page.section("Golden vectors and two devices", "".join(map(_verdict, verdicts)), devices),
        page.section("To go on from here", commands, "In this folder, with the data type of your choice:"),
    ]
    title = (f"A Fashion-MNIST classifier in {len(outcome.pairs)} data types, by direct cast and by error "
             "diffusion")
    return page.page("refq demo", title, blocks, f"refq {refq.__version__}")


def _headline(outcome: Outcome) -> str:
    best, least, reference = outcome.best, outcome.least, outcome.reference
    words = (f"{best.name} by error diffusion has {_percent(best.ed.accuracy)} accuracy, by direct cast "
             f"{_percent(best.rtn.accuracy)}; the float model has {_percent(reference.accuracy)}. The file, "
             f"{best.ed.bits:.2f} bits per weight, is {reference.bytes / best.ed.bytes:.1f}× smaller.")
    if least is best:
        return words
    return (f"{words} At {least.ed.bits:.2f} bits ({least.name}) error diffusion has "
            f"{_percent(least.ed.accuracy)}, direct cast {_percent(least.rtn.accuracy)}.")


def _tiles(outcome: Outcome, verdicts: list[Verdict]) -> list[tuple[str, str, str]]:
    reference, (passed, failed) = outcome.reference, verdicts
    chosen = (outcome.best, outcome.least) if outcome.least is not outcome.best else (outcome.best,)
    layers = count(outcome.best.ed.report.gain.layers, "layer")
    return [("float accuracy", _percent(reference.accuracy), f"{size(reference.bytes)}"),
            *((f"{pair.name}, ed", _percent(pair.ed.accuracy),
               f"rtn: {_percent(pair.rtn.accuracy)}; {size(pair.ed.bytes)}") for pair in chosen),
            (f"output error, {outcome.best.name}", f"{times(outcome.best.output_error)}×",
             f"ed over rtn, mean of {layers}"),
            ("refq as device", passed.outcome, f"{passed.cases} cases"),
            ("truncating device", failed.outcome, f"{failed.failed} of {failed.cases} cases differ")]


def _table(pairs, reference: Score | None = None) -> tuple[tuple, list]:
    """(titles, lines): two lines for each data type."""
    lines = [_line(reference, reference)] if reference else []
    for pair in pairs:
        error = page.graded(f"{times(pair.output_error)}×", "fair")
        lines += [_line(pair.rtn, reference, "1.00×"), _line(pair.ed, reference, error)]
    return HEAD, lines


def _line(score: Score, reference: Score | None, error="") -> tuple:
    accuracy = _percent(score.accuracy)
    if reference:
        accuracy = page.graded(accuracy, next(grade for share, grade in GRADES
                                              if score.accuracy >= share * reference.accuracy))
    link = page.Raw(f'<a href="{_report_name(score)}">layers</a>') if score.report else ""
    return ("" if score.method == "ed" else score.name, score.method, accuracy, f"{score.nll:.4f}",
            f"{score.kl:.6f}" if score.method else "", error, f"{score.bits:.2f}", size(score.bytes), link)


# -- two bars a line -----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Panel:
    """One figure of every line, by rtn and by ed. text: of a value. length: of its bar, as a share of the
    longest; above 1 the bar is cut. mark: a length at which a dotted line stands."""

    title: str
    values: list[tuple[float, float]]
    text: Callable[[float], str]
    length: Callable[[float], float]
    mark: float | None = None


KINDS = ("weight", "fair")      # classes of the style sheet: rtn is grey, ed blue
KEY = tuple(zip(KINDS, ("direct cast (rtn)", "error diffusion (ed)")))
NAMES, LABEL = 190, 74          # of a picture: width of the lines' names, and of the value behind a bar
TOP, ROW = 20, 38               # height of the titles, and of a line
HALO = "paint-order:stroke;stroke:var(--card);stroke-width:3px"     # of a value that a dotted line crosses
PRE = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:12px;margin:0"


def _linear(title: str, values, form: str, full: float, mark: float | None = None) -> Panel:
    full = full or 1.0
    return Panel(title, values, lambda value: _with_minus(form.format(value)), lambda value: value / full,
                 mark and mark / full)


def _with_minus(number: str) -> str:
    return number.replace("-", "−")


def _logarithmic(title: str, values, form: str) -> Panel:
    """From the power of ten below the smallest value to the largest."""
    found = [value for pair in values for value in pair if value > 0]
    low = math.floor(math.log10(min(found))) - 0.1
    decades = math.log10(max(found)) - low
    return Panel(title, values, form.format,
                 lambda value: (math.log10(value) - low) / decades if value > 0 else 0.0)


def _paired(lines: list[tuple[str, str]], panels: list[Panel], others=()) -> str:
    """lines: (name, small print) of each. others: further (class, words) of the key."""
    width = 1100
    span, parts = (width - NAMES) / len(panels), []
    for number, (name, small) in enumerate(lines):
        y = TOP + ROW * number
        parts.append(f'<text class="mark" x="0" y="{y + 15}">{page.escape(name)}</text>'
                     f'<text class="soft" x="0" y="{y + 30}">{page.escape(small)}</text>')
    for place, panel in enumerate(panels):
        left, room = NAMES + span * place, span - LABEL
        parts.append(f'<text class="soft" x="{left:.1f}" y="12">{page.escape(panel.title)}</text>')
        if panel.mark:
            x = left + room * panel.mark
            parts.append(f'<path class="dashed" d="M{x:.1f} {TOP}V{TOP + ROW * len(lines)}"/>')
        for number, pair in enumerate(panel.values):
            parts += [_bar(left, TOP + ROW * number + 5 + 13 * second, room, kind, panel, value)
                      for second, (kind, value) in enumerate(zip(KINDS, pair))]
    return page.drawing(width, TOP + ROW * len(lines) + 4, parts) + page.key([*KEY, *others])


def _bar(x: float, y: float, room: float, kind: str, panel: Panel, value: float) -> str:
    share = panel.length(value)
    length = max(2.0, room * min(1.0, share))
    cut = (f'<path d="M{x + room - 14:.1f} {y + 14}l6 -16" style="stroke:var(--card);stroke-width:4"/>'
           if share > 1 else "")
    look = (' class="soft"' if kind == KINDS[0] else "") + (f' style="{HALO}"' if panel.mark else "")
    return (f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{length:.1f}" height="11" rx="2"/>{cut}'
            f'<text{look} x="{x + length + 6:.1f}" y="{y + 10}">{panel.text(value)}</text>')


# -- sections ------------------------------------------------------------------------------------------------

LONGEST = 2.5               # points of accuracy lost; longer bars are cut


def _costs(outcome: Outcome) -> str:
    """Bars of every data type, and what they say."""
    def lost(score: Score) -> float:
        return 100 * (outcome.reference.accuracy - score.accuracy)
    both = [(pair.rtn, pair.ed) for pair in outcome.pairs]
    lines = [(pair.name, f"{pair.ed.bits:.2f} bits, {size(pair.ed.bytes)}") for pair in outcome.pairs]
    noise = f"standard error of an accuracy: {outcome.noise:.1f} points"
    panels = [
        _linear("accuracy lost, points", [(lost(rtn), lost(ed)) for rtn, ed in both], "{:.2f}", LONGEST,
                outcome.noise),
        _logarithmic("KL to float, nats, logarithmic", [(rtn.kl, ed.kl) for rtn, ed in both], "{:.6f}"),
        _linear("error of the layers' outputs, rtn = 1", [(1.0, pair.output_error) for pair in outcome.pairs],
                "{:.2f}×", 1.0),
    ]
    return f'{_paired(lines, panels, [("dashed", noise)])}<br>{page.bullets(findings(outcome))}'


def _hurting(pair: Pair) -> str:
    """Which layer hurts, and what its outputs would have lost by direct cast."""
    report = pair.ed.report
    direct = {row.output: row for row in pair.rtn.report.weights}
    rows = sorted(report.measured, key=lambda row: -row.errors.hurt)
    lines = [(row.title, f"{row.op}, adds {_with_minus(f'{100 * row.errors.hurt:.2f}')} %") for row in rows]
    outputs = [tuple(100 * error / row.errors.signal for error in (row.errors.rtn_error, row.errors.error))
               for row in rows]
    weights = [tuple(100 * 10 ** (-each.sqnr_db / 10) for each in (direct[row.output], row)) for row in rows]
    words = ("Errors are those on calibration images held back, behind the layers before, error-diffused. "
             "What a layer adds is its error less what its outputs would have lost had it stayed in float; "
             "below 0 it makes good what layers before it lost. Weights of ed may lie further from the float "
             "ones: their errors cancel in the outputs.")
    picture = _paired(lines, [
        _linear("error in its outputs, % of the signal", outputs, "{:.2f} %", max(map(max, outputs))),
        _linear("error in its weights, % of their power", weights, "{:.2f} %", max(map(max, weights)))])
    link = f'<p><a href="{_report_name(pair.ed)}">the whole report on {pair.name}</a></p>'
    lead = f"{headline(report)[0][0]} {words}"
    return page.section(f"Which layer hurts in {pair.name}", picture + link, lead)


def _verdict(verdict: Verdict) -> str:
    mark = page.pill(verdict.outcome, "good" if verdict.passed else "bad").html
    device, name = page.escape(verdict.device.rpartition("/")[2]), page.escape(verdict.set)
    if verdict.passed:
        return f"<p>{mark} <code>{device}</code> on {name}: {verdict.cases} cases</p>"
    counts = f"{verdict.failed} of {verdict.cases} cases differ, the first:"
    lines = page.escape("\n".join(failure.line for failure in verdict.failures))
    first = f"<pre style='{PRE}'>{lines}</pre>" if lines else ""
    return f"<p>{mark} <code>{device}</code> on {name}: {counts}</p>{first}"


def _histograms(pair: Pair) -> str:
    direct = {row.output: row for row in pair.rtn.report.rows}
    return page.charts(
        page.histogram_chart(row.title, f"SQNR {decibels(row.sqnr_db, ' dB')}, "
                             f"rtn {decibels(direct[row.output].sqnr_db, ' dB')}", row.histogram)
        for row in pair.ed.report.rows if row.histogram)
