"""Error diffusion through a graph: every layer's codes as diffuse gives them on inputs worked out by hand."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import refq
from refq.diffusion.stack import GramStack
from refq.errors import InputError
from refq.models import example
from refq.models.choices import Casting, Choice
from refq.models.engine import Engine
from refq.models.graph import Graph
from refq.models.layers import form_of
from refq.models.solve import solve
from refq.models.walk import Inputs, Walk
from refq.models.weights import find_weights
from refq.models.workers import Workers
from tests.onnx_models import model, node, rng, run_onnxruntime, value, weight

ROWS = 40                   # of a batch


def batches(count=5, shape=(ROWS, 20), seed=11):
    return [{"x": rng(seed + number).standard_normal(shape).astype(np.float32)} for number in range(count)]


def reader(feeds):
    """What makes calibration data as onnxruntime's readers give it."""
    class Reader:
        def __init__(self):
            self.left = iter(feeds)

        def get_next(self):
            return next(self.left, None)
    return Reader


def perceptron(dtype=np.float32):
    """relu(x a) b + c, with a residual around the second layer."""
    tensors = {"a": weight(20, 33, seed=1, scale=0.3), "b": weight(33, 33, seed=2, scale=0.3),
               "c": weight(33, 5, seed=3, scale=0.3)}
    nodes = [node("MatMul", ["x", "a"], ["h"], name="one"), node("Relu", ["h"], ["r"]),
             node("Gemm", ["r", "b"], ["s"], name="two"), node("Add", ["r", "s"], ["t"]),
             node("MatMul", ["t", "c"], ["y"], name="three")]
    return model(nodes, {"x": [None, 20]}, {"y": [None, 5]}, tensors), tensors


def stored_values(proto, name):
    return next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == name)


def by_hand(tensors, feeds, dtype, method, held):
    """Codes of the three layers, each batch a piece of the sums as in the walk: (values by name, errors)."""
    x = [feed["x"] for feed in feeds]
    x_hat, found, errors = list(x), {}, {}

    def layer(name, x, x_hat):
        sums, kept = refq.Gram(x[0].shape[1]), refq.Gram(x[0].shape[1])
        for number, (a, b) in enumerate(zip(x, x_hat)):
            (kept if number in held else sums).update(a, None if a is b else b)
        got = refq.diffuse_gram(tensors[name], sums, dtype, method, axis=0, held=kept, errors=False)
        found[name] = got.quantized.dequantize()
        errors[name] = got
        return [a @ tensors[name] for a in x], [a @ found[name] for a in x_hat]
    h, h_hat = layer("a", x, x_hat)
    r, r_hat = ([np.maximum(part, 0) for part in several] for several in (h, h_hat))
    s, s_hat = layer("b", r, r_hat)
    t, t_hat = ([a + b for a, b in zip(*pair)] for pair in ((r, s), (r_hat, s_hat)))
    layer("c", t, t_hat)
    return found, errors


@pytest.mark.parametrize("method", ["rtn", "ed", "gptq", "qronos"])
@pytest.mark.parametrize("dtype", ["mxfp4", "int4", "nvfp4", "int3_binary16_t32"])
def test_the_walk_gives_what_the_layers_give_one_by_one(dtype, method):
    proto, tensors = perceptron()
    feeds = batches()
    report = refq.quantize_model(proto, None, dtype, method, reader(feeds), export="float")
    wanted, errors = by_hand(tensors, feeds, dtype, method, held={3})
    for row, name in zip(report.rows, "abc"):
        np.testing.assert_array_equal(stored_values(report.model, name), wanted[name])
        assert row.errors.asked == method and row.method == errors[name].method
        np.testing.assert_allclose(row.errors.asked_error, errors[name].held_error, rtol=1e-9)
        np.testing.assert_allclose(row.errors.rtn_error, errors[name].held_rtn_error, rtol=1e-9)
        assert (row.errors.rows, row.errors.held) == (4 * ROWS, ROWS)


def test_the_errors_of_the_report_are_those_of_the_outputs():
    """Worked out again from the float model and the quantised one, on the batch held back."""
    proto, tensors = perceptron()
    feeds = batches()
    report = refq.quantize_model(proto, None, "int4", "ed", reader(feeds), export="float")
    inputs = {"one": "x", "two": "r", "three": "t"}
    float_engine, quantised = Engine(proto), Engine(report.model)
    for row, name in zip(report.rows, "abc"):
        source = inputs[row.node]
        x, x_hat = (feeds[3]["x"] if source == "x" else engine.run(feeds[3], [source])[source]
                    for engine in (float_engine, quantised))
        x, x_hat, w = (array.astype(np.float64) for array in (x, x_hat, tensors[name]))
        q = stored_values(report.model, name).astype(np.float64)
        errors = row.errors
        for got, wanted in ((errors.signal, x @ w), (errors.error, x @ w - x_hat @ q),
                            (errors.local_error, x @ (w - q)), (errors.inherited_error, (x - x_hat) @ w)):
            np.testing.assert_allclose(got, np.sum(wanted ** 2), rtol=1e-6, atol=1e-9 * errors.signal)
    assert report.comparison.rows == ROWS and report.comparison.batches == 1


def test_of_one_batch_rows_are_held_back():
    proto, _ = perceptron()
    report = refq.quantize_model(proto, None, "mxfp4", "ed", reader(batches(1)))
    assert [(row.errors.rows, row.errors.held) for row in report.rows] == [(30, 10)] * 3
    assert "quarter of each layer's rows" in report.calibration


def test_of_too_few_rows_none_are_held_back():
    proto, _ = perceptron()
    report = refq.quantize_model(proto, None, "mxfp4", "ed", reader(batches(1, (2, 20))))
    assert [(row.errors.rows, row.errors.held) for row in report.rows] == [(2, 0)] * 3
    assert all(row.errors.error <= row.errors.rtn_error for row in report.rows)


@pytest.mark.parametrize("count, held", [(2, [1]), (3, [2]), (4, [3]), (5, [3]), (8, [3, 7]), (9, [3, 7])])
def test_which_batches_are_held_back(count, held):
    proto, _ = perceptron()
    report = refq.quantize_model(proto, None, "mxfp4", "ed", reader(batches(count, (7, 20))))
    assert report.rows[0].errors.held == 7 * len(held)
    assert f"{len(held)} of them held back" in report.calibration


def test_direct_cast_stands_where_it_is_better():
    """Calibration batches say nothing of the one held back: a method fits noise."""
    proto, _ = perceptron()
    feeds = batches(3, (2, 20)) + batches(1, (200, 20), seed=99)
    report = refq.quantize_model(proto, None, "int4", "qronos", reader(feeds))
    kept = [row for row in report.rows if row.method == "rtn"]
    assert kept, "an overfitted layer is needed for this test"
    for row in report.rows:
        assert row.errors.error == min(row.errors.rtn_error, row.errors.asked_error)


# -- convolutions and other parts ----------------------------------------------------------------------------

def test_groups_of_a_convolution_are_problems_of_their_own():
    array = weight(6, 3, 3, 3, seed=4, scale=0.3)
    proto = model([node("Conv", ["x", "w"], ["y"], name="conv", group=2)], {"x": [None, 6, 8, 8]},
                  [value("y", None)], {"w": array})
    feeds = batches(4, (3, 6, 8, 8))
    report = refq.quantize_model(proto, None, "mxfp4", "ed", reader(feeds), export="float")
    got = stored_values(report.model, "w")
    for group in range(2):
        sums, kept = refq.Gram(27), refq.Gram(27)
        for number, feed in enumerate(feeds):
            x = feed["x"][:, 3 * group:3 * group + 3]
            rows = np.array([x[n, :, i:i + 3, j:j + 3].ravel() for n in range(3)
                             for i in range(6) for j in range(6)])
            (kept if number == 3 else sums).update(rows)
        own = array[3 * group:3 * group + 3].reshape(3, 27)
        wanted = refq.diffuse_gram(own, sums, "mxfp4", "ed", held=kept).quantized.dequantize()
        np.testing.assert_array_equal(got[3 * group:3 * group + 3].reshape(3, 27), wanted)


def test_rows_of_a_large_matrix_are_coded_in_pieces_to_the_same_codes(monkeypatch):
    """Judged on the rows that the codes come from, so that the guard, which looks at each piece, rests."""
    proto, tensors = perceptron()
    (site, *_) = find_weights(Graph(proto))
    form, casting, matrix = form_of(site), Casting(), tensors["a"]
    sums = GramStack(1, 20)
    sums.update(np.concatenate([feed["x"] for feed in batches()])[None])
    direct = casting(matrix, refq.data_type("mxfp4"), 0)
    found = []
    for rows in (1024, 17):
        monkeypatch.setattr("refq.models.solve.ROWS", rows)
        with Workers(2) as workers:
            found.append(solve(matrix, direct, form, Inputs(sums, sums), Choice(direct.dtype, "ed"), casting,
                               workers))
    whole, cut = found
    assert whole.errors.parts == 1 and cut.errors.parts == 2 and whole.errors.direct == cut.errors.direct == 0
    np.testing.assert_array_equal(whole.q.dequantize(), cut.q.dequantize())
    np.testing.assert_allclose(whole.errors.kept, cut.errors.kept, rtol=1e-9)


def test_large_and_small_sums_agree(monkeypatch):
    proto, _ = perceptron()
    small = refq.quantize_model(proto, None, "int4", "ed", reader(batches()), export="float").model
    monkeypatch.setattr("refq.models.walk.SMALL", 0)
    large = refq.quantize_model(proto, None, "int4", "ed", reader(batches()), export="float").model
    assert small.SerializeToString() == large.SerializeToString()


def test_layers_that_meet_the_same_inputs_share_their_sums(monkeypatch):
    """x a and x b are two layers on one input; x turned is another, and so is a Conv with another window."""
    count = []
    whole = Walk._summed
    monkeypatch.setattr(Walk, "_summed",
                        lambda self, form, step: count.append(form) or whole(self, form, step))
    tensors = {name: weight(20, 20, seed=seed) for seed, name in enumerate("abc")}
    proto = model([node("MatMul", ["x", "a"], ["p"]), node("MatMul", ["x", "b"], ["q"]),
                   node("Gemm", ["x", "c"], ["r"], transA=1), node("Add", ["p", "q"], ["y"])],
                  {"x": [20, 20]}, {"y": [20, 20], "r": [20, 20]}, tensors)
    report = refq.quantize_model(proto, None, "mxfp4", "ed", reader(batches(4, (20, 20))), export="float")
    assert len(count) == 2
    sums, kept = refq.Gram(20), refq.Gram(20)
    for number, feed in enumerate(batches(4, (20, 20))):
        (kept if number == 3 else sums).update(feed["x"])
    for name in "ab":
        wanted = refq.diffuse_gram(tensors[name], sums, "mxfp4", axis=0, held=kept).quantized.dequantize()
        np.testing.assert_array_equal(stored_values(report.model, name), wanted)
    count.clear()
    convs = {"v": weight(4, 3, 3, 3), "w": weight(5, 3, 3, 3, seed=2)}
    for strides, sets in (([1, 1], 1), ([2, 2], 2)):
        proto = model([node("Conv", ["x", "v"], ["p"], strides=[1, 1]),
                       node("Conv", ["x", "w"], ["q"], strides=strides)],
                      {"x": [None, 3, 9, 9]}, [value("p", None), value("q", None)], convs)
        refq.quantize_model(proto, None, "mxfp4", "ed", reader(batches(4, (2, 3, 9, 9))))
        assert len(count) == sets
        count.clear()


@pytest.mark.parametrize("dtype", ["int4", "mxfp4_16x16"])
def test_a_layer_that_never_runs_does_not_turn_the_weight_that_it_shares(dtype):
    """The first layer of the file reads the weight transposed, and nothing reads what it makes."""
    tensors = {"w": weight(20, 20, seed=1)}
    live = [node("Transpose", ["w"], ["t"]), node("Gemm", ["x", "w"], ["y"], name="live", transB=1)]
    idle = [live[0], node("MatMul", ["x", "t"], ["z"], name="idle"), live[1]]
    reports = [refq.quantize_model(model(nodes, {"x": [None, 20]}, {"y": [None, 20]}, tensors), None, dtype,
                                   calibration=reader(batches()), export="float") for nodes in (live, idle)]
    alone, shared = (Engine(report.model).run(batches()[3])["y"] for report in reports)
    np.testing.assert_array_equal(alone, shared)
    assert reports[0].rows[-1].errors.error == reports[1].rows[-1].errors.error


# -- the same bytes ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("change", [{"workers": 1}, {"workers": 3}, {"memory": 0}, {"memory": "2k"}],
                         ids=lambda change: "-".join(map(str, *change.items())))
def test_workers_and_memory_change_no_byte(tmp_path, change):
    proto, _ = perceptron()
    paths = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    refq.quantize_model(proto, paths[0], "mxfp4", "qronos", reader(batches()), workers=2)
    refq.quantize_model(proto, paths[1], "mxfp4", "qronos", reader(batches()), **change)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_onnxruntime_as_the_engine_gives_nearly_the_same():
    pytest.importorskip("onnxruntime")
    proto, _ = perceptron()
    ours, theirs = (refq.quantize_model(proto, None, "mxfp4", "ed", reader(batches()), engine=engine)
                    for engine in ("numpy", "onnxruntime"))
    for a, b in zip(ours.rows, theirs.rows):
        assert abs(a.errors.error - b.errors.error) < 0.05 * a.errors.error


# -- interrupted runs ----------------------------------------------------------------------------------------

class Stop(Exception):
    """What an interruption is here."""


def interrupted(proto, path, after=2, **options):
    """Begin a run and stop it when so many layers are finished."""
    def progress(done, total, words):
        finished = len(list(path.parent.glob(f"{path.name}.refq-resume/0*.npz")))
        if finished >= after:
            raise Stop
    with pytest.raises(Stop):
        refq.quantize_model(proto, path, progress=progress, **options)


def test_a_resumed_run_ends_in_the_same_bytes(tmp_path):
    proto, _ = perceptron()
    options = {"dtype": "mxfp4", "method": "ed", "calibration": reader(batches())}
    refq.quantize_model(proto, tmp_path / "a.onnx", **options)
    for after in (1, 2, 3):
        path = tmp_path / f"b{after}.onnx"
        interrupted(proto, path, after, **options)
        assert not path.exists()
        report = refq.quantize_model(proto, path, resume=True, **options)
        assert path.read_bytes() == (tmp_path / "a.onnx").read_bytes()
        assert all(row.errors.rows == 4 * ROWS for row in report.rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b1.onnx", "b2.onnx", "b3.onnx"]


@pytest.mark.parametrize("dtype", ["mx6", "uint4", "cb42f1346", "mxfp4_2of4", "nvfp4", "mxfp4_16x16"])
def test_every_part_of_a_weight_is_kept_for_resuming(tmp_path, dtype):
    proto, _ = perceptron()
    options = {"dtype": dtype, "method": "ed", "calibration": reader(batches()), "export": "float"}
    refq.quantize_model(proto, tmp_path / "a.onnx", **options)
    interrupted(proto, tmp_path / "b.onnx", 3, **options)
    refq.quantize_model(proto, tmp_path / "b.onnx", resume=True, **options)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def changed(proto):
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    array = numpy_helper.to_array(copy.graph.initializer[2]).copy()
    array[0, 0] += 1
    copy.graph.initializer[2].CopyFrom(numpy_helper.from_array(array, copy.graph.initializer[2].name))
    return copy


@pytest.mark.parametrize("what, change", [
    ("model was", {}), ("data was", {"calibration": reader(batches(seed=12))}),
    ("dtype was mxfp4, now int4", {"dtype": "int4"}), ("method was ed, now gptq", {"method": "gptq"}),
    ("export was native, now float", {"export": "float"}), ("rules was", {"keep_float": "three"}),
], ids=["model", "data", "dtype", "method", "export", "rules"])
def test_another_run_is_not_gone_on_with(tmp_path, what, change):
    proto, _ = perceptron()
    options = {"dtype": "mxfp4", "method": "ed", "calibration": reader(batches())}
    path = tmp_path / "a.onnx"
    interrupted(proto, path, **options)
    with pytest.raises(InputError, match=what):
        refq.quantize_model(changed(proto) if what == "model was" else proto, path, resume=True,
                            **options | change)
    refq.quantize_model(proto, path, resume=True, **options)        # and nothing was lost by asking


def test_another_release_of_the_engine_does_not_go_on(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    proto, _ = perceptron()
    options = {"dtype": "mxfp4", "calibration": reader(batches()), "engine": "onnxruntime"}
    interrupted(proto, tmp_path / "a.onnx", **options)
    monkeypatch.setattr(onnxruntime, "__version__", "0.1")
    with pytest.raises(InputError, match="onnxruntime version was .*, now 0.1"):
        refq.quantize_model(proto, tmp_path / "a.onnx", resume=True, **options)
    monkeypatch.undo()
    with pytest.raises(InputError, match="engine was onnxruntime, now numpy"):
        refq.quantize_model(proto, tmp_path / "a.onnx", resume=True, **options | {"engine": "numpy"})


def test_a_place_for_activations_that_is_missing_leaves_no_limit_behind(monkeypatch):
    """Linear algebra is held to one thread for the time of a run alone."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    proto, _ = perceptron()

    def fail(*_):
        raise OSError("no place")
    before = threadpoolctl.threadpool_info()
    monkeypatch.setattr("refq.models.store.Store.__enter__", fail)
    with pytest.raises(OSError, match="no place"):
        refq.quantize_model(proto, None, calibration=reader(batches()))
    assert threadpoolctl.threadpool_info() == before


def test_an_unfinished_run_is_not_thrown_away_silently(tmp_path):
    proto, _ = perceptron()
    options = {"dtype": "mxfp4", "method": "ed", "calibration": reader(batches())}
    interrupted(proto, tmp_path / "a.onnx", **options)
    with pytest.raises(InputError, match="unfinished run.*--resume, or remove the folder"):
        refq.quantize_model(proto, tmp_path / "a.onnx", **options)


def test_what_a_finished_run_left_is_not_taken_for_another_runs(tmp_path):
    """The folder is removed when all is done; a kill meanwhile leaves weights without the record."""
    proto, _ = perceptron()
    interrupted(proto, tmp_path / "a.onnx", dtype="mxfp4", calibration=reader(batches(seed=50)))
    (tmp_path / "a.onnx.refq-resume" / "run.json").unlink()
    for name in ("a.onnx", "b.onnx"):
        refq.quantize_model(proto, tmp_path / name, "mxfp4", calibration=reader(batches()))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("left", [0, 100, -30])
def test_a_file_that_a_crash_cut_short_is_made_again(tmp_path, left):
    proto, _ = perceptron()
    options = {"dtype": "mxfp4", "calibration": reader(batches())}
    refq.quantize_model(proto, tmp_path / "a.onnx", **options)
    interrupted(proto, tmp_path / "b.onnx", **options)
    path = tmp_path / "b.onnx.refq-resume" / "000001.npz"
    path.write_bytes(path.read_bytes()[:left])
    refq.quantize_model(proto, tmp_path / "b.onnx", resume=True, **options)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_run_that_failed_before_a_weight_was_finished_bars_no_other(tmp_path):
    proto, _ = perceptron()
    bad = batches()
    bad[0]["x"][:] = 3e38
    bad[0]["x"][:, 1::2] = -3e38
    with pytest.raises(InputError, match="inputs of"):
        refq.quantize_model(proto, tmp_path / "a.onnx", keep_float="one", calibration=reader(bad))
    refq.quantize_model(proto, tmp_path / "a.onnx", calibration=reader(batches()))
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_there_must_be_something_to_resume(tmp_path):
    proto, _ = perceptron()
    with pytest.raises(InputError, match="nothing to resume"):
        refq.quantize_model(proto, tmp_path / "a.onnx", "mxfp4", calibration=reader(batches()), resume=True)
    with pytest.raises(InputError, match="only a run with calibration data"):
        refq.quantize_model(proto, tmp_path / "a.onnx", "mxfp4", "rtn", resume=True)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_killed_process_can_be_resumed(tmp_path, kind):
    data = example.load()
    np.savez(tmp_path / "data.npz", image=data.calibration)
    command = [sys.executable, "-m", "refq", "quantize", str(data.model_path), "--dtype", "mxfp4",
               "--calibration", str(tmp_path / "data.npz")]
    path = tmp_path / "b.onnx"
    subprocess.run([*command, "-o", str(tmp_path / "a.onnx")], check=True, capture_output=True, timeout=120)
    run = subprocess.Popen([*command, "-o", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True)
    folder = tmp_path / "b.onnx.refq-resume"
    for _ in range(12000):
        if run.poll() is not None or list(folder.glob("0*.npz")):
            break
        time.sleep(0.005)
    os.kill(run.pid, kind)
    errors = run.communicate(timeout=60)[1]
    if run.returncode == 0:
        pytest.skip("the run was over before it could be stopped")
    assert not path.exists() and folder.is_dir()
    if kind == signal.SIGINT:
        assert run.returncode == 130 and "--resume goes on" in errors
    subprocess.run([*command, "-o", str(path), "--resume"], check=True, capture_output=True, timeout=120)
    assert path.read_bytes() == (tmp_path / "a.onnx").read_bytes() and not folder.exists()


# -- rules and budgets ---------------------------------------------------------------------------------------

def dtypes(report):
    return [(row.dtype, row.method) if row.quantised else "float" for row in report.rows]


def test_rules_give_layers_their_own_types():
    proto, _ = perceptron()
    options = {"dtype": "mxfp4", "method": "ed", "calibration": reader(batches())}
    report = refq.quantize_model(proto, None, rules=["t*=int8:rtn", "c=nvfp4"], **options)
    assert dtypes(report) == [("mxfp4", "ed"), ("int8", "rtn"), ("nvfp4", "ed")]
    assert report.rules == (("t*", "int8:rtn"), ("c", "nvfp4:ed"))
    report = refq.quantize_model(proto, None, rules=[("*", "float"), ("two", "int8:gptq")], **options)
    assert dtypes(report) == ["float", ("int8", "gptq"), "float"]
    report = refq.quantize_model(proto, None, rules=["*=int8"], keep_float=["o*"], **options)
    assert dtypes(report) == ["float", ("int8", "ed"), ("int8", "ed")]
    report = refq.quantize_model(proto, None, "float", "rtn", rules="two=mxfp4")
    assert dtypes(report) == ["float", ("mxfp4", "rtn"), "float"]


@pytest.mark.parametrize("options, words", [
    ({"rules": ["four=mxfp4"]}, "pattern 'four' matches no weight-bearing node; names it could mean"),
    ({"keep_float": ["four"]}, "pattern 'four' matches no weight-bearing node"),
    ({"rules": ["one=mxfp5"]}, "mxfp5"), ({"rules": ["one"]}, "is not 'pattern=dtype'"),
    ({"rules": ["one="]}, "is not 'pattern=dtype'"), ({"rules": ["one=mxfp4:magic"]}, "magic"),
    ({"dtype": "mxfp4,int4"}, "no budget to choose"), ({"method": "magic"}, "method 'magic' is not known"),
    ({"budget": 3.0}, "budget of 3 bits per weight is below 4.456"),
    ({"engine": "abacus"}, "engine 'abacus'"), ({"workers": 0}, "0 workers"),
    ({"memory": "lots"}, "memory 'lots' is no number of bytes"),
])
def test_what_makes_no_sense_is_refused(options, words):
    proto, _ = perceptron()
    asked = {"dtype": "mxfp4", "method": "ed", "calibration": reader(batches(2))} | options
    with pytest.raises(InputError, match=words):
        refq.quantize_model(proto, None, **asked)


def test_methods_that_look_at_activations_need_some():
    proto, _ = perceptron()
    for method in ("ed", "gptq", "qronos"):
        words = f"method '{method}'.*no calibration data: give.*or take method 'rtn'"
        with pytest.raises(InputError, match=words):
            refq.quantize_model(proto, None, "mxfp4", method)
    with pytest.raises(InputError, match="a budget needs data"):
        refq.quantize_model(proto, None, "mxfp4", "rtn", budget=5)
    with pytest.raises(InputError, match="no calibration data"):
        refq.quantize_model(proto, None, "mxfp4", "rtn", rules="one=mxfp4:ed")


def test_random_data_is_said_to_be_random():
    proto, _ = perceptron()
    report = refq.quantize_model(proto, None, "mxfp4", "ed", "random")
    assert any("random" in note for note in report.warnings) and "random" in report.table()


@pytest.mark.parametrize("budget", [4.5, 5, 6, 8.6])
def test_a_budget_is_kept(budget):
    proto, _ = perceptron()
    report = refq.quantize_model(proto, None, budget=budget, calibration=reader(batches()))
    assert report.average_bits <= budget
    assert {row.dtype for row in report.rows} <= {"mxfp4", "mxfp6_e2m3", "mxfp8_e4m3"}
    assert "mxfp4" not in {row.dtype for row in report.rows} or budget < 8.6


def test_a_budget_goes_to_the_layer_that_disturbs_most():
    """The output layer's weights are as large as the others', but its noise goes out undamped: beside a layer
    whose outputs are scaled down a thousandfold it needs the bits."""
    tensors = {"a": weight(64, 64, seed=1), "b": weight(64, 64, seed=2), "s": np.float32(0.001)}
    nodes = [node("MatMul", ["x", "a"], ["h"], name="quiet"), node("Mul", ["h", "s"], ["q"]),
             node("MatMul", ["x", "b"], ["l"], name="loud"), node("Add", ["q", "l"], ["y"])]
    proto = model(nodes, {"x": [None, 64]}, {"y": [None, 64]}, tensors)
    report = refq.quantize_model(proto, None, "mxfp4,mxfp8", budget=6.3,
                                 calibration=reader(batches(4, (ROWS, 64))))
    assert [row.dtype for row in report.rows] == ["mxfp4", "mxfp8_e4m3"]
    said = []
    refq.quantize_model(proto, None, "mxfp4,mxfp8", budget=6.3, say=said.append,
                        rules=["loud=mxfp4"], calibration=reader(batches(4, (ROWS, 64))))
    table = next(text for text in said if "becomes" in text)
    assert "mxfp8_e4m3:ed" in table and "budget 6.3" in table and "loud" in table


def test_a_name_spelled_out_is_found_whatever_it_holds():
    proto, _ = perceptron()
    proto.graph.node[0].name = "layer[0]/one"
    report = refq.quantize_model(proto, None, "mxfp4", "rtn", rules=["layer[0]/one=int8", "layer[[]0]*=int4"])
    assert dtypes(report)[0] == ("int4", "rtn")
    report = refq.quantize_model(proto, None, "mxfp4", "rtn", rules="layer[0]/one=int8")
    assert dtypes(report)[0] == ("int8", "rtn")


def test_a_budget_offers_no_layer_what_it_cannot_take():
    """A weight of one dimension has no tiles of two."""
    nodes = [node("MatMul", ["x", "w"], ["h"], name="two"), node("MatMul", ["h", "v"], ["y"], name="one")]
    proto = model(nodes, {"x": [None, 32]}, {"y": [None]}, {"w": weight(32, 8), "v": weight(8)})
    report = refq.quantize_model(proto, None, "mxfp4,mxfp8_e4m3_32x32", budget=9,
                                 calibration=reader(batches(4, (ROWS, 32))))
    assert [row.dtype for row in report.rows] == ["mxfp8_e4m3_32x32", "mxfp4"]


@pytest.mark.parametrize("ruled", ["one", "two"])
def test_a_rule_holds_for_a_weight_that_another_layer_has_by_default(ruled):
    """A budget would part them otherwise, and keep both."""
    nodes = [node("MatMul", ["x", "w"], ["h"], name="one"), node("MatMul", ["h", "w"], ["y"], name="two")]
    proto = model(nodes, {"x": [None, 32]}, {"y": [None, 32]}, {"w": weight(32, 32)})
    report = refq.quantize_model(proto, None, "mxfp4,mxfp8", budget=8.5, rules=f"{ruled}=mxfp4",
                                 calibration=reader(batches(2, (ROWS, 32))))
    assert [row.dtype for row in report.rows] == ["mxfp4"] * 2 and report.rows[1].shared


# -- bad input -----------------------------------------------------------------------------------------------

def test_wrong_data_is_refused_before_anything_is_written(tmp_path):
    proto, _ = perceptron()
    wrong = [{"z": np.zeros((4, 20), np.float32)}, {"x": np.zeros((4, 21), np.float32)},
             {"x": np.full((4, 20), np.nan, np.float32)}, {"x": np.array(["a"])}]
    for feed, words in zip(wrong, ("no input 'z'", "has shape", "NaN", "no number")):
        with pytest.raises(InputError, match=words):
            refq.quantize_model(proto, tmp_path / "a.onnx", "mxfp4", calibration=reader([feed]))
    with pytest.raises(InputError, match="not one batch"):
        refq.quantize_model(proto, tmp_path / "a.onnx", "mxfp4", calibration=reader([]))
    assert not list(tmp_path.iterdir())


def test_an_operator_that_nothing_runs_is_named(tmp_path):
    proto, _ = perceptron()
    proto.graph.node[1].op_type = "Abracadabra"
    with pytest.raises(InputError, match="Abracadabra"):
        refq.quantize_model(proto, tmp_path / "a.onnx", "mxfp4", calibration=reader(batches()))
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "Magic", "somewhere"
    proto.opset_import.append(onnx.helper.make_opsetid("somewhere", 1))
    with pytest.raises(InputError, match="Magic|somewhere"):
        refq.quantize_model(proto, tmp_path / "a.onnx", "mxfp4", calibration=reader(batches()))
    assert not list(tmp_path.iterdir())


def test_activations_that_are_not_finite_are_refused_with_the_layer(tmp_path):
    proto, _ = perceptron()
    feeds = batches()
    feeds[1]["x"][:] = 3e38
    with pytest.raises(InputError, match="two"):
        refq.quantize_model(proto, tmp_path / "a.onnx", "mxfp4", calibration=reader(feeds))
    assert not (tmp_path / "a.onnx").exists()


def test_outputs_that_change_their_length_do_not_lose_the_run(tmp_path):
    """The numbers above 0 are picked: the quantised model picks others."""
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Reshape", ["h", "flat"], ["f"]),
             node("Greater", ["f", "zero"], ["g"]), node("Compress", ["f", "g"], ["y"])]
    proto = model(nodes, {"x": [None, 20]}, {"y": [None]},
                  {"w": weight(20, 33), "flat": np.array([-1]), "zero": np.float32(0)})
    report = refq.quantize_model(proto, tmp_path / "a.onnx", "mxfp4", calibration=reader(batches()))
    assert report.comparison is None and (tmp_path / "a.onnx").exists()
    assert any("the outputs are not compared: 'y' has the shape" in note for note in report.warnings)
    assert "not compared" in report.table() and report.to_html() and report.to_json()


# -- what is said --------------------------------------------------------------------------------------------

def test_the_run_tells_what_it_needs_and_how_far_it_is():
    proto, _ = perceptron()
    said, told = [], []
    refq.quantize_model(proto, None, "mxfp4", calibration=reader(batches()), keep_float="three",
                        say=said.append, progress=lambda *facts: told.append(facts))
    assert "kept float by 'three'" in said[0] and said[-1].startswith("memory: about")
    done, total, words = told[-1]
    assert done == total > 0 and words.startswith("two: ") and "of the error of rtn" in words


def test_the_file_says_how_it_was_made():
    proto, _ = perceptron()
    made = refq.quantize_model(proto, None, "mxfp4", calibration=reader(batches()),
                               rules="two=int8:rtn").model
    facts = {entry.key: entry.value for entry in made.metadata_props}
    assert facts["refq.version"] == refq.__version__ and facts["refq.method"] == "ed"
    assert json.loads(facts["refq.layers"]) == {"h": "mxfp4:ed", "s": "int8:rtn", "y": "mxfp4:ed"}


def test_the_written_model_does_what_the_quantised_stream_did(tmp_path):
    proto, _ = perceptron()
    feeds = batches()
    for export in ("float", "portable"):
        path = tmp_path / f"{export}.onnx"
        report = refq.quantize_model(proto, path, "mxfp4", calibration=reader(feeds), export=export)
        ours = Engine(path).run(feeds[3])["y"]
        np.testing.assert_allclose(run_onnxruntime(str(path), feeds[3])[0], ours, rtol=1e-4, atol=1e-4)
        exact = Engine(proto).run(feeds[3])["y"].astype(np.float64)
        wanted = 10 * np.log10(np.sum(exact ** 2) / np.sum((exact - ours) ** 2))
        assert abs(report.comparison.outputs[0].sqnr_db - wanted) < 1e-3


def test_rows_that_depend_on_the_data_are_no_reason_to_stop():
    """Behind NonZero the two streams may bring a layer different rows."""
    tensors = {"a": weight(20, 33, seed=1), "b": weight(33, 5, seed=2), "zero": np.float32(0)}
    nodes = [node("MatMul", ["x", "a"], ["h"], name="one"), node("Greater", ["h", "zero"], ["g"]),
             node("Compress", ["h", "rows"], ["kept"], axis=0), node("MatMul", ["kept", "b"], ["y"], name="two")]
    chosen = [node("ReduceSum", ["f", "axis"], ["s"], keepdims=0), node("Greater", ["s", "half"], ["rows"])]
    nodes[2:2] = [node("Cast", ["g"], ["f"], to=1), *chosen]
    tensors |= {"axis": np.array([1]), "half": np.float32(16.5)}
    proto = model(nodes, {"x": [None, 20]}, [value("y", None)], tensors)
    report = refq.quantize_model(proto, None, "int2_binary16_t32", "ed", reader(batches()))
    one, two = report.rows
    assert one.errors is not None and two.errors is None
    assert two.method == "rtn" and "different rows" in two.reason


def test_weights_are_no_inputs_of_calibration_data():
    """An initializer that is a graph input too could be fed, but it is what is quantised."""
    proto, tensors = perceptron()
    proto.graph.input.append(value("a", [20, 33]))
    feeds = [feed | {"a": tensors["a"]} for feed in batches()]
    with pytest.raises(InputError, match="no input 'a'; its inputs are 'x'"):
        refq.quantize_model(proto, None, calibration=reader(feeds))
    assert refq.quantize_model(proto, None, calibration=reader(batches())).rows[0].errors.rows


def test_a_budget_needs_outputs_with_noise():
    proto, _ = perceptron()
    proto.graph.node.append(node("ArgMax", ["y"], ["best"]))
    proto.graph.output[0].CopyFrom(value("best", None, onnx.TensorProto.INT64))
    with pytest.raises(InputError, match="a budget needs an output of floats.*'best'"):
        refq.quantize_model(proto, None, budget=5, calibration=reader(batches()))
