"""The recipes of stacks: refq against the oracle bit for bit, the worked lines of recipes.md, and names."""

from dataclasses import asdict
from fractions import Fraction
from functools import cache

import ml_dtypes
import numpy as np
import pytest

import refq
from refq.blocks.recipes import RECIPES, changeable, describe, recipe, recipe_of
from refq.blocks.rows import data_type
from refq.blocks.stacks import FINISHES, QUOTIENTS, SCALES, SOURCES, WORDS, log2
from refq.errors import InputError
from spec.oracle import recipes as oracle
from tests.test_oracle_blocks import (decoded, facts, fixed_tiles, midpoint_tiles, power_tiles, random_tiles,
                                      scale_tiles, special_tiles)
from tests.test_oracle_recipes import lines, repeated, source_value

STACKS = [name for name, row in RECIPES.items() if row.takes]
MX = {"e4m3fn": "mxfp8_e4m3", "e5m2": "mxfp8_e5m2", "e2m3": "mxfp6_e2m3", "e3m2": "mxfp6_e3m2",
      "e2m1": "mxfp4", "mxint8": "mxint8"}
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
        g = got.tensor_scale.view(np.uint32)
        assert g == want.outer, f"{context}: tensor scale {g:08x}, oracle {want.outer:08x}"
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


def adversarial(n, dtype, name, part=slice(None)):
    """Rows of n values: specials, zeros, powers of two and thresholds, element midpoints, and neighbours."""
    with np.errstate(all="ignore"):
        parts = [make(n, dtype) for make in (special_tiles, fixed_tiles, power_tiles, random_tiles)]
        parts.append(midpoint_tiles(n, dtype, name))
        if data_type(name).rule in ("amax", "minmax"):
            parts.append(scale_tiles(n, dtype, name))
        if dtype == np.float32:
            parts += [thresholds(n)[part], vanishing(n)]
        return np.concatenate(parts)


def thresholds(n):
    """Largest magnitudes at every m * 2^k where some rule or float32 operation turns, and beside them."""
    rng = np.random.default_rng(3)
    marks = np.float32([1, 1.5, 1.75, 1.8125, 1.875, 1.9375, 1.984375, 1.9921875, 448 / 256, 464 / 256])
    powers = [-149, -148, -140, *range(-131, -120), -64, -30, -24, -9, *range(-4, 5), 7, 8, 9, 15, 16, 17,
              30, 64, 118, 119, *range(124, 128)]
    peaks = np.ldexp(marks[:, None], np.array(powers)[None, :]).astype(np.float32).reshape(-1)
    words = peaks.view(np.uint32)[:, None].astype(np.int64) + np.array([-44, -2, -1, 0, 1, 2, 45])
    peaks = words[(words > 0) & (words < 0x7F800000)].astype(np.uint32).view(np.float32)
    rows = rng.uniform(-1, 1, (len(peaks), n)).astype(np.float32) * peaks[:, None]
    rows[:, 1 % n :: 3] = np.round(rows[:, 1 % n :: 3] / peaks[:, None] * 24) / 24 * peaks[:, None]
    rows[np.arange(len(peaks)), rng.integers(n, size=len(peaks))] = peaks
    return rows


def vanishing(n):
    """Values so small beside the largest of their tile that float32 quotients underflow."""
    rows = np.zeros((28, n), np.float32)
    rows[:, 0] = np.float32(2) ** np.repeat(np.float32([40, 100, 120, 127]), 7) * np.float32(1.7)
    rows[:, 1] = -np.float32(2) ** np.tile(np.float32([-149, -140, -127, -126, -100, -60, -20]), 4)
    rows[:, 2] = -rows[:, 1]
    return rows


def apart(rows, name):
    """Arrays of such rows: together and some alone; with a tensor scale by size, odd ones also in pairs."""
    if not data_type(name).outer:
        return [rows, *(row[None] for row in rows[::13])]
    with np.errstate(invalid="ignore"):                 # signalling NaN
        wide = rows.astype(np.float64)
    sound = np.isfinite(wide).all(axis=1)
    size = np.abs(wide).max(axis=1, initial=0)
    beside = np.linspace(-2, 3, rows.shape[1]).astype(rows.dtype)
    found = [rows[sound & (low <= size) & (size < low * 2 ** 16)] for low in 2.0 ** np.arange(-160, 128, 16)]
    odd = ~sound | (size == 0)
    found += [np.concatenate([row, np.zeros(16 - len(row), row.dtype), beside])[None] for row in rows[odd]]
    return [*found, *(row[None] for row in rows[odd]), *(row[None] for row in rows[sound][::5])]


@pytest.mark.share(4)
@pytest.mark.parametrize("source", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64],
                         ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("how, name", PAIRS)
def test_adversarial_tiles(how, name, source):
    part = PAIRS.index((how, name)) % 29                # of thousands of thresholds; each pair sees others
    judge_rows(adversarial(5, source, name, slice(part, None, 29)), name, how)


@pytest.mark.slow
@pytest.mark.parametrize("how, name", PAIRS)
def test_all_thresholds(how, name):
    judge_rows(adversarial(5, np.float32, name), name, how)


def judge_rows(rows, name, how):
    for x in apart(rows, name):
        if judged(x, name, how) is None:                # the whole array is refused for one of its tiles
            for row in x:
                judged(row[None], name, how)


@pytest.mark.parametrize("line", list(lines("recipes.md")))
def test_worked_lines(line):
    left, _, result = line.partition(" = ")
    _, how, name, *texts = left.split()
    values = [source_value(text) for text in repeated(" ".join(texts))]
    sizes = [{"nan": np.nan, "inf": np.inf}.get(v.kind, v.magnitude) for v in values]
    words = [np.float32(size).view(np.uint32) for size in sizes]
    x = (np.array(words, np.uint32) | np.uint32([v.negative << 31 for v in values])).view(np.float32)
    if result == "refused":
        with pytest.raises(InputError):
            refq.quantize(x, name, recipe=how)
        return
    q = refq.quantize(x, name, recipe=how)
    outer = [] if q.tensor_scale is None else [[q.tensor_scale.view(np.uint32)]]
    parts = [*outer, q.scales, q.codes]
    assert [list(part) for part in parts] == [[int(code, 16) for code in repeated(part)]
                                              for part in result.split("/")]


@pytest.mark.parametrize("how, name", [pair for pair in PAIRS if pair[1] not in [*MX.values()][:4]])
def test_shapes(how, name):
    """Ragged tiles, long rows, one value, no values, another axis, zeros of one dimension."""
    rng = np.random.default_rng(11)
    long = rng.standard_normal((2, 75)).astype(np.float32)
    zeros = np.zeros((2, 3), np.float32)
    for x, axis in ((long, -1), (long[:, :40].T.copy(), 0), (long[0, :1], 0), (zeros, 0),
                    (long[:, :18] * np.float32(-1e-3), 1)):
        judged(x, name, how, axis)
    for shape in ((0,), (2, 0), (0, 16)):
        q = refq.quantize(np.zeros(shape, np.float32), name, recipe=how)
        assert q.codes.shape == shape and q.scales.size == 0


@pytest.mark.parametrize("how, name", PAIRS)
def test_many_values_are_the_same_as_few(how, name):
    """Tables and chunks give what small arrays give, which the oracle judges."""
    rng = np.random.default_rng(12)
    x = np.ldexp(rng.standard_normal((300, 160)), rng.integers(-12, 12, (300, 1))).astype(np.float32)
    given = {}
    if data_type(name).outer:
        given["tensor_scale"] = refq.quantize(x, name, recipe=how).tensor_scale
    whole = refq.quantize(x, name, recipe=how, **given)
    for row in range(0, 300, 23):
        part = refq.quantize(x[row], name, recipe=how, **given)
        assert np.array_equal(whole.codes[row], part.codes) and np.array_equal(whole.scales[row], part.scales)


@pytest.mark.parametrize("how", [how for how, name in PAIRS if name == "nvfp4"])
def test_given_tensor_scales(how):
    x = np.random.default_rng(13).standard_normal((3, 16)).astype(np.float32)
    for g in (1.0, 0.001, 3e38, 2.0 ** -149, 448.0):        # cuDNN and GGML refuse all but 1
        judged(x, "nvfp4", how, tensor_scale=np.float32(g))


# --- the logarithm ------------------------------------------------------------------------------------

def test_logarithms_decide():
    """REC-3: float64's logarithm, rounded to float32, is the correctly rounded one beside every power of two,
    and lies so far from the ties there that float64's own error cannot matter."""
    powers = np.arange(1, 255, dtype=np.int64)[:, None] << 23
    for words in ((powers - np.arange(1, 64)).astype(np.uint32), (powers + np.arange(128)).astype(np.uint32)):
        x = words.reshape(-1).view(np.float32)
        x = x[np.isfinite(x) & (x > 0)]
        exact = np.array([float(oracle.log2(Fraction(float(v)))) for v in x], np.float32)
        assert np.array_equal(log2(x), exact)
        wide = np.log2(x.astype(np.float64))
        whole = np.rint(wide)
        toward = np.where(wide < whole, -np.inf, np.inf).astype(np.float32)
        half = np.abs(np.nextafter(whole.astype(np.float32), toward) - whole) / 2
        room = np.abs(np.abs(wide - whole) - half)[whole != 0]
        assert (room > 64 * 2.0 ** -52 * np.maximum(np.abs(whole[whole != 0]), 1)).all()


# --- what takes what --------------------------------------------------------------------------------

@pytest.mark.parametrize("how, name, words", [
    ("te_mxfp8", "mxfp4", "is for elements e4m3fn and e5m2, not e2m1: it does not take mxfp4"),
    ("te_nvfp4", "e2m1_ue4m3_t16", "is for data types with a tensor scale"),
    ("te_mxfp8", "e4m3fn", "is for scales e8m0, not none"),
    ("te_mxfp8", "fp8_1x128", "is for scales e8m0, not binary32"),
    ("torchao_nvfp4", "nvfp6_e2m3", "is for elements e2m1, not e2m3"),
    ("cudnn_mx", "e2m1_e8m0_t32n2m4", "is for plain tiles"),
    ("onnx_quantizelinear", "uint8_float32_float32_t16", "is for plain tiles or integer zero points"),
    ("torchao_floor,zero_tile=one", "mxfp4", "allowed are rule, rounding, overflow"),
    ("te_mxfp8,rule=floor", "mxfp8_e4m3", "allowed are rounding, overflow"),
    ("ocp,nan_tile=lost", "mxfp4", "nan_tile 'lost' is not known; allowed are nan, ignored"),
])
def test_refused(how, name, words):
    with pytest.raises(InputError, match=words):
        refq.quantize(np.ones(16, np.float32), name, recipe=how)


def test_refused_operands():
    x = np.ones(16, np.float32)
    with pytest.raises(InputError, match="knows no tensor scale but 1"):
        refq.quantize(x, "nvfp4", recipe="cudnn_nvfp4", tensor_scale=2.0)
    with pytest.raises(InputError, match="rounds elements by rne, not by rna; torchao_floor,rounding=rna is"):
        refq.quantize(x, "mxfp4", recipe="torchao_floor", rounding="rna")
    assert refq.quantize(x, "mxfp4", recipe="modelopt_mxfp4", rounding="rne").rounding == "rnz"
    q = refq.quantize(x * np.float32(2.5), "mxfp4", recipe="torchao_floor,rounding=rna")
    assert q.recipe == "torchao_floor,rounding=rna" and q.rounding == "rna" and set(q.codes) == {7}


@pytest.mark.parametrize("how", STACKS)
def test_changes(how):
    """A changed rule or rounding is the row with that field changed."""
    fields = changeable(recipe(how))
    assert {"rounding", "overflow"} <= set(fields) <= {"rule", "rounding", "overflow"}
    assert recipe(f"{how},overflow=satsym").overflow == "satsym"
    assert ("rule" in fields) == (RECIPES[how].rule is not None)


# --- words and rows ---------------------------------------------------------------------------------

def test_the_table_has_the_recipes_of_the_oracle():
    assert set(STACKS) == set(oracle.RECIPES)
    for how in STACKS:
        row = RECIPES[how]
        assert row.clause.startswith("REC-") and row.ref and row.words
        assert row.source in ("float32", "normal")


def test_every_word_is_explained():
    tables = {"source": SOURCES, "scales": SCALES, "quotient": QUOTIENTS, "finish": FINISHES}
    for field, table in tables.items():
        assert list(WORDS[field]) == list(table)
    used = {field: {getattr(row, field) for row in RECIPES.values()} for field in WORDS}
    assert used == {field: set(words) for field, words in WORDS.items()}
    for row in RECIPES.values():
        for field in (*WORDS, "zero_tile", "nan_tile", "inf_tile", "tiny_tile", "bottom", "rounding"):
            words = describe(row, field, data_type("mxfp4"))
            assert words.startswith(f"{getattr(row, field)}: ") or words == "as its scales are computed"
    assert describe(recipe("te_mxfp8"), "rule", data_type("mxfp8_e4m3")) == "as its scales are computed"
    assert describe(recipe("tosa"), "rule", data_type("mxfp4")).startswith("tosa: one more where")


def test_every_data_type_has_its_recipes():
    """recipe_of takes every pair that is tested here."""
    for how, name in PAIRS:
        assert recipe_of(data_type(name), how).name == how
