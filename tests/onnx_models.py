"""Small ONNX models built by hand, and two ways to run them, for the tests of refq.models."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from refq.models.operators import DequantizeLinear

node = helper.make_node


def rng(seed=7):
    return np.random.default_rng(seed)


def weight(*shape, seed=7, scale=1.0, dtype=np.float32):
    """Normally distributed values with a few outliers; no block is zero."""
    values = rng(seed).standard_normal(shape) * scale
    values.flat[:: max(2, values.size // 3)] *= 6
    return values.astype(dtype)


def tensor(name, array):
    return numpy_helper.from_array(np.asarray(array, order="C"), name)


def value(name, shape, type=T.FLOAT):
    return helper.make_tensor_value_info(name, type, shape)


def model(nodes, inputs, outputs, tensors=(), opset=17, ir=8, **graph):
    """inputs, outputs: {name: shape} (float32) or value infos. tensors: {name: array} or TensorProtos."""
    def infos(values):
        return [value(k, v) for k, v in values.items()] if isinstance(values, dict) else list(values)
    stored = [tensor(k, v) for k, v in tensors.items()] if isinstance(tensors, dict) else list(tensors)
    made = helper.make_graph(list(nodes), "g", infos(inputs), infos(outputs), stored, **graph)
    imports = [helper.make_opsetid("", opset)] if isinstance(opset, int) else opset
    return helper.make_model(made, opset_imports=imports, ir_version=ir)


def matmul_model(array, name="w", **options):
    """x [3, K] times a weight [K, N]."""
    k, n = array.shape
    return model([node("MatMul", ["x", name], ["y"], name="layer")], {"x": [3, k]}, {"y": [3, n]},
                 {name: array}, **options)


def run_reference(proto, feeds, outputs=None):
    """In onnx.reference as it is; with refq's DequantizeLinear where onnx has none of the model's opset."""
    try:
        return ReferenceEvaluator(proto).run(outputs, feeds)
    except (RuntimeError, TypeError) as error:
        if "DequantizeLinear" not in str(error):
            raise
        return ReferenceEvaluator(proto, new_ops=[DequantizeLinear]).run(outputs, feeds)


def run_onnxruntime(proto, feeds, outputs=None):
    """In onnxruntime's CPU kernels, node by node as written. Skips the test when it is not installed."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data = proto if isinstance(proto, str) else proto.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(outputs, feeds)


def feeds(proto, seed=3):
    """Random inputs for the graph inputs that are not initializers (free dimensions: 2)."""
    stored = {t.name for t in proto.graph.initializer}
    made = {}
    for number, info in enumerate(v for v in proto.graph.input if v.name not in stored):
        shape = [d.dim_value or 2 for d in info.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        made[info.name] = rng(seed + number).standard_normal(shape).astype(dtype)
    return made


def with_outputs(proto, names):
    """A copy whose graph outputs are the tensors named (untyped: onnxruntime infers them)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


def node_of(proto, output):
    """The node of the main graph that makes a tensor."""
    return next(n for n in proto.graph.node if output in n.output)


def _layer(op, operands, x_shape, w_shape, axis, flat=False, **attributes):
    """One layer: (its operands "x w" or "w x" with a letter of its own, ...) -> a row of LAYERS."""
    return op, operands.split(), x_shape, w_shape, (axis, flat), attributes


# One layer of every kind that is cast: name and output -> operator, operands, shapes of x and of the weight,
# (reduction axis, whether the axes from 1 on are one), attributes.
LAYERS = {
    "right": _layer("MatMul", "xr wr", [3, 50], [50, 6], 0),
    "left": _layer("MatMul", "wl xl", [50, 3], [6, 50], 1),
    "batched": _layer("MatMul", "xb wb", [2, 3, 40], [2, 40, 5], 1),
    "leftbatched": _layer("MatMul", "wc xc", [2, 40, 3], [2, 5, 40], 2),
    "vector": _layer("MatMul", "xv wv", [3, 50], [50], 0),
    "gemm": _layer("Gemm", "xg wg", [3, 50], [50, 6], 0, alpha=0.5),
    "gemmt": _layer("Gemm", "xt wt", [50, 3], [6, 50], 1, transB=1, transA=1),
    "gemma": _layer("Gemm", "wa xa", [50, 3], [6, 50], 1),
    "gemmat": _layer("Gemm", "wd xd", [50, 3], [50, 6], 0, transA=1),
    "conv1": _layer("Conv", "x1 w1", [1, 5, 9], [6, 5, 7], 1, True),
    "conv2": _layer("Conv", "x2 w2", [1, 5, 9, 9], [6, 5, 3, 3], 1, True),
    "conv3": _layer("Conv", "x3 w3", [1, 2, 5, 5, 5], [4, 2, 3, 3, 3], 1, True),
    "pointwise": _layer("Conv", "xp wp", [1, 40, 4, 4], [6, 40, 1, 1], 1, True),
    "grouped": _layer("Conv", "xq wq", [1, 8, 6, 6], [6, 4, 3, 3], 1, True, group=2),
    "depthwise": _layer("Conv", "xw ww", [1, 6, 6, 6], [6, 1, 3, 3], 1, True, group=6),
}


def weight_name(layer):
    return next(name for name in LAYERS[layer][1] if name.startswith("w"))


def input_name(layer):
    return next(name for name in LAYERS[layer][1] if name.startswith("x"))


def every_layer(dtype=np.float32, opset=17, ir=8):
    """A model with every row of LAYERS side by side. Returns (model, {output: weight array})."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, inputs, weights = [], [], {}
    for seed, (name, (op, operands, x_shape, w_shape, _, attributes)) in enumerate(LAYERS.items()):
        nodes.append(node(op, operands, [name], name=name, **attributes))
        inputs.append(value(input_name(name), x_shape, kind))
        weights[name] = weight(*w_shape, seed=seed, scale=0.1, dtype=dtype)
    outputs = [value(name, None, kind) for name in LAYERS]
    tensors = {weight_name(name): array for name, array in weights.items()}
    proto = model(nodes, inputs, outputs, tensors, opset=opset, ir=ir)
    return onnx.shape_inference.infer_shapes(proto), weights


def matrix(name, array):
    """The matrix of a layer of LAYERS: (array, reduction axis)."""
    axis, flat = LAYERS[name][4]
    return (array.reshape(len(array), -1) if flat else array), axis
