"""Scales: worked examples by hand, every scale rule that the oracle has, the named choices of BLOCK-16."""

from itertools import product

import numpy as np
import pytest

import refq
from refq.blocks.recipes import recipe
from refq.blocks.rules import RULES
from refq.blocks.scales import INF_TILES, NAN_TILES, TINY_TILES, ZERO_TILES
from refq.errors import InputError
from spec.oracle import scalar
from tests.test_oracle_blocks import (
    ASYMMETRIC, ROWS, SUBTILES, arrays, assert_dequantised, assert_quantised, data_type, facts, length,
    midpoint_tiles, power_tiles, sides)

NAN, INF = np.nan, np.inf

# worked by hand: type, values, scale codes, zero points, offsets of each level, element codes, values again
BY_HAND = [
    # range -1 to 14, s = 1, z = 1; 2.5 is a tie
    ("uint4", [-1, 14, 0, 2.5], [0x3C00], [1], (), [0, 15, 1, 3], [-1, 14, 0, 2]),
    # all positive: the range begins at 0; s = 2
    ("uint4", [30, 2, 15, 29], [0x4000], [0], (), [15, 1, 8, 14], [30, 2, 16, 28]),
    # all negative: s = 2, z = 15
    ("uint4", [-30, -2, -16, -1], [0x4000], [15], (), [0, 14, 7, 15], [-30, -2, -16, 0]),
    ("uint4", [0, -0.0], [0], [0], (), [0, 0], [0, 0]),
    ("uint4", [1, NAN], [0x7E00], [0], (), [0, 0], [NAN, NAN]),
    # a float zero point: s = 1, z = 0.5: q = x + 0.5, to even; value q - 0.5
    ("uint4_binary16_binary16_t32", [-0.5, 14.5, 0, 1], [0x3C00], [0x3800], (), [0, 15, 0, 2],
     [-0.5, 14.5, -0.5, 1.5]),
    # mx9: amax 1.5, k = 0; pairs (1.5, 0.25), (0.75, 0.5), (0, 0), (0.25, 1/64): offsets 0, 1, 1, 1
    ("mx9", [1.5, 0.25, 0.75, 0.5, 0, 0, 0.25, 1 / 64], [127], None, ([0, 1, 1, 1],),
     [0x60, 0x10, 0x60, 0x40, 0, 0, 0x20, 2], [1.5, 0.25, 0.75, 0.5, 0, 0, 0.25, 1 / 64]),
    # a second exponent of two bits: k = 0, the second run 4 places lower, held at 3
    ("smint4f2_e8m0_t4s2o2", [1, 0.5, 0.0625, -0.03125], [127], None, ([0, 3],), [4, 2, 2, 9],
     [1, 0.5, 0.0625, -0.03125]),
    # amax 7, s = 1 (code 48 * 4 = c0): 7 >= 4 and 7 >= 2 * 2: the first four values times 4, the next by 2
    ("hif4", [7, -3.5, 1, 0.5, 2, 1, 0, 0, 1, 0.125, 0, 0], [0xC0], None, ([1, 0], [1, 0, 0]),
     [7, 12, 1, 1, 4, 2, 0, 0, 4, 1, 0, 0], [7, -4, 1, 1, 2, 1, 0, 0, 1, 0.25, 0, 0]),
    ("hif4", [0, 0, 0, 0, 0], [0], None, ([0], [0, 0]), [0] * 5, [0] * 5),
    ("hif4", [INF, 1, 0, 0, 0], [0xFF], None, ([0], [0, 0]), [0] * 5, [NAN] * 5),
    # mean magnitude 1: 0.5 is a tie, toward zero
    ("bitnet", [1.5, -0.5, 0.5, -1.5], [0x3F800000], None, (), [2, 1, 1, 0], [1, 0, 0, -1]),
    # e4m0: 2^-7 ... 2^7; amax 1024 = 2^10 asks for 2^10, has 2^7; 2^-20 asks for 2^-20, has 2^-7
    ("b4int3", [1024, -64], [14], None, (), [3, 5], [192, -64]),
    ("b4int3", [2.0 ** -20, 0], [0], None, (), [0, 0], [0, 0]),
    ("tt_bfp8_a", [1.0, -0.5, 1 / 64, 0], [15], None, (), [0x40, 0xA0, 1, 0], [1, -0.5, 1 / 64, 0]),
    ("nf4_t64", [2, -2, 0, 0.2], [0x40000000], None, (), [15, 0, 7, 8], None),
]


@pytest.mark.parametrize("name, x, scales, zeros, offsets, codes, values", BY_HAND)
def test_by_hand(name, x, scales, zeros, offsets, codes, values):
    x = np.array(x, np.float32)
    got, want = assert_quantised(x, name)
    assert got.scales.tolist() == scales and got.codes.tolist() == codes
    assert (None if got.zeros is None else got.zeros.tolist()) == zeros
    assert [part.tolist() for part in got.offsets] == list(offsets)
    if values is not None:
        assert np.array_equal(got.dequantize(), np.array(values, np.float32), equal_nan=True)
    assert_dequantised(got, want, name)


@pytest.mark.parametrize("name, code, value", [
    ("e6m2b48scale", 0, 2.0 ** -48), ("e6m2b48scale", 3, 1.75 * 2.0 ** -48), ("e6m2b48scale", 4, 2.0 ** -47),
    ("e6m2b48scale", 0xC0, 1), ("e6m2b48scale", 0xC1, 1.25), ("e6m2b48scale", 0xFE, 49152),
    ("e6m2b48scale", 0xFF, NAN), ("e5m0scale", 0, 2.0 ** -15), ("e5m0scale", 30, 2.0 ** 15),
    ("e5m0scale", 31, NAN), ("e4m0scale", 14, 128), ("e4m0scale", 15, NAN), ("e2m1b1scale", 6, 4),
    ("e2m1b1scale", 0, 0.5), ("e2m1b1scale", 1, 0.75)])
def test_scale_formats_by_hand(name, code, value):
    got = refq.decode(np.array([code], np.uint8), name, np.float64)[0]
    oracle = scalar.decode(code, facts(name))
    assert np.array_equal(got, value, equal_nan=True)
    assert oracle.kind == scalar.NAN if np.isnan(value) else float(oracle.magnitude) == value


# --- exponent rules -------------------------------------------------------------------------------

EXPONENT_RULES = [rule.name for rule in RULES.values() if rule.kind == "exponent"]


@pytest.mark.share(4)
@pytest.mark.parametrize("rule", EXPONENT_RULES)
@pytest.mark.parametrize("name", ["mxfp4", "mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxint8",
                                  "mx6", "b4int3", "tt_bfp4_a", "e2m1_e8m0_t8x8s2x4o3"])
def test_exponent_rules(name, rule):
    """Every power of two and its neighbours, and every boundary of the element, times powers of two."""
    if sides(name)[0] > 1:
        x = arrays(name, np.float32, 12_000)[0]
    else:
        x = np.concatenate([power_tiles(length(name), np.float32)[::2],
                            midpoint_tiles(length(name), np.float32, name), thresholds(length(name))])
    got, want = assert_quantised(x, name, recipe=f"ocp,rule={rule}")
    assert_dequantised(got, want, name)


def thresholds(n):
    """Largest magnitudes 1 to 2 in steps of 1/64, and their neighbours."""
    peaks = np.arange(64, 128, dtype=np.float32) / 64
    peaks = np.concatenate([np.nextafter(peaks, np.float32(0)), peaks, np.nextafter(peaks, np.float32(4))])
    return np.linspace(-0.9, 1, n, dtype=np.float32) * peaks[:, None]


# --- named choices --------------------------------------------------------------------------------

CHOSEN = [f"zero_tile={zero},nan_tile={nan},inf_tile={inf},tiny_tile={tiny}"
          for nan, inf, (zero, tiny) in product(NAN_TILES, INF_TILES, zip(ZERO_TILES, TINY_TILES))]
NAMES = ["mxfp4", "mxfp8_e5m2", "tt_bfp8_a", "nvfp4", "int4", "uint4", "mx6", "hif4", "hif4_half",
         "absmean_t8", "int4_e4m3fn_t8", "e2m1_e5m2_t16", "mxint8_16x16", *SUBTILES[1:4],
         ASYMMETRIC[1], ASYMMETRIC[5], ASYMMETRIC[8]]


@pytest.mark.share(3)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chosen", CHOSEN)
def test_named_choices(name, chosen):
    """Tiles of zeros, NaN, infinities and tiny values, in every mixture, under every word (BLOCK-16)."""
    x, row = odd_tiles(sides(name)), data_type(name)
    got, want = assert_quantised(x, name, recipe=f"{row.recipe},{chosen}")
    assert_dequantised(got, want, name)


def odd_tiles(shape):
    """One tile of each sort along axis 0."""
    rng, n = np.random.default_rng(1), shape[0] * shape[1]
    rows = []
    normal = rng.standard_normal(n)
    for base in (np.zeros(n), np.full(n, -0.0), normal, np.abs(normal), np.full(n, 1e-45), normal * 1e-42,
                 normal * 2.0 ** -20, np.full(n, 3e38)):
        for special in ((), (NAN,), (INF,), (-INF,), (NAN, INF), (INF, -INF)):
            row = base.copy()
            row[rng.permutation(n)[: len(special)]] = special
            rows.append(row.reshape(shape))
    rows += [np.full(shape, NAN), np.full(shape, INF), np.full(shape, -INF)]
    with np.errstate(over="ignore"):
        return np.concatenate(rows).astype(np.float32)


def test_named_choices_by_hand():
    x = np.float32([[0, 0], [NAN, 6], [INF, 6], [2.0 ** -140, 0]])
    chosen = "zero_tile=one,nan_tile=ignored,inf_tile={},tiny_tile=flush"
    q = refq.quantize(x, "mxfp4", recipe="ocp," + chosen.format("largest"))
    assert q.scales[:, 0].tolist() == [127, 127, 254, 0]
    assert q.codes.tolist() == [[0, 0], [7, 7], [7, 0], [0, 0]]
    q = refq.quantize(x, "int4", recipe="exact," + chosen.format("ignored"))
    assert q.scales[:, 0].tolist() == [0x3C00, 0x3ADB, 0x3ADB, 0]          # 6/7 = 0.857 in binary16
    assert q.codes.tolist() == [[0, 0], [0, 7], [7, 7], [0, 0]]
    assert recipe("ocp, zero_tile = one").name == "ocp,zero_tile=one"


@pytest.mark.parametrize("text", ["ocp,zero_tile=two", "ocp,nan_tile=largest", "ocp,inf_tile=clamp",
                                  "ocp,tiny=clamp", "ocp,tiny_tile", "exact,zero_tile=", "ocp,=one"])
def test_unknown_choices(text):
    with pytest.raises(InputError, match="recipe"):
        refq.quantize(np.ones(4), "mxfp4", recipe=text)


@pytest.mark.parametrize("name", list(ROWS))
def test_rows_have_the_rules_they_say(name):
    assert ROWS[name].rule in RULES
