"""Blocks against other libraries where they are installed: gfloat's MX blocks, bitsandbytes' 4-bit types.

The stacks' quantisers are compared in test_recipe_peers.py, GGUF blocks in test_gguf.py.
"""

import numpy as np
import pytest

import refq
from refq.formats.rows import LISTED

MX = ["mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4_e2m1", "mxint8"]


def tiles(count=200, seed=0):
    """float32 tiles of 32: random ones of many sizes, largest magnitudes on powers of two and next to them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 32)) * 2.0 ** rng.integers(-20, 20, (count, 1))
    x[:40, 5] = 2.0 ** np.arange(-20, 20)
    x[40:60, 7] = 1.75 * 2.0 ** np.arange(-10, 10)
    return x.astype(np.float32)


@pytest.mark.parametrize("name", MX)
def test_gfloat_blocks(name):
    """gfloat's OCP blocks: scale from the floor of log2 (in float64), elements to nearest even, saturating."""
    gfloat, formats = pytest.importorskip("gfloat"), pytest.importorskip("gfloat.formats")
    info = getattr(formats, f"format_info_{name}")
    block = refq.data_type(name)
    for tile in tiles():
        scale = gfloat.compute_scale_amax(info.etype.emax, tile.astype(np.float64))
        codes = list(gfloat.encode_block(info, scale, tile.astype(np.float64) / scale))
        q = refq.quantize(tile, block)
        assert codes[0] == q.scales[0] and codes[1:] == q.codes.tolist()
        values = np.array(list(gfloat.decode_block(info, codes)))
        assert np.array_equal(values, q.dequantize(np.float64))


@pytest.mark.parametrize("name, theirs", [("nf4", "nf4"), ("bnb_fp4", "fp4"), ("af4", "af4")])
def test_bitsandbytes_tables(name, theirs):
    functional = pytest.importorskip("bitsandbytes.functional")
    table = functional.get_4bit_type(theirs, device="cpu", blocksize=64).numpy()
    assert np.array_equal(np.float32(LISTED[name].values), table)


@pytest.mark.parametrize("name, theirs", [("nf4", "nf4"), ("bnb_fp4", "fp4")])
def test_bitsandbytes_codes(name, theirs):
    """quantize_4bit multiplies by 1/absmax in float32, block by block, and packs the first element high."""
    functional, torch = pytest.importorskip("bitsandbytes.functional"), pytest.importorskip("torch")
    x = np.random.default_rng(3).standard_normal((64, 256)).astype(np.float32)
    x[0, :16] = np.linspace(-1, 1, 16)
    packed, state = functional.quantize_4bit(torch.from_numpy(x), blocksize=64, quant_type=theirs)
    blocks = x.reshape(-1, 64)
    amax = np.abs(blocks).max(axis=1)
    assert np.array_equal(state.absmax.numpy(), amax)
    scaled = blocks * (np.float32(1) / amax)[:, None]
    codes = refq.encode(scaled, name)
    got = refq.unpack(packed.numpy().reshape(-1), codes.shape, "bitsandbytes", 4)
    if theirs == "fp4":                     # its CPU kernel gives zeros the other sign
        got, codes = (np.where(part & 7, part, 0) for part in (got, codes))
    assert np.array_equal(got, codes)
    q = refq.quantize(blocks, f"{name}_t64")             # exact quotients differ from products next to ties only
    assert np.array_equal(q.scales[:, 0].view(np.float32), amax)
    back = functional.dequantize_4bit(packed, state).numpy().reshape(-1, 64)
    same = refq.decode(q.codes, name) == refq.decode(codes, name)
    assert same.mean() > 0.9999 and np.allclose(back[same], q.dequantize()[same], rtol=1e-6)
