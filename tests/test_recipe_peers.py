"""The oracle's recipes, and refq's, against the real libraries on the CPU, where they are installed: torch,
torchao, compressed-tensors and ModelOpt. Element codes beside a NaN scale are not compared: they mean nothing
(REC-5).
"""

from fractions import Fraction

import numpy as np
import pytest

import refq
from spec.oracle import recipes, scalar
from tests.test_oracle_blocks import (decoded, described, fixed_tiles, midpoint_tiles, power_tiles,
                                      random_tiles, scale_tiles, special_tiles)

torch = pytest.importorskip("torch")

MX = {"mxfp8_e4m3": "float8_e4m3fn", "mxfp8_e5m2": "float8_e5m2", "mxfp6_e2m3": "fp6_e2m3",
      "mxfp6_e3m2": "fp6_e3m2", "mxfp4": "float4_e2m1fn_x2"}


def tiles(name, n):
    """Adversarial rows of n float32 values, specials first."""
    with np.errstate(all="ignore"):
        parts = [special_tiles(n, np.float32), fixed_tiles(n, np.float32), power_tiles(n, np.float32)[::3],
                 random_tiles(n, np.float32), near_powers(n), midpoint_tiles(n, np.float32, name)[:9]]
        parts += [scale_tiles(n, np.float32, name)[::4]] if name == "nvfp4" else []
        return np.concatenate(parts)


def near_powers(n):
    """Largest magnitudes beside powers of two and their multiples, where float32 logarithms round."""
    powers, steps = (-120, -64, -7, -1, 0, 1, 2, 30, 100, 126), (-44, -1, 0, 1, 40)
    words = [((k + 127) << 23) + step for k in powers for step in steps]
    peaks = np.array(words, np.uint32).view(np.float32)
    peaks = np.concatenate([peaks, peaks * np.float32(1.5), peaks * np.float32(1.75)])
    rows = np.linspace(-0.99, 0.9, n, dtype=np.float32) * peaks[:, None]
    rows[:, n // 3] = peaks
    return rows[np.isfinite(rows).all(-1)]


def oracle(x, name, recipe, outer=None):
    """What the oracle makes of rows; refq makes the same of them."""
    block, formats = described(name)
    q = recipes.quantise(decoded(x), x.shape, -1, block, formats, recipe, outer)
    codes, scales = np.array(q.codes).reshape(x.shape), np.array(q.scales).reshape(x.shape[0], -1)
    ours = refq.quantize(x, name, recipe=recipe)
    assert np.array_equal(ours.codes, codes), f"refq's codes by {recipe} of {name}"
    assert np.array_equal(ours.scales, scales), f"refq's scales by {recipe} of {name}"
    assert q.outer is None or ours.tensor_scale.view(np.uint32) == q.outer, f"refq's tensor scale of {recipe}"
    return codes, scales, q.outer


def agree(x, got_codes, got_scales, want_codes, want_scales, nan, context):
    """Scales equal; codes equal but in tiles whose scale is NaN."""
    bad = np.argwhere(got_scales != want_scales)
    assert not bad.size, (f"{context}: tile {bad[0]} has scale {got_scales[tuple(bad[0])]:#x} there, "
                          f"{want_scales[tuple(bad[0])]:#x} here, of {len(bad)}: {x[bad[0][0]][:8]}")
    dead = np.repeat(want_scales == nan, x.shape[1] // want_scales.shape[1], axis=1)
    bad = np.argwhere((got_codes != want_codes) & ~dead)
    at = tuple(bad[0]) if bad.size else None
    assert at is None, (f"{context}: {x[at]!r} in row {at[0]} with scale {want_scales[at[0]]} is "
                        f"{got_codes[at]:#x} there, {want_codes[at]:#x} here, of {len(bad)}")


def nibbles(packed):
    packed = np.asarray(packed)
    return np.stack([packed & 15, packed >> 4], -1).reshape(packed.shape[0], -1)


def tensor(x):
    return torch.from_numpy(np.ascontiguousarray(x))


def bits(t):
    return t.view(torch.uint8).numpy()


def whole_rows(x, codes, scales, width):
    """Codes and scales of one tile a row, as they come from a library that flattens."""
    return np.asarray(codes).reshape(x.shape), np.asarray(scales).reshape(x.shape[0], x.shape[1] // width)


# --- REC-3 ------------------------------------------------------------------------------------------

def test_float32_logarithm():
    """torch.log2 is the correctly rounded logarithm next to every power of two (a few neighbours of each)."""
    steps = (-60, -45, -44, -2, -1, 0, 1, 2, 80)
    words = [((k + 127) << 23) + step for k in range(-125, 128) for step in steps]
    x = np.array(words, np.uint32).view(np.float32)
    want = np.array([float(recipes.log2(Fraction(float(v)))) for v in x], np.float32)
    assert np.array_equal(torch.log2(tensor(x)).numpy(), want)
    below = np.array([((k + 127) << 23) - 1 for k in range(-125, 129)], np.uint32).view(np.float32)
    wrong = [k for k, v in zip(range(-125, 129), below) if recipes.log2(Fraction(float(v))) == k]
    assert len(wrong) == 250


# --- torchao ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", ["floor", "ceil", "even", "rceil"])
@pytest.mark.parametrize("name", MX)
def test_torchao_mx(name, mode):
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    element = getattr(torch, MX[name], MX[name])
    x = tiles(name, 32)
    scales, codes = mx.to_mx(tensor(x), element, 32, mx.ScaleCalculationMode[mode.upper()])
    codes = nibbles(bits(codes)) if name == "mxfp4" else bits(codes)
    codes, scales = whole_rows(x, codes, bits(scales), 32)
    want = oracle(x, name, "torchao_" + mode)
    agree(x, codes, scales, *want[:2], 0xFF, f"torchao {mode} {name}")


def groups(x):
    """Arrays for two-level types: all finite rows at once, then every row beside a finite tile, and alone."""
    finite = x[np.isfinite(x).all(-1)]
    yield finite[(np.abs(finite).max(-1) < 1e30) & (np.abs(finite).max(-1) > 1e-30)]
    yield np.zeros((2, 16), np.float32)
    beside = np.linspace(-2, 3, x.shape[1], dtype=np.float32)
    for row in x:
        yield np.stack([row, beside])
        yield row[None]


def compare_two_level(library, recipe, outer_of=None):
    for x in groups(tiles("nvfp4", 16)[:: 3]):
        with np.errstate(all="ignore"):
            codes, scales, g = library(x)
        want_codes, want_scales, want_g = oracle(x, "nvfp4", recipe)
        g = int(np.float32(g).view(np.uint32))
        same = g == want_g or (g & 0x7FFFFFFF > 0x7F800000 and want_g & 0x7FFFFFFF > 0x7F800000)
        assert same, f"{recipe}: tensor scale {g:08x} there, {want_g:08x} here, {x}"
        codes, scales = whole_rows(x, codes, scales, 16)
        agree(x, codes, np.where(scales == 0xFF, 0x7F, scales), want_codes, want_scales, 0x7F, recipe)


def test_torchao_nvfp4():
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")

    def library(x):
        g = nv.per_tensor_amax_to_scale(tensor(x).abs().max())
        scales, codes = nv.nvfp4_quantize(tensor(x), 16, g)
        return nibbles(bits(codes)), bits(scales), g.item()
    compare_two_level(library, "torchao_nvfp4")


def test_torchao_nvfp4_single_level():
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    x = tiles("nvfp4", 16)
    scales, codes = nv.nvfp4_quantize(tensor(x), 16, None)
    codes, scales = whole_rows(x, nibbles(bits(codes)), bits(scales), 16)
    agree(x, codes, scales, *oracle(x, "e2m1_ue4m3_t16", "torchao_nvfp4")[:2], 0x7F, "torchao single level")


# --- ModelOpt ---------------------------------------------------------------------------------------

def test_modelopt_mxfp4():
    library = pytest.importorskip("modelopt.torch.quantization.qtensor.mxfp4_tensor").MXFP4QTensor
    x = tiles("mxfp4", 32)
    q, scales = library.quantize(tensor(x), 32)
    codes, scales = whole_rows(x, nibbles(bits(q._quantized_data)), bits(scales), 32)
    agree(x, codes, scales, *oracle(x, "mxfp4", "modelopt_mxfp4")[:2], 0xFF, "ModelOpt MXFP4")


def test_modelopt_mxfp8():
    library = pytest.importorskip("modelopt.torch.quantization.qtensor.mxfp8_tensor").MXFP8QTensor
    x = tiles("mxfp8_e4m3", 32)
    q, scales = library.quantize(tensor(x))
    codes, scales = whole_rows(x, bits(q._quantized_data), bits(scales), 32)
    codes = np.where(codes == 0xFF, 0x7F, codes)               # the sign of a NaN varies with the vector unit
    agree(x, codes, scales, *oracle(x, "mxfp8_e4m3", "modelopt_mxfp8")[:2], 0xFF, "ModelOpt MXFP8")


def test_modelopt_nvfp4():
    library = pytest.importorskip("modelopt.torch.quantization.qtensor.nvfp4_tensor").NVFP4QTensor

    def quantize(x):
        q, scales, g = library.quantize(tensor(x), 16)
        return nibbles(bits(q._quantized_data)), bits(scales), g.item()
    compare_two_level(quantize, "modelopt_nvfp4")


# --- compressed-tensors -----------------------------------------------------------------------------

def compressed(width):
    args = pytest.importorskip("compressed_tensors.quantization.quant_args")
    return args.QuantizationArgs(num_bits=width, type="float", strategy="group", symmetric=True,
                                 group_size=32, scale_dtype=torch.uint8, zp_dtype=torch.uint8)


@pytest.mark.parametrize("name, width", [("mxfp4", 4), ("mxfp6_e2m3", 6), ("mxfp8_e4m3", 8)])
def test_compressed_tensors_mx(name, width):
    args = compressed(width)
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    element = described(name)[1][described(name)[0]["element"]]
    x = tiles(name, 32)
    t = tensor(x)
    codes_of = helpers.generate_mx_scales(t.abs().amax(-1), width)
    codes_of = codes_of.clamp(0, 255).round().to(torch.uint8).numpy()
    scale, _ = helpers.calculate_qparams(t.amin(-1), t.amax(-1), args)
    values = forward.quantize(t, scale[:, None], None, args).float().numpy()
    want_codes, want_scales, _ = oracle(x, name, "compressed_tensors_mx")
    codes = codes_of_values(values, element)
    agree(x, codes, codes_of[:, None], want_codes, want_scales, 0xFF, f"compressed-tensors {name}")


def codes_of_values(values, element):
    """Codes of float32 values that the element format has; a zero keeps its sign."""
    known = {}
    for word in np.unique(values.view(np.uint32)):
        v = scalar.decode(int(word), recipes.BINARY32)
        known[int(word)] = scalar.encode(v, element, "rne", recipes.SAT)
    return np.vectorize(known.__getitem__)(values.view(np.uint32).astype(int))


def test_compressed_tensors_nvfp4():
    args = pytest.importorskip("compressed_tensors.quantization.quant_args")
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    element = described("nvfp4")[1]["e2m1"]
    scheme = args.QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", symmetric=True,
                                   group_size=16, scale_dtype=torch.float8_e4m3fn,
                                   zp_dtype=torch.float8_e4m3fn)

    def quantize(x):
        t = tensor(x)
        tile = t.reshape(len(x), -1, 16)
        g = helpers.generate_gparam(t.amin(), t.amax())
        scale, _ = helpers.calculate_qparams(tile.amin(-1), tile.amax(-1), scheme, g)
        values = forward.quantize(t, scale, None, scheme, global_scale=g).float().numpy()
        return codes_of_values(values, element), bits(scale.to(torch.float8_e4m3fn)), g.item()
    compare_two_level(quantize, "compressed_tensors_nvfp4")


# --- gguf -------------------------------------------------------------------------------------------

def test_gguf_mxfp4():
    """Finite tiles: the Python package makes a NaN of others (GGUF-20)."""
    quants = pytest.importorskip("gguf").quants
    x = tiles("mxfp4", 32)
    x = x[np.isfinite(x).all(-1)]
    with np.errstate(all="ignore"):
        block = quants.quantize(x, quants.GGMLQuantizationType.MXFP4)
    codes = np.concatenate([block[:, 1:] & 15, block[:, 1:] >> 4], -1)
    agree(x, codes, block[:, :1], *oracle(x, "mxfp4", "ggml_mxfp4")[:2], None, "gguf MXFP4")
