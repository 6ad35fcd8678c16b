"""Run an ONNX model in numpy.

`onnx.reference` does the work, one node at a time; `OPS` replaces the operators that it computes slowly or
wrongly. Nodes that depend on weights alone (a DequantizeLinear in front of a weight, say) are computed once,
when the engine is made; every other result is dropped after its last use. Sums are taken in the dtype of the
tensors, float16 and bfloat16 products in float32.
"""

import itertools
import math
import os
from dataclasses import dataclass

import numpy
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from refq.errors import InputError

# Below 14 BatchNormalization, and below 13 Softmax, mean something that onnx.reference does not compute.
OLDEST_OPSET = 14
# Elements of the gathered operand of one matrix product in Conv: 1 MiB of float32, about an L2 cache.
CHUNK = 1 << 18


class Engine:
    """An ONNX model ready to run.

    `model` is a ModelProto or a path. Local functions are inlined and opsets below 14 raised first, on a
    copy; the proto that runs is `.model`. Raises InputError for a file that is not a model, an opset that
    cannot be raised, an operator that nothing here can run, or one known to be computed wrongly.
    """

    def __init__(self, model):
        self.model = _prepared(model)
        try:
            evaluator = ReferenceEvaluator(self.model, new_ops=list(OPS))
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"the model cannot run in numpy: {error}") from error
        graph = self.model.graph
        self.inputs = {value.name: _tensor_type(value) for value in graph.input}
        self.outputs = tuple(value.name for value in graph.output)
        self._nodes = [(node.onnx_node, node) for node in evaluator.rt_nodes_]
        self._defaults = {k: v for k, v in evaluator.rt_inits_.items() if k in self.inputs}
        self._static = {k: v for k, v in evaluator.rt_inits_.items() if k not in self.inputs}
        self._fold()

    def run(self, feeds, outputs=None):
        """`feeds`: input name -> array of exactly the dtype and shape the model declares. `outputs`: names of
        any tensors of the main graph (default: its outputs). Returns name -> array, in that order.

        Raises InputError for a feed that does not fit, an unknown name, or a node that fails (naming the
        node).
        """
        _check_feeds(feeds, self.inputs, self._defaults)
        outputs = self.outputs if outputs is None else tuple(outputs)
        steps, last_use = self._plan(outputs)
        values = {"": None, **self._static, **self._defaults, **feeds}
        for index, (node, operator) in enumerate(steps):
            _run_node(node, operator, values)
            for name in last_use.get(index, ()):
                values.pop(name, None)
        return {name: values[name] for name in outputs}

    def _fold(self):
        """Compute the nodes whose inputs are all constant and leave them out of every run."""
        values, rest = {"": None, **self._static}, []
        for node, operator in self._nodes:
            constant = all(name in values for name in node.input)
            if not constant or node.op_type in RANDOM or operator.need_context():
                rest.append((node, operator))
            else:
                _run_node(node, operator, values)
        del values[""]
        for array in values.values():  # run() may hand these out; writing to them must not change later runs
            if isinstance(array, numpy.ndarray):
                array.flags.writeable = False
        self._static, self._nodes = values, rest

    def _plan(self, outputs):
        """(the nodes that `outputs` need, in order; step -> names to drop after it)."""
        made = {name for node, _ in self._nodes for name in node.output}
        for name in outputs:
            if name not in made and name not in self.inputs and name not in self._static:
                raise InputError(f"the model has no tensor {name!r}; its outputs are {_listed(self.outputs)}")
        needed, steps = set(outputs), []
        for node, operator in reversed(self._nodes):
            if needed.intersection(node.output):
                needed |= _uses(node)
                steps.append((node, operator))
        steps.reverse()
        last = {}
        for index, (node, _) in enumerate(steps):
            last.update(dict.fromkeys(_uses(node) | set(node.output), index))
        last_use = {}
        for name in last.keys() - set(outputs) - self._static.keys() - {""}:
            last_use.setdefault(last[name], []).append(name)
        return steps, last_use


def run_batches(model, feeds, batch_size, progress=None, outputs=None):
    """Run `model` (an Engine, a ModelProto or a path) over `feeds` in parts of `batch_size` along axis 0, and
    concatenate the outputs along axis 0. Returns name -> array.

    `progress(done, total)`, if given, is called after every part with numbers of rows. Raises InputError as
    Engine.run does, when the feeds have no or different lengths, and when an output has no row for every
    input row.
    """
    engine = model if isinstance(model, Engine) else Engine(model)
    lengths = {name: numpy.shape(value)[:1] for name, value in feeds.items()}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        raise InputError(f"feeds must be arrays of one length along axis 0; here are {lengths}")
    (total,) = next(iter(lengths.values()))
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")
    parts = []
    for begin in range(0, max(total, 1), batch_size):
        end = min(begin + batch_size, total)
        part = engine.run({name: value[begin:end] for name, value in feeds.items()}, outputs)
        for name, value in part.items():
            if value.shape[:1] != (end - begin,):
                raise InputError(f"output {name!r} has shape {value.shape} for {end - begin} input rows, so "
                                 f"batches cannot be put together; run the whole at once with Engine.run")
        parts.append(part)
        if progress:
            progress(end, total)
    return {name: numpy.concatenate([part[name] for part in parts]) for name in parts[0]}


# Preparing a model


def _prepared(model):
    """ModelProto or path -> a ModelProto without local functions and of an opset that onnx.reference
    computes."""
    if isinstance(model, (str, os.PathLike)):
        try:
            model = onnx.load(model)
        except Exception as error:  # DecodeError, ValidationError, OSError: no common base
            raise InputError(f"{model} cannot be read as an ONNX model: {error}") from error
    if not isinstance(model, onnx.ModelProto):
        raise InputError(f"a model is an onnx.ModelProto or a path, not {type(model).__name__}")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    opset = next((entry.version for entry in model.opset_import if entry.domain in STANDARD), OLDEST_OPSET)
    _refuse_wrong(model.graph, opset)
    if opset >= OLDEST_OPSET:
        return model
    try:
        raised = onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except Exception as error:  # RuntimeError, ConvertError, checker errors: no common base
        raise InputError(f"the model is of opset {opset}; refq runs opset {OLDEST_OPSET} and later, and "
                         f"onnx.version_converter cannot raise it: {error}") from error
    if opset < 11:
        _keep_old_resize(raised.graph)
    return raised


def _keep_old_resize(graph):
    """Upsample and Resize below opset 11 knew one mapping of places; the converter leaves Resize at its new
    default."""
    for node in _all_nodes(graph):
        if node.op_type == "Resize" and node.domain in STANDARD:
            mapping = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            node.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in mapping.items())


def _refuse_wrong(graph, opset):
    """Refuse what onnx.reference accepts and computes wrongly, see WRONG."""
    for node in _all_nodes(graph):
        for op, below, uses, why in WRONG:
            if node.domain in STANDARD and node.op_type == op and opset < below and uses(node):
                raise InputError(f"{_title(node)} cannot run in numpy: onnx.reference {why}")


def _all_nodes(graph):
    for node in graph.node:
        yield node
        for subgraph in _subgraphs(node):
            yield from _all_nodes(subgraph)


def _subgraphs(node):
    return [g for attribute in node.attribute for g in (attribute.g, *attribute.graphs) if g.node or g.output]


def _uses(node):
    """Names a node may read: its inputs, and whatever its subgraphs mention."""
    names = set(node.input)
    for subgraph in _subgraphs(node):
        names.update(value.name for value in subgraph.output)
        for inner in subgraph.node:
            names |= _uses(inner)
    return names


def _always(node):
    return True


def _input(position):
    return lambda node: len(node.input) > position and bool(node.input[position])


def _attribute_other_than(name, *defaults):
    """Is the attribute given with a value other than the default, or other than its repetition per
    direction?"""

    def test(node):
        given = next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)
        if isinstance(given, list):
            return any(value != defaults[i % len(defaults)] for i, value in enumerate(given))
        return given is not None and given not in defaults

    return test


def _scan_outputs(node):
    """Has a Loop outputs beside those it carries from turn to turn?"""
    return len(node.output) > max(0, len(node.input) - 2)


STANDARD = ("", "ai.onnx")
ANY = math.inf
_LSTM, _GRU = (b"Sigmoid", b"Tanh", b"Tanh"), (b"Sigmoid", b"Tanh")
# (operator, in opsets below, when, what onnx.reference does): accepted, yet not what ONNX defines.
WRONG = (
    ("LSTM", ANY, _input(4), "ignores its sequence_lens"),
    ("GRU", ANY, _input(4), "ignores its sequence_lens"),
    ("RNN", ANY, _input(4), "ignores its sequence_lens"),
    ("LSTM", ANY, _attribute_other_than("activations", *_LSTM), "ignores its activations"),
    ("GRU", ANY, _attribute_other_than("activations", *_GRU), "ignores its activations"),
    ("LSTM", ANY, _attribute_other_than("clip"), "ignores its clip"),
    ("GRU", ANY, _attribute_other_than("clip"), "ignores its clip"),
    ("RNN", ANY, _attribute_other_than("clip"), "ignores its clip"),
    ("LSTM", ANY, _attribute_other_than("input_forget", 0), "ignores its input_forget"),
    ("ConvTranspose", ANY, _attribute_other_than("group", 1), "adds the bias wrongly when group is not 1"),
    ("Loop", ANY, _scan_outputs, "stacks its scan outputs wrongly"),
    ("Hardmax", 13, _always, "looks along one axis where opsets below 13 flatten all from that axis on"),
)
RANDOM = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
}


# Running


def _run_node(node, operator, values):
    """Run one node on `values` and put its outputs there."""
    context = {"context": values} if operator.need_context() else {}
    try:
        # An ONNX operator has no exceptions: an overflow is Inf, Inf - Inf is NaN, neither earns a warning.
        with numpy.errstate(all="ignore"):
            results = operator.run(*(values[name] for name in node.input), **context)
    except Exception as error:  # whatever an implementation raises, the user needs to know where
        reason = error.__cause__ or error
        raise InputError(f"{_title(node)} failed: {type(reason).__name__}: {reason}") from error
    values.update((name, value) for name, value in zip(node.output, results) if name)


def _title(node):
    return f"node {node.name or node.output[0]!r} ({node.op_type})"


def _listed(names):
    return ", ".join(repr(name) for name in names)


def _tensor_type(value):
    """(dtype, dims) of a graph input; a dim is a number, a name or None. None for what is not a numeric
    tensor, dims None for a tensor of unknown rank."""
    tensor = value.type.tensor_type
    if not tensor.elem_type or tensor.elem_type == TensorProto.STRING:
        return None
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if not tensor.HasField("shape"):
        return dtype, None
    dims = tensor.shape.dim
    return dtype, [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims]


def _check_feeds(feeds, inputs, defaults):
    """Names, dtypes and shapes of the feeds, a named dim having one length throughout."""
    unknown = [name for name in feeds if name not in inputs]
    if unknown:
        raise InputError(f"the model has no input {unknown[0]!r}; its inputs are {_listed(inputs)}")
    missing = [name for name in inputs if name not in feeds and name not in defaults]
    if missing:
        raise InputError(f"no value for input {missing[0]!r}; the inputs are {_listed(inputs)}")
    lengths = {}
    for name, value in feeds.items():
        if inputs[name]:
            _check_feed(name, value, *inputs[name], lengths)


def _check_feed(name, value, dtype, dims, lengths):
    if not isinstance(value, numpy.ndarray):
        raise InputError(f"input {name!r} is a {type(value).__name__}; it must be a numpy array of {dtype}")
    if value.dtype != dtype:
        raise InputError(f"input {name!r} is {value.dtype}; the model takes {dtype}; convert it first")
    if dims is None:
        return
    wanted = [lengths.get(dim, dim) for dim in dims]
    fits = all(not isinstance(want, int) or want == have for want, have in zip(wanted, value.shape))
    if len(wanted) != value.ndim or not fits:
        shape = ", ".join("any" if want is None else str(want) for want in wanted)
        raise InputError(f"input {name!r} has shape {value.shape}; the model takes ({shape})")
    lengths.update((dim, have) for dim, have in zip(dims, value.shape) if isinstance(dim, str))


# Windows: what Conv and the pools have in common


@dataclass(frozen=True)
class Window:
    """A window sliding over the spatial axes, one entry per axis: its kernel, stride, dilation, the padding
    declared on either side, and how many places it takes. In ceil mode the last place may reach beyond the
    padding."""

    kernel: tuple
    strides: tuple
    dilations: tuple
    before: tuple
    after: tuple
    places: tuple

    def reach(self, axis):
        """Length of the padded axis that the places cover."""
        extent = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        return (self.places[axis] - 1) * self.strides[axis] + extent

    def taps(self, padded):
        """One view per kernel element, row-major: what that element sees at every place."""
        axes = tuple(zip(self.dilations, self.places, self.strides))
        for offsets in itertools.product(*map(range, self.kernel)):
            yield padded[(..., *(
                slice(offset * dilation, offset * dilation + (places - 1) * stride + 1, stride)
                for offset, (dilation, places, stride) in zip(offsets, axes)
            ))]

    def padded(self, x, fill):
        """`x` [N, C, spatial...] with `fill` around it, as far as the window reaches."""
        spatial = x.shape[2:]
        inside = [slice(before, before + size) for before, size in zip(self.before, spatial)]
        ends = tuple(max(self.reach(axis), part.stop) for axis, part in enumerate(inside))
        if ends == spatial:
            return x
        result = numpy.full((*x.shape[:2], *ends), fill, x.dtype)
        result[(..., *inside)] = x
        return result


def window(spatial, kernel, strides=None, dilations=None, pads=None, auto_pad="NOTSET", ceil_mode=0):
    """The Window of ONNX's attributes (None: the default) over an input of the given spatial shape."""
    rank = len(spatial)
    strides, dilations, pads = strides or [1] * rank, dilations or [1] * rank, pads or [0] * 2 * rank
    axes = []
    for size, taps, stride, dilation, pad in zip(spatial, kernel, strides, dilations, zip(pads, pads[rank:])):
        extent = (taps - 1) * dilation + 1
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            total = max(0, (math.ceil(size / stride) - 1) * stride + extent - size)
            pad = (total // 2, total - total // 2)
            pad = pad if auto_pad == "SAME_UPPER" else pad[::-1]
        elif auto_pad == "VALID":
            pad = (0, 0)
        count, left = divmod(size + sum(pad) - extent, stride)
        # ceil mode takes one more place for what is left over, if it begins before the far padding
        count += 1 + (ceil_mode and left > 0 and (count + 1) * stride < size + pad[0])
        if count < 1:
            raise ValueError(f"a window of {extent} does not fit an axis of {size} with padding {pad}")
        axes.append((taps, stride, dilation, *pad, int(count)))
    return Window(*zip(*axes))


def _wide(*arrays):
    """float16 and bfloat16 arrays as float32, in which their products are exact; others as they are."""
    return [a if a is None or a.dtype.itemsize != 2 or a.dtype.kind in "iu" else a.astype(numpy.float32)
            for a in arrays]


def conv(x, w, b, group, win):
    """Convolution as matrix products.

    x [N, C, ...], w [M, C/group, kernel...], b [M] or None, Window -> [N, M, places...]. The operand of a
    product is gathered from as many taps of as many images as CHUNK allows: all of them when the images are
    small, one tap of one image, a shifted view, when they are large.
    """
    images, channels, taps, area = len(x), x.shape[1], math.prod(win.kernel), math.prod(win.places)
    per_product = min(taps, max(1, CHUNK // max(1, channels * area)))
    step = max(1, CHUNK // max(1, channels * area * per_product))
    rows, depth = len(w) // group, channels // group
    weights = w.reshape(group, rows, depth, taps).transpose(0, 1, 3, 2)
    cuts = range(0, taps, per_product)
    blocks = [weights[:, :, cut : cut + per_product].reshape(group, rows, -1) for cut in cuts]
    result = numpy.empty((images, group, rows, area), x.dtype)
    for begin in range(0, images, step):
        out = result[begin : begin + step]
        views = win.taps(win.padded(x[begin : begin + step], 0))
        views = [view.reshape(len(out), group, depth, *win.places) for view in views]
        for index, block in enumerate(blocks):
            seen = views[index * per_product : (index + 1) * per_product]
            operand = seen[0] if len(seen) == 1 else numpy.stack(seen, axis=2)
            operand = operand.reshape(len(out), group, block.shape[2], area)
            if index == 0:
                numpy.matmul(block, operand, out=out)
            else:
                out += block @ operand
    if b is not None:
        result += b.reshape(group, rows, 1)
    return result.reshape(images, len(w), *win.places)


def max_pool(x, win):
    """Largest element of every window, [N, C, ...] -> [N, C, places...]; a NaN in the window gives NaN."""
    taps = win.taps(win.padded(x, _lowest(x.dtype)))
    result = next(taps).copy()
    for tap in taps:
        numpy.maximum(result, tap, out=result)
    return result


def max_pool_with_indices(x, win, order):
    """(max_pool without its rule for NaN, int64 positions of the first maxima in `x` flattened, the spatial
    axes of every channel in `order` "C" or "F")."""
    spatial = x.shape[2:]
    positions = numpy.arange(math.prod(spatial)).reshape((1, 1, *spatial), order=order)
    taps = zip(win.taps(win.padded(x, _lowest(x.dtype))), win.taps(win.padded(positions, -1)))
    result, first = next(taps)
    result, indices = result.copy(), numpy.broadcast_to(first, result.shape).copy()
    for tap, position in taps:
        larger = (tap > result) | ((indices < 0) & (position >= 0))
        numpy.copyto(result, tap, where=larger)
        numpy.copyto(indices, position, where=larger)
    channels = numpy.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *[1] * len(spatial))
    return result, indices + channels * math.prod(spatial)


def _lowest(dtype):
    return numpy.iinfo(dtype).min if dtype.kind in "iu" else -numpy.inf


def average_pool(x, win, count_include_pad):
    """Mean of every window over its elements inside the input, or with `count_include_pad` inside the
    declared padding too; what ceil mode reaches beyond that never counts."""
    taps = win.taps(win.padded(x, 0))
    result = next(taps).copy()
    for tap in taps:
        result += tap
    counts = numpy.ones(())
    for axis, size in enumerate(x.shape[2:]):
        first = numpy.arange(win.places[axis]) * win.strides[axis] - win.before[axis]
        seen = first[:, None] + numpy.arange(win.kernel[axis]) * win.dilations[axis]
        begin, end = (-win.before[axis], size + win.after[axis]) if count_include_pad else (0, size)
        counts = numpy.multiply.outer(counts, ((seen >= begin) & (seen < end)).sum(axis=1))
    return result / counts.astype(x.dtype)


# Quantised weights


_E8M0 = onnx.helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E8M0)


def dequantize_linear(x, scale, zero_point, axis, block_size):
    """(x - zero_point) * scale in float64, where both steps are exact for every type that ONNX allows.

    `scale` and `zero_point` (or None) have no axis, the one of `axis`, or all those of `x`, one per block.
    """
    if scale.dtype.itemsize == 1 and scale.dtype != _E8M0:
        raise ValueError(f"a scale is float32, float16, bfloat16 or E8M0 in ONNX, not {scale.dtype}")
    values = _values(x)
    if zero_point is not None:
        values -= _spread(_values(zero_point), x.shape, axis, block_size)
    values *= _spread(_values(scale), x.shape, axis, block_size)
    return values


def _values(x):
    """float64 values of any array; those of a byte through a table, since ml_dtypes converts one by one."""
    if x.dtype.itemsize > 1:
        return x.astype(numpy.float64)
    return numpy.arange(256, dtype=numpy.uint8).view(x.dtype).astype(numpy.float64)[x.view(numpy.uint8)]


def _spread(scale, shape, axis, block_size):
    """`scale` in a shape that broadcasts to `shape`."""
    if scale.size == 1 and scale.ndim <= 1:
        return scale.reshape(())
    if block_size:
        blocks = list(shape)
        blocks[axis] = -(-shape[axis] // block_size)
        if scale.shape != tuple(blocks):
            raise ValueError(f"scales of shape {scale.shape} for {shape} in blocks of {block_size} along axis "
                             f"{axis}; they must have shape {tuple(blocks)}")
        cut = [slice(None)] * len(shape)
        cut[axis] = slice(shape[axis])
        return numpy.repeat(scale, block_size, axis)[tuple(cut)]
    if scale.shape != (shape[axis],):
        raise ValueError(f"scales of shape {scale.shape} for {shape} along axis {axis}; "
                         f"they must have shape {(shape[axis],)}")
    return scale.reshape([-1 if index == axis % len(shape) else 1 for index in range(len(shape))])


# Operators, called by onnx.reference with its attributes by name; a class is found by its name


class Conv(OpRun):
    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None,
             strides=None):
        if x.shape[1] != w.shape[1] * group or len(w) % group:
            raise ValueError(f"input {x.shape} and weights {w.shape} do not fit group {group}")
        if kernel_shape and tuple(kernel_shape) != w.shape[2:]:
            raise ValueError(f"kernel_shape {kernel_shape} is not that of the weights {w.shape}")
        win = window(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
        return (conv(*_wide(x, w, b), group, win).astype(x.dtype, copy=False),)


class MaxPool(OpRun):
    def _run(self, x, auto_pad=None, ceil_mode=None, dilations=None, kernel_shape=None, pads=None,
             storage_order=None, strides=None):
        win = window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
        if len(self.output) > 1:
            return max_pool_with_indices(x, win, "CF"[storage_order])
        return (max_pool(x, win),)


class AveragePool(OpRun):
    def _run(self, x, auto_pad=None, ceil_mode=None, count_include_pad=None, dilations=None,
             kernel_shape=None, pads=None, strides=None):
        win = window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
        return (average_pool(*_wide(x), win, count_include_pad).astype(x.dtype, copy=False),)


class GlobalMaxPool(OpRun):
    def _run(self, x):
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class MatMul(OpRun):
    def _run(self, a, b):
        return (numpy.matmul(*_wide(a, b)).astype(a.dtype, copy=False),)


class Gemm(OpRun):
    def _run(self, a, b, c=None, alpha=None, beta=None, transA=None, transB=None):
        dtype, (a, b, c) = a.dtype, _wide(a, b, c)
        product = (a.T if transA else a) @ (b.T if transB else b)
        if alpha != 1:
            product *= product.dtype.type(alpha)
        if c is not None and beta != 0:
            product += c if beta == 1 else c * c.dtype.type(beta)
        return (product.astype(dtype, copy=False),)


class Relu(OpRun):
    def _run(self, x):
        return (numpy.maximum(x, x.dtype.type(0)),)


class Erf(OpRun):
    def _run(self, x):
        return (_erf(*_wide(x)).astype(x.dtype, copy=False),)


class Gelu(OpRun):
    def _run(self, x, approximate=None):
        (y,) = _wide(x)
        half, one = y.dtype.type(0.5), y.dtype.type(1)
        if approximate == "tanh":
            inner = y.dtype.type(math.sqrt(2 / math.pi)) * (y + y.dtype.type(0.044715) * y * y * y)
            bell = numpy.tanh(inner)
        else:
            bell = _erf(y * y.dtype.type(math.sqrt(0.5)))
        return ((half * y * (one + bell)).astype(x.dtype, copy=False),)


def _erf(x):
    from scipy.special import erf

    return erf(x)


class DequantizeLinear(OpRun):
    def _run(self, x, scale, zero_point=None, axis=None, block_size=None, output_dtype=None):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(output_dtype) if output_dtype else scale.dtype
        return (dequantize_linear(x, scale, zero_point, axis, block_size).astype(dtype),)


OPS = (DequantizeLinear, Conv, MaxPool, AveragePool, GlobalMaxPool, MatMul, Gemm, Relu, Erf, Gelu)
