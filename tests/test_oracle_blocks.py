"""refq against the oracle, many numbers at a time: data types on random, boundary and adversarial tiles."""

from dataclasses import asdict
from fractions import Fraction
from functools import cache

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import refq
from refq.blocks.rows import DATA_TYPES
from refq.formats.policies import ROUNDINGS
from refq.formats.rows import FORMATS
from spec.oracle import blocks, scalar

SOURCES = {"binary64": np.float64, "binary32": np.float32, "binary16": np.float16,
           "bfloat16": ml_dtypes.bfloat16}
BY_RULE = ["int4_bfloat16_t32", "int4_float32_t16", "int8_float16_channel", "int8_float32_tensor",
           "int8_bfloat16_t64", "e4m3fn_float32_channel", "e4m3fn_float32_tensor", "e5m2_float32_channel",
           "e4m3fnuz_float32_tensor", "e2m1_float16_t16", "e2m1_ue4m3_t16", "e3m4_bfloat16_t8",
           "uint4_float32_t32", "smint4_float16_t32", "mxint8_float32_t16", "binary8p4se_float32_t32",
           "e4m3fn_e8m0_t16", "int8_e8m0_t32", "e2m1_ue5m3_t16"]
BARE = ["e4m3fn", "e8m0", "int8", "e2m1"]
TYPES = list(DATA_TYPES) + BY_RULE + BARE


def words(row):
    return asdict(row) | {"kind": "float" if row.is_float else "int"}


@cache
def facts(name):
    return scalar.facts(words(refq.number_format(name)))


@cache
def described(name):
    """A data type as the oracle wants it: its row as words, and the facts of the formats in it."""
    block = refq.data_type(name)
    return asdict(block), {n: facts(n) for n in (block.element, block.scale, block.outer) if n}


def decoded(x):
    """The oracle's values of an array, flat, in row-major order."""
    source = "int64" if x.dtype.kind == "i" else next(n for n, dtype in SOURCES.items() if x.dtype == dtype)
    if source == "int64":
        return [scalar.exact(n) for n in x.ravel().tolist()]
    return [scalar.decode(code, facts(source)) for code in x.ravel().view(f"u{x.itemsize}").tolist()]


def assert_quantised(x, name, axis=-1, rounding="rne", bits=None, width=None, tensor_scale=None):
    """refq.quantize equals the oracle: codes, scales and tensor scale; returns both results."""
    block, formats = described(name)
    random = None if bits is None else [(r, width) for r in bits.ravel().tolist()]
    outer = None if tensor_scale is None else int(np.float32(tensor_scale).view(np.uint32))
    want = blocks.quantise(decoded(x), x.shape, axis, block, formats, rounding, random, outer=outer)
    got = refq.quantize(x, name, axis, rounding, random_bits=bits, random_width=width,
                        tensor_scale=tensor_scale)
    context = f"{name} {x.dtype} {x.shape} axis {axis} {rounding}"
    if want.outer is not None:
        assert got.tensor_scale.view(np.uint32) == want.outer, f"{context}: tensor scale {got.tensor_scale!r}"
    if want.scales is None:
        assert got.scales is None
    else:
        bad = np.flatnonzero(got.scales.ravel() != np.array(want.scales, got.scales.dtype))
        assert not bad.size, f"{context}: scale {bad[0]} refq {got.scales.ravel()[bad[0]]:#x}, " \
                             f"oracle {want.scales[bad[0]]:#x}"
    bad = np.flatnonzero(got.codes.ravel() != np.array(want.codes, got.codes.dtype))
    assert not bad.size, f"{context}: element {bad[0]} = {x.ravel()[bad[0]]!r} " \
                         f"refq {got.codes.ravel()[bad[0]]:#x}, oracle {want.codes[bad[0]]:#x}"
    return got, want


def assert_dequantised(got, want, name, axis=-1):
    block, formats = described(name)
    for dtype in ("binary32", "binary64", "binary16"):
        values, word = refq.dequantize(got, SOURCES[dtype]).ravel(), f"u{np.dtype(SOURCES[dtype]).itemsize}"
        bits = blocks.dequantise(want, got.shape, axis, block, formats, facts(dtype))
        bits = np.array(bits, word)
        same = (values.view(word) == bits) | (np.isnan(values) & np.isnan(bits.view(values.dtype)))
        assert same.all(), f"{name} {dtype}: code {got.codes.ravel()[~same][0]:#x} became " \
                           f"{values[~same][0]!r}, oracle {bits.view(values.dtype)[~same][0]!r}"


# --- tiles ----------------------------------------------------------------------------------------

def extremes(dtype):
    info = ml_dtypes.finfo(dtype)
    return float(info.smallest_subnormal), float(info.tiny), float(info.max)


def fixed_tiles(n, dtype):
    """Zero, single, negative, subnormal and huge tiles of length n."""
    least, tiny, most = extremes(dtype)
    ramp = np.linspace(-1, 1, n) if n > 1 else np.ones(1)
    rows = [np.zeros(n), np.full(n, -0.0), np.where(np.arange(n) % 2, 0.0, -0.0), -np.abs(ramp) - 0.125,
            ramp * least * 9, np.full(n, least), np.full(n, -least), ramp * tiny, ramp * tiny * 3,
            np.full(n, most), ramp * most, np.ones(n), ramp * 6]
    for value in (1.0, -1.0, least, -least, tiny, most, -most, 448.0, 0.75, 2.0 ** -20):
        for place in {0, n // 2, n - 1}:
            row = np.zeros(n)
            row[place] = value
            rows.append(row)
    return np.array(rows).astype(dtype)


def special_tiles(n, dtype):
    """A NaN, signalling NaN or infinity first, in the middle and last."""
    bits = np.dtype(dtype).itemsize * 8
    word, man = f"u{bits // 8}", ml_dtypes.finfo(dtype).nmant
    inf = ((1 << (bits - 1 - man)) - 1) << man
    rows = []
    for special in (inf, inf | 1 << (bits - 1), inf | 1, inf | 1 << (man - 1), (1 << bits) - 1):
        for place in {0, n // 2, n - 1}:
            for base in (np.linspace(-3, 3, n), np.zeros(n)):
                row = base.astype(dtype).view(word)
                row[place] = special
                rows.append(row.view(dtype))
    return np.array(rows)


def power_tiles(n, dtype):
    """The largest magnitude at a power of two and its neighbours, over the whole range of the source."""
    rows, rng = [], np.random.default_rng(n)
    info = ml_dtypes.finfo(dtype)
    low, high = int(info.minexp) - int(info.nmant), int(info.maxexp)
    ladder = {*range(low, low + 6), *range(-131, -120), *range(-9, 12), *range(110, 129),
              *range(high - 4, high)}
    for k in sorted(k for k in ladder if low <= k < high):
        power = np.array(np.ldexp(1.0, k), dtype)
        word = int(power.view(f"u{power.itemsize}"))
        for step in (-1, 0, 1):
            peak = float(np.array(word + step, f"u{power.itemsize}").view(dtype))
            row = rng.uniform(-1, 1, n) * peak
            row[rng.integers(n)] = peak
            rows.append(row)
    rows = np.array(rows)
    return rows[np.isfinite(rows).all(-1)].astype(dtype)


def midpoint_tiles(n, dtype, name):
    """Quotients on and next to the element format's midpoints, scales on and next to the scale format's."""
    block, formats = described(name)
    element = formats[block["element"]]
    decoded = [scalar.decode(body, element) for body in range(1 << element.body)]
    values = sorted({float(v.magnitude) for v in decoded if v.kind == scalar.NUMBER})
    if len(values) > 400:
        values = values[:60] + values[60:-60:len(values) // 200] + values[-60:]
    points = [m for a, b in zip(values, values[1:]) for m in (a, (a + b) / 2)] + values[-1:]
    top, rng, rows = float(blocks._top(element)), np.random.default_rng(7), []
    for scale in (1.0, 2.0 ** -3, 0.8125, 1.0625, 2.0 ** -9, 96.0, 0.1, 1 + 2.0 ** -9, 3 * 2.0 ** -10):
        chosen = rng.choice(points, n - 1) * float(np.float32(scale))
        near = np.nextafter(chosen.astype(dtype), rng.choice([-60000, 60000], n - 1).astype(dtype))
        for body in (chosen, near, -chosen):
            rows.append(np.append(body.astype(dtype), np.array(top * scale, dtype)))
    rows = np.array(rows, dtype)
    return rows[np.isfinite(rows.astype(np.float64)).all(-1)]


def scale_tiles(n, dtype, name):
    """Largest magnitudes on and next to those at which an amax-rule scale is exact or a tie.

    A source has the tie itself only where it is precise enough for it.
    """
    block, formats = described(name)
    scale, rows = formats[block["scale"]], []
    one = scalar.encode(scalar.exact(1), scale, "rne", blocks.SAT)
    top = blocks._top(formats[block["element"]])
    for code in (0, 1, 2, 3, 6, 7, 8, 9, one - 1, one, one + 1, one + 2, one + 5, scale.top - 1):
        low, high = (scalar.decode(c, scale).magnitude for c in (code, code + 1))
        for ratio in (low, (low + high) / 2):
            with np.errstate(all="ignore"):
                amax = np.array(float(ratio * top)).astype(dtype)
                beside = [np.nextafter(amax, np.array(to, dtype)) for to in (0, np.inf)]
            rows += [np.linspace(0, 1, n) * float(peak) for peak in (amax, *beside) if np.isfinite(peak)]
    rows = np.array(rows)
    return np.where(np.arange(n) == n - 1, rows, rows * 0.99).astype(dtype)


def random_tiles(n, dtype, count=12):
    """Random words, normal numbers at many sizes, and coarse grids on which quotients tie."""
    rng = np.random.default_rng(n + 1)
    bits = np.dtype(dtype).itemsize
    wild = rng.integers(0, 256, (count, n * bits), np.uint8).view(dtype)
    normal = rng.standard_normal((count, n)) * np.exp2(rng.integers(-30, 30, (count, 1)))
    grid = rng.integers(-30, 31, (count, n)) * np.exp2(rng.integers(-12, 4, (count, 1)))
    with np.errstate(over="ignore"):
        return np.concatenate([wild, normal.astype(dtype), grid.astype(dtype)])


def tiles(n, dtype, name):
    """All of them, as one matrix of rows of n values."""
    with np.errstate(all="ignore"):
        parts = [make(n, dtype) for make in (fixed_tiles, special_tiles, power_tiles, random_tiles)]
        parts += [midpoint_tiles(n, dtype, name)] if described(name)[0]["scale"] else []
        parts += [scale_tiles(n, dtype, name)] if described(name)[0]["rule"] == "amax" else []
    return np.concatenate(parts)


def length(name):
    tile = refq.data_type(name).tile
    return tile if isinstance(tile, int) else 24


# --- tests ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("source", list(SOURCES))
@pytest.mark.parametrize("name", TYPES)
def test_tiles(name, source):
    """Every adversarial tile as a row of one array; for tensor scales also each row as a tensor."""
    x = tiles(length(name), SOURCES[source], name)
    got, want = assert_quantised(x, name)
    if source == "binary32":
        assert_dequantised(got, want, name)
    if refq.data_type(name).tile == "tensor" or refq.data_type(name).outer:
        for row in x:
            assert_quantised(row, name)


@pytest.mark.parametrize("name", TYPES)
def test_ragged_and_single(name):
    """Last tiles shorter than the rest, and tiles of one value."""
    for n in (1, 2, length(name) - 1, length(name) + 1, 2 * length(name) + 5):
        x = np.concatenate([random_tiles(n, np.float32, 4), special_tiles(n, np.float32)[::5]])
        assert_dequantised(*assert_quantised(x, name), name)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "int8", "int4", "int8_float32_tensor", "mxint8"])
def test_axes_and_layouts(name, axis):
    """Any axis of any memory layout gives the codes of the same values in C order."""
    x = random_tiles(35 * 3 * 18, np.float32, 1)[1:2].reshape(35, 3, 18)
    for layout in (x, np.asfortranarray(x), np.repeat(x, 2, axis=2)[:, :, ::2], x[::-1, :, ::-1]):
        got, want = assert_quantised(layout, name, axis)
        assert_dequantised(got, want, name, axis)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (1,), (1, 1, 1)])
@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "int8", "int8_float32_tensor", "e4m3fn"])
def test_empty_and_tiny(name, shape):
    assert_quantised(np.full(shape, -2.5, np.float32), name)


@pytest.mark.parametrize("rounding", [name for name, rule in ROUNDINGS.items() if not rule.stochastic])
@pytest.mark.parametrize("name", [*DATA_TYPES, "e4m3fn_float32_channel", "int4_bfloat16_t32"])
def test_element_roundings(name, rounding):
    """The rounding asked for is that of the elements; scales stay to nearest even (BLOCK-4, BLOCK-9)."""
    assert_quantised(tiles(length(name), np.float32, name), name, rounding=rounding)


@pytest.mark.parametrize("rounding", [name for name, rule in ROUNDINGS.items() if rule.stochastic])
@pytest.mark.parametrize("name", [*DATA_TYPES, "e4m3fn_float32_channel"])
def test_stochastic_elements(name, rounding):
    x, rng = tiles(length(name), np.float32, name), np.random.default_rng(3)
    for width in (1, 8, 32):
        bits = rng.integers(0, 1 << width, x.shape, np.uint64)
        assert_quantised(x, name, rounding=rounding, bits=bits, width=width)


@pytest.mark.parametrize("g", [2.0 ** -149, 1e-30, 0.001, 1.0, 3.4e38])
def test_given_tensor_scale(g):
    """A tensor scale handed over is used as it is (BLOCK-10)."""
    for dtype in SOURCES.values():
        got, want = assert_quantised(tiles(16, dtype, "nvfp4"), "nvfp4", tensor_scale=np.float32(g))
        assert_dequantised(got, want, "nvfp4")


@pytest.mark.parametrize("name", [*DATA_TYPES, "int8_float32_tensor", "int8"])
def test_integer_sources(name):
    rng = np.random.default_rng(5)
    x = rng.integers(-3000, 3000, (6, 2 * length(name)))
    x[1] = 0
    x[2, 3] = 2 ** 53
    assert_quantised(x, name)


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4", "mxint8",
                                  "nvfp4", "int4", "int8_bfloat16_t64"])
def test_every_scale_code_times_every_element_code(name):
    """Also codes that quantize never stores: negative, infinite and NaN scales, infinite elements (BLOCK-11)."""
    block, n = refq.data_type(name), length(name)
    elements = np.arange(1 << block.element_row.width, dtype=np.uint8)
    elements = np.resize(elements, -(-elements.size // n) * n)
    width = block.scale_row.width
    scales = np.arange(0, 1 << width, 1 if width <= 8 else 257, dtype=np.uint16 if width > 8 else np.uint8)
    codes = np.tile(elements, (scales.size, 1))
    columns = np.repeat(scales[:, None], elements.size // n, axis=1)
    g = np.float32(0.37) if block.outer else None
    q = refq.Quantized(codes, columns, block, codes.shape, 1, block.recipe, tensor_scale=g)
    outer = int(g.view(np.uint32)) if block.outer else None
    want = blocks.Quantised(codes.ravel().tolist(), columns.ravel().tolist(), outer)
    assert_dequantised(q, want, name, 1)


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxfp6_e2m3", "mxfp4", "nvfp4", "int4", "int8",
                                  "uint4_float32_t32", "int2_float32_t16"])
def test_packing(name):
    """Packed codes are the oracle's bit stream; scales follow as little-endian words (PACK-1)."""
    for n in (1, 3, 33, 70):
        got = refq.quantize(random_tiles(n, np.float32, 2)[2:], name)
        packed, width = got.pack(), got.dtype.element_row.width
        assert bytes(packed.codes) == blocks.pack(got.codes.ravel().tolist(), width)
        assert bytes(packed.scales) == blocks.pack(got.scales.ravel().tolist(), 8 * got.scales.itemsize)
        assert blocks.unpack(bytes(packed.codes), width, got.codes.size) == got.codes.ravel().tolist()


@pytest.mark.parametrize("name", TYPES)
def test_bits_per_value(name):
    """All stored bits over the number of values (BLOCK-12)."""
    x = np.ones((3, 2 * length(name) + 1), np.float32)
    q, block = refq.quantize(x, name), refq.data_type(name)
    bits = q.codes.size * FORMATS[block.element].width
    if block.scale:
        bits += q.scales.size * -(-refq.number_format(block.scale).width // 8) * 8
    bits += 32 if block.outer else 0
    assert q.bits_per_value == Fraction(bits, q.codes.size)


FLOATS = st.floats(width=32) | st.floats(-8, 8, width=32) | st.integers(-48, 48).map(lambda n: n / 8)


@settings(max_examples=150)
@given(st.sampled_from(TYPES), st.lists(FLOATS, min_size=1, max_size=70))
def test_any_tile(name, values):
    x = np.array(values, np.float32)
    assert_dequantised(*assert_quantised(x, name), name)


@settings(max_examples=80)
@given(st.sampled_from([n for n in TYPES if refq.data_type(n).scale]), st.data())
def test_quantising_twice_changes_nothing(name, data):
    """Values that came out of a floor-rule type go in again unchanged."""
    block = refq.data_type(name)
    if block.rule != "floor":
        return
    x = np.array(data.draw(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)), np.float32)
    once = refq.quantize(x, name).dequantize()
    assert np.array_equal(refq.quantize(once, name).dequantize(), once)
