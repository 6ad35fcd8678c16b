"""Operators that onnx.reference computes slowly or wrongly.

OPS replaces them. Arrays in, arrays out: a ValueError raised here reaches the user as the engine's InputError
that names the node.
"""

import math

import numpy as np
import onnx
from onnx import TensorProto
from onnx.reference.op_run import OpRun

from refq.formats.codec import encode
from refq.models.operators_bodies import Loop, Scan
from refq.models.operators_recurrent import GRU, LSTM, RNN
from refq.models.operators_windows import (AveragePool, Conv, ConvTranspose, GlobalAveragePool, GlobalLpPool,
                                           GlobalMaxPool, LpPool, MaxPool, wide)


# -- quantised weights --------------------------------------------------------------------------------------

_E8M0 = onnx.helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E8M0)
_BFLOAT16 = onnx.helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
PART = 1 << 20          # values that are dequantised at a time


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


def _parts(x, operands, axis, block_size):
    """(index, operands) of parts of x along its first axis, so that the float64 values of a large weight are
    never there at once. One part where x is small, or where the operands do not fit it: `_spread` tells."""
    if x.size <= PART:
        return [(..., operands)]
    along = axis % x.ndim == 0
    group = block_size if block_size and along else 1       # rows of x that share a scale
    step = max(1, PART * len(x) // x.size // group) * group
    cut = [a is not None and a.size > 1 and (along or a.ndim > 1) for a in operands]
    if any(has and len(a) != -(-len(x) // group) for a, has in zip(operands, cut)):
        return [(..., operands)]
    return [(slice(first, first + step),
             [a[first // group:(first + step) // group] if has else a for a, has in zip(operands, cut)])
            for first in range(0, len(x), step)]


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

class MatMul(OpRun):
    """MatMul with 16-bit floats summed in float32."""

    def _run(self, a, b):
        return (np.matmul(*wide(a, b)).astype(a.dtype, copy=False),)


class Gemm(OpRun):
    """Gemm with 16-bit floats summed in float32."""

    def _run(self, a, b, c=None, alpha=None, beta=None, transA=None, transB=None):
        dtype, (a, b, c) = a.dtype, wide(a, b, c)
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
        return (_erf(*wide(x)).astype(x.dtype, copy=False),)


class Gelu(OpRun):
    """Gelu, exact by scipy's erf or by tanh."""

    def _run(self, x, approximate=None):
        (y,) = wide(x)
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
        result = np.empty(x.shape, dtype)
        for part, operands in _parts(x, (scale, zero_point), axis, block_size):
            result[part] = _rounded(dequantize_linear(x[part], *operands, axis, block_size), dtype)
        return (result,)


class BatchNormalization(OpRun):
    """BatchNormalization by the given statistics; by those of the batch only where training_mode says so."""

    def _run(self, x, scale, bias, mean, var, epsilon=None, momentum=None, training_mode=None):
        dtypes = mean.dtype, var.dtype
        wide_x, scale, bias, mean, var = wide(x, scale, bias, mean, var)
        outputs = ()
        if training_mode:
            axes = (0, *range(2, x.ndim))
            given, kept = (mean, var), wide_x.dtype.type(momentum)
            batch = wide_x.mean(axis=axes), wide_x.var(axis=axes)
            outputs = tuple((kept * old + (1 - kept) * new).astype(dtype)
                            for old, new, dtype in zip(given, batch, dtypes))
            mean, var = batch
        gain = scale / np.sqrt(var + var.dtype.type(epsilon))
        shape = (-1, *[1] * (x.ndim - 2))
        result = wide_x * gain.reshape(shape)
        result += (bias - mean * gain).reshape(shape)
        return (result.astype(x.dtype, copy=False), *outputs)[: len(self.output)]


class Softmax(OpRun):
    """Softmax along one axis."""

    def _run(self, x, axis=None):
        (y,) = wide(x)
        y = y - y.max(axis=axis, keepdims=True, initial=-np.inf)
        np.exp(y, out=y)
        y /= y.sum(axis=axis, keepdims=True)
        return (y.astype(x.dtype, copy=False),)


class LogSoftmax(OpRun):
    """LogSoftmax along one axis, finite where Softmax is too small for its dtype."""

    def _run(self, x, axis=None):
        (y,) = wide(x)
        y = y - y.max(axis=axis, keepdims=True, initial=-np.inf)
        y -= np.log(np.exp(y).sum(axis=axis, keepdims=True))
        return (y.astype(x.dtype, copy=False),)


class LRN(OpRun):
    """LRN across the channels of any number of dimensions."""

    def _run(self, x, alpha=None, beta=None, bias=None, size=None):
        (y,) = wide(x)
        channels = y.shape[1]
        sums = np.zeros((len(y), channels + size - 1, *y.shape[2:]), y.dtype)
        middle = (size - 1) // 2
        sums[:, middle : middle + channels] = y * y
        sums = sum(sums[:, offset : offset + channels] for offset in range(size))
        scale = y.dtype.type(bias) + y.dtype.type(alpha / size) * sums
        return ((y / scale ** y.dtype.type(beta)).astype(x.dtype, copy=False),)


class LpNormalization(OpRun):
    """LpNormalization by the norm along one axis, 0 where that is 0."""

    def _run(self, x, axis=None, p=None):
        (y,) = wide(x)
        norm = np.linalg.norm(y, ord=p, axis=axis, keepdims=True)
        return (np.divide(y, norm, out=np.zeros_like(y), where=norm != 0).astype(x.dtype, copy=False),)


class Pad(OpRun):
    """Pad; where a width is below zero, what it says is cut off first."""

    def _run(self, x, pads, value=None, axes=None, mode=None):
        axes = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
        if len(pads) != 2 * len(axes):
            raise ValueError(f"{len(pads)} pads for {len(axes)} axes; they must be two for each")
        cut, widths = [slice(None)] * x.ndim, [(0, 0)] * x.ndim
        for axis, before, after in zip(axes, pads.tolist(), pads[len(axes) :].tolist()):
            cut[axis] = slice(max(0, -before), x.shape[axis] + min(0, after))
            widths[axis] = max(0, before), max(0, after)
        constant = {} if mode != "constant" or value is None else {"constant_values": value.item()}
        return (np.pad(x[tuple(cut)], widths, mode, **constant),)


OPS = (DequantizeLinear, Conv, ConvTranspose, MaxPool, AveragePool, LpPool, GlobalMaxPool, GlobalAveragePool,
       GlobalLpPool, MatMul, Gemm, BatchNormalization, Relu, Erf, Gelu, Softmax, LogSoftmax, LSTM, GRU, RNN,
       LRN, LpNormalization, Pad, Loop, Scan)
