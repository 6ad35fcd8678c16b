"""Models and data that nobody here made (tools/real_models.py), and figures on them."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refq.models import metrics
from refq.models.compare import IGNORED
from refq.models.data import batches
from refq.models.engine import Engine, OnnxRuntime

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import diffusion_table as table
import real_models


@pytest.fixture(scope="module")
def language():
    """(glassllm as ONNX, the package's own model, its tokenizer)"""
    glassllm = pytest.importorskip("glassllm")
    return real_models.glassllm(), *glassllm.load_pretrained("en")


def test_the_decoder_computes_what_the_package_computes(language):
    real, source, _ = language
    tokens = real.evaluation[0]["tokens"][:2]
    ours = Engine(real.model).run({"tokens": tokens})["logits"]
    assert np.abs(ours - source.forward(tokens).data).max() < 5e-5      # of logits up to 23


def test_onnxruntime_computes_the_same_decoder(language):
    pytest.importorskip("onnxruntime")
    real, _, _ = language
    feeds = {"tokens": real.evaluation[0]["tokens"][:2]}
    ours, theirs = (engine(real.model).run(feeds)["logits"] for engine in (Engine, OnnxRuntime))
    assert np.abs(ours - theirs).max() < 5e-5


def test_the_decoder_has_any_batch_and_weights_by_name(language):
    real, source, _ = language
    assert Engine(real.model).run({"tokens": np.zeros((3, 128), np.int64)})["logits"].shape == (3, 128, 1024)
    named = {node.name: node for node in real.model.graph.node}
    layers = [name for name, node in named.items()
              if node.op_type == "MatMul" and node.input[1].endswith("weight")]
    assert len(layers) == 7 * source.cfg.n_layers + 1
    assert {"layers.0.attn.q", "layers.3.mlp.down", "head"} <= set(layers)
    assert named["head.weight"].input[0] == named["embed"].input[0] == "tokens.weight"


def test_pages_for_calibration_and_for_judging_are_others(language):
    _, _, tokenizer = language
    (calibration, first), (evaluation, labels) = (real_models.tokens(part, tokenizer)
                                                  for part in ("calibration", "evaluation"))
    book = tokenizer.encode(real_models.text())
    assert calibration.shape == (real_models.CALIBRATION, 128)
    both = np.concatenate([calibration, evaluation])
    assert both.ravel().tolist() == book[:both.size] and len(book) - both.size < 128
    flat, following = evaluation.ravel(), labels.ravel()
    told = following[:-1] != IGNORED
    assert np.array_equal(following[:-1][told], flat[1:][told])
    assert (flat[1:][~told] == tokenizer.unk_id).all() and 0.99 < told.mean() < 1
    assert first[-1, -1] == IGNORED     # the word after the last is the other part's


def test_more_sequences_overlap_and_stay_in_their_part(language):
    _, _, tokenizer = language
    plain, many = (real_models.tokens("calibration", tokenizer, count)[0] for count in (None, 500))
    assert many.shape == (500, 128)
    assert np.array_equal(many[0], plain[0]) and np.array_equal(many[-1], plain[-1])
    assert len(np.unique(many, axis=0)) == 500


def test_perplexity_is_the_engine_s_own(language):
    real, _, _ = language
    real = replace(real, evaluation=real.evaluation[:2], labels=real.labels[:2])
    outputs = real.outputs(real.model)
    score, logits, labels = real.score(outputs), np.concatenate(outputs), np.concatenate(real.labels)
    counts = labels != IGNORED
    assert score.figures["nll"] == pytest.approx(metrics.nll(logits[counts], labels[counts]))
    assert score.figures["top1"] == metrics.accuracy(logits[counts], labels[counts])
    assert score.figures["perplexity"] == pytest.approx(math.exp(score.mean))
    assert 20 < score.figures["perplexity"] < 40
    assert score.rows.sum() == counts.sum() and len(score.loss) == len(logits)


def test_the_example_as_a_real_model():
    real = real_models.cnn()
    score = real.score(real.outputs(real.model))
    assert (score.rows == 1).all() and len(score.loss) == 2000
    assert score.figures["top1"] == pytest.approx(0.923)
    assert score.figures["nll"] == pytest.approx(0.2217, abs=1e-4)


def test_readers_are_read_again():
    real = real_models.cnn()
    found = batches(real.calibration, Engine(real.model).inputs)
    assert [sum(batch.rows for batch in found) for _ in range(2)] == [256, 256]


def test_recordings_repeat_and_are_loud_where_somebody_speaks():
    audio = real_models.recording(3)
    assert audio.dtype == np.float32 and audio.shape == (real_models.SECONDS * real_models.RATE,)
    assert np.array_equal(audio, real_models.recording(3))
    assert not np.array_equal(audio, real_models.recording(4))
    assert np.abs(audio).max() <= 1 and 0.01 < audio.std() < 0.3


def test_frames_carry_the_samples_before_them():
    feeds = real_models.frames(np.arange(1, 1300, dtype=np.float32))
    assert feeds["input"].shape == (2, 576) and feeds["h"].shape == feeds["c"].shape == (1, 1, 128)
    assert (feeds["input"][0, :64] == 0).all() and feeds["input"][0, 64] == 1
    assert np.array_equal(feeds["input"][1, :64], feeds["input"][0, -64:])


def test_saved_data_is_what_the_command_line_reads(tmp_path):
    real = real_models.cnn()
    real_models.save(replace(real, evaluation=real.evaluation[:3], labels=real.labels[:3]), tmp_path)
    inputs = Engine(tmp_path / "model.onnx").inputs
    assert sum(batch.rows for batch in batches(tmp_path / "calibration.npz", inputs)) == 256
    (found,) = batches(tmp_path / "evaluation.npz", inputs, batch=24)
    assert np.array_equal(found.labels, np.concatenate(real.labels[:3]))


def test_recordings_are_saved_one_a_file(tmp_path):
    state = np.zeros(real_models.STATE, np.float32)
    feeds = tuple({"input": np.full((2, 576), number, np.float32), "h": state, "c": state}
                  for number in range(3))
    real = replace(real_models.cnn(), calibration=real_models.Feeds(feeds), evaluation=feeds[:1], labels=None)
    real_models.save(real, tmp_path)
    inputs = {name: (array.dtype, [None] * array.ndim) for name, array in feeds[0].items()}
    assert [batch.feeds["input"][0, 0] for batch in batches(tmp_path / "calibration", inputs)] == [0, 1, 2]


# -- the table -----------------------------------------------------------------------------------------------

def cell(method="ed", ratios=(0.5, 0.25, 2.0), loss=(1.0, 2.0), rows=(1, 1), dtype="mxfp4", model="glassllm"):
    layers = tuple(table.Layer(f"layer{i}", method, 4.0, 4 * ratio, min(4.0, 4 * ratio))
                   for i, ratio in enumerate(ratios))
    return table.Cell(model, dtype, method, 4.25, 1.0, layers, tuple(loss), tuple(rows), {"nll": 1.0})


def results(*cells):
    score = real_models.Score("NLL", np.ones(2), np.ones(2, int), {"nll": 1.0})
    real = replace(real_models.cnn(), name="glassllm")
    return table.Results({"glassllm": real}, {"glassllm": score},
                         {(one.model, one.dtype, one.method): one for one in cells})


def test_median_and_geometric_mean():
    found = cell()
    assert found.median == 0.5 and found.geometric == pytest.approx(0.25 ** (1 / 3))
    assert [layer.name for layer in found.better] == ["layer0", "layer1"]


def test_the_difference_is_paired_and_weighed():
    rng = np.random.default_rng(0)
    hard = rng.uniform(0, 5, 50)        # what all methods find hard is no noise of their difference
    apart = rng.normal(0.1, 0.01, 50)
    mean, error = table.difference(cell(loss=hard + apart, rows=[1] * 50), cell(loss=hard, rows=[1] * 50))
    assert mean == pytest.approx(apart.mean()) and error == pytest.approx(apart.std(ddof=1) / math.sqrt(50))
    mean, _ = table.difference(cell(loss=(1, 5), rows=(3, 1)), cell(loss=(0, 0), rows=(3, 1)))
    assert mean == 2


@pytest.mark.parametrize(("cells", "verdicts"), [
    ([cell(), cell("rtn", (1, 1, 1))], ["FAIL", "PASS", "PASS", "PASS", "PASS"]),
    ([cell(ratios=(0.7, 0.74, 0.7)), cell("rtn", (1, 1, 1))], ["PASS", "PASS", "FAIL", "PASS", "PASS"]),
    ([cell(ratios=(0.9, 0.5, 0.9)), cell("qronos", (0.5, 0.6, 0.7), (2, 3)), cell("rtn", (1, 1, 1))],
     ["PASS", "FAIL", "PASS", "PASS", "FAIL"]),
    ([cell("rtn", (1, 1, 1))], ["not measured"] * 5),
])
def test_claims(cells, verdicts):
    assert [found.verdict for found in table.claims(results(*cells))] == verdicts


def test_a_kept_layer_worse_than_direct_cast_is_found():
    bad = replace(cell(), layers=(table.Layer("layer0", "ed", 4.0, 4.1, 4.1),))
    assert table.never_worse(results(bad)).verdict == "FAIL"


def test_cells_of_other_sources_are_made_anew(tmp_path):
    path = tmp_path / "glassllm" / "mxfp4-ed.json"
    table.store(path, "state", cell())
    assert table.stored(path, "state") == table.stored(path, None) == cell()
    assert table.stored(path, "other state") is None and table.stored(tmp_path / "none.json", None) is None


def test_the_page_has_a_line_for_every_cell_and_the_claims():
    found = table.page(results(cell(), cell("rtn", (1, 1, 1)), cell("ed", dtype="int4")), "command")
    assert found.count("| mxfp4 |") == 2 and found.count("| int4 |") == 1
    assert "Generated by `command`" in found and found.count("**FAIL**") >= 2
    lines = [line for line in found.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_numbers_have_the_digits_of_their_error():
    assert table.with_error(-0.01234, 0.00123) == "-0.0123 ± 0.0012"
    assert table.with_error(12.3, 45.0) == "+12 ± 45"


def test_a_cell_is_measured_and_error_diffusion_is_better():
    real = real_models.cnn()
    few = real_models.Feeds(real.calibration.batches[::4])
    real = replace(real, calibration=few, evaluation=real.evaluation[:50], labels=real.labels[:50])
    direct, diffused = (table.measure(real, "mxfp4", method, None) for method in ("rtn", "ed"))
    assert direct.ratios == [1.0] * 5 and len(diffused.better) >= 4     # of so few images fc1 learns little
    assert all(layer.error <= layer.rtn for layer in diffused.layers)
    assert diffused.bits == direct.bits == pytest.approx(4.25, abs=0.01)
    assert diffused.median < 0.5 and table.difference(diffused, direct)[0] < 0
