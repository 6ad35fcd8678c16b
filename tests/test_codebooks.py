"""Codebook collections: hand-typed tables, generated names, user tables and the exact choice of a table."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import refq
from refq.blocks import codebooks
from refq.blocks.codebooks import CODEBOOKS, codebook, explicit, registered, select
from refq.errors import InputError
from spec.oracle import codebooks as oracle, listed

# name -> positive halves, 0 first: worked out by hand from TensorCast's docs/codebook.md
HALVES = {
    "cb42f1346_e2m3fnuz": ["0 .75 1.25 1.75 2.5 3.5 5 7", "0 .5 1 1.5 2 3 4 6",
                           "0 .375 .875 1.375 1.875 2.75 3.75 5.5", "0 .125 .625 1.125 1.625 2.25 3.25 4.5"],
    "cb41fi_e2m2fnuz": ["0 .5 1 1.5 2 3 4 6", "0 1 2 3 4 5 6 7"],
    "cb41f01_e2m2fnuz": ["0 .75 1.25 1.75 2.5 3.5 5 7", "0 .5 1 1.5 2 3 4 6"],
    "cb41p1p2_e2m3fnuz": ["0 1.25 2 3.25 4.5 6 7 7.5", "0 .5 1.375 2.25 3.5 5 6.5 7.5"],
    "cb41s1s2_e2m3fnuz": ["0 4.5 5 5.5 6 6.5 7 7.5", "0 2.75 3.25 3.75 4.5 5.5 6.5 7.5"],
    "cb41ps13_e2m3fnuz": ["0 1.25 2 3.25 4.5 6 7 7.5", "0 3.5 3.75 4 4.5 5 5.5 6"],
    "cb31ie_int5": ["0 .5 1 1.5", "0 .25 .5 .75"],
    "cb31fe_e3m2fnuz": ["0 4 8 16", "0 2 4 8"],
    "cb42fe0123_e3m2fnuz": ["0 2 4 6 8 12 16 24", "0 1 2 3 4 6 8 12", "0 .5 1 1.5 2 3 4 6",
                            "0 .25 .5 .75 1 1.5 2 3"],
    "cb42f1e01f3i_e2m3fnuz": ["0 .75 1.25 1.75 2.5 3.5 5 7", "0 .5 .75 1 1.25 1.75 2.5 3.5",
                              "0 .5 1 1.5 2 3 4 6", "0 1 2 3 4 5 6 7"],
    "cb51ie_e2m3fnuz": [" ".join(str(n / 2) for n in range(16)), " ".join(str(n / 4) for n in range(16))],
    "cb20i_int4": ["0 1"],
    "icb42f_e2m3fnuz": ["0 .875 1.375 1.875 2.75 3.75 5.5 7.5", "0 .75 1.25 1.75 2.5 3.5 5 7",
                        "0 .625 1.125 1.625 2.25 3.25 4.5 6.5", "0 .5 1 1.5 2 3 4 6"],
    "icb40fi_e2m2fnuz": ["0 .75 1.25 1.75 2.5 3.5 5 7", "0 1 2 3 4 5 6 7"],
    "cb41f01_e4m3fn": ["0 40 80 112 160 224 320 448", "0 36 72 104 144 208 288 416"],
}


def halves(name):
    """The non-negative half of every table."""
    return [table.values[: len(table.values) // 2] for table in codebook(name).tables]


@pytest.mark.parametrize("name", HALVES)
def test_hand_typed_tables(name):
    assert halves(name) == [tuple(map(float, text.split())) for text in HALVES[name]]
    for table in codebook(name).tables:
        half = len(table.values) // 2
        assert [repr(-v) for v in table.values[:half]] == [repr(v) for v in table.values[half:]]
        assert table.tie == "away"


def test_facts_of_collections():
    four = codebook("CB42F1346_E2M3FNUZ")
    assert (four.name, four.width, four.meta_bits, four.max, four.emax) == ("cb42f1346_e2m3fnuz", 4, 2, 7, 2)
    assert codebook("tcast:cb42f1346_e2m3fnuz") is four is codebook(four)
    assert codebook("cb81ie_int9").width == 8 and codebook("cb81ie_int9").max == Fraction(127, 64)
    assert codebook("cb42fe0123_e3m2fnuz").emax == 4 and codebook("cb41f01_e4m3fn").emax == 8
    assert codebook("icb41fi_e2m3fnuz").meta_bits == 2 and codebook("cb40f_e2m3fnuz").meta_bits == 0
    assert codebook("e2m1") is codebook("mxfp4") is codebook(None) is None
    assert all(codebook(name).name == name for name in CODEBOOKS)


@pytest.mark.parametrize("name, words", [
    ("cb42f134_e2m3fnuz", "describes 3 tables, but its name says 4"),
    ("cb40f9_e2m2fnuz", "does not fit"), ("cb40f7_e2m3fnuz", "does not fit"),
    ("cb40p3_e2m3fnuz", "does not fit"), ("cb40s0_e2m3fnuz", "does not fit"),
    ("cb70f_e2m3fnuz", "3 to 6 index bits"), ("cb10i_e2m3fnuz", "one bit"),
    ("cb50f_e2m1fnuz", "not on the number line"), ("cb40fe3_e2m1fnuz", "not on the number line"),
    ("cb40f_e5m10", "at most 9 bits"), ("cb40f_uint8", "at most 9 bits"), ("cb40f_e8m0", "at most 9 bits"),
    ("cb44_e4m3fn", "nothing of its tables"), ("cb44_e4m3fn_mine", "nothing of its tables"),
    ("cb40f_e9", "not known")])
def test_refused_names(name, words):
    with pytest.raises(InputError, match=words):
        codebook(name)


NUMBERS = st.sampled_from(["e2m3fnuz", "e2m2fnuz", "e3m2fnuz", "e4m3fn", "e4m3", "e5m2", "e4m3inuz",
                           "e2m1fnuz", "e2m5fnuz", "e3m3b2fnuz", "int4", "int6", "int8", "int9", "e1m5fnuz"])
DIGITS = st.text("0123456789", max_size=3)
CLAUSE = st.one_of(st.builds(lambda k, d, e: k + d + e, st.sampled_from("fi"), DIGITS,
                             st.one_of(st.just(""), st.text("0123", max_size=2).map("e".__add__))),
                   st.builds(lambda k, d: k + d, st.sampled_from("ps"), DIGITS))


@settings(max_examples=600, deadline=None)
@given(st.integers(3, 6), st.lists(CLAUSE, min_size=1, max_size=3), NUMBERS, st.integers(0, 3))
def test_generated_tables_are_the_oracles(width, clauses, number, meta):
    name = f"cb{width}{meta}{''.join(clauses)}_{number}"
    want = oracle.tables(name)
    try:
        found = codebook(name)
    except InputError:
        found = None
    assert (found is None) == (want is None), name
    if found:
        assert [[repr(v) for v in t.values] for t in found.tables] == [
            [repr(float(v)) for v in table] for table in want]
        assert found.emax == oracle.binade(oracle.line(number)[-1])


def test_some_generated_names_are_accepted():
    """The property above is not empty: every pattern, over many lines."""
    good = [f"cb4{m}{text}_{number}" for number in ("e2m3fnuz", "e3m2fnuz", "e4m3fn", "e5m2", "int8")
            for m, text in ((0, "p"), (0, "f"), (0, "i"), (1, "p10s14"), (1, "fe"), (1, "ie13"), (1, "f01"))
            if oracle.tables(f"cb4{m}{text}_{number}")]
    assert len(good) > 20 and all(codebook(name) for name in good)


@pytest.mark.parametrize("name", [*CODEBOOKS, "cb41p1p2_e2m3fnuz"])
def test_codes_against_the_oracle(name):
    for table in codebook(name).tables:
        values = [Fraction(v) for v in sorted(set(table.values))]
        points = values + [(a + b) / 2 for a, b in zip(values, values[1:])] + [values[0] * 2, values[-1] * 2]
        x = np.float64([float(point) for point in points])
        x = np.concatenate([x, np.nextafter(x, np.inf), np.nextafter(x, -np.inf), [0.0, -0.0]])
        words = {"kind": "codebook", "values": list(table.values), "tie": "away"}
        assert refq.encode(x, table).tolist() == [listed.encode(Fraction(v), words) for v in x]


def test_ties_go_away_from_zero():
    table = codebook("cb42f1346_e2m3fnuz").tables[1]
    assert refq.encode(np.float32([2.5, -2.5, .25, -.25, -.1, -0.0, 100, -100]), table).tolist() == [
        5, 13, 1, 9, 8, 0, 7, 15]


# --- user tables ------------------------------------------------------------------------------------------

def test_user_tables():
    mine = explicit("mine", [[0, 1, -1, 5], [3, 0, 0.5, 0.5]], aka=("cb21_e4m3fn_mine",))
    assert (mine.width, mine.meta_bits, mine.max, mine.emax) == (2, 1, 5, 2)
    assert refq.encode(np.float32([.5, -9, .49, 3.1]), mine.tables[0]).tolist() == [1, 2, 0, 3]
    assert refq.encode(np.float32([.5, -9, .2, 3.1]), mine.tables[1]).tolist() == [2, 1, 1, 0]     # never 3
    with registered(mine):
        assert codebook("mine") is codebook("CB21_E4M3FN_MINE") is mine
        with pytest.raises(InputError, match="taken"), registered(mine):
            pass
    assert "mine" not in CODEBOOKS and codebook("mine") is None


def test_minus_zero_in_user_tables():
    table = explicit("x", [[-0.0, 1, 0, -1]]).tables[0]
    assert refq.encode(np.float32([0, -.1, .1, .5, -.5]), table).tolist() == [0, 0, 0, 1, 3]
    table = explicit("x", [[0, 1, -0.0, -1]]).tables[0]
    assert refq.encode(np.float32([0, -0.0, -.1, .1, .5, -.5]), table).tolist() == [0, 0, 2, 0, 1, 3]


def test_user_tables_from_files(tmp_path):
    rows = [[0.0, 1.0, 2.0, -1.0], [0.0, 0.5, 1.0, -0.5]]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    np.savez(tmp_path / "t.npz", tables=np.array(rows))
    np.save(tmp_path / "t.npy", np.array(rows))
    want = explicit("t", rows)
    assert all(explicit("t", tmp_path / f"t.{end}") == want for end in ("json", "npz", "npy"))
    np.savez(tmp_path / "two.npz", a=rows, b=rows)
    (tmp_path / "bad.json").write_text("{")
    for name in ("two.npz", "bad.json", "none.npz"):
        with pytest.raises(InputError, match=name):
            explicit("t", tmp_path / name)


@pytest.mark.parametrize("tables, words", [
    ([[0, 1, 2]], "2, 4, 8"), ([[0]], "2, 4, 8"), ([], "1 to 256 tables"),
    ([[0, 1], [0, 1, 2, 3]], "one size"),
    ([[1, 2]], "0 must be"), ([[-0.0, 1]], "0 must be"), ([[0, float("nan")]], "not a finite float32"),
    ([[0, 0.1]], "not a finite float32"), ([[0, 1e39]], "not a finite float32"), ([[0, -1]], "no table"),
    ([[0, 1]] * 257, "1 to 256 tables"), (["ab"], "numbers"), ([0, 1], "numbers"), (7, "numbers"),
    ([[0] * 512], "2, 4, 8")])
def test_refused_tables(tables, words):
    with pytest.raises(InputError, match=words):
        explicit("x", tables)


def test_ties_of_user_tables():
    codes = [refq.encode(np.float32([.5, -.5]), explicit("x", [[0, 1, -1, 2]], tie=tie).tables[0]).tolist()
             for tie in ("lower", "toward-zero", "away")]
    assert codes == [[0, 2], [0, 0], [1, 2]]
    with pytest.raises(InputError, match="allowed are lower"):
        explicit("x", [[0, 1]], tie="even")


# --- the choice -------------------------------------------------------------------------------------------

def rounded(x, name, divisor=None):
    """What float64 x becomes in every table, in units of the divisor."""
    quotient = np.asarray(x, np.float64) / (1 if divisor is None else np.asarray(divisor)[:, None])
    return [refq.decode(refq.encode(quotient, table), table, np.float64) for table in codebook(name).tables]


def chosen_by_oracle(x, values, divisor=None):
    def number(v):
        return Fraction(float(v)) if np.isfinite(v) else None
    return [oracle.select([number(v) for v in x[unit]],
                          [[Fraction(float(v)) for v in some[unit]] for some in values],
                          1 if divisor is None else number(divisor[unit])) for unit in range(len(x))]


NAMES = ["cb42f1346_e2m3fnuz", "cb41fi_e2m2fnuz", "cb42fe0123_e3m2fnuz", "cb41p1p2_e2m3fnuz"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 2, 8, 32])
@pytest.mark.parametrize("kind", ["normal", "grid", "edges", "wide"])
def test_choice_against_the_oracle(name, size, kind):
    rng = np.random.default_rng(7)
    values = np.array(sorted({v for table in codebook(name).tables for v in table.values}))
    edges = np.concatenate([values, (values[1:] + values[:-1]) / 2])
    x = {"normal": rng.standard_normal((40, size)) * 3,
         "grid": rng.integers(-16, 17, (40, size)) / 4,                             # many exact ties
         "edges": rng.choice(edges, (40, size)),
         "wide": rng.standard_normal((40, size)) * 2.0 ** rng.integers(-60, 4, (40, size))}[kind]
    for dtype in (np.float32, np.float64):
        part = x.astype(dtype)
        powers, others = 2.0 ** rng.integers(-120, 120, len(x)), rng.choice(np.float32([.3, 1.1, 7]), len(x))
        for divisor in (None, powers, others):
            scaled = part if divisor is None else (part * divisor[:, None]).astype(dtype)
            found = rounded(scaled, name, divisor)
            want = chosen_by_oracle(scaled, found, divisor)
            assert select(scaled, found, divisor).tolist() == want
            assert select(scaled, [v.astype(np.float32) for v in found], divisor).tolist() == want


def test_near_ties_are_decided_exactly():
    """Two tables whose errors differ by far less than a rounded sum shows, in either order."""
    tiny = 2.0 ** -60
    x = np.float64([[1.5 + 0.0, tiny], [1.5, -tiny], [1.5, 0], [1.0 + 2 ** -52, 3]])
    low, high = np.float64([[1, 1]] * 3 + [[1, 3]]), np.float64([[2, -1]] * 3 + [[1, 3]])
    assert select(x, [low, high]).tolist() == [0, 1, 0, 0] == chosen_by_oracle(x, [low, high])
    assert select(x, [high, low]).tolist() == [1, 0, 0, 0] == chosen_by_oracle(x, [high, low])
    for divisor in (np.full(4, 1 + 2.0 ** -40), np.full(4, 1 / 3), np.full(4, 1e-300), np.full(4, 1e300)):
        want = chosen_by_oracle(x * divisor[:, None], [low, high], divisor)
        assert select(x * divisor[:, None], [low, high], divisor).tolist() == want


def test_special_units():
    x = np.float64([[np.nan, 1], [np.inf, 5], [0, 0], [5, 5], [5, 5], [1e308, -1e308], [5e-324, 5e-324]])
    values = [np.zeros_like(x), np.sign(np.nan_to_num(x)) * 5]
    divisor = np.float64([1, 1, 1, np.nan, 0, 1e308, 5e-324])
    with np.errstate(all="raise"):
        for some in (None, divisor):
            got = select(x, values, some)
            assert got.tolist() == chosen_by_oracle(x, values, some)
            assert select(x[:5].astype(np.float32), [v[:5] for v in values],
                          None if some is None else some[:5]).tolist() == got[:5].tolist()


def test_float32_extremes():
    x = np.float32([[3e38, -3e38, 1], [1e-45, 3e-45, 0], [1e-30, 1e-38, 0], [1e19, 1e-19, 1]])
    values = [np.zeros_like(x), x / 2, x.copy(), x * np.float32(.75)]
    assert select(x, values).tolist() == [2] * 4 == chosen_by_oracle(x, values)
    small = [np.float32([[1, 1, 1]] * 4), np.float32([[2, -2, 0]] * 4)]
    for scale in (1e-45, 1e-38, 1e-20, 1e20, 3e38):
        divisor = np.full(4, np.float64(np.float32(scale)))
        assert select(x, small, divisor).tolist() == chosen_by_oracle(x, small, divisor)


def test_padding_has_no_say():
    x = np.float32([[5, 99, 99], [1, 1, 99]])
    values = [np.float32([[6, 99, 99], [0, 1, 99]]), np.float32([[5, 0, 0], [1, 0, 0]])]
    valid = np.array([[True, False, False], [True, True, False]])
    assert select(x, values).tolist() == [0, 0]
    assert select(x, values, valid=valid).tolist() == [1, 0]
    x[~valid] = np.nan
    assert select(x, values, valid=valid).tolist() == [1, 0]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_choice_of_any_numbers(data):
    size, units = data.draw(st.integers(1, 5)), 3
    floats = st.floats(width=32) if data.draw(st.booleans()) else st.integers(-3, 3).map(float)
    x = np.float32([[data.draw(floats) for _ in range(size)] for _ in range(units)])
    grid = st.integers(-8, 8).map(lambda n: n / 2)
    values = [np.float64([[data.draw(grid) for _ in range(size)] for _ in range(units)]) for _ in range(3)]
    divisor = np.float64([data.draw(st.sampled_from([1, .5, 3, 2.0 ** -126, 1e-3, 0])) for _ in range(units)])
    for some in (None, divisor):
        want = chosen_by_oracle(x, values, some)
        assert select(x, values, some).tolist() == want == select(x.astype(np.float64), values, some).tolist()


def test_sizes_of_the_choice():
    """More units than a chunk holds, none, one table, too many."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5000, 8)).astype(np.float32) * 2
    values = rounded(x, NAMES[0])
    errors = (x.astype(np.float64)[None] - np.stack(values)) ** 2
    for size in (8, 20, 20_000, 40_000):
        sums = errors.reshape(len(values), -1, size).sum(axis=2)
        found = select(x.reshape(-1, size), [v.reshape(-1, size) for v in values])
        assert np.array_equal(found, sums.argmin(axis=0))
    assert select(x[:0], [v[:0] for v in values]).shape == (0,)
    assert select(x, values[:1]).max() == 0 and select(x[:, :0], [v[:, :0] for v in values]).max() == 0
    with pytest.raises(InputError, match="1 to 256"):
        select(x, [])


def test_the_slow_path_is_rare(monkeypatch):
    """Nearly all units of ordinary weights are decided by rounded sums."""
    seen, real = [], codebooks._exactly
    monkeypatch.setattr(codebooks, "_exactly", lambda x, *rest: seen.append(len(x)) or real(x, *rest))
    x = np.random.default_rng(1).standard_normal((20_000, 32)).astype(np.float32) * 2
    select(x, rounded(x, NAMES[0]))
    assert sum(seen) < 20


# --- whole data types -------------------------------------------------------------------------------------

def by_oracle(x, name, tile, unit):
    """(codes, scales, tables) of a matrix in tiles and units (rows, columns), scale e8m0, rule floor."""
    collection, tables = codebook(name), oracle.tables(name)
    codes, scales, choice = np.zeros(x.shape, int), [], np.full(x.shape, -1)
    for place in boxes(x.shape, (0, 0), x.shape, tile):
        part = x[place]
        if not np.isfinite(part).all():
            scales.append(255)
            choice[place] = 0
            continue
        amax = Fraction(float(np.abs(part).max()))
        k = min(max(oracle.binade(amax) - collection.emax, -127), 127) if amax else -127
        scales.append(k + 127)
        start, stop = (place[0].start, place[1].start), (place[0].stop, place[1].stop)
        for some in boxes(x.shape, start, stop, unit):
            flat = [Fraction(float(v)) for v in x[some].reshape(-1)]
            found = [[listed.encode(v / Fraction(2) ** k, words(table)) for v in flat] for table in tables]
            values = [[table[code] for code in row] for table, row in zip(tables, found)]
            best = oracle.select(flat, values, Fraction(2) ** k)
            codes[some], choice[some] = np.reshape(found[best], x[some].shape), best
    return codes, scales, choice


def words(table):
    return {"kind": "codebook", "values": [float(v) for v in table], "tie": "away"}


def boxes(shape, start, stop, size):
    """Slices of the boxes of a size between two corners, in order."""
    for row in range(start[0], stop[0], size[0]):
        for column in range(start[1], stop[1], size[1]):
            yield slice(row, min(row + size[0], stop[0])), slice(column, min(column + size[1], stop[1]))


def adversarial(shape):
    """A matrix of weights with bad tiles among them."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal(shape).astype(np.float32)
    x[0, :4], x[1, 0], x[2, -1], x[3] = 0, np.nan, -np.inf, rng.integers(-6, 7, shape[1])
    x[4] *= np.float32(1e-38)
    x[5], x[6, :4] = 0, np.float32([6, -6, 3.9999998, 4])
    x[7] = 3e38
    return x


@pytest.mark.parametrize("number, scale, tile, unit", [
    ("cb42f1346_e2m3fnuz", "t8s4", (1, 8), (1, 4)), ("cb41fi_e2m2fnuz", "t16", (1, 16), (1, 16)),
    ("cb42fe0123_e3m2fnuz", "t4s2", (1, 4), (1, 2)), ("cb51ie_int7", "t16s2", (1, 16), (1, 2)),
    ("cb41f01_e2m2fnuz", "t4s2_t8s4", (4, 8), (2, 4)), ("cb41p1p2_e2m3fnuz", "t0", (1, 23), (1, 23))])
def test_quantised_arrays_against_the_oracle(number, scale, tile, unit):
    x = adversarial((9, 23))
    q = refq.quantize(x, refq.data_type(number, f"e8m0_{scale}"))
    codes, scales, choice = by_oracle(x, number, tile, unit)
    assert q.scales.reshape(-1).tolist() == scales
    assert np.array_equal(q.codes, codes)
    per_value = np.repeat(np.repeat(q.tables, unit[0], axis=0)[:9], unit[1], axis=1)
    assert np.array_equal(per_value[:, :23], choice)
    values = np.float64([table.values for table in codebook(number).tables])
    powers = 2.0 ** (q.scales.astype(np.float64) - 127)
    step = np.repeat(np.repeat(powers, tile[0], axis=0)[:9], tile[1], axis=1)
    want = np.where(np.isfinite(x), values[choice, codes] * step[:, :23], np.nan)
    got = refq.dequantize(q, np.float64)
    bad = np.repeat(np.repeat(q.scales == 255, tile[0], axis=0)[:9], tile[1], axis=1)[:, :23]
    assert np.array_equal(got[~bad], want[~bad]) and np.isnan(got[bad]).all()


def test_sparse_codebooks():
    """What sparsity drops is +0 before the scale is taken."""
    x = adversarial((9, 24))
    q = refq.quantize(x, refq.data_type("cb42f1346_e2m3fnuz", "e8m0_t8s4n2m4"))
    kept = np.where(q.mask, x, np.float32(0))
    plain = refq.quantize(kept, refq.data_type("cb42f1346_e2m3fnuz", "e8m0_t8s4"))
    for part in ("codes", "scales", "tables"):
        assert np.array_equal(getattr(q, part), getattr(plain, part))
    assert (q.mask.reshape(9, 6, 4).sum(axis=2) == 2).all()


def test_user_tables_as_a_data_type():
    mine = explicit("mine", [[0, 1, -1, 2], [0, 0.5, -0.5, 1]])
    with registered(mine):
        q = refq.quantize(np.float32([[4, 2, -2, 0, 1, .5, -.5, 0]]), "mine_e8m0_t8s4")
        assert (q.codes.tolist(), q.tables.tolist(), q.scales.tolist()) == (
            [[3, 1, 2, 0, 1, 1, 2, 0]], [[0, 1]], [[128]])          # 0.25 is a tie
        assert refq.dequantize(q).tolist() == [[4, 2, -2, 0, 1, 1, -1, 0]]


def test_bits_per_value():
    for strings, bits in ((("cb42f1346_e2m3fnuz", "e8m0_t32s8"), Fraction(9, 2)),
                          (("cb81ie_int9", "e8m0_t16s2"), 9), (("cb51ie_int7", "e8m0_t16s2"), 6),
                          (("cb31ie_int5", "e8m0_t16s2"), 4),
                          (("cb41fi_e2m2fnuz", "e8m0_t32s4"), Fraction(9, 2))):
        assert refq.data_type(*strings).bits_per_value == bits
