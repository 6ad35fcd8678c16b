"""The engine's own operators: against onnxruntime, and in the forms in which quantised models are written."""

import itertools

import numpy as np
import onnx
import pytest
from engine_models import RNG, agree, build, free, normal, numpy_type, single, value
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx_models import run_onnxruntime

from refq.errors import InputError
from refq.models.engine import Engine

SPATIAL = ((7,), (6, 8), (5, 6, 7))
# (before, after) padding of every axis
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
        monkeypatch.setattr("refq.models.operators_windows.CHUNK", chunk)
        np.testing.assert_allclose(Engine(model).run(feeds)["y0"], whole, rtol=1e-5, atol=1e-5)


def test_conv_by_hand():
    image = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    kernel = np.float32([[[[1, 10], [100, 1000]]]])
    model, feeds = single("Conv", (image, kernel, np.float32([0.5])), pads=[0, 0, 1, 1])
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


@pytest.mark.parametrize("group", (1, 2, 4))
@pytest.mark.parametrize("spatial", SPATIAL, ids=len)
def test_conv_transpose(spatial, group):
    rank = len(spatial)
    for kernel, stride, dilation in itertools.product((1, 2, 3), (1, 2, 3), (1, 2)):
        extent = (kernel - 1) * dilation + 1
        paddings = [{"pads": [before] * rank + [after] * rank} for before, after in PADS]
        paddings += [{"output_padding": [more] * rank} for more in range(1, stride)]
        # where the kernel leaves gaps, onnxruntime makes less than size * stride of SAME
        paddings += [{"auto_pad": auto} for auto in AUTO if auto == "VALID" or extent >= stride]
        for auto, cut in itertools.product(("NOTSET", *AUTO[1:]), range(3)):
            shape = [(size - 1) * stride + extent - cut for size in spatial]
            paddings.append({"auto_pad": auto, "output_shape": shape})
        for number, padding in enumerate(paddings):
            arrays = normal(2, 4, *spatial), normal(4, 8 // group, *[kernel] * rank), normal(8)
            arrays = arrays[: 2 + number % 2]
            attributes = {"strides": [stride] * rank, "dilations": [dilation] * rank, "group": group}
            agree(*single("ConvTranspose", arrays, **attributes, **padding))


def test_conv_transpose_by_hand():
    """Each element adds a kernel; then the bias, also where no kernel reaches: size * stride of SAME."""
    x, kernel = np.float32([[[1, 10, 100]]]), np.float32([[[1, 2]]])
    for attributes, expected in (
        ({}, [1, 12, 120, 200]), ({"strides": [2]}, [1, 2, 10, 20, 100, 200]),
        ({"strides": [3], "auto_pad": "SAME_UPPER"}, [1, 2, 0, 10, 20, 0, 100, 200, 0]),
        ({"strides": [3], "output_padding": [2]}, [1, 2, 0, 10, 20, 0, 100, 200, 0, 0]),
        ({"dilations": [2], "pads": [1, 0]}, [10, 102, 20, 200]),
        ({"output_shape": [3]}, [12, 120, 200]),
        ({"output_shape": [3], "auto_pad": "SAME_UPPER"}, [1, 12, 120]),
    ):
        model, feeds = single("ConvTranspose", [x, kernel, np.float32([0.5])], **attributes)
        assert Engine(model).run(feeds)["y0"].ravel().tolist() == [v + 0.5 for v in expected], attributes


@pytest.mark.parametrize("shapes, attributes, message", [
    (((2, 4, 6), (3, 3, 3)), {}, "do not fit group"),
    (((2, 4, 6), (4, 3, 3)), {"group": 3}, "do not fit group"),
    (((2, 4, 6), (4, 3, 3)), {"kernel_shape": [2]}, "kernel_shape"),
    (((2, 4, 1), (4, 3, 3)), {"pads": [2, 1]}, "leaves nothing"),
])
def test_conv_transpose_refuses(shapes, attributes, message):
    model, feeds = single("ConvTranspose", [normal(*shape) for shape in shapes], **attributes)
    with pytest.raises(InputError, match=rf"node 'only' \(ConvTranspose\) failed: .*{message}"):
        Engine(model).run(feeds)


@pytest.mark.parametrize("spatial", SPATIAL, ids=len)
def test_lp_pool(spatial):
    rank = len(spatial)
    for p, kernel, stride, dilation in itertools.product((1, 2, 3), (1, 2, 3), (1, 2, 3), (1, 2)):
        attributes = {"p": p, "kernel_shape": [kernel] * rank, "strides": [stride] * rank}
        for pads, ceil in itertools.product(PADS, (0, 1)):
            if max(pads) < kernel:
                padding = {"pads": [pads[0]] * rank + [pads[1]] * rank, "ceil_mode": ceil}
                agree(*single("LpPool", [normal(2, 3, *spatial)], dilations=[dilation] * rank, **padding,
                              **attributes))
        for auto in AUTO:
            if auto == "VALID" or kernel >= stride:
                agree(*single("LpPool", [normal(2, 3, *spatial)], auto_pad=auto, **attributes))


def test_global_lp_pool():
    """onnxruntime has no kernel of today's opset, so by definition."""
    shapes = (2, 3, 7), (2, 3, 4, 5), (2, 3, 2, 3, 4), (1, 2, 2, 2, 2, 2)
    for p, shape in itertools.product((1, 2, 3), shapes):
        x = normal(*shape)
        model, feeds = single("GlobalLpPool", [x], p=p)
        flat = np.abs(x.reshape(*shape[:2], -1).astype(np.float64))
        expected = ((flat ** p).sum(axis=2) ** (1 / p)).reshape(*shape[:2], *[1] * (len(shape) - 2))
        np.testing.assert_allclose(Engine(model).run(feeds)["y0"], expected, rtol=1e-6)


@pytest.mark.parametrize("spatial", SPATIAL, ids=len)
def test_max_pool_indices(spatial):
    rank = len(spatial)
    for kernel, stride, pads, order in itertools.product((2, 3), (1, 2, 3), (*PADS, "VALID"), (0, 1)):
        padding = {"pads": [pads[0]] * rank + [pads[1]] * rank, "ceil_mode": 1}
        attributes = {"kernel_shape": [kernel] * rank, "strides": [stride] * rank, "storage_order": order}
        attributes |= {"auto_pad": pads} if pads in AUTO else padding
        x = np.round(normal(2, 3, *spatial) * 2)  # ties: the first counts
        agree(*single("MaxPool", [x], outputs=2, **attributes), tolerance=0)


@pytest.mark.parametrize("dtype", (np.int8, np.uint8))
def test_max_pool_of_integers(dtype):
    x = RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (1, 2, 5, 5), dtype, endpoint=True)
    agree(*single("MaxPool", [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))


def test_same_padding_counts_dilation():
    """ONNX: SAME gives ceil(size / stride) places, padded for the dilated kernel; onnxruntime's pools do
    not."""
    x = np.arange(7, dtype=np.float32).reshape(1, 1, 7)
    for auto in AUTO[1:]:
        model, feeds = single("MaxPool", [x], opset=22, kernel_shape=[2], dilations=[2], auto_pad=auto)
        assert Engine(model).run(feeds)["y0"].ravel().tolist() == [1, 2, 3, 4, 5, 6, 5]
    attributes = {"kernel_shape": [2], "dilations": [3], "auto_pad": "SAME_LOWER"}
    model, feeds = single("AveragePool", [x], opset=22, **attributes)
    assert Engine(model).run(feeds)["y0"].ravel().tolist() == [1, 2, 1.5, 2.5, 3.5, 4.5, 4]
    ones = np.ones((1, 1, 2), np.float32)
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


@pytest.mark.parametrize("opset", (9, 11, 12, 13, 21))
@pytest.mark.parametrize("op", ("Softmax", "LogSoftmax", "Hardmax"))
def test_softmax_family(op, opset):
    x = np.round(20 * normal(3, 4, 5))  # ties: the first is the largest; differences that overflow exp
    x[0, 0, 1] = 500
    for axis in (None, 0, 1, 2, *((-1, -2) if opset > 10 else ())):
        agree(*single(op, [x], opset, **({} if axis is None else {"axis": axis})))
    for shape in ((7,), (2, 3), (2, 3, 2, 2)):
        agree(*single(op, [normal(*shape)], opset, axis=0))


def test_softmax_of_no_elements():
    for op in ("Softmax", "LogSoftmax"):
        for shape in ((2, 0), (0, 3)):
            model, feeds = single(op, [normal(*shape)])
            assert Engine(model).run(feeds)["y0"].shape == shape


@pytest.mark.parametrize("opset", (7, 8, 9, 10, 11, 12, 13, 14, 15, 21))
def test_batch_normalization(opset):
    for shape, epsilon in itertools.product(((4, 3), (2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4)), (1e-5, 0.1)):
        arrays = normal(*shape), normal(3), normal(3), normal(3), np.abs(normal(3)) + 0.1
        agree(*single("BatchNormalization", arrays, opset, epsilon=epsilon, momentum=0.5))


def test_batch_normalization_in_training():
    """The statistics of the batch, and the running ones as further outputs."""
    for shape in (4, 3), (2, 3, 5), (2, 3, 4, 5):
        arrays = normal(*shape), normal(3), normal(3), normal(3), np.abs(normal(3)) + 0.1
        agree(*single("BatchNormalization", arrays, 15, 3, training_mode=1, momentum=0.7))


def test_float16_normalization_computes_in_float32():
    arrays = 300 * normal(2, 3, 4), *(normal(3) for _ in range(4))
    halves = [np.abs(array).astype(np.float16) for array in arrays]
    for op, arrays in (("BatchNormalization", halves), ("Softmax", halves[:1]), ("LogSoftmax", halves[:1]),
                       ("GlobalAveragePool", halves[:1]), ("LpPool", halves[:1])):
        attributes = {"kernel_shape": [2]} if op == "LpPool" else {}
        model, feeds = single(op, arrays, **attributes)
        wide, wide_feeds = single(op, [array.astype(np.float32) for array in arrays], **attributes)
        got, expected = Engine(model).run(feeds)["y0"], Engine(wide).run(wide_feeds)["y0"]
        assert got.dtype == np.float16 and np.isfinite(got).all()
        np.testing.assert_array_equal(got, expected.astype(np.float16))


@pytest.mark.parametrize("shape", ((2, 7, 4, 5), (7, 2, 3, 3), (3, 1, 4, 4)))
def test_lrn(shape):
    for size in (1, 3, 5, 9):
        agree(*single("LRN", [3 * normal(*shape)], size=size, alpha=0.3, beta=0.6, bias=1.5))


def test_lrn_by_hand():
    """An even size reaches one channel further up; onnxruntime takes odd ones only. Any rank."""
    model, feeds = single("LRN", [np.float32([[[1], [2], [3]]])], size=2, alpha=2.0, beta=1.0, bias=1.0)
    got = Engine(model).run(feeds)["y0"].ravel()
    np.testing.assert_allclose(got, [1 / (1 + 1 + 4), 2 / (1 + 4 + 9), 3 / (1 + 9)], rtol=1e-6)


def test_lp_normalization():
    x = normal(3, 4, 5)
    x[1, 2] = 0
    for p, axis in itertools.product((1, 2), (0, 1, 2, -1)):
        agree(*single("LpNormalization", [x], p=p, axis=axis))


@pytest.mark.parametrize("mode", ("constant", "edge", "reflect", "wrap"))
def test_pad(mode):
    """Widths below zero, of which onnx.reference knows nothing; onnxruntime cuts first, then pads."""
    x, fill = normal(4, 5, 6), np.asarray(1.5, np.float32)
    for before, after in itertools.product(itertools.product((-1, 0, 2), repeat=3), ((0, 1, -2), (1, -1, 0))):
        arrays = x, np.int64([*before, *after]), *([fill] if mode == "constant" else [])
        agree(*single("Pad", arrays, mode=mode), tolerance=0)
    agree(*single("Pad", [x, np.int64([1, -2, 0, 1]), fill, np.int64([-1, 0])], mode=mode), tolerance=0)
    agree(*single("Pad", [x, np.int64([1, 0, 2, 0, 1, 0])], 13, mode="constant"), tolerance=0)


@pytest.mark.parametrize("dtype", (np.float16, np.int64, np.int8, bool))
def test_pad_of_any_type(dtype):
    x = np.ones((2, 3), dtype)
    for fill in ([], [np.asarray(1).astype(dtype)]):
        model, feeds = single("Pad", [x, np.int64([1, 0, 0, 2]), *fill])
        got, border = Engine(model).run(feeds)["y0"], int(bool(fill))
        assert got.dtype == dtype
        assert got.tolist() == [[border] * 5] + 2 * [[1, 1, 1, border, border]]


# One case of every mistake of onnx.reference that this engine mends. They are checked to be mistakes with the
# release in which they were found only: newer ones may be right.
MISTAKES = [
    ("BatchNormalization", (normal(4, 3), *(np.abs(normal(4, 3)) + 0.1)), 9, {}),
    ("Softmax", (normal(2, 3, 4),), 11, {}),
    ("LogSoftmax", (normal(2, 3, 4),), 11, {}),
    ("LogSoftmax", (np.float32([[0, 200]]),), 13, {}),
    ("Hardmax", (normal(2, 3, 4),), 11, {}),
    ("GlobalMaxPool", (normal(2, 3, 7),), 21, {}),
    ("GlobalMaxPool", (normal(2, 3, 4, 5, 6),), 21, {}),
    ("LpPool", (normal(1, 1, 7),), 21, {"kernel_shape": [2], "strides": [2], "ceil_mode": 1}),
    ("ConvTranspose", (normal(1, 4, 5), normal(4, 1, 3), normal(2)), 21, {"group": 2}),
    ("ConvTranspose", (normal(1, 4, 5), normal(4, 2, 3)), 21, {"group": 2}),
    ("LRN", (normal(2, 5, 3, 3),), 21, {"size": 3, "alpha": 0.5}),
    ("LpNormalization", (normal(2, 5),), 21, {"p": 1}),
    *((op, (normal(5, 2, 3), normal(1, rows * 4, 3), normal(1, rows * 4, 4), *more), 21,
       {"hidden_size": 4, **attributes})
      for op, rows in (("LSTM", 4), ("GRU", 3), ("RNN", 1))
      for more, attributes in (
          ((normal(1, rows * 8), np.int32([5, 3])), {}), ((), {"clip": 0.2}),
          ((), {"activations": ["Sigmoid", "Relu", "Relu"][-{"LSTM": 3, "GRU": 2, "RNN": 1}[op]:]}))),
    ("LSTM", (normal(5, 2, 3), normal(1, 16, 3), normal(1, 16, 4)), 21,
     {"hidden_size": 4, "input_forget": 1}),
]


@pytest.mark.parametrize("op, arrays, opset, attributes", MISTAKES, ids=lambda part: str(part)[:12])
def test_mistakes_of_onnx_reference(op, arrays, opset, attributes):
    model, feeds = single(op, arrays, opset, **attributes)
    agree(model, feeds)
    if onnx.__version__.startswith("1.23."):
        try:
            got = ReferenceEvaluator(model).run(None, feeds)[0]
        except Exception:
            return  # it says so
        with np.errstate(all="ignore"):
            expected = run_onnxruntime(model, feeds)[0]
            assert got.shape != expected.shape or not np.allclose(got, expected, 1e-3, 1e-3)


@pytest.mark.parametrize("a, b", [
    ((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (5, 4, 6)), ((4,), (4, 2)),
])
def test_matmul(a, b):
    agree(*single("MatMul", [normal(*a), normal(*b)]))


def test_gemm():
    for alpha, beta, left, right in itertools.product((1.0, 0.3), (1.0, 0.0, 2.5), (0, 1), (0, 1)):
        for c in ((), (1,), (5,), (3, 1), (3, 5)):
            arrays = normal(*((4, 3) if left else (3, 4))), normal(*((5, 4) if right else (4, 5))), normal(*c)
            arrays = [np.asarray(array) for array in arrays]
            agree(*single("Gemm", arrays, alpha=alpha, beta=beta, transA=left, transB=right))


@pytest.mark.parametrize("op, arrays", [
    ("MatMul", (normal(7, 300), normal(300, 5))),
    ("Gemm", (normal(7, 300), normal(300, 5), normal(5))),
    ("Conv", (normal(2, 40, 9), normal(4, 40, 3))),
])
def test_float16_products_are_summed_in_float32(op, arrays):
    halves = [array.astype(np.float16) for array in arrays]
    model, feeds = single(op, halves)
    wide, wide_feeds = single(op, [half.astype(np.float32) for half in halves])
    got, expected = Engine(model).run(feeds)["y0"], Engine(wide).run(wide_feeds)["y0"]
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, expected.astype(np.float16))


def test_transformer_block():
    width, heads, hidden = 32, 4, 80
    weights = {
        "qkv": normal(width, 3 * width) / 6, "project": normal(width, width) / 6,
        "up": normal(width, hidden) / 6, "down": normal(hidden, width) / 9,
        "gain": normal(width), "shift": normal(width),
        "split": np.int64([0, 0, 3, heads, width // heads]), "join": np.int64([0, 0, width]),
        "scale": np.float32(0.35), "0": np.int64(0), "1": np.int64(1), "2": np.int64(2),
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


# -- dequantised weights, in the forms that quantised models have --------------------------------------------

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
    codes = np.round(np.clip(normal(depth, width) * limit / 2, -limit, limit), 3)
    codes = (np.round(codes) if limit != 4 else codes).astype(numpy_type(element))
    if scale == TensorProto.FLOAT8E8M0:
        scales = RNG.integers(0, 247, (2, width), np.uint8)
        scales[0, 0] = 0
        scales = scales.view(numpy_type(scale))
    else:
        scales = (1.5 * np.abs(normal(2, width)) + 0.01).astype(numpy_type(scale))
        scales = scales if block else scales[0]
    attributes = {"axis": 0, "block_size": block} if block else {"axis": 1}
    if scale == TensorProto.FLOAT8E8M0:
        attributes["output_dtype"] = TensorProto.FLOAT
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["h"], **attributes),
             helper.make_node("Cast", ["h"], ["w"], to=TensorProto.FLOAT),
             helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = build(nodes, [free("x", "n", depth)], ["y"], {"q": codes, "s": scales}, opset, ir)
    wide = scales.astype(np.float64)
    exact = codes.astype(np.float64) * (np.repeat(wide, block, axis=0)[:depth] if block else wide)
    half = np.float16 if scale == TensorProto.FLOAT16 else np.float32
    expected = exact.astype(half).astype(np.float32)
    x = normal(3, depth)
    got = Engine(model).run({"x": x}, ["w", "y"])
    np.testing.assert_array_equal(got["w"], expected)
    np.testing.assert_array_equal(got["y"], x @ expected)


@pytest.mark.parametrize("shape, attributes, message", [
    ((3, 4), {"axis": 0, "block_size": 4}, r"must have shape \(2, 4\)"),
    ((8,), {"axis": 1}, r"must have shape \(4,\)"),
    ((1, 4), {"axis": 0}, r"must have shape \(8,\)"),
])
def test_scales_of_another_shape(shape, attributes, message):
    x = np.zeros((8, 4), np.int8)
    model, feeds = single("DequantizeLinear", [x, np.ones(shape, np.float32)], **attributes)
    with pytest.raises(InputError, match=message):
        Engine(model).run(feeds)


@pytest.mark.parametrize("kind", (TensorProto.FLOAT, TensorProto.BFLOAT16))
def test_a_number_is_dequantised(kind):
    feeds = np.asarray(-3, np.int8), np.asarray(0.5, np.float32)
    model, feeds = single("DequantizeLinear", feeds, opset=23, output_dtype=kind)
    got = Engine(model).run(feeds)["y0"]
    assert (got.dtype, got.shape, float(got)) == (numpy_type(kind), (), -1.5)


def test_scales_along_an_axis_that_is_not_there():
    model, feeds = single("DequantizeLinear", [np.zeros(3, np.int8), np.ones(3, np.float32)], axis=1)
    with pytest.raises(InputError, match=r"axis 1 is none of shape \(3,\); it must be in -1..0"):
        Engine(model).run(feeds)


def test_e8m0_scales_need_an_output_dtype():
    scale = np.ones((), numpy_type(TensorProto.FLOAT8E8M0))
    model, feeds = single("DequantizeLinear", [np.zeros(3, np.int8), scale], opset=25)
    with pytest.raises(InputError, match="E8M0 scales need an output_dtype"):
        Engine(model).run(feeds)


@pytest.mark.parametrize("kind", (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16))
def test_dequantised_weights_are_rounded_once(kind):
    """3 * scale is 1 + 2^-8 + 2^-24; in float32 that is 1 + 2^-8, a tie of bfloat16."""
    x, scale = np.int8([3, -3, 0]), np.asarray(11228502 * 2.0**-25, np.float32)
    model, feeds = single("DequantizeLinear", [x, scale], opset=23, output_dtype=kind)
    got = Engine(model).run(feeds)["y0"]
    expected = 1 + (2**-7 if kind == TensorProto.BFLOAT16 else 2**-8)
    assert got.dtype == numpy_type(kind)
    assert got.astype(np.float64).tolist() == [expected, -expected, 0]


def test_a_scale_may_not_be_e4m3():
    scale = np.ones((), numpy_type(TensorProto.FLOAT8E4M3FN))
    model, feeds = single("DequantizeLinear", [np.zeros(3, np.int8), scale])
    with pytest.raises(InputError, match="not float8_e4m3fn"):
        Engine(model).run(feeds)


def test_zero_points():
    for dtype, shape, attributes in (
        (np.uint8, (), {}), (np.int8, (5,), {"axis": -1}), (np.int32, (), {}),
        (np.uint16, (4, 2), {"axis": 1, "block_size": 3}), (np.int16, (4,), {"axis": 0}),
    ):
        x = RNG.integers(0, 100, (4, 5)).astype(dtype)
        zero = np.asarray(RNG.integers(0, 100 if dtype != np.int32 else 1, shape)).astype(dtype)
        arrays = [x, np.asarray(np.abs(normal(*shape))), zero]
        agree(*single("DequantizeLinear", arrays, **attributes), tolerance=0)


def test_two_level_scale():
    """NVFP4: E4M3 block scales times a float32 for the tensor."""
    codes = np.clip(normal(32, 4) * 3, -6, 6).astype(numpy_type(TensorProto.FLOAT4E2M1))
    scales = np.abs(normal(2, 4) * 100).astype(numpy_type(TensorProto.FLOAT8E4M3FN))
    outer = np.float32(0.0123)
    nodes = [helper.make_node("DequantizeLinear", ["s", "g"], ["sg"]),
             helper.make_node("DequantizeLinear", ["q", "sg"], ["w"], axis=0, block_size=16),
             helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = build(nodes, [free("x", "n", 32)], ["y"], {"q": codes, "s": scales, "g": outer}, 23, 11)
    inner = np.repeat(scales.astype(np.float32) * outer, 16, axis=0)
    got = Engine(model).run({"x": normal(2, 32)}, ["w"])["w"]
    np.testing.assert_array_equal(got, codes.astype(np.float32) * inner)


def test_codes_through_a_table():
    """The portable form of FP4: 4-bit codes, Cast, Gather from 16 values, Reshape, Mul by the scale."""
    values = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = np.concatenate([values, -values])
    codes = RNG.integers(0, 16, (8, 6), np.uint8)
    scales = np.ldexp(np.float32(1), RNG.integers(-3, 4, (2, 1, 6))).astype(np.float32)
    nodes = [helper.make_node("Cast", ["codes"], ["index"], to=TensorProto.INT32),
             helper.make_node("Gather", ["table", "index"], ["flat"]),
             helper.make_node("Reshape", ["flat", "blocks"], ["tiles"]),
             helper.make_node("Mul", ["tiles", "s"], ["m"]),
             helper.make_node("Reshape", ["m", "shape"], ["w"]),
             helper.make_node("MatMul", ["x", "w"], ["y"])]
    packed = codes.astype(numpy_type(TensorProto.UINT4))
    weights = {"codes": packed, "table": table, "s": scales, "blocks": np.int64([2, 4, 6]),
               "shape": np.int64([8, 6])}
    model = build(nodes, [free("x", "n", 8)], ["y"], weights)
    engine, x = Engine(model), normal(3, 8)
    expected = table[codes] * np.repeat(scales[:, 0], 4, axis=0)
    np.testing.assert_array_equal(engine.run({"x": x}, ["w"])["w"], expected)
    agree(model, {"x": x})


def test_blocks_of_a_conv_weight():
    """DequantizeLinear on the matrix [M, C*kh*kw], then Reshape; and on the 4-D weight along its channels."""
    codes = RNG.integers(-7, 8, (4, 12 * 9), np.int8)
    scales = np.abs(normal(4, 4)) + 0.1
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["m"], axis=1, block_size=32),
             helper.make_node("Reshape", ["m", "shape"], ["w"]),
             helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])]
    inputs = [free("x", "n", 12, 7, 7)]
    weights = {"q": codes, "s": scales, "shape": np.int64([4, 12, 3, 3])}
    x = normal(2, 12, 7, 7)
    agree(build(nodes, inputs, ["y"], weights), {"x": x}, tolerance=1e-3)
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1, block_size=8), nodes[2]]
    weights = {"q": codes.reshape(4, 12, 3, 3), "s": np.abs(normal(4, 2, 3, 3))}
    agree(build(nodes, inputs, ["y"], weights), {"x": x}, tolerance=1e-3)
