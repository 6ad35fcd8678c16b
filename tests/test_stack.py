"""Many problems at once: the codes of each alone, laid out as quantize lays out the whole weight."""

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import refq
from refq.diffusion import gram as sums_room, stack as room
from refq.diffusion.diffuse import SCALES, diffuse_gram
from refq.diffusion.gram import Gram
from refq.diffusion.methods import METHODS
from refq.diffusion.stack import GramStack, diffuse_stack, together
from refq.errors import InputError
from tests.test_diffusion import RECIPES, TYPES, assert_equal

COUNT = 4
PER_PROBLEM = [name for name in TYPES if refq.data_type(name).tile != "tensor"]


def problems(rows=4, columns=38, samples=50, seed=0, count=COUNT):
    """w, x, x_hat of several problems: inputs that hang together, a dead column in some, one all dead."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((count, columns, columns)) / 5 + np.eye(columns)
    x = (random.standard_normal((count, samples, columns)) @ mixing).astype(np.float32)
    x_hat = x + random.standard_normal(x.shape).astype(np.float32) / 20
    x_hat[::3, :, columns // 3], x_hat[count // 2] = 0, 0
    return random.standard_normal((count, rows, columns)).astype(np.float32), x, x_hat


def assert_same(got, want, name):
    """One problem of a stack against diffuse_gram's result."""
    assert_equal(got.quantized, want.quantized)
    assert (got.method, got.asked, got.scale) == (want.method, want.asked, want.scale), name
    assert (got.quantized.shape, got.quantized.axis) == (want.quantized.shape, want.quantized.axis)
    for field in ("error", "rtn_error", "held_error", "held_rtn_error"):
        ours, theirs = getattr(got, field), getattr(want, field)
        assert theirs is ours is None or ours == pytest.approx(theirs, rel=1e-6, abs=1e-9), field


def one_by_one(w, grams, dtype, method="ed", axis=-1, held=None, **settings):
    """What a stack must equal: each problem alone, with the tensor scale of the whole weight."""
    block = refq.data_type(dtype)
    if block.outer:
        how = {name: settings[name] for name in ("recipe", "rounding") if name in settings}
        flat = w.reshape(-1, w.shape[2]) if axis == -1 else w.swapaxes(1, 2).reshape(-1, w.shape[1])
        settings.setdefault("tensor_scale", refq.quantize(flat, dtype, **how).tensor_scale)
    return [diffuse_gram(w[i], grams[i], dtype, method, axis if axis < 0 else 0,
                         held=None if held is None else held[i], **settings) for i in range(len(w))]


# --- the same codes -------------------------------------------------------------------------------

@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PER_PROBLEM)
def test_a_stack_is_its_problems(name, method):
    w, x, x_hat = problems()
    for given in (None, x_hat):
        grams = GramStack.of(x, given)
        for scale in SCALES if method == "ed" else ("search",):
            got = diffuse_stack(w, grams, name, method, scale=scale)
            assert len(got) == COUNT and got.scale in SCALES
            for found, want in zip(got, one_by_one(w, grams, name, method, scale=scale), strict=True):
                assert_same(found, want, name)


@pytest.mark.parametrize("recipe, name", [*RECIPES, ("cudnn_nvfp4", "nvfp4"), ("ocp,rounding=rtz", "mxfp4")])
def test_recipes(recipe, name, monkeypatch):
    w, x, x_hat = problems()
    grams = GramStack.of(x, x_hat)
    whole = diffuse_stack(w, grams, name, recipe=recipe)
    for found, want in zip(whole, one_by_one(w, grams, name, recipe=recipe)):
        assert_same(found, want, recipe)
    monkeypatch.setattr(room, "LINES", 8)
    assert_equal(diffuse_stack(w, grams, name, recipe=recipe).quantized, whole.quantized)


@pytest.mark.parametrize("rows, columns", [(1, 9), (1, 25), (8, 49), (3, 1), (2, 70), (16, 36)])
@pytest.mark.parametrize("name", ["mxfp4", "int4", "int4_binary16_t32", "nvfp4_16x16", "e2m1_e8m0_t2x4"])
def test_shapes_of_all_kinds(name, rows, columns):
    """Narrower and wider than the columns that are added up one by one; tiles that problems fill, or not."""
    w, x, x_hat = problems(rows, columns, 60, rows)
    for given, method in ((None, "ed"), (x_hat, "ed"), (x_hat, "qronos")):
        grams = GramStack.of(x[:, :40], None if given is None else given[:, :40])
        held = GramStack.of(x[:, 40:])
        got = diffuse_stack(w, grams, name, method, held=held)
        for found, want in zip(got, one_by_one(w, grams, name, method, held=held)):
            assert_same(found, want, name)


@pytest.mark.parametrize("name", PER_PROBLEM)
def test_problems_that_are_coded_together(name, monkeypatch):
    """However many: the bytes are the same."""
    w, x, x_hat = problems(count=5)
    grams = GramStack.of(x, x_hat)
    want = diffuse_stack(w, grams, name).quantized
    for lines in (1, 8, 12):
        monkeypatch.setattr(room, "LINES", lines)
        assert_equal(diffuse_stack(w, grams, name).quantized, want)


def test_how_many_are_coded_together():
    for name, rows, want in (("mxfp4", 1, 1000), ("mxfp4", 8, 512), ("mxfp4", 5000, 1), ("nvfp4_16x16", 8, 1),
                             ("nvfp4_16x16", 32, 128), ("int4_binary16_t0x4", 8, 1), ("e2m1", 1, 1000),
                             ("int4_binary16_tensor", 5000, 1000)):
        assert together(refq.data_type(name), 1000, rows) == want


def test_a_tensors_scale_is_that_of_the_whole_weight():
    w, x, x_hat = problems()
    w[3] *= 5
    grams = GramStack.of(x, x_hat)
    for name in ("int4_binary16_tensor", "bitnet", "nvfp4"):
        got, direct = diffuse_stack(w, grams, name), refq.quantize(w, name)
        assert np.array_equal(got.quantized.tensor_scale, direct.tensor_scale)
        assert got.quantized.scales.shape == direct.scales.shape
        assert (got.error <= got.rtn_error * (1 + 1e-9)).all()
    assert diffuse_stack(w, grams, "nvfp4", tensor_scale=2.0).quantized.tensor_scale == 2


@pytest.mark.parametrize("name", TYPES)
def test_the_result_is_laid_out_as_quantize_lays_it_out(name):
    w, x, x_hat = problems(rows=6)
    grams, pair = GramStack.of(x, x_hat), isinstance(refq.data_type(name).tile, tuple)
    for axis, array in ((2, w), (1, np.ascontiguousarray(w.swapaxes(1, 2)))):
        want = refq.quantize(array, name, (3 - axis, axis) if pair else axis)
        assert_equal(diffuse_stack(array, grams, name, "rtn", axis).quantized, want)
        got = diffuse_stack(array, grams, name, axis=axis).quantized
        for part in ("codes", "scales", "zeros", "tables", "mask"):
            a, b = getattr(want, part), getattr(got, part)
            assert (a is None) == (b is None) and (a is None or (a.shape, a.dtype) == (b.shape, b.dtype))
        assert [part.shape for part in want.offsets] == [part.shape for part in got.offsets]
        assert all(getattr(got, part) == getattr(want, part) for part in ("dtype", "shape", "axis", "recipe"))
        assert_equal(refq.unpack(got.pack()), got)
        values = got.dequantize()
        for number, found in enumerate(diffuse_stack(array, grams, name, axis=axis)):
            assert np.array_equal(found.quantized.dequantize(), values[number])
    if name in PER_PROBLEM:
        turned = w.swapaxes(1, 2)
        for found, want in zip(diffuse_stack(turned, grams, name, axis=1),
                               one_by_one(turned, grams, name, axis=1)):
            assert_same(found, want, name)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int16])
def test_arrays_of_any_dtype_and_layout(dtype):
    w, x, x_hat = ((8 * part).astype(dtype) for part in problems())
    want = diffuse_stack(np.float64(w), GramStack.of(np.float64(x), np.float64(x_hat)))
    for lay in (np.ascontiguousarray, np.asfortranarray,
                lambda a: np.repeat(np.repeat(a, 2, axis=1), 3, axis=2)[::-1, ::2, ::3][::-1]):
        assert_equal(diffuse_stack(lay(w), GramStack.of(lay(x), lay(x_hat))).quantized, want.quantized)


@pytest.mark.parametrize("rounding", ["rna", "rtz", "rup", "rto"])
def test_roundings(rounding):
    w, x, x_hat = problems()
    grams = GramStack.of(x, x_hat)
    for name in ("mxfp4", "uint4", "nvfp4"):
        got = diffuse_stack(w, grams, name, rounding=rounding)
        assert got.quantized.rounding == rounding
        for found, want in zip(got, one_by_one(w, grams, name, rounding=rounding)):
            assert_same(found, want, name)


# --- the guard ------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["mxfp4", "uint4", "mx9", "nf4_t64", "nvfp4", "mxfp4_2of4", "cb42f1346"])
def test_the_guard_decides_for_every_problem(name):
    """White inputs, few rows: what is learnt from them is noise, but not for every problem."""
    random = np.random.default_rng(3)
    w, x, other = (random.standard_normal(shape) for shape in ((14, 3, 64), (14, 70, 64), (14, 90, 64)))
    x[::2] = other[::2, :70] = x[::2] @ (random.standard_normal((64, 64)) / 4 + np.eye(64))
    grams, held = GramStack.of(x), GramStack.of(other)
    got = diffuse_stack(w, grams, name, held=held)
    wants = one_by_one(w, grams, name, held=held)
    for found, want in zip(got, wants, strict=True):
        assert_same(found, want, name)
    assert set(got.methods) == {"ed", "rtn"} and got.asked == "ed"
    worse = np.array(got.methods) == "rtn"
    assert np.array_equal(worse, got.held_rtn_error < got.held_error)
    assert np.array_equal(got.error[worse], got.rtn_error[worse])
    direct = refq.quantize(w, name)
    assert np.array_equal(got.quantized.codes[worse], direct.codes[worse])
    quiet = diffuse_stack(w, grams, name, held=held, errors=False)
    assert_equal(quiet.quantized, got.quantized)
    assert quiet.error is quiet.rtn_error is None and np.array_equal(quiet.held_error, got.held_error)


# --- sums -----------------------------------------------------------------------------------------

def test_a_stack_of_sums_is_its_grams(monkeypatch):
    w, x, x_hat = problems()
    q = refq.quantize(w, "mxfp4").dequantize()
    monkeypatch.setattr(sums_room, "WIDE", 16)
    for given in (None, x_hat):
        stack = GramStack.of(x, given)
        grams = [Gram.of(x[i], given if given is None else given[i]) for i in range(COUNT)]
        assert len(stack) == COUNT and stack.rows == 50 and stack.same == (given is None)
        for view, own in zip(stack, grams, strict=True):
            assert (view.rows, view.same, view.columns) == (own.rows, own.same, own.columns)
            assert all(np.array_equal(getattr(view, name), getattr(own, name)) for name in "hgf")
            assert (view.h is view.g is view.f) == view.same
        for found, wanted in ((stack.signal(w), [g.signal(part) for g, part in zip(grams, w)]),
                              (stack.local(w, q), [g.local(*parts) for g, *parts in zip(grams, w, q)]),
                              (stack.inherited(w), [g.inherited(part) for g, part in zip(grams, w)]),
                              (stack.error(w, q), [g.error(*parts) for g, *parts in zip(grams, w, q)])):
            assert found.shape == (COUNT,) and found == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_the_view_of_one_problem():
    """The same object at every call, so that what it has worked out is kept; new after an update."""
    _, x, x_hat = problems()
    stack = GramStack.of(x, x_hat)
    view = stack[2]
    assert stack[2] is view and stack[2 - COUNT] is view and np.shares_memory(view.h, stack.h)
    with pytest.raises(ValueError, match="read-only"):
        view.update(x[2], x_hat[2])
    with pytest.raises(IndexError):
        stack[COUNT]
    stack.update(x, x_hat)
    assert stack[2] is not view and stack[2].rows == 100
    part = stack.part(slice(2, 4))
    assert len(part) == 2 and part.rows == 100 and np.array_equal(part[0].g, stack[2].g)


def test_batches_add_up_in_any_number_of_threads(monkeypatch):
    """The pieces that a batch is cut into do not hang on who works on them."""
    _, x, x_hat = problems(samples=90, columns=40)
    monkeypatch.setattr(sums_room, "WIDE", 16)
    monkeypatch.setattr(sums_room, "COPIED", 800)           # 20 rows at a time, of one problem
    stacks = []
    with ThreadPoolExecutor(3) as pool:
        for run in (map, pool.map):
            whole, apart = GramStack(COUNT, 40), GramStack(COUNT, 40)
            for rows in (slice(0, 33), slice(33, 90)):
                whole.update(x[:, rows], x_hat[:, rows], run)
                apart.add(GramStack.of(x[:, rows], x_hat[:, rows]))
            single = Gram(40)
            single.update(x[0], x_hat[0], run)
            stacks += [(whole, apart, single)]
    for one, other in zip(*stacks):
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in "hgf")
    wide = x.astype(np.float64), x_hat.astype(np.float64)
    for sums in stacks[0][:2]:
        assert sums.rows == 90 and not sums.same
        assert np.allclose(sums.h, wide[1].swapaxes(1, 2) @ wide[1])
        assert np.allclose(sums.g, wide[1].swapaxes(1, 2) @ wide[0])
        assert np.allclose(sums.f, wide[0].swapaxes(1, 2) @ wide[0])


def test_one_stream_may_become_two():
    _, x, x_hat = problems()
    stack = GramStack(COUNT, 38)
    stack.update(x[:, :20])
    assert stack.same and stack.h is stack.g is stack.f
    stack.update(x[:, 20:40], x_hat[:, 20:40])
    stack.add(GramStack.of(x[:, 40:]))
    both = GramStack.of(x, np.concatenate([x[:, :20], x_hat[:, 20:40], x[:, 40:]], axis=1))
    assert all(np.allclose(getattr(stack, name), getattr(both, name)) for name in "hgf") and stack.rows == 50


def test_problems_in_any_number_of_threads():
    """Runs of problems of one stack, each coded in a thread of its own."""
    w, x, x_hat = problems(count=12)
    grams = GramStack.of(x, x_hat)
    parts = [slice(start, start + 3) for start in range(0, 12, 3)]
    for method in ("ed", "gptq", "qronos"):
        want = diffuse_stack(w, grams, "mxfp4", method).quantized.codes
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda part: diffuse_stack(w[part], grams.part(part), "mxfp4", method), parts)
            assert np.array_equal(np.concatenate([each.quantized.codes for each in found]), want)


# --- bad input ------------------------------------------------------------------------------------

W, X = np.ones((3, 2, 6)), np.ones((3, 5, 6))
BROKEN = np.where(np.arange(6) == 2, np.nan, X)


@pytest.mark.parametrize("change, words", [
    ({"w": W[0]}, r"w must be an array of shape \(count, rows, columns\), none .* got the shape \(2, 6\)"),
    ({"w": W[:0]}, r"got the shape \(0, 2, 6\)"),
    ({"w": W * np.inf}, "w holds inf at problem 0, row 0, column 0; only finite values are allowed"),
    ({"w": W.astype(complex)}, "w must be an array of floats"),
    ({"axis": 0}, "axis 0 counts problems; inputs lie along axis 1 or 2"),
    ({"axis": 3}, "axis 3 is not an axis"),
    ({"grams": Gram.of(X[0])}, "grams must be a GramStack, got Gram"),
    ({"grams": GramStack.of(X[:2])}, "grams has 2 problems of 6 columns, but the weight has 3 of 6"),
    ({"grams": GramStack(3, 6)}, "grams has 0 rows"),
    ({"held": GramStack.of(X[:, :, :5])}, "held has 3 problems of 5 columns, but the weight has 3 of 6"),
    ({"axis": 1}, "has 3 problems of 6 columns, but the weight has 3 of 2"),
    ({"method": "magic"}, "method 'magic' is not known"),
    ({"scale": "best"}, "scale 'best' is not known"),
    ({"dtype": "mxfp5"}, "data type 'mxfp5' is not known"),
    ({"rounding": "sra"}, "deterministic roundings are allowed"),
    ({"tensor_scale": 1.0}, "mxfp4 has no tensor scale"),
])
def test_bad_input_is_refused(change, words):
    with pytest.raises(InputError, match=words):
        diffuse_stack(**{"w": W, "grams": GramStack.of(X), **change})


@pytest.mark.parametrize("act, words", [
    (lambda: GramStack(0, 6), "0 problems; a whole number from 1"),
    (lambda: GramStack(3, True), "True columns; a whole number from 1"),
    (lambda: GramStack.of(X[0]), r"x must be an array of floats of shape \(count, rows, columns\)"),
    (lambda: GramStack.of(BROKEN), "x holds nan at problem 0, row 0, column 2"),
    (lambda: GramStack.of(X * 1e200), "the inputs are too large"),
    (lambda: GramStack(2, 6).update(X), "x holds inputs of 3 problems, but the stack has 2"),
    (lambda: GramStack(3, 5).update(X), "x has 6 columns, but the layer has 5 inputs"),
    (lambda: GramStack(3, 6).update(X, X[:, :4]), r"x_hat has the shape \(3, 4, 6\), but x has \(3, 5, 6\)"),
    (lambda: GramStack(3, 6).add(Gram(6)), "other must be a GramStack, got Gram"),
    (lambda: GramStack(3, 6).add(GramStack(2, 6)), r"sums of shape \(2, 6, 6\) cannot be added"),
    (lambda: GramStack.of(X).signal(W[:2]), r"must have the shape \(3, rows, 6\), got \(2, 2, 6\)"),
])
def test_sums_refuse_bad_input(act, words):
    with pytest.raises(InputError, match=words):
        act()
