"""refq against the oracle, many numbers at a time: data types on random, boundary and adversarial tiles."""

from dataclasses import asdict, replace
from fractions import Fraction
from functools import cache

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import refq
from refq.blocks.rows import DATA_TYPES, Block, stored_width
from refq.errors import InputError
from refq.formats import codec
from refq.formats.policies import ROUNDINGS
from spec.oracle import blocks, scalar

SOURCES = {"binary64": np.float64, "binary32": np.float32, "binary16": np.float16,
           "bfloat16": ml_dtypes.bfloat16}
BY_RULE = ["int4_bfloat16_t32", "int4_float32_t16", "int8_float16_channel", "int8_float32_tensor",
           "int8_bfloat16_t64", "e4m3fn_float32_channel", "e4m3fn_float32_tensor", "e5m2_float32_channel",
           "e4m3fnuz_float32_tensor", "e2m1_float16_t16", "e2m1_ue4m3_t16", "e3m4_bfloat16_t8",
           "uint4_float32_t32", "smint4_float16_t32", "mxint8_float32_t16", "binary8p4se_float32_t32",
           "e4m3fn_e8m0_t16", "int8_e8m0_t32", "e2m1_ue5m3_t16"]
NARROW_SCALES = ["e2m1_e4m0scale_t16", "e4m3fn_e5m0scale_t8", "int8_e6m0scale_t16", "e5m2_e7m0scale_channel",
                 "e2m1_e5m2_t16", "e4m3fn_bfloat16_t16", "e2m3_ue4m3_t8", "int4_e4m3fn_tensor",
                 "int25_float32_t16", "binary32_float32_t16", "e2m1_pow2int8_t16", "int8_pow2int4_t16"]
TWO_D = ["e2m1_e8m0_t4x4", "int8_binary16_t0x4", "int8_binary16_t4x0", "int4_binary32_t0x0",
         "e4m3fn_binary32_t2x8", "e2m1_ue4m3_binary32_t4x4", "uint4_binary16_uint4_t3x5", "nf4_bfloat16_t4x8"]
SUBTILES = ["smint8f6_e8m0_t32s8o2", "e4m3fn_e8m0_t16s4o4", "e2m1_e8m0_t8x8s2x4o3",
            "int8_e4m0scale_t16s8o2", "smint5f3_e8m0_t8x8s4x4o2", "e2m1_e5m0scale_t8s1o1",
            "smint4f2_e8m0_t1x16s1x2o1"]
ASYMMETRIC = ["uint4_binary16_binary16_t32", "uint8_binary32_binary32_channel", "uint4_bfloat16_int8_t16",
              "uint2_binary32_uint2_t8", "uint4_binary16_int4_t8", "uint4_ue5m3_e5m2_t16",
              "uint4_ue4m3_uint16_t8", "uint3_binary16_int32_t8", "uint4_binary16_uint32_t8",
              "uint16_bfloat16_uint16_t16", "uint4_binary32_bfloat16_t3x5", "uint8_binary32_uint8_tensor",
              "uint1_binary16_uint1_t8"]
LISTED = ["ternary_binary16_channel", "ternary_e8m0_t16", "nf4_binary16_t16", "nf4_e8m0_t16",
          "bnb_fp4_e8m0_t16", "af4_e5m0scale_t16", "posit8_bfloat16_t16", "hif8_binary16_t16",
          "posit6_e8m0_t8", "lns5f0_binary32_t8"]
ROWS = {row.name: row for row in [                          # data types that no name by rule gives
    Block("absmean_t8", "ternary", "binary16", 8, "absmean"),
    Block("absmean_4x4", "int4", "ue4m3", (4, 4), "absmean"),
    Block("absmean_channel", "e4m3fn", "bfloat16", "channel", "absmean"),
    Block("hif4_t16", "e2m1", "e6m2b48scale", 16, "hif4", recipe="hif4", subtiles=((4, 1), (2, 1))),
    Block("hif4_half", "smint4f2", "binary16", 64, "hif4", recipe="hif4", subtiles=((8, 1), (4, 1))),
    Block("rceil_subtiles", "e2m3", "e8m0", 16, "rceil", recipe="ocp", subtiles=((4, 2),))]}
BARE = ["e4m3fn", "e8m0", "int8", "e2m1", "nf4"]
TABLE = [name for name, row in DATA_TYPES.items() if len(row.tables) == 1 and not row.sparsity]
TYPES = TABLE + BY_RULE + NARROW_SCALES + TWO_D + SUBTILES + ASYMMETRIC + LISTED + list(ROWS) + BARE
SHAPED = [name for name in TABLE if any(part in name for part in ("_t16", "16x16", "32x32", "128x128"))]
PLAIN = [name for name in TABLE if name not in SHAPED]      # SHAPED: the same arithmetic in other tiles


def data_type(name):
    return ROWS.get(name) or refq.data_type(name)


def words(row):
    kind = row.kind if row.is_listed else "float" if row.is_float else "int"
    return asdict(row) | {"kind": kind}


@cache
def facts(name):
    row = refq.number_format(name)
    return words(row) if row.is_listed else scalar.facts(words(row))


@cache
def described(name):
    """A data type as the oracle wants it: its row as words, and the facts of the formats in it."""
    block = data_type(name)
    return asdict(block), {n: facts(n) for n in (block.element, block.scale, block.outer, block.zero) if n}


def decoded(x):
    """The oracle's values of an array, flat, in row-major order."""
    source = "int64" if x.dtype.kind == "i" else next(n for n, dtype in SOURCES.items() if x.dtype == dtype)
    if source == "int64":
        return [scalar.exact(n) for n in x.ravel().tolist()]
    return [scalar.decode(code, facts(source)) for code in x.ravel().view(f"u{x.itemsize}").tolist()]


def assert_quantised(x, name, axis=-1, rounding=None, bits=None, width=None, tensor_scale=None, recipe=None):
    """refq.quantize equals the oracle: codes, scales, offsets, zero points, tensor scale; both results."""
    block, formats = described(name)
    random = None if bits is None else [(r, width) for r in bits.ravel().tolist()]
    outer = None if tensor_scale is None else int(np.float32(tensor_scale).view(np.uint32))
    want = blocks.quantise(decoded(x), x.shape, axis, block, formats, rounding, random, recipe, outer)
    got = refq.quantize(x, data_type(name), axis, rounding, recipe, bits, width, tensor_scale)
    context = f"{name} {x.dtype} {x.shape} axis {axis} {rounding} {recipe}"
    if want.outer is not None:
        assert got.tensor_scale.view(np.uint32) == want.outer, f"{context}: tensor scale {got.tensor_scale!r}"
    assert_same_codes(got.scales, want.scales, f"{context}: scale")
    assert_same_codes(got.zeros, want.zeros, f"{context}: zero point")
    assert len(got.offsets) == len(want.offsets)
    for level, (ours, theirs) in enumerate(zip(got.offsets, want.offsets)):
        assert_same_codes(ours, theirs, f"{context}: offset {level}")
    assert_same_codes(got.codes, want.codes, f"{context}: element", x)
    return got, want


def assert_same_codes(got, want, context, x=None):
    """An array of refq's codes against a list of the oracle's; None stands for none."""
    assert (got is None) == (want is None), context
    if want is None:
        return
    assert got.size == len(want), f"{context}: {got.shape}, oracle {len(want)} of them"
    bad = np.flatnonzero(got.ravel() != np.array(want, got.dtype))
    assert not bad.size, f"{context} {bad[0]} {'' if x is None else repr(x.ravel()[bad[0]])} " \
                         f"refq {got.ravel()[bad[0]]:#x}, oracle {want[bad[0]]:#x}, {bad.size} in all"


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
    element, width = formats[block["element"]], data_type(name).element_row.width
    decoded = [blocks.value_of(code, element) for code in range(1 << min(width, 16))]
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
    """Tiles whose scale is exactly a code of a float scale format or a tie of two, and their neighbours.

    A source has the tie itself only where it is precise enough for it.
    """
    block, formats = described(name)
    scale, rows = formats[block["scale"]], []
    one = scalar.encode(scalar.exact(1), scale, "rne", blocks.SAT)
    top = {"absmean": 1, "hif4": 7}.get(block["rule"], blocks._top(formats[block["element"]]))
    for code in (0, 1, 2, 3, 6, 7, 8, 9, one - 1, one, one + 1, one + 2, one + 5, scale.top - 1):
        low, high = (scalar.decode(c, scale).magnitude for c in (code, code + 1))
        for ratio in (low, (low + high) / 2):
            with np.errstate(all="ignore"):
                amax = np.array(float(ratio * top)).astype(dtype)
                beside = [np.nextafter(amax, np.array(to, dtype)) for to in (0, np.inf)]
            rows += [np.linspace(0, 1, n) * float(peak) for peak in (amax, *beside) if np.isfinite(peak)]
    rows = np.array(rows)
    if block["rule"] == "absmean":
        return np.repeat(rows[:, -1:], n, axis=1).astype(dtype)
    rows = np.where(np.arange(n) == n - 1, rows, rows * 0.99)
    if block["rule"] == "minmax":
        shifts = np.resize([0.25, 0.5, 1], len(rows))[:, None]
        rows = np.concatenate([rows, rows - rows[:, -1:] * shifts])
    return rows.astype(dtype)


def range_tiles(n, dtype):
    """For zero points: ranges from or to zero, without zero in them, and whose length float64 cannot hold."""
    rng, (least, tiny, most), rows = np.random.default_rng(n + 2), extremes(dtype), []
    for low, high in [(0, 1), (-1, 0), (1, 3), (-3, -1), (-1e-3, 1), (-1, 1e-3), (-1, 1), (-7.5, 7.5),
                      (-8, 7), (-2.0 ** -60, 1), (-1, 2.0 ** -60), (-(1 - 2.0 ** -11), 2.0 ** -14),
                      (-1 / 3, 2 / 3), (-0.1, 0.2), (-least, least), (-least, tiny), (-most, most),
                      (-most, 0), (-most, least), (0, most), (-0.5, 15), (-15, 0.5), (-128, 127), (-1, 254),
                      (-0.5, 254.5), (-2.0 ** -30, 100)]:
        for _ in range(2):
            row = rng.uniform(0, 1, n) * (high / 2 - low / 2) * 2 + low
            row[rng.integers(n)] = low
            row[rng.integers(n)] = high
            rows.append(np.clip(row, low, high))
    return np.array(rows).astype(dtype)


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
    block = data_type(name)
    with np.errstate(all="ignore"):
        parts = [make(n, dtype) for make in (fixed_tiles, special_tiles, power_tiles, random_tiles)]
        parts += [midpoint_tiles(n, dtype, name)] if block.scale and not block.zero else []
        parts += [scale_tiles(n, dtype, name)] if block.scale and block.recipe != "ocp" else []
        parts += [range_tiles(n, dtype)] if block.zero else []
    return np.concatenate(parts)


def sides(name):
    """(cross, along): how many values a full tile of these tests has each way."""
    tile = data_type(name).tile
    pair = tile if isinstance(tile, tuple) else (1, 24 if tile in (None, "tensor", "channel") else tile)
    return tuple(6 if part == "channel" else part for part in pair)


def length(name):
    cross, along = sides(name)
    return cross * along


def arrays(name, dtype, values=60_000):
    """Adversarial tiles laid out as arrays that the data type tiles along the last axes."""
    (cross, along), tile = sides(name), data_type(name).tile
    x = tiles(cross * along, dtype, name)
    x = x[::max(1, x.size // values)]
    if cross > 1 and "channel" in tile:
        return [row.reshape(cross, along) for row in x[:120]]
    alone = tile == "tensor" or data_type(name).outer and cross == 1
    return [x.reshape(-1, along), *(x[::3] if alone else ())]


# --- tests ----------------------------------------------------------------------------------------

@pytest.mark.share(3)
@pytest.mark.parametrize("source", list(SOURCES))
@pytest.mark.parametrize("name", TYPES)
def test_tiles(name, source):
    """Every adversarial tile as a row of one array; for tensor scales also each row as a tensor."""
    for x in arrays(name, SOURCES[source], 20_000 if name in SHAPED else 60_000):
        got, want = assert_quantised(x, name)
        if source == "binary32":
            assert_dequantised(got, want, name)


@pytest.mark.share(3)
@pytest.mark.parametrize("name", TYPES)
def test_ragged_and_single(name):
    """Last tiles shorter than the rest, and tiles of one value."""
    cross, along = sides(name)
    if cross > 1:
        beside = (1, 1), (1, along + 1), (cross + 1, 1), (cross + 2, along + 3), (3, cross - 1, along - 1)
        for shape in beside:
            x = random_tiles(int(np.prod(shape)), np.float32, 1)[1].reshape(shape)
            assert_dequantised(*assert_quantised(x, name), name)
        return
    for n in (1, 2, along - 1, along + 1, 2 * along + 5):
        x = np.concatenate([random_tiles(n, np.float32, 4), special_tiles(n, np.float32)[::5]])
        assert_dequantised(*assert_quantised(x, name), name)


@pytest.mark.share(3)
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "int8", "int4", "int8_float32_tensor", "mxint8", "mx6",
                                  "hif4", "uint4", "uint8", "nf4_t64", "mxfp4_16x16", "nvfp4_16x16",
                                  *TWO_D[:3], "e2m1_e8m0_t8x8s2x4o3", "uint4_binary32_bfloat16_t3x5"])
def test_axes_and_layouts(name, axis):
    """Any axis of any memory layout gives the codes of the same values in C order."""
    x = random_tiles(35 * 3 * 18, np.float32, 1)[1:2].reshape(35, 3, 18)
    for layout in (x, np.asfortranarray(x), np.repeat(x, 2, axis=2)[:, :, ::2], x[::-1, :, ::-1]):
        got, want = assert_quantised(layout, name, axis)
        assert_dequantised(got, want, name, axis)


@pytest.mark.share(2)
@pytest.mark.parametrize("axis", [(0, 1), (1, 0), (0, 2), (2, 0), (-1, 1), (1, -1)])
@pytest.mark.parametrize("name", ["mxfp4_16x16", "e2m1_e8m0_t8x8s2x4o3", "uint4_binary32_bfloat16_t3x5",
                                  "int8_binary16_t0x4", "e4m3fn_binary32_t2x8"])
def test_pairs_of_axes(name, axis):
    x = random_tiles(19 * 3 * 18, np.float32, 1)[1:2].reshape(19, 3, 18)
    for layout in (x, np.asfortranarray(x), x[::-1, :, ::2]):
        got, want = assert_quantised(layout, name, axis)
        assert got.axis == tuple(a % 3 for a in axis)
        assert_dequantised(got, want, name, axis)


@pytest.mark.share(2)
@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (1,), (1, 1), (0, 0), (1, 1, 1), (2, 0, 3)])
@pytest.mark.parametrize("name", TYPES)
def test_empty_and_tiny(name, shape):
    if isinstance(data_type(name).tile, tuple) and len(shape) < 2:
        with pytest.raises(InputError, match="need two axes"):
            refq.quantize(np.zeros(shape), data_type(name))
        return
    got, want = assert_quantised(np.full(shape, -2.5, np.float32), name)
    assert_dequantised(got, want, name)
    assert got.codes.shape == shape


def test_a_scalar_is_a_tensor():
    for name in ("int8_float32_tensor", "bitnet", "uint8_binary32_uint8_tensor", "e4m3fn"):
        got, want = assert_quantised(np.float32(-2.5).reshape(()), name)
        assert_dequantised(got, want, name)


def takes(name, rounding):
    """Whether the element format has that rounding (LIST-2, BLOCK-14)."""
    row, rule = data_type(name).element_row, ROUNDINGS[rounding]
    if row.is_listed:
        allowed = {"codebook": ("rne", "rna", "rnz", "rtz", "rup", "rdn"), "hifloat8": ("rne", "rna")}
        return rounding in allowed.get(row.kind, ("rne",))
    return not (data_type(name).zero and rule.stochastic)


@pytest.mark.share(8)
@pytest.mark.parametrize("rounding", [name for name, rule in ROUNDINGS.items() if not rule.stochastic])
@pytest.mark.parametrize("name", [*PLAIN, "e4m3fn_float32_channel", "int4_bfloat16_t32", *TWO_D[:1],
                                  *SUBTILES[:3], *ASYMMETRIC, *LISTED[:7], *list(ROWS)[:4]])
def test_element_roundings(name, rounding):
    """The rounding asked for is that of the elements; scales stay to nearest even (BLOCK-4, BLOCK-9)."""
    for source in (np.float32, np.float64):
        for x in arrays(name, source, 16_000)[:20]:
            if not takes(name, rounding):
                with pytest.raises(InputError, match="rounding"):
                    refq.quantize(x, data_type(name), rounding=rounding)
            else:
                assert_quantised(x, name, rounding=rounding)


@pytest.mark.share(4)
@pytest.mark.parametrize("rounding", [name for name, rule in ROUNDINGS.items() if rule.stochastic])
@pytest.mark.parametrize("name", [*PLAIN, "e4m3fn_float32_channel", "mxfp4_16x16", *SUBTILES[:3]])
def test_stochastic_elements(name, rounding):
    x, rng = arrays(name, np.float32, 16_000)[0], np.random.default_rng(3)
    for width in (1, 8, 32):
        bits = rng.integers(0, 1 << width, x.shape, np.uint64)
        if takes(name, rounding):
            assert_quantised(x, name, rounding=rounding, bits=bits, width=width)
        else:
            with pytest.raises(InputError, match="rounding"):
                refq.quantize(x, name, rounding=rounding, random_bits=bits, random_width=width)


@pytest.mark.parametrize("g", [2.0 ** -149, 1e-30, 0.001, 1.0, 3.4e38])
def test_given_tensor_scale(g):
    """A tensor scale handed over is used as it is (BLOCK-10)."""
    for dtype in SOURCES.values():
        got, want = assert_quantised(tiles(16, dtype, "nvfp4"), "nvfp4", tensor_scale=np.float32(g))
        assert_dequantised(got, want, "nvfp4")


@pytest.mark.parametrize("name", [*TABLE, "int8_float32_tensor", *TWO_D, *SUBTILES, *ASYMMETRIC, *ROWS])
def test_integer_sources(name):
    rng = np.random.default_rng(5)
    x = rng.integers(-3000, 3000, (6, 2 * sides(name)[1]))
    x[1] = 0
    x[2, 3] = 2 ** 53
    assert_quantised(x, name)


@pytest.mark.share(2)
@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4", "mxint8",
                                  "nvfp4", "int4", "int8_bfloat16_t64", "tt_bfp8_a", "b4int3", "msfp12",
                                  "nf4_binary16_t16", "nf4_e8m0_t16", "bnb_fp4_e8m0_t16", "nvfp8_e5m2"])
def test_every_scale_code_times_every_element_code(name):
    """Also codes that quantize never stores: negative, infinite and NaN scales (BLOCK-11)."""
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


def any_codes(row, shape, rng):
    return rng.integers(0, 1 << row.width, shape, np.uint64).astype(codec.code_dtype(row))


@pytest.mark.parametrize("name", ["mx9", "mx4", "hif4", "uint4", "uint8", *SUBTILES, *ASYMMETRIC, "hif4_t16",
                                  "hif4_half", "mxfp4_16x16"])
def test_any_codes_at_all(name):
    """Random codes of everything: also scales, zero points and offsets that quantize never stores."""
    block, rng, (cross, along) = data_type(name), np.random.default_rng(8), sides(name)
    for _ in range(3):
        x = rng.standard_normal((max(3, 2 * cross + 1), 3 * along + 1)).astype(np.float32)
        q = refq.quantize(x, block)
        offsets = tuple(rng.integers(0, 1 << bits, part.shape).astype(np.uint8)
                        for bits, part in zip(block.offset_bits, q.offsets))
        zeros = any_codes(block.zero_row, q.zeros.shape, rng) if block.zero else None
        q = replace(q, codes=any_codes(block.element_row, q.shape, rng), offsets=offsets, zeros=zeros,
                    scales=any_codes(block.scale_row, q.scales.shape, rng))
        want = blocks.Quantised(q.codes.ravel().tolist(), q.scales.ravel().tolist(), None,
                                tuple(part.ravel().tolist() for part in offsets),
                                None if zeros is None else zeros.ravel().tolist())
        assert_dequantised(q, want, name)


@pytest.mark.parametrize("name", TYPES)
def test_bits_per_value(name):
    """All stored bits over the number of values (BLOCK-12)."""
    (cross, along), block = sides(name), data_type(name)
    q = refq.quantize(np.ones((2 * cross + 1, 2 * along + 1), np.float32), block)
    bits = q.codes.size * refq.number_format(block.element).width
    if block.scale:
        bits += q.scales.size * stored_width(block.scale_row)
    if block.zero:
        bits += q.zeros.size * stored_width(block.zero_row)
    bits += sum(part.size * width for part, (_, width) in zip(q.offsets, block.subtiles))
    bits += 32 if block.outer else 0
    assert q.bits_per_value == Fraction(bits, q.codes.size)


FLOATS = st.floats(width=32) | st.floats(-8, 8, width=32) | st.integers(-48, 48).map(lambda n: n / 8)


@settings(max_examples=150)
@given(st.sampled_from(TYPES), st.lists(FLOATS, min_size=1, max_size=70))
def test_any_tile(name, values):
    x = np.array(values, np.float32)
    x = x[:, None] if isinstance(data_type(name).tile, tuple) else x
    assert_dequantised(*assert_quantised(x, name), name)


@settings(max_examples=80)
@given(st.sampled_from([n for n in TYPES if data_type(n).rule == "floor" and not data_type(n).subtiles
                        and sides(n)[0] == 1 and n not in LISTED]), st.data())
def test_quantising_twice_changes_nothing(name, data):
    """Values that came out of a floor-rule type go in again unchanged."""
    x = np.array(data.draw(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)), np.float32)
    once = refq.quantize(x, name).dequantize()
    assert np.array_equal(refq.quantize(once, name).dequantize(), once)
