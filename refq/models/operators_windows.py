"""Conv, ConvTranspose and the pools: everything that slides a window over 1 to 3 (or more) dimensions."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from onnx.reference.op_run import OpRun

# Elements of the gathered operand of one matrix product in Conv: 1 MiB of float32, about an L2 cache.
CHUNK = 1 << 18


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

    def combined(self, padded, combine):
        """`combine`, np.add or np.maximum, over every window, one axis after the other."""
        for axis, (taps, stride, dilation, places) in enumerate(
                zip(self.kernel, self.strides, self.dilations, self.places), 2):
            before, length = (slice(None),) * axis, (places - 1) * stride + 1
            first, *others = (padded[(*before, slice(tap * dilation, tap * dilation + length, stride))]
                              for tap in range(taps))
            padded = combine(first, others[0]) if others else first
            for other in others[1:]:
                combine(padded, other, out=padded)
        return padded

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


def transposed_window(spatial, kernel, strides=None, dilations=None, pads=None, auto_pad="NOTSET",
                      output_padding=None, output_shape=None):
    """(Window over the output, spatial shape of the output) of a ConvTranspose: the convolution whose places
    are the elements of the input."""
    rank = len(spatial)
    strides, dilations, pads = strides or [1] * rank, dilations or [1] * rank, pads or [0] * 2 * rank
    extra = output_padding or [0] * rank
    extents = [(taps - 1) * dilation + 1 for taps, dilation in zip(kernel, dilations)]
    whole = [(size - 1) * stride + extent + more
             for size, stride, extent, more in zip(spatial, strides, extents, extra)]
    if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = output_shape or [size * stride for size, stride in zip(spatial, strides)]
        wanted = wanted[-rank:]
        total = [max(0, have - want) for have, want in zip(whole, wanted)]
        before = [cut // 2 if auto_pad == "SAME_UPPER" else cut - cut // 2 for cut in total]
        after = [cut - first for cut, first in zip(total, before)]
    else:
        before, after = ([0] * rank,) * 2 if auto_pad == "VALID" else (pads[:rank], pads[rank:])
        wanted = [have - first - last for have, first, last in zip(whole, before, after)]
    if min(wanted) < 1:
        raise ValueError(f"padding {before} and {after} leaves nothing of an output of {whole}")
    return Window(*map(tuple, (kernel, strides, dilations, before, after, spatial))), tuple(wanted)


def wide(*arrays):
    """float16 and bfloat16 arrays as float32, in which their products are exact; others as they are."""
    return [a if a is None or a.dtype.itemsize != 2 or a.dtype.kind in "iu" else a.astype(np.float32)
            for a in arrays]


def conv(x, w, b, group, win):
    """Convolution as matrix products.

    x [N, C, ...], w [M, C/group, kernel...], b [M] or None, Window -> [N, M, places...]. The operand of a
    product is gathered from as many taps of as many images as CHUNK allows: all of them when the images are
    small, one tap of one image when they are large.
    """
    if group == x.shape[1] == len(w):
        return depthwise_conv(x, w, b, win)
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


def depthwise_conv(x, w, b, win):
    """Convolution of each channel by a kernel of its own: x [N, C, ...], w [C, 1, kernel...] -> [N, C, ...].
    A matrix product has nothing to share here."""
    images, channels = x.shape[:2]
    result = np.empty((images, channels, *win.places), x.dtype)
    weights = w.reshape(channels, -1, *[1] * len(win.places))
    for image, channel in _parts(images, channels, 2 * math.prod(win.places)):
        out = result[image, channel]
        for tap, seen in enumerate(win.taps(win.padded(x[image, channel], 0))):
            if tap == 0:
                np.multiply(seen, weights[channel, 0], out=out)
            else:
                out += seen * weights[channel, tap]
        if b is not None:
            out += b[channel].reshape(-1, *[1] * len(win.places))
    return result


def _parts(images, channels, area):
    """Slices of images and of channels that have about CHUNK elements in all."""
    step = max(1, CHUNK // max(1, channels * area))
    some = channels if step > 1 else max(1, CHUNK // max(1, area))
    for image in range(0, images, step):
        for channel in range(0, channels, some):
            yield slice(image, image + step), slice(channel, channel + some)


def _pooled(x, win, fill, combine):
    """`combine` over every window of `x`, with `fill` around it: [N, C, ...] -> [N, C, places...]."""
    result = np.empty((*x.shape[:2], *win.places), x.dtype)
    for part in _parts(*x.shape[:2], math.prod(x.shape[2:])):
        result[part] = win.combined(win.padded(x[part], fill), combine)
    return result


def conv_transpose(x, w, b, group, win, spatial):
    """What conv does, backwards: every element of the input adds a kernel to the output.

    x [N, C, places...], w [C, M/group, kernel...], b [M] or None, the Window over the output and the
    output's spatial shape -> [N, M, spatial...].
    """
    images, taps = len(x), math.prod(win.kernel)
    depth, rows = len(w) // group, w.shape[1]
    weights = w.reshape(group, depth, rows, taps).transpose(3, 0, 2, 1)
    ends = [max(win.reach(axis), win.before[axis] + size) for axis, size in enumerate(spatial)]
    result = np.zeros((images, group * rows, *ends), x.dtype)
    operand = x.reshape(images, group, depth, -1)
    for weight, tap in zip(weights, win.taps(result)):
        tap += (weight @ operand).reshape(tap.shape)
    inside = [slice(before, before + size) for before, size in zip(win.before, spatial)]
    result = np.ascontiguousarray(result[(..., *inside)])
    if b is not None:
        result += b.reshape(-1, *[1] * len(spatial))
    return result


def max_pool(x, win):
    """Largest element of every window, [N, C, ...] -> [N, C, places...]; a NaN in the window gives NaN."""
    return _pooled(x, win, _lowest(x.dtype), np.maximum)


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
    result = _pooled(x, win, 0, np.add)
    counts = np.ones(())
    for axis, size in enumerate(x.shape[2:]):
        first = np.arange(win.places[axis]) * win.strides[axis] - win.before[axis]
        seen = first[:, None] + np.arange(win.kernel[axis]) * win.dilations[axis]
        begin, end = (-win.before[axis], size + win.after[axis]) if count_include_pad else (0, size)
        counts = np.multiply.outer(counts, ((seen >= begin) & (seen < end)).sum(axis=1))
    result /= counts.astype(x.dtype)
    return result


def lp_pool(x, win, p):
    """The p-norm of every window, [N, C, ...] -> [N, C, places...]."""
    return _root(_pooled(_powers(x, p), win, 0, np.add), p)


def _powers(x, p):
    return np.abs(x) if p == 1 else x * x if p == 2 else np.abs(x) ** x.dtype.type(p)


def _root(x, p):
    return x if p == 1 else np.sqrt(x) if p == 2 else x ** x.dtype.type(1 / p)


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
        return (conv(*wide(x, w, b), group, win).astype(x.dtype, copy=False),)


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
        return (average_pool(*wide(x), win, count_include_pad).astype(x.dtype, copy=False),)


class GlobalMaxPool(OpRun):
    """GlobalMaxPool over any number of spatial dimensions."""

    def _run(self, x):
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class ConvTranspose(OpRun):
    """ConvTranspose in any number of dimensions as matrix products that are added where they belong."""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None,
             output_padding=None, output_shape=None, pads=None, strides=None):
        if x.shape[1] != len(w) or len(w) % group:
            raise ValueError(f"input {x.shape} and weights {w.shape} do not fit group {group}")
        if kernel_shape and tuple(kernel_shape) != w.shape[2:]:
            raise ValueError(f"kernel_shape {kernel_shape} is not that of the weights {w.shape}")
        win, spatial = transposed_window(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad,
                                         output_padding, output_shape)
        return (conv_transpose(*wide(x, w, b), group, win, spatial).astype(x.dtype, copy=False),)


class LpPool(OpRun):
    """LpPool over sliding windows."""

    def _run(self, x, auto_pad=None, ceil_mode=None, dilations=None, kernel_shape=None, p=None, pads=None,
             strides=None):
        win = window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
        return (lp_pool(*wide(x), win, p).astype(x.dtype, copy=False),)


class GlobalLpPool(OpRun):
    """GlobalLpPool over any number of spatial dimensions."""

    def _run(self, x, p=None):
        axes = tuple(range(2, x.ndim))
        return (_root(_powers(*wide(x), p).sum(axis=axes, keepdims=True), p).astype(x.dtype, copy=False),)


class GlobalAveragePool(OpRun):
    """GlobalAveragePool over any number of spatial dimensions."""

    def _run(self, x):
        axes = tuple(range(2, x.ndim))
        return (np.mean(*wide(x), axis=axes, keepdims=True).astype(x.dtype, copy=False),)
