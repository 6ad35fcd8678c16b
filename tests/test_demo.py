"""`refq demo` from end to end: every file, sane scores, a pass and a mismatch, pages with live links."""

from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import refq
from refq import cli, demo
from refq.models import example
from refq.vectors import vec

NAMES = ("mxfp8", "mxfp6", "mxfp4", "int8", "int4", "nvfp4")
# Bounds set by hand: KL to the float model in nats, bits per weight (biases and small tensors included)
BOUNDS = {"mxfp8": (0.01, 8.25, 8.3), "mxfp6": (0.01, 6.25, 6.3), "mxfp4": (0.08, 4.25, 4.3),
          "int8": (0.002, 8.0, 8.1), "int4": (0.03, 4.5, 4.6), "nvfp4": (0.06, 4.5, 4.6)}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The demo, run once: its folder, scores, verdicts, what it said and the progress it reported."""
    folder, said, steps = tmp_path_factory.mktemp("run") / "new" / "demo", [], []
    scores, verdicts = demo.run(folder, lambda *step: steps.append(step), said.append)
    return SimpleNamespace(folder=folder, scores={score.name: score for score in scores}, verdicts=verdicts,
                           text="\n".join(said), steps=steps)


def test_every_file_is_there_and_no_other(ran):
    models = {f"fashion_cnn.{name}.onnx" for name in NAMES}
    reports = {f"report-{name}.html" for name in NAMES}
    assert {path.name for path in ran.folder.iterdir()} == {"index.html", "conv1.vec"} | models | reports
    assert all(path.stat().st_size > 1000 for path in ran.folder.iterdir())


def test_scores(ran):
    assert tuple(ran.scores) == ("float32", *NAMES)
    reference, labels = ran.scores["float32"], example.load().labels
    assert len(labels) >= 1000 and reference.accuracy > 0.90
    assert reference.kl == 0 and 0.1 < reference.nll < 0.4
    for name, (kl, fewest, most) in BOUNDS.items():
        score = ran.scores[name]
        assert abs(score.accuracy - reference.accuracy) < 0.03, name
        assert 0 < score.kl < kl and fewest <= score.bits < most, name
        assert abs(score.nll - reference.nll) < 0.1 and score.report.rows, name
        assert score.bytes == (ran.folder / f"fashion_cnn.{name}.onnx").stat().st_size < reference.bytes * 0.3
        assert score.accuracy * len(labels) == pytest.approx(round(score.accuracy * len(labels)))


def test_fewer_bits_cost_more(ran):
    assert ran.scores["mxfp8"].kl < ran.scores["mxfp4"].kl and ran.scores["int8"].kl < ran.scores["int4"].kl
    assert ran.scores["nvfp4"].kl < ran.scores["mxfp4"].kl
    assert ran.scores["mxfp4"].bytes < ran.scores["mxfp6"].bytes < ran.scores["mxfp8"].bytes


def test_the_models_hold_the_weights_that_were_scored(ran):
    """conv1 of the mxfp4 model, read from the file, is the float weight quantised along its inputs."""
    model = onnx.load(ran.folder / "fashion_cnn.mxfp4.onnx")
    onnx.checker.check_model(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    assert any("conv1" in name for name in stored)
    images = example.load().images[:64]
    logits = demo._logits(ran.folder / "fashion_cnn.mxfp4.onnx", images)
    reference = demo._logits(example.load().model_path, images)
    assert logits.shape == reference.shape == (64, 10) and not np.array_equal(logits, reference)
    assert np.mean(logits.argmax(1) == reference.argmax(1)) > 0.9


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
    table = demo.table(list(ran.scores.values())).splitlines()
    assert len(table) == 1 + len(ran.scores) and len({len(line) for line in table}) == 1
    assert f"{100 * ran.scores['mxfp4'].accuracy:.2f} %" in table[4] and table[4].startswith("mxfp4 ")


def test_progress_goes_up_to_the_end(ran):
    done = [step for step, _, _ in ran.steps]
    assert done == sorted(done) and done[0] == 0 and len({steps for _, steps, _ in ran.steps}) == 1
    assert done[-1] == ran.steps[-1][1] and {what for _, _, what in ran.steps} >= set(NAMES)


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


@pytest.mark.parametrize("name", ["index.html", *(f"report-{name}.html" for name in NAMES)])
def test_pages(ran, name):
    """Well formed, all on their own: every link is a file beside the page or a place in it."""
    text = (ran.folder / name).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and text.lower().startswith("<!doctype html>")
    for link in page.links:
        assert link.startswith("#") or (ran.folder / link).is_file(), link
    assert "http://" not in text.replace("http://www.w3.org/", "") and "<script" not in text


def test_the_index_says_what_was_measured(ran):
    words = " ".join(Page((ran.folder / "index.html").read_text(encoding="utf-8")).words)
    for score in ran.scores.values():
        assert f"{100 * score.accuracy:.2f} %" in words and (score.kl == 0 or f"{score.kl:.5f}" in words)
    page = Page((ran.folder / "index.html").read_text(encoding="utf-8"))
    assert {f"report-{name}.html" for name in NAMES} <= set(page.links)
    assert "mismatch" in words and "pass" in words
    assert f"{ran.verdicts[1].failed} of {ran.verdicts[1].cases} cases differ" in words


def test_running_again_over_the_same_folder_gives_the_same_bytes(ran, tmp_path):
    again = refq.quantize_model(example.load().model_path, tmp_path / "again.onnx", dtype="mxfp4")
    assert (tmp_path / "again.onnx").read_bytes() == (ran.folder / "fashion_cnn.mxfp4.onnx").read_bytes()
    assert again.target_bytes == ran.scores["mxfp4"].bytes


def test_the_wrong_device_has_the_right_scales():
    x = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)
    scales, codes = demo.truncating(x.view(np.uint32))
    q = refq.quantize(x, "mxfp4")
    assert np.array_equal(scales, q.scales[:, 0])
    assert codes.shape == q.codes.shape and not np.array_equal(codes, q.codes)
    assert np.all(np.abs(refq.decode(codes, "e2m1")) <= np.abs(refq.decode(q.codes, "e2m1")))


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
