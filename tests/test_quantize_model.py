"""quantize_model from end to end: what is chosen, what is written, what is refused."""

import json
import os
import re
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx_models import (LAYERS, every_layer, feeds, matmul_model, matrix, model, node, node_of, rng,
                         run_onnxruntime, run_reference, tensor, value, weight, with_outputs)

from refq.blocks.quantize import quantize
from refq.blocks.rows import DATA_TYPES, data_type
from refq.errors import InputError
from refq.models import example, files
from refq.models.quantize import quantize_model

cast = partial(quantize_model, method="rtn")

TWO = model([
    node("MatMul", ["x", "w1"], ["h"], name="first"),
    node("Gemm", ["h", "w2"], ["y"], name="second")
], {"x": [2, 64]}, {"y": [2, 8]}, {"w1": weight(64, 40), "w2": weight(40, 8, seed=8)})


def copy_of(proto):
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def rows_by_output(report):
    return {row.output: row for row in report.rows}


def weight_read(proto, output, operand=1, run=run_reference):
    """The array that the node making `output` reads as its weight."""
    name = node_of(proto, output).input[operand]
    stored = {t.name: t for t in proto.graph.initializer}
    if name in stored:
        return numpy_helper.to_array(stored[name])
    return run(with_outputs(proto, [name]), feeds(proto))[0]


# -- every data type -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", DATA_TYPES)
def test_every_data_type_quantises_the_example(dtype):
    """End to end, and what ONNX cannot say is said in the report."""
    report = cast(example.load().model_path, dtype=dtype)
    block = data_type(dtype)
    onnx.checker.check_model(report.model, full_check=True)
    assert all(row.quantised for row in report.rows) and report.to_json() and report.table()
    beyond = isinstance(block.tile, tuple) or block.subtiles
    for row in report.rows:
        assert (row.encoding == "float32 values") == bool(beyond) and (not beyond or "in ONNX" in row.reason)
        assert row.sqnr_db > 0 and 0 <= row.saturated < 1 and 0 <= row.flushed < 1


def test_tiles_of_two_dimensions_lie_on_the_matrix():
    """The reduction axis of a matrix and the axis beside it, whatever the rank; a vector has none."""
    proto, arrays = every_layer()
    report = cast(proto, dtype="mxfp4_16x16")
    rows = rows_by_output(report)
    for name in ("right", "left", "batched", "leftbatched", "conv2"):
        values, axis = matrix(name, arrays[name])
        wanted = quantize(values, "mxfp4_16x16", (2 * values.ndim - 3 - axis, axis)).dequantize()
        index = list(node_of(report.model, name).input)
        got = next(numpy_helper.to_array(t) for t in report.model.graph.initializer if t.name in index)
        assert np.array_equal(got.reshape(values.shape), wanted), name
    assert rows["vector"].reason == "mxfp4_16x16 has tiles of two dimensions, its weight has one"


def test_rounding_is_the_recipes_own():
    assert cast(TWO, dtype="mxfp4").rounding == "rne"
    assert cast(TWO, dtype="mxfp4", recipe="ocp,rounding=rtz").rounding == "rtz"
    changed = cast(TWO, dtype="mxfp4", recipe="ocp, rule=rceil")
    assert (changed.recipe, changed.rounding) == ("ocp,rule=rceil", "rne")


# -- choosing ------------------------------------------------------------------------------------------------

def test_every_weight_bearing_node_has_a_row():
    report = cast(every_layer()[0], dtype="mxfp4")
    assert [row.output for row in report.rows] == list(LAYERS) and all(row.quantised for row in report.rows)
    facts = report.rows[0]
    assert (facts.node, facts.op, facts.tensor, facts.shape, facts.dtype, facts.method, facts.parameters) == \
        ("right", "MatMul", "wr", (50, 6), "mxfp4", "rtn", 300)


@pytest.mark.parametrize("patterns, done", [
    ({}, "hy"), ({"dtype": "float", "rules": ["first=mxfp4"]}, "h"), ({"keep_float": ["second"]}, "h"),
    ({"dtype": "float", "rules": "w2=int8"}, "y"), ({"rules": ["*=int8"], "keep_float": ["w1"]}, "y"),
    ({"dtype": "float", "rules": ["w[12]=int8"]}, "hy"), ({"keep_float": ("h",)}, "y"),
])
def test_patterns_match_node_output_and_weight_names(patterns, done):
    report = cast(TWO, **patterns)
    assert "".join(row.output for row in report.rows if row.quantised) == done
    left = [row.reason for row in report.rows if not row.quantised]
    assert all(re.fullmatch("kept float( by '.*')?", reason) for reason in left)


@pytest.mark.parametrize("patterns", [{"rules": ["frist=int8"]}, {"keep_float": ["frist"]},
                                      {"rules": ["first=int4", "frist=int4"]}, {"keep_float": "frist"}])
def test_a_pattern_without_a_match_is_an_error_with_candidates(patterns):
    with pytest.raises(InputError,
                       match="pattern 'frist' matches no weight-bearing node; names it could mean: 'first'"):
        cast(TWO, **patterns)


def test_patterns_do_not_treat_dots_and_case_loosely():
    with pytest.raises(InputError, match="'W1' matches no"):
        cast(TWO, keep_float=["W1"])
    with pytest.raises(InputError, match="'fir.t' matches no"):
        cast(TWO, rules=["fir.t=int8"])


def test_everything_left_out_is_an_error():
    with pytest.raises(InputError,
                       match=r"no weight that can be quantised; MatMul 'first': kept float by '\*'"):
        cast(TWO, keep_float=["*"])


def test_skipped_nodes_have_rows_with_reasons():
    nodes = [
        node("DeformConv", ["c", "k", "o"], ["d"], name="deform"),
        node("MatMul", ["x", "w"], ["h"], name="dense"),
        node("MatMulInteger", ["i", "v"], ["y"], name="integers")
    ]
    proto = model(nodes, [value("c", [1, 4, 5, 5]), value("o", [1, 18, 3, 3]), value("x", [3, 64]),
                          value("i", [3, 8], T.UINT8)],
                  [value("d", [1, 2, 3, 3]), value("h", [3, 4]), value("y", [3, 2], T.INT32)],
                  {"k": weight(2, 4, 3, 3), "w": weight(64, 4), "v": np.ones((8, 2), np.int8)}, opset=19, ir=9)
    rows = rows_by_output(cast(proto))
    assert [(r.status, r.op, r.dtype) for r in rows.values()] == [
        ("skipped", "DeformConv", "float32"), ("quantised", "MatMul", "mxfp4"),
        ("skipped", "MatMulInteger", "int8")]
    assert "not cast yet" in rows["d"].reason and "quantised already" in rows["y"].reason


# -- reaching weights ----------------------------------------------------------------------------------------

W = weight(64, 8)
HALF = W.astype(np.float16)
CODES, STEPS = np.arange(512).astype(np.int8).reshape(64, 8), np.arange(1, 9, dtype=np.float32)


@pytest.mark.parametrize("style", ["native", "portable", "float"])
@pytest.mark.parametrize("nodes, tensors, effective", [
    ([node("Transpose", ["w"], ["t"])], {"w": W.T}, W),
    ([node("Constant", [], ["t"], value=tensor("", W))], {}, W),
    ([node("Constant", [], ["c"], value_floats=W.ravel().tolist()),
      node("Reshape", ["c", "s"], ["t"])], {"s": np.array([64, 8])}, W),
    ([node("Identity", ["w"], ["t"])], {"w": W}, W),
    ([node("Cast", ["w"], ["t"], to=T.FLOAT)], {"w": HALF}, HALF.astype(np.float32)),
    ([node("DequantizeLinear", ["w", "s"], ["t"], axis=1)], {"w": CODES, "s": STEPS}, CODES * STEPS),
], ids=["transpose", "constant", "floats", "identity", "cast", "dequantize"])
def test_weights_reached_through_other_nodes(nodes, tensors, effective, style):
    proto = model([*nodes, node("MatMul", ["x", "t"], ["y"])], {"x": [2, 64]}, {"y": [2, 8]}, tensors,
                  opset=19, ir=9)
    after = cast(proto, dtype="int8", export=style).model
    assert np.array_equal(weight_read(after, "y"), quantize(effective, "int8", 0).dequantize())
    assert not {"w", "c"} & {t.name for t in after.graph.initializer} - {"t"}
    assert sum(n.op_type in ("Transpose", "Cast", "Identity") for n in after.graph.node) == 0


def test_a_shared_weight_is_quantised_once_and_reported_for_every_user():
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="one"),
        node("Identity", ["w"], ["i"]),
        node("MatMul", ["a", "i"], ["b"], name="two"),
        node("MatMul", ["w", "b2"], ["c"], name="left")
    ]
    proto = model(nodes, {"x": [2, 32], "b2": [32, 3]}, {"b": [2, 32], "c": [32, 3]}, {"w": weight(32, 32)})
    report = cast(proto, dtype="mxfp4")
    assert [row.shared for row in report.rows] == [("b",), ("a",), ()]
    after = report.model
    assert node_of(after, "a").input[1] == node_of(after, "b").input[1] == "w_DequantizeLinear_Output"
    assert node_of(after, "c").input[0] == "w_DequantizeLinear_Output_1"
    names = sorted(t.name for t in after.graph.initializer)
    assert names == ["w_quantized", "w_quantized_1", "w_scale", "w_scale_1"]
    assert report.quantised_parameters == 2 * 1024


def test_local_functions_are_inlined():
    function = helper.make_function("local", "Dense", ["a", "b"], ["c"],
                                    [node("Transpose", ["b"], ["t"]),
                                     node("MatMul", ["a", "t"], ["c"])], [helper.make_opsetid("", 17)])
    proto = model([
        node("Dense", ["x", "w"], ["y"], domain="local"),
        node("Dense", ["y", "v"], ["z"], domain="local")
    ], {"x": [2, 32]}, {"z": [2, 8]}, {"w": weight(32, 32), "v": weight(8, 32)},
                  opset=[helper.make_opsetid("", 17),
                         helper.make_opsetid("local", 1)])
    proto.functions.append(function)
    report = cast(proto, dtype="int8")
    assert [row.status for row in report.rows] == ["quantised"] * 2 and not report.model.functions
    assert any("function" in warning for warning in report.warnings)
    given = feeds(proto)
    first, second = (quantize(a.T, "int8", 0).dequantize() for a in (weight(32, 32), weight(8, 32)))
    wanted = given["x"] @ first @ second
    np.testing.assert_allclose(run_onnxruntime(report.model, given)[0], wanted, rtol=1e-4, atol=1e-4)


def branches():
    """An If whose branches use an outer weight and the same tensor names; one has a weight of its own."""
    def branch(name, nodes, tensors=()):
        return helper.make_graph(nodes, name, [], [value("out", [2, 32])], list(tensors))
    then_branch = branch("then", [node("MatMul", ["x", "w"], ["out"])])
    own = [
        node("MatMul", ["x", "own"], ["h"]),
        node("Identity", ["w"], ["wi"]),
        node("MatMul", ["h", "wi"], ["out"])
    ]
    else_branch = branch("else", own, [tensor("own", weight(32, 32, seed=4))])
    return model([
        node("Relu", ["x0"], ["x"]),
        node("If", ["c"], ["y"], then_branch=then_branch, else_branch=else_branch)
    ], [value("x0", [2, 32]), value("c", [], T.BOOL)], {"y": [2, 32]}, {"w": weight(32, 32)})


@pytest.mark.parametrize("style", ["native", "portable", "float"])
def test_weights_in_bodies_are_cast(style):
    report = cast(branches(), dtype="int4", export=style)
    onnx.checker.check_model(report.model, full_check=True)
    assert [row.status for row in report.rows] == ["quantised"] * 3
    assert {row.where for row in report.rows} == {"then_branch of If 'y'", "else_branch of If 'y'"}
    w, own = (quantize(a, "int4", 0).dequantize() for a in (weight(32, 32), weight(32, 32, seed=4)))
    x = rng().standard_normal((2, 32)).astype(np.float32)
    for choice, wanted in ((True, np.maximum(x, 0) @ w), (False, np.maximum(x, 0) @ own @ w)):
        given = {"x0": x, "c": np.array(choice)}
        for run in (run_reference, run_onnxruntime):
            np.testing.assert_allclose(run(report.model, given)[0], wanted, rtol=1e-4, atol=1e-4)
    names = [t.name for t in report.model.graph.initializer]
    assert ("w" in names) == (style == "float" and "w_dequantized" not in names)


def test_weights_in_a_loop():
    body = helper.make_graph(
        [node("MatMul", ["s", "w"], ["s2"], name="step"),
         node("Identity", ["go"], ["go2"])], "body",
        [value("i", [], T.INT64), value("go", [], T.BOOL),
         value("s", [2, 32])], [value("go2", [], T.BOOL), value("s2", [2, 32])],
        [tensor("w", weight(32, 32, scale=0.1))])
    proto = model([node("Loop", ["n", "yes", "x"], ["y"], body=body)], {"x": [2, 32]}, {"y": [2, 32]},
                  {"n": np.array(3), "yes": np.array(True)})
    report = cast(proto, dtype="mxfp4", export="portable")
    assert report.rows[0].where == "body of Loop 'y'" and report.rows[0].quantised
    w, given = quantize(weight(32, 32, scale=0.1), "mxfp4", 0).dequantize(), feeds(proto)
    for run in (run_reference, run_onnxruntime):
        np.testing.assert_allclose(run(report.model, given)[0], given["x"] @ w @ w @ w, rtol=1e-4, atol=1e-4)


def test_a_replaceable_default_is_fixed_and_said_so():
    proto = model([node("MatMul", ["x", "w"], ["y"])], {"x": [2, 64], "w": [64, 8]}, {"y": [2, 8]}, {"w": W})
    for style in ("native", "float"):
        report = cast(proto, export=style)
        assert [v.name for v in report.model.graph.input] == ["x"]
        assert "caller could replace" in report.rows[0].reason


def test_ir_3_where_every_initializer_is_an_input():
    proto = model([node("MatMul", ["x", "w"], ["y"]),
                   node("Add", ["y", "b"], ["z"])], {"x": [2, 64], "w": [64, 8], "b": [8]}, {"z": [2, 8]},
                  {"w": W, "b": weight(8)}, opset=8, ir=3)
    report = cast(proto, dtype="int8")
    onnx.checker.check_model(report.model, full_check=True)
    assert report.model.ir_version == 7 and report.rows[0].reason == ""
    assert cast(proto, export="float").model.ir_version == 3
    given = {"x": rng().standard_normal((2, 64)).astype(np.float32)}
    wanted = given["x"] @ quantize(W, "int8", 0).dequantize() + weight(8)
    np.testing.assert_allclose(run_onnxruntime(report.model, given)[0], wanted, rtol=1e-4, atol=1e-4)


# -- the opset -----------------------------------------------------------------------------------------------

def conv_model(middle, opset, tensors=(), outputs=None):
    """Conv -> the nodes in the middle (from "c" to "y")."""
    stored = {"k": weight(6, 3, 3, 3, scale=0.2), **dict(tensors)}
    return model([node("Conv", ["x", "k"], ["c"]), *middle], {"x": [2, 3, 6, 6]}, outputs or {"y": None},
                 stored, opset=opset, ir=7)


FOUR = {name: np.abs(weight(6, seed=i)) for i, name in enumerate("sbmv")}


@pytest.mark.parametrize("middle, opset, tensors", [
    ([node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"])], 7, FOUR),
    ([node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"])], 9, FOUR),
    ([node("Softmax", ["c"], ["y"], axis=1)], 11, {}),
    ([node("LogSoftmax", ["c"], ["y"], axis=2)], 9, {}),
    ([
        node("Pad", ["c"], ["p"], pads=[0, 0, 1, 1, 0, 0, 1, 1]),
        node("Clip", ["p"], ["q"], min=-0.5, max=0.5),
        node("ReduceMean", ["q"], ["r"], axes=[2, 3], keepdims=1),
        node("Squeeze", ["r"], ["y"], axes=[2])
    ], 9, {}),
    ([node("Upsample", ["c", "z"], ["y"], mode="nearest")], 9, {"z": np.array([1, 1, 2, 2], np.float32)}),
    ([node("Dropout", ["c"], ["y"], ratio=0.4)], 10, {}),
])
@pytest.mark.parametrize("style", ["portable", "float"])
def test_old_models_compute_the_same_after_the_opset_was_raised(middle, opset, tensors, style):
    proto = conv_model(middle, opset, tensors)
    wanted_model = copy_of(proto)
    kernel = quantize(weight(6, 3, 3, 3, scale=0.2).reshape(6, 27), "int4", 1).dequantize()
    wanted_model.graph.initializer[0].CopyFrom(tensor("k", kernel.reshape(6, 3, 3, 3)))
    report = cast(proto, dtype="int4", export=style)
    assert report.model.opset_import[0].version == (21 if style == "portable" else opset)
    given = feeds(proto)
    for a, b in zip(run_onnxruntime(report.model, given), run_onnxruntime(wanted_model, given), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op, operands, opset, attributes", [
    ("Upsample", ["c", "z"], 9, {"mode": "linear"}),
    ("Resize", ["c", "z"], 10, {"mode": "linear"}),
    ("Hardmax", ["c"], 11, {}),
    ("GroupNormalization", ["c", "s", "b"], 18, {"num_groups": 3}),
])
def test_conversions_that_would_change_values_are_not_made(op, operands, opset, attributes):
    tensors = {"z": np.array([1, 1, 2, 2], np.float32), "s": weight(3), "b": weight(3)}
    proto = conv_model([node(op, operands, ["y"], **attributes)], opset, tensors)
    report = cast(proto, dtype="mxfp4")
    assert report.model.opset_import[0].version == opset and report.rows[0].encoding == "float32 values"
    reason = f"the opset cannot be raised from {opset} to 24: converting {op} would change values"
    assert report.rows[0].reason == reason


def test_the_opset_is_raised_only_when_needed():
    assert cast(matmul_model(W, opset=21, ir=10), dtype="int4").warnings == ()
    older = cast(matmul_model(W, opset=20, ir=9), dtype="int4")
    assert older.warnings == ("opset raised from 20 to 21",)
    assert cast(TWO, dtype="mxfp4", keep_float=["second"], export="float").warnings == ()
    newest = cast(matmul_model(W, opset=24, ir=13), dtype="int8").model
    assert (newest.opset_import[0].version, newest.ir_version) == (24, 13)


def test_notes_survive_a_raised_opset():
    """onnx.version_converter drops metadata of nodes and tensors; exporters write where a node came from."""
    proto = branches()
    proto.ir_version = 10
    inner = proto.graph.node[1].attribute[0].g.node[0]
    for entry in (proto.graph, proto.graph.node[0], inner, proto.graph.input[0]):
        entry.metadata_props.add(key="from", value="here")
        entry.doc_string = "text"
    after = cast(proto, dtype="mxfp4").model
    nodes = [n for attribute in after.graph.node[-1].attribute for n in attribute.g.node]
    inner_after = next(n for n in nodes if n.output[0] == inner.output[0] and n.doc_string)
    for entry in (after.graph, node_of(after, "x"), inner_after, after.graph.input[0]):
        assert [(p.key, p.value) for p in entry.metadata_props] == [("from", "here")]
        assert entry.doc_string == "text"


def test_other_domains_stay():
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    proto = model([node("MatMul", ["x", "w"], ["h"]), node("FastGelu", ["h"], ["y"], domain="com.microsoft")],
                  {"x": [2, 64]}, {"y": [2, 8]}, {"w": W}, opset=imports)
    after = cast(proto, dtype="e4m3fn_float32_channel").model
    assert {(o.domain, o.version) for o in after.opset_import} == {("", 19), ("com.microsoft", 1)}
    run_onnxruntime(after, feeds(proto))


# -- what else the result says -------------------------------------------------------------------------------

def test_metadata():
    from refq import __version__
    proto = copy_of(TWO)
    helper.set_model_props(proto, {"author": "me", "refq.dtype": "old"})
    after = cast(proto, dtype="int4", export="portable").model
    props = {p.key: p.value for p in after.metadata_props}
    assert props == {"author": "me", "refq.version": __version__, "refq.dtype": "int4", "refq.method": "rtn",
                     "refq.export": "portable", "refq.rounding": "rne", "refq.recipe": "exact"} | {
                         "refq.layers": json.dumps({"h": "int4:rtn", "y": "int4:rtn"})}


def test_names_of_the_model_are_not_disturbed():
    proto = model([
        node("MatMul", ["x", "w"], ["w_quantized"], name="w_DequantizeLinear"),
        node("Relu", ["w_quantized"], ["w_scale"])
    ], {"x": [2, 64]}, {"w_scale": [2, 8]}, {"w": W})
    after = cast(proto, dtype="int8").model
    assert {"w_quantized_1", "w_scale_1"} == {t.name for t in after.graph.initializer}
    assert [(n.op_type, n.name) for n in after.graph.node] == [("DequantizeLinear", "w_DequantizeLinear_1"),
                                                              ("MatMul", "w_DequantizeLinear"), ("Relu", "")]
    run_onnxruntime(after, feeds(proto))


def test_the_input_proto_is_not_changed():
    before = TWO.SerializeToString()
    cast(TWO, dtype="mxfp4")
    cast(TWO, dtype="mxfp4", export="float")
    assert TWO.SerializeToString() == before


def test_dequantizing_nodes_stand_before_their_user():
    after = cast(TWO, dtype="int8").model
    assert [n.op_type for n in after.graph.node] == ["DequantizeLinear", "MatMul", "DequantizeLinear", "Gemm"]


def test_rounding_and_recipe_reach_the_quantiser():
    report = cast(matmul_model(W), dtype="int8", rounding="rtz", recipe="exact")
    assert np.array_equal(weight_read(report.model, "y"), quantize(W, "int8", 0, "rtz").dequantize())
    assert report.rounding == "rtz" and report.recipe == "exact"


def test_progress():
    told = []
    cast(TWO, progress=lambda done, total, name: told.append((done, total, name)))
    assert told == [(1, 2, "w1"), (2, 2, "w2")]
    cast(TWO, progress=True)


# -- files ---------------------------------------------------------------------------------------------------

def test_from_file_to_file(tmp_path):
    source, target = tmp_path / "m.onnx", tmp_path / "q.onnx"
    onnx.save(TWO, source)
    report = cast(source, str(target), dtype="mxfp4")
    assert report.model is None and (report.source, report.target) == (str(source), str(target))
    assert (report.source_bytes, report.target_bytes) == (source.stat().st_size, target.stat().st_size)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "q.onnx"]
    assert onnx.load(target) == cast(TWO, dtype="mxfp4").model
    first = target.read_bytes()
    cast(source, target, dtype="mxfp4")
    assert target.read_bytes() == first


def test_the_file_has_ordinary_permissions(tmp_path):
    onnx.save(TWO, tmp_path / "m.onnx")
    (tmp_path / "plain").write_text("")
    cast(tmp_path / "m.onnx", tmp_path / "q.onnx")
    assert (tmp_path / "q.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode


def external(tmp_path, proto=TWO):
    onnx.save_model(copy_of(proto), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin",
                    size_threshold=0)
    return tmp_path / "m.onnx"


def test_external_data_in(tmp_path):
    report = cast(external(tmp_path), tmp_path / "q.onnx", dtype="mxfp4")
    assert report.source_bytes > 64 * 40 * 4 and sorted(os.listdir(tmp_path)) == ["m.bin", "m.onnx", "q.onnx"]
    assert onnx.load(tmp_path / "q.onnx") == cast(TWO, dtype="mxfp4").model


def test_external_data_out(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "EMBED_LIMIT", 1000)
    bias = model([node("MatMul", ["x", "w"], ["h"]),
                  node("Add", ["h", "b"], ["y"])], {"x": [2, 64]}, {"y": [2, 2000]},
                 {"w": weight(64, 2000), "b": weight(2000)})
    for _ in range(2):                                          # a second run replaces, never appends
        report = cast(external(tmp_path, bias), tmp_path / "q.onnx", dtype="int8")
    assert sorted(os.listdir(tmp_path)) == ["m.bin", "m.onnx", "q.onnx", "q.onnx.data"]
    assert report.target_bytes == sum((tmp_path / name).stat().st_size for name in ("q.onnx", "q.onnx.data"))
    proto = onnx.load(tmp_path / "q.onnx", load_external_data=False)
    entries = [{e.key: e.value for e in t.external_data} for t in proto.graph.initializer if t.external_data]
    assert len(entries) == 3 and all(
        int(e["offset"]) % 4096 == 0 and e["location"] == "q.onnx.data" for e in entries)
    given = feeds(bias)
    wanted = given["x"] @ quantize(weight(64, 2000), "int8", 0).dequantize() + weight(2000)
    np.testing.assert_allclose(
        run_onnxruntime(str(tmp_path / "q.onnx"), given)[0], wanted, rtol=1e-3, atol=1e-3)


def test_small_external_tensors_come_along(tmp_path, monkeypatch):
    """A tensor too small for the data file must not go on pointing at the source's."""
    monkeypatch.setattr(files, "EMBED_LIMIT", 1000)
    proto = model([node("MatMul", ["x", "w"], ["h"]),
                   node("Add", ["h", "b"], ["y"])], {"x": [2, 64]}, {"y": [2, 80]},
                  {"w": weight(64, 80), "b": weight(80)})
    source = external(tmp_path, proto)
    cast(source, tmp_path / "q.onnx", dtype="int8")
    os.remove(tmp_path / "m.bin")
    stored = {t.name: t for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert np.array_equal(numpy_helper.to_array(stored["b"]), weight(80))


def test_the_own_input_is_never_overwritten(tmp_path, monkeypatch):
    source = external(tmp_path)
    before = source.read_bytes()
    os.symlink(source, tmp_path / "link.onnx")
    for target in (source, tmp_path / "." / "m.onnx", tmp_path / "link.onnx", tmp_path / "m.bin"):
        with pytest.raises(InputError, match="would overwrite the model's own file"):
            cast(source, target)
    os.rename(tmp_path / "m.bin", tmp_path / "new.onnx.data")
    proto = onnx.load(source, load_external_data=False)
    for t in proto.graph.initializer:
        next(e for e in t.external_data if e.key == "location").value = "new.onnx.data"
    source.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="would overwrite the model's own file"):
        cast(source, tmp_path / "new.onnx")
    assert before != b"" and not (tmp_path / "new.onnx").exists()


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    target = tmp_path / "q.onnx"
    target.write_bytes(b"old")
    monkeypatch.setattr("refq.models.deliver._same", lambda *_: False)
    with pytest.raises(RuntimeError, match="reads back differently"):
        cast(TWO, target)
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["q.onnx"]


def test_a_full_disk(tmp_path, monkeypatch):
    (tmp_path / "q.onnx").write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(InputError, match="cannot write .*q.onnx.*: No space left on device"):
        cast(TWO, tmp_path / "q.onnx")
    assert (tmp_path / "q.onnx").read_bytes() == b"old" and os.listdir(tmp_path) == ["q.onnx"]


# -- bad input -----------------------------------------------------------------------------------------------

def write(tmp_path, data, name="m.onnx"):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


@pytest.mark.parametrize("data, message",
                         [(b"", "no IR version"), (b"hello, I am text\n" * 9, "not an ONNX model"),
                          (b"\x08\x08" + b"\0" * 40, "ONNX model"),
                          (TWO.SerializeToString()[:-300], "cut short|cannot be read|is not an ONNX model"),
                          (TWO.SerializeToString()[:20], "cut short|is not an ONNX model|has no nodes")])
def test_damaged_files(tmp_path, data, message):
    with pytest.raises(InputError, match=message):
        cast(write(tmp_path, data), tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


def test_missing_files_and_wrong_arguments(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        cast(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="is not a file"):
        cast(tmp_path)
    with pytest.raises(InputError, match="not as int"):
        cast(5)
    with pytest.raises(InputError, match="directory .*nowhere.* does not exist"):
        cast(TWO, tmp_path / "nowhere" / "q.onnx")
    with pytest.raises(InputError, match="is a directory"):
        cast(TWO, tmp_path)
    with pytest.raises(InputError, match="is not an ONNX model"):
        cast(onnx.ModelProto())


def test_missing_external_data(tmp_path):
    source = external(tmp_path)
    os.remove(tmp_path / "m.bin")
    with pytest.raises(InputError, match="data of tensor 'w1' cannot be read.*m.bin"):
        cast(source, tmp_path / "q.onnx")


def test_short_external_data(tmp_path):
    source = external(tmp_path)
    (tmp_path / "m.bin").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="data of tensor 'w1' cannot be read"):
        cast(source, tmp_path / "q.onnx")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname"])
def test_external_data_outside_the_models_folder_is_not_read(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(bytes(64 * 40 * 4 * 2))
    (tmp_path / "in").mkdir()
    source = external(tmp_path / "in")
    proto = onnx.load(source, load_external_data=False)
    for stored in proto.graph.initializer:
        next(e for e in stored.external_data if e.key == "location").value = location
    source.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="data of tensor 'w1' cannot be read"):
        cast(source, tmp_path / "q.onnx")


@pytest.mark.parametrize("names, message",
                         [({"dtype": "mxfp5"}, "'mxfp5' is not known; nearest names: mxfp"),
                          ({"dtype": "fp8"}, "ambiguous"),
                          ({"method": "magic"}, "method 'magic' is not known; allowed are rtn, ed, gptq, qronos"),
                          ({"export": "onnx"}, "export style 'onnx'"), ({"rounding": "nearest"}, "nearest"),
                          ({"recipe": "other"}, "recipe 'other'"), ({"rounding": "sra"}, "random")])
def test_unknown_names_are_refused_before_anything_is_read(names, message):
    with pytest.raises(InputError, match=message):
        cast("no-such-file.onnx", **names)


def test_a_model_without_weights():
    with pytest.raises(InputError, match="no layer whose weight is constant"):
        cast(model([node("Relu", ["x"], ["y"])], {"x": [1]}, {"y": [1]}))
    with pytest.raises(InputError, match="no weight that can be quantised; MatMulInteger 'y': its weights are"):
        cast(model([node("MatMulInteger", ["x", "w"], ["y"])], [value("x", [2, 8], T.UINT8)],
                   [value("y", [2, 4], T.INT32)], {"w": np.ones((8, 4), np.int8)}))


def test_weights_that_are_not_finite():
    array = W.copy()
    array[3, 1] = np.nan
    proto = copy_of(TWO)
    proto.graph.initializer[0].CopyFrom(
        tensor("w1",
               np.where(np.eye(64, 40) > 0, np.inf, weight(64, 40)).astype(np.float32)))
    with pytest.raises(InputError, match="weight 'w1' of MatMul 'first' holds inf"):
        cast(proto)
    assert cast(proto, keep_float=["w1"]).rows[1].quantised
    with pytest.raises(InputError, match="holds nan"):
        cast(matmul_model(array))


def test_values_beyond_the_files_type_are_not_written():
    """65504 / 7 rounds up to the float16 scale 9360, and 7 * 9360 = 65520 is infinity in float16."""
    proto = model([node("MatMul", ["x", "w"], ["h"]),
                   node("MatMul", ["h", "v"], ["y"])], [value("x", [2, 32], T.FLOAT16)],
                  [value("y", [2, 4], T.FLOAT16)],
                  {"w": np.full((32, 4), 65504, np.float16), "v": weight(4, 4, dtype=np.float16)})
    rows = rows_by_output(cast(proto, dtype="int4"))
    assert rows["h"].status == "skipped" and "go beyond float16" in rows["h"].reason and rows["y"].quantised


def test_a_source_that_onnx_does_not_accept_is_a_note():
    proto = conv_model([node("Relu", ["c"], ["y"])], 17)     # an output without a shape
    report = cast(proto, dtype="int8", export="float")
    assert any("onnx.checker objects to the source" in warning for warning in report.warnings)
