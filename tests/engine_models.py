"""Models of one or a few nodes for the tests of the numpy engine, and its comparison with onnxruntime."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx_models import run_onnxruntime

from refq.models.engine import Engine

RNG = np.random.default_rng(20240229)
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
    return RNG.standard_normal(shape).astype(np.float32)


def agree(model, feeds, tolerance=2e-5):
    """Every output of the engine is onnxruntime's: dtype, shape, values."""
    expected = run_onnxruntime(model, feeds)
    got = Engine(model).run(feeds)
    for (name, array), other in zip(got.items(), expected, strict=True):
        assert (array.dtype, array.shape) == (other.dtype, other.shape), name
        np.testing.assert_allclose(array, other, tolerance, tolerance, err_msg=str(model.graph.node[0]))
