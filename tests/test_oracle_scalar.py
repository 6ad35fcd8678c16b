"""refq against the oracle, one number at a time: every code, boundary case, rule and source type.

The oracle's rounding stage runs once per case and rounding, its settling stage once per distinct rounded
value and overflow rule. refq is compared array by array.
"""

from dataclasses import asdict
from functools import cache

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import refq
from refq.formats import values
from refq.formats.policies import OVERFLOWS, ROUNDINGS
from refq.formats.rows import FORMATS, Int, p3109
from spec import cases
from spec.oracle import scalar

FLOATS = {"binary64": np.float64, "binary32": np.float32, "binary16": np.float16,
          "bfloat16": ml_dtypes.bfloat16}
INTS = {f"{kind}{bits}": np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
SOURCES = {name: FORMATS[name] for name in FLOATS} | {
    name: Int(name, dtype.itemsize * 8, signed=dtype.kind == "i") for name, dtype in INTS.items()}
DTYPES = FLOATS | INTS
WORDS = {name: asdict(rule) for name, rule in OVERFLOWS.items()}
DETERMINISTIC = [name for name, rule in ROUNDINGS.items() if not rule.stochastic]
SMALL = [name for name, row in FORMATS.items() if row.width <= 8]
FAMILY = [p3109(k, p, signed, domain) for k in range(3, 17) for signed in (True, False)
          for p in range(1, k + (not signed)) for domain in ("extended", "finite")]


def words(row):
    """A row as the oracle wants it: plain numbers and words."""
    return asdict(row) | {"kind": "float" if row.is_float else "int"}


@cache
def facts(row):
    return scalar.facts(words(row))


# --- decode ---------------------------------------------------------------------------------------

def assert_decodes(row, codes):
    """refq's exact value of every code is the oracle's."""
    for code in codes:
        want, got = scalar.decode(code, facts(row)), values.exact(row, code)
        if want.kind == scalar.NUMBER:
            agree = got == (-want.magnitude if want.negative else want.magnitude)
        else:
            agree = got == ("nan" if want.kind == scalar.NAN else "-inf" if want.negative else "inf")
        assert agree, f"{row.name} {code:#x}: refq {got}, oracle {want}"


@pytest.mark.share(2)
@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if row.width <= 16])
def test_every_code_decodes(name):
    row = FORMATS[name]
    assert_decodes(row, range(1 << row.width))


@pytest.mark.parametrize("name", ["binary32", "tf32", "binary64"])
def test_codes_of_wide_rows_decode(name):
    row = FORMATS[name]
    assert_decodes(row, cases.boundary(words(row), words(row)) + cases.specials(words(row)))


@pytest.mark.parametrize("k", range(3, 11))
def test_p3109_decodes(k):
    for row in (row for row in FAMILY if row.bits == k):
        assert_decodes(row, range(1 << k))


def sampled(row):
    """Above K=10: the 40 codes at each end of each half, and every 53rd code."""
    half = 1 << (row.bits - 1)
    ends = {code for start in (0, half - 40, half, 2 * half - 40) for code in range(start, start + 40)}
    return sorted(ends | set(range(0, 2 * half, 53)))


@pytest.mark.share(2)
@pytest.mark.parametrize("k", range(11, 17))
def test_p3109_decodes_sampled(k):
    for row in (row for row in FAMILY if row.bits == k):
        assert_decodes(row, sampled(row))


def as_floats(row):
    """The oracle's values of all codes of a row as float64, NaN where the code is NaN."""
    def number(value):
        if value.kind == scalar.NAN:
            return float("nan")
        magnitude = float("inf") if value.kind == scalar.INFINITE else float(value.magnitude)
        return -magnitude if value.negative else magnitude
    return np.array([number(scalar.decode(code, facts(row))) for code in range(1 << row.width)])


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if row.width <= 16])
def test_decoded_arrays(name):
    """refq.decode gives the oracle's values bit for bit, one NaN, or refuses an inexact dtype (VAL-7)."""
    row, want = FORMATS[name], as_floats(FORMATS[name])
    codes = np.arange(1 << row.width, dtype=np.uint16 if row.width > 8 else np.uint8)
    for dtype, nan in ((np.float64, 0x7FF8 << 48), (np.float32, 0x7FC00000), (np.float16, 0x7E00)):
        with np.errstate(over="ignore"):
            narrow = want.astype(dtype)
        if not np.array_equal(narrow.astype(np.float64), want, equal_nan=True):
            with pytest.raises(refq.InputError):
                refq.decode(codes, row, dtype)
            continue
        word = f"u{narrow.itemsize}"
        bits = np.where(np.isnan(narrow), np.array(nan, word), narrow.view(word))
        assert np.array_equal(refq.decode(codes, row, dtype).view(word), bits)


# --- encode ---------------------------------------------------------------------------------------

def operands(source, target, full=False):
    """Every boundary case, three significands per exponent, and the special codes of a source, as codes.

    Unless full, targets of over 300 magnitudes and binary64's far exponents are thinned (spec/cases.py).
    """
    s, t = facts(source), facts(target)
    step = 1 if full or source.width < 64 else 16
    return sorted(set(cases.boundary(s, t, full)) | set(cases.exponents(s, step)) | set(cases.specials(s)))


def numbers(codes, name):
    """Codes of a source type as an array of that type."""
    return np.array(codes, f"u{np.dtype(DTYPES[name]).itemsize}").view(DTYPES[name])


class Expected:
    """The oracle's answers for source codes: rounded once per rounding, settled once per distinct value."""

    def __init__(self, source, target, codes):
        self.source, self.target, self.codes = source, target, codes
        self.values = [scalar.decode(code, facts(source)) for code in codes]
        self.facts = facts(target)
        self.stages = {}

    def rounded(self, rounding, magnitude, random=None):
        key = rounding, magnitude, random
        if key not in self.stages:
            seen = {}
            values = [v._replace(negative=False) for v in self.values] if magnitude else self.values
            results = [scalar.rounded(v, self.facts, rounding, random) for v in values]
            self.stages[key] = [seen.setdefault(r, len(seen)) for r in results], list(seen)
        return self.stages[key]

    def answer(self, rounding, overflow, random=None):
        rule = scalar.rule_for(self.facts, WORDS[overflow], WORDS)
        key = "settled", rounding, not self.facts.signed and "magnitude" in rule["negative"], random
        index, distinct = self.rounded(*key[1:])
        if key not in self.stages:          # in range every rule says the same; elsewhere it is asked again
            codes = [scalar.settle(r, self.facts, rounding, WORDS["sat"]) for r in distinct]
            loose = [i for i, r in enumerate(distinct) if self.loose(r)]
            self.stages[key] = np.array(codes, np.uint64), loose
        codes, loose = self.stages[key]
        codes = codes.copy()
        codes[loose] = [scalar.settle(distinct[i], self.facts, rounding, rule) for i in loose]
        return codes[index]

    def loose(self, r):
        """Whether an overflow rule has a say: anything but a nonzero number inside every rule's range."""
        least = min(self.facts.high, self.facts.low) if self.facts.signed else 0
        return r.kind != scalar.NUMBER or not 0 < r.units <= (least if r.negative else self.facts.high)

    def compare(self, got, rounding, overflow, random=None):
        want = self.answer(rounding, overflow, random)
        bad = np.flatnonzero(got.astype(np.uint64) != want)
        if bad.size:
            i = bad[0]
            value = scalar.decode(self.codes[i], facts(self.source))
            pytest.fail(f"{self.source.name}->{self.target.name} {rounding}-{overflow} {random or ''}: "
                        f"{bad.size} of {want.size} differ, first {self.codes[i]:#x} {value}: "
                        f"refq {got[i]:#x}, oracle {want[i]:#x}")


def check_encode(target, source_name, full=False, overflows=tuple(OVERFLOWS)):
    """refq.encode against the oracle for every deterministic rounding and every overflow rule."""
    expected = Expected(SOURCES[source_name], target, operands(SOURCES[source_name], target, full))
    x = numbers(expected.codes, source_name)
    parts = np.array_split(x, len(x) // 4000 + 1)       # small arrays take the definition, not the table
    for rounding in DETERMINISTIC:
        for overflow in overflows:
            got = np.concatenate([refq.encode(part, target, rounding, overflow) for part in parts])
            expected.compare(got, rounding, overflow)


PAIRED = [(name, source) for name in FORMATS for source in FLOATS]
LATER = [(name, source) for name, source in PAIRED      # integers are much alike: these widths wait for the slow run
         if not FORMATS[name].is_float and FORMATS[name].bits not in (1, 2, 4, 8, 11, 16) and source != "binary32"]


@pytest.mark.share(2)
@pytest.mark.parametrize("name, source", sorted(set(PAIRED) - set(LATER)))
def test_boundary_from_floats(name, source):
    check_encode(FORMATS[name], source)


@pytest.mark.slow
@pytest.mark.parametrize("name, source", LATER)
def test_boundary_of_other_widths(name, source):
    check_encode(FORMATS[name], source)


@pytest.mark.share(3)
@pytest.mark.parametrize("source", list(INTS))
def test_boundary_from_integers(source):
    for row in FORMATS.values():
        check_encode(row, source)


FULL = [(name, "binary64") for name in SMALL] + [
    (name, source) for name in ("binary16", "bfloat16", "int16", "uint16", "smint12") for source in FLOATS]


@pytest.mark.slow
@pytest.mark.parametrize("name, source", FULL)
def test_full_boundary(name, source):
    """What the tests above thin out: all exponents of binary64, all magnitudes of wide targets."""
    check_encode(FORMATS[name], source, full=True)


ODD = ["e1m2finite", "e1m3ieee", "e3m0finite", "e4m0fn", "e2m5b2fnuz", "e6m9fn", "e5m0scale", "ue4m3ieee",
       "ue3m2finite", "ue5m0fn", "e4m3b4fn", "e3m2b9ieee"]


@pytest.mark.parametrize("name", ODD)
def test_boundary_of_formats_by_rule(name):
    row = refq.number_format(name)
    assert_decodes(row, range(1 << row.width))
    for source in ("binary32", "binary16", "int16"):
        check_encode(row, source)


P3109_RULES = ("satfinite", "satpropagate", "satnone", "satnone-main", "ieee", "ml_dtypes", "cuda-nosat")


@pytest.mark.share(2)
@pytest.mark.parametrize("k", range(3, 7))
def test_p3109_boundary(k):
    for row in (row for row in FAMILY if row.bits == k):
        check_encode(row, "bfloat16")
        check_encode(row, "binary64", overflows=P3109_RULES)


@pytest.mark.share(2)
@pytest.mark.parametrize("k", [7, 8, 10, 13, 16])
def test_p3109_boundary_sampled(k):
    """Above K=6: precisions 1, 2, K/2, K-1 and K, every sign and domain, the rules that differ there."""
    for row in (row for row in FAMILY if row.bits == k and row.precision in (1, 2, k // 2, k - 1, k)):
        check_encode(row, "binary32", overflows=P3109_RULES[:5])


@pytest.mark.share(2)
@pytest.mark.parametrize("name", SMALL)
def test_table_path(name):
    """Arrays long enough for the table: every rounding with sat, every overflow rule with rne."""
    pairs = [(rounding, "sat") for rounding in DETERMINISTIC] + [("rne", overflow) for overflow in OVERFLOWS]
    for source in FLOATS if FORMATS[name].is_float else ("binary32",):
        expected = Expected(SOURCES[source], FORMATS[name], operands(SOURCES[source], FORMATS[name]))
        x = numbers(expected.codes, source)
        repeats = 5000 // len(x) + 2
        for rounding, overflow in pairs:
            got = refq.encode(np.tile(x, repeats), name, rounding, overflow).reshape(repeats, -1)
            expected.compare(got[0], rounding, overflow)
            assert (got == got[0]).all()


# --- conversion between formats -------------------------------------------------------------------

PAIRS = [(s, t) for s in ("e5m2", "e4m3fn", "e4m3fnuz", "e8m0", "ue4m3", "e2m1", "mxint8", "int8", "smint4",
                          "uint8", "binary8p4se", "binary8p1uf", "e3m4")
         for t in ("e4m3fn", "e5m2", "e4m3fnuz", "e2m1", "e8m0", "ue5m3", "binary8p3se", "int4", "smint8",
                   "binary16", "bfloat16", "binary32", "tf32")]


@pytest.mark.parametrize("source, target", PAIRS)
def test_convert_every_code(source, target):
    """convert rounds every code of the source once, with nothing in between (CAST-4)."""
    row = FORMATS[source]
    expected = Expected(row, FORMATS[target], list(range(1 << row.width)))
    codes = np.array(expected.codes, np.uint8)
    for rounding in DETERMINISTIC:
        for overflow in OVERFLOWS:
            expected.compare(refq.convert(codes, source, target, rounding, overflow), rounding, overflow)


@pytest.mark.parametrize("target", ["e4m3fn", "binary16", "e8m0", "int8", "binary32", "tf32"])
def test_convert_from_tf32(target):
    """The 13 low bits of a TF32 word carry nothing (VAL-1)."""
    row = FORMATS["tf32"]
    clean = operands(row, FORMATS[target])[::7]
    expected = Expected(row, FORMATS[target], clean)
    noise = np.resize(np.array([0, 1, 0x1000, 0x1FFF], np.uint32), len(clean))
    for rounding in DETERMINISTIC:
        for overflow in ("sat", "ieee", "ml_dtypes"):
            got = refq.convert(np.array(clean, np.uint32) | noise, row, target, rounding, overflow)
            expected.compare(got, rounding, overflow)


# --- stochastic rounding --------------------------------------------------------------------------

STOCHASTIC = [name for name, rule in ROUNDINGS.items() if rule.stochastic]


@pytest.mark.parametrize("name", ["e4m3fn", "e2m1", "e8m0", "ue4m3", "int4", "mxint8", "binary8p1uf",
                                  "binary4p2sf"])
def test_stochastic_exhaustive(name):
    """Every random operand of 1, 2 and 4 bits on the boundary set and its neighbourhood (ROUND-5)."""
    row = FORMATS[name]
    expected = Expected(SOURCES["bfloat16"], row, operands(SOURCES["bfloat16"], row))
    x = numbers(expected.codes, "bfloat16")
    for rounding in STOCHASTIC:
        for width in (1, 2, 4):
            for bits in range(1 << width):
                got = refq.encode(x, name, rounding, "sat", random_bits=bits, random_width=width)
                expected.compare(got, rounding, "sat", (bits, width))


@pytest.mark.parametrize("width", [1, 8, 23, 24, 31, 32])
@pytest.mark.parametrize("name", ["e4m3fn", "e2m1", "e8m0", "int8", "bfloat16", "binary32", "binary8p3se"])
@pytest.mark.parametrize("source", ["binary64", "binary32", "int64"])
def test_stochastic_random(name, width, source):
    """Random operands element by element, every overflow rule."""
    row, rng = FORMATS[name], np.random.default_rng(width)
    codes = operands(SOURCES[source], row)
    codes = rng.choice(np.array(codes, np.uint64), min(len(codes), 60), replace=False).tolist()
    bits = rng.integers(0, 1 << width, len(codes)).tolist()
    bits[:2] = 0, (1 << width) - 1
    for rounding in STOCHASTIC:
        for overflow in OVERFLOWS:
            want = [scalar.encode(scalar.decode(code, facts(SOURCES[source])), facts(row), rounding,
                                  WORDS[overflow], WORDS, (r, width)) for code, r in zip(codes, bits)]
            got = refq.encode(numbers(codes, source), name, rounding, overflow, random_bits=np.array(bits),
                              random_width=width)
            assert got.tolist() == want, (rounding, overflow)


# --- properties -----------------------------------------------------------------------------------

ROWS = st.sampled_from([row for row in FORMATS.values() if row.width <= 16] + FAMILY)
DOUBLES = st.floats(width=64, allow_nan=False) | st.floats(-1000, 1000)
RULES = st.sampled_from(list(OVERFLOWS))


def one(x, row, rounding="rne", overflow="sat", **random):
    return int(refq.encode(np.float64(x), row, rounding, overflow, **random))


@given(ROWS, st.sampled_from(DETERMINISTIC), RULES, DOUBLES)
def test_any_double(row, rounding, overflow, x):
    want = scalar.encode(scalar.exact(x), facts(row), rounding, WORDS[overflow], WORDS)
    assert one(x, row, rounding, overflow) == want


@given(ROWS, st.sampled_from(STOCHASTIC), RULES, DOUBLES, st.integers(1, 32), st.data())
def test_any_double_stochastic(row, rounding, overflow, x, width, data):
    bits = data.draw(st.integers(0, (1 << width) - 1))
    want = scalar.encode(scalar.exact(x), facts(row), rounding, WORDS[overflow], WORDS, (bits, width))
    assert one(x, row, rounding, overflow, random_bits=bits, random_width=width) == want


@given(ROWS, st.sampled_from(DETERMINISTIC), DOUBLES, DOUBLES)
def test_monotone(row, rounding, x, y):
    low, high = sorted((x, y))
    assert values.exact(row, one(low, row, rounding)) <= values.exact(row, one(high, row, rounding))


@given(ROWS, st.sampled_from(DETERMINISTIC), st.data())
def test_a_value_of_the_format_stays(row, rounding, data):
    code = data.draw(st.integers(0, (1 << row.width) - 1))
    value = scalar.decode(code, facts(row))
    if value.kind == scalar.NUMBER:
        assert scalar.encode(value, facts(row), rounding, WORDS["sat"]) == code
        assert int(refq.convert(np.uint16(code), row, row, rounding, "sat")) == code


SYMMETRIC = st.sampled_from(["rne", "rna", "rnz", "rtz", "rto"])


@given(ROWS.filter(lambda row: row.lowest == -row.max), SYMMETRIC, DOUBLES)
def test_sign_symmetry(row, rounding, x):
    assert values.exact(row, one(-x, row, rounding)) == -values.exact(row, one(x, row, rounding))


@given(ROWS, DOUBLES)
def test_directed_roundings_bracket(row, x):
    below, above = (scalar.decode(one(x, row, rounding), facts(row)) for rounding in ("rdn", "rup"))
    low, high = (-v.magnitude if v.negative else v.magnitude for v in (below, above))
    assert low <= high
    if row.lowest <= x <= row.max:
        assert low <= x <= high


@settings(max_examples=60)
@given(st.sampled_from([row for row in FORMATS.values() if row.width <= 8 and row.has_zero]), DOUBLES)
def test_saturating_result_is_nearest(row, x):
    """With rne and sat no code of the format is nearer to a finite source (OVER-2)."""
    finite = [v for code in range(1 << row.width) if not isinstance(v := values.exact(row, code), str)]
    got, exact = values.exact(row, one(x, row)), scalar.exact(x)
    source = -exact.magnitude if exact.negative else exact.magnitude
    if exact.kind == scalar.NUMBER:
        assert abs(got - source) == min(abs(v - source) for v in finite)
