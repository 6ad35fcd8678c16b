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


def _layer(op, operands, x_shape, w_shape, along, matrix=None, **attributes):
    """One layer: (its operands "x w" or "w x" with a letter of its own, ...) -> a row of LAYERS."""
    return op, operands.split(), x_shape, w_shape, (along, matrix or (lambda w: w)), attributes


def _rows(w):
    """Axes from 1 on as one."""
    return w.reshape(len(w), -1)


def _rows_of_groups(groups):
    """A ConvTranspose's [C, M/groups, taps...] as [M, C/groups * taps]."""
    def matrix(w):
        w = w.reshape(groups, len(w) // groups, w.shape[1], -1)
        return w.transpose(0, 2, 1, 3).reshape(groups * w.shape[2], -1)
    return matrix


# One layer of every kind that is cast: name and output -> operator, operands, shapes of x and of the weight,
# (reduction axis of the matrix, the matrix of the weight), attributes.
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
    "conv1": _layer("Conv", "x1 w1", [1, 5, 9], [6, 5, 7], 1, _rows),
    "conv2": _layer("Conv", "x2 w2", [1, 5, 9, 9], [6, 5, 3, 3], 1, _rows),
    "conv3": _layer("Conv", "x3 w3", [1, 2, 5, 5, 5], [4, 2, 3, 3, 3], 1, _rows),
    "pointwise": _layer("Conv", "xp wp", [1, 40, 4, 4], [6, 40, 1, 1], 1, _rows),
    "grouped": _layer("Conv", "xq wq", [1, 8, 6, 6], [6, 4, 3, 3], 1, _rows, group=2),
    "depthwise": _layer("Conv", "xw ww", [1, 6, 6, 6], [6, 1, 3, 3], 1, _rows, group=6),
    "up1": _layer("ConvTranspose", "xh wh", [1, 40, 5], [40, 6, 1], 1, _rows_of_groups(1), strides=[2]),
    "up2": _layer("ConvTranspose", "xi wi", [1, 5, 4, 4], [5, 6, 3, 3], 1, _rows_of_groups(1)),
    "upgrouped": _layer("ConvTranspose", "xj wj", [1, 8, 4, 4], [8, 3, 3, 3], 1, _rows_of_groups(2), group=2),
    "updepth": _layer("ConvTranspose", "xk wk", [1, 6, 4, 4], [6, 1, 6, 6], 1, _rows_of_groups(6), group=6),
    "sum": _layer("Einsum", "xm wm", [2, 3, 40], [40, 6], 0, equation="bsd,df->bsf"),
    "heads": _layer("Einsum", "xn wn", [2, 3, 40], [40, 2, 3], 0, lambda w: w.reshape(40, 6),
                    equation="bsd,dhe->bhse"),
    "merged": _layer("Einsum", "xo wo", [2, 2, 3, 20], [2, 20, 6], 0, lambda w: w.reshape(40, 6),
                     equation="bhse,hed->bsd"),
    "between": _layer("Einsum", "xs ws", [2, 3, 40], [2, 40, 3], 1,
                      lambda w: w.swapaxes(1, 2).reshape(6, 40), equation="bsd,hdk->bshk"),
    "perhead": _layer("Einsum", "xu wu", [1, 2, 3, 40], [2, 40, 5], 1, equation="bhsd,hde->bhse"),
    "crossed": _layer("Einsum", "xy wy", [2, 3, 40], [6, 2, 40], 2, lambda w: w.swapaxes(0, 1),
                      equation="ebd,fed->ebf"),
    "dot": _layer("Einsum", "xz wz", [3, 40], [40], 1, lambda w: w[None], equation="bd,d"),
    "table": _layer("Gather", "we xe", [3], [9, 50], 1),
    "columns": _layer("Gather", "wf xf", [3], [50, 9], 0, axis=-1),
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
        inputs.append(value(input_name(name), x_shape, T.INT64 if op == "Gather" else kind))
        weights[name] = weight(*w_shape, seed=seed, scale=0.1, dtype=dtype)
    outputs = [value(name, None, kind) for name in LAYERS]
    tensors = {weight_name(name): array for name, array in weights.items()}
    proto = model(nodes, inputs, outputs, tensors, opset=opset, ir=ir)
    return onnx.shape_inference.infer_shapes(proto), weights


def matrix(name, array):
    """The matrix of a layer of LAYERS: (array, reduction axis)."""
    axis, view = LAYERS[name][4]
    return view(array), axis


def unmatrix(name, values):
    """The weight of a layer of LAYERS from its matrix."""
    shape = LAYERS[name][3]
    places = LAYERS[name][4][1](np.arange(values.size).reshape(shape))
    result = np.empty(values.size, values.dtype)
    result[places.ravel()] = values.ravel()
    return result.reshape(shape)
