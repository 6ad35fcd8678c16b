"""Explanations: every sentence about a cast must be true, whatever the formats, the rounding and the rule."""

import re
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

import refq
from refq.errors import InputError
from refq.formats import show, values
from refq.formats.policies import OVERFLOWS, ROUNDINGS
from refq.formats.rows import FORMATS
from refq.vectors import coverage

F32 = FORMATS["binary32"]


# --- numbers --------------------------------------------------------------------------------------

@pytest.mark.parametrize("value, text", [
    (Fraction(0), "0"), (Fraction(448), "448"), (Fraction(-3), "-3"), (Fraction(1, 8), "0.125"),
    (Fraction(-5, 4), "-1.25"), (Fraction(2) ** 40, "1 * 2^40"), (Fraction(3, 2 ** 20), "3 * 2^-20"),
    (Fraction(123456789), "123456789"), (Fraction(10 ** 9), "1953125 * 2^9"), (Fraction(1, 3), "1/3"),
    (Fraction(-10, 3), "-10/3"), (Fraction(1, 2 ** 16), "0.0000152587890625"),
    ("nan", "NaN"), ("inf", "+Inf"), ("-inf", "-Inf")])
def test_number(value, text):
    assert show.number(value) == text
    if isinstance(value, Fraction) and "^" not in text:
        assert Fraction(text) == value


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e8m0", "binary16", "mxint8", "uint8", "binary8p1uf"])
def test_numbers_stay_exact(name):
    row = FORMATS[name]
    for code in range(0, 1 << row.width, 1 if row.width <= 8 else 37):
        value = values.exact(row, code)
        if not isinstance(value, str):
            assert exactly(show.number(value)) == exactly(show.dyadic(value)) == value


def exactly(text):
    """The value of `a * 2^b`, a decimal or an integer."""
    factor, _, exponent = text.partition(" * 2^")
    return Fraction(factor) * Fraction(2) ** int(exponent or 0)


# --- codes ----------------------------------------------------------------------------------------

# format, code, some of its lines
CODES = [
    ("e4m3fn", 0x7E, {"code": "0x7e (448)", "class": "normal", "exact": "7 * 2^6",
                      "fields": "0 1111 110   (sign | exponent, bias 7 | significand)",
                      "hex float": "0x1.c000000000000p+8", "next below": "0x7d (416)",
                      "next above": "none: the largest value"}),
    ("e4m3fn", 0x01, {"class": "subnormal", "exact": "1 * 2^-9", "next below": "0x00 (0)",
                      "next above": "0x02 (0.00390625)"}),
    ("e4m3fn", 0x80, {"code": "0x80 (-0)", "class": "zero", "next below": "0x81 (-0.001953125)",
                      "next above": "0x01 (0.001953125)"}),
    ("e4m3fn", 0xFF, {"code": "0xff (NaN)", "class": "NaN",
                      "fields": "1 1111 111   (sign | exponent, bias 7 | significand)"}),
    ("e4m3fn", 0xFE, {"next below": "none: the least value", "next above": "0xfd (-416)"}),
    ("e5m2", 0xFC, {"code": "0xfc (-Inf)", "class": "infinity"}),
    ("e4m3fnuz", 0x00, {"code": "0x00 (0)", "next below": "0x81 (-0.0009765625)"}),
    ("e8m0", 0x00, {"code": "0x00 (1 * 2^-127)", "class": "normal", "next below": "none: the least value",
                    "fields": "00000000   (exponent, bias 127)"}),
    ("int8", 0x80, {"code": "0x80 (-128)", "class": "integer", "next below": "none: the least value",
                    "next above": "0x81 (-127)", "fields": "10000000   (two's complement)"}),
    ("smint4", 0x9, {"code": "0x9 (-1)", "next above": "0x0 (0)", "fields": "1001   (sign and magnitude)"}),
    ("uint4", 0x0, {"next below": "none: the least value", "next above": "0x1 (1)",
                    "fields": "0000   (unsigned)"}),
    ("mxint8", 0xFF, {"code": "0xff (-0.015625)", "class": "integer * 2^-6"}),
    ("tf32", 0x3F800000, {"code": "0x3f800000 (1)", "next above": "0x3f802000 (1.0009765625)",
                          "fields": "0 01111111 0000000000 0000000000000   (sign | exponent, bias 127 | "
                                    "significand | padding)"}),
    ("binary16", 0x3C00, {"code": "0x3c00 (1)", "next above": "0x3c01 (1.0009765625)"}),
]


@pytest.mark.parametrize("name, code, lines", CODES)
def test_show_code(name, code, lines):
    told = dict(show.show_code(FORMATS[name], code))
    assert {label: told.get(label) for label in lines} == lines
    assert ("exact" in told) == (told["class"] not in ("NaN", "infinity"))


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if row.width <= 8])
def test_neighbours_are_the_values_next_to_it(name):
    row = FORMATS[name]
    everything = {values.exact(row, code) for code in range(1 << row.width)}
    line = sorted(value for value in everything if not isinstance(value, str))
    for code in range(1 << row.width):
        value, told = values.exact(row, code), dict(show.show_code(row, code))
        if isinstance(value, str):
            continue
        place = line.index(value)
        for label, at in (("next below", place - 1), ("next above", place + 1)):
            if 0 <= at < len(line):
                assert exactly(re.search(r"\((.*)\)", told[label])[1]) == line[at]
            else:
                assert told[label].startswith("none")


@pytest.mark.parametrize("name", FORMATS)
def test_fields_are_the_bits(name):
    row = FORMATS[name]
    for code in (0, 1, (1 << row.width) - 1, int("10" * row.width, 2) & ((1 << row.width) - 1)):
        told = show.fields(row, code)
        assert told.replace(" ", "") == f"{code:0{row.width}b}"
        if row.is_float:
            sizes = [size for size in (row.signed, row.exp, row.man, row.pad) if size]
            assert [len(part) for part in told.split()] == sizes


@pytest.mark.parametrize("name, code", [("e2m1", 16), ("e4m3fn", 256), ("e4m3fn", -1), ("tf32", 1 << 32)])
def test_codes_out_of_range(name, code):
    with pytest.raises(InputError, match=f"is not a {name} code; allowed are 0 to"):
        show.show_code(FORMATS[name], code)


# --- casts: every sentence is checked against the exact value -------------------------------------

TARGETS = ["e4m3fn", "e5m2", "e4m3fnuz", "e2m1", "e8m0", "ue4m3", "binary8p1uf", "binary8p3se", "int4",
           "uint4", "mxint8", "smint3", "int1"]
POLICIES = [("rne", "sat"), ("rna", "nonsat"), ("rtz", "ieee"), ("rup", "satnone"), ("rdn", "cuda-satfinite"),
            ("rto", "ml_dtypes"), ("rnz", "torch-2.15"), ("rne", "satsym"), ("rup", "onnx-sat-19")]


@cache
def operands(name):
    words = coverage.boundary(F32, FORMATS[name])
    chosen = np.concatenate([coverage.special(F32, FORMATS[name]), words[:: max(1, words.size // 80)]])
    return np.unique(chosen).tolist()


@pytest.mark.parametrize("rounding, overflow", POLICIES)
@pytest.mark.parametrize("name", TARGETS)
def test_every_sentence_is_true(name, rounding, overflow):
    row, turn = FORMATS[name], POLICIES.index((rounding, overflow))
    for word in operands(name)[turn % 4 :: 4]:          # each policy a quarter: together all, twice
        cast = show.show_cast("f32", word, name, rounding, overflow)
        value, told = values.exact(F32, word), dict(cast.steps)
        where = f"{word:#x} {value} {cast}"
        assert cast.code == refq.convert(np.uint32([word]), "f32", name, rounding, overflow)[0], where
        assert told["source"] == f"binary32 {show.described(F32, word)}"
        assert told["result"] == f"{row.name} {show.described(row, cast.code)}"
        assert told["because"] == cast.why and told["clauses"] == ", ".join(cast.clauses)
        assert cast.clauses and all(re.fullmatch("(VAL|ROUND|OVER|NAN|ZERO)-[1-8]", c) for c in cast.clauses)
        assert len(set(cast.clauses)) == len(cast.clauses), where
        check(row, value, cast, told, where)


def check(row, value, cast, told, where):
    """What the sentence claims, tested on exact values."""
    result = values.exact(row, cast.code)
    assert ("between" in told) <= (not isinstance(value, str) and value != 0), where
    if "between" in told:
        low, high, half = (abs(exactly(part)) for part in re.split(" and |, half way ", told["between"]))
        assert low < abs(value) < high and half == (low + high) / 2, where
        signs = re.findall(r"(?<!\^)-", told["between"])
        assert (half - low) * 2 == high - low and len(signs) == 3 * (value < 0), where
        side = "exactly" if abs(value) == half else "below" if abs(value) < half else "above"
        if "half way;" in cast.why:
            assert cast.why.startswith(f"{side} half way") and abs(result) in (low, high), where
    if "exact in the target" in cast.why:
        assert result == value and "between" not in told, where
    if "largest value" in cast.why or "least value" in cast.why:
        limit = row.max if value > 0 else -row.max if "satsym" in cast.why else row.lowest
        assert exactly(re.search(r"value (\S+( \* 2\^\S+)?):", cast.why)[1]) == limit, where
        assert result == limit or isinstance(result, str), where
        assert "OVER-1" in cast.clauses, where
    if "there is no zero: the smallest value" in cast.why:
        assert not row.has_zero and result == row.min_positive > abs(value), where
    if "negative into an unsigned format" in cast.why:
        assert value < 0 and not row.signed, where
    if "zero" in cast.why.split()[0]:
        assert value == 0, where
    if "NaN" in cast.why.split()[0]:
        assert value == "nan", where
    if "infinite source" in cast.why:
        assert value in ("inf", "-inf"), where


# typed by hand: source value, target, rounding, overflow -> code, sentence, clauses
SENTENCES = [
    (464.0, "e4m3fn", "rne", "sat", 0x7E, "exactly half way; to nearest, ties to even takes 0x7e (448)",
     ("ROUND-2",)),
    (465.0, "e4m3fn", "rne", "sat", 0x7E, "to nearest, ties to even gives 480, beyond the largest value 448: "
     "sat makes it 0x7e (448)", ("ROUND-2", "OVER-1", "OVER-2")),
    (1e6, "e5m2", "rtz", "ieee", 0x7B, "beyond the largest value 57344: ieee makes it 0x7b (57344)",
     ("ROUND-3", "OVER-1", "OVER-5")),
    (1e9, "int8", "rne", "sat", 0x7F, "beyond the largest value 127: sat makes it 0x7f (127)",
     ("ROUND-2", "OVER-1", "OVER-2")),
    (300.25, "uint8", "rne", "sat", 0xFF, "beyond the largest value 255: sat makes it 0xff (255)",
     ("ROUND-2", "OVER-1", "OVER-2")),
    (-128.0, "int8", "rne", "satsym", 0x81, "beyond the least value -127: satsym makes it 0x81 (-127)",
     ("ROUND-2", "OVER-1", "OVER-7")),
    (-127.75, "int8", "rne", "satsym", 0x81, "to nearest, ties to even gives -128, beyond the least value "
     "-127: satsym makes it 0x81 (-127)", ("ROUND-2", "OVER-1", "OVER-7")),
    (1.5, "e8m0", "rne", "sat", 0x80, "exactly half way; with one significant bit the tie goes up: 0x80 (2)",
     ("ROUND-2", "ROUND-6")),
    (1.5, "binary8p1uf", "rne", "sat", 0x80, "exactly half way; with one significant bit the tie goes to the "
     "even code: 0x80 (1)", ("ROUND-2", "ROUND-6")),
    (0.25, "e4m3fn", "rne", "sat", 0x28, "the value is exact in the target", ("VAL-2",)),
    (-0.0, "e4m3fnuz", "rne", "sat", 0x00, "zero stays zero; the target has only +0", ("ZERO-1",)),
    (0.0, "e8m0", "rne", "ml_dtypes", 0xFF, "zero into a format without zero: ml_dtypes gives nan",
     ("ZERO-2",)),
    (-1.0, "ue4m3", "rne", "cuda-nosat", 0x38, "negative into an unsigned format: cuda-nosat drops the sign "
     "before rounding", ("OVER-8",)),
    (-1.0, "ue4m3", "rne", "nonsat", 0x7F, "negative into an unsigned format: nonsat makes it 0x7f (NaN)",
     ("OVER-8",)),
    (np.nan, "int8", "rne", "sat", 0x00, "NaN into an integer format: sat gives zero", ("NAN-3",)),
    (np.nan, "e2m1", "rne", "sat", 0x7, "NaN into a format without NaN: sat gives +max", ("NAN-2",)),
    (np.nan, "e5m2", "rne", "cuda-nosat", 0x7F, "NaN stays NaN; cuda-nosat writes the ones code", ("NAN-1",)),
    (np.inf, "e5m2", "rne", "sat", 0x7B, "an infinite source under sat", ("OVER-2",)),
]


@pytest.mark.parametrize("x, name, rounding, overflow, code, why, clauses", SENTENCES)
def test_sentences(x, name, rounding, overflow, code, why, clauses):
    word = int(np.float32(x).view(np.uint32))
    cast = show.show_cast("binary32", word, name, rounding, overflow)
    assert (cast.code, cast.why, cast.clauses) == (code, why, clauses)


def test_integers_have_the_same_step_everywhere():
    """No exponent, so no growing gaps beyond the range either."""
    cast = show.show_cast("binary32", int(np.float32(100_000.25).view(np.uint32)), "int8")
    assert dict(cast.steps)["between"] == "100000 and 100001, half way 100000.5"


@pytest.mark.parametrize("rounding", [name for name, rule in ROUNDINGS.items() if rule.stochastic])
def test_stochastic_casts(rounding):
    word = int(np.float32(1.05).view(np.uint32))
    down, up = (show.show_cast("f32", word, "e4m3fn", rounding, "sat", bits, 4) for bits in (0, 15))
    assert (down.code, up.code) == (0x38, 0x39) and up.clauses == ("ROUND-5",)
    assert up.why == f"below half way; {ROUNDINGS[rounding].words} takes 0x39 (1.125)"
    with pytest.raises(InputError, match="needs random_bits"):
        show.show_cast("f32", word, "e4m3fn", rounding)


def test_every_overflow_rule_has_a_clause():
    assert {show.overflow_clause(name) for name in OVERFLOWS} == {f"OVER-{n}" for n in (2, 3, 4, 5, 6, 7)}


@pytest.mark.parametrize("arguments, words", [
    (("e4m3", 0, "e5m2"), "ambiguous"), (("e5m2", 0, "e4m3"), "ambiguous"),
    (("e5m2", 0, "e4m3fn", "up"), "rounding 'up'"),
    (("e5m2", 0, "e4m3fn", "rne", "no"), "overflow rule 'no'"),
    (("e5m2", 256, "e4m3fn"), "0x100 is not a e5m2 code"), (("e5m2", -1, "e4m3fn"), "is not a e5m2 code")])
def test_show_cast_refuses_what_encode_refuses(arguments, words):
    with pytest.raises(InputError, match=words):
        show.show_cast(*arguments)


# --- values a person types, as codes of a source --------------------------------------------------

@pytest.mark.parametrize("name", ["binary32", "binary16", "bfloat16", "e4m3fn", "e2m1", "int8", "uint4",
                                  "e8m0", "mxint8", "tf32"])
def test_source_codes_of_own_values(name):
    row = FORMATS[name]
    for code in range(0, 1 << row.width, max(1, (1 << row.width) // 997)):
        code = code >> row.layout.pad << row.layout.pad
        value = values.exact(row, code)
        if not isinstance(value, str):
            got, note = show.source_code(row, value)
            assert values.exact(row, got) == value and note == []


@pytest.mark.parametrize("name", ["binary32", "binary16", "e5m2", "int8"])
def test_source_codes_are_the_nearest(name):
    """Against the codec, from float64, for values that the source does not hold."""
    row, rng = FORMATS[name], np.random.default_rng(0)
    for x in (rng.standard_normal(200) * np.exp2(rng.integers(-30, 6, 200))).tolist():
        got, note = show.source_code(row, Fraction(x))
        assert got == int(refq.encode(np.float64(x), row)) or values.exact(row, got) == 0
        assert bool(note) == (values.exact(row, got) != Fraction(x))


@pytest.mark.parametrize("text, name, code, note", [
    ("1/3", "binary32", 0x3EAAAAAB, "11184811 * 2^-25, the nearest binary32"),
    ("0.1", "binary16", 0x2E66, "0.0999755859375, the nearest binary16"),
    ("-1/3", "int8", 0x00, "0, the nearest int8"),
    ("1e-60", "binary32", 0x0, "0, the nearest binary32"),
    ("0", "e8m0", 0x0, "1 * 2^-127, the nearest e8m0"),
    ("0", "e4m3fn", 0x0, None),
    ("65519", "binary16", 0x7BFF, "65504, the nearest binary16"),
])
def test_source_codes_say_what_they_took(text, name, code, note):
    got, notes = show.source_code(FORMATS[name], Fraction(text))
    assert got == code and notes == ([("taken as", note)] if note else [])


@pytest.mark.parametrize("value, name, words", [
    (Fraction(65520), "binary16", "65520 is outside the range of the source format binary16"),
    (Fraction("1e39"), "binary32", r"1e\+39 is outside the range of the source format binary32"),
    (Fraction(10) ** 400, "binary64", "is outside the range of the source format binary64"),
    (-Fraction(10) ** 400, "binary32", "is outside the range of the source format binary32"),
    (Fraction(-1, 3), "ue4m3", "-0.333333 is outside the range of the source format ue4m3"),
    (Fraction(-1), "uint8", "-1 is outside the range"),
    (Fraction(200), "int8", "200 is outside the range"),
    (np.inf, "e2m1", r"the source format e2m1 has no \+Inf"),
    (-np.inf, "e4m3fn", "the source format e4m3fn has no -Inf"),
    (np.nan, "int8", "the source format int8 has no NaN"),
    (np.nan, "e3m2", "the source format e3m2 has no NaN"),
])
def test_values_that_a_source_does_not_have(value, name, words):
    with pytest.raises(InputError, match=words):
        show.source_code(FORMATS[name], value)


def test_special_source_codes():
    assert show.source_code(FORMATS["binary32"], np.inf) == (0x7F800000, [])
    assert show.source_code(FORMATS["e5m2"], -np.inf) == (0xFC, [])
    assert show.source_code(FORMATS["binary32"], np.nan) == (0x7FC00000, [])
    assert show.source_code(FORMATS["binary32"], -0.0) == (0x80000000, [])
    assert show.source_code(FORMATS["e4m3fnuz"], -0.0) == (0, [])
