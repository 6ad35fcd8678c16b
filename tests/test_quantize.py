"""The quantiser: properties of arrays, and small exact references in fractions."""

import bisect
from dataclasses import replace
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import refq
from refq.blocks.packing import Packed, unpack_codes
from refq.blocks.recipes import RECIPES
from refq.blocks.rows import DATA_TYPES, stored_width
from refq.blocks.rules import RULES
from refq.errors import InputError
from refq.formats import codec, values
from refq.formats.definition import CHUNK
from refq.formats.policies import ROUNDINGS

BY_RULE = ["int8_float32_tensor", "int4_bfloat16_t32", "int8_float16_t5", "e4m3fn_float32_channel",
           "e5m2_float32_tensor", "e2m1_ue5m3_t16", "uint8_float32_t8", "smint8_float32_t32",
           "mxint8_e8m0_t16", "binary8p4se_bfloat16_t32", "int16_float32_channel", "e2m3_e8m0_channel",
           "e4m3fn_e8m0_tensor", "bfloat16_e8m0_t32"]
SCALED = [*DATA_TYPES, *BY_RULE]
EVERY = [*SCALED, "e4m3fn", "bfloat16", "e8m0"]


def is_flat(name):
    return not isinstance(refq.data_type(name).tile, tuple)


def is_simple(name):
    """Tiles of one dimension with one scale each: the references of this file know no more.

    Zero points, subtiles, codebooks and sparsity are the oracle's (test_oracle_blocks.py, test_codebooks.py).
    """
    row = refq.data_type(name)
    plain = not row.element_row.is_listed and len(row.tables) == 1 and row.rule in ("floor", "amax")
    return is_flat(name) and plain and not (row.subtiles or row.zero or row.sparsity)


SIMPLE = [name for name in SCALED if is_simple(name)]
DETERMINISTIC = [name for name, rule in ROUNDINGS.items() if not rule.stochastic]


def data(shape, seed=0, dtype=np.float32):
    """Normal numbers whose size differs from place to place, with zeros of both signs among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-6, 6, shape))
    x[rng.random(shape) < 0.05] = 0.0
    x[rng.random(shape) < 0.05] = -0.0
    return x.astype(dtype)


def same(a, b):
    """Two Quantized with equal codes, scales and all else that is stored."""
    assert np.array_equal(a.codes, b.codes) and a.codes.dtype == b.codes.dtype
    assert (a.scales is None) == (b.scales is None) and a.tensor_scale == b.tensor_scale
    assert a.scales is None or np.array_equal(a.scales, b.scales)
    for ours, theirs in [(a.zeros, b.zeros), (a.tables, b.tables), (a.mask, b.mask)]:
        assert (ours is None) == (theirs is None) and (ours is None or np.array_equal(ours, theirs))
    assert len(a.offsets) == len(b.offsets) and all(map(np.array_equal, a.offsets, b.offsets))
    return True


# --- axes, tiles, shapes --------------------------------------------------------------------------

@pytest.mark.share(2)
@pytest.mark.parametrize("axis", range(-4, 4))
@pytest.mark.parametrize("name", EVERY)
def test_every_axis_is_the_last_one_moved(name, axis):
    """Of tiles of two dimensions the axis before it goes along, or after it axis 0 (BLOCK-1)."""
    x, along, flat = data((3, 37, 5, 33)), axis % 4, is_flat(name)
    here, there = (along, -1) if flat else ((along - 1 if along else 1, along), (-2, -1))
    q, last = refq.quantize(x, name, axis), refq.quantize(np.moveaxis(x, here, there), name)
    assert q.axis == here and q.shape == x.shape == q.codes.shape
    assert np.array_equal(q.codes, np.moveaxis(last.codes, there, here))
    for dtype in (np.float64, np.float32):
        assert np.array_equal(q.dequantize(dtype), np.moveaxis(last.dequantize(dtype), there, here))
    shared = [(q.scales, last.scales), (q.zeros, last.zeros), (q.tables, last.tables)]
    for ours, theirs in [*shared, *zip(q.offsets, last.offsets)]:
        if theirs is not None and q.dtype.tile != "tensor":
            theirs = np.moveaxis(theirs, there, here)
        assert (ours is None) == (theirs is None) and (ours is None or np.array_equal(ours, theirs))
    assert q.tensor_scale == last.tensor_scale and len(q.offsets) == len(last.offsets)
    assert flat or same(refq.quantize(x, name, here), q)


SCALE_SHAPES = [
    ("mxfp4", (4, 64), 1, (4, 2)),
    ("mxfp4", (4, 65), 1, (4, 3)),
    ("mxfp4", (4, 65), 0, (1, 65)),
    ("mxfp4", (31,), -1, (1,)),
    ("nvfp4", (2, 3, 17), 2, (2, 3, 2)),
    ("int8", (5, 6, 7), 1, (5, 1, 7)),
    ("int8_float32_tensor", (5, 6, 7), 1, (1, 1, 1)),
    ("int8_float32_tensor", (), -1, ()),
    ("mxfp4", (4, 0), 1, (4, 0)),
    ("mxfp4", (0, 40), 1, (0, 2)),
    ("int8", (4, 0), 1, (4, 0)),
    ("int8", (0, 4), 1, (0, 1)),
    ("nvfp4", (2, 0, 17), 0, (1, 0, 17)),
    ("nvfp4", (2, 0, 17), 1, (2, 0, 17)),
    ("int8_float32_tensor", (0, 3), 0, (1, 1)),
    ("mxfp8", (0,), 0, (0,)),
]


@pytest.mark.parametrize("name, shape, axis, scales", SCALE_SHAPES)
def test_shapes(name, shape, axis, scales):
    q = refq.quantize(np.ones(shape, np.float32), name, axis)
    assert q.codes.shape == shape == q.shape and q.scales.shape == scales
    assert q.codes.dtype == codec.code_dtype(q.dtype.element_row)
    assert q.scales.dtype == codec.code_dtype(q.dtype.scale_row)
    back = q.dequantize()
    assert back.shape == shape and np.array_equal(back, np.ones(shape, np.float32))
    assert refq.fake_quantize(np.ones(shape), name, axis).shape == shape
    codes = unpack_codes(q.pack().codes, q.dtype.element_row.width, q.codes.size)
    assert codes.tolist() == q.codes.reshape(-1).tolist()


@pytest.mark.parametrize("name", [name for name in SCALED if isinstance(refq.data_type(name).tile, int)])
def test_ragged_tiles_are_tiles(name):
    """A long line is its tiles one by one; the last one may be short."""
    size = refq.data_type(name).tile
    for length in (1, size - 1, size, size + 1, 3 * size + 2):
        x = data((4, length), length)
        whole = refq.quantize(x, name)
        more = {"tensor_scale": whole.tensor_scale} if whole.tensor_scale is not None else {}
        parts = [refq.quantize(x[:, i:i + size].copy(), name, **more) for i in range(0, length, size)]
        assert np.array_equal(whole.codes, np.concatenate([part.codes for part in parts], 1))
        assert np.array_equal(whole.scales, np.concatenate([part.scales for part in parts], 1))
        for level, offsets in enumerate(whole.offsets):
            assert np.array_equal(offsets, np.concatenate([part.offsets[level] for part in parts], 1))
        if whole.zeros is not None:
            assert np.array_equal(whole.zeros, np.concatenate([part.zeros for part in parts], 1))
        lines = [refq.quantize(line, name, **more) for line in x]
        assert np.array_equal(whole.codes, [line.codes for line in lines])


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "int4"])
def test_a_tile_longer_than_the_line_takes_the_line(name):
    """A huge nominal tile costs no memory."""
    short = replace(refq.data_type(name), name="short", tile=7)
    huge = replace(short, name="huge", tile=10 ** 18)
    x = data((3, 7))
    assert same(refq.quantize(x, huge), refq.quantize(x, short))
    assert np.array_equal(refq.quantize(x, huge).dequantize(), refq.quantize(x, short).dequantize())


LAYOUTS = {
    "fortran": np.asfortranarray,
    "transposed": lambda x: x.T,
    "reversed": lambda x: x[::-1, ::-1],
    "strided": lambda x: x[::2, 1::3],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "read only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["mxfp8", "nvfp4", "int8", "int8_float32_tensor", "e4m3fn"])
def test_any_layout(name, layout):
    for shape in ((6, 9), (300, 350)):
        x = LAYOUTS[layout](data(shape))
        before = x.tobytes()
        for axis in (0, 1):
            q, plain = refq.quantize(x, name, axis), refq.quantize(np.ascontiguousarray(x), name, axis)
            assert same(q, plain)
            assert q.codes.flags.c_contiguous and q.dequantize().flags.c_contiguous
            assert not np.may_share_memory(q.codes, x)
        assert x.tobytes() == before


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "int4", "e4m3fn"])
def test_large_temporaries(name):
    x = data((512, 512))
    assert x.nbytes > 1 << 18
    want = refq.quantize(x * np.float32(2), name)
    assert same(refq.quantize(x + x, name), want)
    assert same(refq.quantize(-(-(x + x)), name), want)
    doubled = x + x
    assert same(refq.quantize(doubled, name), want) and np.array_equal(doubled, x + x)
    assert np.array_equal(refq.fake_quantize(x + x, name) * 1, want.dequantize())


def test_many_sizes_around_a_pass():
    """Tiles that fit a pass exactly, almost, and not at all."""
    for length in (CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5):
        x = data((2, length))
        for name in ("int8", "int8_float32_tensor", "e2m3_e8m0_channel"):
            block = refq.data_type(name)
            q = refq.quantize(x, name)
            row, scale = block.element_row, block.scale_row
            for line in range(2):
                steps = refq.decode(q.scales, scale, np.float64).reshape(-1)
                step = steps[0 if block.tile == "tensor" else line]
                want = refq.encode(x[line].astype(np.float64) / step, row)      # exact enough: see BLOCK-9
                assert np.array_equal(q.codes[line], want)
                back = refq.decode(q.codes[line], row, np.float64) * step
                assert np.array_equal(q.dequantize(np.float64)[line], back)


# --- values: an exact reference in fractions ------------------------------------------------------

_LISTS = {}


def points(row):
    """(values, codes) of the finite codes, ascending; only +0 of the zeros."""
    if row.name not in _LISTS:
        listed = [(values.exact(row, code), code) for code in range(1 << row.width)]
        table = sorted(pair for pair in listed if not isinstance(pair[0], str))
        table = [pair for pair, before in zip(table, [(None, 0), *table]) if pair[0] != before[0]]
        _LISTS[row.name] = [value for value, _ in table], [code for _, code in table]
    return _LISTS[row.name]


def nearest(row, value):
    """Nearest value, ties to the even code, saturating."""
    listed, codes = points(row)
    place = bisect.bisect_left(listed, value)
    if place in (0, len(listed)) or listed[place] == value:
        return codes[min(place, len(codes) - 1)]
    below, above = value - listed[place - 1], listed[place] - value
    if below == above:
        return codes[place] if codes[place] % 2 == 0 else codes[place - 1]
    return codes[place] if above < below else codes[place - 1]


def rounded(value, dtype=np.float32):
    """A Fraction rounded once to a float dtype, nearest even, to infinity beyond the range."""
    info = np.finfo(dtype)
    precision, quantum, top = info.nmant + 1, info.minexp - info.nmant, info.maxexp
    if value == 0:
        return dtype(0)
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent
    step = Fraction(2) ** max(exponent - precision + 1, quantum)
    near = round(magnitude / step) * step                   # round() of a Fraction: half to even
    if near >= Fraction(2) ** int(top):
        return dtype(np.inf if value > 0 else -np.inf)
    return dtype(float(near if value > 0 else -near))


def reference(line, name, outer=None):
    """One tile: (scale code, element codes), rne, in fractions."""
    block = refq.data_type(name)
    element, scale = block.element_row, block.scale_row
    exact = [Fraction(float(v)) for v in line]
    amax = max(map(abs, exact))
    if amax == 0:
        return 0, [nearest(element, Fraction(0))] * len(exact)
    if block.rule == "floor":
        power = amax.numerator.bit_length() - amax.denominator.bit_length()
        power -= amax < Fraction(2) ** power
        shared = min(max(power - element.emax, -scale.bias), scale.emax)
        code, step = shared + scale.bias, Fraction(2) ** shared
    else:
        code = nearest_scale(scale, amax / element.max / (outer or 1))
        step = Fraction(values.exact(scale, code)) * (outer or 1)
    return code, [nearest(element, v / step) for v in exact]


def nearest_scale(row, ratio):
    if row.width <= 16:
        return max(nearest(row, ratio), 1)
    with np.errstate(over="ignore"):
        return max(int(np.minimum(rounded(ratio), np.finfo(np.float32).max).view(np.uint32)), 1)


def tile_cases(dtype):
    """Lines of 8: ordinary ones, ties, the ends of the range of the dtype, subnormals, zeros."""
    tiny, top = float(np.finfo(dtype).smallest_subnormal), float(np.finfo(dtype).max)
    rng = np.random.default_rng(4)
    lines = [rng.standard_normal(8) * 2.0 ** k for k in (0, 0, 0, 3, -9, -13)]
    lines += [
        [0.0, -0.0] * 4,
        [tiny] * 8,
        [tiny, -3 * tiny, 5 * tiny, 7 * tiny, 0, 9 * tiny, 100 * tiny, -tiny],
        [top, -top, top / 2, top / 3, -top / 448, 1, tiny, 0],
        [6, 5, 3.5, 2.5, 1.75, 1.25, 0.75, 0.25],
        [127, 0.5, 1.5, 2.5, -126.5, 126.5, -0.5, 63.5],
        [-1, 1, 0.999, 0.5, 0.001, 1e-5, 0, 0.875],
        [1.75, 1, 1.0625, 0.0546875, 2 - 2 ** -8, 1 + 2 ** -9, 1.3125, 1.9375],
    ]
    return [np.array(line).astype(dtype) for line in lines]


@pytest.mark.share(2)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("name", SIMPLE)
def test_against_fractions(name, dtype):
    """Every tile alone and all of them at once, from each source type."""
    block = refq.data_type(name)
    lines = np.array(tile_cases(dtype))
    outer = None
    if block.outer:
        ratio = max(Fraction(float(abs(v))) for v in lines.reshape(-1)) / (block.element_row.max * 448)
        outer = Fraction(float(np.minimum(rounded(ratio), np.finfo(np.float32).max)))
    whole = refq.quantize(lines, name)
    assert outer is None or float(whole.tensor_scale) == outer
    if block.tile == "tensor":
        lines, whole = lines.reshape(1, -1), refq.quantize(lines.reshape(1, -1), name)
    for row, line in enumerate(lines):
        size = block.tile if isinstance(block.tile, int) else len(line)
        for tile, start in enumerate(range(0, len(line), size)):
            code, codes = reference(line[start:start + size], name, outer)
            got = whole.codes[row, start:start + size].tolist()
            minus = {1 << (block.element_row.bits - 1): 0} if block.element_row.has_neg_zero else {}
            assert whole.scales[row, tile] == code, (line, code)
            assert [minus.get(c, c) for c in got] == [minus.get(c, c) for c in codes], (line, got, codes)


@pytest.mark.parametrize("name", ["nvfp4", "int16_float32_channel", "int8_float16_t5", "e2m1_ue5m3_t16",
                                  "int8"])
@pytest.mark.parametrize("amax", [5e-324, 1e-320, 1e-310, 2e-45, 1e-40, 1e300, 1.7e308])
def test_the_far_ends_of_float64(name, amax):
    """Nothing that is not zero takes the scale of a zero tile, however small; nothing overflows."""
    x = np.array([[amax, -amax / 2, 0.0]])
    q = refq.quantize(x, name)
    outer = None
    if q.dtype.outer:
        top, smallest = float(np.finfo(np.float32).max), 2.0 ** -149
        outer = Fraction(max(min(float(rounded(Fraction(amax) / 2688)), top), smallest))
        assert Fraction(float(q.tensor_scale)) == outer
    code, codes = reference(x[0], name, outer)
    assert q.scales.reshape(-1).tolist() == [code] and code > 0
    assert [0 if c == 8 and q.dtype.element == "e2m1" else c for c in q.codes[0].tolist()] == codes
    assert np.all(np.isfinite(q.dequantize(np.float64)))


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.int8, np.int16, np.int32, np.int64,
                                  np.uint8, np.uint64])
@pytest.mark.parametrize("name", EVERY)
def test_sources_are_their_exact_values(name, kind):
    x = data((7, 70)) * 100
    x = np.abs(x).astype(kind) if np.dtype(kind).kind == "u" else x.astype(kind)
    for axis in (0, 1):
        assert same(refq.quantize(x, name, axis), refq.quantize(x.astype(np.float64), name, axis))


def test_integers_up_to_2_to_the_53():
    edge = 2 ** 53
    for kind in (np.int64, np.uint64):
        x = np.array([edge, edge - 1, 12345], kind)
        assert same(refq.quantize(x, "int8"), refq.quantize(x.astype(np.float64), "int8"))
        with pytest.raises(InputError, match=r"between -2\^53 and 2\^53"):
            refq.quantize(x + kind(1), "int8")
    with pytest.raises(InputError, match=r"between -2\^53 and 2\^53"):
        refq.quantize(np.array([np.iinfo(np.int64).min]), "mxfp4")
    unscaled = refq.quantize(np.array([2 ** 63 + 2 ** 40], np.uint64), "bfloat16")
    assert unscaled.codes.tolist() == [0x5F00]


# --- NaN, infinities, zeros -----------------------------------------------------------------------

SPOILERS = {"nan": 0x7FC00000, "-nan": 0xFFC00000, "signalling nan": 0x7F800001, "inf": 0x7F800000,
            "-inf": 0xFF800000}


@pytest.mark.parametrize("what", SPOILERS)
@pytest.mark.parametrize("name", [name for name in SCALED if refq.data_type(name).tile != "tensor"])
def test_a_spoiled_tile_leaves_the_others_alone(name, what):
    block = refq.data_type(name)
    along = 40 if block.tile == "channel" else block.tile
    tile = block.tile if isinstance(block.tile, tuple) else (1, along)
    x = data((tile[0] * 3, tile[1] * (1 if block.tile == "channel" else 3)))
    spot = slice(tile[0], 2 * tile[0]), slice(tile[1])
    x[spot] *= np.float32(2.0 ** -10)                   # the spoiled tile does not hold the largest value
    spoiled = x.copy()
    spoiled.view(np.uint32)[tile[0], 2 % tile[1]] = SPOILERS[what]
    q, clean = refq.quantize(spoiled, name), refq.quantize(x, name)
    hit = np.zeros(x.shape, bool)
    hit[spot] = True
    assert np.array_equal(q.codes[~hit], clean.codes[~hit]) and np.all(q.codes[hit] == zero_of(name))
    assert q.tensor_scale == clean.tensor_scale
    scales = clean.scales.copy()
    scales[1, 0] = block.scale_row.layout.nan
    assert np.array_equal(q.scales, scales)
    for ours, theirs in [(q.zeros, clean.zeros), (q.tables, clean.tables), *zip(q.offsets, clean.offsets)]:
        if theirs is not None:
            rows, columns = np.array(theirs.shape) // scales.shape
            theirs = theirs.copy()
            theirs[rows: 2 * rows, :columns] = 0
            assert np.array_equal(ours, theirs)
    for dtype in (np.float64, np.float32):
        y = q.dequantize(dtype)
        assert np.array_equal(np.isnan(y), hit) and np.array_equal(y[~hit], clean.dequantize(dtype)[~hit])


def zero_of(name):
    """The code of +0 (BLOCK-6)."""
    row = refq.data_type(name).element_row
    return row.zero if row.is_listed else 0


@pytest.mark.parametrize("name", SCALED)
def test_all_spoiled(name):
    """Of every 4 values that hold NaN or infinity, too, sparsity keeps no more than it may (SPARSE-1)."""
    x = np.full((2, 5), np.nan, np.float32)
    x[1] = np.inf
    q = refq.quantize(x, name)
    assert np.all(q.scales == q.dtype.scale_row.layout.nan) and np.all(q.codes == zero_of(name))
    assert np.all(np.isnan(q.dequantize()))
    assert q.tensor_scale in (None, 1.0)


@pytest.mark.parametrize("name", SCALED)
def test_zero_tiles(name):
    """Offsets are as large as can be, hif4's bits are 0; zero points are 0 (BLOCK-14, BLOCK-15, RULE-9)."""
    x = np.float32([[0.0, -0.0, 0.0, -0.0]])
    q, row = refq.quantize(x, name), refq.data_type(name).element_row
    signed = not row.is_listed and row.has_neg_zero
    minus = 1 << (row.bits - 1) if signed else zero_of(name)
    minus = np.where([True] * 4 if q.mask is None else q.mask[0], [zero_of(name), minus] * 2, 0)
    assert q.codes.tolist() == [minus.tolist()] and not np.any(q.scales)
    assert np.array_equal(q.dequantize(), np.zeros((1, 4))) and q.tensor_scale in (None, 1.0)
    assert np.array_equal(np.signbit(q.dequantize())[0], minus != zero_of(name))
    assert q.zeros is None or not np.any(q.zeros)
    for bits, offsets in zip(q.dtype.offset_bits, q.offsets):
        assert np.all(offsets == (0 if q.dtype.rule == "hif4" else (1 << bits) - 1))


def test_the_outer_scale_looks_past_spoiled_tiles():
    x = data((2, 32))
    x[0, 3], x[0, 4] = np.inf, 1e30
    q = refq.quantize(x, "nvfp4")
    rest = x.copy()
    rest[0, :16] = 0
    assert q.tensor_scale == refq.quantize(rest, "nvfp4").tensor_scale < 1
    assert q.scales[0, 0] == 0x7F
    assert np.array_equal(q.codes[:, 16:], refq.quantize(rest, "nvfp4").codes[:, 16:])


# --- there and back -------------------------------------------------------------------------------

def keeps(name):
    """Whether a second quantisation takes the scale of the first.

    Not so where the largest element need not be the format's largest: with zero points and means, and where
    the scale is rounded as coarsely as the elements (e4m3fn under ue4m3), so that 448 may become 416; nor
    where the scale looks at more than the largest (the bits of HiFloat4, codebooks to choose from).
    """
    row = refq.data_type(name)
    if row.rule == "amax" and row.element_row.precision >= row.scale_row.precision:
        return False
    return row.rule not in ("minmax", "absmean", "hif4") and len(row.tables) == 1


def kept_values(name, seed):
    """Values without those that two's complement takes for -2, whose exponent is its own (BLOCK-13)."""
    x, row = data((5, 96), seed), refq.data_type(name)
    if not row.element_row.is_listed and not row.element_row.signed:
        return np.abs(x)
    if row.rule != "floor" or row.element_row.is_listed or row.element_row.max == -row.element_row.lowest:
        return x
    least = refq.encode(np.array([-1e9]), row.element_row)
    return np.where(refq.quantize(x, name).codes == least, -x, x)


def assert_again(q, again):
    """The same codes; of sparse types and codebooks, whose zeros get another mask or sign, values."""
    if q.mask is None and not q.dtype.element_row.is_listed:
        assert same(q, again)
    assert q.scales is None or np.array_equal(q.scales, again.scales)
    assert np.array_equal(q.dequantize(np.float64), again.dequantize(np.float64))


@pytest.mark.parametrize("rounding", ["rne", "rtz", "rup"])
@pytest.mark.parametrize("name", [name for name in EVERY if keeps(name)])
def test_idempotent(name, rounding):
    """Quantising the exact values of codes gives the codes back, under every rounding.

    It needs scales that are normal numbers of their format: a subnormal scale has too few bits left for the
    largest element to come out as the format's largest, and the next scale is another (the test below shows
    one). And an unsigned element must see no negative number, which counts for the scale but leaves no trace
    in the codes.
    """
    q = refq.quantize(kept_values(name, 3), name)
    assert_again(q, refq.quantize(q.dequantize(np.float64), name, rounding=rounding))


@pytest.mark.parametrize("name", [
    name for name in EVERY if keeps(name) and not refq.data_type(name).outer
    and refq.data_type(name).scale not in ("binary32", "float32")])
def test_idempotent_through_float32(name):
    """Also through float32, where it holds every product; a float32 scale times an element may not fit."""
    q = refq.quantize(kept_values(name, 4), name)
    assert_again(q, refq.quantize(q.dequantize(np.float32), name))


def test_the_exception_of_idempotence():
    """1.5 smallest scales round to 2; the largest element is then 4 instead of 6, and asks for 1.33, so 1."""
    smallest = 2.0 ** -9
    x = np.array([6 * 1.5 * smallest, 0.0])
    q = refq.quantize(x, "nvfp4", tensor_scale=np.float32(1))
    assert q.scales.tolist() == [2] and q.codes.tolist() == [6, 0]
    again = refq.quantize(q.dequantize(np.float64), "nvfp4", tensor_scale=np.float32(1))
    assert again.scales.tolist() == [1] and again.codes.tolist() == [7, 0]


@pytest.mark.parametrize("source", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int8,
                                    np.int64])
@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "int8", "e4m3fn", "bfloat16", "binary64", "tf32"])
def test_fake_quantize(name, source):
    """float64 stays, everything else becomes float32."""
    x, result = data((4, 50)).astype(source), np.float64 if source == np.float64 else np.float32
    y = refq.fake_quantize(x, name, 0)
    assert y.dtype == result and np.array_equal(y, refq.quantize(x, name, 0).dequantize(result))
    error = np.abs(y.astype(np.float64) - x.astype(np.float64))
    assert error.max() <= np.abs(x.astype(np.float64)).max() * 0.26


def test_fake_quantize_passes_everything_on():
    x, bits = data((6, 40)), np.random.default_rng(0).integers(0, 256, (6, 40))
    random = dict(rounding="srb", random_bits=bits, random_width=8)
    for more in (dict(rounding="rtz"), random, dict(recipe="ocp")):
        q = refq.quantize(x, "mxfp4", 0, **more)
        assert np.array_equal(refq.fake_quantize(x, "mxfp4", 0, **more), q.dequantize())
    assert not np.array_equal(refq.fake_quantize(x, "mxfp4", rounding="rtz"), refq.fake_quantize(x, "mxfp4"))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("name", [
    *SIMPLE, *(name for name in SCALED if refq.data_type(name).element_row.is_listed and is_flat(name)
               and len(refq.data_type(name).tables) == 1)])
def test_dequantize_rounds_the_exact_product_once(name, dtype):
    x = np.concatenate([data((4, 40), k) * np.float32(2.0 ** (k - 120)) for k in (0, 102, 120, 134, 220)])
    q = refq.quantize(x, name)
    block, got = q.dtype, q.dequantize(dtype)
    steps = [Fraction(values.exact(block.scale_row, int(code))) for code in q.scales.reshape(-1)]
    outer = 1 if q.tensor_scale is None else Fraction(float(q.tensor_scale))
    listed = {int(code): Fraction(values.exact(block.element_row, int(code))) for code in np.unique(q.codes)}
    size = block.tile if isinstance(block.tile, int) else x.shape[1]
    want = np.zeros(x.shape, dtype)
    for row in range(0, len(x), 2):
        for column in range(x.shape[1]):
            step = steps[0 if block.tile == "tensor" else row * q.scales.shape[1] + column // size]
            want[row, column] = rounded(listed[int(q.codes[row, column])] * step * outer, dtype)
    assert np.array_equal(got[::2], want[::2]) and got.dtype == dtype


def test_dequantize_past_the_ends_of_a_dtype():
    q = refq.quantize(np.array([2.0 ** 140, -(2.0 ** 140), 2.0 ** 100]), "mxfp8")
    assert q.scales.tolist() == [254] and q.codes.tolist() == [0x7E, 0xFE, 0]
    with np.errstate(all="raise"):
        assert q.dequantize().tolist() == [np.inf, -np.inf, 0]
        assert q.dequantize(np.float64).tolist() == [448 * 2.0 ** 127, -448 * 2.0 ** 127, 0]
        far = refq.quantize(np.float32([1e6, 1e-9]), "mxint8")
        assert far.dequantize(np.float16).tolist() == [np.inf, 0]


# (format, value, dtype, what it becomes): unscaled types round once too, into a dtype that is narrower
NARROWER = [
    ("bfloat16", 3e38, np.float16, np.inf),
    ("bfloat16", 1.0, np.float16, 1.0),
    ("binary64", 1 + 2.0 ** -24, np.float32, 1.0),
    ("binary64", 1 + 2.0 ** -24 + 2.0 ** -50, np.float32, 1 + 2.0 ** -23),
    ("tf32", 2.0 ** -25, np.float16, 0.0),
    ("tf32", 1.5 * 2.0 ** -25, np.float16, 2.0 ** -24),
    ("bfloat16", np.nan, np.float16, np.nan),
    ("e8m0", 2.0 ** 20, np.float16, np.inf),
    ("int16", 2049, np.float16, 2048.0),
    ("bfloat16", -np.inf, np.float16, -np.inf),         # saturated to -3.4e38 first
]


@pytest.mark.parametrize("name, x, dtype, want", NARROWER)
def test_dequantize_unscaled_into_a_narrower_dtype(name, x, dtype, want):
    q = refq.quantize(np.array([x]), refq.number_format(name))
    assert np.array_equal(q.dequantize(dtype), np.array([want], dtype), equal_nan=True)
    assert q.dequantize(dtype).dtype == dtype


# --- bits -----------------------------------------------------------------------------------------

BITS = [
    ("mxfp4", (4, 64), Fraction(17, 4)),
    ("mxfp4", (1, 33), Fraction(33 * 4 + 16, 33)),
    ("mxfp8", (2, 32), Fraction(33, 4)),
    ("mxfp6", (1, 64), Fraction(25, 4)),
    ("mxint8", (1, 32), Fraction(33, 4)),
    ("nvfp4", (1, 16), Fraction(64 + 8 + 32, 16)),
    ("nvfp4", (100, 160), Fraction(9, 2) + Fraction(32, 16000)),
    ("int8", (2, 10), Fraction(160 + 64, 20)),
    ("int4", (1, 40), Fraction(160 + 32, 40)),
    ("int4_bfloat16_t32", (1, 32), Fraction(9, 2)),
    ("int8_float32_tensor", (4, 4), Fraction(10)),
    ("e4m3fn", (3, 3), Fraction(8)),
    ("int3", (3, 3), Fraction(3)),
    ("tf32", (2,), Fraction(32)),
    ("mxfp4", (0, 4), Fraction(0)),
    ("int8_float32_tensor", (0,), Fraction(32)),
]


@pytest.mark.parametrize("name, shape, bits", BITS)
def test_bits_per_value(name, shape, bits):
    q = refq.quantize(np.ones(shape), name)
    assert q.bits_per_value == bits and isinstance(q.bits_per_value, Fraction)


@pytest.mark.parametrize("name", SCALED)
def test_pack_holds_all_that_bits_per_value_counts(name):
    """Every part ends with a byte, and has nothing but its codes in it otherwise (PACK-10)."""
    q = refq.quantize(data((6, 160)), name)
    packed = q.pack()
    parts = [packed.codes, packed.scales, *packed.offsets, packed.zeros, packed.tables, packed.mask]
    parts = [part for part in parts if part is not None]
    assert isinstance(packed, Packed) and all(part.dtype == np.uint8 for part in parts)
    assert packed.nbytes == sum(part.nbytes for part in parts) + 4 * (packed.tensor_scale is not None)
    assert 0 <= 8 * packed.nbytes - q.bits_per_value * q.codes.size <= 7 * len(parts)
    scales = unpack_codes(packed.scales, stored_width(q.dtype.scale_row), q.scales.size)
    assert scales.tolist() == q.scales.reshape(-1).tolist()
    assert refq.quantize(data((3, 4)), refq.number_format("e2m3")).pack().scales is None


# --- stochastic rounding --------------------------------------------------------------------------

def stochastic(rule, value, bits, width):
    """The index above or below a positive value in steps of one, by P3109's rules."""
    whole, share = divmod(value, 1)
    if rule == "sra":
        return whole + (share * 2 ** width // 1 + bits >= 2 ** width)
    if rule == "srb":
        return whole + (share * 2 ** (width + 1) // 1 + 2 * bits + 1 >= 2 ** (width + 1))
    return whole + (round(share * 2 ** width) + bits >= 2 ** width)


@pytest.mark.parametrize("rule", ["sra", "srb", "src"])
@pytest.mark.parametrize("width", [1, 8, 32])
@pytest.mark.parametrize("name", ["int8", "int4", "mxint8", "int8_float32_tensor"])
def test_stochastic_elements_by_fractions(name, width, rule):
    x = data((4, 40), 9)
    bits = np.random.default_rng(width).integers(0, 1 << width, x.shape, dtype=np.uint64)
    q = refq.quantize(x, name, rounding=rule, random_bits=bits, random_width=width)
    nearest_q = refq.quantize(x, name)
    assert np.array_equal(q.scales, nearest_q.scales) and not np.array_equal(q.codes, nearest_q.codes)
    row = q.dtype.element_row
    got = refq.decode(q.codes, row, np.float64) / float(row.min_positive)
    columns = (array.reshape(-1).tolist() for array in (x, steps_of(q), bits, got))
    for v, step, r, g in zip(*columns, strict=True):
        want = stochastic(rule, abs(Fraction(v)) / Fraction(step) / row.min_positive, r, width)
        assert abs(g) == min(want, 2 ** (row.bits - 1) - (v >= 0))


def steps_of(q):
    """The exact step of every element as float64, in the shape of the codes."""
    scales = refq.decode(q.scales, q.dtype.scale_row, np.float64)
    if q.dtype.tile == "tensor":
        return np.broadcast_to(scales, q.shape)
    size = q.dtype.tile if isinstance(q.dtype.tile, int) else q.shape[q.axis]
    return np.repeat(scales, size, q.axis)[:, : q.shape[1]]


@pytest.mark.parametrize("rule", ["sra", "srb", "src"])
def test_stochastic_division_is_exact(rule):
    """Quotients a hair (2^-60) below a step of 2^-32: random bits that just do not carry must not carry."""
    width, tried = 32, 0
    for odd in range((1 << 23) + 1, (1 << 23) + 600, 2):
        amax = np.float32(127 * odd * 2.0 ** -23)
        scale = Fraction(float(refq.quantize(amax[None], "int8").scales.view(np.float32)[0]))
        scaled = scale * 2 ** 23
        if scaled.denominator != 1 or scaled.numerator % 2 == 0:
            continue
        finer = width + (rule != "sra")             # the boundaries of srb and src lie half a step off
        x = -pow(2 ** finer, -1, scaled.numerator) % scaled.numerator   # x * 2^finer = -1 modulo the scale
        value = Fraction(x, 2 ** 23)
        if Fraction(float(np.float32(float(value)))) != value:
            continue
        share = value / scale
        near = 2 ** width - int(share * 2 ** width)
        carry = next(r for r in range(near - 2, near + 3) if stochastic(rule, share, r, width))
        for bits, want in ((carry - 1, 0), (carry, 1)):
            q = refq.quantize(np.float32([float(amax), float(value)]), "int8", rounding=rule,
                              random_bits=np.array([0, bits], np.uint64), random_width=width)
            assert q.codes.tolist()[1] == want, (float(value), float(scale), bits)
        tried += 1
    assert tried > 50


def test_random_bits_broadcast_and_move_with_the_axis():
    x = data((6, 40, 3))
    bits = np.random.default_rng(0).integers(0, 256, (40, 1))
    more = dict(rounding="src", random_width=8)
    for name in ("mxfp4", "nvfp4", "e4m3fn"):
        q = refq.quantize(x, name, 1, random_bits=bits, **more)
        full = np.broadcast_to(bits, x.shape)
        assert same(q, refq.quantize(x, name, 1, random_bits=full, **more))
        moved = refq.quantize(np.moveaxis(x, 1, -1), name, random_bits=np.moveaxis(full, 1, -1), **more)
        assert np.array_equal(q.codes, np.moveaxis(moved.codes, -1, 1))


# --- the second scale as an operand ---------------------------------------------------------------

def test_a_given_tensor_scale():
    x = data((4, 48))
    own = refq.quantize(x, "nvfp4")
    assert isinstance(own.tensor_scale, np.float32)
    assert same(refq.quantize(x, "nvfp4", tensor_scale=own.tensor_scale), own)
    assert same(refq.quantize(x, "nvfp4", tensor_scale=float(own.tensor_scale)), own)
    one = refq.quantize(x, "nvfp4", tensor_scale=1)
    assert one.tensor_scale == np.float32(1) and isinstance(one.tensor_scale, np.float32)
    per_tile = [reference(x[i, j:j + 16], "nvfp4") for i in range(4) for j in (0, 16, 32)]
    assert one.scales.reshape(-1).tolist() == [code for code, _ in per_tile]
    small = refq.quantize(x, "nvfp4", tensor_scale=2.0 ** -149)
    assert np.all(small.scales[np.abs(x).reshape(4, 3, 16).max(-1) > 0] == 0x7E)        # saturated, not NaN


BAD_TENSOR_SCALES = [0, -1.0, np.nan, np.inf, 1e300, 10 ** 60, 10 ** 400, 0.1, np.float64(1 + 2.0 ** -40),
                     "1", np.ones(2), [1.0], 1j, True]


@pytest.mark.parametrize("value", BAD_TENSOR_SCALES, ids=repr)
def test_a_bad_tensor_scale(value):
    with pytest.raises(InputError, match="tensor_scale must be a positive finite float32 value"):
        refq.quantize(np.ones((2, 16)), "nvfp4", tensor_scale=value)


@pytest.mark.parametrize("name", [name for name in EVERY if not refq.data_type(name).outer])
def test_no_tensor_scale_where_there_is_none(name):
    with pytest.raises(InputError, match="has no tensor scale, so none can be given"):
        refq.quantize(np.ones((2, 16)), name, tensor_scale=1.0)


# --- what is refused ------------------------------------------------------------------------------

ONES = np.ones((2, 3), np.float32)
REFUSED = [
    (lambda: refq.quantize(ONES, "mxfp5"), "data type 'mxfp5' is not known; nearest names: mxfp"),
    (lambda: refq.quantize(ONES, "fp8"), "ambiguous; say which: e4m3fn_float32_channel"),
    (lambda: refq.quantize(ONES, None), "named by a string or given as a row"),
    (lambda: refq.quantize(ONES, "mxfp4", 2), r"axis 2 is not an axis of an array of shape \(2, 3\)"),
    (lambda: refq.quantize(ONES, "mxfp4", -3), "axis -3 is not an axis"),
    (lambda: refq.quantize(ONES, "mxfp4", None), "axis None is not an axis"),
    (lambda: refq.quantize(ONES, "mxfp4", 0.0), "axis 0.0 is not an axis"),
    (lambda: refq.quantize(ONES, "mxfp4", (0, 1)), r"axis \(0, 1\) is not an axis"),
    (lambda: refq.quantize(ONES, "mxfp4", True), "axis True is not an axis"),
    (lambda: refq.quantize(ONES, "e4m3fn", 5), "axis 5 is not an axis"),
    (lambda: refq.quantize(np.float32(1), "mxfp4"), "tiles of 32 values need an axis to lie on"),
    (lambda: refq.quantize(np.float32(1), "int8"), r"'channel' values need an axis to lie on, .* \(\)"),
    (lambda: refq.quantize(ONES, "mxfp4", rounding="up"), "rounding 'up' is not known; allowed are rne"),
    (lambda: refq.quantize(ONES, "int8", rounding=0), "rounding 0 is not known"),
    (lambda: refq.quantize(ONES, "mxfp4", recipe="te"), "recipe 'te' is not known; allowed are ocp, exact"),
    (lambda: refq.quantize(ONES, "mxfp4", recipe="exact"), "'exact' is for float scales, but mxfp4"),
    (lambda: refq.quantize(ONES, "nvfp4", recipe="ocp"), "'ocp' is for exponent scales, but nvfp4"),
    (lambda: refq.quantize(ONES[0], "mxfp4_16x16"), r"need two axes to lie on, .* has the shape \(3,\)"),
    (lambda: refq.quantize(ONES, "mxfp4_16x16", (1, -1)), "two dimensions need two different axes"),
    (lambda: refq.quantize(ONES, "mxfp4_16x16", (0, 2)), "axis 2 is not an axis"),
    (lambda: refq.quantize(ONES, "mxfp4_16x16", (0, 1, 1)), "is not an axis"),
    (lambda: refq.quantize(ONES, "uint4", rounding="sra", random_bits=0, random_width=8), "has a zero point"),
    (lambda: refq.quantize(ONES, "mxfp4", rounding=""), "rounding '' is not known"),
    (lambda: refq.quantize(ONES, "mxfp4", rounding="sra"), "needs random_bits and a random_width"),
    (lambda: refq.quantize(ONES, "nvfp4", random_bits=ONES, random_width=3), "'rne' takes no random_bits"),
    (lambda: refq.quantize(ONES, "nvfp4", rounding="sra", random_bits=[1], random_width=33), "1 to 32"),
    (lambda: refq.quantize(ONES > 0, "mxfp4"), "values of dtype bool are not accepted"),
    (lambda: refq.quantize(ONES.astype(">f4"), "mxfp4"), "native byte order"),
    (lambda: refq.quantize(ONES * 1j, "e4m3fn"), "values of dtype complex64 are not accepted"),
    (lambda: refq.quantize(ONES, "mxfp4").dequantize(np.int8), "cannot decode into dtype .*int8"),
    (lambda: refq.quantize(ONES, "e4m3fn").dequantize("float8"), "cannot decode into dtype float8"),
    (lambda: refq.quantize(ONES, "nvfp4").dequantize(">f4"), "cannot decode into dtype >f4"),
]


@pytest.mark.parametrize("call, words", REFUSED, ids=[words for _, words in REFUSED])
def test_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_recipes_say_which_rule_they_serve():
    for name in SCALED:
        q = refq.quantize(ONES, name)
        assert q.recipe == q.dtype.recipe and RECIPES[q.recipe].kind == RULES[q.dtype.rule].kind
        assert q.rounding == RECIPES[q.recipe].rounding == ("rna" if name == "hif4" else "rne")
    assert refq.quantize(ONES, "mxfp4", rounding="rtz").rounding == "rtz"


# --- a program that turns numpy's warnings into errors ----------------------------------------------------

@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_no_floating_point_error_escapes(dtype):
    """Any bit pattern at all, under numpy.seterr(all="raise")."""
    rng = np.random.default_rng(2)
    x = np.frombuffer(rng.bytes(30 * 100 * np.dtype(dtype).itemsize), dtype).reshape(30, 100)
    bits = rng.integers(0, 128, x.shape)
    with np.errstate(all="raise"):
        for name in ("mxfp8", "mxint8", "nvfp4", "int8", "int4", "e4m3fn_float32_tensor", "e5m2", "tf32"):
            for more in ({}, dict(rounding="rup"), dict(rounding="src", random_bits=bits, random_width=7)):
                q = refq.quantize(x, name, **more)
                assert all(q.dequantize(out).shape == x.shape for out in (np.float64, np.float32, np.float16))


def test_quotients_that_underflow_in_float64_are_zeros():
    """bnb_fp4 under a float32 scale: the one division that looks at its remainder. 1.6e-295 over 1e30."""
    x = np.full((200, 64), 1.5955686786620333e-295)
    x[:, 0] = 1e30
    for rounding in ("rne", "rna", "rtz"):
        for sign in (1, -1):
            q = refq.quantize(sign * x, "bnb_fp4_t64", rounding=rounding)
            assert np.all(q.dequantize(np.float64)[:, 1:] == 0)
