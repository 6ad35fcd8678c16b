"""The engine's own operators: against onnxruntime, and in the forms in which quantised models are written."""

import itertools

import numpy as np
import pytest
from engine_models import RNG, agree, build, free, normal, numpy_type, single, value
from onnx import TensorProto, helper

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
