"""What weights lost, counted one by one."""

import math
from fractions import Fraction

import numpy as np
import pytest
from onnx_models import weight

from refq.blocks.quantize import quantize
from refq.blocks.rows import data_type
from refq.formats.codec import decode
from refq.models import measure as measuring
from refq.models import page
from refq.models.measure import measure


def measured(x, dtype, axis=-1):
    q = quantize(x, dtype, axis)
    return measure(x, q, q.dequantize()), q


def parts_of(q, size):
    """{axis: values} of parts of a size of the data type's row, a number, "channel" or a pair."""
    axes = q.axis if isinstance(q.axis, tuple) else (q.axis,)
    sizes = size if isinstance(size, tuple) else (size,)
    return {axis: q.shape[axis] if n == "channel" else n for axis, n in zip(axes, sizes, strict=True)}


def part_at(parts, q, index, size):
    """The entry of an array of parts that a value belongs to."""
    if size == "tensor":
        return parts.reshape(-1)[0]
    sizes = parts_of(q, size)
    return parts[tuple(place // sizes.get(axis, 1) for axis, place in enumerate(index))]


def fraction(code, row):
    return Fraction(float(decode(np.array([code]), row, np.float64)[0]))


def beyond(target, row, shift=0):
    """Whether a number rounds to nearest even past the ends of a format that are moved by an integer."""
    values = [Fraction(value) for value, _ in row.ascending] if row.is_listed else ()
    top, bottom = row.max - shift, row.lowest - shift
    if row.is_listed:
        return target > top + (top - values[-2]) / 2 or target < bottom - (values[1] - bottom) / 2
    ulp = 2 * (row.overflow_threshold - row.max)
    rest, end = (target - top, top) if target > top else (bottom - target, bottom)
    return rest > ulp / 2 or (rest == ulp / 2 and (end / ulp) % 2 == 1)


def exact_saturation(x, q):
    """Element by element, in fractions: does it round to nearest even beyond the largest value?"""
    block, count = q.dtype, 0
    for index in np.ndindex(x.shape):
        if q.mask is not None and not q.mask[index]:
            continue
        scale, shift, target = Fraction(1), 0, Fraction(float(x[index]))
        if q.scales is not None:
            scale = fraction(part_at(q.scales, q, index, block.tile), block.scale_row)
            for (size, _), offsets in zip(block.subtiles, q.offsets):
                offset = int(part_at(offsets, q, index, size))
                scale *= Fraction(2) ** (offset if block.rule == "hif4" else -offset)
            scale *= Fraction(float(q.tensor_scale)) if q.tensor_scale is not None else 1
        if scale == 0:
            continue
        if q.zeros is not None:
            zero = fraction(part_at(q.zeros, q, index, block.tile), block.zero_row)
            shift, target = (0, target + zero) if block.zero_row.is_float else (zero, target)
        table = 0 if q.tables is None else part_at(q.tables, q, index, block.select_size)
        count += beyond(target / scale, block.tables[table], shift) and x[index] != 0
    return count / x.size


@pytest.mark.parametrize("dtype", [
    "mxfp4", "mxfp8_e4m3", "mxfp6_e2m3", "mxint8", "nvfp4", "int8", "int4", "e2m1", "e4m3fn",
    "int8_float32_tensor", "uint4_float32_t32", "e3m2_float32_channel",
    "mxfp4_16x16", "nvfp4_16x16", "e2m1_e8m0_t0x4", "e2m1_e8m0_t8x0", "mx9", "mx4", "int3_e8m0_t8x4s2x2o2",
    "hif4", "uint4", "uint8", "uint3_float16_bfloat16_t8", "bitnet", "nf4_float16_t16",
    "cb42f1346_e2m3fnuz_e8m0_t16s8", "mxfp4_2of4", "b4int3", "msfp12", "posit8_ue4m3_t8"
])
@pytest.mark.parametrize("axis", [0, 1])
def test_saturation_is_counted_exactly(dtype, axis, monkeypatch):
    x = weight(70, 9, scale=4.0)
    if data_type(dtype).scale is None:
        x.flat[:8] = [7.0, -7.0, np.nextafter(np.float32(7), np.float32(0)), 464, -464, 465, 6.5, -1e9]
    found, q = measured(x, dtype, axis)
    assert found.saturated == exact_saturation(x, q)
    monkeypatch.setattr(measuring, "SLAB", 100)
    assert measure(x, q, q.dequantize()).saturated == found.saturated


def test_saturation_at_ties_of_zero_points():
    """uint4 at z = 5 and s = 1 goes from -5 to 10: 10.5 rounds to even, 10; at z = 6, 9.5 to 10: beyond."""
    q = quantize(np.float32([[-5, 10]]), "uint4_float32_uint4_t2")
    assert (q.scales.view(np.float32), q.zeros) == (1, 5)
    x = np.float32([[10.5, np.nextafter(np.float32(10.5), np.float32(11))]])
    assert measure(x, q, x).saturated == 1 / 2
    x = np.float32([[-5.5, np.nextafter(np.float32(-5.5), np.float32(0))]])
    assert measure(x, q, x).saturated == 1 / 2
    q = quantize(np.float32([[-6, 9]]), "uint4_float32_uint4_t2")
    x = np.float32([[9.5, -6.5]])
    assert q.zeros == 6 and measure(x, q, x).saturated == 1 / 2


def test_known_saturation():
    """mxfp4 by the floor rule: amax 7.9 has scale 1; beyond 7 is nearer to the next binade than to 6."""
    x = np.array([[7.9, 7.0, 6.999, 6.5, -7.5, 1, 0, 0.2]], np.float32)
    found, q = measured(x, "mxfp4")
    assert q.scales.tolist() == [[127]] and found.saturated == 3 / 8 and found.flushed == 1 / 8


def test_rounding_of_the_scale_is_no_saturation():
    """The largest weight of a channel lies above 127 times its rounded scale by less than half a step."""
    assert measured(weight(64, 16), "int8", 0)[0].saturated == 0


def test_flushed_counts_only_what_was_not_zero():
    x = np.array([[6, 0.1, -0.1, 0.0, -0.0, 0.2, 0.26, 1]], np.float32)
    found, q = measured(x, "mxfp4")
    assert (q.dequantize() == 0).sum() == 5 and found.flushed == 3 / 8


def test_sqnr():
    x = weight(96, 20).astype(np.float64)
    q = quantize(x, "mxfp4", 0)
    effective = q.dequantize()
    found = measure(x, q, effective)
    assert found.sqnr_db == pytest.approx(10 * np.log10((x**2).sum() / ((x - effective)**2).sum()), abs=1e-9)
    exact = np.array([[1.0, 2.0, -3.0]], np.float32)
    for lossless in (exact, np.zeros((4, 4), np.float32)):
        assert measured(lossless, "mxfp4")[0].sqnr_db == math.inf


@pytest.mark.parametrize("shape, axis", [((300, 7), 0), ((7, 300), 1), ((7, 300), 0), ((3, 40, 50), 1),
                                         ((3, 50, 40), 2), ((2000,), 0)])
@pytest.mark.parametrize("dtype", ["mxfp4", "nvfp4", "int8", "int8_float32_tensor", "e2m1"])
def test_pieces_add_up(shape, axis, dtype, monkeypatch):
    whole = measured(weight(*shape), dtype, axis)[0]
    monkeypatch.setattr(measuring, "SLAB", 100)
    pieces = measured(weight(*shape), dtype, axis)[0]
    assert pieces.sqnr_db == pytest.approx(whole.sqnr_db, abs=1e-9)
    for fact in ("saturated", "flushed", "histogram"):
        assert getattr(pieces, fact) == getattr(whole, fact)


def test_histograms_hold_every_weight():
    x = weight(50, 8)
    found = measured(x, "mxfp4", 0)[0].histogram
    assert sum(found.before) == sum(found.after) == 400 and found.low == -found.high == -np.abs(x).max()
    assert page.histogram(np.zeros(3), np.zeros(3)).before[30] == 3
