"""The recipes of stacks: refq against the oracle bit for bit, every worked line of spec/recipes.md, and the names."""

from dataclasses import asdict
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import refq
from refq.blocks.recipes import RECIPES, changeable, describe, recipe, recipe_of
from refq.blocks.rows import data_type
from refq.blocks.scales import BOTTOMS
from refq.blocks.stacks import FINISHES, QUOTIENTS, SCALES, SOURCES, WORDS, log2
from refq.errors import InputError
from spec.oracle import recipes as oracle
from tests.test_oracle_blocks import (decoded, facts, fixed_tiles, midpoint_tiles, power_tiles, random_tiles,
                                      scale_tiles, special_tiles)
from tests.test_oracle_recipes import lines, repeated, source_value

STACKS = [name for name, row in RECIPES.items() if row.takes]
MX = {"e4m3fn": "mxfp8_e4m3", "e5m2": "mxfp8_e5m2", "e2m3": "mxfp6_e2m3", "e3m2": "mxfp6_e3m2", "e2m1": "mxfp4",
      "mxint8": "mxint8"}
ONNX = ["int8_float32_t16", "uint8_float32_t16", "int4_float16_t16", "int16_bfloat16_t16", "int2_float32_t16",
        "e4m3fn_float32_t16", "e5m2fnuz_float16_t16", "e2m1_float32_t16", "uint8_float32_uint8_t16",
        "uint4_bfloat16_int8_t16"]


def types(name):
    """The data types to try a recipe on: every element it takes, every kind of tensor scale."""
    takes = RECIPES[name].takes
    if name == "onnx_quantizelinear":
        return ONNX
    if takes.scales == ("e8m0",):
        return [MX[element] for element in takes.elements]
    return ["nvfp4"] * (takes.outer != "none") + ["e2m1_ue4m3_t16"] * (takes.outer != "required")


PAIRS = [(name, dtype) for name in STACKS for dtype in types(name)]


@cache
def described(name):
    block = data_type(name)
    return asdict(block), {n: facts(n) for n in (block.element, block.scale, block.outer, block.zero) if n}


def judged(x, name, how, axis=-1, tensor_scale=None):
    """refq equals the oracle on an array: codes, scales, zero points, tensor scale; or both refuse."""
    block, formats = described(name)
    outer = None if tensor_scale is None else int(np.float32(tensor_scale).view(np.uint32))
    try:
        want = oracle.quantise(decoded(x), x.shape, axis, block, formats, how, outer)
    except oracle.Refused:
        with pytest.raises(InputError):
            refq.quantize(x, name, axis, recipe=how, tensor_scale=tensor_scale)
        return None
    got = refq.quantize(x, name, axis, recipe=how, tensor_scale=tensor_scale)
    context = f"{how} {name} {x.dtype} {x.shape}"
    if want.outer is not None:
        assert got.tensor_scale.view(np.uint32) == want.outer, f"{context}: {got.tensor_scale!r}, oracle {want.outer:x}"
    else:
        assert got.tensor_scale is None
    scales = np.array(want.scales, got.scales.dtype).reshape(got.scales.shape)
    bad = np.argwhere(got.scales != scales)
    assert not bad.size, (f"{context}: scale {bad[0]} refq {got.scales[tuple(bad[0])]:x}, oracle "
                          f"{scales[tuple(bad[0])]:x}; x there {_tile(x, bad[0], got)}")
    if got.zeros is not None:
        assert got.zeros.ravel().tolist() == list(want.zeros), context
    codes = np.array(want.codes, got.codes.dtype).reshape(x.shape)
    bad = np.argwhere(got.codes != codes)
    assert not bad.size, (f"{context}: {x[tuple(bad[0])]!r} refq {got.codes[tuple(bad[0])]:x}, oracle "
                          f"{codes[tuple(bad[0])]:x}; {len(bad)} differ; row {x[tuple(bad[0][:-1])]!r}")
    return got


def _tile(x, at, got):
    return x[tuple(at[:-1])][..., :32] if x.ndim else x


def adversarial(n, dtype, name):
    """Rows of n values: specials, zeros, powers of two and thresholds with their neighbours, element midpoints."""
    with np.errstate(all="ignore"):
        parts = [special_tiles(n, dtype), fixed_tiles(n, dtype), power_tiles(n, dtype), random_tiles(n, dtype),
                 midpoint_tiles(n, dtype, name)]
        if data_type(name).rule in ("amax", "minmax"):
            parts.append(scale_tiles(n, dtype, name))
        if dtype == np.float32:
            parts.append(thresholds(n))
        return np.concatenate(parts)


def thresholds(n):
    """Largest magnitudes at every m * 2^k where some rule or float32 operation turns, and beside them."""
    rng = np.random.default_rng(3)
    marks = np.float32([1, 1.5, 1.75, 1.8125, 1.875, 1.9375, 1.984375, 1.9921875, 448 / 256, 464 / 256])
    powers = [-149, -148, -140, *range(-131, -120), -64, -30, -24, -9, *range(-4, 5), 7, 8, 9, 15, 16, 17, 30, 64,
              118, 119, *range(124, 128)]
    peaks = np.ldexp(marks[:, None], np.array(powers)[None, :]).astype(np.float32).reshape(-1)
    words = peaks.view(np.uint32)[:, None].astype(np.int64) + np.array([-44, -2, -1, 0, 1, 2, 45])
    peaks = words[(words > 0) & (words < 0x7F800000)].astype(np.uint32).view(np.float32)
    rows = rng.uniform(-1, 1, (len(peaks), n)).astype(np.float32) * peaks[:, None]
    rows[:, 1 % n :: 5] = np.round(rows[:, 1 % n :: 5] / peaks[:, None] * 24) / 24 * peaks[:, None]
    rows[np.arange(len(peaks)), rng.integers(n, size=len(peaks))] = peaks
    return rows


def apart(rows, name):
    """Arrays of such rows: all together, or (with a tensor scale) groups of like size, and odd ones in pairs."""
    if not data_type(name).outer:
        return [rows]
    with np.errstate(invalid="ignore"):                 # signalling NaN
        wide = rows.astype(np.float64)
    sound = np.isfinite(wide).all(axis=1)
    size = np.abs(wide).max(axis=1, initial=0)
    beside = np.linspace(-2, 3, rows.shape[1]).astype(rows.dtype)
    found = [rows[sound & (low <= size) & (size < low * 2 ** 16)] for low in 2.0 ** np.arange(-160, 128, 16)]
    found += [np.stack([row, beside]) for row in rows[~sound]] + [row[None] for row in rows[~sound | (size == 0)]]
    return [*found, *(row[None] for row in rows[sound][::7])]


@pytest.mark.parametrize("source", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64],
                         ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("how, name", PAIRS)
def test_adversarial_tiles(how, name, source):
    rows = adversarial(16 if data_type(name).tile == 16 else 32, source, name)
    if source != np.float32:
        rows = rows[::3]
    for x in apart(rows, name):
        if judged(x, name, how) is None:                # the whole array is refused for one of its tiles
            for row in x:
                judged(row[None], name, how)
