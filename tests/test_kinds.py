"""Every kind of layer, cast and exported: two runtimes and all export styles compute the same model."""

import numpy as np
import onnx
import pytest
from kinds import BATCHWISE, KINDS
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx_models import model, node, node_of, run_onnxruntime, tensor, value, weight

from refq.blocks.quantize import quantize
from refq.models.engine import Engine
from refq.models.quantize import quantize_model

STYLES = ("float", "portable", "native")


def cast(proto, dtype, style, **options):
    return quantize_model(proto, dtype=dtype, method="rtn", export=style, **options)


def assert_close(got, wanted, share=5e-6):
    """Within a share of the largest value of each output."""
    for a, b in zip(got, wanted, strict=True):
        a, b = a.astype(np.float32), b.astype(np.float32)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=share * np.abs(b).max())


def assert_runs(proto, given, wanted, share=5e-6, runtimes=(Engine, run_onnxruntime)):
    for run in runtimes:
        got = list(Engine(proto).run(given).values()) if run is Engine else run(proto, given)
        assert_close(got, wanted, share)


@pytest.mark.parametrize("dtype", ["mxfp8", "int4", "mxfp4"])
@pytest.mark.parametrize("kind", KINDS)
def test_styles_and_runtimes_agree(kind, dtype):
    """Up to rounding in float32: the weights have the same values, but sums may go another way."""
    proto, make = KINDS[kind]()
    given, share = make(5, 4), 3e-3 if kind == "float16" else 5e-6
    runtimes = (Engine,) if kind in BATCHWISE else (Engine, run_onnxruntime)
    plain = cast(proto, dtype, "float").model
    wanted = list(Engine(plain).run(given).values())
    assert_runs(plain, given, wanted, share, runtimes)
    for style in ("portable", "native"):
        report = cast(proto, dtype, style)
        onnx.checker.check_model(report.model, full_check=True)
        assert all(row.quantised and not row.encoding.endswith("values") for row in report.rows)
        assert_runs(report.model, given, wanted, share, runtimes if style == "portable" else (Engine,))
    before = Engine(proto).run(given).values()
    errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(wanted, before, strict=True)]
    assert all(1e-3 < error < 1 for error in errors), errors


@pytest.mark.parametrize("kind", KINDS)
def test_samples_lie_along_the_first_axis(kind):
    """And what one gives does not depend on which others there are."""
    proto, make = KINDS[kind]()
    given, engine = make(3, 6), Engine(proto)
    assert {value.name for value in proto.graph.input} == set(given)
    assert all(len(array) == 6 for array in given.values())
    some = {name: array[2:5] for name, array in given.items()}
    whole, part = engine.run(given).values(), engine.run(some).values()
    assert_close([array[2:5] for array in whole], part, 2e-3 if kind == "float16" else 5e-6)


# -- one set of codes for one weight -------------------------------------------------------------------------

TABLE = weight(45, 40)
IDS = np.arange(12, dtype=np.int64).reshape(4, 3)
TIED = (node("Gather", ["table", "ids"], ["e"]), node("Transpose", ["table"], ["t"]))


def tied(*nodes, outputs=("y",)):
    """A model that looks up e in a table [45, 40]; the table transposed is t."""
    return model([*TIED, *nodes], [value("ids", ["n", 3], T.INT64)],
                 [value(name, ["n", 3, None]) for name in outputs], {"table": TABLE})


def codes(proto):
    return [t.name for t in proto.graph.initializer if t.name.split("_")[-1] in ("quantized", "dequantized")]


def reads(proto, output, operand):
    """(the operator that makes a node's operand, or None where it is stored, name of the operand)"""
    name = node_of(proto, output).input[operand]
    made = [n for n in proto.graph.node if name in n.output]
    return made[0].op_type if made else None, name


@pytest.mark.parametrize("style", STYLES)
def test_a_table_and_the_output_layer_share_their_codes(style):
    proto = tied(node("Relu", ["e"], ["h"]), node("MatMul", ["h", "t"], ["y"]))
    report = cast(proto, "mxfp4", style)
    assert len(codes(report.model)) == 1 and [row.shared for row in report.rows] == [("y",), ("e",)]
    values = quantize(TABLE, "mxfp4", 1).dequantize()
    runtimes = (Engine,) if style == "native" else (Engine, run_onnxruntime)
    assert_runs(report.model, {"ids": IDS}, [np.maximum(values[IDS], 0) @ values.T], runtimes=runtimes)
    assert reads(report.model, "y", 1) == ("Transpose", "table_Transpose_Output")
    assert node_of(report.model, "table_Transpose_Output").input[0] == reads(report.model, "e", 0)[1]


def test_who_reads_it_alike_reads_the_same_tensor():
    """Two products with the transposed table, one with the table itself: one Transpose."""
    proto = tied(node("MatMul", ["e", "t"], ["a"]), node("Transpose", ["table"], ["u"], perm=[1, 0]),
                 node("MatMul", ["e", "u"], ["b"]),
                 node("Einsum", ["e", "table"], ["c"], equation="bsd,vd->bsv"), outputs="abc")
    after = cast(proto, "int4", "portable").model
    assert len(codes(after)) == 1 and [n.op_type for n in after.graph.node].count("Transpose") == 1
    assert reads(after, "a", 1) == reads(after, "b", 1)
    itself = "DequantizeLinear", "table_DequantizeLinear_Output"
    assert reads(after, "e", 0) == reads(after, "c", 1) == itself


@pytest.mark.parametrize("style", STYLES)
def test_the_transposed_product_comes_first(style):
    """Codes lie as the first in the file reads them."""
    nodes = [node("Transpose", ["table"], ["t"]), node("MatMul", ["x", "t"], ["h"]),
             node("Tanh", ["h"], ["g"]), node("MatMul", ["g", "table"], ["u"]),
             node("Einsum", ["u", "table"], ["y"], equation="nd,vd->nv")]
    proto = model(nodes, {"x": ["n", 40]}, {"y": ["n", 45]}, {"table": TABLE})
    report = cast(proto, "int4", style)
    assert len(codes(report.model)) == 2        # u sums over the entries: a weight of its own
    assert reads(report.model, "y", 1)[0] == "Transpose" and reads(report.model, "h", 1)[0] != "Transpose"
    over_columns, over_rows = (quantize(TABLE, "int4", axis).dequantize() for axis in (1, 0))
    x = weight(4, 40, seed=3)
    wanted = np.tanh(x @ over_columns.T) @ over_rows @ over_columns.T
    runtimes = (Engine,) if style == "native" else (Engine, run_onnxruntime)
    assert_runs(report.model, {"x": x}, [wanted], runtimes=runtimes)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kept", ["e", "a", "b"])
def test_layers_that_stay_float_keep_what_they_read(kept, style):
    """One of three that share a table; its Transpose, which the others read too, stays for it alone."""
    proto = tied(node("MatMul", ["e", "t"], ["a"], name="a"), node("MatMul", ["e", "t"], ["b"], name="b"),
                 outputs="ab")
    report = cast(proto, "int4", style, keep_float=[kept])
    read = dict.fromkeys("eab", quantize(TABLE, "int4", 1).dequantize()) | {kept: TABLE}
    wanted = [read["e"][IDS] @ read["a"].T, read["e"][IDS] @ read["b"].T]
    assert_runs(report.model, {"ids": IDS}, wanted)
    stored = {t.name: numpy_helper.to_array(t) for t in report.model.graph.initializer}
    assert np.array_equal(stored["table"], TABLE)


@pytest.mark.parametrize("style", STYLES)
def test_a_shared_weight_in_a_body(style):
    """A branch turns the table itself; the new weight and its Transpose come before the If."""
    branch = {name: helper.make_graph(nodes, name, [], [value(name, None)]) for name, nodes in (
        ("then", [node("Transpose", ["table"], ["t"]), node("MatMul", ["e", "t"], ["then"])]),
        ("else", [node("Gemm", ["f", "table"], ["g"], transB=1), node("Reshape", ["g", "shape"], ["else"])]))}
    nodes = [node("Gather", ["table", "ids"], ["e"]), node("Reshape", ["e", "flat"], ["f"]),
             node("If", ["c"], ["y"], then_branch=branch["then"], else_branch=branch["else"])]
    tensors = {"table": TABLE, "flat": np.array([-1, 40]), "shape": np.array([-1, 3, 45])}
    proto = model(nodes, [value("ids", ["n", 3], T.INT64), value("c", [], T.BOOL)],
                  [value("y", [None, None, None])], tensors)
    report = cast(proto, "int4", style)
    assert len(codes(report.model)) == 1 and all(len(row.shared) == 2 for row in report.rows)
    values = quantize(TABLE, "int4", 1).dequantize()
    for choice in (True, False):
        assert_runs(report.model, {"ids": IDS, "c": np.array(choice)}, [values[IDS] @ values.T],
                    runtimes=(Engine, run_onnxruntime))


def test_one_tensor_for_both_weights_of_a_recurrent_layer():
    """W and R of one size may be the same tensor: one set of codes, which both operands read."""
    nodes = [node("RNN", ["x", "w", "w"], ["", "y"], hidden_size=36)]
    proto = model(nodes, {"x": [5, "n", 36]}, {"y": [1, "n", 36]}, {"w": weight(1, 36, 36, scale=1 / 6)})
    report = cast(proto, "mxfp4", "portable")
    after = node_of(report.model, "y")
    assert after.input[1] == after.input[2] and len(codes(report.model)) == 1
    given = {"x": weight(5, 2, 36, seed=3)}
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    q = quantize(weight(1, 36, 36, scale=1 / 6), "mxfp4", 2).dequantize()
    plain.graph.initializer[0].CopyFrom(tensor("w", q))
    assert_runs(report.model, given, run_onnxruntime(plain, given))
