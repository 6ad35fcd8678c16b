"""A model of every kind by error diffusion: the file that is written does what the quantised stream did."""

import numpy as np
import pytest
from kinds import BATCHWISE, KINDS
from onnx_models import model, node, rng, run_onnxruntime, value, weight

import refq
from refq.models.engine import Engine

SAMPLES, HELD = 8, 3        # of a batch; the batch that is held back of four
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float16): 2e-3}


def data(feeds):
    """Calibration data of four batches."""
    class Reader:
        def __init__(self):
            self.left = iter(range(4))

        def get_next(self):
            number = next(self.left, None)
            return None if number is None else feeds(number, SAMPLES)
    return Reader


def scaled_difference(a, b):
    a, b = (np.asarray(part, np.float64) for part in (a, b))
    return np.abs(a - b).max(initial=0) / (np.abs(a).max(initial=0) or 1)


def diffused(kind, export, method="ed", dtype="mxfp4", **options):
    proto, feeds = KINDS[kind]()
    report = refq.quantize_model(proto, None, dtype, method, data(feeds), export=export, **options)
    return proto, feeds, report


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("export", ["float", "portable"])
def test_exports_agree_with_onnxruntime_and_with_the_walk(kind, export):
    proto, feeds, report = diffused(kind, export)
    fed = feeds(9, SAMPLES)
    ours = Engine(report.model).run(fed)
    if kind not in BATCHWISE:
        for (name, value), other in zip(ours.items(), run_onnxruntime(report.model, fed)):
            assert scaled_difference(value, other) <= TOLERANCE.get(np.asarray(value).dtype, 0), name
    exact, quantised = (Engine(model).run(feeds(HELD, SAMPLES)) for model in (proto, report.model))
    for output in report.comparison.outputs:
        if output.sqnr_db is None:
            continue
        a, b = (np.asarray(each[output.name], np.float64) for each in (exact, quantised))
        noise = np.sum((a - b) ** 2)
        wanted = 10 * np.log10(np.sum(a * a) / noise) if noise else np.inf
        assert output.sqnr_db == wanted or abs(output.sqnr_db - wanted) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_no_layer_is_worse_than_direct_cast_and_every_row_says_why(kind):
    _, _, report = diffused(kind, "float")
    for row in report.rows:
        if not row.quantised or row.errors is None:
            assert row.reason or row.errors is not None or row.where or row.shared, row
            continue
        assert row.errors.error <= row.errors.rtn_error
        assert row.errors.held > 0 and row.errors.rows > 0 and row.errors.signal > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.share(4)
@pytest.mark.parametrize("method, dtype", [
    ("gptq", "int4"), ("qronos", "nvfp4"), ("ed", "mx6"), ("ed", "uint4"), ("ed", "mxfp4_16x16"),
    ("ed", "bitnet"), ("qronos", "int8"), ("ed", "e4m3fn"), ("ed", "cb42f1346"), ("ed", "mxfp4_2of4")])
def test_other_methods_and_data_types(kind, method, dtype):
    """Every family of data types on every kind of layer, those included that span products and are cast."""
    _, feeds, report = diffused(kind, "float", method, dtype)
    assert any(row.quantised for row in report.rows)
    outputs = Engine(report.model).run(feeds(9, SAMPLES))
    assert all(np.isfinite(np.asarray(value, np.float64)).all() for value in outputs.values())


def test_a_tied_table_is_cast_directly_and_stays_one_tensor():
    proto, _, report = diffused("gather_tied", "native")
    table, *_, last = report.rows
    assert (table.op, table.method, last.method) == ("Gather", "rtn", "rtn")
    assert last.shared == (table.output,)
    assert "lookup table" in table.reason and "lookup table" in last.reason
    codes = [t.name for t in report.model.graph.initializer if t.name.endswith("_quantized")]
    assert len(codes) == len({row.tensor for row in report.rows if row.first and row.quantised})


def test_a_weight_used_twice_has_its_codes_from_the_first_use():
    _, _, report = diffused("shared", "native")
    shared = [row for row in report.rows if row.shared]
    assert len(shared) == 2 and shared[0].first and not shared[1].first
    assert shared[0].errors == shared[1].errors and shared[0].method == shared[1].method


@pytest.mark.parametrize("kind", ["if_branches", "loop", "scan"])
def test_bodies_are_cast_directly_and_said_to_be(kind):
    _, _, report = diffused(kind, "native")
    inside = [row for row in report.rows if row.where]
    assert inside and all(row.method == "rtn" and "control-flow" in row.reason for row in inside)


def test_what_meets_constants_alone_is_cast_directly_and_in_the_stream():
    """A convolution of a constant runs once for all; what follows meets what its new weight makes."""
    proto = model([node("Conv", ["k", "v"], ["c"], name="once"), node("Add", ["x", "c"], ["s"]),
                   node("Conv", ["s", "w"], ["y"], name="each")],
                  {"x": [None, 4, 6, 6]}, [value("y", None)],
                  {"k": weight(1, 4, 8, 8), "v": weight(4, 4, 3, 3, seed=2), "w": weight(4, 4, 3, 3, seed=3)})

    def feeds(seed, count):
        return {"x": rng(seed).standard_normal((count, 4, 6, 6)).astype(np.float32)}
    report = refq.quantize_model(proto, None, "int4", calibration=data(feeds), export="float")
    once, each = report.rows
    assert (once.method, once.errors, once.reason) == ("rtn", None, "meets constants alone: cast directly")
    exact, quantised = (Engine(made).run(feeds(HELD, SAMPLES))["y"].astype(np.float64)
                        for made in (proto, report.model))
    np.testing.assert_allclose(each.errors.error, np.sum((exact - quantised) ** 2), rtol=1e-5)
    assert each.errors.inherited_error > 0


@pytest.mark.parametrize("reached, errors", [((), None), ((0, 1), (2 * SAMPLES, 0)), ((HELD,), (SAMPLES, 0))])
def test_layers_may_meet_no_rows(reached, errors):
    """A mask, a column of the data, picks the rows of some batches alone."""
    proto = model([node("Greater", ["m", "half"], ["b"]), node("Compress", ["x", "b"], ["s"], axis=0),
                   node("MatMul", ["s", "w"], ["y"])], {"x": [None, 40], "m": [None]}, {"y": [None, 5]},
                  {"w": weight(40, 5), "half": np.float32(0.5)})

    def feeds(seed, count):
        return {"x": rng(seed).standard_normal((count, 40)).astype(np.float32),
                "m": np.full(count, seed in reached, np.float32)}
    (row,) = refq.quantize_model(proto, None, calibration=data(feeds)).rows
    assert row.quantised and (row.errors and (row.errors.rows, row.errors.held)) == errors
    assert ("no row of the data reaches it" in row.reason) == (errors is None)


def test_what_no_output_depends_on_is_cast_directly():
    proto = model([node("MatMul", ["x", "a"], ["y"], name="used"),
                   node("MatMul", ["x", "b"], ["z"], name="idle")],
                  {"x": [None, 40]}, {"y": [None, 5]}, {"a": weight(40, 5), "b": weight(40, 6)})
    report = refq.quantize_model(proto, None, calibration=data(lambda seed, count: {
        "x": rng(seed).standard_normal((count, 40)).astype(np.float32)}))
    used, idle = report.rows
    assert used.errors is not None and not used.reason
    assert idle.errors is None and idle.method == "rtn" and "no output of the model" in idle.reason
