"""The tables of layouts: the examples and tables of spec/layouts.md, the oracle bit by bit, other stacks."""

import re
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import refq
from refq.blocks import layouts
from refq.blocks.layouts import (BLOCK_LAYOUTS, LAYOUTS, LINE, SCALE_LAYOUTS, BlockLayout, Layout, Plane,
                                 Swizzle)
from refq.blocks.packing import pack, unpack
from refq.errors import InputError
from spec.oracle import layouts as oracle

PAGE = (Path(__file__).resolve().parent.parent / "spec" / "layouts.md").read_text()
SOME = (1, 2, 3, 4, 6, 7, 8, 9, 13, 16, 33, 64)             # of the widths of layouts that take any
ROWS = [(row, bits) for row in LAYOUTS.values() for bits in row.bits if len(row.bits) < 9 or bits in SOME]
RNG = np.random.default_rng(3)


def draw(shape, bits, rng=RNG):
    codes = rng.integers(0, (1 << bits) - 1, shape, dtype=np.uint64, endpoint=True)
    return np.asarray(codes).astype(layouts.code_kind(bits))


# --- the page ---------------------------------------------------------------------------------------------

def table(first):
    """The cells of the tables whose first headings are these, without ticks."""
    for part in PAGE.split(f"| {first} |")[1:]:
        for line in part.splitlines()[2:]:
            if not line.startswith("|"):
                break
            yield [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]


def examples():
    for block in re.findall(r"^```layout\n(.*?)^```", PAGE, re.M | re.S):
        yield from (line.partition("#")[0].strip() for line in block.splitlines())


def spelled(text, base=16):
    """Numbers of a line: a..b, a*n and plain ones."""
    for word in text.split():
        if ".." in word:
            first, last = (int(end, base) for end in word.split(".."))
            yield from range(first, last + 1)
        else:
            number, _, times = word.partition("*")
            yield from [int(number, base)] * int(times or 1)


@pytest.mark.parametrize("line", [line for line in examples() if line.startswith("pack")])
def test_worked_example(line):
    left, _, want = line.partition("=")
    _, name, bits, *rest = left.split()
    bits, axis, fill = int(bits), -1, 0
    while rest and rest[0] in ("axis", "fill"):
        axis, fill = (int(rest[1]), fill) if rest[0] == "axis" else (axis, int(rest[1], 16))
        rest = rest[2:]
    rows = [list(spelled(row)) for row in " ".join(rest).split("/")]
    codes = np.array(rows if len(rows) > 1 else rows[0], layouts.code_kind(bits))
    row, want = layouts.layout(name, bits)[0], bytes(spelled(want))
    packed = pack(codes, name, bits, axis, fill=fill)
    assert packed.tobytes() == want
    assert oracle.pack(codes.ravel().tolist(), codes.shape, axis, bits, asdict(row), fill) == want
    assert np.array_equal(unpack(want, codes.shape, name, bits, axis), codes)
    assert oracle.unpack(want, codes.shape, axis, bits, asdict(row)) == codes.ravel().tolist()


@pytest.mark.parametrize("line", [line for line in examples() if line.startswith("block")])
def test_worked_block(line):
    left, _, want = line.partition("=")
    _, name, dtype, rest = left.split(None, 3)
    x = np.array([list(spelled(row, 10)) for row in rest.split("/")], np.float32)
    packed = refq.quantize(x, dtype).pack(name)
    assert packed.codes.tobytes() == bytes(spelled(want)) and packed.scales is None
    assert packed.unpack().codes.tolist() == refq.quantize(x, dtype).codes.tolist()


def test_every_row_has_a_worked_example():
    named = {layouts.layout(words[1], int(words[2]))[0].name
             for line in examples() if (words := line.split())[0] == "pack"}
    assert named == set(LAYOUTS) - {"amd-preshuffle"}          # which has a table of addresses
    assert {line.split()[1] for line in examples() if line.startswith("block")} == set(BLOCK_LAYOUTS)


def in_words(plane, row):
    """A plane as the page writes it."""
    whole = plane.width in (None, max(row.bits))
    words = ["all" if whole else f"{plane.low}–{plane.low + plane.width - 1}"]
    if plane.order == "split":
        words.append(f"split {plane.stretch}" if plane.stretch else "split")
    elif plane.order == layouts._pairs_apart(32):
        words.append("pairs apart")
    elif plane.order != "sequence":
        words.append("order " + " ".join(map(str, plane.order)))
    return ", ".join(words + ["high"] * (plane.first == "high"))


def test_the_table_of_element_layouts():
    listed = {name: cells for name, *cells in table("layout | bits")}
    assert set(listed) == set(LAYOUTS)
    for name, (bits, span, block, planes, word, _) in listed.items():
        row = LAYOUTS[name]
        words = "" if row.span == "tensor" else "line" if row.word == LINE else str(row.word)
        assert (bits, span, block) == (layouts._listed(list(row.bits)), row.span, str(row.block or "")), name
        assert (planes, word) == ("; ".join(in_words(plane, row) for plane in row.planes), words), name


def test_the_table_of_block_layouts():
    listed = {name: cells for name, *cells in table("layout | fields")}
    assert set(listed) == set(BLOCK_LAYOUTS)
    for name, (fields, tiles, codes, join, only, sizes) in listed.items():
        row = BLOCK_LAYOUTS[name]
        wants = [f"tile {value}" if key == "tile" else value for key, value in row.wants.items()]
        inverted = f", {row.invert} inverted" if row.invert else ""
        assert (fields, int(tiles), join) == (", ".join(row.fields), row.tiles, row.join)
        assert (codes, only) == (row.codes + inverted, ", ".join(wants))
        if name == "scale-first":
            for dtype, size in (pair.split() for pair in sizes.split(", ")):
                tile = refq.data_type(dtype).tile
                assert refq.quantize(np.ones(tile, np.float32), dtype).pack(name).codes.size == int(size)


FORMULAS = {
    "cublas-128x4": lambda i, j, c: ((i // 128 * (c // 4) + j // 4) * 512 + i % 32 * 16 + i % 128 // 32 * 4
                                     + j % 4),
    "amd-e8m0-shuffle": lambda i, j, c: ((i // 32 * (c // 8) + j // 8) * 256 + j % 4 * 64 + i % 16 * 4
                                         + j % 8 // 4 * 2 + i % 32 // 16),
    "amd-preshuffle": lambda i, j, c: ((i // 16 * (c // 32) + j // 32) * 512 + j % 32 // 16 * 256
                                       + i % 16 * 16 + j % 16),
}
SWIZZLES = SCALE_LAYOUTS | {"amd-preshuffle": LAYOUTS["amd-preshuffle"].shuffle}


def test_the_tables_of_addresses():
    count = 0
    for name, cols, cells in table("layout | C"):
        for i, j, want in re.findall(r"\((\d+), (\d+)\) → (\d+)", cells):
            i, j, want, cols = int(i), int(j), int(want), int(cols)
            matrix = np.zeros((i + 1, cols), np.uint8)
            matrix[i, j] = 7
            packed = pack(matrix, name, 8).ravel()
            assert packed[want] == 7 and packed.sum() == 7
            assert FORMULAS[name](i, j, cols) == oracle.offset(i, j, cols, asdict(SWIZZLES[name])) == want
            count += 1
    assert count == 29


@pytest.mark.parametrize("name", SWIZZLES)
@pytest.mark.parametrize("shape", [(1, 1), (128, 4), (129, 5), (256, 8), (300, 33), (31, 70)])
def test_swizzles_follow_the_formula(name, shape):
    matrix, row = draw(shape, 8), SWIZZLES[name]
    packed = pack(matrix, name, 8)
    high, wide = (-(-size // to) * to for size, to in zip(shape, row.pad))
    want = np.zeros(high * wide, np.uint8)
    for i, j in product(*map(range, shape)):
        want[FORMULAS[name](i, j, wide)] = matrix[i, j]
    assert packed.shape == (high, wide) and np.array_equal(packed.ravel(), want)
    assert oracle.swizzle(matrix.ravel().tolist(), 1, *shape, asdict(row)) == want.tobytes()
    assert oracle.unswizzle(want.tobytes(), 1, *shape, asdict(row)) == matrix.tobytes()
    assert np.array_equal(unpack(packed, shape, name, 8), matrix)


# --- the oracle, the inverse, the filling -----------------------------------------------------------------

SHAPES = (st.lists(st.integers(0, 9), min_size=0, max_size=3).map(tuple)
          | st.tuples(st.integers(0, 3), st.integers(0, 300)))


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(ROWS), SHAPES, st.integers(-3, 2), st.randoms(use_true_random=False), st.booleans())
def test_every_layout_is_the_oracle_and_its_inverse(row_bits, shape, axis, random, filled):
    row, bits = row_bits
    axis = axis % max(len(shape), 1)
    codes = draw(shape, bits, np.random.default_rng(random.getrandbits(32)))
    fill = (1 << bits) - 1 if filled else 0
    packed = pack(codes, row, bits, axis, fill=fill)
    flat = codes.ravel().tolist()
    assert packed.dtype == np.uint8 and packed.flags.c_contiguous
    assert packed.tobytes() == oracle.pack(flat, shape, axis, bits, asdict(row), fill)
    codes_back = unpack(packed, shape, row, bits, axis)
    assert codes_back.dtype == codes.dtype and codes_back.shape == shape and np.array_equal(codes_back, codes)
    assert oracle.unpack(packed.tobytes(), shape, axis, bits, asdict(row)) == flat


@pytest.mark.parametrize("row, bits", ROWS, ids=lambda value: getattr(value, "name", value))
def test_filling_is_not_looked_at(row, bits):
    """Every bit that no code uses may be anything (PACK-6)."""
    for shape in [(1,), (3, 5), (2, 70), (19, 3, 2)]:
        codes, ones = draw(shape, bits), np.full(shape, (1 << bits) - 1, layouts.code_kind(bits))
        unused = ~pack(ones, row, bits)
        assert np.array_equal(unpack(pack(codes, row, bits) | unused, shape, row, bits), codes)
        assert not (pack(codes, row, bits) & unused).any()
        used = int(np.unpackbits(~unused).sum())
        assert used == codes.size * bits


@pytest.mark.parametrize("row, bits", ROWS, ids=lambda value: getattr(value, "name", value))
def test_long_lines(row, bits):
    """Longer than a slab of the mechanism, and ragged."""
    for shape in [(1, 70_001), (70_001, 1), (400, 333)]:
        codes = draw(shape, bits)
        assert np.array_equal(unpack(pack(codes, row, bits), shape, row, bits), codes)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(SCALE_LAYOUTS)), SHAPES, st.integers(-3, 2))
def test_scale_layouts_are_the_oracle_and_their_inverse(name, shape, axis):
    axis = axis % max(len(shape), 1)
    codes, row = draw(shape, 8), SCALE_LAYOUTS[name]
    packed = pack(codes, name, axis=axis)
    last = np.moveaxis(np.atleast_1d(codes), axis, -1)
    *batch, rows, cols = (1,) * (2 - last.ndim) + last.shape
    want = oracle.swizzle(last.ravel().tolist(), int(np.prod(batch, dtype=int)), rows, cols, asdict(row))
    assert packed.tobytes() == want and packed.shape == (*batch, *row.shape(rows, cols))
    assert np.array_equal(unpack(packed, shape, name, axis=axis), codes)


BLOCKED = [(row, dtype) for row in BLOCK_LAYOUTS.values() for dtype in
           ["mxfp4", "mxfp6_e2m3", "mxfp8_e4m3", "nvfp4", "int4", "int5_float16_t32", "int8_float16_t32",
            "int3_e4m0scale_t4", "int3_float16_t5", "int5_bfloat16_t7", "int7_float32_t1"]
           if all(getattr(refq.data_type(dtype), key) == value for key, value in row.wants.items())]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(BLOCKED), st.integers(0, 3), st.integers(0, 140), st.integers(0, 1), st.integers(0))
def test_blocks_are_the_oracle_and_their_inverse(row_dtype, others, length, axis, seed):
    row, dtype = row_dtype
    block, shape = refq.data_type(dtype), (length, others) if axis == 0 else (others, length)
    q = refq.quantize(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), dtype, axis)
    bits, packed = block.element_row.width, q.pack(row.name)
    inner = asdict(layouts.layout(row.codes, bits)[0])
    words = bits, block.scale_row.width, block.tile, asdict(row), inner
    lines = [[np.take(part, i, 1 - axis).tolist() for part in (q.codes, q.scales)] for i in range(others)]
    assert packed.codes.tobytes() == b"".join(oracle.pack_blocks(*line, *words) for line in lines)
    back = packed.unpack()
    assert np.array_equal(back.codes, q.codes) and np.array_equal(back.scales, q.scales)
    assert (back.codes.dtype, back.scales.dtype) == (q.codes.dtype, q.scales.dtype)
    assert (back.codes.shape, back.scales.shape) == (q.codes.shape, q.scales.shape)


# --- other libraries --------------------------------------------------------------------------------------

def test_numpy_packbits():
    bits = draw((7, 13), 1)
    assert np.array_equal(pack(bits, "msb-first", 1), np.packbits(bits))
    assert np.array_equal(pack(bits, "onnx", 1), np.packbits(bits, bitorder="little"))


def test_onnx_packs_the_same():
    onnx = pytest.importorskip("onnx")
    import ml_dtypes
    for name, bits in [("uint4", 4), ("float4_e2m1fn", 4), ("uint2", 2), ("float8_e4m3fn", 8)]:
        for shape in [(5,), (3, 3), (2, 8)]:
            codes = draw(shape, bits)
            tensor = onnx.numpy_helper.from_array(codes.view(getattr(ml_dtypes, name)))
            assert pack(codes, "onnx", bits).tobytes() == tensor.raw_data


def test_gguf_reads_the_blocks():
    """Five block types, exactly; NVFP4 without the scale of the tensor, which is not in the block."""
    quants = pytest.importorskip("gguf").quants
    x = np.random.default_rng(0).standard_normal((5, 192)).astype(np.float32)
    x[1] *= 1e-6
    x[2, :64] = 0
    for dtype, name in [("mxfp4", "MXFP4"), ("nvfp4", "NVFP4"), ("int4_float16_t32", "Q4_0"),
                        ("int5_float16_t32", "Q5_0"), ("int8_float16_t32", "Q8_0")]:
        q = refq.quantize(x, dtype)
        packed = q.pack(f"gguf-{name.lower()}")
        got = quants.dequantize(packed.codes, getattr(quants.GGMLQuantizationType, name))
        want = replace(q, tensor_scale=None).dequantize()
        assert np.array_equal(got, want), name
        assert np.array_equal(packed.unpack().dequantize(), q.dequantize())


def test_gguf_reads_the_quants_of_its_larger_blocks():
    """Codes packed here under scales of one: gguf gives back code minus its offset."""
    quants = pytest.importorskip("gguf").quants
    one, zero = np.float16(1).tobytes(), np.float16(0).tobytes()
    scales = bytes([1] * 4 + [0] * 4 + [1] * 4)                # eight scales of 1, eight minima of 0
    frames = {"Q2_K": (2, 0, lambda qs: b"\x01" * 16 + qs + one + zero),
              "Q3_K": (3, 4, lambda qs: qs + b"\x11" * 8 + b"\xaa" * 4 + one),
              "Q4_K": (4, 0, lambda qs: one + zero + scales + qs),
              "Q5_K": (5, 0, lambda qs: one + zero + scales + qs),
              "Q6_K": (6, 32, lambda qs: qs + b"\x01" * 16 + one),
              "TQ2_0": (2, 1, lambda qs: qs + one)}
    for name, (bits, offset, frame) in frames.items():
        codes = draw((3, 256), bits)
        blocks = [frame(row.tobytes()) for row in pack(codes, f"gguf-{name.lower()}-qs", bits)]
        got = quants.dequantize(np.frombuffer(b"".join(blocks), np.uint8).reshape(3, -1),
                                getattr(quants.GGMLQuantizationType, name))
        assert np.array_equal(got, codes.astype(np.float32) - offset), name


def test_gptq_words():
    """Four-bit words along the input channels, as its kernels unpack them."""
    codes = draw((64, 5), 4)
    words = pack(codes, "gptq", 4, axis=0).view("<u4")
    assert words.shape == (8, 5)
    for lane in range(8):
        assert np.array_equal(words >> 4 * lane & 15, codes[lane::8])
    assert np.array_equal(unpack(words, codes.shape, "gptq", 4, axis=0), codes)
    assert np.array_equal(unpack(words.astype(">i4"), codes.shape, "gptq", 4, axis=0), codes)


# --- rows -------------------------------------------------------------------------------------------------

def test_a_new_row_is_enough():
    """Layouts of no stack: the words alone make them pack, unpack and agree with the oracle."""
    backwards = Plane(0, 3, (7, 6, 5, 4, 3, 2, 1, 0))
    for row in [Layout("mine", (5,), (Plane(3, 2, "split", 16, "high"), backwards), block=16, word=2),
                Layout("wide", (12,), (Plane(4, 8, first="high"), Plane(0, 4, "split")), word=3, block=4),
                Layout("all", (10,), span="tensor", block=8, fill="zero value"),
                Layout("odd", (9, 11), (Plane(first="high"),))]:
        for bits, shape in product(row.bits, [(1,), (5, 7), (33, 2), (3, 2, 17)]):
            for axis in range(len(shape)):
                codes = draw(shape, bits)
                packed = pack(codes, row, bits, axis)
                assert packed.tobytes() == oracle.pack(codes.ravel().tolist(), shape, axis, bits, asdict(row))
                assert np.array_equal(unpack(packed, shape, row, bits, axis), codes)


@pytest.mark.parametrize("make, words", [
    (lambda: Layout("a", (4,), span="column"), "'column' is not allowed; one of 'tensor', 'row' is"),
    (lambda: Layout("a", (4,), fill="ones"), "'ones' is not allowed"),
    (lambda: Layout("a", (4,), (Plane(first="left"),)), "'left' is not allowed; one of 'low', 'high' is"),
    (lambda: Layout("a", (4,), (Plane(order="halves"),)), "'halves' is not allowed"),
    (lambda: Layout("a", (4,), (Plane(1),)), r"take each of 4 bits once, they take \[1, 2, 3\]"),
    (lambda: Layout("a", (4,), (Plane(), Plane(0, 1))), r"they take \[0, 0, 1, 2, 3\]"),
    (lambda: Swizzle("a", (2,), (2,), (0, 1, 2, 2), (2, 2)), "each part of the two indices once"),
    (lambda: Swizzle("a", (2,), (3,), (0, 1, 2, 3), (2, 4)), "multiples of the tile"),
    (lambda: BlockLayout("a", ("codes", "codes")), "'scales' and 'codes' in some order"),
    (lambda: BlockLayout("a", ("codes", "scales"), join="words"), "'words' is not allowed"),
    (lambda: BlockLayout("a", ("codes", "scales"), join="bits", tiles=2), "blocks of one tile, not 2"),
])
def test_rows_that_make_no_sense(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_names():
    assert layouts.layout("GGUF", 4)[0] is LAYOUTS["gguf-q4_0-qs"]
    assert layouts.layout("gguf", 5)[0] is LAYOUTS["gguf-q5_0-qs"]
    assert layouts.layout("torchao-uintx", 7)[0] is LAYOUTS["torchao-uint7"]
    assert layouts.layout("bnb") == (LAYOUTS["bitsandbytes"], 4)
    assert layouts.layout("tcgen05-128x4") == (SCALE_LAYOUTS["cublas-128x4"], 8)
    spellings = [(name, bits) for rows in (LAYOUTS, SCALE_LAYOUTS) for row in rows.values()
                 for name in (row.name, *row.aka) for bits in row.bits]
    assert len(spellings) == len(set(spellings))
    assert all(layouts.layout(row.codes, bits) for row in BLOCK_LAYOUTS.values()
               for bits in ([4] if row.codes == "onnx" else LAYOUTS[row.codes].bits))
    assert not set(BLOCK_LAYOUTS) & {name for name, _ in spellings}
