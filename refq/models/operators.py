"""Operators that onnx.reference computes slowly or wrongly.

OPS replaces them; WRONG lists what is computed wrongly still, and has to be refused. Arrays in, arrays out: a
ValueError raised here reaches the user as the engine's InputError, which names the node.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto
from onnx.reference.op_run import OpRun

from refq.formats.codec import encode

# Elements of the gathered operand of one matrix product in Conv: 1 MiB of float32, about an L2 cache.
CHUNK = 1 << 18


# -- windows: what Conv and the pools have in common --------------------------------------------------------

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
        result = np.full((*x.shape[:2], *ends), fill, x.dtype)
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
        axes.append((taps, stride, dilation, *pad, count))
    return Window(*zip(*axes))


def _wide(*arrays):
    """float16 and bfloat16 arrays as float32, in which their products are exact; others as they are."""
    return [a if a is None or a.dtype.itemsize != 2 or a.dtype.kind in "iu" else a.astype(np.float32)
            for a in arrays]


def conv(x, w, b, group, win):
    """Convolution as matrix products.

    x [N, C, ...], w [M, C/group, kernel...], b [M] or None, Window -> [N, M, places...]. The operand of a
    product is gathered from as many taps of as many images as CHUNK allows: all of them when the images are
    small, one tap of one image when they are large.
    """
    images, channels, taps, area = len(x), x.shape[1], math.prod(win.kernel), math.prod(win.places)
    per_product = min(taps, max(1, CHUNK // max(1, channels * area)))
    step = max(1, CHUNK // max(1, channels * area * per_product))
    rows, depth = len(w) // group, channels // group
    weights = w.reshape(group, rows, depth, taps).transpose(0, 1, 3, 2)
    cuts = range(0, taps, per_product)
    blocks = [weights[:, :, cut : cut + per_product].reshape(group, rows, -1) for cut in cuts]
    result = np.empty((images, group, rows, area), x.dtype)
    for begin in range(0, images, step):
        out = result[begin : begin + step]
        views = win.taps(win.padded(x[begin : begin + step], 0))
        views = [view.reshape(len(out), group, depth, *win.places) for view in views]
        for index, block in enumerate(blocks):
            seen = views[index * per_product : (index + 1) * per_product]
            operand = seen[0] if len(seen) == 1 else np.stack(seen, axis=2)
            operand = operand.reshape(len(out), group, block.shape[2], area)
            if index == 0:
                np.matmul(block, operand, out=out)
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
        np.maximum(result, tap, out=result)
    return result


def max_pool_with_indices(x, win, order):
    """(max_pool without its rule for NaN, int64 positions of the first maxima in `x` flattened, the spatial
    axes of every channel in `order` "C" or "F")."""
    spatial = x.shape[2:]
    positions = np.arange(math.prod(spatial)).reshape((1, 1, *spatial), order=order)
    taps = zip(win.taps(win.padded(x, _lowest(x.dtype))), win.taps(win.padded(positions, -1)))
    result, first = next(taps)
    result, indices = result.copy(), np.broadcast_to(first, result.shape).copy()
    for tap, position in taps:
        larger = (tap > result) | ((indices < 0) & (position >= 0))
        np.copyto(result, tap, where=larger)
        np.copyto(indices, position, where=larger)
    channels = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *[1] * len(spatial))
    return result, indices + channels * math.prod(spatial)


def _lowest(dtype):
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def average_pool(x, win, count_include_pad):
    """Mean of every window over its elements inside the input, or with `count_include_pad` inside the
    declared padding too; what ceil mode reaches beyond that never counts."""
    taps = win.taps(win.padded(x, 0))
    result = next(taps).copy()
    for tap in taps:
        result += tap
    counts = np.ones(())
    for axis, size in enumerate(x.shape[2:]):
        first = np.arange(win.places[axis]) * win.strides[axis] - win.before[axis]
        seen = first[:, None] + np.arange(win.kernel[axis]) * win.dilations[axis]
        begin, end = (-win.before[axis], size + win.after[axis]) if count_include_pad else (0, size)
        counts = np.multiply.outer(counts, ((seen >= begin) & (seen < end)).sum(axis=1))
    return result / counts.astype(x.dtype)


# -- quantised weights --------------------------------------------------------------------------------------

_E8M0 = onnx.helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E8M0)
_BFLOAT16 = onnx.helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)


def dequantize_linear(x, scale, zero_point, axis, block_size):
    """(x - zero_point) * scale in float64: both steps are exact for every type that ONNX allows, except that
    an int32 and its scale may have too many bits.

    `scale` and `zero_point` (or None) have no axis, the one of `axis`, or all those of `x`, one entry per
    block.
    """
    if scale.dtype.itemsize == 1 and scale.dtype != _E8M0:
        raise ValueError(f"a scale is float32, float16, bfloat16 or E8M0 in ONNX, not {scale.dtype}")
    values = _values(x)
    if zero_point is not None:
        values -= _spread(_values(zero_point), x.shape, axis, block_size)
    values *= _spread(_values(scale), x.shape, axis, block_size)
    return values


def _rounded(values, dtype):
    """float64 values in a narrower dtype, each rounded once; astype goes to bfloat16 by way of float32."""
    if dtype == _BFLOAT16:
        return encode(values, "bfloat16", overflow="ieee").view(dtype)
    return values.astype(dtype)


def _values(x):
    """float64 values of any array; those of a byte through a table, since ml_dtypes converts one by one."""
    if x.dtype.itemsize > 1:
        return x.astype(np.float64)
    return np.arange(256, dtype=np.uint8).view(x.dtype).astype(np.float64)[x.view(np.uint8)]


def _spread(scale, shape, axis, block_size):
    """`scale`, or the zero points, in a shape that broadcasts to `shape`."""
    if scale.size == 1 and scale.ndim <= 1:
        return scale.reshape(())
    rank = len(shape)
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} is none of shape {shape}; it must be in {-rank}..{rank - 1}")
    if block_size:
        blocks = list(shape)
        blocks[axis] = -(-shape[axis] // block_size)
        if scale.shape != tuple(blocks):
            raise ValueError(f"scales or zero points of shape {scale.shape} for {shape} in blocks of "
                             f"{block_size} along axis {axis}; they must have shape {tuple(blocks)}")
        cut = [slice(None)] * rank
        cut[axis] = slice(shape[axis])
        return np.repeat(scale, block_size, axis)[tuple(cut)]
    if scale.shape != (shape[axis],):
        raise ValueError(f"scales or zero points of shape {scale.shape} for {shape} along axis {axis}; "
                         f"they must have shape {(shape[axis],)}")
    return scale.reshape([-1 if index == axis % rank else 1 for index in range(rank)])


# -- the operators, as onnx.reference finds them: by class name, attributes by name -------------------------

class Conv(OpRun):
    """Conv in 1 to 3 dimensions as shifted matrix products."""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None,
             strides=None):
        if x.shape[1] != w.shape[1] * group or len(w) % group:
            raise ValueError(f"input {x.shape} and weights {w.shape} do not fit group {group}")
        if kernel_shape and tuple(kernel_shape) != w.shape[2:]:
            raise ValueError(f"kernel_shape {kernel_shape} is not that of the weights {w.shape}")
        win = window(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
        return (conv(*_wide(x, w, b), group, win).astype(x.dtype, copy=False),)


class MaxPool(OpRun):
    """MaxPool over sliding windows, with Indices where asked for."""

    def _run(self, x, auto_pad=None, ceil_mode=None, dilations=None, kernel_shape=None, pads=None,
             storage_order=None, strides=None):
        win = window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
        if len(self.output) > 1:
            return max_pool_with_indices(x, win, "CF"[storage_order])
        return (max_pool(x, win),)


class AveragePool(OpRun):
    """AveragePool over sliding windows."""

    def _run(self, x, auto_pad=None, ceil_mode=None, count_include_pad=None, dilations=None,
             kernel_shape=None, pads=None, strides=None):
        win = window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
        return (average_pool(*_wide(x), win, count_include_pad).astype(x.dtype, copy=False),)


class GlobalMaxPool(OpRun):
    """GlobalMaxPool over any number of spatial dimensions."""

    def _run(self, x):
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class MatMul(OpRun):
    """MatMul with 16-bit floats summed in float32."""

    def _run(self, a, b):
        return (np.matmul(*_wide(a, b)).astype(a.dtype, copy=False),)


class Gemm(OpRun):
    """Gemm with 16-bit floats summed in float32."""

    def _run(self, a, b, c=None, alpha=None, beta=None, transA=None, transB=None):
        dtype, (a, b, c) = a.dtype, _wide(a, b, c)
        product = (a.T if transA else a) @ (b.T if transB else b)
        if alpha != 1:
            product *= product.dtype.type(alpha)
        if c is not None and beta != 0:
            product += c if beta == 1 else c * c.dtype.type(beta)
        return (product.astype(dtype, copy=False),)


class Relu(OpRun):
    """Relu in one pass."""

    def _run(self, x):
        return (np.maximum(x, x.dtype.type(0)),)


class Erf(OpRun):
    """Erf by scipy."""

    def _run(self, x):
        return (_erf(*_wide(x)).astype(x.dtype, copy=False),)


class Gelu(OpRun):
    """Gelu, exact by scipy's erf or by tanh."""

    def _run(self, x, approximate=None):
        (y,) = _wide(x)
        half, one = y.dtype.type(0.5), y.dtype.type(1)
        if approximate == "tanh":
            inner = y.dtype.type(math.sqrt(2 / math.pi)) * (y + y.dtype.type(0.044715) * y * y * y)
            bell = np.tanh(inner)
        else:
            bell = _erf(y * y.dtype.type(math.sqrt(0.5)))
        return ((half * y * (one + bell)).astype(x.dtype, copy=False),)


def _erf(x):
    from scipy.special import erf

    return erf(x)


class DequantizeLinear(OpRun):
    """DequantizeLinear with one rounding, block scales checked against the shape."""

    def _run(self, x, scale, zero_point=None, axis=None, block_size=None, output_dtype=None):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(output_dtype) if output_dtype else scale.dtype
        if dtype == _E8M0:
            raise ValueError("E8M0 scales need an output_dtype: float32, float16 or bfloat16")
        return (_rounded(dequantize_linear(x, scale, zero_point, axis, block_size), dtype),)


OPS = (DequantizeLinear, Conv, MaxPool, AveragePool, GlobalMaxPool, MatMul, Gemm, Relu, Erf, Gelu)


# -- what is refused ----------------------------------------------------------------------------------------

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


_RECURRENT = ("LSTM", "GRU", "RNN")
_GATES = (b"Sigmoid", b"Tanh")
# (operators, in opsets below, which nodes, what onnx.reference does): accepted, yet not what ONNX defines.
WRONG = (
    (_RECURRENT, math.inf, _input(4), "ignores its sequence_lens"),
    (_RECURRENT, math.inf, _attribute_other_than("clip"), "ignores its clip"),
    (("LSTM",), math.inf, _attribute_other_than("activations", *_GATES, b"Tanh"), "ignores its activations"),
    (("GRU",), math.inf, _attribute_other_than("activations", *_GATES), "ignores its activations"),
    (("LSTM",), math.inf, _attribute_other_than("input_forget", 0), "ignores its input_forget"),
    (("ConvTranspose",), math.inf, _attribute_other_than("group", 1),
     "adds the bias wrongly when group is not 1"),
    (("Loop",), math.inf, _scan_outputs, "stacks its scan outputs wrongly"),
    (("Hardmax",), 13, _always, "looks along one axis where opsets below 13 flatten all from that axis on"),
)
