"""Which data types have golden vectors of their tiles, and that these reach the ends of the scales."""

import numpy as np
import pytest

import refq
from refq.blocks.rows import DATA_TYPES, data_type
from refq.errors import InputError
from refq.vectors import sets, tiles

REFUSED = {
    "tiles of two dimensions": ("mxfp4_16x16", "nvfp4_16x16", "fp8_128x128"),
    "subtiles": ("mx9", "mx6", "mx4", "hif4", "cb42f1346", "cb41fi"),
    "a zero point": ("uint8", "uint4", "uint4_binary16_bfloat16_t32"),
    "codebooks": ("cb42f1346_e2m3fnuz_e8m0_t32",),
    "sparsity": ("mxfp4_2of4",),
}


def block_set(dtype):
    dtype = data_type(dtype)
    return sets.generate(f"quantize/f32-{dtype.name}/rne-{dtype.recipe}/block")


def whole(row):
    """Whether scales and codes say all about a data type."""
    return not (isinstance(row.tile, tuple) or row.subtiles or row.zero or row.sparsity
                or row.rule == "absmean")


@pytest.mark.parametrize("dtype", [name for name, row in DATA_TYPES.items() if whole(row)])
def test_a_set_for_every_type_of_scales_and_codes(dtype):
    vectors = block_set(dtype)
    scales = vectors.results[0]
    found = np.unique(refq.decode(scales, data_type(dtype).scale, np.float64))
    assert len(vectors) > 50 and np.isnan(found).any() and len(found) >= 8


def test_scales_of_narrow_exponents_reach_both_ends():
    for dtype, ends in (("b4int3", (-7, 7)), ("tt_bfp8_a", (-15, 15))):
        row = refq.number_format(data_type(dtype).scale)
        found = refq.decode(block_set(dtype).results[0], row, np.float64)
        found = np.log2(found[np.isfinite(found)])
        assert (found.min(), found.max()) == ends
        assert (2.0 ** found.min(), 2.0 ** found.max()) == (row.min_positive, row.max)


@pytest.mark.parametrize("part, dtype", [(part, name) for part, names in REFUSED.items() for name in names])
def test_types_of_more_parts_are_refused(part, dtype):
    with pytest.raises(InputError, match=f"{data_type(dtype).name} has {part}, for which vector sets"):
        block_set(dtype)
    with pytest.raises(InputError, match="for which vector sets have no columns"):
        sets.from_weights("w", np.ones((32, 32), np.float32), dtype)


@pytest.mark.parametrize("name, words", [
    ("quantize/f32-bitnet/rne-exact/block", "do not know where its scale binary32 by rule absmean changes"),
    ("quantize/f32-e2m1_e8m0_t1/rne-ocp/block", "tiles of 2 values or more"),
    ("quantize/f32-e2m1_ue4m3_binary32_channel/rne-exact/tensor",
     "tiles of a number of values, not 'channel'"),
])
def test_sets_refused(name, words):
    with pytest.raises(InputError, match=words):
        sets.generate(name)


def test_the_committed_types_are_types():
    assert [data_type(name).name for name in tiles.COMMITTED] == list(tiles.COMMITTED)
