"""The policies by hand: what each rounding does to ties, what each overflow rule does at the edges.

The tables are typed from the standards and from what the libraries give (see spec/divergences.md); the oracle
judges everything between.
"""

from dataclasses import FrozenInstanceError, asdict, fields

import numpy as np
import pytest

import refq
from refq.errors import InputError
from refq.formats.policies import OVERFLOWS, ROUNDINGS, STOPS, Overflow, overflow_rule, rounding_rule
from refq.formats.show import overflow_clause
from refq.formats.values import SPECIALS

MINUS_NAN = np.uint64(0xFFF8 << 48).view(np.float64)
INF, NAN = np.inf, np.nan


def code(x, name, rounding="rne", overflow="sat"):
    return int(refq.encode(np.float64(x), name, rounding, overflow))


# --- roundings --------------------------------------------------------------------------------------------

NAMES = ("rne", "rna", "rnz", "rtz", "rup", "rdn", "rto")
# format, value, codes under rne rna rnz rtz rup rdn rto
TIES = [
    ("e4m3fn", 1.0625, 0x38, 0x39, 0x38, 0x38, 0x39, 0x38, 0x39),           # half way, even below
    ("e4m3fn", 1.1875, 0x3A, 0x3A, 0x39, 0x39, 0x3A, 0x39, 0x39),           # half way, odd below
    ("e4m3fn", -1.0625, 0xB8, 0xB9, 0xB8, 0xB8, 0xB8, 0xB9, 0xB9),
    ("e4m3fn", 1.0625 + 2 ** -40, 0x39, 0x39, 0x39, 0x38, 0x39, 0x38, 0x39),
    ("e4m3fn", 1.0625 - 2 ** -40, 0x38, 0x38, 0x38, 0x38, 0x39, 0x38, 0x39),
    ("e4m3fn", 1.125, 0x39, 0x39, 0x39, 0x39, 0x39, 0x39, 0x39),            # exact: never moves
    ("e4m3fn", 2.0 ** -10, 0x00, 0x01, 0x00, 0x00, 0x01, 0x00, 0x01),       # half the smallest subnormal
    ("e4m3fn", -(2.0 ** -10), 0x80, 0x81, 0x80, 0x80, 0x80, 0x81, 0x81),
    ("e4m3fn", 1e-300, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x01),
    ("e4m3fn", 1.9375, 0x40, 0x40, 0x3F, 0x3F, 0x40, 0x3F, 0x3F),           # carries into the next binade
    ("e4m3fn", 2.0 ** -6 * 0.9375, 0x08, 0x08, 0x07, 0x07, 0x08, 0x07, 0x07),       # and into the normals
    ("e2m1", 0.25, 0, 1, 0, 0, 1, 0, 1),
    ("e2m1", 1.25, 2, 3, 2, 2, 3, 2, 3),
    ("e2m1", 2.5, 4, 5, 4, 4, 5, 4, 5),
    ("e2m1", 5.0, 6, 7, 6, 6, 7, 6, 7),
    ("e2m1", -5.0, 14, 15, 14, 14, 14, 15, 15),
    ("int4", 2.5, 2, 3, 2, 2, 3, 2, 3),
    ("int4", -2.5, 14, 13, 14, 14, 14, 13, 13),
    ("int4", 3.5, 4, 4, 3, 3, 4, 3, 3),
    ("uint4", 0.5, 0, 1, 0, 0, 1, 0, 1),
    ("mxint8", 1 / 128, 0, 1, 0, 0, 1, 0, 1),
    ("e8m0", 1.5, 0x80, 0x80, 0x7F, 0x7F, 0x80, 0x7F, 0x7F),                # precision 1: E8M0's tie goes up
    ("e8m0", 3.0, 0x81, 0x81, 0x80, 0x80, 0x81, 0x80, 0x81),
    ("binary8p1uf", 1.5, 0x80, 0x81, 0x80, 0x80, 0x81, 0x80, 0x81),         # P3109's to the even code
    ("binary8p1uf", 3.0, 0x82, 0x82, 0x81, 0x81, 0x82, 0x81, 0x81),
]


@pytest.mark.parametrize("row", TIES, ids=lambda row: f"{row[0]} {row[1]!r}")
def test_ties(row):
    name, x, *codes = row
    assert [code(x, name, rounding) for rounding in NAMES] == codes


def test_the_table_of_roundings():
    assert tuple(ROUNDINGS) == (*NAMES, "sra", "srb", "src")
    for name, rule in ROUNDINGS.items():
        assert rule.name == name and rule.words and rule.clause.startswith("ROUND-")
        assert rule.stochastic == name.startswith("sr") and rounding_rule(name) is rule


# --- overflow rules ---------------------------------------------------------------------------------------

RULES = ("sat nonsat ieee satfinite satpropagate satnone satnone-main satsym cuda-satfinite cuda-nosat "
         "cutlass ml_dtypes torch-2.8 torch-2.15 onnx-sat onnx-sat-19 onnx-nosat").split()
# Rules that leave the range for NaN or infinity; that drop the sign for unsigned targets; that give NaN there
LEAVE = "nonsat ieee satnone-main cuda-nosat ml_dtypes torch-2.8 onnx-nosat"
DROP_SIGN = "cuda-satfinite cuda-nosat cutlass torch-2.8 torch-2.15 onnx-sat onnx-sat-19 onnx-nosat"
REFUSE = "nonsat ieee satnone satnone-main ml_dtypes"

# format, operand, the code under every rule but those that follow: {code: rules}
EDGES = [
    ("e4m3fn", 464.0, 0x7E, {}),                            # the tie at the threshold still rounds down
    ("e4m3fn", 465.0, 0x7E, {0x7F: LEAVE}),
    ("e4m3fn", -465.0, 0xFE, {0x7F: "nonsat satnone-main cuda-nosat onnx-nosat",
                              0xFF: "ieee ml_dtypes torch-2.8"}),
    ("e4m3fn", INF, 0x7E, {0x7F: LEAVE}),
    ("e4m3fn", NAN, 0x7F, {}),
    ("e4m3fn", MINUS_NAN, 0x7F, {0xFF: "ieee ml_dtypes torch-2.8 torch-2.15"}),
    ("e4m3fn", -0.0, 0x80, {}),
    ("e4m3fn", -1e-9, 0x80, {}),
    ("e5m2", 61439.0, 0x7B, {}),
    ("e5m2", 61440.0, 0x7B, {0x7C: LEAVE + " satnone torch-2.15"}),
    ("e5m2", -INF, 0xFB, {0xFC: LEAVE + " satnone satpropagate torch-2.15"}),
    ("e5m2", NAN, 0x7E, {0x7F: "cuda-satfinite cuda-nosat cutlass torch-2.8 torch-2.15"}),
    ("e5m2", MINUS_NAN, 0x7E, {0x7F: "cuda-satfinite cuda-nosat cutlass", 0xFF: "torch-2.8 torch-2.15",
                               0xFE: "ieee ml_dtypes"}),
    ("e4m3fnuz", 248.0, 0x7F, {0x80: LEAVE + " torch-2.15"}),
    ("e4m3fnuz", -INF, 0xFF, {0x80: LEAVE + " torch-2.15 onnx-sat-19"}),
    ("e4m3fnuz", MINUS_NAN, 0x80, {}),
    ("e4m3fnuz", -0.0, 0x00, {}),
    ("e4m3fnuz", -1e-9, 0x00, {}),
    ("e2m1", 1e30, 7, {}),
    ("e2m1", -INF, 15, {}),
    ("e2m1", NAN, 7, {8: "ml_dtypes"}),
    ("e2m1", MINUS_NAN, 7, {15: "cutlass", 0: "ml_dtypes"}),
    ("e3m2", MINUS_NAN, 0x1F, {0x3F: "cutlass", 0x00: "ml_dtypes"}),
    ("e8m0", 0.0, 0x00, {0xFF: "ml_dtypes"}),
    ("e8m0", 1e-60, 0x00, {}),
    ("e8m0", -1.0, 0x00, {0xFF: REFUSE, 0x7F: DROP_SIGN}),
    ("e8m0", -INF, 0x00, {0xFF: REFUSE + " cuda-nosat torch-2.8 torch-2.15 onnx-nosat",
                          0xFE: "cuda-satfinite cutlass onnx-sat onnx-sat-19"}),
    ("e8m0", 1.5 * 2.0 ** 127, 0xFE, {0xFF: LEAVE + " torch-2.15"}),
    ("e8m0", NAN, 0xFF, {}),
    ("ue4m3", -1.0, 0x00, {0x7F: REFUSE, 0x38: DROP_SIGN}),
    ("ue4m3", -1e-9, 0x00, {}),
    ("ue4m3", -0.0, 0x00, {}),
    ("int8", 1e9, 0x7F, {}),
    ("int8", INF, 0x7F, {}),
    ("int8", -1e9, 0x80, {0x81: "satsym"}),
    ("int8", -128.0, 0x80, {0x81: "satsym"}),
    ("int8", -127.6, 0x80, {0x81: "satsym"}),
    ("int8", NAN, 0x00, {}),
    ("int8", -0.0, 0x00, {}),
    ("smint8", -0.0, 0x80, {}),
    ("smint8", -1e9, 0xFF, {}),
    ("uint8", 300.0, 0xFF, {}),
    ("uint8", -5.0, 0x00, {0x05: DROP_SIGN}),
    ("binary8p4se", 1e9, 0x7E, {0x7F: LEAVE + " satnone torch-2.15"}),
    ("binary8p4se", INF, 0x7E, {0x7F: LEAVE + " satnone satpropagate torch-2.15"}),
    ("binary8p4sf", 1e9, 0x7F, {0x80: LEAVE + " torch-2.15"}),
]


@pytest.mark.parametrize("name, x, default, others", EDGES, ids=lambda part: str(part)[:16])
def test_edges(name, x, default, others):
    named = {rule: other for other, rules in others.items() for rule in rules.split()}
    assert set(named) <= set(RULES) and len(named) == sum(len(rules.split()) for rules in others.values())
    got = {rule: code(x, name, overflow=rule) for rule in RULES}
    assert got == {rule: named.get(rule, default) for rule in RULES}


# Directed roundings at the largest value: (rule, format, value), codes under rne rtz rup rdn rto
STOPPING = [
    ("ieee", "e5m2", 1e6, (0x7C, 0x7B, 0x7C, 0x7B, 0x7B)),
    ("ieee", "e5m2", -1e6, (0xFC, 0xFB, 0xFB, 0xFC, 0xFB)),
    ("ieee", "e5m2", INF, (0x7C, 0x7C, 0x7C, 0x7C, 0x7C)),                  # an infinite source never stops
    ("ieee", "e4m3fn", 1e6, (0x7F, 0x7E, 0x7F, 0x7E, 0x7E)),
    ("ieee", "ue5m3", -1.0, (0xFF, 0x00, 0x00, 0xFF, 0x00)),
    ("nonsat", "e5m2", 1e6, (0x7C,) * 5),
    ("sat", "e5m2", 1e6, (0x7B,) * 5),
    ("satnone", "binary8p4se", 1e6, (0x7F, 0x7E, 0x7F, 0x7E, 0x7F)),
    ("satnone", "binary8p4se", -1e6, (0xFF, 0xFE, 0xFE, 0xFF, 0xFF)),
    ("satnone", "binary8p4ue", 1e6, (0xFE, 0xFD, 0xFE, 0xFD, 0xFD)),        # to odd stops: unsigned extended
    ("satnone-main", "binary8p4ue", 1e6, (0xFE, 0xFD, 0xFE, 0xFD, 0xFE)),
    ("satnone", "binary8p4ue", -1.0, (0xFF, 0x00, 0x00, 0xFF, 0xFF)),
    ("satnone", "binary8p4uf", 1e6, (0xFE,) * 5),
    ("satnone-main", "binary8p4uf", 1e6, (0xFF, 0xFE, 0xFF, 0xFE, 0xFF)),
    ("cuda-nosat", "e5m2", 1e6, (0x7C,) * 5),
]


@pytest.mark.parametrize("rule, name, x, codes", STOPPING)
def test_directed_roundings_at_the_largest_value(rule, name, x, codes):
    assert tuple(code(x, name, rounding, rule) for rounding in ("rne", "rtz", "rup", "rdn", "rto")) == codes


# NaN payloads under the ieee rule: binary32 bits, target, code (top bits kept, quiet bit set, sign kept)
PAYLOADS = [
    (0x7FC00000, "binary16", 0x7E00), (0x7F800001, "binary16", 0x7E00), (0x7FC02000, "binary16", 0x7E01),
    (0xFFFFFFFF, "binary16", 0xFFFF), (0x7FA00000, "e5m2", 0x7F), (0xFF800001, "bfloat16", 0xFFC0),
    (0x7F810000, "bfloat16", 0x7FC1), (0x7FC00001, "binary64", 0x7FF8000020000000),
    (0x7FFFFFFF, "e4m3fn", 0x7F), (0xFFC00001, "e4m3ieee", 0xFC), (0x7FF00000, "e4m3ieee", 0x7F),
    (0xFFC00000, "binary8p4se", 0x80)]


@pytest.mark.parametrize("bits, name, want", PAYLOADS)
def test_payloads(bits, name, want):
    x = np.array([bits], np.uint32).view(np.float32)
    assert refq.encode(x, name, overflow="ieee").tolist() == [want]
    nan = int(refq.number_format(name).layout.nan)
    assert refq.encode(x, name).tolist() == [nan]           # the default writes the quiet NaN, positive


# --- the table itself -------------------------------------------------------------------------------------

WORDS = {"above": {"inf", "nan", "max"}, "infinite": {"inf", "nan", "max"},
         "nan": {"nan", "+max", "signed-max", "zero", "opposite-zero"}, "nan_int": {"zero", "max", "min"},
         "nan_code": {"quiet", "ones", "signed-quiet", "signed-ones", "payload"}, "stop": set(STOPS),
         "negative": {"magnitude", "max", "nan"}, "zero": {"min", "nan"}, "lowest": {"full", "symmetric"}}


def test_every_promised_rule_is_there():
    assert set(RULES) <= set(OVERFLOWS)
    assert set(OVERFLOWS) - set(RULES) == {"torch-2.15-fn", "onnx-sat-19-fnuz"}     # where exceptions lead


@pytest.mark.parametrize("name", OVERFLOWS)
def test_rules_are_made_of_known_words(name):
    rule = OVERFLOWS[name]
    assert rule.name == name and rule.ref and overflow_clause(name).startswith("OVER-")
    for word, allowed in WORDS.items():
        said = getattr(rule, word)
        assert said and set([said] if isinstance(said, str) else said) <= allowed, word
    assert set(WORDS) | {"name", "exceptions", "ref"} == {entry.name for entry in fields(Overflow)}
    for special, other in rule.exceptions:
        assert special in SPECIALS and other in OVERFLOWS and not OVERFLOWS[other].exceptions
        assert overflow_rule(name, special) is OVERFLOWS[other]
    assert overflow_rule(name, "no such special") is rule and overflow_rule(name) is rule


def test_stops_name_roundings():
    for rules in STOPS.values():
        assert len(rules) == 3 and set().union(*rules) <= set(NAMES)


def test_the_default_is_the_first_rule():
    assert next(iter(OVERFLOWS)) == "sat" and next(iter(ROUNDINGS)) == "rne"
    x = np.array([1e9, -1e9, 1.0625, NAN, -0.0])
    assert np.array_equal(refq.encode(x, "e4m3fn"), refq.encode(x, "e4m3fn", "rne", "sat"))
    assert refq.encode(x, "e4m3fn").tolist() == [0x7E, 0xFE, 0x38, 0x7F, 0x80]


@pytest.mark.parametrize("look_up, name", [
    (rounding_rule, "RNE"), (rounding_rule, ""), (rounding_rule, None), (overflow_rule, "SAT"),
    (overflow_rule, "saturate"), (overflow_rule, None)])
def test_unknown_rules_list_what_is_allowed(look_up, name):
    with pytest.raises(InputError) as refusal:
        look_up(name)
    known = ROUNDINGS if look_up is rounding_rule else OVERFLOWS
    assert all(word in str(refusal.value) for word in known) and repr(name) in str(refusal.value)


def test_rules_are_frozen_plain_data():
    with pytest.raises(FrozenInstanceError):
        OVERFLOWS["sat"].lowest = "symmetric"
    assert Overflow(**asdict(OVERFLOWS["torch-2.15"])) == OVERFLOWS["torch-2.15"]
