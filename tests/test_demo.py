"""`refq demo` from end to end: every file, sane scores, a pass and a mismatch, pages with live links."""

from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import refq
from refq import cli, demo
from refq.models import example, metrics
from refq.models.engine import run_batches
from refq.vectors import vec

NAMES = ("mxfp8", "mxfp6", "mxfp4", "int8", "int4", "nvfp4", "int2_binary16_t32")
SMALL = ("mxfp4", "int4", "nvfp4", "int2_binary16_t32")     # of 4 bits and below
LAYERS = ("conv1", "conv2", "conv3", "fc1", "fc2")
MODELS = {f"fashion_cnn.{name}{method}.onnx" for name in NAMES for method in ("", ".rtn")}
REPORTS = {f"report-{name}{method}.html" for name in NAMES for method in ("", ".rtn")}
# Bounds set by hand: KL of rtn and of ed to the float model in nats, the points of accuracy that ed may lose,
# bits per weight (biases and small tensors included)
BOUNDS = {"mxfp8": (0.002, 0.0005, 0.6, 8.25, 8.3), "mxfp6": (0.002, 0.0005, 0.6, 6.25, 6.3),
          "mxfp4": (0.08, 0.005, 0.6, 4.25, 4.3), "int8": (0.0001, 0.00002, 0.6, 8.0, 8.1),
          "int4": (0.02, 0.003, 0.6, 4.5, 4.6), "nvfp4": (0.05, 0.005, 0.6, 4.5, 4.6),
          "int2_binary16_t32": (2.0, 0.08, 4.0, 2.5, 2.6)}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The demo, run once: its folder, figures, verdicts, what it said and the progress it reported."""
    folder, said, steps = tmp_path_factory.mktemp("run") / "new" / "demo", [], []
    outcome, verdicts = demo.run(folder, lambda *step: steps.append(step), said.append)
    return SimpleNamespace(folder=folder, outcome=outcome, pairs={pair.name: pair for pair in outcome.pairs},
                           verdicts=verdicts, text="\n".join(said), steps=steps)


def scores(outcome):
    return [outcome.reference, *(score for pair in outcome.pairs for score in (pair.rtn, pair.ed))]


def test_every_file_is_there_and_no_other(ran):
    others = {"index.html", "conv1.vec", "fashion_cnn.onnx", "calibration.npz", "test.npz"}
    assert {path.name for path in ran.folder.iterdir()} == others | MODELS | REPORTS
    assert all(path.stat().st_size > 1000 for path in ran.folder.iterdir())
    assert (ran.folder / "fashion_cnn.onnx").read_bytes() == example.load().model_path.read_bytes()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_models_open(ran, name):
    model = onnx.load(ran.folder / name)
    onnx.checker.check_model(model)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert ("rtn" if ".rtn." in name else "ed") in facts.values()


def test_the_data_lies_beside_the_models(ran):
    data = example.load()
    for name, images, labels in (("calibration", data.calibration, data.calibration_labels),
                                 ("test", data.images, data.labels)):
        with np.load(ran.folder / f"{name}.npz") as stored:
            assert np.array_equal(stored["image"], images) and np.array_equal(stored["labels"], labels)


def test_scores(ran):
    assert tuple(ran.pairs) == NAMES
    reference, labels = ran.outcome.reference, example.load().labels
    assert ran.outcome.images == len(labels) >= 1000 and ran.outcome.calibration == 256
    assert reference.accuracy > 0.90 and reference.kl == 0 and 0.1 < reference.nll < 0.4
    for name, (rtn_kl, ed_kl, points, fewest, most) in BOUNDS.items():
        pair = ran.pairs[name]
        assert 0 < pair.rtn.kl < rtn_kl and 0 < pair.ed.kl < ed_kl, name
        assert pair.ed.accuracy > reference.accuracy - points / 100, name
        assert abs(pair.ed.nll - reference.nll) < 0.04, name
        for score in (pair.rtn, pair.ed):
            assert fewest <= score.bits < most and score.report.rows, name
            written = ran.folder / demo._model_name(name, score.method)
            assert score.bytes == written.stat().st_size < reference.bytes * 0.3
            right = score.accuracy * len(labels)
            assert right == pytest.approx(round(right))
        assert pair.gained == pytest.approx(100 * (pair.ed_only - pair.rtn_only) / len(labels))


def test_error_diffusion_brings_every_layer_nearer(ran):
    """Output errors on images held back: below those of direct cast wherever ed was kept, and never above."""
    for pair in ran.pairs.values():
        rows = pair.ed.report.measured
        assert tuple(row.title for row in rows) == LAYERS
        kept = [row for row in rows if row.method == "ed"]
        assert len(kept) >= (5 if pair.name in SMALL else 3), pair.name
        assert all(row.errors.held > 0 and row.errors.error < row.errors.rtn_error for row in kept), pair.name
        assert all(row.errors.error == row.errors.rtn_error for row in rows if row not in kept), pair.name
        assert 0 < pair.output_error < (0.5 if pair.name in SMALL else 0.8), pair.name
        assert not pair.rtn.report.measured and {row.method for row in pair.rtn.report.rows} == {"rtn"}


def test_error_diffusion_brings_the_answers_nearer(ran):
    for name, pair in ran.pairs.items():
        assert pair.ed.kl < (pair.rtn.kl / 3 if name in SMALL else pair.rtn.kl), name
        assert name not in SMALL or pair.ed.nll < pair.rtn.nll and pair.ed.accuracy > pair.rtn.accuracy, name
    least = ran.pairs["int2_binary16_t32"]
    assert least.gained > 20 and least.told_apart and ran.outcome.least is least
    assert ran.outcome.best.name == "mxfp4"


def test_fewer_bits_cost_more(ran):
    for method in ("rtn", "ed"):
        kl = {name: getattr(pair, method).kl for name, pair in ran.pairs.items()}
        assert kl["mxfp8"] < kl["mxfp4"] < kl["int2_binary16_t32"] and kl["int8"] < kl["int4"]
        assert kl["nvfp4"] < kl["mxfp4"]
    sizes = [ran.pairs[name].ed.bytes for name in ("int2_binary16_t32", "mxfp4", "mxfp6", "mxfp8")]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("method", ["rtn", "ed"])
def test_the_models_answer_as_they_were_scored(ran, method):
    """Read from the files and run again, in batches of another size."""
    data, score = example.load(), getattr(ran.pairs["mxfp4"], method)
    path = ran.folder / demo._model_name("mxfp4", method)
    logits = run_batches(path, {"image": data.images}, 100)["logits"]
    assert metrics.accuracy(logits, data.labels) == pytest.approx(score.accuracy, abs=1.1 / len(data.labels))
    assert metrics.nll(logits, data.labels) == pytest.approx(score.nll, rel=1e-5)
    assert onnx.load(path).graph.initializer[0].ByteSize() > 0


def test_verdicts(ran):
    passed, failed = ran.verdicts
    assert (passed.outcome, passed.exit_code, passed.failed) == ("pass", 0, 0)
    assert (failed.outcome, failed.exit_code) == ("mismatch", 1)
    assert passed.cases == failed.cases > 10 and failed.failed > failed.cases // 2
    assert len(failed.failures) == 3
    for failure in failed.failures:
        assert all(word in failure.line for word in ("got", "want", "[BLOCK-"))


def test_the_golden_vectors_are_the_layer_s_tiles(ran):
    vectors = vec.read(ran.folder / "conv1.vec")
    stored = {tensor.name: tensor for tensor in onnx.load(example.load().model_path).graph.initializer}
    weight = onnx.numpy_helper.to_array(stored["conv1.weight"])
    lines = weight.reshape(weight.shape[0], -1)
    q = refq.quantize(lines, "mxfp4")
    assert len(vectors) == q.scales.size == ran.verdicts[0].cases
    filled = np.pad(lines, ((0, 0), (0, -lines.shape[1] % 32))).reshape(-1, 32)
    tiles = {row[row != 0].tobytes() for row in filled}
    words = vectors.operands[0].view(np.float32)
    assert {row[row != 0].tobytes() for row in words} == tiles
    assert sorted(vectors.results[0].reshape(-1).tolist()) == sorted(q.scales.reshape(-1).tolist())


def test_what_a_person_reads(ran):
    lines = ran.text.splitlines()
    for name in ("float32", *NAMES):
        assert sum(line.startswith(name + " ") for line in lines) == 1
    assert "PASS" in ran.text and "MISMATCH" in ran.text and str(ran.folder / "index.html") in ran.text
    table = demo.table(ran.outcome).splitlines()
    assert len(table) == 2 + 1 + len(NAMES) and len({len(line) for line in table[1:]}) == 1
    assert max(map(len, table)) <= 100 and set(table) <= set(lines)
    assert table[1].split() == ["rtn", "ed"] * 3 + ["error", "weight", "file"]
    pair = ran.pairs["mxfp4"]
    figures = " ".join(form.format(getattr(score, name)) for name, form in (
        ("accuracy", "{:.2%}"), ("nll", "{:.4f}"), ("kl", "{:.6f}")) for score in (pair.rtn, pair.ed))
    end = f"{pair.output_error:.2f}x 4.25 {pair.ed.bytes / 1000:.0f} kB"
    assert " ".join(table[5].split()).replace(" %", "%") == f"mxfp4 {figures} {end}"


def test_the_commands_it_names_work(ran, tmp_path, monkeypatch, capsys):
    for name in ("fashion_cnn.onnx", "calibration.npz", "test.npz"):
        (tmp_path / name).symlink_to(ran.folder / name)
    monkeypatch.chdir(tmp_path)
    for command in demo.NEXT:
        assert command in ran.text and len(command) <= 98
        program, *words = command.split()
        assert program == "refq" and cli.main(words) in (0, None)
    out = capsys.readouterr().out
    assert "hurts most" in out and "2,000" in out


def test_progress_goes_up_to_the_end(ran):
    done = [step for step, _, _ in ran.steps]
    assert done == sorted(done) and done[0] == 0 and len({steps for _, steps, _ in ran.steps}) == 1
    assert done[-1] == ran.steps[-1][1] and {what for _, _, what in ran.steps} >= set(NAMES)
    assert [what for _, _, what in ran.steps][-1] == "done"


class Page(HTMLParser):
    """Links, and tags left open."""

    def __init__(self, text):
        super().__init__()
        self.links, self.open, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("href", "src")]
        if tag not in ("meta", "br", "link", "img", "input", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("name", ["index.html", *sorted(REPORTS)])
def test_pages(ran, name):
    """Well formed, all on their own: every link is a file beside the page or a place in it."""
    text = (ran.folder / name).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and text.lower().startswith("<!doctype html>")
    for link in page.links:
        assert link.startswith("#") or (ran.folder / link).is_file(), link
    assert "http://" not in text.replace("http://www.w3.org/", "") and "<script" not in text


def test_the_index_says_what_was_measured(ran):
    page = Page((ran.folder / "index.html").read_text(encoding="utf-8"))
    words = " ".join(page.words)
    for score in scores(ran.outcome):
        assert f"{100 * score.accuracy:.2f} %" in words and (score.kl == 0 or f"{score.kl:.6f}" in words)
    for sentence in demo.findings(ran.outcome):
        assert sentence in words
    for pair in ran.pairs.values():
        assert f"{pair.output_error:.2f}×" in words and f"{pair.ed.bits:.2f} bits" in words
    assert REPORTS <= set(page.links)
    assert "mismatch" in words and "pass" in words
    assert f"{ran.verdicts[1].failed} of {ran.verdicts[1].cases} cases differ" in words


def test_the_index_says_which_layer_hurts(ran):
    words = " ".join(Page((ran.folder / "index.html").read_text(encoding="utf-8")).words)
    report = ran.pairs["mxfp4"].ed.report
    assert "Which layer hurts in mxfp4" in words
    assert f"{report.worst.title} ({report.worst.op}) hurts most" in words
    for row in report.measured:
        for error in (row.errors.error, row.errors.rtn_error):
            assert f"{100 * error / row.errors.signal:.2f} %" in words, row.title


def test_each_report_shows_both_methods(ran):
    for pair in ran.pairs.values():
        for score in (pair.rtn, pair.ed):
            page = Page((ran.folder / demo._report_name(score)).read_text(encoding="utf-8"))
            assert {"index.html", demo._report_name(pair.rtn), demo._report_name(pair.ed)} <= set(page.links)
            assert f"{pair.name} by both methods" in " ".join(page.words)


@pytest.mark.parametrize("method", ["rtn", "ed"])
def test_running_again_gives_the_same_bytes(ran, tmp_path, method):
    data = None if method == "rtn" else ran.folder / "calibration.npz"
    again = refq.quantize_model(example.load().model_path, tmp_path / "again.onnx", "mxfp4", method, data)
    written = ran.folder / demo._model_name("mxfp4", method)
    assert (tmp_path / "again.onnx").read_bytes() == written.read_bytes()
    assert again.target_bytes == getattr(ran.pairs["mxfp4"], method).bytes


def test_the_wrong_device_has_the_right_scales():
    x = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)
    scales, codes = demo.truncating(x.view(np.uint32))
    q = refq.quantize(x, "mxfp4")
    assert np.array_equal(scales, q.scales[:, 0])
    assert codes.shape == q.codes.shape and not np.array_equal(codes, q.codes)
    assert np.all(np.abs(refq.decode(codes, "e2m1")) <= np.abs(refq.decode(q.codes, "e2m1")))


# --- what is said of the figures ------------------------------------------------------------------

def pair(name, rtn_only, ed_only, nll=(0.3, 0.2), kl=(0.02, 0.01)):
    """A pair on 2,000 images, of which 1,000 both get right."""
    report = SimpleNamespace(gain=SimpleNamespace(mean_ratio=0.5))
    rtn, ed = (demo.Score(name, method, (1000 + only) / 2000, nll[place], kl[place], 4.0, 1000, report)
               for place, (method, only) in enumerate((("rtn", rtn_only), ("ed", ed_only))))
    return demo.Pair(rtn, ed, rtn_only, ed_only)


NEARER = "Answers are nearer to the float model's with ed: the KL is {} data types."
ALIKE = "cannot be told apart on 2,000 images (less than two standard errors)"


def said(*pairs):
    reference = demo.Score("float32", "", 0.6, 0.2, 0.0, 32.0, 4000)
    return demo.findings(demo.Outcome(reference, pairs, 2000, 256))


def test_findings_where_ed_is_better():
    assert said(pair("a", 10, 60), pair("b", 10, 90, kl=(0.06, 0.01))) == [
        NEARER.format("2 to 6 times lower than with rtn, in all 2"),
        "Accuracy, in points, is higher with ed in a (+2.50), b (+4.00)."]


def test_findings_hide_nothing():
    """Noise is called noise, and what is worse is named, whatever it is."""
    assert said(pair("a", 10, 60), pair("noise", 20, 26), pair("less", 26, 20),
                pair("worse", 60, 10, nll=(0.2, 0.3)), pair("far", 5, 5, kl=(0.01, 0.02))) == [
        NEARER.format("2 times lower than with rtn, in 4 of 5"),
        "Accuracy, in points, is higher with ed in a (+2.50).",
        "Accuracy, in points, is lower with ed in worse (-2.50).",
        f"Accuracy, in points, {ALIKE} in noise (+0.30), less (-0.30), far (+0.00).",
        "Not better with ed on these 2,000 images: accuracy in less, worse, far; NLL in worse; KL in far."]
    assert said(pair("far", 5, 5, nll=(0.2, 0.2), kl=(0.01, 0.01))) == [
        f"Accuracy, in points, {ALIKE} in far (+0.00).",
        "Not better with ed on these 2,000 images: accuracy in far; NLL in far; KL in far."]


@pytest.mark.parametrize("rtn_only, ed_only, want", [(0, 0, False), (0, 4, False), (0, 5, True), (5, 0, True),
                                                     (20, 35, True), (20, 34, False), (40, 40, False)])
def test_told_apart_is_two_standard_errors(rtn_only, ed_only, want):
    """|difference| > 2 sqrt(sum): 15 > 2 sqrt(55) = 14.8, 14 < 2 sqrt(54) = 14.7."""
    assert pair("a", rtn_only, ed_only).told_apart is want


# --- the command ----------------------------------------------------------------------------------

@pytest.mark.parametrize("codes, want", [((0, 1), 0), ((1, 1), 1), ((3, 1), 1), ((0, 0), 1), ((0, 3), 1)])
def test_the_command_fails_when_a_verdict_is_not_what_it_must_be(monkeypatch, capsys, tmp_path, codes, want):
    def run(folder, progress, say):
        progress(0, 2, "something")
        progress(2, 2, "done")
        say("the text")
        return [], [SimpleNamespace(exit_code=code) for code in codes]
    monkeypatch.setattr(demo, "run", run)
    assert cli.main(["demo", "-o", str(tmp_path / "here")]) == want
    out, err = capsys.readouterr()
    assert "the text" in out and "done" in err and "the text" not in err
