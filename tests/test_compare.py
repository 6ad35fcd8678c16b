"""Two models side by side: figures against hand-computed ones, refusals, the command on the example."""

import json
import math
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx_models import model, node, value

from refq import cli
from refq.errors import InputError
from refq.models import compare, example, metrics
from refq.models.compare import Comparer, compare_models

LOGITS = np.random.default_rng(5).standard_normal((50, 4)).astype(np.float32)
LABELS = np.random.default_rng(6).integers(0, 4, 50)


def same(*dims, op="Identity", **attributes):
    return model([node(op, ["x"], ["y"], **attributes)], {"x": dims}, {"y": dims})


def plus(offset, *dims):
    return model([node("Add", ["x", "c"], ["y"])], {"x": dims}, {"y": dims}, {"c": np.float32(offset)})


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def only(report):
    (figures,) = report.outputs
    return figures


def test_by_hand(tmp_path):
    """a = (3, 4), (0, 0) and b = (4, 6), (1, 2): signal 25, noise 5 + 5, largest difference 2."""
    path = save(tmp_path / "d.npz", x=np.array([[3, 4], [0, 0]], np.float32))
    b = model([node("Add", ["x", "c"], ["y"])], {"x": ["N", 2]}, {"y": ["N", 2]},
              {"c": np.array([1, 2], np.float32)})
    report = compare_models(same("N", 2), b, path, batch=1)
    row = only(report)
    assert (report.rows, report.batches, row.values, row.unequal, row.rows) == (2, 2, 4, 4, 2)
    assert math.isclose(row.sqnr_db, 10 * math.log10(25 / 10)) and row.max_difference == 2
    assert math.isclose(row.cosine, (12 + 24) / (5 * math.sqrt(16 + 36 + 1 + 4)))

    def kl(p, q):
        p, q = (np.exp(v) / np.exp(v).sum() for v in (p, q))
        return float((p * np.log(p / q)).sum())
    assert math.isclose(row.kl, (kl([3, 4], [4, 6]) + kl([0, 0], [1, 2])) / 2, rel_tol=1e-12)
    assert row.same_top1 == 0.5                  # (0, 0) chooses the first, (1, 2) the second


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_as_the_measures_of_whole_arrays(tmp_path, batch):
    path = save(tmp_path / "d.npz", x=LOGITS, labels=LABELS)
    scaled = model([node("Mul", ["x", "c"], ["y"])], {"x": ["N", 4]}, {"y": ["N", 4]},
                   {"c": np.array([1, 1.5, -1, 2], np.float32)})
    report = compare_models(same("N", 4), scaled, path, batch=batch)
    row, other = only(report), LOGITS * np.array([1, 1.5, -1, 2], np.float32)
    for found, wanted in ((row.sqnr_db, metrics.sqnr_db), (row.cosine, metrics.cosine), (row.kl, metrics.kl)):
        assert math.isclose(found, wanted(LOGITS, other), rel_tol=1e-12)
    assert row.same_top1 == (LOGITS.argmax(-1) == other.argmax(-1)).mean()
    assert report.labelled == "y" and report.labels == 50
    for answers, logits in zip(report.answers, (LOGITS, other)):
        assert answers.top1 == metrics.accuracy(logits, LABELS) and answers.perplexity is None
        assert math.isclose(answers.nll, metrics.nll(logits, LABELS), rel_tol=1e-12)


def test_slabs_change_nothing(tmp_path, monkeypatch):
    path = save(tmp_path / "d.npz", x=LOGITS, y=LABELS)
    whole = compare_models(same("N", 4), plus(0.25, "N", 4), path)
    monkeypatch.setattr(compare, "SLAB", 9)
    parts = compare_models(same("N", 4), plus(0.25, "N", 4), path)
    assert math.isclose(only(whole).sqnr_db, only(parts).sqnr_db, rel_tol=1e-12)
    assert math.isclose(whole.answers[1].nll, parts.answers[1].nll, rel_tol=1e-12)
    assert only(whole).same_top1 == only(parts).same_top1 == 1 and whole.labels == parts.labels == 50


def test_text_has_a_perplexity(tmp_path):
    x = np.zeros((2, 3, 8), np.float32)
    labels = np.array([[0, 1, -100], [2, -100, -100]])
    path = save(tmp_path / "d.npz", x=x, labels=labels)
    report = compare_models(same("N", "T", 8), same("N", "T", 8), path)
    assert report.labels == 3 and [round(answers.perplexity, 9) for answers in report.answers] == [8, 8]
    assert report.answers[0].top1 == 1 / 3 and only(report).rows == 6
    assert "perplexity" in report.table() and "perplexity of b" in report.to_html()
    with pytest.raises(InputError, match="every label is -100"):
        compare_models(same("N", "T", 8), same("N", "T", 8), path, labels=np.full((2, 3), -100))


def test_a_language_model(tmp_path):
    """Tokens in, logits of a table out, with padding: the measures of the labels that count."""
    table, rng = np.random.default_rng(8).standard_normal((9, 9)).astype(np.float32), np.random.default_rng(9)
    ids, labels = rng.integers(0, 9, (6, 5)), rng.integers(0, 9, (6, 5))
    labels[4, 2:] = -100

    def build(table):
        return model([node("Gather", ["t", "ids"], ["logits"])], [value("ids", ["N", "T"], T.INT64)],
                     {"logits": ["N", "T", 9]}, {"t": table})
    path = save(tmp_path / "d.npz", ids=ids.astype(np.int32), labels=labels)
    report = compare_models(build(table), build(table * 2), path, batch=4)
    counts = labels != -100
    for scale, answers in zip((1, 2), report.answers):
        wanted = metrics.nll(table[ids][counts] * scale, labels[counts])
        assert math.isclose(answers.perplexity, math.exp(wanted), rel_tol=1e-12)
    assert report.labels == counts.sum() == 27 and only(report).rows == 30


def test_weights_that_are_inputs_too(tmp_path):
    """As IR 3 wants it: they have values and need no data, whether the other model lists them or not."""
    nodes, w = [node("MatMul", ["x", "w"], ["y"])], np.eye(4, dtype=np.float32)
    listed = model(nodes, {"x": ["N", 4], "w": [4, 4]}, {"y": ["N", 4]}, {"w": w}, ir=3, opset=9)
    np.save(tmp_path / "x.npy", LOGITS)
    for pair in ((listed, model(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, {"w": w})), (listed, listed)):
        for a, b in (pair, pair[::-1]):
            for source in (tmp_path / "x.npy", "random"):
                assert only(compare_models(a, b, source)).sqnr_db == math.inf


def test_probabilities_are_taken_as_they_are(tmp_path):
    path = save(tmp_path / "d.npz", x=LOGITS, labels=LABELS)
    logits = compare_models(same("N", 4), same("N", 4, op="Neg"), path)
    softmax = same("N", 4, op="Softmax")
    nodes = [node("Neg", ["x"], ["z"]), node("Softmax", ["z"], ["w"]), node("Identity", ["w"], ["y"])]
    negative = model(nodes, {"x": ["N", 4]}, {"y": ["N", 4]})
    report = compare_models(softmax, negative, path)
    assert math.isclose(only(report).kl, only(logits).kl, rel_tol=1e-5)
    assert math.isclose(report.answers[1].nll, logits.answers[1].nll, rel_tol=1e-5)
    mixed = compare_models(same("N", 4), softmax, path)                 # logits against their probabilities
    assert only(mixed).kl < 1e-9


def test_equal_models_and_zeros(tmp_path):
    path = save(tmp_path / "d.npz", x=LOGITS)
    report = compare_models(same("N", 4), same("N", 4), path)
    row = only(report)
    assert (row.sqnr_db, row.cosine, row.max_difference, row.kl, row.same_top1) == (math.inf, 1, 0, 0, 1)
    assert "the same values on all 50 rows" in report.table() and "exact" in report.table()
    assert report.to_json()["outputs"][0]["sqnr_db"] == "inf" and not report.answers
    path = save(tmp_path / "d.npz", x=LOGITS * 0)
    assert only(compare_models(same("N", 4), plus(1, "N", 4), path)).sqnr_db == -math.inf
    assert only(compare_models(same("N", 4), plus(1, "N", 4), path)).cosine == 0


def test_what_is_not_finite(tmp_path):
    """log 0 is -Inf in a alone: it is counted, and left out of the sums."""
    path = save(tmp_path / "d.npz", x=np.array([[0, 1, 1], [1, 1, 1]], np.float32))
    b = model([node("Add", ["x", "c"], ["z"]), node("Log", ["z"], ["y"])], {"x": ["N", 3]}, {"y": ["N", 3]},
              {"c": np.array([0.5, 0, 0], np.float32)})
    report = compare_models(same("N", 3, op="Log"), b, path)
    row = only(report)
    assert (row.nonfinite, row.unequal, row.values, row.rows, row.kl_infinite) == (1, 2, 6, 2, 0)
    assert math.isclose(row.max_difference, math.log(1.5), rel_tol=1e-6) and math.isfinite(row.kl)
    assert "1 of 6 values are NaN or infinite" in report.table()
    turned = only(compare_models(b, same("N", 3, op="Log"), path))       # q is 0 where p is not
    assert turned.kl_infinite == 1 and math.isfinite(turned.kl)
    json.dumps(report.to_json(), allow_nan=False)


def test_several_outputs_of_other_types(tmp_path):
    def build(scale):
        nodes = [node("Mul", ["x", "c"], ["y"]), node("ArgMax", ["y"], ["k"], axis=1, keepdims=0),
                 node("Greater", ["y", "c"], ["g"]), node("SequenceConstruct", ["y"], ["s"]),
                 node("Exp", ["x"], ["e"])]
        sequence = onnx.helper.make_tensor_sequence_value_info("s", T.FLOAT, None)
        outputs = [value("y", ["N", 4]), value("k", ["N"], T.INT64), value("g", ["N", 4], T.BOOL), sequence,
                   value("e", ["N", 4])]
        return model(nodes, {"x": ["N", 4]}, outputs, {"c": np.float32(scale)})
    report = compare_models(build(1), build(-1), save(tmp_path / "d.npz", x=LOGITS, labels=LABELS))
    y, k, g, s, _ = report.outputs
    assert y.kl is not None and k.kl is g.kl is None and report.labelled == "y" and report.worst is y
    assert g.max_difference == 1 and k.unequal > 0 and k.sqnr_db is None
    assert s.sqnr_db is None and s.reason == "no tensor of numbers"
    html, text = report.to_html(), report.table()
    assert "Which output hurts" in html and "no tensor of numbers" in text
    assert f"{k.unequal} of 50 values differ" in text


def test_whole_numbers_alone(tmp_path):
    outputs = [value("y", ["N"], T.INT64)]
    models = [model([node(op, ["x"], ["y"], axis=1, keepdims=0)], {"x": ["N", 4]}, outputs)
              for op in ("ArgMax", "ArgMin")]
    report = compare_models(*models, save(tmp_path / "d.npz", x=LOGITS))
    assert report.worst is None and "50 of 50 values differ." in report.table()
    assert "50 of 50" in report.to_html()


def test_float_types_may_differ(tmp_path):
    half = model([node("Identity", ["x"], ["y"])], [value("x", ["N", 4], T.FLOAT16)],
                 [value("y", ["N", 4], T.FLOAT16)])
    row = only(compare_models(same("N", 4), half, save(tmp_path / "d.npz", x=LOGITS)))
    assert 60 < row.sqnr_db < 90 and row.unequal > 0


def test_the_comparer_by_hand():
    """As in test_by_hand, with outputs that somebody else computed; a Softmax makes none of them."""
    comparer = Comparer(same("N", 2))
    labels = np.array([1]), np.array([0])
    batches = ([[3, 4]], [[4, 6]]), ([[0, 0]], [[1, 2]])
    for own, (ours, theirs) in zip(labels, batches):
        comparer.check(own, {"y": np.float32(ours)})
        comparer.add(1, own, {"y": np.float32(ours), "more": None}, {"y": np.float32(theirs)})
    found = comparer.result(data="d.npz", notes=["a note"])
    row = only(found)
    assert (found.a, found.b, found.data) == ("float model", "quantised model", "d.npz")
    assert (found.rows, found.batches, found.labelled, found.labels) == (2, 2, "y", 2)
    assert math.isclose(row.sqnr_db, 10 * math.log10(25 / 10)) and found.notes == ("a note",)
    assert [answers.top1 for answers in found.answers] == [1, 0.5]       # equal ones: the first
    assert math.isclose(found.answers[0].nll, (math.log1p(math.exp(-1)) + math.log(2)) / 2)
    json.dumps(found.to_json(), allow_nan=False)
    assert found.table() and found.to_html()


def test_the_comparer_without_data_and_labels():
    comparer = Comparer(same("N", 4, op="Softmax"), same("N", 4))
    assert only(comparer.result()).reason == "no values" and comparer.result().table()
    outputs = {"y": np.full((2, 4), 0.25, np.float32)}
    comparer.add(2, np.full(2, -100), outputs, {"y": LOGITS[:2]})
    found = comparer.result()
    assert found.answers == () and (found.labelled, found.labels) == ("y", 0)    # none counts: no refusal
    wanted = metrics.kl(np.log(outputs["y"]), LOGITS[:2])                # probabilities of a, logits of b
    assert math.isclose(only(found).kl, wanted, rel_tol=1e-12)


def test_the_comparer_checks_labels_beforehand():
    comparer, outputs = Comparer(same("N", 4)), {"y": LOGITS, "z": np.zeros((3, 4))}
    for labels, words in ((LABELS + 1, "a label is 4"), (LABELS * 1.0, "must be integers"),
                          (LABELS[:3], r"shape \(3,\), which goes with none")):
        with pytest.raises(InputError, match=words):
            comparer.check(labels, outputs)
    comparer.check(LABELS, outputs)
    assert comparer.rows == 0


def test_models_that_do_not_fit(tmp_path):
    path = save(tmp_path / "d.npz", x=LOGITS)
    base = same("N", 4)
    other_input = model([node("Identity", ["z"], ["y"])], {"z": ["N", 4]}, {"y": ["N", 4]})
    other_output = model([node("Identity", ["x"], ["z"])], {"x": ["N", 4]}, {"z": ["N", 4]})
    whole = model([node("Identity", ["x"], ["y"])], [value("x", ["N", 4], T.INT64)],
                  [value("y", ["N", 4], T.INT64)])
    narrow = model([node("ReduceSum", ["x"], ["y"])], {"x": ["N", 4]}, {"y": None})
    for other, words in ((other_input, "inputs: only a has 'x' and only b has 'z'"),
                         (other_output, "outputs: only a has 'y' and only b has 'z'"),
                         (same("N", 5), r"'x' is float32 \(N, 4\) in a and float32 \(N, 5\) in b"),
                         (same("N", 4, 1), "'x' is float32"), (whole, "int64"),
                         (narrow, r"shape \(50, 4\) in a and \(1, 1\) in b")):
        with pytest.raises(InputError, match=words):
            compare_models(base, other, path, batch=50)
    with pytest.raises(InputError, match="'quantum' is unknown"):
        compare_models(base, base, path, engine="quantum")
    assert only(compare_models(base, same("M", 4), path)).sqnr_db == math.inf     # names of lengths are free


def test_labels_that_do_not_fit(tmp_path):
    path = save(tmp_path / "d.npz", x=LOGITS)
    for labels, words in ((LABELS + 1, "a label is 4"), (LABELS * 1.0, "they must be integers"),
                          (np.stack([LABELS, LABELS], 1), r"shape \(50, 2\), which goes with none")):
        with pytest.raises(InputError, match=words):
            compare_models(same("N", 4), same("N", 4), path, labels=labels, batch=50)


def test_progress_and_notes(tmp_path):
    told = []
    path = save(tmp_path / "d.npz", x=LOGITS.astype(np.float64) + 0.1)
    report = compare_models(same("N", 4), same("N", 4), path, batch=20, progress=lambda *at: told.append(at))
    assert told == [(0, 3), (1, 3), (1, 3), (2, 3), (2, 3), (3, 3)]
    assert report.notes == ("input 'x' came as float64 and was rounded to float32",)
    assert "note: input 'x'" in report.table() and "was rounded" in report.to_html()
    again = compare_models(same("N", 4), same("N", 4), path, batch=20)
    assert again.to_json() == report.to_json() and again.to_html() == report.to_html()
    assert "nothing" not in compare_models(same("N", 4), same("N", 4), "random", progress=True).table()


# -- the command ---------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The example's first 96 images and a quantised copy of its model."""
    path, data = tmp_path_factory.mktemp("compare"), example.load()
    np.savez(path / "test.npz", image=data.images[:96], labels=data.labels[:96])
    np.save(path / "right.npy", data.labels[:96])
    np.savez(path / "plain.npz", image=data.images[:96])
    (path / "parts").mkdir()
    for start in (0, 48):
        part = slice(start, start + 48)
        np.savez(path / "parts" / f"{start:02}.npz", image=data.images[part], labels=data.labels[part])
    code = cli.main(["quantize", str(data.model_path), "-o", str(path / "q.onnx"), "--dtype", "mxfp4",
                     "--export", "float", "--method", "rtn"])
    assert code == 0
    return path


def run(capsys, folder, *words):
    code = cli.main(["compare", str(example.load().model_path), str(folder / "q.onnx"), *map(str, words)])
    return code, *capsys.readouterr()


def test_the_command_on_the_example(capsys, folder, tmp_path):
    files = tmp_path / "c.json", tmp_path / "c.html"
    code, out, err = run(capsys, folder, "--data", folder / "test.npz", "--json", files[0],
                         "--html", files[1])
    assert code == 0 and "Top-1 goes from" in out and "96 rows in 3 batches" in out and err == ""
    found, html = json.loads(files[0].read_text()), files[1].read_text(encoding="utf-8")
    (row,) = found["outputs"]
    assert found["refq_comparison"] == 1 and row["name"] == "logits" and 10 < row["sqnr_db"] < 30
    assert 0.85 < found["answers"][1]["top1"] <= 1 and 0 < row["kl"] < 0.2 and row["same_top1"] > 0.9
    assert html.startswith("<!doctype html>") and "Against the labels" in html and "http" not in html
    for words in (["--data", folder / "plain.npz", "--labels", folder / "right.npy", "--batch", 48],
                  ["--data", folder / "parts"]):
        assert run(capsys, folder, *words, "--json", files[0])[0] == 0
        other = json.loads(files[0].read_text())
        assert other["batches"] == 2 and other["answers"][1]["top1"] == found["answers"][1]["top1"]
        assert math.isclose(other["outputs"][0]["sqnr_db"], row["sqnr_db"], rel_tol=1e-4)


def test_the_command_in_onnxruntime(capsys, folder, tmp_path):
    pytest.importorskip("onnxruntime")
    sqnr = []
    for engine in ("numpy", "onnxruntime"):
        code, out, _ = run(capsys, folder, "--data", folder / "test.npz", "--engine", engine, "--json",
                           tmp_path / "c.json")
        assert code == 0 and engine in out
        sqnr.append(json.loads((tmp_path / "c.json").read_text())["outputs"][0]["sqnr_db"])
    assert math.isclose(*sqnr, rel_tol=1e-4)


def test_the_command_with_readers_and_random_data(capsys, folder, tmp_path, monkeypatch):
    (tmp_path / "images_of_mine.py").write_text(
        "import numpy as np\nclass Reader:\n    def __init__(self):\n        self.left = 2\n"
        "    def get_next(self):\n        self.left -= 1\n"
        "        return {'image': np.ones((2, 1, 28, 28), np.float32)} if self.left >= 0 else None\n")
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, folder, "--data", "images_of_mine:Reader")
    assert code == 0 and "4 rows in 2 batches" in out
    sys.modules.pop("images_of_mine", None)
    code, out, _ = run(capsys, folder, "--data", "random")
    assert code == 0 and "note: the data is random" in out


@pytest.mark.parametrize("words, sentence", [
    (["--data", "gone.npz"], "is no file"), ([], "--data"),
    (["--data", "random", "--engine", "x"], "'x' is unknown"),
    (["--data", "random", "--batch", "0"], "batch of 0"),
    (["--data", "random", "--json", "no/c.json"], "its folder does not exist"),
    (["--data", str(example.load().model_path.with_name("fashion_mnist.npz"))], "no input 'images'")])
def test_bad_use(capsys, folder, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    try:
        code, out, err = run(capsys, folder, *words)
    except SystemExit as stop:
        code, (out, err) = stop.code, capsys.readouterr()
    assert code == 2 and out == "" and sentence in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())
