"""Error diffusion: refq's two forms against the oracle, on small integers that leave nothing to rounding."""

import json
import re
from dataclasses import asdict
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import refq
from refq.blocks import codebooks
from refq.blocks.rows import Block
from refq.diffusion.diffuse import SCALES, diffuse, diffuse_gram
from refq.diffusion.gram import Gram
from refq.formats.policies import ROUNDINGS
from spec.oracle import diffusion as oracle
from tests.test_oracle_blocks import facts, words

PAGE = Path(__file__).resolve().parent.parent / "spec" / "diffusion.json"
CLEAR = Fraction(1, 10000)          # margin that a golden problem must have

# (data type, outputs, inputs): every family that a grid has a path of its own for
FAMILIES = [
    # exponents
    ("mxfp4", 2, 36), ("e5m2_e8m0_t8", 2, 12), ("e2m1_e8m0_t4", 4, 12), ("b4int3", 3, 14),
    ("msfp12", 2, 20),
    # floats, two levels
    ("int4_binary16_t8", 3, 20), ("int3_binary32_t8", 3, 16), ("nf4_bfloat16_t8", 3, 12),
    ("ternary_binary16_t4", 3, 12), ("e2m1_ue4m3_binary32_t8", 3, 20), ("nvfp4", 2, 20),
    # one block
    ("int8", 3, 9), ("int4_binary16_tensor", 3, 9), ("bitnet", 3, 10), ("e2m1", 3, 9),
    # zero points
    ("uint4_binary16_uint4_t8", 3, 20), ("uint4_binary16_binary16_t8", 3, 20), ("uint8", 3, 9),
    # subtiles
    ("mx9", 3, 20), ("smint5f3_e8m0_t8s4o2", 3, 16), ("hif4", 2, 20),
    # rectangles
    ("e2m1_e8m0_t2x4", 5, 10), ("int4_binary16_t0x4", 3, 10), ("e2m1_ue4m3_binary32_t2x4", 3, 8),
    # rectangles with more, sparse
    ("e2m1_e8m0_t4x4s2x2o1", 5, 8), ("uint4_binary16_uint4_t2x4", 3, 8), ("mxfp4_2of4", 3, 16),
    ("int4_binary16_t8n1m4", 3, 16),
    # codebooks
    ("cb41fi", 2, 20), ("cb42f1346", 2, 16),
]


@cache
def described(name):
    """A data type as the oracle wants it: its row, the formats in it, and the tables of a collection."""
    block = refq.data_type(name)
    formats = {n: facts(n) for n in (block.scale, block.outer, block.zero) if n}
    collection = codebooks.codebook(block.element)
    if collection is None:
        return asdict(block), formats | {block.element: facts(block.element)}, None
    stand_in = {"kind": "codebook", "values": [0.0, 2.0 ** collection.emax], "tie": "away"}
    return asdict(block), formats | {block.element: stand_in}, [words(row) for row in collection.tables]


def problem(rows, columns, seed, two=True):
    """Integers: w, x, x_hat; a dead column in x_hat, and one weight of 0."""
    random = np.random.default_rng(seed)
    w = random.integers(-20, 21, (rows, columns)) * random.integers(1, 4, (rows, 1))
    x = random.integers(-3, 4, (5, columns))
    x_hat = x + random.integers(-1, 2, x.shape) * (random.random(x.shape) < .3) if two else x.copy()
    x_hat[:, columns // 2], w[0, 0] = 0, 0
    if not two:
        x = x_hat
    return w.tolist(), x.tolist(), x_hat.tolist()


def by_oracle(name, scale, w, x, x_hat, rounding=None):
    block, formats, tables = described(name)
    return oracle.diffuse(w, x, x_hat, block, formats, scale, tables, rounding)


@cache
def solved(name, rows, columns, scale, two, rounding=None):
    """The first problem whose margin is clear, and what the oracle makes of it."""
    for seed in range(60):
        made = problem(rows, columns, seed, two)
        found = by_oracle(name, scale, *made, rounding)
        if found.margin >= CLEAR:
            return made, found
    raise AssertionError(f"{name} {scale}: no problem with a clear margin")


def assert_same(q, want, block: Block, columns):
    """A Quantized against the oracle's blocks."""
    assert q.codes.tolist() == want.codes
    starts = [start for start, _ in oracle.edges(asdict(block), columns)]
    if block.scale is None:
        assert q.scales is None
        return
    for name in ("scales", "zeros", "tables"):
        ours, theirs = getattr(q, name), getattr(want, name)
        if theirs[0] is None:
            assert ours is None
            continue
        parts = np.split(ours, len(starts), axis=1) if name != "tables" else by_block(ours, q, starts)
        assert [part.ravel().tolist() for part in parts] == theirs, name
    for level, ours in enumerate(q.offsets):
        assert [p.ravel().tolist() for p in by_block(ours, q, starts)] == [o[level] for o in want.offsets]
    if block.outer:
        assert int(np.float32(q.tensor_scale).view(np.uint32)) == want.outer
    if block.sparsity:
        assert q.mask.tolist() == want.mask


def by_block(parts, q, starts):
    """An array of parts along axis 1, cut where the tiles of the array begin."""
    full = q.shape[1] if len(starts) == 1 else starts[1]
    per = -(-parts.shape[1] * full // q.shape[1]) if len(starts) == 1 else round(full / (part_width(q)))
    return np.split(parts, range(per, parts.shape[1], per), axis=1)


def part_width(q):
    size = q.dtype.subtiles[-1][0] if q.dtype.subtiles else q.dtype.tile
    return size[1] if isinstance(size, tuple) else size


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name, rows, columns", FAMILIES, ids=lambda part: str(part))
def test_both_forms_are_the_oracles(name, rows, columns, scale):
    for two in (True, False) if scale == "search" else (True,):
        (w, x, x_hat), want = solved(name, rows, columns, scale, two)
        w, x, x_hat = (np.array(part, np.float64) for part in (w, x, x_hat))
        block, given = refq.data_type(name), x_hat if two else None
        for got in (diffuse(w, x, given, name, scale=scale, form="residual"),
                    diffuse(w, x, given, name, scale=scale),
                    diffuse_gram(w, in_batches(x, given), name, scale=scale)):
            assert_same(got.quantized, want, block, columns)
            assert got.error == pytest.approx(float(want.error), rel=1e-9, abs=1e-6)
        other = diffuse(w.T.astype(np.float32), x, given, name, axis=0, scale=scale).quantized
        assert other.codes.T.tolist() == want.codes


@pytest.mark.parametrize("name, rows, columns, rounding", [
    (*case, name) for name, rule in ROUNDINGS.items() if not rule.stochastic for case in [
        ("e2m1_e8m0_t4", 2, 8), ("int4_binary16_t8", 2, 10), ("nf4_bfloat16_t8", 2, 8), ("int8", 2, 7),
        ("uint4_binary16_uint4_t8", 2, 10), ("uint4_binary16_binary16_t8", 2, 10), ("cb41fi", 2, 10)]
    if name != "rto" or case[0] not in ("nf4_bfloat16_t8", "cb41fi")])     # listed values have no odd ones
def test_roundings_are_the_oracles(name, rows, columns, rounding):
    """Every deterministic rounding of the elements, by name and in a recipe."""
    (w, x, x_hat), want = solved(name, rows, columns, "search", True, rounding)
    w, x, x_hat = (np.array(part, np.float64) for part in (w, x, x_hat))
    block = refq.data_type(name)
    for form, how in (("gram", {"rounding": rounding}), ("residual", {"rounding": rounding}),
                      ("gram", {"recipe": f"{block.recipe},rounding={rounding}"})):
        got = diffuse(w, x, x_hat, name, form=form, **how)
        assert_same(got.quantized, want, block, columns)
        assert got.quantized.rounding == rounding
        assert got.error == pytest.approx(float(want.error), rel=1e-9, abs=1e-6)


def in_batches(x, x_hat):
    gram = Gram(x.shape[1])
    for rows in (slice(0, 3), slice(3, 4), slice(4, None)):
        gram.update(x[rows], None if x_hat is None else x_hat[rows])
    return gram


# --- the worked examples of the page --------------------------------------------------------------
#
#     ed TYPE SCALE w ... | X, row ; row ... [| X^, row ; row ...] = [scale codes /] element codes / error

def examples():
    text = PAGE.with_suffix(".md").read_text(encoding="utf-8")
    for block in re.findall(r"^```problem\n(.*?)^```", text, re.M | re.S):
        yield from (line.partition("#")[0].strip() for line in block.splitlines())


@pytest.mark.parametrize("line", list(examples()))
def test_worked_example(line):
    """Every line of a problem block in spec/diffusion.md holds for the oracle and for refq."""
    left, _, right = line.partition(" = ")
    (head, *streams), parts = left.split("|"), right.split(" / ")
    _, name, scale, *w = head.split()
    both = [[row.split() for row in stream.split(";")] for stream in (streams * 2)[:2]]
    x, x_hat = ([[float(value) for value in row] for row in rows] for rows in both)
    w = [[float(v) for v in w]]
    want = by_oracle(name, scale, w, x, x_hat)
    got = diffuse(w, np.array(x), np.array(x_hat), name, scale=scale)
    assert_same(got.quantized, want, refq.data_type(name), len(w[0]))
    codes = [[int(code, 16) for code in part.split()] for part in parts[:-1]]
    assert codes[-1] == want.codes[0] and Fraction(parts[-1]) == want.error
    scales = [code for block in want.scales for code in block or ()]
    assert codes[:-1] == [scales] * bool(scales)


# --- the golden problems --------------------------------------------------------------------------

# Data types that have a problem for every word of ED-3, not for the search alone
EVERY = "mxfp4", "nvfp4", "int4_binary16_t8", "uint4_binary16_uint4_t8", "mx9"
GOLDEN = [(name, rows, columns, scale) for name, rows, columns in FAMILIES for scale in SCALES
          if scale == "search" or name in EVERY]


def golden(name, rows, columns, scale):
    """One golden problem in plain numbers."""
    (w, x, x_hat), want = solved(name, rows, columns, scale, True)
    return {"data_type": name, "scale": scale, "w": w, "x": x, "x_hat": x_hat, "codes": want.codes,
            "scales": want.scales, "tensor_scale": want.outer, "offsets": want.offsets, "zeros": want.zeros,
            "tables": want.tables, "mask": want.mask if described(name)[0]["sparsity"] else None,
            "error": str(want.error), "margin": str(want.margin.limit_denominator(10 ** 6))}


def page():
    """The text of spec/diffusion.json."""
    problems = [json.dumps(golden(*parts), separators=(",", ":")) for parts in GOLDEN]
    return '[\n' + ",\n".join(problems) + "\n]\n"


def test_the_golden_problems_are_what_the_oracle_says():
    """Made by `python -m tests.test_oracle_diffusion`, and checked byte for byte."""
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("line", json.loads(PAGE.read_text()) if PAGE.exists() else [],
                         ids=lambda line: f"{line['data_type']}-{line['scale']}")
def test_golden_problem(line):
    assert Fraction(line["margin"]) >= CLEAR
    w, x, x_hat = (np.array(line[name], np.float64) for name in ("w", "x", "x_hat"))
    got = diffuse(w, x, x_hat, line["data_type"], scale=line["scale"])
    assert got.quantized.codes.tolist() == line["codes"]
    assert got.error == pytest.approx(float(Fraction(line["error"])), rel=1e-9, abs=1e-6)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
