"""Every data type in every export style: what the file gives back, run by two independent runtimes."""

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx_models import (LAYERS, every_layer, feeds, input_name, matmul_model, matrix, model, node, node_of,
                         run_onnxruntime, run_reference, tensor, unmatrix, weight, weight_name, with_outputs)

import refq.models.export as export
from refq.blocks.packing import unpack_codes
from refq.blocks.quantize import quantize
from refq.blocks.recipes import RECIPES
from refq.blocks.rows import DATA_TYPES, data_type
from refq.errors import InputError
from refq.formats.names import number_format
from refq.formats.rows import Int
from refq.models.quantize import quantize_model

BY_RULE = ("int2_float32_t32", "int3_bfloat16_t32", "int4_float32_channel", "int4_bfloat16_t16",
           "int16_float32_tensor", "int8_float16_t32", "uint8_float32_t32", "e4m3fn_float32_channel",
           "e5m2_float32_tensor", "e4m3fnuz_float32_t32", "e2m1_float32_channel", "e2m1_ue4m3_t16",
           "e3m4_e8m0_t32", "binary8p3se_float16_t16", "smint4_float32_channel", "smint9_float32_channel",
           "int8_ue5m3_t32", "e3m2_e5m2_t8", "mxint8_float16_t32",
           "uint4_float32_uint4_t16", "uint8_bfloat16_uint8_channel", "uint3_float16_uint3_t8",
           "uint2_float32_uint2_t16", "uint8_float32_uint8_tensor", "uint16_float32_uint16_t32",
           "uint4_float32_int8_t32", "uint4_float16_bfloat16_t32", "uint4_float32_uint4_t16n2m4",
           "nf4_float32_t16n1m3", "posit8_float32_channel", "cb42f1346_e2m3fnuz_e8m0_t32",
           "int4_e4m0scale_t16s4o1", "e2m1_e8m0_t16n2m4", "int3_e4m0scale_t8", "smint5f3_e5m0scale_t16",
           "e2m1_float32_t0x8")
UNSCALED = ("bfloat16", "binary16", "tf32", "binary32", "e4m3fn", "e2m1", "e3m2", "mxint8", "int4",
            "binary6p3se", "binary64")
TYPES = (*DATA_TYPES, *BY_RULE, *UNSCALED)


def dequantised(name, array, dtype):
    """What a layer of LAYERS must multiply with, straight from the quantiser."""
    values, axis = matrix(name, array)
    if isinstance(data_type(dtype).tile, tuple):
        if values.ndim < 2:
            return array            # skipped
        axis = 2 * values.ndim - 3 - axis, axis
    return unmatrix(name, quantize(values, dtype, axis).dequantize(np.float64).astype(np.float32))


def weight_inputs(proto):
    """{layer: the tensor its node reads as the weight} of a quantised model of every_layer()."""
    x = {v.name for v in proto.graph.input}
    return {name: next(i for i in node_of(proto, name).input if i not in x) for name in LAYERS}


def weights_seen(proto, run):
    """The weight arrays that reach the nodes when `run` executes the model."""
    names = weight_inputs(proto)
    stored = {t.name: t for t in proto.graph.initializer}
    made = [name for name in names.values() if name not in stored]
    alone = with_outputs(proto, made)
    for layer in [n for n in alone.graph.node if n.output[0] in LAYERS]:
        alone.graph.node.remove(layer)
    got = dict(zip(made, run(alone, feeds(proto)), strict=True)) if made else {}
    return {
        layer: got[name] if name in got else numpy_helper.to_array(stored[name])
        for layer, name in names.items()
    }


def assert_weights(proto, weights, dtype, run, ulps=0):
    for layer, got in weights_seen(proto, run).items():
        wanted = dequantised(layer, weights[layer], dtype)
        assert got.shape == wanted.shape, layer
        if ulps:
            assert (np.abs(got - wanted) <= ulps * np.spacing(np.abs(wanted))).all(), layer
        else:
            assert np.array_equal(got, wanted), layer


@pytest.fixture(scope="module")
def layers():
    return every_layer()


# -- every data type, style and kind of layer ----------------------------------------------------------------

@pytest.mark.share(4)
@pytest.mark.parametrize("dtype", TYPES)
def test_native_in_onnx_reference(dtype, layers):
    """Bit-equal to the quantiser; two-level scales are rounded twice by the standard pattern, so one ulp."""
    report = quantize_model(layers[0], dtype=dtype, method="rtn")
    onnx.checker.check_model(report.model, full_check=True)
    assert_weights(report.model, layers[1], dtype, run_reference, ulps=data_type(dtype).outer is not None)


@pytest.mark.share(4)
@pytest.mark.parametrize("dtype", TYPES)
def test_portable_in_both_runtimes(dtype, layers):
    """Bit-equal in onnx.reference and in onnxruntime, two-level scales included."""
    report = quantize_model(layers[0], dtype=dtype, method="rtn", export="portable")
    onnx.checker.check_model(report.model, full_check=True)
    assert_weights(report.model, layers[1], dtype, run_reference)
    assert_weights(report.model, layers[1], dtype, run_onnxruntime)


@pytest.mark.parametrize("dtype", ["mxfp4", "nvfp4", "int4", "int8", "e3m4", "mxint8"])
def test_outputs_of_every_style_agree(dtype, layers):
    """Outputs, not only weights: portable and float in onnxruntime against plain float weights."""
    proto, weights = layers
    given = feeds(proto)
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    for stored in plain.graph.initializer:
        layer = next(name for name in LAYERS if stored.name == weight_name(name))
        stored.CopyFrom(tensor(stored.name, dequantised(layer, weights[layer], dtype)))
    wanted = run_onnxruntime(plain, given)
    for style in ("portable", "float"):
        got = run_onnxruntime(quantize_model(proto, dtype=dtype, method="rtn", export=style).model, given)
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [
    "int8", "int4", "int4_float32_t32", "uint8", "uint4", "uint8_float32_uint8_tensor",
    "uint3_float16_uint3_t8", "e4m3fn_float32_t32", "e5m2_float32_channel", "e4m3fn",
    "int16_float32_tensor", "bfloat16", "binary16"
])
def test_native_in_onnxruntime_where_it_has_the_types(dtype, layers):
    after = quantize_model(layers[0], dtype=dtype, method="rtn").model
    assert_weights(after, layers[1], dtype, run_onnxruntime)


def test_float_keeps_graph_names_and_opset(layers):
    report = quantize_model(layers[0], dtype="mxfp4", method="rtn", export="float")
    before, after = layers[0].graph, report.model.graph
    assert [n.SerializeToString() for n in after.node] == [n.SerializeToString() for n in before.node]
    assert [t.name for t in after.initializer] == [t.name for t in before.initializer]
    assert report.model.opset_import[0].version == 17 and report.model.ir_version == 8
    assert_weights(report.model, layers[1], "mxfp4", run_onnxruntime)


# -- what lies in the file -----------------------------------------------------------------------------------

def stored(dtype, array=None, style="native"):
    """{suffix: TensorProto} and the nodes of a MatMul weight [K, N] in a data type."""
    report = quantize_model(matmul_model(weight(50, 6) if array is None else array), dtype=dtype,
                            method="rtn", export=style)
    tensors = {t.name.removeprefix("w_"): t for t in report.model.graph.initializer}
    return tensors, list(report.model.graph.node), report


# Typed by hand from the ONNX operator documentation: DequantizeLinear's types by opset, IR of each opset.
NATIVE = {
    "mxfp8_e4m3": ("FLOAT8E4M3FN", "FLOAT8E8M0", 24, 12),
    "mxfp8_e5m2": ("FLOAT8E5M2", "FLOAT8E8M0", 24, 12),
    "mxfp6_e2m3": ("FLOAT6E2M3", "FLOAT8E8M0", 28, 14),
    "mxfp6_e3m2": ("FLOAT6E3M2", "FLOAT8E8M0", 28, 14),
    "mxfp4": ("FLOAT4E2M1", "FLOAT8E8M0", 24, 12),
    "mxint8": ("INT8", "FLOAT8E8M0", 24, 12),
    "nvfp4": ("FLOAT4E2M1", "FLOAT8E4M3FN", 23, 11),
    "mxint4": ("INT4", "FLOAT8E8M0", 24, 12),
    "uint8": ("UINT8", "FLOAT", 17, 8),
    "uint4": ("UINT4", "FLOAT16", 21, 10),
    "uint2_float32_uint2_t16": ("UINT2", "FLOAT", 25, 13),
    "int8": ("INT8", "FLOAT", 17, 8),
    "int8_float32_t32": ("INT8", "FLOAT", 21, 10),
    "int4": ("INT4", "FLOAT16", 21, 10),
    "int4_bfloat16_t16": ("INT4", "BFLOAT16", 21, 10),
    "int2_float32_t32": ("INT2", "FLOAT", 25, 13),
    "int3_float32_channel": ("INT4", "FLOAT", 21, 10),
    "int9_float32_tensor": ("INT16", "FLOAT", 21, 10),
    "e4m3fn_float32_channel": ("FLOAT8E4M3FN", "FLOAT", 19, 9),
    "e5m2fnuz_float32_t32": ("FLOAT8E5M2FNUZ", "FLOAT", 21, 10),
    "uint4_float32_t32": ("UINT4", "FLOAT", 21, 10),
}
PORTABLE = {
    "mxfp8_e4m3": ("FLOAT8E4M3FN", "UINT8", 21, 10),
    "mxfp6_e2m3": ("UINT8", "UINT8", 17, 8),
    "mxfp4": ("UINT8", "UINT8", 17, 8),
    "mxint8": ("INT8", "UINT8", 21, 10),
    "nvfp4": ("UINT8", "FLOAT8E4M3FN", 19, 9),
    "nf4_t64": ("UINT8", "FLOAT", 17, 8),
    "b4int3": ("UINT8", "UINT8", 17, 8),
    "uint4": ("UINT4", "FLOAT16", 21, 10),
    "uint2_float32_uint2_t16": ("UINT8", "FLOAT", 17, 8),
    "int8": ("INT8", "FLOAT", 17, 8),
    "int4": ("INT4", "FLOAT16", 21, 10),
    "int4_bfloat16_t16": ("INT4", "FLOAT", 21, 10),
    "int2_float32_t32": ("UINT8", "FLOAT", 17, 8),
}
STORED = [("native", *row) for row in NATIVE.items()] + [("portable", *row) for row in PORTABLE.items()]


@pytest.mark.parametrize("style, dtype, row", STORED)
def test_types_opset_and_ir(style, dtype, row):
    tensors, _, report = stored(dtype, style=style)
    kind, scale, opset, ir = row
    if not hasattr(T, kind):
        pytest.skip(f"the installed onnx has no {kind}")
    assert tensors["quantized"].data_type == getattr(T, kind)
    assert tensors["scale"].data_type == getattr(T, scale)
    assert (report.model.opset_import[0].version, report.model.ir_version) == (opset, ir)


def test_the_bytes_are_the_quantisers_bytes():
    array = weight(50, 6)
    packed = quantize(array, "mxfp4", 0).pack()
    tensors, nodes, report = stored("mxfp4", array)
    assert tensors["quantized"].raw_data == packed.codes.tobytes()
    assert tensors["scale"].raw_data == packed.scales.tobytes()
    assert [list(tensors[name].dims) for name in ("quantized", "scale")] == [[50, 6], [2, 6]]
    dequantize = nodes[0]
    attributes = {a.name: a.i for a in dequantize.attribute}
    assert dequantize.op_type == "DequantizeLinear"
    assert attributes == {"axis": 0, "block_size": 32, "output_dtype": T.FLOAT}
    assert report.rows[0].stored_bits == (150 + 12) * 8 / 300 == report.rows[0].bits


def test_zero_points_lie_beside_the_scales():
    array = weight(50, 6)
    q = quantize(array, "uint4", 0)
    for style in ("native", "portable"):
        tensors, nodes, report = stored("uint4", array, style)
        assert tensors["zero_point"].raw_data == q.pack().zeros.tobytes()
        assert [list(tensors[name].dims) for name in ("scale", "zero_point")] == [[2, 6], [2, 6]]
        dequantize = next(n for n in nodes if n.op_type == "DequantizeLinear")
        assert [dequantize.input[0], dequantize.input[2]] == ["w_quantized", "w_zero_point"]
        assert report.rows[0].encoding == "UINT4 under DequantizeLinear, FLOAT16 scale, UINT4 zero point"
        assert report.rows[0].stored_bits == report.rows[0].bits


def test_zero_points_in_a_table():
    """Elements and zero points of two formats: each looked up, then subtracted."""
    _, nodes, report = stored("uint4_float32_int8_t32", style="portable")
    kinds = [n.op_type for n in nodes if n.op_type in ("Gather", "Sub", "Mul")]
    assert kinds == ["Gather", "Gather", "Sub", "Mul"]
    assert report.rows[0].encoding.endswith("FLOAT scale, UINT8 zero point")


def test_sparse_weights_are_written_with_their_zeros():
    tensors, _, report = stored("mxfp4_2of4")
    assert list(tensors["quantized"].dims) == [50, 6]
    assert report.rows[0].encoding.endswith("FLOAT8E8M0 scale, dropped values as zeros")


@pytest.mark.parametrize("style", ["native", "portable"])
def test_tensor_scales_that_divide(style, monkeypatch):
    """A recipe that keeps the reciprocal of the tensor scale: divided by it, and rounded once."""
    row = replace(RECIPES["exact"], name="reciprocal", tensor="divisor")
    monkeypatch.setitem(RECIPES, "reciprocal", row)
    array = weight(50, 6)
    after = quantize_model(matmul_model(array), dtype="nvfp4", method="rtn", export=style,
                           recipe="reciprocal").model
    assert "Div" in [n.op_type for n in after.graph.node]
    run = run_onnxruntime if style == "portable" else run_reference
    got = run(with_outputs(after, [node_of(after, "y").input[1]]), feeds(after))[0]
    assert np.array_equal(got, quantize(array, "nvfp4", 0, recipe="reciprocal").dequantize())


def test_onnxruntime_names():
    _, nodes, report = stored("int8")
    assert [t.name for t in report.model.graph.initializer] == ["w_quantized", "w_scale"]
    assert (nodes[0].name, nodes[0].output[0]) == ("w_DequantizeLinear", "w_DequantizeLinear_Output")
    assert nodes[1].name == "layer" and list(nodes[1].output) == ["y"]


def test_two_levels_in_the_standard_pattern():
    tensors, nodes, _ = stored("nvfp4")
    assert [n.op_type for n in nodes] == ["DequantizeLinear", "DequantizeLinear", "MatMul"]
    assert nodes[0].output[0] == nodes[1].input[1] and list(nodes[0].input) == ["w_scale", "w_scale_2"]
    assert tensors["scale_2"].data_type == T.FLOAT and not tensors["scale_2"].dims


def test_convolutions_are_blocked_along_the_flattened_reduction():
    proto = model([node("Conv", ["x", "w"], ["y"])], {"x": [1, 5, 9, 9]}, {"y": None},
                  {"w": weight(6, 5, 3, 3)})
    after = quantize_model(proto, dtype="mxfp4", method="rtn").model
    tensors = {t.name: t for t in after.graph.initializer}
    assert [n.op_type for n in after.graph.node] == ["DequantizeLinear", "Reshape", "Conv"]
    assert list(tensors["w_quantized"].dims) == [6, 45] and list(tensors["w_scale"].dims) == [6, 2]
    per_channel = quantize_model(proto, dtype="int8", method="rtn").model  # as quantising tools write it
    assert [n.op_type for n in per_channel.graph.node] == ["DequantizeLinear", "Conv"]
    dims = {t.name: list(t.dims) for t in per_channel.graph.initializer}
    assert dims == {"w_quantized": [6, 5, 3, 3], "w_scale": [6]}


def written(layer, dtype, style="native"):
    """(operators, dims of codes and scales, attributes of the first operator, opset) of a layer of LAYERS."""
    op, operands, x_shape, w_shape, _, attributes = LAYERS[layer]
    proto = model([node(op, operands, ["y"], **attributes)], {input_name(layer): x_shape}, {"y": None},
                  {weight_name(layer): weight(*w_shape)})
    after = quantize_model(proto, dtype=dtype, method="rtn", export=style).model
    dims = {t.name.split("_")[-1]: list(t.dims) for t in after.graph.initializer}
    first = after.graph.node[0]
    return ([n.op_type for n in after.graph.node], dims["quantized"], dims["scale"],
            {a.name: a.i for a in first.attribute if a.name != "output_dtype"}, after.opset_import[0].version)


OPERATORS = {"D": "DequantizeLinear", "R": "Reshape", "T": "Transpose"}


@pytest.mark.parametrize("layer, dtype, nodes, codes, scale, attributes, opset", [
    # one scale a row needs nothing more where the rows are axes of the weight
    ("up2", "int8", "D", [5, 6, 3, 3], [6], {"axis": 1}, 17),
    ("right", "int8", "D", [50, 6], [6], {"axis": 1}, 17),
    ("conv2", "int8", "D", [6, 5, 3, 3], [6], {"axis": 0}, 17),
    ("merged", "int8", "D", [2, 20, 6], [6], {"axis": 2}, 17),
    ("between", "int8", "D", [2, 40, 3], [2, 1, 3], {"axis": 1, "block_size": 40}, 21),
    ("perhead", "int8", "D", [2, 40, 5], [2, 1, 5], {"axis": 1, "block_size": 40}, 21),
    ("dot", "int8", "D", [40], [], {}, 17),
    ("crossed", "int8", "DT", [2, 6, 40], [2, 6, 1], {"axis": 2, "block_size": 40}, 21),
    ("upgrouped", "int8", "DRTR", [6, 36], [6], {"axis": 0}, 17),
    ("upgrouped", "int8_float32_tensor", "D", [8, 3, 3, 3], [], {}, 17),
    # tiles lie along one axis
    ("heads", "int4_float32_t32", "D", [40, 2, 3], [2, 2, 3], {"axis": 0, "block_size": 32}, 21),
    ("merged", "int4_float32_t32", "DR", [40, 6], [2, 6], {"axis": 0, "block_size": 32}, 21),
    ("pointwise", "int4_float32_t32", "D", [6, 40, 1, 1], [6, 2, 1, 1], {"axis": 1, "block_size": 32}, 21),
    ("up2", "int4_float32_t32", "DRT", [6, 45], [6, 2], {"axis": 1, "block_size": 32}, 21),
    ("updepth", "int4_float32_t32", "DR", [6, 36], [6, 2], {"axis": 1, "block_size": 32}, 21),
])
def test_where_codes_lie_as_the_weight_does(layer, dtype, nodes, codes, scale, attributes, opset):
    op, operands, x_shape, w_shape, _, own = LAYERS[layer]
    proto = model([node(op, operands, ["y"], **own)], {input_name(layer): x_shape}, {"y": None},
                  {weight_name(layer): weight(*w_shape)})
    after = quantize_model(proto, dtype=dtype, method="rtn").model
    dims = {t.name.split("_")[-1]: list(t.dims) for t in after.graph.initializer}
    assert [n.op_type for n in after.graph.node] == [*(OPERATORS[letter] for letter in nodes), op]
    assert (dims["quantized"], dims["scale"]) == (codes, scale)
    assert {a.name: a.i for a in after.graph.node[0].attribute} == attributes
    assert after.opset_import[0].version == opset


def test_weights_of_recurrent_layers():
    """Codes and scales of W [1, 3H, I] and R [1, 3H, H] lie as these do."""
    proto = model([node("GRU", ["x", "w", "r"], ["y"], hidden_size=6)], {"x": [5, 2, 40]}, {"y": None},
                  {"w": weight(1, 18, 40), "r": weight(1, 18, 6)})
    after = quantize_model(proto, dtype="int4_float32_t32", method="rtn").model
    tensors = {t.name: t for t in after.graph.initializer}
    assert list(tensors["w_quantized"].dims) == [1, 18, 40] and list(tensors["r_scale"].dims) == [1, 18, 1]
    for name, shape in (("w", (1, 18, 40)), ("r", (1, 18, 6))):
        q = quantize(weight(*shape), "int4_float32_t32", 2)
        assert tensors[f"{name}_quantized"].raw_data == q.pack().codes.tobytes()
        assert tensors[f"{name}_scale"].raw_data == q.pack().scales.tobytes()
    after = quantize_model(proto, dtype="int8", method="rtn").model     # one direction: scales of gates alone
    assert [list(t.dims) for t in after.graph.initializer if "scale" in t.name] == [[18], [18]]
    assert after.opset_import[0].version == 17


def test_value_tables_are_shared(layers):
    after = quantize_model(layers[0], dtype="mxfp4", method="rtn", export="portable").model
    tables = {t.name: t for t in after.graph.initializer if t.name.startswith("refq_")}
    assert set(tables) == {"refq_e2m1_values", "refq_e8m0_values"}
    pairs, e2m1 = numpy_helper.to_array(tables["refq_e2m1_values"]), np.array([0, .5, 1, 1.5, 2, 3, 4, 6])
    signed = np.concatenate([e2m1, -e2m1])
    assert pairs.shape == (256, 2) and np.signbit(pairs[8, 0])
    assert np.array_equal(pairs[:, 0], np.tile(signed, 16))
    assert np.array_equal(pairs[:, 1], np.repeat(signed, 16))


def test_negative_zero_survives_in_tables():
    array = np.zeros((32, 1), np.float32)
    array[:2] = [[-1e-9], [6.0]]
    after = quantize_model(matmul_model(array), dtype="mxfp4", method="rtn", export="portable").model
    got = run_onnxruntime(with_outputs(after, [node_of(after, "y").input[1]]), feeds(after))[0]
    assert got[0, 0] == 0 and np.signbit(got[0, 0])


@pytest.mark.parametrize("codes, bits, wide, expected", [
    ([0, 1, 3, 4, 7], 3, 4, [0, 1, 3, 12, 15]), ([0, 255, 256, 511], 9, 16, [0, 255, 0xFF00, 0xFFFF])])
def test_integers_are_sign_extended_into_wider_carriers(codes, bits, wide, expected):
    carrier = next(c for c in export.ELEMENTS if c.type == f"INT{wide}")
    raw = export._element_bytes(np.array(codes), Int("i", bits), carrier)
    assert unpack_codes(np.frombuffer(raw, np.uint8), wide, len(codes)).tolist() == expected


def test_fraction_bits_move_into_the_exponent_scale():
    tensors, _, _ = stored("mxint8", np.full((32, 1), 1.5, np.float32))
    assert tensors["scale"].raw_data == bytes([127 - 6]) and tensors["quantized"].raw_data == bytes([96]) * 32


def test_scales_too_small_for_that_become_float32():
    """A block at 2^-126 has the scale code 1; 2^-6 of it is below E8M0. Blocks of zeros do not matter."""
    small = np.zeros((64, 1), np.float32)
    small[32:] = 1.5 * 2.0 ** -126
    tensors, _, report = stored("mxint8", small)
    assert tensors["scale"].data_type == T.FLOAT and "FLOAT scale" in report.rows[0].encoding
    small[32:] = 1.5
    tensors, _, _ = stored("mxint8", small)
    assert tensors["scale"].data_type == T.FLOAT8E8M0 and tensors["scale"].raw_data == bytes([0, 121])
    tensors, _, report = stored("mxint8", small * np.float32(2.0 ** -126), style="portable")
    assert tensors["scale"].data_type == T.UINT8


# -- fallbacks -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype, style, used, reason", [
    ("e3m4_e8m0_t32", "native", "portable", "e3m4 has no native encoding in ONNX"),
    ("tf32", "native", "float", "tf32 has no native or portable encoding in ONNX"),
    ("tf32", "portable", "float", "tf32 has no portable encoding in ONNX"),
    ("mxfp4_16x16", "native", "float", "tiles of two dimensions have no encoding in ONNX"),
    ("mx9", "portable", "float", "subtiles have no encoding in ONNX"),
    ("cb42f1346_e2m3fnuz_e8m0_t32", "native", "float", "choices among codebooks have no encoding in ONNX"),
    ("uint4_float16_bfloat16_t32", "native", "float", "floating zero points have no encoding in ONNX"),
    ("uint16_float32_int8_t32", "portable", "float",
     "uint16 with zero points of int8 has no portable encoding in ONNX"),
    ("nf4_t64", "native", "portable", "nf4 has no native encoding in ONNX"),
    ("mx9", "float", "float", ""),
    ("tf32", "float", "float", ""), ("mxfp4", "native", "native", ""), ("mxfp4", "portable", "portable", ""),
])
def test_styles_fall_back_with_the_reason(dtype, style, used, reason):
    plan = export.plan(data_type(dtype), style)
    assert (plan.style, plan.reason) == (used, reason)


def test_an_onnx_without_the_type(monkeypatch):
    """As with onnx before 1.23, which knows no FP6: the portable encoding, and the report says why."""
    monkeypatch.setattr(export.Carrier, "available", property(lambda self: "FLOAT6" not in self.type))
    _, nodes, report = stored("mxfp6")
    assert "Gather" in [n.op_type for n in nodes]
    reason = "e2m3 has no native encoding in ONNX (the installed onnx has no FLOAT6E2M3)"
    assert report.rows[0].reason == reason


def test_tables_that_float32_cannot_hold_become_float_values():
    """The least value of this format, cast without a scale, is 2^-151: none of float32."""
    _, _, report = stored("e5m2b150ieee", style="portable")
    assert report.rows[0].encoding == "float32 values" and "not exact in float32" in report.rows[0].reason


def test_unknown_style():
    with pytest.raises(InputError, match="'packed' is not known; allowed are native, portable, float"):
        export.plan(data_type("mxfp4"), "packed")


# -- types of the file ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("style", export.STYLES)
@pytest.mark.parametrize("kind", [T.FLOAT16, T.BFLOAT16, T.DOUBLE])
def test_files_of_other_float_types(kind, style):
    """Computed in float32, handed on in the file's type, which the graph keeps."""
    numpy_type = helper.tensor_dtype_to_np_dtype(kind)
    array = weight(50, 6, scale=0.1).astype(numpy_type)
    proto = model([node("MatMul", ["x", "w"], ["y"])],
                  [helper.make_tensor_value_info("x", kind, [3, 50])],
                  [helper.make_tensor_value_info("y", kind, [3, 6])], {"w": array})
    after = quantize_model(proto, dtype="mxfp4", method="rtn", export=style).model
    onnx.checker.check_model(after, full_check=True)
    if style == "float":
        got = numpy_helper.to_array(after.graph.initializer[0])
    else:
        got = run_reference(with_outputs(after, [node_of(after, "y").input[1]]), feeds(after))[0]
    wanted = quantize(array, "mxfp4", 0).dequantize().astype(numpy_type)
    assert got.dtype == numpy_type and np.array_equal(got, wanted)


# -- the tables themselves -----------------------------------------------------------------------------------

def test_carriers_hold_what_they_accept():
    for carrier in (*export.ELEMENTS, *export.SCALES):
        assert carrier.read in ("dequantize", "direct", "cast", "table", "values")
        assert set(carrier.styles) <= set(export.STYLES)
        size = re.search(r"\d+", carrier.type)
        assert carrier.bits * carrier.lanes == int(size[0] if size else 32), carrier
    for name in ("e2m1", "e3m2", "e4m3fn", "int5", "smint3", "binary8p4se"):
        element = number_format(name)
        for style in export.STYLES[:-1]:
            carrier = export._first(export.ELEMENTS, element, style)
            assert carrier is None or carrier.bits >= element.width
