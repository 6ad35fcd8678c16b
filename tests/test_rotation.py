"""Rotations: against the oracle, against scipy, and what ROT-7 says they keep."""

import re
from dataclasses import asdict
from fractions import Fraction
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.linalg import hadamard

import refq
from refq.blocks import rotation as room
from refq.blocks.rotation import ROTATIONS, Rotation, rotate, rotation_named, unrotate
from refq.formats.rows import FORMATS
from spec.oracle import rotation as oracle, scalar
from tests.test_oracle_anchors import source_value, words

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {"binary64": np.float64, "binary32": np.float32, "binary16": np.float16,
           "bfloat16": ml_dtypes.bfloat16}
DTYPES = {np.float64: "binary64", np.float32: "binary32", np.float16: "binary16"}
BOTH = {"rotate": (rotate, oracle.rotate), "unrotate": (unrotate, oracle.unrotate)}


@cache
def facts(name):
    return scalar.facts(words(FORMATS[name]))


def decoded(x):
    if x.dtype.kind in "iu":
        return [scalar.exact(n) for n in x.ravel().tolist()]
    source = next(n for n, dtype in SOURCES.items() if x.dtype == dtype)
    return [scalar.decode(code, facts(source)) for code in x.ravel().view(f"u{x.itemsize}").tolist()]


def described(row):
    return {"order": row.order, "signs": row.signs, "scaling": row.scaling}


def assert_as_the_oracle(x, name, axis=-1, dtype=np.float32, verbs=BOTH):
    row, x = rotation_named(name), np.asarray(x)
    for verb in verbs:
        ours, theirs = BOTH[verb]
        got = ours(x, name, axis, dtype)
        want = theirs(decoded(x), x.shape, axis, row.size, facts(DTYPES[dtype]), **described(row))
        word = f"u{got.itemsize}"
        bad = np.flatnonzero(got.ravel().view(word) != np.array(want, word))
        assert got.dtype == dtype and got.shape == x.shape
        assert not bad.size, f"{verb} {name} {x.dtype} output {bad[0]}: {got.ravel()[bad[0]]!r}, " \
                             f"oracle {np.array(want, word).view(dtype)[bad[0]]!r}"


# --- matrices and names ---------------------------------------------------------------------------

@pytest.mark.parametrize("k", range(9))
def test_matrices(k):
    """Sylvester's is scipy's; Walsh's has 0, 1, 2 ... sign changes; both are symmetric."""
    n = 1 << k
    eye = np.eye(n)
    natural, sequency = (rotate(eye, f"{order}_{n}_unscaled") for order in ("hadamard", "walsh"))
    assert np.array_equal(natural, hadamard(n)) and np.array_equal(sequency, oracle.walsh(n))
    assert (np.diff(sequency, axis=1) != 0).sum(axis=1).tolist() == list(range(n))
    assert np.array_equal(natural, natural.T) and np.array_equal(sequency, sequency.T)
    scale = 2.0 ** -((k + 1) // 2)
    assert np.array_equal(rotate(eye, f"hadamard_{n}"), natural * scale)
    assert np.array_equal(unrotate(natural * scale, f"hadamard_{n}"), eye)


@pytest.mark.parametrize("n", [128, 512, 8192, 65536])
def test_large_sizes(n):
    """Small integers: exact in any order, so a matrix of int64 decides. Every 509th output of both orders."""
    x = np.random.default_rng(n).integers(-100, 100, (3, n))
    i = np.arange(n)
    for order in ("hadamard", "walsh"):
        got = rotate(x, f"{order}_{n}_unscaled")
        for j in range(0, n, 509):
            bits, row = i & room._rows(n.bit_length() - 1, order)[j], np.zeros(n, int)
            for b in range(17):
                row ^= bits >> b & 1
            assert np.array_equal(got[:, j], x @ (1 - 2 * row))
        assert np.array_equal(unrotate(got, f"{order}_{n}_unscaled"), x)


def test_te_16():
    signs = "+ + + - + - - - - - - + - + - -".split()
    matrix = np.diag([1.0 if s == "+" else -1.0 for s in signs]) @ hadamard(16) / 4
    assert np.array_equal(rotate(np.eye(16), "te_16"), matrix)
    x = np.random.default_rng(1).integers(-99, 99, (5, 16))
    assert np.array_equal(rotate(x, "TE_16"), x @ matrix)
    assert np.array_equal(unrotate(x, "te_rht_16"), x @ matrix.T)
    assert np.array_equal(rotate(x, "hadamard_16", signs=ROTATIONS["te_16"].signs), x @ matrix)


@pytest.mark.parametrize("name, words", [
    ("te_17", "te_16"), ("hadamard16", "hadamard_16"), ("walch_32", "walsh_32"), ("", "hadamard_<size>"),
    ("hadamard_48", "size is 48.*powers of two from 1 to 65536"), ("walsh_131072", "65536"),
    (16, "named by a string"), (None, "named by a string")])
def test_refused_names(name, words):
    with pytest.raises(refq.InputError, match=words):
        rotate(np.zeros(64), name)


@pytest.mark.parametrize("x, keys, words", [
    (np.zeros((2, 40)), {}, "40 values along axis -1 .* size 16"),
    (np.zeros((17, 16)), {"axis": 0}, "17 values along axis 0 .* size 16"),
    (np.zeros(16), {"axis": 1}, "axis 1 is not an axis"), (np.zeros(16), {"axis": True}, "axis True"),
    (np.float64(1), {}, "axis -1"), (np.zeros(16), {"dtype": "int8"}, "float64, float32 and float16"),
    (np.zeros(16), {"signs": [1] * 15}, "needs 16 signs"), (np.zeros(16), {"signs": [2] * 16}, "1 or -1"),
    (np.zeros(16), {"signs": "+-"}, "a list of 16"), (np.zeros(16, complex), {}, "complex128"),
    (np.full(16, 2 ** 60), {}, "2\\^53")])
def test_refused_operands(x, keys, words):
    for function in (rotate, unrotate):
        with pytest.raises(refq.InputError, match=words):
            function(x, "hadamard_16", **keys)


def test_signs_of_its_own():
    with pytest.raises(refq.InputError, match="signs of its own.*hadamard_16"):
        rotate(np.zeros(16), "te_16", signs=[1] * 16)
    for keys in ({"order": "slant"}, {"scaling": "sqrt"}):
        with pytest.raises(refq.InputError, match="not known"):
            Rotation("new", 4, **keys)


# --- against the oracle ---------------------------------------------------------------------------

@pytest.mark.share(3)
@pytest.mark.parametrize("k", range(9))
@pytest.mark.parametrize("source", [np.float32, np.float64])
def test_every_size(k, source):
    """Ordinary tiles, tiles of wide exponents, and tiles that cancel but for a small rest."""
    n, rng = 1 << k, np.random.default_rng(k)
    plain = rng.standard_normal((2, n))
    wide = plain * 2.0 ** rng.integers(-120, 100, (2, n))
    cancel = np.round(plain * 8) + rng.standard_normal((2, n)) * 2.0 ** -60
    x = np.concatenate([plain, wide, cancel]).astype(source)
    for order in ("hadamard", "walsh"):
        assert_as_the_oracle(x, f"{order}_{n}", verbs=[("rotate", "unrotate")[k % 2]])
        assert_as_the_oracle(x, f"{order}_{n}", dtype=np.float64, verbs=[("unrotate", "rotate")[k % 2]])


def patterns(width):
    """Bit patterns: any, or one of the edges of the range, so that sums cancel, tie or overflow."""
    top = 1 << (width - 1)
    man = {32: 23, 64: 52}[width]
    inf = ((1 << (width - 1 - man)) - 1) << man
    one = (inf >> man >> 1) << man
    edges = [0, 1, 2, 3, (1 << man) - 1, 1 << man, inf - 1, inf - (1 << man), one, one + 1, one + (5 << man),
             one + (24 << man), one + (53 << man), one - (54 << man), one + 3, inf >> 1]
    value = st.one_of(st.sampled_from(edges), st.integers(0, inf - 1),
                      st.integers(one - (2 << man), one + (2 << man)))
    return st.tuples(value, st.booleans()).map(lambda pair: pair[0] | top * pair[1])


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from([32, 64]), st.sampled_from(sorted(DTYPES, key=str)),
       st.sampled_from(["te_16", "walsh_8", "hadamard_4", "hadamard_2", "walsh_4_unscaled", "hadamard_1"]))
def test_any_bits(data, width, dtype, name):
    size = 2 * rotation_named(name).size
    bits = data.draw(st.lists(patterns(width), min_size=size, max_size=size))
    assert_as_the_oracle(np.array(bits, f"u{width // 8}").view(f"f{width // 8}"), name, dtype=dtype)


@pytest.mark.parametrize("source", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(source, dtype):
    """NaN and infinities in every place of a tile whose other values are huge (ROT-5)."""
    huge = np.finfo(source).max
    rows = [np.full(8, huge) * np.where(np.arange(8) % 2, -1, 1).astype(source) for _ in range(30)]
    for i, row in enumerate(rows[:24]):
        row[i % 8] = (np.nan, np.inf, -np.inf)[i // 8]
    rows[24][[0, 3]] = np.inf
    rows[25][[0, 3]] = np.inf, -np.inf
    rows[26][[1, 2]] = np.inf, np.nan
    rows[27][:] = -np.inf
    rows[28][:] = -0.0
    assert_as_the_oracle(np.array(rows, source), "walsh_8", dtype=dtype)


@pytest.mark.parametrize("source", [np.float16, ml_dtypes.bfloat16, np.int8, np.uint16, np.int32, np.int64])
def test_sources(source):
    x = (np.random.default_rng(3).standard_normal((4, 16)) * 40).astype(source)
    result = rotate(x, "te_16")
    assert result.dtype == (np.float64 if source in (np.int32, np.int64) else np.float32)
    assert_as_the_oracle(x, "te_16")


def test_axes_layouts_and_pieces():
    """Any axis and memory layout; a large array, where some pieces hold a tile of each kind."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((16, 3, 32)).astype(np.float32)
    for axis in (0, 2, -1, -3):
        assert_as_the_oracle(x, "te_16", axis)
        want = rotate(np.ascontiguousarray(np.moveaxis(x, axis, -1)), "te_16")
        assert np.array_equal(rotate(np.asfortranarray(x), "te_16", axis), np.moveaxis(want, -1, axis))
    assert rotate(np.zeros((0, 16)), "te_16").shape == (0, 16) == rotate(np.zeros((0, 16)), "te_16", 0).shape
    big = rng.standard_normal((9000, 16)).astype(np.float32)
    for row, values in ((7, np.nan), (17, np.inf), (5000, 1e30), (5001, 1e-30), (8999, 0)):
        big[row, :3] = values
    for source in (big, big.astype(np.float64)):
        whole = rotate(source, "te_16", dtype=np.float32)
        for start in (0, 4990, 8984):
            part = source[start: start + 24]
            assert np.array_equal(whole[start: start + 24], rotate(part, "te_16", dtype=np.float32), True)
            assert_as_the_oracle(part, "te_16")


# --- what is kept (ROT-7) -------------------------------------------------------------------------

@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(0, 8), st.sampled_from(["hadamard", "walsh"]), st.booleans(),
       st.integers(-100, 80))
def test_integers_return_bit_for_bit(data, k, order, double, power):
    """Multiples of 2^power of at most p - k bits, with any signs."""
    n, dtype = 1 << k, np.float64 if double else np.float32
    most = (1 << ((53 if double else 24) - k)) - 1
    x = np.array(data.draw(st.lists(st.integers(-most, most), min_size=n, max_size=n)), dtype)
    x = np.ldexp(x, power).astype(dtype) + dtype(0)
    signs = data.draw(st.lists(st.sampled_from([1, -1]), min_size=n, max_size=n))
    back = unrotate(rotate(x, f"{order}_{n}", signs=signs), f"{order}_{n}", signs=signs)
    assert np.array_equal(back.view(f"u{x.itemsize}"), x.view(f"u{x.itemsize}"))


@pytest.mark.parametrize("name", ["te_16", "hadamard_2", "walsh_32", "hadamard_256", "walsh_1"])
def test_float32_returns_through_float64(name):
    k, rng = rotation_named(name).log2_size, np.random.default_rng(9)
    x = rng.uniform(1, 2, (50, 256)).astype(np.float32) * np.float32(2) ** rng.integers(-29 + k, 1, (50, 256))
    x *= rng.choice(np.float32([-1, 1]), x.shape)
    assert np.array_equal(unrotate(rotate(x, name, dtype=np.float64), name, dtype=np.float32), x)


@pytest.mark.parametrize("name", ["te_16", "hadamard_4", "walsh_64", "hadamard_8", "walsh_8_unscaled"])
def test_dot_products_are_kept_exactly(name):
    """In exact arithmetic, whatever the values: why both operands are rotated."""
    row, rng = rotation_named(name), np.random.default_rng(2)
    x, w = (rng.standard_normal(row.size) * 2.0 ** rng.integers(-90, 90, row.size) for _ in range(2))
    values = [[-v.magnitude if v.negative else v.magnitude
               for v in oracle.exactly(decoded(a), a.shape, 0, row.size, **described(row))] for a in (x, w)]
    rotated = sum(a * b for a, b in zip(*values))
    plain = sum(Fraction(a) * Fraction(b) for a, b in zip(x.tolist(), w.tolist()))
    factor = row.size * Fraction(1, 4 ** row.shift)
    assert rotated == factor * plain
    assert factor == (row.size if row.scaling == "unscaled" else Fraction(1, 1 + row.log2_size % 2))


def test_an_outlier_is_spread():
    """What rotations are for: the error of int4 with one large value a tile falls."""
    w = np.random.default_rng(4).standard_normal((64, 256)).astype(np.float32)
    w[:, ::16] *= 30
    plain = refq.fake_quantize(w, "int4_float32_t16")
    rotated = refq.quantize(refq.rotate(w, "te_16"), "int4_float32_t16").dequantize()
    assert np.square(refq.unrotate(rotated, "te_16") - w).mean() < 0.5 * np.square(plain - w).mean()


# --- the page -------------------------------------------------------------------------------------

def examples():
    page = (ROOT / "spec/rotation.md").read_text()
    for block in re.findall(r"^```example\n(.*?)^```", page, re.M | re.S):
        yield from (line.partition("#")[0].strip() for line in block.splitlines())


@pytest.mark.parametrize("line", list(examples()))
def test_worked_example(line):
    """Every example of rotation.md, by oracle and refq."""
    left, right = line.split(" = ")
    verb, name, dtype, *texts = left.split()
    dtype = np.dtype(dtype).type
    codes = [scalar.encode(source_value(text), facts("binary64"), "rne", oracle.OUT) for text in texts]
    x = np.array(codes, np.uint64).view(np.float64)
    assert decoded(x) == [source_value(text) for text in texts] or np.isnan(x).any()
    assert_as_the_oracle(x, name, dtype=dtype, verbs=[verb])
    got = decoded(BOTH[verb][0](x, name, dtype=dtype))
    for have, text in zip(got, right.split(), strict=True):
        assert have[:3] == source_value(text)[:3] or have.kind == source_value(text).kind == scalar.NAN


def test_clauses():
    """Cited ones exist, and README lists them all; the table of the page is the table in use."""
    page = (ROOT / "spec/rotation.md").read_text()
    headings = re.findall(r"^### (ROT-\d+) ", page, re.M)
    assert headings == [f"ROT-{i}" for i in range(1, 8)]
    for path in ("refq/blocks/rotation.py", "spec/oracle/rotation.py", "tests/test_rotation.py"):
        assert set(re.findall(r"ROT-\d", (ROOT / path).read_text())) <= set(headings)
    listed = (ROOT / "spec/README.md").read_text()
    assert "rotation.md" in listed and all(f"{clause} " in listed for clause in headings)
    signs = page.split("| `te_16` | 16 | `hadamard` | ")[1].partition(" |")[0].split()
    assert tuple(1 if s == "+" else -1 for s in signs) == asdict(ROTATIONS["te_16"])["signs"]
