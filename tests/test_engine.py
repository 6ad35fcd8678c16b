"""The numpy engine: what it prepares, what it refuses, what it keeps, and batches."""

import sys
import tracemalloc
import warnings

import numpy as np
import onnx
import pytest
from engine_models import agree, build, free, normal, single, value
from onnx import TensorProto, helper

from refq.errors import InputError
from refq.models import engine as engine_module
from refq.models.engine import ENGINES, Engine, OnnxRuntime, run_batches


# -- preparing -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("opset", (7, 8, 9, 11, 13, 14, 15))
def test_batch_normalization_of_every_opset(opset):
    statistics = dict(zip("smbv", np.abs(normal(4, 3)) + 0.1))
    node = helper.make_node("BatchNormalization", ["x", *statistics], ["y"])
    x = normal(2, 3, 4, 5)
    agree(build([node], [value("x", x)], ["y"], statistics, opset, ir=7), {"x": x})


@pytest.mark.parametrize("opset", (7, 11, 12, 13))
@pytest.mark.parametrize("op", ("Softmax", "LogSoftmax", "Hardmax"))
def test_softmax_family_of_every_opset(op, opset):
    for attributes in ({}, {"axis": 0}, {"axis": 1}, {"axis": 2}, *([{"axis": -2}] if opset > 10 else [])):
        agree(*single(op, [normal(2, 3, 4)], opset, **attributes))


@pytest.mark.parametrize("mode", ("nearest", "linear"))
@pytest.mark.parametrize("op, opset", (("Upsample", 9), ("Resize", 10)))
def test_old_resize_keeps_its_places(op, opset, mode):
    x = normal(1, 2, 4, 6)
    for scales in ([1, 1, 2, 2], [1, 1, 1.5, 2.5]):
        node = helper.make_node(op, ["x", "scales"], ["y"], mode=mode)
        agree(build([node], [value("x", x)], ["y"], {"scales": np.float32(scales)}, opset, ir=7), {"x": x})


def test_opset_that_cannot_be_raised():
    """An axis of Add-6 that broadcasting of today cannot express."""
    node = helper.make_node("Add", ["x", "c"], ["y"], broadcast=1, axis=1)
    x = normal(2, 3, 4, 5)
    model = build([node], [value("x", x)], ["y"], {"c": normal(3)}, opset=6, ir=3)
    with pytest.raises(InputError, match="opset 6; refq runs opset 14 and later"):
        Engine(model)


def test_the_given_model_is_left_alone():
    model, _ = single("Softmax", [normal(2, 3)], opset=11)
    before = model.SerializeToString(deterministic=True)
    assert Engine(model).model.opset_import[0].version == 14
    assert model.SerializeToString(deterministic=True) == before


def test_the_standard_domain_by_its_other_name():
    model, feeds = single("Neg", [normal(3)])
    model.graph.node[0].domain = model.opset_import[0].domain = "ai.onnx"
    np.testing.assert_array_equal(Engine(model).run(feeds)["y0"], -feeds["a"])
    assert model.graph.node[0].domain == "ai.onnx"


@pytest.mark.parametrize("op", ("Softmax", "Hardmax"))
def test_local_functions_of_another_opset(op):
    """Softmax-11 flattens what Softmax-13 does not; onnxruntime takes the model's opset for both."""
    body = [helper.make_node(op, ["a"], ["b"])]
    function = helper.make_function("own", "Old", ["a"], ["b"], body, [helper.make_opsetid("", 11)])
    x = normal(2, 3, 4)
    model = build([helper.make_node("Old", ["x"], ["y"], domain="own")], [value("x", x)], ["y"],
                  functions=[function])
    model.opset_import.append(helper.make_opsetid("own", 1))
    flat, feeds = single(op, [x.reshape(2, 12)])
    expected = Engine(flat).run(feeds)["y0"].reshape(x.shape)
    np.testing.assert_allclose(Engine(model).run({"x": x})["y"], expected, rtol=1e-6)


# -- what is refused -----------------------------------------------------------------------------------------

def test_refuses_an_unknown_operator():
    node = helper.make_node("MatMulNBits", ["x"], ["y"], domain="com.microsoft")
    model = build([node], [value("x", normal(2, 3))], ["y"])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(InputError, match="MatMulNBits"):
        Engine(model)


def test_refuses_what_is_no_model(tmp_path):
    junk, empty = tmp_path / "junk.onnx", tmp_path / "empty.onnx"
    junk.write_bytes(b"\x07not a model")
    empty.touch()
    for given in (junk, empty):
        with pytest.raises(InputError, match="is not an ONNX model"):
            Engine(given)
    with pytest.raises(InputError, match="does not exist"):
        Engine(str(tmp_path / "missing.onnx"))
    with pytest.raises(InputError, match="not as bytes"):
        Engine(b"")


def test_refuses_a_tensor_that_nothing_makes():
    model = build([helper.make_node("Neg", ["nowhere"], ["y"], "only")], [], ["y"])
    with pytest.raises(InputError, match=r"node 'only' \(Neg\) reads 'nowhere', which is no input"):
        Engine(model).run({})


# -- feeds ---------------------------------------------------------------------------------------------------

FEEDS = build(
    [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "bias"], ["y"])],
    [free("x", "n", 3), free("bias", "n", 1)], ["y"], {"w": np.eye(3, dtype=np.float32)},
)
GOOD = {"x": np.ones((2, 3), np.float32), "bias": np.ones((2, 1), np.float32)}


@pytest.mark.parametrize("change, message", [
    ({"z": GOOD["x"]}, "no input 'z'; its inputs are 'x', 'bias'"),
    ({"w": GOOD["x"]}, "no input 'w'"),
    ({"x": None}, "no value for input 'x'"),
    ({"x": GOOD["x"].astype(np.float64)}, "input 'x' is float64; the model takes float32"),
    ({"x": GOOD["x"].astype(np.uint8)}, "input 'x' is uint8; the model takes float32"),
    ({"x": GOOD["x"].astype(">f4")}, "input 'x' is >f4"),
    ({"x": [[1.0, 2.0, 3.0]]}, "input 'x' is a list"),
    ({"x": GOOD["x"][:, :2]}, r"input 'x' has shape \(2, 2\); the model takes \(n, 3\)"),
    ({"x": GOOD["x"][0]}, r"input 'x' has shape \(3,\); the model takes \(n, 3\)"),
    ({"bias": GOOD["bias"][:1]}, r"input 'bias' has shape \(1, 1\); the model takes \(2, 1\)"),
])
def test_feeds_are_checked(change, message):
    feeds = {name: array for name, array in {**GOOD, **change}.items() if array is not None}
    with pytest.raises(InputError, match=message):
        Engine(FEEDS).run(feeds)


def test_a_dim_named_twice():
    square = build([helper.make_node("Neg", ["x"], ["y"])], [free("x", "n", "n")], ["y"])
    assert Engine(square).run({"x": normal(2, 2)})["y"].shape == (2, 2)
    with pytest.raises(InputError, match=r"shape \(2, 3\); the model takes \(n, n\)"):
        Engine(square).run({"x": normal(2, 3)})


def test_unknown_output_name():
    with pytest.raises(InputError, match="no tensor 'nothing'; its outputs are 'y'"):
        Engine(FEEDS).run(GOOD, ["nothing"])


def test_a_default_input_may_be_left_out_or_given():
    node = helper.make_node("Mul", ["x", "gain"], ["y"])
    model = build([node], [free("x", 2), free("gain", 2)], ["y"], {"gain": np.float32([2, 3])})
    engine, x = Engine(model), np.float32([1, 1])
    assert engine.run({"x": x})["y"].tolist() == [2, 3]
    assert engine.run({"x": x, "gain": np.float32([5, 7])})["y"].tolist() == [5, 7]
    with pytest.raises(ValueError, match="read-only"):
        engine.run({"x": x}, ["gain"])["gain"][0] = 7


# -- running: which nodes, which tensors, which memory -------------------------------------------------------

def chain(length, op="Relu"):
    nodes = [helper.make_node(op, [f"t{i}"], [f"t{i + 1}"]) for i in range(length)]
    return build(nodes, [free("t0", "n")], [f"t{length}"])


def test_inner_tensors_by_name_in_the_order_asked_for():
    x = np.float32([1.5, -2])
    got = Engine(chain(4, "Neg")).run({"t0": x}, ["t3", "t0", "t2"])
    assert list(got) == ["t3", "t0", "t2"]
    assert [array.tolist() for array in got.values()] == [(-x).tolist(), x.tolist(), x.tolist()]


def test_nodes_that_the_outputs_do_not_need_do_not_run():
    broken = helper.make_node("Reshape", ["x", "shape"], ["bad"], "broken")
    model = build([helper.make_node("Neg", ["x"], ["y"]), broken], [value("x", normal(3))], ["y", "bad"],
                  {"shape": np.int64([2])})
    engine = Engine(model)
    assert list(engine.run({"x": normal(3)}, ["y"])) == ["y"]
    with pytest.raises(InputError, match=r"node 'broken' \(Reshape\) failed"):
        engine.run({"x": normal(3)})


def test_an_omitted_output_is_no_omitted_input():
    """Both are named "": Clip has no lower bound, and nobody needs what the LSTM makes."""
    nodes = [helper.make_node("LSTM", ["x", "x", "x"], ["", "h"], "broken", hidden_size=1),
             helper.make_node("Clip", ["x", "", "most"], ["y"])]
    model = build(nodes, [free("x", "n")], ["y"], {"most": np.float32(1)})
    assert Engine(model).run({"x": np.float32([-2, 2])})["y"].tolist() == [-2, 1]


def test_results_are_dropped_after_their_last_use():
    engine, x = Engine(chain(30)), normal(1 << 18)
    tracemalloc.start()
    engine.run({"t0": x})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * x.nbytes


def test_results_in_a_body_are_dropped_after_their_last_use():
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(30)]
    bodies = {name: helper.make_graph(nodes, name, [], [free("t30", "n")])
              for name in ("then_branch", "else_branch")}
    model = build([helper.make_node("If", ["which"], ["y"], **bodies)],
                  [free("t0", "n"), value("which", dtype=TensorProto.BOOL, dims=[])], ["y"])
    engine, x = Engine(model), normal(1 << 18)
    tracemalloc.start()
    engine.run({"t0": x, "which": np.array(True)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * x.nbytes


def test_constants_of_a_body_are_computed_once(monkeypatch):
    nodes = [helper.make_node("Identity", ["go"], ["on"]),
             helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
             helper.make_node("Mul", ["h", "w"], ["g"])]
    body = helper.make_graph(
        nodes, "body",
        [value("i", dtype=TensorProto.INT64, dims=[]), value("go", dtype=TensorProto.BOOL, dims=[]),
         free("h", 2)],
        [value("on", dtype=TensorProto.BOOL, dims=[]), free("g", 2)],
        [onnx.numpy_helper.from_array(np.int8([1, 2]), "q"),
         onnx.numpy_helper.from_array(np.float32(2), "s")])
    model = build([helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)], [free("x", 2)], ["y"],
                  {"n": np.int64(3)})
    ran, run = [], engine_module._run_operator
    monkeypatch.setattr(engine_module, "_run_operator",
                        lambda operator, values: (ran.append(operator.op_type), run(operator, values))[1])
    engine = Engine(model)
    for _ in range(2):
        assert engine.run({"x": np.float32([1, 1])})["y"].tolist() == [8, 64]
    assert ran.count("DequantizeLinear") == 1 and ran.count("Mul") == 6


def test_subgraphs_see_outer_tensors():
    """`inner` is used by the branches only, `late` only as a branch's output."""
    branch = {
        "then_branch": helper.make_graph(
            [helper.make_node("Neg", ["inner"], ["a"])], "then", [], [free("a", 2)]
        ),
        "else_branch": helper.make_graph([], "else", [], [free("late", 2)]),
    }
    nodes = [helper.make_node("Relu", ["x"], ["inner"]), helper.make_node("Exp", ["x"], ["late"]),
             helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Exp", ["n"], ["unused"]),
             helper.make_node("If", ["which"], ["y"], **branch)]
    x = np.float32([1, -1])
    model = build(nodes, [value("x", x), value("which", dtype=TensorProto.BOOL, dims=[])], ["y"])
    assert Engine(model).run({"x": x, "which": np.array(True)})["y"].tolist() == [-1, 0]
    assert Engine(model).run({"x": x, "which": np.array(False)})["y"].tolist() == np.exp(x).tolist()


def test_overrides_reach_local_functions():
    """onnx.reference alone would call its own MaxPool there, wrong for SAME_LOWER with a stride."""
    body = [helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2], strides=[2], auto_pad="SAME_LOWER")]
    function = helper.make_function("own", "Pool", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    call, x = helper.make_node("Pool", ["x"], ["y"], domain="own"), np.float32([[[5, 1, 2, 3, 4]]])
    model = build([call], [value("x", x)], ["y"], functions=[function])
    model.opset_import.append(helper.make_opsetid("own", 1))
    assert Engine(model).run({"x": x})["y"].tolist() == [[[5, 2, 4]]]


def test_overflow_is_inf_without_a_warning():
    model, feeds = single("Exp", [np.float32([1000, -1000, np.inf])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Engine(model).run(feeds)["y0"].tolist() == [np.inf, 0, np.inf]


def test_random_nodes_are_not_computed_once():
    node = helper.make_node("RandomNormal", [], ["y"], shape=[8])
    engine = Engine(build([node], [], ["y"]))
    assert engine.run({})["y"].tolist() != engine.run({})["y"].tolist()


# -- node by node --------------------------------------------------------------------------------------------

def branched():
    """(model, feeds): a branch, a sum, a weight behind DequantizeLinear, an If that uses outer tensors, an
    output in the middle, and a node that nobody needs."""
    make = helper.make_node
    branches = {name: helper.make_graph([make(op, ["r", "early"], [name])], name, [], [free(name, "n", 4)])
                for name, op in (("then_branch", "Add"), ("else_branch", "Mul"))}
    nodes = [make("DequantizeLinear", ["q", "s"], ["w"]), make("MatMul", ["x", "w"], ["m"], "product"),
             make("Relu", ["m"], ["r"]), make("Neg", ["x"], ["early"]), make("Add", ["m", "r"], ["sum"]),
             make("Exp", ["sum"], ["unused"]), make("If", ["which"], ["y"], **branches),
             make("Sub", ["y", "sum"], ["z"])]
    weights = {"q": np.arange(16, dtype=np.int8).reshape(4, 4), "s": np.float32(0.25)}
    inputs = [free("x", "n", 4), value("which", dtype=TensorProto.BOOL, dims=[])]
    model = build(nodes, inputs, ["z", "r"], weights)
    return model, {"x": normal(3, 4), "which": np.array(True)}


@pytest.mark.parametrize("engine_type", ENGINES.values(), ids=ENGINES)
def test_steps_say_who_reads_what_for_the_last_time(engine_type):
    engine = started(engine_type, branched()[0])
    steps = [(step.node.output[0], set(step.reads), set(step.finished)) for step in engine.steps()]
    assert steps == [
        ("m", {"x"}, set()), ("r", {"m"}, set()), ("early", {"x"}, {"x"}), ("sum", {"m", "r"}, {"m"}),
        ("y", {"which", "r", "early"}, {"which", "early"}), ("z", {"y", "sum"}, {"y", "sum"}),
    ]
    assert [step.node.output[0] for step in engine.steps(["m"])] == ["m"]
    assert engine.constants.keys() == {"q", "s", "w"}
    with pytest.raises(InputError, match="no tensor 'nothing'"):
        engine.steps(["nothing"])


@pytest.mark.parametrize("engine_type", ENGINES.values(), ids=ENGINES)
def test_nodes_over_batches(engine_type):
    """Node at a time over all batches is batch at a time over all nodes, and frees what it said."""
    model, feeds = branched()
    engine = started(engine_type, model)
    several = [{**feeds, "x": normal(2, 4)}, feeds, {**feeds, "which": np.array(False)}]
    batches = [engine.start(feeds) for feeds in several]
    for step in engine.steps():
        for values in batches:
            assert set(step.reads) <= values.keys()
            made = engine.run_node(step.node, {name: values[name] for name in step.reads})
            assert list(made) == list(step.node.output)
            values.update(made)
            for name in step.finished:
                del values[name]
    for feeds, values in zip(several, batches):
        assert values.keys() == {"z", "r"}
        for name, array in engine.run(feeds).items():
            np.testing.assert_allclose(values[name], array, 1e-6, 1e-6)


@pytest.mark.parametrize("engine_type", ENGINES.values(), ids=ENGINES)
def test_a_weight_replaced_for_one_run(engine_type):
    model, feeds = branched()
    engine = started(engine_type, model)
    product = next(step.node for step in engine.steps() if step.node.name == "product")
    for w in (np.eye(4, dtype=np.float32), normal(4, 4)):
        got = engine.run_node(product, {"x": feeds["x"], "w": w})["m"]
        np.testing.assert_allclose(got, feeds["x"] @ w, 1e-6, 1e-6)
    got = engine.run_node(product, feeds)["m"]
    np.testing.assert_allclose(got, feeds["x"] @ engine.constants["w"], 1e-5, 1e-5)


@pytest.mark.parametrize("engine_type", ENGINES.values(), ids=ENGINES)
def test_a_node_without_what_it_reads(engine_type):
    engine = started(engine_type, branched()[0])
    with pytest.raises(InputError, match=r"node 'product' \(MatMul\) reads 'x'"):
        engine.run_node(engine.steps()[0].node, {})


# -- onnxruntime ---------------------------------------------------------------------------------------------

def started(engine_type, model):
    if engine_type is OnnxRuntime:
        pytest.importorskip("onnxruntime")
    return engine_type(model)


def cells():
    """(model, feeds): Conv, pools, a bidirectional LSTM, a Loop with scan outputs, a local function."""
    make = helper.make_node
    body = helper.make_graph(
        [make("Identity", ["go"], ["on"]), make("Mul", ["h", "half"], ["g"]), make("Exp", ["g"], ["e"])],
        "body", [value("i", dtype=TensorProto.INT64, dims=[]), value("go", dtype=TensorProto.BOOL, dims=[]),
         free("h", "n", 8)],
        [value("on", dtype=TensorProto.BOOL, dims=[]), free("g", "n", 8), free("e", "n", 8)])
    act = helper.make_function("own", "Act", ["a"], ["b"], [make("Gelu", ["a"], ["b"])],
                               [helper.make_opsetid("", 20)])
    nodes = [make("Conv", ["x", "k", "kb"], ["c"], pads=[1, 1, 1, 1], group=2),
             make("Act", ["c"], ["a"], domain="own"),
             make("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
             make("GlobalAveragePool", ["p"], ["v"]), make("Flatten", ["v"], ["f"]),
             make("Unsqueeze", ["f", "axis"], ["u"]),
             make("LSTM", ["u", "w", "r", "b"], ["", "yh"], hidden_size=4, direction="bidirectional"),
             make("Transpose", ["yh"], ["t"], perm=[1, 0, 2]), make("Reshape", ["t", "shape"], ["s"]),
             make("Loop", ["three", "", "s"], ["last", "all"], body=body), make("Softmax", ["last"], ["y"])]
    weights = {"k": normal(6, 2, 3, 3), "kb": normal(6), "axis": np.int64([0]), "w": normal(2, 16, 6),
               "r": normal(2, 16, 4), "b": normal(2, 32), "shape": np.int64([-1, 8]), "three": np.int64(3),
               "half": np.float32(0.5)}
    model = build(nodes, [free("x", "n", 4, 8, 8)], ["y", "all"], weights, 20, 9, functions=[act])
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model, {"x": normal(3, 4, 8, 8)}


@pytest.mark.parametrize("made", (branched, cells), ids=lambda made: made.__name__)
def test_onnxruntime_is_numpy_up_to_rounding(made):
    model, feeds = made()
    ours, theirs = Engine(model), started(OnnxRuntime, model)
    names = [name for step in ours.steps() for name in step.node.output if name]
    assert names == [name for step in theirs.steps() for name in step.node.output if name]
    got, expected = ours.run(feeds, names), theirs.run(feeds, names)
    by_node = theirs.start(feeds)
    for step in theirs.steps():
        by_node.update(theirs.run_node(step.node, by_node))
    for name in names:
        assert got[name].dtype == expected[name].dtype
        np.testing.assert_allclose(got[name], expected[name], 1e-5, 1e-5, err_msg=name)
        np.testing.assert_array_equal(by_node[name], expected[name], err_msg=name)
    assert list(theirs.run(feeds)) == list(ours.run(feeds)) == list(ours.outputs)


def test_onnxruntime_gives_any_tensor():
    model, feeds = branched()
    engine = started(OnnxRuntime, model)
    got = engine.run(feeds, ["x", "q", "w", "z"])
    assert list(got) == ["x", "q", "w", "z"] and got["x"] is feeds["x"]
    np.testing.assert_array_equal(got["w"], np.arange(16).reshape(4, 4) / 4)
    whole = run_batches(chain(3), {"t0": normal(5)}, 2, engine=OnnxRuntime)
    assert whole["t3"].shape == (5,)
    with pytest.raises(InputError, match="no tensor 'nothing'"):
        engine.run(feeds, ["nothing"])
    with pytest.raises(InputError, match="input 'x' is float64"):
        engine.run({**feeds, "x": feeds["x"].astype(np.float64)})


def test_onnxruntime_keeps_the_opset():
    """What the converter cannot raise, onnxruntime computes as it is; Upsample-9 linear included."""
    model, feeds = single("BatchNormalization", [normal(2, 3), *(np.abs(normal(4, 3)) + 0.1)], 9)
    theirs = started(OnnxRuntime, model)
    assert theirs.model.opset_import[0].version == 9
    np.testing.assert_allclose(theirs.run(feeds)["y0"], Engine(model).run(feeds)["y0"], 1e-5, 1e-5)


def test_onnxruntime_runs_nodes_on_small_types():
    """E4M3 codes and their scales go in as initializers; numpy has no arrays that onnxruntime would take."""
    codes = np.float32([[1, 2], [-3, 0.5]]).astype(helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN))
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
             helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = build(nodes, [free("x", "n", 2)], ["y"], {"q": codes, "s": np.float32(2)})
    engine, x = started(OnnxRuntime, model), normal(3, 2)
    np.testing.assert_array_equal(engine.constants["w"], [[2, 4], [-6, 1]])
    alone = engine.run_node(engine.steps()[0].node, {"x": x})
    np.testing.assert_allclose(alone["y"], engine.run({"x": x})["y"])


def test_onnxruntime_says_what_it_cannot_run():
    pytest.importorskip("onnxruntime")
    model, feeds = single("DequantizeLinear", [np.zeros(4, np.int8), np.ones((), np.float32)])
    model.graph.node[0].op_type = "Nonsense"
    with pytest.raises(InputError, match="the model cannot run in onnxruntime: .*Nonsense"):
        OnnxRuntime(model).run(feeds)
    model, feeds = single("Reshape", [normal(3), np.int64([2])])
    with pytest.raises(InputError, match="the model failed in onnxruntime"):
        OnnxRuntime(model).run(feeds)
    engine = OnnxRuntime(model)
    with pytest.raises(InputError, match=r"node 'only' \(Reshape\) failed in onnxruntime"):
        engine.run_node(engine.steps()[0].node, feeds)


def test_onnxruntime_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="engine onnxruntime needs the package of that name, which is not"):
        OnnxRuntime(chain(1))


# -- batches -------------------------------------------------------------------------------------------------

def test_batches_are_the_whole():
    x, seen = normal(10, 3), []
    feeds = {"x": x, "bias": normal(10, 1)}
    whole = Engine(FEEDS).run(feeds)["y"]
    for size in (1, 3, 5, 10, 99):
        got = run_batches(FEEDS, feeds, size, lambda done, total: seen.append((done, total)))
        np.testing.assert_array_equal(got["y"], whole)
    assert seen[10:14] == [(3, 10), (6, 10), (9, 10), (10, 10)]
    got = run_batches(Engine(FEEDS), feeds, 4, outputs=["m"])
    np.testing.assert_array_equal(got["m"], x)


def test_batches_do_not_keep_what_an_output_was_cut_from():
    """y is one column, a view of all."""
    nodes = [helper.make_node("Neg", ["x"], ["all"]),
             helper.make_node("Split", ["all", "sizes"], ["y", "rest"], axis=1)]
    model = build(nodes, [free("x", "n", 1 << 16)], ["y"], {"sizes": np.int64([1, (1 << 16) - 1])})
    engine, x = Engine(model), normal(32, 1 << 16)
    tracemalloc.start()
    y = run_batches(engine, {"x": x}, 1)["y"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(y, -x[:, :1])
    assert peak < 8 * x[0].nbytes


def test_batches_of_no_rows():
    feeds = {"x": normal(0, 3), "bias": normal(0, 1)}
    assert run_batches(FEEDS, feeds, 4)["y"].shape == (0, 3)


def test_an_image_does_not_depend_on_its_batch():
    model, _ = single("Conv", (normal(9, 3, 8, 8), normal(4, 3, 3, 3)), pads=[1] * 4)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    x, w = normal(9, 3, 8, 8), normal(4, 3, 3, 3)
    engine = Engine(model)
    one_by_one = np.concatenate([engine.run({"a": x[i : i + 1], "b": w})["y0"] for i in range(9)])
    np.testing.assert_array_equal(engine.run({"a": x, "b": w})["y0"], one_by_one)


@pytest.mark.parametrize("feeds, size, message", [
    ({**GOOD, "bias": GOOD["bias"][:1]}, 2, "one length along axis 0"),
    ({**GOOD, "bias": np.float32(1)}, 2, "one length along axis 0"),
    ({}, 2, "one length along axis 0"),
    ({**GOOD, "x": [[1.0, 2.0, 3.0], [1.0]]}, 2, "one length along axis 0"),
    (GOOD, 0, "batch_size is 0; it must be at least 1"),
])
def test_batches_refuse(feeds, size, message):
    with pytest.raises(InputError, match=message):
        run_batches(FEEDS, feeds, size)


def test_batches_refuse_an_output_without_rows():
    model = build([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], [free("x", "n")], ["y"])
    with pytest.raises(InputError, match=r"output 'y' has shape \(\) for 2 input rows"):
        run_batches(model, {"x": normal(4)}, 2)


def test_batches_refuse_rows_that_change_shape():
    """As many columns as the batch has elements above zero."""
    nodes = [helper.make_node("Relu", ["x"], ["p"]), helper.make_node("NonZero", ["p"], ["at"]),
             helper.make_node("Shape", ["at"], ["size"], start=1),
             helper.make_node("Shape", ["x"], ["rows"]),
             helper.make_node("Concat", ["rows", "size"], ["shape"], axis=0),
             helper.make_node("Expand", ["one", "shape"], ["y"])]
    model = build(nodes, [free("x", "n")], ["y"], {"one": np.float32([1])})
    with pytest.raises(InputError, match=r"output 'y' has shape \(2, 2\) for 2 input rows"):
        run_batches(model, {"x": np.float32([-1, 1, 1, 1])}, 2)


def test_batches_refuse_a_sequence():
    model = build([helper.make_node("SequenceConstruct", ["x"], ["y"])], [free("x", "n")], ["y"])
    with pytest.raises(InputError, match=r"output 'y' has shape \(\) for 2 input rows"):
        run_batches(model, {"x": normal(4)}, 2)


def test_a_weight_is_dequantised_once(monkeypatch):
    """What depends on weights alone is left out of every run."""
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["w"])
    weights = {"q": np.int8([1, 2, 3]), "s": np.float32(0.5)}
    model = build([node, helper.make_node("Mul", ["x", "w"], ["y"])], [free("x", 3)], ["y"], weights)
    engine, ran, run = Engine(model), [], engine_module._run_operator

    def spy(operator, values):
        ran.append(operator.op_type)
        return run(operator, values)

    monkeypatch.setattr(engine_module, "_run_operator", spy)
    ones = np.ones(3, np.float32)
    for _ in range(2):
        assert engine.run({"x": ones})["y"].tolist() == [0.5, 1, 1.5]
    assert ran == ["DequantizeLinear", "Mul", "Mul"]
    with pytest.raises(ValueError, match="read-only"):
        engine.run({"x": ones}, ["w"])["w"][0] = 7


def test_model_from_a_path_with_external_data(tmp_path, monkeypatch):
    x = normal(2, 64)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = build([node], [value("x", x)], ["y"], {"w": normal(64, 8)})
    expected = Engine(model).run({"x": x})["y"]
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    for given in (path, str(path)):
        np.testing.assert_array_equal(Engine(given).run({"x": x})["y"], expected)
    monkeypatch.chdir(tmp_path)  # where its data lies, which must not matter
    with pytest.raises(InputError, match="tensor 'w' is in another file"):
        Engine(onnx.load(path, load_external_data=False))
