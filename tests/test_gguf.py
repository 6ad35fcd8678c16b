"""GGUF blocks: refq against the oracle, the page's examples, the gguf package and, where it is at hand, GGML.

Set REFQ_GGML to a directory with libggml-base.so (and libggml-cpu-haswell.so) to compare with the C functions.
"""

import ctypes
import os
import re
import warnings
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from refq.blocks import gguf
from refq.blocks.gguf import GGUF, VARIANTS, Bits, gguf_decode, gguf_encode, gguf_type
from refq.errors import InputError
from spec.oracle import gguf as oracle

F32 = np.float32
PAGE = Path(__file__).parent.parent / "spec" / "gguf.md"
ROUNDING = [name for name, row in GGUF.items() if row.encodes]
SEARCHING = [name for name in GGUF if name not in ROUNDING]
TINY = 2.0 ** -128                     # the largest d whose inverse is infinite (GGUF-14)
HALVES = (0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0xBC01, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFC01)


def random_blocks(row, count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, row.bytes), dtype=np.uint8)


def half_places(row):
    """The bytes where a block holds binary16 numbers that decoding uses."""
    return [scale.at for scale in (row.scale, row.offset) if scale and scale.format == "binary16"]


def special_blocks(row):
    """Blocks of random codes with every pair of special scales, and of equal bytes."""
    pairs = [(a, b) for a in HALVES for b in HALVES] if len(half_places(row)) == 2 else [(a,) for a in HALVES]
    blocks = random_blocks(row, len(pairs), 1)
    for block, words in zip(blocks, pairs):
        for at, word in zip(half_places(row), words):
            block[at:at + 2] = word & 0xFF, word >> 8
    return np.concatenate([blocks, np.repeat(np.arange(0, 256, 51, dtype=np.uint8)[:, None], row.bytes, axis=1)])


def values(row, seed=0):
    """Blocks of values, random and adversarial, each an array (blocks, values)."""
    rng, count = np.random.default_rng(seed), row.values
    normal = rng.standard_normal
    steps = rng.integers(-40, 41, (6, count))
    ramp = np.arange(count) - count // 2
    one = np.zeros((4, count))
    one[[0, 1, 2, 3], [0, count // 2, count - 1, 7]] = 1, -1, 3e-5, -2.5
    signs = np.where(np.arange(count) % 2, -1.0, 1.0)
    plain = np.concatenate([
        normal((6, count)), -np.abs(normal((2, count))), np.abs(normal((2, count))), one, steps / 4, steps / 8 - 3,
        [ramp / 2, ramp * 0.75, -ramp, signs, -signs, np.full(count, -7.5), np.full(count, 0.1), signs * 127.5],
        normal((2, count)) ** 3,
    ])
    scales = 2.0 ** np.array([0, 1 / 3, 12, 40, 110, 125.9, -20, -60, -118, -124, -126, -127, -128, -133, -147])
    with np.errstate(over="ignore"):
        blocks = (plain[None] * scales[:, None, None]).reshape(-1, count).astype(F32)
    most = np.finfo(F32).max
    zeros = np.zeros((5, count), F32)
    zeros[1], zeros[2, 0], zeros[3, 1:], zeros[4, count // 2:] = -0.0, -0.0, -0.0, -0.0
    edges = [np.where(np.arange(count) % 3 == 0, a, b)
             for a in (most, 65504 * 8, 65520 * 8, 65519.996 * 127, 2.0 ** -24, 2.0 ** -128)
             for b in (-a, a / 3, 0, -0.0)]
    return np.concatenate([np.clip(blocks, -most, most), zeros, np.array(edges, F32)])


def assert_same(got, want, inputs=None):
    """Equal bits, row by row; any NaN equals any NaN."""
    same = got.view(f"u{got.itemsize}") == want.view(f"u{want.itemsize}")
    if got.dtype == F32:
        same |= np.isnan(got) & np.isnan(want)
    wrong = np.flatnonzero(~same.all(axis=-1))
    if len(wrong):
        i = wrong[0]
        pytest.fail(f"{len(wrong)} of {len(got)} rows differ; row {i}: got {got[i]}, want {want[i]}"
                    + (f", from {inputs[i]}" if inputs is not None else ""))


# --- the table ------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", GGUF)
def test_every_bit_of_a_block_belongs_to_one_field(name):
    row = GGUF[name]
    used = np.zeros((row.bytes, 8), int)
    fields = [field for numbers in (row.codes, row.scale.factors, row.offset and row.offset.factors) if numbers
              for run in numbers.runs for field in run]
    for field in fields:
        bits = range(field.low, field.low + field.width * field.groups) if isinstance(field, Bits) else range(8)
        used[field.at:field.at + field.count, list(bits)] += 1
    for at in half_places(row) + ([row.sum_at] if row.sum_at else []):
        used[at:at + 2] += 1
    if row.scale.format != "binary16":
        used[row.scale.at:row.scale.at + row.scale.count] += 1
    assert (used == 1).all()


@pytest.mark.parametrize("name", GGUF)
def test_fields_are_written_as_they_are_read(name):
    row, blocks = GGUF[name], random_blocks(GGUF[name], 50)
    for numbers in (row.codes, row.scale.factors, row.offset and row.offset.factors):
        if numbers:
            codes, room = numbers.read(blocks), np.zeros_like(blocks)
            assert codes.max() < len(numbers.levels)
            numbers.write(room, codes)
            assert np.array_equal(numbers.read(room), codes)
    assert row.values % row.scale.values(np.zeros_like(blocks)).shape[1] == 0


def test_sizes_and_names():
    sizes = {"Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34),
             "Q8_1": (9, 32, 36), "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144),
             "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "IQ4_NL": (20, 32, 18), "IQ4_XS": (23, 256, 136),
             "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66), "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36),
             "Q1_0": (41, 128, 18), "Q2_0": (42, 64, 18)}
    assert {name: (row.number, row.values, row.bytes) for name, row in GGUF.items()} == sizes
    assert GGUF["Q4_K"].bits_per_value == 4.5 and GGUF["TQ1_0"].bits_per_value == Fraction(27, 16)
    assert SEARCHING == ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
    assert gguf_type(" q4_k") is GGUF["Q4_K"] and gguf_type(GGUF["Q8_0"]) is GGUF["Q8_0"]
    assert {row.fit for row in GGUF.values()} == set(gguf.FITS)
    with pytest.raises(InputError, match="'Q4_M' is not known; try .*Q4_K"):
        gguf_type("Q4_M")


# --- decode ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", GGUF)
def test_decode_is_the_oracles(name):
    row = GGUF[name]
    special = special_blocks(row)[::1 + row.values // 64]
    blocks = np.concatenate([random_blocks(row, 2000 // row.values + 6), special])
    want = np.array([oracle.decode(bytes(block), name) for block in blocks])
    assert_same(gguf_decode(blocks, name), want.astype(F32), blocks)


@pytest.mark.parametrize("name", GGUF)
def test_every_product_is_exact(name):
    """GGUF-7: float64 gives the same products, so no order of float32 operations can matter."""
    row, blocks = GGUF[name], random_blocks(GGUF[name], 500)
    factors = row.scale.factors.values(blocks) if row.scale.factors else np.ones((500, 1))
    for at in half_places(row):
        blocks[:, at + 1] &= 0xBF      # finite numbers
    if row.scale.format == "e8m0":
        blocks[:, row.scale.at] %= 0xFD
    scale = row.scale.values(blocks)
    assert np.array_equal(scale, scale.astype(float))
    codes = row.codes.values(blocks).reshape(500, scale.shape[1], -1)
    word = blocks[:, row.scale.at:][:, :2].copy().view("<f2")
    base = word.astype(float) * factors if half_places(row) else scale
    assert np.array_equal(codes * scale[:, :, None], codes.astype(float) * base[:, :, None].astype(float))


def test_every_nan_is_the_canonical_one():
    for row in GGUF.values():
        with np.errstate(invalid="ignore"):
            got = gguf_decode(special_blocks(row), row)
        assert set(got[np.isnan(got)].view(np.uint32)) <= {0x7FC00000}
        assert np.isnan(got).any() == (row.scale.format == "binary16")


def test_packed_scales_byte_by_byte():
    """Every value of every byte of the packed scales, against GGUF-5."""
    for name, first in (("Q3_K", 96), ("Q4_K", 4), ("Q2_K", 0), ("IQ4_XS", 2), ("Q6_K", 192)):
        row, count = GGUF[name], {"Q2_K": 16, "Q6_K": 16, "IQ4_XS": 6}.get(name, 12)
        blocks = random_blocks(row, count * 256)
        blocks[np.arange(len(blocks)), first + np.arange(len(blocks)) // 256] = np.arange(len(blocks)) % 256
        tiles = range(oracle.TYPES[name][2])
        for scale, meaning in ((row.scale, oracle.factor), (row.offset, oracle.minimum)):
            if scale:
                want = [[meaning(block, name, i) for i in tiles] for block in blocks.tolist()]
                assert np.array_equal(scale.factors.values(blocks), want)


def test_eight_bit_scales_and_all_trit_bytes():
    assert gguf.SCALE_TABLES["e8m0"].tolist() == [oracle.e8m0(c) for c in range(256)]
    assert gguf.SCALE_TABLES["ue4m3"].tolist() == [oracle.ue4m3(c) for c in range(256)]
    by_hand = {0: 0, 1: 2 ** -10, 8: 2 ** -7, 0x38: 0.5, 0x7E: 224, 0x7F: 0, 0xFF: 240}
    assert {code: gguf.SCALE_TABLES["ue4m3"][code] for code in by_hand} == by_hand
    blocks = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 54, axis=1)
    want = [[oracle.trit(block, n) for n in range(256)] for block in blocks.tolist()]
    assert GGUF["TQ1_0"].codes.read(blocks).tolist() == want


def repeated(words):
    """Words, where v*n stands for v, n times."""
    return [word for item in words.split() for word in [item.split("*")[0]] * int((item + "*1").split("*")[1])]


def examples():
    blocks = re.findall(r"^```gguf\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("line", examples())
def test_worked_examples_of_the_page(line):
    """Every line of a gguf block in spec/gguf.md holds for refq and for the oracle."""
    verb, name, operand, result = re.fullmatch(r"(decode|encode) (\S+) (.*) = (.*)", line).groups()
    if verb == "decode":
        block = bytes.fromhex("".join(repeated(operand)))
        wanted = {int(index): float(value) for index, value in (item.split(":") for item in result.split())}
        for got in (gguf_decode(block, name), oracle.decode(block, name)):
            assert {index: float(got[index]) for index in wanted} == wanted
    else:
        name, _, variant = name.partition("/")
        x, wanted = [float(F32(value)) for value in repeated(operand)], "".join(repeated(result))
        assert gguf_encode(np.array(x, F32), name, variant or "reference").tobytes().hex() == wanted
        assert oracle.encode(x, name, *([variant] if variant else [])).hex() == wanted


def test_decode_takes_bytes_and_rows():
    blocks = random_blocks(GGUF["Q4_0"], 6)
    flat = gguf_decode(blocks.tobytes(), "q4_0")
    assert flat.shape == (192,) and flat.dtype == F32
    assert gguf_decode(blocks.reshape(2, 3 * 18), "Q4_0").shape == (2, 96)
    assert gguf_decode(np.asfortranarray(blocks)[::-1], "Q4_0").tobytes() == flat.reshape(6, 32)[::-1].tobytes()
    assert gguf_decode(b"", "Q6_K").shape == (0,) and gguf_encode(np.zeros((2, 0), F32), "Q8_0").shape == (2, 0)
    for bad, message in ((bytes(19), "whole blocks of 18 bytes"), (blocks.astype(np.int8), "uint8, not int8"),
                         (np.uint8(3), "whole blocks")):
        with pytest.raises(InputError, match=message):
            gguf_decode(bad, "Q4_0")


# --- encode ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ROUNDING)
def test_encode_is_the_oracles(name):
    row = GGUF[name]
    blocks = values(row)
    blocks = np.concatenate([blocks[::10 if row.fit == "nearest" else 1 + row.values // 16], blocks[-29:]])
    for variant in row.variants:
        want = np.array([list(oracle.encode(block.tolist(), name, variant)) for block in blocks], np.uint8)
        assert_same(gguf_encode(blocks, name, variant), want, blocks)


@pytest.mark.parametrize("name", ["MXFP4", "NVFP4"])
def test_elements_next_to_every_midpoint(name):
    """Ties and their neighbours for every level, in one block each."""
    row = GGUF[name]
    middles = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], F32)
    levels = [0.5, 1, 1.5, 2, 3, 4, 6, -0.0, 0]
    near = np.concatenate([np.nextafter(middles, F32(0)), middles, np.nextafter(middles, F32(9)), levels])
    block = np.concatenate([[6], near[:15], [6], near[15:], [-6], -near[:15], [6], -near[15:]]).astype(F32)
    scales = (1, 0.5, 2.0 ** 20, 1.0625 if name == "NVFP4" else 4, 2.0 ** -6)
    blocks = np.concatenate([(block * F32(scale)).reshape(-1, row.values) for scale in scales])
    want = np.array([list(oracle.encode(x.tolist(), name)) for x in blocks], np.uint8)
    assert_same(gguf_encode(blocks, name), want, blocks)
    ties = np.resize(F32([6, 0.75, 1.75, 3.5, 5, -0.75, -5, -0.0]), row.values)
    got = gguf_decode(gguf_encode(ties, name), name)
    assert got[:8].tolist() == [6, 0.5, 1.5, 3, 4, -0.5, -4, 0] and not np.signbit(got[7])


def test_the_floor_of_a_rounded_logarithm():
    """GGUF-16 at the fifty floats below every power of two, and some above."""
    powers = np.ldexp(F32(1), np.arange(-149, 128)).view(np.uint32).astype(int)
    words = (np.append(powers, 0x7F800000)[:, None] + np.arange(-50, 4)).reshape(-1)
    amax = np.unique(words[(words >= 0) & (words < 0x7F800000)]).astype(np.uint32).view(F32)
    assert gguf._e8m0_scale(amax).tolist() == [oracle.mxfp4_scale(float(a)) for a in amax]
    below = np.nextafter(F32(2) ** np.arange(-126, 128, dtype=F32), F32(0))
    assert (gguf._e8m0_scale(below) != (np.frexp(below)[1] + 124) % 256).sum() == 250
    some = F32([0, 1, 6, 3.4e38, 2.0 ** -125, 2.0 ** -126])
    assert gguf._e8m0_scale(some).tolist() == [0, 125, 127, 252, 0, 255]


def test_the_scale_of_nvfp4():
    """GGUF-17 at every boundary and its neighbours, and where the steps are."""
    halves = gguf.SCALE_TABLES["ue4m3"][:0x80]
    bounds = np.unique([halves * F32(6 * s) for s in (1.9375, 2, 2.0625, 2.125, 2.1875)])
    around = [np.nextafter(bounds, F32(0)), bounds, np.nextafter(bounds, F32(np.inf))]
    amax = np.concatenate([*around, F32([1e-45, 3e38, 6 * 248, 1487.9])])
    assert gguf._ue4m3_scale(amax).tolist() == [oracle.nvfp4_scale(float(a)) for a in amax]
    below_half = np.nextafter(F32(2.0 ** -10), F32(0))
    by_hand = {2.0 ** -10: 1, below_half: 1, 7.9 * 2.0 ** -9: 7, 2.0 ** -6: 8, 247.9: 0x77, 248: 0x7E, 300: 0x7E, 1e30: 0x7E}
    assert gguf._ue4m3_scale(F32(list(by_hand)) * F32(6)).tolist() == list(by_hand.values())


def test_ramps():
    """Every code of Q4_0, Q4_1 and Q5_0 once, in order."""
    ramp = np.arange(-16, 16, dtype=F32)
    q4_0 = gguf_encode(ramp / 2, "Q4_0").tobytes().hex()
    assert q4_0 == "003c" + "".join(f"{min(15, j // 2 + 8 + j % 2):x}{j // 2 + j % 2:x}" for j in range(16))
    assert gguf_encode(ramp % 16, "Q4_1").tobytes().hex() == "003c0000" + "".join(f"{j:x}{j:x}" for j in range(16))
    assert gguf_encode(ramp, "Q5_0").tobytes().hex() == "003c0000ffff" + "".join(f"{j:x}{j:x}" for j in range(16))


def test_stored_scales_are_rounded_but_codes_use_the_unrounded():
    x = np.zeros(32, F32)
    x[:3] = 1000.1, 3.9381, -500
    d = F32(1000.1) / F32(127)
    block = gguf_encode(x, "Q8_0")
    assert block[:2].view(np.float16)[0] == np.float16(d) != d
    assert gguf_encode(np.full(32, 3e38, F32), "Q8_0")[:2].tobytes().hex() == "007c"


def test_x86_and_arm_differ_in_the_inverse_only():
    x = np.random.default_rng(5).standard_normal((20000, 32)).astype(F32)
    by = {name: gguf_encode(x, "Q8_0", name) for name in VARIANTS}
    assert (by["x86"] != by["arm"]).any() and (by["reference"] != by["x86"]).any()
    levels = {name: blocks[:, 2:].view(np.int8).astype(int) for name, blocks in by.items()}
    assert all(np.abs(levels["x86"] - levels[name]).max() <= 1 for name in by)


def test_encode_refuses():
    x = np.zeros((3, 32), F32)
    for name in SEARCHING:
        with pytest.raises(InputError, match=f"encoder of {name} is a search"):
            gguf_encode(np.zeros(256, F32), name)
    for value, words in ((np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")):
        bad = x.copy()
        bad[1, 5] = value
        with pytest.raises(InputError, match=rf"finite values only, and x\[1, 5\] is {words}"):
            gguf_encode(bad, "MXFP4")
    for bad, message in ((x[:, :31], "whole blocks of 32 values"), (F32(1), "whole blocks"),
                         (x.astype(float), "not from float64"), (np.zeros(32, np.int64), "not from int64")):
        with pytest.raises(InputError, match=message):
            gguf_encode(bad, "Q4_0")
    with pytest.raises(InputError, match="variant 'x86' of Q4_0 is not known; allowed: reference"):
        gguf_encode(x, "Q4_0", "x86")


def test_encode_takes_halves_and_any_layout():
    x = np.random.default_rng(1).standard_normal((4, 64))
    for dtype in (np.float16, ml_dtypes.bfloat16):
        narrow = x.astype(dtype)
        assert np.array_equal(gguf_encode(narrow, "Q5_1"), gguf_encode(narrow.astype(F32), "Q5_1"))
    turned = np.asfortranarray(x.astype(F32))
    assert gguf_encode(turned[::-1], "Q4_1").shape == (4, 40)
    assert np.array_equal(gguf_encode(turned[::-1], "Q4_1"), gguf_encode(x.astype(F32), "Q4_1")[::-1])


def test_slabs_make_no_difference():
    x = np.random.default_rng(2).standard_normal((3, 1 << 15)).astype(F32)
    for name in ROUNDING:
        row = GGUF[name]
        parts = [gguf_encode(part, name) for part in x.reshape(-1, row.values)[[0, 1, -2, -1]]]
        whole = gguf_encode(x, name).reshape(-1, row.bytes)[[0, 1, -2, -1]]
        assert np.array_equal(whole, parts)
        assert np.array_equal(gguf_decode(whole, name), [gguf_decode(part, name) for part in parts])


# --- peers ----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def package():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("gguf")


def in_package(call, *arguments):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return call(*arguments)
        except NotImplementedError:
            pytest.skip("not in this version of the package")


def kind(package, name):
    found = getattr(package.GGMLQuantizationType, name, None)
    return found if found is not None else pytest.skip("not in this version of the package")


@pytest.mark.parametrize("name", GGUF)
def test_decode_is_the_packages(package, name):
    row = GGUF[name]
    blocks = np.concatenate([random_blocks(row, 1000, 7), special_blocks(row)])
    sweep = random_blocks(row, 256 * row.bytes if row.bytes < 70 else 256, 8)      # every byte takes every value
    sweep[np.arange(len(sweep)), np.arange(len(sweep)) // 256] = np.arange(len(sweep)) % 256
    for part in (blocks, sweep):
        want = in_package(package.quants.dequantize, part, kind(package, name))
        assert_same(gguf_decode(part, name), want, part)


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0"])
def test_all_scales_decode_as_the_packages(package, name):
    blocks = random_blocks(GGUF[name], 1 << 16)
    blocks[:, :2] = np.arange(1 << 16, dtype="<u2")[:, None].view(np.uint8)
    assert_same(gguf_decode(blocks, name), in_package(package.quants.dequantize, blocks, kind(package, name)))


def zeros_matter(row, x):
    """GGUF-20: the package takes the sign of a zero from another place."""
    if row.fit == "extreme":
        return (x == 0).all(axis=1) & np.signbit(x[:, 0])
    if row.fit == "range":
        return (x.min(axis=1) == 0) & (np.signbit(x) & (x == 0)).any(axis=1)
    return np.zeros(len(x), bool)


def strays(row, x):
    """GGUF-14: what the package makes of these depends on how numpy casts."""
    with np.errstate(over="ignore", invalid="ignore"):
        span = x.max(axis=1) - x.min(axis=1) if row.fit == "range" else np.abs(x).max(axis=1)
        return (span != 0) & (span <= F32(TINY) * abs(row.divisor)) | np.isinf(span)


@pytest.mark.parametrize("name", ROUNDING)
def test_encode_is_the_packages(package, name):
    row = GGUF[name]
    blocks = np.concatenate([values(row, seed) for seed in range(5)])
    odd = zeros_matter(row, blocks)
    blocks, odd = blocks[~strays(row, blocks)], odd[~strays(row, blocks)]
    got, want = gguf_encode(blocks, name), in_package(package.quants.quantize, blocks, kind(package, name))
    assert_same(got[~odd], want[~odd], blocks[~odd])
    assert (got[odd] != want[odd]).any() == bool(odd.any())


# --- GGML itself ----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def ggml():
    folder = os.environ.get("REFQ_GGML")
    if not folder:
        pytest.skip("REFQ_GGML does not name a directory with libggml-base.so")
    paths = [Path(folder) / name for name in ("libggml-base.so", "libggml-cpu-haswell.so")]
    return {path.stem: ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL) for path in paths if path.exists()}


def in_ggml(library, function, data, size, dtype, count):
    """A row function of GGML: (source, destination, number of values)."""
    if not hasattr(library, function):
        pytest.skip(f"{function} is not in this version of GGML")
    room, data = np.empty(size, dtype), np.ascontiguousarray(data)
    call = getattr(library, function)
    call.restype, call.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    call(data.ctypes.data, room.ctypes.data, count)
    return room


@pytest.mark.parametrize("name", GGUF)
def test_decode_is_ggmls(ggml, name):
    row = GGUF[name]
    blocks = np.concatenate([random_blocks(row, 1000, 9), special_blocks(row)])
    function, size = f"dequantize_row_{name.lower().replace('_k', '_K')}", len(blocks) * row.values
    want = in_ggml(ggml["libggml-base"], function, blocks, size, F32, size)
    assert_same(gguf_decode(blocks, name), want.reshape(-1, row.values), blocks)


@pytest.mark.parametrize("name", ROUNDING)
def test_encode_is_ggmls(ggml, name):
    row = GGUF[name]
    x = np.concatenate([values(row, seed) for seed in range(5)])
    function, size = f"quantize_row_{name.lower()}", len(x) * row.bytes
    want = in_ggml(ggml["libggml-base"], f"{function}_ref", x, size, np.uint8, x.size)
    assert_same(gguf_encode(x, name), want.reshape(-1, row.bytes), x)
    if "x86" in row.variants and "libggml-cpu-haswell" in ggml:
        library = ggml["libggml-cpu-haswell"]
        library.ggml_cpu_init()
        want = in_ggml(library, function, x, size, np.uint8, x.size)
        assert_same(gguf_encode(x, name, "x86"), want.reshape(-1, row.bytes), x)
