"""Listed formats: hand-typed anchors, every code and every boundary against the oracle, names, refusals."""

from dataclasses import asdict
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import refq
from refq.conformance import explain
from refq.conformance.check import check
from refq.errors import InputError
from refq.formats import codec, fast, show, values
from refq.formats.listed import (
    LNS, Codebook, Exponent, Listed, Posit, Takum, boundaries, columns, key, significant_bits)
from refq.formats.plot import number_line
from refq.formats.policies import OVERFLOWS
from refq.formats.rows import FORMATS, LISTED, registered
from refq.formats.show import show_cast, show_code
from refq.vectors import coverage, sets
from spec.oracle import listed as oracle

F64, F32 = FORMATS["binary64"], FORMATS["binary32"]
SMALL = [name for name, row in LISTED.items() if row.bits <= 8]
WIDE = [name for name, row in LISTED.items() if row.bits > 8]
BY_RULE = ["posit3", "posit4", "posit5", "posit6", "takum_linear3", "takum_linear6", "takum_log6", "lns4f0",
           "lns5f1", "lns6f4", "pow2int2", "pow2int3", "pow2int5"]

# code -> value as text, from the published tables (formats.md 7.1 and 8)
ANCHORS = {
    "nf4": {0: "-1", 1: "-0.6961928009986877", 6: "-0.09105003625154495", 7: "0", 8: "0.07958029955625534",
            14: "0.7229568362236023", 15: "1"},
    "af4": {0: "1", 7: "0.04273164", 8: "0", 9: "-0.04934812", 15: "-1"},
    "bnb_fp4": {0: "0", 1: "0.005208333", 2: "0.6666667", 3: "1", 4: "0.3333333", 5: "0.5", 6: "0.1666667",
                7: "0.25", 8: "-0", 9: "-0.005208333", 11: "-1", 15: "-0.25"},
    "ternary": {0: "-1", 1: "0", 2: "1", 3: "nan"},
    "posit8": {0: "0", 0x80: "nan", 0x40: "1", 0x7F: "0x1p24", 1: "0x1p-24", 0x41: "1.125", 0x48: "2",
               0x50: "4", 0x60: "16", 0xC0: "-1", 0x38: "0.5", 0x81: "-0x1p24", 0x7E: "0x1p20"},
    "posit16": {0x7FFF: "0x1p56", 1: "0x1p-56", 0x4000: "1", 0x5000: "4", 0x4001: "1.00048828125"},
    "takum_linear8": {0: "0", 0x80: "nan", 0x40: "1", 0xC0: "-1", 0x7F: "0x1p239", 1: "0x1p-239"},
    "takum_log8": {0: "0", 0x80: "nan", 0x40: "1", 0xC0: "-1"},
    "hif8": {0: "0", 0x80: "nan", 0x6F: "inf", 0xEF: "-inf", 0x6E: "32768", 0xEE: "-32768", 1: "0x1p-22",
             7: "0x1p-16", 8: "1", 0x0F: "1.875", 0x10: "2", 0x18: "0.5", 0x20: "4", 0x7E: "0x1p-15",
             0x7F: "0x1.8p-15"},
    "lns8f3": {0: "1", 0x40: "0", 0xC0: "nan", 8: "2", 0x78: "0.5", 0x80: "-1"},
    "pow2int8": {0: "1", 1: "2", 0x7F: "0x1p127", 0x80: "nan", 0x81: "0x1p-127", 0xFF: "0.5"},
    "pow2int3": {0: "1", 1: "2", 2: "4", 3: "8", 4: "nan", 5: "0.125", 6: "0.25", 7: "0.5"},
}


def number(text):
    return float.fromhex(text) if "0x" in text else float(text)


def words(row):
    """A row as the oracle wants it."""
    return asdict(row) | {"kind": row.kind}


@cache
def row_of(name):
    return refq.number_format(name)


@pytest.mark.parametrize("name", ANCHORS)
def test_anchors(name):
    got = refq.decode(np.arange(1 << row_of(name).width, dtype=np.uint16), name, np.float64)
    for code, text in ANCHORS[name].items():
        exact = row_of(name).kind != "codebook"
        assert got[code] == number(text) or np.isnan(number(text)) and np.isnan(got[code]) or (
            not exact and abs(got[code] / number(text) - 1) < 2e-7), (hex(code), got[code])
        assert np.signbit(got[code]) == np.signbit(number(text))


def test_published_ranges():
    """formats.md 8: posit 2^±24, 2^±56; takum 1.13e-72 to 8.83e71, up to 5.6e76; HiFloat8 2^-22 to 2^15."""
    assert row_of("posit8").max == 1 << 24 and row_of("posit16").max == 1 << 56
    assert row_of("posit8").min_positive == Fraction(1, 1 << 24)
    assert f"{float(row_of('takum_linear8').max):.3g} {float(row_of('takum_linear8').min_positive):.3g}" == (
        "8.83e+71 1.13e-72")
    assert f"{float(row_of('takum_linear16').max):.2g}" == "5.6e+76"
    assert (row_of("hif8").max, row_of("hif8").min_positive) == (1 << 15, Fraction(1, 1 << 22))
    assert str(row_of("takum_log8").max) == "sqrt(e)^(239)" and row_of("lns8f3").max.text == "2^(63/8)"


@pytest.mark.parametrize("name", SMALL + BY_RULE)
def test_every_code_decodes(name):
    row = row_of(name)
    got = refq.decode(np.arange(1 << row.width, dtype=np.uint8), row, np.float64)
    for code in range(1 << row.width):
        assert_value(row, code, got[code])


@pytest.mark.share(2)
@pytest.mark.parametrize("name", WIDE)
def test_codes_of_wide_rows_decode(name):
    row, step = row_of(name), 401 if "log" in name else 1
    got = refq.decode(np.arange(1 << 16, dtype=np.uint16), row, np.float64)
    for code in {*range(0, 1 << 16, step), *range(6), *range(0x7FFA, 0x8006), *range(0xFFFA, 0x10000)}:
        assert_value(row, code, got[code])


def assert_value(row, code, got):
    want = oracle.decode(code, words(row))
    if isinstance(want, oracle.Power):
        magnitude = oracle.nearest(want, 53)
        assert Fraction(got) == (-magnitude if want.negative else magnitude), hex(code)
        with pytest.raises(InputError, match="irrational"):
            values.exact(row, code)
        return
    assert values.exact(row, code) == want, hex(code)
    assert np.isnan(got) if want == "nan" else got == float(want)


@cache
def edges(row):
    """float64 operands: both neighbours of every value and boundary, zeros, specials, far ends."""
    points = {abs(key(value)) for value, _ in row.ascending}
    points |= {key(edge) for negative in (False, True) for edge in boundaries(row, negative=negative)}
    middle = np.array([float(point) for point in sorted(points)])
    far = [5e-324, 1e-300, 1e300, np.inf]
    x = np.concatenate([middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf), far])
    return np.concatenate([x, -x, [np.nan]])


def exactly(x):
    return "nan" if np.isnan(x) else ("inf" if x > 0 else "-inf") if np.isinf(x) else Fraction(float(x))


def both_ways(x, row, rounding="rne", overflow="sat"):
    """Codes of a flat array by the fast path, after asserting that the definition says the same."""
    source, room = codec.source_row(x.dtype), np.empty((2, x.size), codec.code_dtype(row))
    words_of = x.view(f"u{x.itemsize}")
    codec.encoder(source, row, rounding, overflow)(words_of, room[0])
    codec.encoder(source, row, rounding, overflow, size=1)(words_of, room[1])
    differ = np.flatnonzero(room[0] != room[1])
    assert not differ.size, (row.name, x.dtype, rounding, overflow, x[differ[:3]], room[:, differ[:3]])
    return room[0]


def near(row, dtype):
    """The edges as a dtype has them, with two neighbours on either side."""
    with np.errstate(over="ignore"):
        x = edges(row).astype(dtype)
    steps = [x]
    for far in (np.inf, -np.inf):
        steps += [np.nextafter(x, dtype(far)), np.nextafter(np.nextafter(x, dtype(far)), dtype(far))]
    return np.unique(np.concatenate(steps).view(f"u{x.itemsize}")).view(dtype)


@pytest.mark.share(2)
@pytest.mark.parametrize("name", SMALL + BY_RULE)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_boundary_encodes(name, dtype):
    """By the fast path and the definition alike; the oracle judges each operand."""
    row, x = row_of(name), near(row_of(name), dtype)
    x = x if row.bits < 8 else x[:: 3]
    for rounding in row.roundings:
        for overflow in ("sat", "nonsat"):
            for value, code in zip(x, both_ways(x, row, rounding, overflow)):
                assert code == oracle.encode(exactly(value), words(row), rounding, overflow == "nonsat"), (
                    f"{row.name} {rounding} {overflow} {value!r}")


@pytest.mark.parametrize("name", WIDE)
def test_boundaries_of_wide_rows(name):
    row = row_of(name)
    for x in (edges(row), near(row, np.float32)):
        step = 977 if "log" in name else 101
        for value, code in list(zip(x, both_ways(x, row)))[::step]:
            assert code == oracle.encode(exactly(value), words(row)), (row.name, value)


@pytest.mark.parametrize("name", LISTED)
def test_every_half_precision_number(name):
    """All float16 words. Rounding keeps the order: the oracle is asked at both ends of each run of a code."""
    row = row_of(name)
    for rounding in row.roundings:
        codes = both_ways(np.arange(1 << 16, dtype=np.uint16).view(np.float16), row, rounding)
        for first in (0, 0x8000):
            finite = codes[first + 1: first + 0x7C00]
            ends = np.flatnonzero(np.append(True, finite[1:] != finite[:-1]))
            ends = np.unique(np.concatenate([ends, ends[1:] - 1, [finite.size - 1]])) + first + 1
            asked = [*ends[:: 1 if row.bits <= 8 else 101].tolist(), first, first + 0x7C00, first + 0x7E00]
            for word in asked:
                x = np.uint16(word).view(np.float16)
                want = oracle.encode(exactly(x), words(row), rounding)
                assert codes[word] == want, (name, rounding, hex(word))


@pytest.mark.parametrize("name", list(LISTED) + BY_RULE)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_fast_path_is_the_definition(name, dtype):
    """Every way a 32- or 64-bit word is looked up, at all boundaries and at random, under every rule."""
    row, bits = row_of(name), 8 * np.dtype(dtype).itemsize
    raw = np.random.default_rng(0).integers(0, 1 << bits, 20_000, np.uint64)
    raw = raw.astype(f"u{bits // 8}").view(dtype)
    common = np.random.default_rng(1).standard_normal(20_000).astype(dtype)
    with np.errstate(invalid="ignore"):
        x = np.concatenate([raw, common, near(row, dtype)])
    for rounding in row.roundings:
        for overflow in ("sat", "nonsat", "satpropagate") if row.bits <= 8 else ("sat",):
            both_ways(x, row, rounding, overflow)


def test_ways_of_looking_up():
    """A code that starts at any word has buckets; takums below float32's normals are looked up as float64."""
    def way(source, name):
        return type(fast.plan(source, row_of(name), "rne", "sat"))

    assert {way(source, name) for source in (F32, F64) for name in ("nf4", "af4", "bnb_fp4", "posit16")} == {
        fast.Steps}
    assert way(F32, "takum_linear16") is way(F32, "takum_log8") is fast.Widened
    assert way(F32, "posit8") is way(F64, "ternary") is fast.Plan
    crowded = Codebook("crowded", tuple(1 + 2.0 ** -52 * n for n in range(9)))
    assert isinstance(fast.plan(F64, crowded, "rne", "sat"), fast.Search)
    assert np.array_equal(both_ways(np.array(crowded.values), crowded), np.arange(9))


@pytest.mark.share(3)
@pytest.mark.parametrize("row", [
    *(Posit(f"posit{bits}es{es}", bits, es)
      for bits in range(3, 17) for es in range(4) if bits < 12 or es == 2),
    *(Takum(f"takum{bits}", bits, variant) for bits in range(3, 17) for variant in ("linear", "log"))],
    ids=lambda row: f"{row.name}-{row.kind}-{getattr(row, 'variant', '')}")
def test_facts_without_the_list(row):
    """What posits and takums say by rule is what follows from the list of their values."""
    for fact in ("max", "lowest", "min_positive", "code_of_one", "nan_code", "nan_codes", "count_finite",
                 "zero", "has_zero"):
        assert getattr(row, fact) == getattr(Listed, fact).fget(row), fact
    assert list(row.inf_codes) == Listed.inf_codes.fget(row) and row.exact == Listed.exact.func(row)
    assert row.precision == max(significant_bits(key(value)) for value, _ in row.ascending)
    assert all(np.array_equal(*pair) for pair in zip(row.columns(), Listed.columns(row)))
    for negative in (False, True):
        both = zip(row.side("rne", negative), Listed.side(row, "rne", negative))
        assert all(np.array_equal(*pair) for pair in both)


@pytest.mark.parametrize("name", [name for name in LISTED if LISTED[name].exact])
def test_values_are_their_own_codes(name):
    row = row_of(name)
    codes = np.array([code for _, code in row.ascending], np.uint16)
    assert np.array_equal(refq.encode(refq.decode(codes, row, np.float64), row), codes)
    assert np.array_equal(refq.convert(refq.convert(codes, row, "binary64"), "binary64", row), codes)


def test_as_a_source():
    posits = np.arange(256, dtype=np.uint8)
    want = refq.encode(refq.decode(posits, "posit8"), "e4m3fn")
    assert np.array_equal(refq.convert(posits, "posit8", "e4m3fn"), want)
    assert refq.convert(np.uint8([8]), "bnb_fp4", "binary32").tolist() == [0x80000000]
    with pytest.raises(InputError, match="takum_log8 are irrational"):
        refq.convert(posits, "takum_log8", "e4m3fn")


def test_own_rules():
    def code(name, *x, **rules):
        return refq.encode(np.float64(x), name, **rules).tolist()

    assert code("nf4", 0.5 * 0.07958029955625534, -0.0, -9, 9, np.nan) == [7, 7, 0, 15, 15]
    assert code("bnb_fp4", -0.0, -1e-9, 1e-9, 0.2916666716337204, -0.2916666716337204) == [0, 8, 0, 7, 15]
    assert code("ternary", 0.5, -0.5, 0.51, -7) == [1, 1, 2, 0]
    assert code("posit8", 1e-300, -1e-300, 1e300, -1e300, np.inf, -np.inf, np.nan, -0.0) == [
        1, 0xFF, 0x7F, 0x81, 0x80, 0x80, 0x80, 0]
    assert code("takum_linear8", 5e-324, 1e300, np.inf) == [1, 0x7F, 0x80]
    assert code("hif8", 40959, 40960, np.inf, -1e9) == [0x6E, 0x6E, 0x6E, 0xEE]
    assert code("hif8", 40959, 40960, np.inf, -1e9, overflow="nonsat") == [0x6E, 0x6F, 0x6F, 0xEF]
    assert code("hif8", 2.0 ** -23, np.nextafter(2.0 ** -23, 0), -0.0, -1e-9) == [1, 0, 0, 0]
    assert code("hif8", 18) == code("hif8", 20) and code("hif8", 17.9) == code("hif8", 16)      # ties away
    assert code("lns8f3", 0, 1e-300, 1e300, -1e300, np.nan) == [0x40, 0x41, 0x3F, 0xBF, 0xC0]
    assert code("lns8f3", 1e300, np.inf, overflow="nonsat") == [0xC0, 0xC0]
    assert code("pow2int8", 1, 3, 2.99, 1e-300, 1e300, np.inf, np.nan) == [0, 2, 1, 0x81, 0x7F, 0x7F, 0x80]
    assert code("pow2int8", 0, -0.0, -1, -1e300, -np.inf) == [0x81] * 5
    assert code("pow2int8", 0, -1, -np.inf, np.inf, 3 * 2.0 ** 126, overflow="nonsat") == [0x81] + [0x80] * 4
    assert code("pow2int8", 0, -2, -np.inf, overflow="cuda-satfinite") == [0x81, 1, 0x7F]
    assert code("pow2int8", 0, 1e-300, -1, overflow="ml_dtypes") == [0x80, 0x81, 0x80]
    assert code("pow2int3", 0.01, 11.9, 12, 0) == [5, 3, 3, 5]
    assert code("pow2int3", 11.9, 12, overflow="nonsat") == [3, 4]


def test_posits_round_on_the_bit_string():
    """Where exponent bits are cut off the boundary is geometric: between 2^20 and 2^24 it is 2^22."""
    x = np.float64([2 ** 22 - 1, 2 ** 22, 2 ** 22 + 1])
    assert refq.encode(x, "posit8").tolist() == [0x7E, 0x7E, 0x7F]


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("rounding", ["rne", "rna"])
def test_integer_exponents_have_the_values_of_e8m0(rounding, overflow):
    """LIST-8: every 16-bit source word, and float32 at the boundaries, become the same value."""
    words_of = np.arange(1 << 16, dtype=np.uint16)
    sources = [(FORMATS["binary16"], words_of), (FORMATS["bfloat16"], words_of),
               (F32, coverage.boundary(F32, FORMATS["e8m0"])), (F64, coverage.boundary(F64, FORMATS["e8m0"]))]
    for source, x in sources:
        biased = codec.convert(x, source, "e8m0", rounding, overflow)
        plain = codec.convert(x, source, "pow2int8", rounding, overflow)
        assert np.array_equal(plain, biased - np.uint8(127)), source.name       # NaN: 255 - 127 = 80


def test_exponents_for_scales():
    for bits in range(2, 9):
        row = refq.number_format(f"pow2int{bits}")
        values_of = refq.decode(row.exponent_codes.astype(np.uint8), row, np.float64)
        exponents = np.arange(row.lowest_exponent, row.highest_exponent + 1)
        assert np.array_equal(values_of, 2.0 ** exponents) and row.count_finite == exponents.size
        assert row.nan_codes == [1 << (bits - 1)] and not row.has_zero and row.code_of_one == 0
        assert (row.lowest, row.max) == (row.min_positive, 1 / row.min_positive) and row.precision == 1


@pytest.mark.parametrize("plain, biased", [
    (("e2m1_pow2int8_t32",), ("e2m1_e8m0_t32",)), (("mxint8_pow2int8_t32",), ("mxint8_e8m0_t32",)),
    (("tcast:int4", "int8_t32"), ("tcast:int4", "e8m0_t32"))])
def test_integer_exponents_as_scales(plain, biased):
    """Scales of -127 to 127 give what e8m0 gives; a tile with NaN has the scale code 80, one of zeros 81."""
    x = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    x *= np.float32([[1], [1e-38], [1e37], [2e-44], [1], [1]])
    x[4, :32], x[5, 3] = 0, np.nan
    one, other = (refq.quantize(x, refq.data_type(*names)) for names in (plain, biased))
    assert np.array_equal(one.codes, other.codes)
    assert np.array_equal(refq.dequantize(one), refq.dequantize(other), equal_nan=True)
    assert np.array_equal(one.scales, other.scales - np.uint8(127))
    assert one.scales[4, 0] == 0x81 and one.scales[5, 0] == 0x80
    assert np.isnan(refq.dequantize(one)[5, :32]).all()


def test_names():
    assert refq.number_format("POSIT8") is LISTED["posit8"]
    assert refq.number_format("normalfloat4") is LISTED["nf4"]
    assert refq.number_format("posit10") == Posit("posit10", 10, ref="Posit Standard 2022")
    assert refq.number_format("takum_log12").variant == "log" and refq.number_format("lns6f2").frac == 2
    assert refq.number_format("POW2INT5") == Exponent("pow2int5", 5, ref="by rule (LIST-8)")
    for spelling, name in (("pow2int08", "pow2int8"), ("posit08", "posit8"), ("lns08f3", "lns8f3"),
                           ("takum_log08", "takum_log8")):
        assert refq.number_format(spelling) is LISTED[name]
    assert refq.number_format("posit05").name == "posit5"
    for name in ("takum8", "takum16"):
        with pytest.raises(InputError, match=f"ambiguous.*takum_log{name[5:]}, takum_linear{name[5:]}"):
            refq.number_format(name)
    for name in ("posit2", "posit17", "takum_log17", "lns3f9", "lns16f0", "pow2int1", "pow2int9"):
        with pytest.raises(InputError, match="not allowed"):
            refq.number_format(name)


@pytest.mark.parametrize("name, rounding", [
    ("posit8", "rtz"), ("takum_log8", "rup"), ("hif8", "rtz"), ("nf4", "rto"), ("lns8f3", "rna"),
    ("pow2int8", "rtz")])
def test_other_roundings_are_refused(name, rounding):
    with pytest.raises(InputError, match=f"{name} has no rounding '{rounding}'"):
        refq.encode(np.float32([1]), name, rounding)
    with pytest.raises(InputError, match="has no rounding 'sra'"):
        refq.encode(np.float32([1]), name, "sra", random_bits=np.uint8([1]), random_width=8)


def test_dtypes_that_do_not_hold_the_values():
    for name, dtype in (("nf4", np.float16), ("takum_linear8", np.float32), ("takum_log8", np.float32),
                        ("posit16", np.float16)):
        with pytest.raises(InputError, match="not every value"):
            refq.decode(np.uint8([1]), name, dtype)
    half = refq.decode(np.uint8([1, 2]), "lns8f3", np.float16)
    assert half.tolist() == [float(np.float16(2 ** 0.125)), float(np.float16(2 ** 0.25))]


@pytest.mark.parametrize("wrong", [
    lambda: Codebook("x", (0.0, 1.0), tie="even"), lambda: Codebook("x", (1.0,)),
    lambda: Codebook("x", (0.0,) * 65537), lambda: Codebook("x", (0.0, float("inf"))), lambda: Posit("x", 2),
    lambda: Posit("x", 8, 4), lambda: Takum("x", 8, "square"), lambda: LNS("x", 8, 9),
    lambda: Exponent("x", 1), lambda: Exponent("x", 9)])
def test_impossible_rows(wrong):
    with pytest.raises(InputError):
        wrong()


def test_a_codebook_is_one_row():
    row = Codebook("mine", (0.0, -0.0, 1.0, -2.0, 4.0), tie="away", aka=("my_own",))
    with registered(row):
        assert refq.number_format("MY_OWN") is row and row.bits == 3
        assert refq.encode(np.float32([0.5, -1, 3, -0.1, 2.5]), "mine").tolist() == [2, 3, 4, 1, 4]
        assert refq.encode(np.float32([0.5, -1, 3]), "mine", "rup").tolist() == [2, 1, 4]
    assert "mine" not in LISTED


def coded(x, row, rounding="rne"):
    return both_ways(np.array(x, np.float64), row, rounding).tolist()


def test_equal_entries():
    """Of equal entries, 0 and -0 among them, the lowest code is taken (LIST-2)."""
    repeated = Codebook("repeated", (1.0, 0.0, 1.0, -1.0, 0.0, -1.0))
    assert coded([1, 0, -0.0, -1, 9, -9, 0.5, -0.1], repeated) == [0, 1, 1, 3, 0, 3, 1, 1]
    minus_first = Codebook("minus_first", (-0.0, 0.0, 1.0, -0.0))
    assert coded([0.0, -0.0, 0.1, -0.1, 1], minus_first) == [0, 0, 0, 0, 2]
    minus_last = Codebook("minus_last", (0.0, 1.0, -0.0, -0.0))
    assert coded([0.0, -0.0, 0.1, -0.1, 1], minus_last) == [0, 0, 0, 2, 1]
    assert np.signbit(refq.decode(np.uint8([0, 1, 2, 3]), minus_last)).tolist() == [False, False, True, True]
    assert coded([5, -5, 0], Codebook("zeros", (0.0, 0.0))) == [0, 0, 0]


def test_lists_without_zero():
    assert coded([0, -0.0, 0.1, -0.1, 2], Codebook("x", (-1.0, 1.0))) == [0, 0, 1, 0, 1]
    assert coded([0, 0.1, -0.1], Codebook("x", (-1.0, 1.0)), "rup") == [1, 1, 1]
    assert coded([0, 0.1, -0.1], Codebook("x", (-1.0, 1.0)), "rdn") == [0, 0, 0]
    assert coded([0, -9, 1.4, 9], Codebook("x", (2.0, 1.0))) == [1, 1, 1, 0]
    below = Codebook("x", (-2.0, -1.0))
    assert coded([0, -9, 9], below) == [1, 0, 1] and (below.emax, below.min_positive) == (1, None)


def test_every_minus_zero_is_told():
    """Of repeated entries only the first is encoded, but all are -0."""
    row = Codebook("minus", (0.0, -0.0, 1.0, -0.0, -2.0))
    told = [show.described(row, code) for code in range(5)]
    assert told == ["0x0 (0)", "0x1 (-0)", "0x2 (1)", "0x3 (-0)", "0x4 (-2)"]
    assert [explain.value_text(row, code) for code in (0, 1, 3, 5)] == ["0", "-0", "-0", "NaN"]
    assert explain.difference(row, 0, 3) == "has the wrong sign of zero"
    assert coverage.code_landmarks(row) == {0: "zero", 1: "minus zero", 2: "largest", 3: "minus zero",
                                            4: "least", 5: "NaN", 6: "NaN", 7: "NaN"}


@pytest.mark.parametrize("listed", [(-1.0, 1.0), (2.0, 1.0), (-2.0, -1.0), (-1.0, 0.0), (0.0, -0.0)])
def test_sets_of_lists_without_zero_or_without_positive_values(listed):
    row = Codebook("odd_list", listed)
    assert ("zero" in coverage.code_landmarks(row).values()) == (0.0 in listed)
    with registered(row):
        for name in ("decode/odd_list-f32/exact/codes", "encode/f32-odd_list/rne-sat/boundary"):
            assert len(sets.generate(name)) >= 2
    told = set(coverage.landmarks(F32, row).values()) & {"largest value", "smallest value"}
    assert bool(told) == (max(listed) > 0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.integers(-8, 8).map(float), st.just(-0.0), st.floats(-9, 9)),
                min_size=2, max_size=40),
       st.sampled_from(["lower", "toward-zero", "away"]), st.sampled_from(Codebook.roundings))
def test_any_codebook(listed, tie, rounding):
    row = Codebook("any", tuple(listed), tie)
    points = np.unique(listed)
    x = np.concatenate([points, (points[1:] + points[:-1]) / 2, [0, 5e-324, 1e300, np.inf, np.nan]])
    x = np.concatenate([x, np.nextafter(x, np.inf), np.nextafter(x, -np.inf), -x])
    for value, code in zip(x, both_ways(x, row, rounding)):
        assert code == oracle.encode(exactly(value), words(row), rounding), value


def test_a_codebook_of_65536_values():
    values_of = np.random.default_rng(0).permutation(np.arange(-30000, 35536)).astype(float) / 64
    row = Codebook("large", values_of)
    x = np.concatenate([values_of, values_of + 1 / 128, np.nextafter(values_of + 1 / 128, np.inf)])
    at = np.argsort(values_of)
    nearest = np.concatenate([values_of, values_of, values_of + 1 / 64])
    low = np.clip(nearest * 64 + 30000, 0, 65535).astype(int)
    assert np.array_equal(both_ways(x, row), at[low])
    assert np.array_equal(refq.decode(np.arange(65536), row), values_of.astype(np.float32))


def test_rows_made_on_the_fly_are_looked_up_by_what_they_say():
    def made(*values_of, **rest):
        return Codebook("made", values_of, **rest)

    one, other = made(0.0, 1.0, -2.0), made(np.float32(0), 1, -2)
    assert one == other and hash(one) == hash(other) and one != made(0.0, 1.0, -2.0, tie="away")
    assert fast.plan(F64, one, "rne", "sat") is fast.plan(F64, other, "rne", "sat")
    assert columns(one) is columns(other) and one != "made"
    zero, minus_zero = made(0.0, 1.0, -0.0), made(-0.0, 1.0, 0.0)       # equal numbers, other codes
    assert zero != minus_zero and (coded([-0.1], zero), coded([-0.1], minus_zero)) == ([2], [0])


def test_show():
    told = dict(show_cast("binary32", 0x3FA66666, "posit8").steps)
    assert told["boundaries"].endswith("1.1875 and 1.3125") and told["clauses"] == "LIST-4"
    assert dict(show_code(row_of("takum_log8"), 1))["code"] == "0x01 (sqrt(e)^(-239))"
    assert dict(show_code(row_of("bnb_fp4"), 8))["code"] == "0x8 (-0)"
    assert dict(show_code(row_of("pow2int8"), 0xFE))["code"] == "0xfe (0.25)"
    for x, clause, end in ((0xBF800000, "OVER-8", "nonsat makes it 0x80 (NaN)"), (0, "ZERO-2", "gives min"),
                           (0x40400000, "LIST-8", "ties up (pow2int8's own rule): 0x02 (4)")):
        told = show_cast("binary32", x, "pow2int8", overflow="nonsat")
        assert told.clauses == (clause,) and told.why.endswith(end)
    for name in LISTED:
        if LISTED[name].bits <= 8:
            assert all(show_code(LISTED[name], code) for code in range(1 << LISTED[name].bits))


def test_number_lines_and_failure_lines(tmp_path):
    assert number_line(SMALL, tmp_path / "lines.svg").stat().st_size > 1000
    for name in SMALL:
        judged = check(f"encode/f32-{name}/rne-sat/boundary", lambda codes: np.zeros(codes.size, np.uint8))
        assert judged.exit_code == 1 and f"refq show {name}" in judged.text() and "[LIST-" in judged.text()


def test_boundary_operands_are_complete():
    """Any two neighbouring float32 operands of the set with different codes are neighbouring words."""
    for name in SMALL:
        words_of = coverage.boundary(F32, row_of(name)).astype(np.int64)
        words_of = words_of[words_of < 0x7F800000]
        codes = codec.convert(words_of.astype(np.uint32), F32, row_of(name))
        jumps = codes[1:] != codes[:-1]
        assert (np.diff(words_of)[jumps] == 1).all(), name


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SMALL + BY_RULE), st.floats(width=64))
def test_any_double(name, x):
    row = row_of(name)
    assert int(refq.encode(np.float64(x), row)) == oracle.encode(exactly(x), words(row))


@settings(max_examples=100, deadline=None)
@given(st.integers(3, 12), st.floats(min_value=-1e6, max_value=1e6, width=32))
def test_any_size(bits, x):
    for name in (f"posit{bits}", f"takum_linear{bits}"):
        row = row_of(name)
        assert int(refq.encode(np.float32(x), row)) == oracle.encode(exactly(x), words(row))
