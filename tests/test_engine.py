"""The numpy engine: its operators against onnxruntime with optimisations off, its checks, its bookkeeping."""

import itertools
import tracemalloc
import warnings

import numpy
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from refq.errors import InputError
from refq.models import engine as engine_module
from refq.models.engine import Engine, run_batches

RNG = numpy.random.default_rng(20240229)
NAMES = "abcdefgh"


def value(name, like=None, dtype=None, dims=None):
    """ValueInfoProto of the dtype and shape of an array, or of those given."""
    if like is not None:
        dtype, dims = helper.np_dtype_to_tensor_dtype(like.dtype), like.shape
    return helper.make_tensor_value_info(name, dtype, dims)


def free(name, *dims):
    """A float32 input; a dim given by name may be any."""
    return value(name, dtype=TensorProto.FLOAT, dims=dims)


def numpy_type(kind):
    return helper.tensor_dtype_to_np_dtype(kind)


def build(nodes, inputs, outputs, weights=(), opset=21, ir=10, **more):
    """ModelProto; `weights` name -> array; `inputs` ValueInfoProtos; `outputs` names of float32 tensors of
    any shape."""
    initializers = [numpy_helper.from_array(array, name) for name, array in dict(weights).items()]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **more)
    model.ir_version = ir
    return model


def single(op, arrays, opset=21, outputs=1, **attributes):
    """(model of one node whose inputs are all graph inputs, feeds)"""
    feeds = dict(zip(NAMES, arrays))
    made = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, list(feeds), made, "only", **attributes)
    model = build([node], [value(name, array) for name, array in feeds.items()], [], opset=opset)
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made)
    return model, feeds


def normal(*shape):
    return RNG.standard_normal(shape).astype(numpy.float32)


def session(model):
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def agree(model, feeds, tolerance=2e-5):
    """Every output of the engine is onnxruntime's: dtype, shape, values."""
    expected = session(model).run(None, feeds)
    got = Engine(model).run(feeds)
    for (name, array), other in zip(got.items(), expected, strict=True):
        assert (array.dtype, array.shape) == (other.dtype, other.shape), name
        numpy.testing.assert_allclose(array, other, tolerance, tolerance, err_msg=str(model.graph.node[0]))


# Operators against onnxruntime. SPATIAL, (before, after) padding of every axis.

SPATIAL = ((7,), (6, 8), (5, 6, 7))
PADS = ((0, 0), (1, 0), (0, 1), (1, 1))
AUTO = ("VALID", "SAME_UPPER", "SAME_LOWER")


@pytest.mark.parametrize("group", (1, 2, 4))
@pytest.mark.parametrize("spatial", SPATIAL, ids=len)
def test_conv(spatial, group):
    rank = len(spatial)
    grid = itertools.product((1, 2, 3), (1, 2, 3), (1, 2), (*PADS, (2, 1), *AUTO))
    for kernel, stride, dilation, pads in grid:
        padding = {"auto_pad": pads} if pads in AUTO else {"pads": [pads[0]] * rank + [pads[1]] * rank}
        if dilation > 1 and pads in AUTO[1:]:
            continue  # onnxruntime does not do it; test_same_padding_counts_dilation
        kernels = [kernel] * (rank - 1) + [max(1, kernel - 1)]
        arrays = normal(2, 4, *spatial), normal(8, 4 // group, *kernels), normal(8)
        attributes = {"strides": [stride] * rank, "dilations": [dilation] * rank, "group": group, **padding}
        agree(*single("Conv", arrays, **attributes))


def test_conv_in_parts(monkeypatch):
    """However CHUNK cuts images and taps, the result is the same up to the order of sums."""
    model, feeds = single("Conv", (normal(5, 6, 9, 9), normal(4, 3, 3, 3), normal(4)), group=2, pads=[1] * 4)
    whole = Engine(model).run(feeds)["y0"]
    for chunk in (1, 6 * 81, 4 * 6 * 81, 9 * 6 * 81, 20 * 6 * 81):
        monkeypatch.setattr("refq.models.engine.CHUNK", chunk)
        numpy.testing.assert_allclose(Engine(model).run(feeds)["y0"], whole, rtol=1e-5, atol=1e-5)


def test_conv_by_hand():
    image = numpy.arange(9, dtype=numpy.float32).reshape(1, 1, 3, 3)
    kernel = numpy.float32([[[[1, 10], [100, 1000]]]])
    model, feeds = single("Conv", (image, kernel, numpy.float32([0.5])), pads=[0, 0, 1, 1])
    expected = [[4310.5, 5421.5, 502.5], [7643.5, 8754.5, 805.5], [76.5, 87.5, 8.5]]
    assert Engine(model).run(feeds)["y0"].tolist() == [[expected]]


@pytest.mark.parametrize("shapes", [((2, 4, 6), (8, 3, 3)), ((2, 4, 6), (9, 2, 3)), ((2, 4, 6), (8, 4, 9))])
def test_conv_refuses_weights_that_do_not_fit(shapes):
    model, feeds = single("Conv", [normal(*shape) for shape in shapes], group=2)
    with pytest.raises(InputError, match=r"node 'only' \(Conv\) failed"):
        Engine(model).run(feeds)


@pytest.mark.parametrize("op", ("MaxPool", "AveragePool"))
@pytest.mark.parametrize("spatial", SPATIAL, ids=len)
def test_pools(op, spatial):
    rank = len(spatial)
    more = ({"count_include_pad": 0}, {"count_include_pad": 1}) if op == "AveragePool" else ({},)
    grid = itertools.product((1, 2, 3), (1, 2, 3), (1, 2), (*PADS, *AUTO), (0, 1), more)
    for kernel, stride, dilation, pads, ceil, extra in grid:
        if pads in AUTO:
            # onnxruntime leaves dilation out of SAME padding, and lets the padding be negative
            if ceil or (pads != "VALID" and (dilation > 1 or kernel < stride)):
                continue
            padding = {"auto_pad": pads}
        elif max(pads) >= kernel:
            continue
        else:
            padding = {"pads": [pads[0]] * rank + [pads[1]] * rank, "ceil_mode": ceil}
        attributes = {"strides": [stride] * rank, "dilations": [dilation] * rank, **padding, **extra}
        agree(*single(op, [normal(2, 3, *spatial)], opset=22, kernel_shape=[kernel] * rank, **attributes))


@pytest.mark.parametrize("spatial", SPATIAL, ids=len)
def test_max_pool_indices(spatial):
    rank = len(spatial)
    for kernel, stride, pads, order in itertools.product((2, 3), (1, 2, 3), (*PADS, "VALID"), (0, 1)):
        padding = {"pads": [pads[0]] * rank + [pads[1]] * rank, "ceil_mode": 1}
        attributes = {"kernel_shape": [kernel] * rank, "strides": [stride] * rank, "storage_order": order}
        attributes |= {"auto_pad": pads} if pads in AUTO else padding
        x = numpy.round(normal(2, 3, *spatial) * 2)  # ties: the first counts
        agree(*single("MaxPool", [x], outputs=2, **attributes), tolerance=0)


@pytest.mark.parametrize("dtype", (numpy.int8, numpy.uint8))
def test_max_pool_of_integers(dtype):
    x = RNG.integers(numpy.iinfo(dtype).min, numpy.iinfo(dtype).max, (1, 2, 5, 5), dtype, endpoint=True)
    agree(*single("MaxPool", [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))


def test_same_padding_counts_dilation():
    """ONNX: SAME gives ceil(size / stride) places, padded for the dilated kernel; onnxruntime's pools do
    not."""
    x = numpy.arange(7, dtype=numpy.float32).reshape(1, 1, 7)
    for auto in AUTO[1:]:
        model, feeds = single("MaxPool", [x], opset=22, kernel_shape=[2], dilations=[2], auto_pad=auto)
        assert Engine(model).run(feeds)["y0"].ravel().tolist() == [1, 2, 3, 4, 5, 6, 5]
    attributes = {"kernel_shape": [2], "dilations": [3], "auto_pad": "SAME_LOWER"}
    model, feeds = single("AveragePool", [x], opset=22, **attributes)
    assert Engine(model).run(feeds)["y0"].ravel().tolist() == [1, 2, 1.5, 2.5, 3.5, 4.5, 4]
    ones = numpy.ones((1, 1, 2), numpy.float32)
    model, feeds = single("Conv", [x, ones], dilations=[3], auto_pad="SAME_UPPER")
    assert Engine(model).run(feeds)["y0"].ravel().tolist() == [2, 3, 5, 7, 9, 4, 5]


def test_window_that_does_not_fit():
    model, feeds = single("MaxPool", [normal(1, 1, 4)], kernel_shape=[3], dilations=[2])
    with pytest.raises(InputError, match="window of 5 does not fit an axis of 4"):
        Engine(model).run(feeds)


@pytest.mark.parametrize("rank", (3, 4, 5))
@pytest.mark.parametrize("op", ("GlobalMaxPool", "GlobalAveragePool"))
def test_global_pools(op, rank):
    agree(*single(op, [normal(2, 3, 4, 5, 6)[(..., *[0] * (5 - rank))]]))


@pytest.mark.parametrize("op, attributes, opset", [
    ("Erf", {}, 21), ("Relu", {}, 21), ("Gelu", {}, 20), ("Gelu", {"approximate": "tanh"}, 20),
    ("Softmax", {"axis": 1}, 21), ("LogSoftmax", {"axis": -1}, 21), ("LayerNormalization", {"axis": -1}, 21),
])
def test_activations(op, attributes, opset):
    x = 3 * normal(4, 5, 6)
    agree(*single(op, [x, normal(6), normal(6)] if op == "LayerNormalization" else [x], opset, **attributes))


@pytest.mark.parametrize("a, b", [
    ((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (5, 4, 6)), ((4,), (4, 2)),
])
def test_matmul(a, b):
    agree(*single("MatMul", [normal(*a), normal(*b)]))


def test_gemm():
    for alpha, beta, left, right in itertools.product((1.0, 0.3), (1.0, 0.0, 2.5), (0, 1), (0, 1)):
        for c in ((), (1,), (5,), (3, 1), (3, 5)):
            arrays = normal(*((4, 3) if left else (3, 4))), normal(*((5, 4) if right else (4, 5))), normal(*c)
            arrays = [numpy.asarray(array) for array in arrays]
            agree(*single("Gemm", arrays, alpha=alpha, beta=beta, transA=left, transB=right))


@pytest.mark.parametrize("op, arrays", [
    ("MatMul", (normal(7, 300), normal(300, 5))),
    ("Gemm", (normal(7, 300), normal(300, 5), normal(5))),
    ("Conv", (normal(2, 40, 9), normal(4, 40, 3))),
])
def test_float16_products_are_summed_in_float32(op, arrays):
    halves = [array.astype(numpy.float16) for array in arrays]
    model, feeds = single(op, halves)
    wide, wide_feeds = single(op, [half.astype(numpy.float32) for half in halves])
    got, expected = Engine(model).run(feeds)["y0"], Engine(wide).run(wide_feeds)["y0"]
    assert got.dtype == numpy.float16
    numpy.testing.assert_array_equal(got, expected.astype(numpy.float16))


def test_transformer_block():
    width, heads, hidden = 32, 4, 80
    weights = {
        "qkv": normal(width, 3 * width) / 6, "project": normal(width, width) / 6,
        "up": normal(width, hidden) / 6, "down": normal(hidden, width) / 9,
        "gain": normal(width), "shift": normal(width),
        "split": numpy.int64([0, 0, 3, heads, width // heads]), "join": numpy.int64([0, 0, width]),
        "scale": numpy.float32(0.35), "0": numpy.int64(0), "1": numpy.int64(1), "2": numpy.int64(2),
    }
    node = helper.make_node
    nodes = [
        node("LayerNormalization", ["x", "gain", "shift"], ["n"]), node("MatMul", ["n", "qkv"], ["m"]),
        node("Reshape", ["m", "split"], ["s"]), node("Transpose", ["s"], ["t"], perm=[2, 0, 3, 1, 4]),
        *(node("Gather", ["t", index], [part]) for index, part in zip("012", "qkv")),
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]), node("MatMul", ["q", "kt"], ["z"]),
        node("Mul", ["z", "scale"], ["zs"]), node("Softmax", ["zs"], ["p"]),
        node("MatMul", ["p", "v"], ["o"]), node("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]),
        node("Reshape", ["ot", "join"], ["oj"]),
        node("MatMul", ["oj", "project"], ["a"]), node("Add", ["x", "a"], ["r"]),
        node("MatMul", ["r", "up"], ["u"]), node("Gelu", ["u"], ["g"]), node("MatMul", ["g", "down"], ["d"]),
        node("Add", ["r", "d"], ["y"]),
    ]
    model = build(nodes, [free("x", "batch", "time", width)], ["y"], weights)
    agree(model, {"x": normal(3, 10, width)}, tolerance=1e-4)


# Old opsets


@pytest.mark.parametrize("opset", (7, 8, 9, 11, 13, 14, 15))
def test_batch_normalization_of_every_opset(opset):
    statistics = dict(zip("smbv", numpy.abs(normal(4, 3)) + 0.1))
    node = helper.make_node("BatchNormalization", ["x", *statistics], ["y"])
    x = normal(2, 3, 4, 5)
    agree(build([node], [value("x", x)], ["y"], statistics, opset, ir=7), {"x": x})


@pytest.mark.parametrize("opset", (7, 11, 12, 13))
@pytest.mark.parametrize("op", ("Softmax", "LogSoftmax"))
def test_softmax_family_of_every_opset(op, opset):
    for attributes in ({}, {"axis": 0}, {"axis": 1}, {"axis": 2}):
        agree(*single(op, [normal(2, 3, 4)], opset, **attributes))


@pytest.mark.parametrize("mode", ("nearest", "linear"))
@pytest.mark.parametrize("op, opset", (("Upsample", 9), ("Resize", 10)))
def test_old_resize_keeps_its_places(op, opset, mode):
    x = normal(1, 2, 4, 6)
    for scales in ([1, 1, 2, 2], [1, 1, 1.5, 2.5]):
        node = helper.make_node(op, ["x", "scales"], ["y"], mode=mode)
        agree(build([node], [value("x", x)], ["y"], {"scales": numpy.float32(scales)}, opset, ir=7), {"x": x})


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


# What is refused


def recurrent(op, gates, *, lengths=False, **attributes):
    arrays = {"x": normal(5, 2, 3), "w": normal(1, gates * 4, 3), "r": normal(1, gates * 4, 4)}
    names = [*arrays, *(["", "lengths"] if lengths else [])]
    arrays |= {"lengths": numpy.int32([5, 3])} if lengths else {}
    node = helper.make_node(op, names, ["y"], "cell", hidden_size=4, **attributes)
    return build([node], [value(name, array) for name, array in arrays.items()], ["y"])


@pytest.mark.parametrize("model, why", [
    (recurrent("LSTM", 4, lengths=True), "sequence_lens"),
    (recurrent("GRU", 3, lengths=True), "sequence_lens"),
    (recurrent("RNN", 1, lengths=True), "sequence_lens"),
    (recurrent("LSTM", 4, clip=1.0), "clip"),
    (recurrent("GRU", 3, activations=["Relu", "Tanh"]), "activations"),
    (recurrent("LSTM", 4, input_forget=1), "input_forget"),
    (single("ConvTranspose", [normal(1, 4, 5), normal(4, 2, 3)], group=2)[0], "group"),
    (single("Hardmax", [normal(2, 3, 4)], opset=11)[0], "below 13"),
])
def test_refuses_what_would_be_wrong(model, why):
    with pytest.raises(InputError, match=f"cannot run in numpy.*{why}"):
        Engine(model)


@pytest.mark.parametrize("model", [
    recurrent("LSTM", 4), recurrent("LSTM", 4, activations=["Sigmoid", "Tanh", "Tanh"], input_forget=0),
    recurrent("GRU", 3), recurrent("GRU", 3, linear_before_reset=1), recurrent("RNN", 1),
])
def test_plain_recurrent_cells_run(model):
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    agree(model, {name: normal(*shape) for name, shape in shapes.items()})


def test_refuses_a_loop_with_scan_outputs():
    body = helper.make_graph(
        [helper.make_node("Identity", [a], [b]) for a, b in (("go", "on"), ("x", "piece"))], "body",
        [value("i", dtype=TensorProto.INT64, dims=[]), value("go", dtype=TensorProto.BOOL, dims=[])],
        [value("on", dtype=TensorProto.BOOL, dims=[]), free("piece", 2, 3)],
    )
    loop = helper.make_node("Loop", ["trips", ""], ["y"], body=body)
    model = build([loop], [value("x", normal(2, 3))], ["y"], {"trips": numpy.int64(4)})
    with pytest.raises(InputError, match="Loop.*scan outputs"):
        Engine(model)


def test_refuses_an_unknown_operator():
    node = helper.make_node("MatMulNBits", ["x"], ["y"], domain="com.microsoft")
    model = build([node], [value("x", normal(2, 3))], ["y"])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(InputError, match="MatMulNBits"):
        Engine(model)


def test_refuses_what_is_no_model(tmp_path):
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"\x07not a model")
    for given in (junk, str(tmp_path / "missing.onnx")):
        with pytest.raises(InputError, match="cannot be read as an ONNX model"):
            Engine(given)
    with pytest.raises(InputError, match="not bytes"):
        Engine(b"")


# Feeds


FEEDS = build(
    [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "bias"], ["y"])],
    [free("x", "n", 3), free("bias", "n", 1)], ["y"], {"w": numpy.eye(3, dtype=numpy.float32)},
)
GOOD = {"x": numpy.ones((2, 3), numpy.float32), "bias": numpy.ones((2, 1), numpy.float32)}


@pytest.mark.parametrize("change, message", [
    ({"z": GOOD["x"]}, "no input 'z'; its inputs are 'x', 'bias'"),
    ({"w": GOOD["x"]}, "no input 'w'"),
    ({"x": None}, "no value for input 'x'"),
    ({"x": GOOD["x"].astype(numpy.float64)}, "input 'x' is float64; the model takes float32"),
    ({"x": GOOD["x"].astype(numpy.uint8)}, "input 'x' is uint8; the model takes float32"),
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


def test_unknown_output_name():
    with pytest.raises(InputError, match="no tensor 'nothing'; its outputs are 'y'"):
        Engine(FEEDS).run(GOOD, ["nothing"])


def test_a_default_input_may_be_left_out_or_given():
    node = helper.make_node("Mul", ["x", "gain"], ["y"])
    model = build([node], [free("x", 2), free("gain", 2)], ["y"], {"gain": numpy.float32([2, 3])})
    engine, x = Engine(model), numpy.float32([1, 1])
    assert engine.run({"x": x})["y"].tolist() == [2, 3]
    assert engine.run({"x": x, "gain": numpy.float32([5, 7])})["y"].tolist() == [5, 7]


# Running: which nodes, which tensors, which memory


def chain(length, op="Relu"):
    nodes = [helper.make_node(op, [f"t{i}"], [f"t{i + 1}"]) for i in range(length)]
    return build(nodes, [free("t0", "n")], [f"t{length}"])


def test_inner_tensors_by_name_in_the_order_asked_for():
    x = numpy.float32([1.5, -2])
    got = Engine(chain(4, "Neg")).run({"t0": x}, ["t3", "t0", "t2"])
    assert list(got) == ["t3", "t0", "t2"]
    assert [array.tolist() for array in got.values()] == [(-x).tolist(), x.tolist(), x.tolist()]


def test_nodes_that_the_outputs_do_not_need_do_not_run():
    broken = helper.make_node("Reshape", ["x", "shape"], ["bad"], "broken")
    model = build([helper.make_node("Neg", ["x"], ["y"]), broken], [value("x", normal(3))], ["y", "bad"],
                  {"shape": numpy.int64([2])})
    engine = Engine(model)
    assert list(engine.run({"x": normal(3)}, ["y"])) == ["y"]
    with pytest.raises(InputError, match=r"node 'broken' \(Reshape\) failed"):
        engine.run({"x": normal(3)})


def test_results_are_dropped_after_their_last_use():
    engine, x = Engine(chain(30)), normal(1 << 18)
    tracemalloc.start()
    engine.run({"t0": x})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * x.nbytes


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
    x = numpy.float32([1, -1])
    model = build(nodes, [value("x", x), value("which", dtype=TensorProto.BOOL, dims=[])], ["y"])
    assert Engine(model).run({"x": x, "which": numpy.array(True)})["y"].tolist() == [-1, 0]
    assert Engine(model).run({"x": x, "which": numpy.array(False)})["y"].tolist() == numpy.exp(x).tolist()


def test_overrides_reach_local_functions():
    """onnx.reference alone would call its own MaxPool there, wrong for SAME_LOWER with a stride."""
    body = [helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2], strides=[2], auto_pad="SAME_LOWER")]
    function = helper.make_function("own", "Pool", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    call, x = helper.make_node("Pool", ["x"], ["y"], domain="own"), numpy.float32([[[5, 1, 2, 3, 4]]])
    model = build([call], [value("x", x)], ["y"], functions=[function])
    model.opset_import.append(helper.make_opsetid("own", 1))
    assert Engine(model).run({"x": x})["y"].tolist() == [[[5, 2, 4]]]


def test_overflow_is_inf_without_a_warning():
    model, feeds = single("Exp", [numpy.float32([1000, -1000, numpy.inf])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Engine(model).run(feeds)["y0"].tolist() == [numpy.inf, 0, numpy.inf]


def test_random_nodes_are_not_computed_once():
    node = helper.make_node("RandomNormal", [], ["y"], shape=[8])
    engine = Engine(build([node], [], ["y"]))
    assert engine.run({})["y"].tolist() != engine.run({})["y"].tolist()


# Batches


def test_batches_are_the_whole():
    x, seen = normal(10, 3), []
    feeds = {"x": x, "bias": normal(10, 1)}
    whole = Engine(FEEDS).run(feeds)["y"]
    for size in (1, 3, 5, 10, 99):
        got = run_batches(FEEDS, feeds, size, lambda done, total: seen.append((done, total)))
        numpy.testing.assert_array_equal(got["y"], whole)
    assert seen[10:14] == [(3, 10), (6, 10), (9, 10), (10, 10)]
    got = run_batches(Engine(FEEDS), feeds, 4, outputs=["m"])
    numpy.testing.assert_array_equal(got["m"], x)


def test_batches_of_no_rows():
    feeds = {"x": normal(0, 3), "bias": normal(0, 1)}
    assert run_batches(FEEDS, feeds, 4)["y"].shape == (0, 3)


def test_an_image_does_not_depend_on_its_batch():
    model, _ = single("Conv", (normal(9, 3, 8, 8), normal(4, 3, 3, 3)), pads=[1] * 4)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    x, w = normal(9, 3, 8, 8), normal(4, 3, 3, 3)
    engine = Engine(model)
    one_by_one = numpy.concatenate([engine.run({"a": x[i : i + 1], "b": w})["y0"] for i in range(9)])
    numpy.testing.assert_array_equal(engine.run({"a": x, "b": w})["y0"], one_by_one)


@pytest.mark.parametrize("feeds, size, message", [
    ({**GOOD, "bias": GOOD["bias"][:1]}, 2, "one length along axis 0"),
    ({**GOOD, "bias": numpy.float32(1)}, 2, "one length along axis 0"),
    ({}, 2, "one length along axis 0"),
    (GOOD, 0, "batch_size is 0; it must be at least 1"),
])
def test_batches_refuse(feeds, size, message):
    with pytest.raises(InputError, match=message):
        run_batches(FEEDS, feeds, size)


def test_batches_refuse_an_output_without_rows():
    model = build([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], [free("x", "n")], ["y"])
    with pytest.raises(InputError, match=r"output 'y' has shape \(\) for 2 input rows"):
        run_batches(model, {"x": normal(4)}, 2)


# The forms in which quantised models are written


def small_types():
    """(id, element type, scale type, block or None, opset, IR)"""
    kinds = TensorProto
    yield "mxfp8", kinds.FLOAT8E4M3FN, kinds.FLOAT8E8M0, 32, 24, 12
    yield "mxfp8_e5m2", kinds.FLOAT8E5M2, kinds.FLOAT8E8M0, 32, 24, 12
    yield "mxfp4", kinds.FLOAT4E2M1, kinds.FLOAT8E8M0, 32, 24, 12
    yield "mxint8", kinds.INT8, kinds.FLOAT8E8M0, 32, 24, 12
    yield "int4", kinds.INT4, kinds.FLOAT16, 32, 21, 10
    yield "int8", kinds.INT8, kinds.FLOAT, None, 21, 10
    yield "int2", kinds.INT2, kinds.FLOAT, 32, 25, 13
    if hasattr(kinds, "FLOAT6E2M3"):
        yield "mxfp6", kinds.FLOAT6E2M3, kinds.FLOAT8E8M0, 32, 28, 14
        yield "mxfp6_e3m2", kinds.FLOAT6E3M2, kinds.FLOAT8E8M0, 32, 28, 14


@pytest.mark.parametrize("element, scale, block, opset, ir",
                         [pytest.param(*row, id=name) for name, *row in small_types()])
def test_dequantised_weights_are_exact(element, scale, block, opset, ir):
    """A ragged last block of 18; E8M0 scales from 2^-127, a subnormal of float32, up to 2^119."""
    depth, width = 50, 6
    limit = {TensorProto.INT4: 7, TensorProto.INT8: 127, TensorProto.INT2: 1}.get(element, 4)
    codes = numpy.round(numpy.clip(normal(depth, width) * limit / 2, -limit, limit), 3)
    codes = (numpy.round(codes) if limit != 4 else codes).astype(numpy_type(element))
    if scale == TensorProto.FLOAT8E8M0:
        scales = RNG.integers(0, 247, (2, width), numpy.uint8)
        scales[0, 0] = 0
        scales = scales.view(numpy_type(scale))
    else:
        scales = (1.5 * numpy.abs(normal(2, width)) + 0.01).astype(numpy_type(scale))
        scales = scales if block else scales[0]
    attributes = {"axis": 0, "block_size": block} if block else {"axis": 1}
    if scale == TensorProto.FLOAT8E8M0:
        attributes["output_dtype"] = TensorProto.FLOAT
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["h"], **attributes),
             helper.make_node("Cast", ["h"], ["w"], to=TensorProto.FLOAT),
             helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = build(nodes, [free("x", "n", depth)], ["y"], {"q": codes, "s": scales}, opset, ir)
    wide = scales.astype(numpy.float64)
    exact = codes.astype(numpy.float64) * (numpy.repeat(wide, block, axis=0)[:depth] if block else wide)
    half = numpy.float16 if scale == TensorProto.FLOAT16 else numpy.float32
    expected = exact.astype(half).astype(numpy.float32)
    x = normal(3, depth)
    got = Engine(model).run({"x": x}, ["w", "y"])
    numpy.testing.assert_array_equal(got["w"], expected)
    numpy.testing.assert_array_equal(got["y"], x @ expected)


@pytest.mark.parametrize("shape, attributes, message", [
    ((3, 4), {"axis": 0, "block_size": 4}, r"must have shape \(2, 4\)"),
    ((8,), {"axis": 1}, r"must have shape \(4,\)"),
    ((1, 4), {"axis": 0}, r"must have shape \(8,\)"),
])
def test_scales_of_another_shape(shape, attributes, message):
    x = numpy.zeros((8, 4), numpy.int8)
    model, feeds = single("DequantizeLinear", [x, numpy.ones(shape, numpy.float32)], **attributes)
    with pytest.raises(InputError, match=message):
        Engine(model).run(feeds)


def test_a_scale_may_not_be_e4m3():
    scale = numpy.ones((), numpy_type(TensorProto.FLOAT8E4M3FN))
    model, feeds = single("DequantizeLinear", [numpy.zeros(3, numpy.int8), scale])
    with pytest.raises(InputError, match="not float8_e4m3fn"):
        Engine(model).run(feeds)


def test_zero_points():
    for dtype, shape, attributes in (
        (numpy.uint8, (), {}), (numpy.int8, (5,), {"axis": -1}), (numpy.int32, (), {}),
        (numpy.uint16, (4, 2), {"axis": 1, "block_size": 3}), (numpy.int16, (4,), {"axis": 0}),
    ):
        x = RNG.integers(0, 100, (4, 5)).astype(dtype)
        zero = numpy.asarray(RNG.integers(0, 100 if dtype != numpy.int32 else 1, shape)).astype(dtype)
        arrays = [x, numpy.asarray(numpy.abs(normal(*shape))), zero]
        agree(*single("DequantizeLinear", arrays, **attributes), tolerance=0)


def test_two_level_scale():
    """NVFP4: E4M3 block scales times a float32 for the tensor."""
    codes = numpy.clip(normal(32, 4) * 3, -6, 6).astype(numpy_type(TensorProto.FLOAT4E2M1))
    scales = numpy.abs(normal(2, 4) * 100).astype(numpy_type(TensorProto.FLOAT8E4M3FN))
    outer = numpy.float32(0.0123)
    nodes = [helper.make_node("DequantizeLinear", ["s", "g"], ["sg"]),
             helper.make_node("DequantizeLinear", ["q", "sg"], ["w"], axis=0, block_size=16),
             helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = build(nodes, [free("x", "n", 32)], ["y"], {"q": codes, "s": scales, "g": outer}, 23, 11)
    inner = numpy.repeat(scales.astype(numpy.float32) * outer, 16, axis=0)
    got = Engine(model).run({"x": normal(2, 32)}, ["w"])["w"]
    numpy.testing.assert_array_equal(got, codes.astype(numpy.float32) * inner)


def test_codes_through_a_table():
    """The portable form of FP4: 4-bit codes, Cast, Gather from 16 values, Reshape, Mul by the scale."""
    values = numpy.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = numpy.concatenate([values, -values])
    codes = RNG.integers(0, 16, (8, 6), numpy.uint8)
    scales = numpy.ldexp(numpy.float32(1), RNG.integers(-3, 4, (2, 1, 6))).astype(numpy.float32)
    nodes = [helper.make_node("Cast", ["codes"], ["index"], to=TensorProto.INT32),
             helper.make_node("Gather", ["table", "index"], ["flat"]),
             helper.make_node("Reshape", ["flat", "blocks"], ["tiles"]),
             helper.make_node("Mul", ["tiles", "s"], ["m"]),
             helper.make_node("Reshape", ["m", "shape"], ["w"]),
             helper.make_node("MatMul", ["x", "w"], ["y"])]
    packed = codes.astype(numpy_type(TensorProto.UINT4))
    weights = {"codes": packed, "table": table, "s": scales, "blocks": numpy.int64([2, 4, 6]),
               "shape": numpy.int64([8, 6])}
    model = build(nodes, [free("x", "n", 8)], ["y"], weights)
    engine, x = Engine(model), normal(3, 8)
    expected = table[codes] * numpy.repeat(scales[:, 0], 4, axis=0)
    numpy.testing.assert_array_equal(engine.run({"x": x}, ["w"])["w"], expected)
    agree(model, {"x": x})


def test_blocks_of_a_conv_weight():
    """DequantizeLinear on the matrix [M, C*kh*kw], then Reshape; and on the 4-D weight along its channels."""
    codes = RNG.integers(-7, 8, (4, 12 * 9), numpy.int8)
    scales = numpy.abs(normal(4, 4)) + 0.1
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["m"], axis=1, block_size=32),
             helper.make_node("Reshape", ["m", "shape"], ["w"]),
             helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])]
    inputs = [free("x", "n", 12, 7, 7)]
    weights = {"q": codes, "s": scales, "shape": numpy.int64([4, 12, 3, 3])}
    x = normal(2, 12, 7, 7)
    agree(build(nodes, inputs, ["y"], weights), {"x": x}, tolerance=1e-3)
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1, block_size=8), nodes[2]]
    weights = {"q": codes.reshape(4, 12, 3, 3), "s": numpy.abs(normal(4, 2, 3, 3))}
    agree(build(nodes, inputs, ["y"], weights), {"x": x}, tolerance=1e-3)


def test_a_weight_is_dequantised_once(monkeypatch):
    """What depends on weights alone is left out of every run."""
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["w"])
    weights = {"q": numpy.int8([1, 2, 3]), "s": numpy.float32(0.5)}
    model = build([node, helper.make_node("Mul", ["x", "w"], ["y"])], [free("x", 3)], ["y"], weights)
    engine, ran, run_node = Engine(model), [], engine_module._run_node

    def spy(node, *rest):
        ran.append(node.op_type)
        run_node(node, *rest)

    monkeypatch.setattr(engine_module, "_run_node", spy)
    ones = numpy.ones(3, numpy.float32)
    assert engine.run({"x": ones})["y"].tolist() == [0.5, 1, 1.5]
    assert ran == ["Mul"]
    with pytest.raises(ValueError, match="read-only"):
        engine.run({"x": ones}, ["w"])["w"][0] = 7


def test_model_from_a_path_with_external_data(tmp_path):
    x = normal(2, 64)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = build([node], [value("x", x)], ["y"], {"w": normal(64, 8)})
    expected = Engine(model).run({"x": x})["y"]
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    for given in (path, str(path)):
        numpy.testing.assert_array_equal(Engine(given).run({"x": x})["y"], expected)
    with pytest.raises(InputError, match="cannot run in numpy"):
        Engine(onnx.load(path, load_external_data=False))
