"""N:M sparsity: hand-typed runs, every run of a few values against the oracle, axes, dtypes, packed masks."""

import itertools
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from refq.blocks.sparsity import keep_mask, mask_bits, pack_mask, unpack_mask
from refq.errors import InputError
from refq.formats.rows import FORMATS
from spec.oracle import codebooks as oracle, scalar

F32 = asdict(FORMATS["binary32"]) | {"kind": "float"}
NAN, INF = float("nan"), float("inf")


def kept(*x, n=2, m=4):
    return np.flatnonzero(keep_mask(np.float32(x), n, m)).tolist()


def test_hand_typed_runs():
    assert kept(1, -3, 2, 0) == [1, 2]
    assert kept(1, 1, -1, 1) == [0, 1] and kept(0, -0.0, 0, 0) == [0, 1]
    assert kept(-0.0, 0, 1e-45, -0.0) == [0, 2]
    assert kept(5, NAN, -INF, 7) == [1, 2] and kept(INF, NAN, -INF, NAN) == [1, 3]
    assert kept(3, 1, 2, 4, 9, 8, 7, 6) == [0, 3, 4, 5]
    assert kept(1, 2, 3, 4, 5) == [2, 3, 4] and kept(1, 2, 3, 4, 5, 6, 7) == [2, 3, 5, 6] and kept(1) == [0]
    assert kept(1, 2, 3, 4, n=1, m=2) == [1, 3] and kept(1, 2, 3, 4, n=3) == [1, 2, 3]


def chosen_by_oracle(x, n, m):
    words = np.float32(x).view(np.uint32)
    return oracle.keep([scalar.decode(int(word), F32) for word in words], n, m)


@pytest.mark.parametrize("n, m", [(1, 2), (1, 4), (2, 4), (3, 4), (4, 5)])
def test_every_order_and_tie(n, m):
    for run in itertools.product([0.0, -1.0, 1.0, 2.0, NAN], repeat=m):
        assert keep_mask(np.float32(run), n, m).tolist() == chosen_by_oracle(run, n, m)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32) | st.sampled_from([1.0, -1.0, 0.0, -0.0]), min_size=1, max_size=80),
       st.integers(2, 40), st.data())
def test_any_run(x, m, data):
    n = data.draw(st.integers(1, m - 1))
    got = keep_mask(np.float32(x), n, m)
    assert got.tolist() == chosen_by_oracle(x, n, m)
    whole = got[: len(x) // m * m].reshape(-1, m)
    assert (whole.sum(axis=1) == n).all()


@pytest.mark.parametrize("m", [4, 16, 17, 32, 100])
def test_axes_and_layout(m):
    x = np.random.default_rng(0).standard_normal((5, 70, 3)).astype(np.float32)
    for axis in (0, 1, 2, -1, -2):
        want = np.apply_along_axis(lambda line: keep_mask(line, 2, m), axis, x)
        got = keep_mask(x, 2, m, axis)
        assert np.array_equal(got, want) and got.flags.c_contiguous and got.dtype == bool
        assert np.array_equal(keep_mask(np.asfortranarray(x), 2, m, axis), want)
        assert np.array_equal(keep_mask(x[::-1], 2, m, axis)[::-1], want) or axis == 0


def test_more_than_a_chunk():
    x = np.random.default_rng(0).standard_normal(1 << 17).astype(np.float32)
    for m in (4, 32):
        order = np.argsort(-np.abs(x.reshape(-1, m)), axis=1, kind="stable")
        want = np.zeros((x.size // m, m), bool)
        np.put_along_axis(want, order[:, :2], True, axis=1)
        assert np.array_equal(keep_mask(x, 2, m), want.reshape(-1))


def test_dtypes():
    values = [1, -3, 2, 0, 7, -7, 7, 100, -128, 127, 5]
    want = keep_mask(np.float32(values), 2, 4).tolist()
    for dtype in (np.float64, np.float16, np.int8, np.int16, np.int32, np.int64):
        assert keep_mask(np.array(values, dtype), 2, 4).tolist() == want
    assert keep_mask(np.uint8([200, 3, 255, 7]), 1, 4).tolist() == [False, False, True, False]
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert keep_mask(np.array(values, ml_dtypes.bfloat16), 2, 4).tolist() == want


def test_mask_bytes():
    mask = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 1, 1]], bool)
    assert pack_mask(mask).tolist() == [0b00001101, 0b11]
    assert list(oracle.mask_bytes(mask.reshape(-1).tolist())) == [0b00001101, 0b11]
    assert np.array_equal(unpack_mask(pack_mask(mask), mask.shape), mask)
    assert pack_mask(np.zeros((0, 3), bool)).size == 0
    assert unpack_mask(np.zeros(0, np.uint8), (0, 3)).shape == (0, 3)
    assert mask_bits(2, 4) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), max_size=70))
def test_any_mask(bits):
    assert pack_mask(bits).tobytes() == oracle.mask_bytes(bits)
    assert unpack_mask(pack_mask(bits), (len(bits),)).tolist() == bits


@pytest.mark.parametrize("wrong", [
    lambda: keep_mask(np.float32([1]), 0, 4), lambda: keep_mask(np.float32([1]), 4, 4),
    lambda: keep_mask(np.float32([1]), 1, 2000), lambda: keep_mask(np.float32([1]), 1.0, 4),
    lambda: keep_mask(np.float32([1]), True, 4), lambda: keep_mask(np.float32([1]), 2, 4, axis=1),
    lambda: keep_mask(np.float32(1), 2, 4), lambda: keep_mask(np.complex64([1]), 2, 4),
    lambda: keep_mask(np.array(["a"]), 2, 4), lambda: mask_bits(3, 2),
    lambda: unpack_mask(np.zeros(2, np.uint8), (3,)), lambda: unpack_mask(np.zeros(1, np.int8), (3,))])
def test_refusals(wrong):
    with pytest.raises(InputError):
        wrong()
