"""Error diffusion on float arrays: both forms, the other methods by their published steps, bad input."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import refq
from refq.diffusion import gram as room
from refq.diffusion.columns import least
from refq.diffusion.diffuse import SCALES, diffuse, diffuse_gram
from refq.diffusion.gram import Gram
from refq.diffusion.grid import Grid
from refq.diffusion.methods import METHODS, OPTQ_DAMPING, QRONOS_DAMPING, largest_eigenvalue
from refq.diffusion.residual import code_by_residual
from refq.blocks.recipes import recipe_of
from refq.errors import InputError

# Every way a grid casts a column: exponents, floats, two levels, whole rows, zero points of both kinds,
# subtiles, listed elements, rectangles, sparsity, codebooks
TYPES = ["mxfp4", "mxfp8", "b4int3", "int4", "int8", "nvfp4", "nvfp4_16x16", "uint4", "uint8", "mx9", "hif4",
         "uint4_binary16_binary16_t32", "nf4_t64", "mxfp4_16x16", "e2m1_e8m0_t8x8s2x4o3", "mxfp4_2of4",
         "cb42f1346", "bitnet", "e2m1"]
RECIPES = [("te_nvfp4", "nvfp4"), ("torchao_nvfp4", "nvfp4"), ("modelopt_mxfp4", "mxfp4"),
           ("microxcaling", "mxfp4"), ("tensorcast_triton_floor", "mxfp4"), ("ggml_mxfp4", "mxfp4"),
           ("triton_up", "mxfp4"), ("onnx_quantizelinear", "uint4"), ("ocp,rounding=rup", "mxfp4"),
           ("ocp,tiny_tile=flush", "mxfp4")]
PARTS = ("codes", "scales", "zeros", "tables", "mask", "tensor_scale")


def layer(rows=20, columns=70, samples=120, seed=0, dead=True):
    """w, x, x_hat: ragged for every tile, inputs that hang together, a dead column."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((columns, columns)) / 6 + np.eye(columns)
    x = (random.standard_normal((samples, columns)) @ mixing).astype(np.float32)
    x_hat = x + random.standard_normal(x.shape).astype(np.float32) / 20
    if dead:
        x_hat[:, columns // 3] = 0
    return random.standard_normal((rows, columns)).astype(np.float32), x, x_hat


def output_error(w, x, x_hat, q):
    w, x, x_hat = (part.astype(np.float64) for part in (w, x, x_hat))
    u = x @ w.T - x_hat @ q.dequantize(np.float64).T
    return float((u * u).sum())


def assert_equal(a, b):
    for name in PARTS:
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert len(a.offsets) == len(b.offsets) and all(map(np.array_equal, a.offsets, b.offsets))


# --- the two forms --------------------------------------------------------------------------------

@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", TYPES)
def test_gram_form_is_the_residual_form(name, scale):
    w, x, x_hat = layer()
    for given in (None, x_hat):
        a = diffuse(w, x, given, name, scale=scale, trace=True)
        b = diffuse(w, x, given, name, scale=scale, form="residual")
        assert_equal(a.quantized, b.quantized)
        other = x if given is None else given
        assert a.error == pytest.approx(output_error(w, x, other, a.quantized), rel=1e-9)
        assert a.error == pytest.approx(b.error) and a.trace[-1].error == pytest.approx(a.error)


def test_the_trace_is_the_residual_block_by_block():
    w, x, x_hat = layer()
    steps = diffuse(w, x, x_hat, "mxfp4", trace=True).trace
    grid = Grid(w, refq.data_type("mxfp4"), recipe_of(refq.data_type("mxfp4")), 1)
    wide = [part.astype(np.float64) for part in (w.T, x, x_hat)]
    coded, errors = code_by_residual(np.ascontiguousarray(wide[0]), *wide[1:], grid, "search")
    assert [step.error for step in steps] == pytest.approx(errors)
    assert [step.columns for step in steps] == [(0, 32), (32, 64), (64, 70)]
    assert all(np.array_equal(step.taken, taken) for step, taken in zip(steps, coded.taken))
    assert np.concatenate([step.scales[:, None] for step in steps], 1).tolist() == coded_scales(grid, coded)
    assert set(np.concatenate([step.taken for step in steps])) <= {0, 1, 2}


def coded_scales(grid, coded):
    return grid.quantized(coded.codes, coded.choices).scales.tolist()


@pytest.mark.parametrize("name", TYPES)
def test_the_result_is_laid_out_as_quantize_lays_it_out(name):
    w, x, x_hat = layer()
    for axis, array in ((-1, w), (0, np.ascontiguousarray(w.T))):
        want, got = refq.quantize(array, name, axis), diffuse(array, x, x_hat, name, axis=axis).quantized
        for part in ("codes", "scales", "zeros", "tables"):
            a, b = getattr(want, part), getattr(got, part)
            assert (a is None) == (b is None) and (a is None or (a.shape, a.dtype) == (b.shape, b.dtype))
        assert [part.shape for part in want.offsets] == [part.shape for part in got.offsets]
        assert all(getattr(got, part) == getattr(want, part) for part in ("dtype", "shape", "axis", "recipe"))
        assert_equal(refq.unpack(got.pack()), got)


@pytest.mark.parametrize("name", TYPES)
def test_rows_first_or_last_makes_no_difference(name):
    w, x, x_hat = layer()
    a, b = diffuse(w, x, x_hat, name).quantized, diffuse(w.T, x, x_hat, name, axis=0).quantized
    assert np.array_equal(a.codes, b.codes.T)
    assert a.scales is None or np.array_equal(a.scales, b.scales.T)


@pytest.mark.parametrize("recipe, name", RECIPES)
def test_recipes_with_operations_of_their_own(recipe, name):
    w, x, x_hat = layer()
    a = diffuse(w, x, x_hat, name, recipe=recipe, scale="weights")
    b = diffuse(w, x, x_hat, name, recipe=recipe, scale="weights", form="residual")
    assert_equal(a.quantized, b.quantized)
    assert a.quantized.recipe == recipe and a.error < a.rtn_error
    searched = diffuse(w, x, x_hat, name, recipe=recipe)
    assert searched.scale == ("search" if recipe.startswith("ocp,") else "weights")


@pytest.mark.parametrize("recipe, name", [*RECIPES, *((None, name) for name in TYPES)])
def test_where_all_columns_are_dead_it_is_a_direct_cast(recipe, name):
    w, x, _ = layer()
    w[0, :40], w[1, 3] = 0, -0.0
    got = diffuse(w, x, np.zeros_like(x), name, recipe=recipe, scale="weights")
    direct = refq.quantize(w, name, recipe=recipe)
    assert np.array_equal(got.quantized.dequantize(), direct.dequantize())
    assert got.error == pytest.approx(got.rtn_error)


@pytest.mark.parametrize("tile, columns", [(4, 30), (40, 100), (64, 64), (100, 230), (300, 300), (7, 1)])
def test_tiles_of_any_width(tile, columns):
    """Narrower and wider than the panels that are added up one by one."""
    w, x, x_hat = layer(9, columns, 60)
    for name in (f"int4_binary16_t{tile}", f"e2m1_e8m0_t2x{tile}"):
        residual = diffuse(w, x, x_hat, name, form="residual")
        assert_equal(diffuse(w, x, x_hat, name).quantized, residual.quantized)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int16])
def test_weights_and_inputs_of_any_dtype(dtype):
    w, x, x_hat = layer(6, 40, 50)
    w, x, x_hat = ((part * 8).astype(dtype) for part in (w, x, x_hat))
    exact = diffuse(*(part.astype(np.float64) for part in (w, x, x_hat)), "mxfp4")
    for form in ("gram", "residual"):
        assert_equal(diffuse(w, x, x_hat, "mxfp4", form=form).quantized, exact.quantized)
    got = diffuse(w, x, x_hat, "mxfp4", scale="weights").quantized
    assert np.array_equal(got.scales, refq.quantize(w, "mxfp4").scales)
    wide = diffuse(w.astype(np.float64), x, x_hat, "mxfp4", scale="weights").quantized
    assert np.array_equal(got.codes, wide.codes)


@pytest.mark.parametrize("method", ["ed", "qronos"])
def test_arrays_of_any_layout(method):
    """Fortran order, steps in memory and steps backwards, for weights along either axis and for inputs."""
    w, x, x_hat = layer(12, 40, 50)
    held = layer(12, 40, 50, 1)[1:]
    want = diffuse(w, x, x_hat, "nvfp4", method, held=held)

    def spaced(array):
        room = np.zeros((2 * array.shape[0], 3 * array.shape[1]), array.dtype)[::-2, ::3]
        room[...] = array
        return room
    for lay in (np.asfortranarray, spaced):
        streams, kept = (lay(x), lay(x_hat)), tuple(map(lay, held))
        for axis, array in ((1, lay(w)), (0, lay(w.T)), (0, lay(w).T)):
            got = diffuse(array, *streams, "nvfp4", method, axis, held=kept)
            codes = got.quantized.codes if axis else got.quantized.codes.T
            assert np.array_equal(codes, want.quantized.codes)
            assert got.held_error == pytest.approx(want.held_error) and got.error == pytest.approx(want.error)
        assert Gram.of(x, x_hat).local(lay(w), lay(w)) == 0


@pytest.mark.parametrize("method", METHODS)
def test_inputs_of_one_row(method):
    w, x, x_hat = layer(dead=False)
    for given in (None, x_hat[:1]):
        gram = Gram.of(x[:1], given)
        got = diffuse_gram(w, gram, "mxfp4", method)
        assert gram.rows == 1 and got.error <= got.rtn_error * (1 + 1e-9)
        hat = x[:1] if given is None else given
        error = output_error(w, x[:1], hat, got.quantized)
        assert got.error == pytest.approx(error, rel=1e-6, abs=1e-9 * gram.signal(w))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", SCALES)
def test_inputs_that_are_all_zero(method, scale):
    w, x, _ = layer()
    for given in (None, np.zeros_like(x)):
        own = 0 * x if given is None else x
        got = diffuse(w, own, given, "mxfp4", method, scale=scale, held=(x, given))
        assert_equal(got.quantized, refq.quantize(w, "mxfp4"))
        assert got.error == pytest.approx(got.rtn_error)


def test_sparse_weights_keep_their_mask_and_are_made_up_for():
    w, x, _ = layer(dead=False)
    got = diffuse(w, x, None, "mxfp4_2of4")
    assert np.array_equal(got.quantized.mask, refq.quantize(w, "mxfp4_2of4").mask)
    assert not got.quantized.dequantize()[~got.quantized.mask].any() and got.error < 0.9 * got.rtn_error


# --- OPTQ and Qronos by their published steps -----------------------------------------------------

def stepwise_optq(w, h, cast, damping):
    """Errors pushed into later columns through the Cholesky factor of the inverse, as published."""
    w, q = w.copy(), np.zeros_like(w)
    live = h + np.diag(np.where(np.diagonal(h) == 0, 1.0, damping))
    upper = np.linalg.cholesky(np.linalg.inv(live)).T
    for k in range(w.shape[1]):
        q[:, k] = cast(k, w[:, k])
        w[:, k + 1:] -= np.multiply.outer((w[:, k] - q[:, k]) / upper[k, k], upper[k, k + 1:])
    return q


def int8_cast(quantized):
    scale = refq.decode(quantized.scales, "binary32", np.float64)[:, 0]
    return lambda k, v: np.clip(np.rint(v / scale), -128, 127) * scale


def test_gptq_is_optq():
    w, x, x_hat = layer(dead=False)
    h = x_hat.astype(np.float64).T @ x_hat
    damping, cast = OPTQ_DAMPING * np.diagonal(h).mean(), int8_cast(refq.quantize(w, "int8"))
    want = stepwise_optq(w.astype(np.float64), h, cast, damping)
    got = diffuse(w, x, x_hat, "int8", "gptq")
    assert np.array_equal(got.quantized.dequantize(np.float64), want)


def test_qronos_is_qronos():
    w, x, x_hat = layer(dead=False)
    wide, x, x_hat = (part.astype(np.float64) for part in (w, x, x_hat))
    h, g = x_hat.T @ x_hat, x_hat.T @ x
    damping, cast = QRONOS_DAMPING * largest_eigenvalue(h), int8_cast(refq.quantize(w, "int8"))
    first = (wide @ g[0] - wide[:, 1:] @ h[0, 1:]) / h[0, 0]
    q0 = cast(0, first)
    rest = np.linalg.solve(h[1:, 1:] + damping * np.eye(len(h) - 1),
                           (g @ wide.T)[1:] + damping * wide.T[1:] - np.multiply.outer(h[1:, 0], q0)).T
    later = stepwise_optq(rest, h[1:, 1:], lambda k, v: cast(k + 1, v), damping)
    got = diffuse(w, x, x_hat, "int8", "qronos")
    assert np.array_equal(got.quantized.dequantize(np.float64), np.column_stack([q0, later]))


@pytest.mark.parametrize("method", ["gptq", "qronos"])
@pytest.mark.parametrize("name", TYPES)
def test_other_methods_take_every_data_type(name, method):
    w, x, x_hat = layer()
    for given in (None, x_hat):
        for scale in SCALES:
            got = diffuse(w, x, given, name, method, scale=scale)
            assert got.method == method and np.isfinite(got.error)
            other = x if given is None else given
            assert got.error == pytest.approx(output_error(w, x, other, got.quantized), rel=1e-9)


def test_the_largest_eigenvalue():
    _, x, _ = layer(dead=False)
    h = x.astype(np.float64).T @ x
    assert largest_eigenvalue(h) == pytest.approx(np.linalg.eigvalsh(h)[-1], rel=0.02)
    assert largest_eigenvalue(np.zeros((3, 3))) == 0


def test_rtn_is_quantize():
    w, x, x_hat = layer()
    for name in TYPES:
        got = diffuse(w, x, x_hat, name, "rtn", trace=True)
        assert_equal(got.quantized, refq.quantize(w, name))
        assert got.error == got.rtn_error == pytest.approx(got.trace[-1].error) and got.scale == "weights"


# --- Gram matrices and errors ---------------------------------------------------------------------

def test_batches_add_up(monkeypatch):
    _, x, x_hat = layer()
    whole, parts = Gram.of(x, x_hat), Gram(x.shape[1])
    monkeypatch.setattr(room, "ROWS", 7)
    for start in range(0, len(x), 25):
        parts.update(x[start: start + 25], x_hat[start: start + 25])
    assert parts.rows == whole.rows == len(x) and not parts.same
    for name in "hgf":
        assert np.allclose(getattr(parts, name), getattr(whole, name), rtol=1e-13)
    assert np.allclose(whole.h, x_hat.astype(float).T @ x_hat)
    assert np.allclose(whole.g, x_hat.astype(float).T @ x)


def test_one_stream_may_become_two():
    _, x, x_hat = layer()
    gram = Gram(x.shape[1])
    gram.update(x[:50])
    assert gram.same and gram.h is gram.g is gram.f
    gram.update(x[50:90], x_hat[50:90])
    gram.update(x[90:])
    both = Gram.of(x, np.concatenate([x[:50], x_hat[50:90], x[90:]]))
    assert all(np.allclose(getattr(gram, name), getattr(both, name)) for name in "hgf")


def test_errors_of_gram_matrices(monkeypatch):
    w, x, x_hat = layer()
    q = refq.quantize(w, "mxfp4")
    monkeypatch.setattr(room, "STRIP", 16)
    monkeypatch.setattr(room, "PIECE", 16)
    assert Gram.of(x, x_hat).error(w, q.dequantize()) == pytest.approx(output_error(w, x, x_hat, q))
    assert Gram.of(x).error(w, q.dequantize()) == pytest.approx(output_error(w, x, x, q))


def test_memory_does_not_grow_with_rows():
    gram = Gram(8)
    for _ in range(5):
        gram.update(np.ones((1000, 8)), np.ones((1000, 8)))
    assert gram.rows == 5000 and sum(part.nbytes for part in (gram.h, gram.g, gram.f)) == 3 * 8 * 8 * 8


def test_errors_for_reports(monkeypatch):
    """What comes in, what a layer adds itself, and what both are measured against."""
    w, x, x_hat = layer()
    q = refq.quantize(w, "mxfp4").dequantize()
    wide, meant, x, x_hat = (part.astype(np.float64) for part in (w, q, x, x_hat))
    monkeypatch.setattr(room, "STRIP", 16)
    for gram, hat in ((Gram.of(x), x), (Gram.of(x, x_hat), x_hat)):
        squares = [((a @ b.T) ** 2).sum() for a, b in ((x, wide), (x, wide - meant), (x - hat, wide))]
        assert gram.signal(w) == pytest.approx(squares[0])
        assert gram.local(w, q) == pytest.approx(squares[1])
        assert gram.inherited(w) == pytest.approx(squares[2], abs=1e-9)
        assert all(isinstance(n, float) for n in (gram.signal(w), gram.local(w, q), gram.inherited(w)))
        with pytest.raises(InputError, match=r"must have the shape \(rows, 70\), got \(20, 69\)"):
            gram.signal(w[:, 1:])
    assert Gram.of(x).error(w, q) == pytest.approx(Gram.of(x).local(w, q))


def test_sums_of_grams():
    _, x, x_hat = layer()
    x, x_hat = np.round(8 * x), np.round(8 * x_hat)         # whole numbers: sums are exact
    for first, second in ((None, None), (None, x_hat), (x_hat, None), (x_hat, x_hat)):
        apart, whole = (Gram.of(x[:50], None if first is None else first[:50]) for _ in range(2))
        more = None if second is None else second[50:]
        apart.add(Gram.of(x[50:], more))
        whole.update(x[50:], more)
        assert (apart.rows, apart.same) == (whole.rows, whole.same) == (120, first is None and second is None)
        assert all(np.array_equal(getattr(apart, name), getattr(whole, name)) for name in "hgf")
        assert (apart.h is apart.g is apart.f) == apart.same
    apart.add(apart)
    assert apart.rows == 240 and np.array_equal(apart.h, 2 * whole.h)
    with pytest.raises(InputError, match=r"sums of shape \(3, 3\) cannot be added to some of .* \(70, 70\)"):
        apart.add(Gram(3))
    with pytest.raises(InputError, match="other must be a Gram, got ndarray"):
        apart.add(x)


@pytest.mark.parametrize("method", ["ed", "gptq", "qronos"])
def test_parts_of_the_rows_in_any_number_of_threads(method):
    """What parts have in common is worked out once, by whoever comes first, and anew after an update."""
    w, x, x_hat = layer(64, 96, 200)
    parts = np.split(w, 8)

    def coded(gram, threads):
        with ThreadPoolExecutor(threads) as pool:
            done = pool.map(lambda part: diffuse_gram(part, gram, "mxfp4", method), parts)
            return np.concatenate([found.quantized.codes for found in done])
    one, four = Gram.of(x, x_hat), Gram.of(x, x_hat)
    codes = coded(one, 1)
    for _ in range(3):
        assert np.array_equal(coded(four, 4), codes) and len(four._memory) == 1
    assert np.array_equal(diffuse_gram(w, one, "mxfp4", method).quantized.codes, codes)
    for change in (lambda gram: gram.update(x[:90], x[:90]), lambda gram: gram.add(Gram.of(x[:90], x[:90]))):
        changed = Gram.of(x, x_hat)
        coded(changed, 1)
        change(changed)
        fresh = Gram.of(np.concatenate([x, x[:90]]), np.concatenate([x_hat, x[:90]]))
        assert np.array_equal(coded(changed, 1), coded(fresh, 1))


# --- never worse than direct cast -----------------------------------------------------------------

@pytest.mark.parametrize("method", METHODS)
def test_the_better_on_held_back_rows_is_kept(method):
    """White inputs, few rows: what is learnt from them is noise."""
    random = np.random.default_rng(1)
    w, x, other = (random.standard_normal(shape) for shape in ((16, 64), (70, 64), (500, 64)))
    for held in (other, (other, other), Gram.of(other)):
        got = diffuse(w, x, None, "int4", method, held=held)
        assert got.held_error > got.held_rtn_error or method == "rtn"
        assert got.method == "rtn" and got.asked == method
        assert_equal(got.quantized, refq.quantize(w, "int4"))
        assert got.error == got.rtn_error
    w, x, x_hat = layer(dead=False)
    got = diffuse(w, x[:80], x_hat[:80], "mxfp4", held=(x[80:], x_hat[80:]))
    assert got.method == "ed" and got.held_error < got.held_rtn_error
    assert got.held_error == pytest.approx(output_error(w, x[80:], x_hat[80:], got.quantized))


@pytest.mark.parametrize("name", ["mxfp4", "int4", "b4int3", "nvfp4", "nf4_t64"])
def test_the_search_beats_the_rule(name):
    """On the rows it has seen, with room to spare: not a law, but a bug shows here."""
    for seed in range(3):
        w, x, x_hat = layer(64, 96, 400, seed, dead=False)
        errors = {scale: diffuse(w, x, x_hat, name, scale=scale).error for scale in SCALES}
        assert errors["search"] < errors["weights"] < 0.8 * diffuse(w, x, x_hat, name, "rtn").error


def test_the_candidates_and_their_order():
    """Of equal losses the first candidate wins, so that their order is part of the definition (ED-5)."""
    w = np.array([[6.0, 1.0], [3.0, -2.0], [0.0, 0.0]])
    for name, want in (("e2m1_e8m0_t2", [[127, 126, 0], [128, 127, 1], [126, 125, 0]]),
                       ("e2m1_e5m0scale_t2", None), ("int4_ue4m3_t2", None)):
        grid = Grid(w, refq.data_type(name), recipe_of(refq.data_type(name)), 1)
        found = grid.neighbours(grid.of_values(w), w)
        if want:
            assert [choice.codes.tolist() for choice in found] == want
            continue
        values = refq.decode(np.array([choice.codes for choice in found]), grid.block.scale_row, np.float64)
        factors = [2, 0.5] if "e5m0" in name else [count / 16 for count in (18, 15, 14, 13, 12, 11)]
        wanted = np.multiply.outer(factors, values[0])[:, :2]
        near = refq.decode(refq.encode(wanted, grid.block.scale_row), grid.block.scale_row, np.float64)
        distinct = list(dict.fromkeys(map(tuple, near.tolist())))       # a candidate is not tried twice
        assert list(map(tuple, values[1:, :2].tolist())) == distinct and (values[1:, 2] == values[0, 2]).any()


def test_least_needs_a_clear_gain():
    losses = np.array([[1.0, 1.0, 1.0], [1 - 1e-12, 0.9, 1.0], [1.0, 0.95, 0.5]])
    assert least(losses, np.abs(losses)).tolist() == [0, 1, 2]


# --- the same bytes -------------------------------------------------------------------------------

def test_the_same_bytes_on_every_run_and_for_one_thread():
    code = ("import numpy as np, refq, hashlib; r = np.random.default_rng(0);"
            "x = r.standard_normal((300, 256)) @ r.standard_normal((256, 256));"
            "w = r.standard_normal((64, 256));"
            "q = refq.diffuse(w, x, x + r.standard_normal(x.shape), 'mxfp4', 'METHOD').quantized;"
            "print(hashlib.sha256(q.codes.tobytes() + q.scales.tobytes()).hexdigest())")
    for method in ("ed", "qronos"):
        found = set()
        for threads in ("1", "2", "2"):
            command = [sys.executable, "-c", code.replace("METHOD", method)]
            environment = dict(os.environ, OPENBLAS_NUM_THREADS=threads)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            found.add(done.stdout)
        assert len(found) == 1


# --- bad input ------------------------------------------------------------------------------------

W, X = np.ones((4, 6)), np.ones((5, 6))
BROKEN = np.where(np.arange(6) == 2, np.nan, X)


@pytest.mark.parametrize("change, words", [
    ({"method": "magic"}, "method 'magic' is not known; allowed are rtn, ed, gptq, qronos"),
    ({"scale": "best"}, "scale 'best' is not known; allowed are weights, target, search"),
    ({"form": "short"}, "form 'short' is not known; allowed are gram, residual"),
    ({"dtype": "mxfp5"}, "data type 'mxfp5' is not known"),
    ({"recipe": "te_nvfp4"}, "recipe 'te_nvfp4' is for"),
    ({"recipe": "ocp,rounding=sra"}, "rounding 'sra' .* deterministic roundings are allowed"),
    ({"rounding": "src"}, "rounding 'src' .* deterministic roundings are allowed: rne, rna"),
    ({"rounding": "up"}, "rounding 'up'"),
    ({"rounding": "rto", "dtype": "nf4_t64"}, "nf4 has no rounding 'rto'"),
    ({"rounding": "rup", "dtype": "nvfp4", "recipe": "te_nvfp4"}, "rounds elements by rne, not by rup"),
    ({"w": np.ones(4)}, r"w must be an array of shape \(outputs, inputs\), none .* got the shape \(4,\)"),
    ({"w": np.ones((0, 6))}, r"got the shape \(0, 6\)"),
    ({"w": np.full((4, 6), np.inf)}, "w holds inf at row 0, column 0; only finite values are allowed"),
    ({"w": np.ones((4, 6), complex)}, "w must be an array of floats"),
    ({"x": np.ones((5, 7))}, "x has 7 columns, but the layer has 6 inputs"),
    ({"x": np.ones(6)}, r"x must be an array of floats of shape \(rows, columns\), got float64 of .* \(6,\)"),
    ({"x": BROKEN}, "x holds nan at row 0, column 2"),
    ({"x": np.ones((0, 6))}, "x has 0 rows; at least 1 is needed"),
    ({"x": np.array([["a"] * 6])}, "x must be an array of floats"),
    ({"x_hat": BROKEN}, "x_hat holds nan at row 0, column 2"),
    ({"x_hat": np.ones((4, 6))}, r"x_hat has the shape \(4, 6\), but x has \(5, 6\)"),
    ({"x": X * 1e200}, "the inputs are too large"),
    ({"x": Gram(6)}, "x has 0 rows"),
    ({"x": Gram.of(X), "x_hat": X}, "x is a Gram, which has both streams: x_hat must be None"),
    ({"x": Gram.of(X[:, :5])}, "x has 5 columns, but the layer has 6 inputs"),
    ({"x": Gram.of(X), "form": "residual"}, "the residual form is the definition of method 'ed'"),
    ({"method": "gptq", "form": "residual"}, "got method 'gptq'"),
    ({"held": np.ones((3, 5))}, "5 columns, but the layer has 6 inputs"),
    ({"held": X[:0]}, "held has 0 rows"),
    ({"axis": 2}, "axis 2 is not an axis"),
    ({"tensor_scale": 1.0}, "mxfp4 has no tensor scale"),
])
def test_bad_input_is_refused(change, words):
    with pytest.raises(InputError, match=words):
        diffuse(**{"w": W, "x": X, **change})


def test_grams_refuse_bad_input():
    for columns in (0, -1, 2.0, True, "6"):
        with pytest.raises(InputError, match="whole number from 1"):
            Gram(columns)
    with pytest.raises(InputError, match="gram must be a Gram, got ndarray"):
        diffuse_gram(W, X)
    with pytest.raises(InputError, match="not positive definite"):
        broken = Gram.of(X)
        broken.h = broken.h - 100 * np.eye(6)
        diffuse_gram(W, broken, method="gptq")


# --- the evidence of ED-5 on the example network --------------------------------------------------

def convolutions(dtype):
    """(w, x, x_hat, held x, held x_hat) of the example's convolutions: inputs by im2col from calibration
    images; the quantised stream is that of the network with all its weights cast directly."""
    import onnx
    from onnx import numpy_helper

    from refq.models.engine import Engine

    folder = Path(refq.__file__).parent / "models" / "example"
    model = onnx.load(folder / "fashion_cnn.onnx")
    images = np.load(folder / "fashion_mnist.npz")["calibration"].astype(np.float32) / 255
    cast, weights = onnx.ModelProto.FromString(model.SerializeToString()), {}
    for tensor in cast.graph.initializer:
        w = numpy_helper.to_array(tensor)
        if w.ndim > 1:
            weights[tensor.name] = w.reshape(len(w), -1)
            q = refq.fake_quantize(weights[tensor.name], dtype).reshape(w.shape)
            tensor.CopyFrom(numpy_helper.from_array(q, tensor.name))
    names = {node.input[1]: node.input[0] for node in model.graph.node if node.op_type == "Conv"}
    random, streams = np.random.default_rng(0), []
    inside = [name for name in names.values() if name != "image"]
    for network in (model, cast):
        streams.append({"image": images} | Engine(network).run({"image": images}, inside))
    for weight, name in names.items():
        x, x_hat = (patches(stream[name]) for stream in streams)
        rows = random.permutation(len(x))[:6000]
        yield weights[weight], x[rows[:3000]], x_hat[rows[:3000]], x[rows[3000:]], x_hat[rows[3000:]]


def patches(x):
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return seen.transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * 9)


@pytest.mark.slow
@pytest.mark.parametrize("name, most", [("mxfp4", 0.26), ("nvfp4", 0.30), ("int4", 0.29), ("b4int3", 0.36)])
def test_the_search_is_the_default_for_a_reason(name, most):
    """Held-back output error over that of direct cast, geometric mean over the three convolutions."""
    ratios = {}
    for w, x, x_hat, *held in convolutions(name):
        for method in ("ed", "qronos"):
            for scale in SCALES:
                got = diffuse(w, x, x_hat, name, method, scale=scale, held=tuple(held), errors=False)
                ratios.setdefault((method, scale), []).append(got.held_error / got.held_rtn_error)
    means = {key: float(np.exp(np.mean(np.log(values)))) for key, values in ratios.items()}
    print({key: round(value, 3) for key, value in means.items()})
    assert means["ed", "search"] < means["ed", "weights"] and means["ed", "search"] < most
    assert means["qronos", "search"] < means["qronos", "weights"] and means["qronos", "search"] < most
    assert all(ratio < 1 for values in ratios.values() for ratio in values)


@pytest.mark.parametrize("name", ["mxfp4", "mxint8", "nvfp4", "int4", "uint4", "mx6", "nf4_t64", "cb42f1346",
                                  "mxfp4_2of4", "b4int3", "hif4", "mxfp4_16x16"])
def test_the_forms_agree_on_real_layers(name):
    """Every family of data types on the convolutions of the example, both streams, on images."""
    for w, x, x_hat, *_ in convolutions(name):
        found, wanted = (diffuse(w, x[:500], x_hat[:500], name, form=form) for form in ("gram", "residual"))
        assert_equal(found.quantized, wanted.quantized)
        np.testing.assert_allclose(found.error, wanted.error, rtol=1e-9)
