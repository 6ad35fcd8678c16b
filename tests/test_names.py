"""Names: every spelling in use leads to one row, what is ambiguous is refused with the candidates."""

import re

import ml_dtypes
import numpy as np
import onnx
import pytest

import refq
from refq.errors import InputError
from refq.formats.names import AMBIGUOUS, aliases
from refq.formats.rows import FORMATS, LISTED, Float, Int, p3109

# row: spellings of ml_dtypes, ONNX, MLIR, torch, CUDA and the papers
SPELLINGS = {
    "binary64": ["float64", "f64", "fp64", "double", "torch.float64", "BINARY64"],
    "binary32": ["float32", "f32", "fp32", "float", "Float32"],
    "binary16": ["float16", "f16", "fp16", "half", "FLOAT16"],
    "bfloat16": ["bf16", "e8m7", "ml_dtypes.bfloat16", "torch.bfloat16", "BFLOAT16", "bf16 "],
    "tf32": ["tensorfloat32", "tfloat32", "TF32"],
    "e5m2": ["float8_e5m2", "f8E5M2", "TensorProto.FLOAT8E5M2", "bf8", "fp8_e5m2", "torch.float8_e5m2"],
    "e4m3fn": ["float8_e4m3fn", "f8E4M3FN", "FLOAT8E4M3FN", "hf8", "fp8_e4m3", "ofp8_e4m3", "E4M3FN"],
    "e4m3ieee": ["float8_e4m3", "f8E4M3"],
    "e3m4": ["float8_e3m4", "f8E3M4"],
    "e4m3fnuz": ["float8_e4m3fnuz", "f8E4M3FNUZ", "FLOAT8E4M3FNUZ"],
    "e5m2fnuz": ["float8_e5m2fnuz", "f8E5M2FNUZ", "torch.float8_e5m2fnuz"],
    "e4m3b11fnuz": ["float8_e4m3b11fnuz", "f8E4M3B11FNUZ", "float8_e4m3b11"],
    "e3m2": ["float6_e3m2fn", "f6E3M2FN", "fp6_e3m2", "e3m2fn"],
    "e2m3": ["float6_e2m3fn", "f6E2M3FN", "fp6_e2m3", "e2m3fn"],
    "e2m1": ["float4_e2m1fn", "f4E2M1FN", "FLOAT4E2M1", "fp4_e2m1", "torch.float4_e2m1fn_x2"],
    "e8m0": ["float8_e8m0fnu", "f8E8M0FNU", "FLOAT8E8M0", "ue8m0", "e8m0fnu"],
    "ue4m3": ["float_ue4m3_t", "ue4m3fn"],
    "ue5m3": ["float8_e5m3", "f8E5M3FNU"],
    "binary8p4se": ["Binary8p4se", "p3109_k8p4se", "BINARY8P4SE"],
    "binary8p1uf": ["p3109_k8p1uf"],
    "int4": ["i4", "s4", "si4", "INT4"],
    "uint16": ["u16", "ui16", "UINT16"],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name):
    for spelling in (name, name.upper(), f" {name}\n", *SPELLINGS[name]):
        assert refq.number_format(spelling) is FORMATS[name], spelling


def test_a_row_is_its_own_name():
    row = Float("mine", 3, 2, 3, "fn")
    assert refq.number_format(row) is row and refq.number_format(FORMATS["int8"]) is FORMATS["int8"]


def test_every_spelling_belongs_to_one_row():
    listed = [spelling.lower() for row in (*FORMATS.values(), *LISTED.values())
              for spelling in (row.name, *row.aka)]
    assert len(listed) == len(set(listed)), "two rows share a spelling"
    assert set(aliases()) == set(listed) and not set(listed) & set(AMBIGUOUS)
    for row in FORMATS.values():
        for spelling in (row.name, *row.aka):
            assert refq.number_format(spelling) is row


def test_every_type_of_ml_dtypes_resolves_to_its_values():
    names = [name for name in ml_dtypes.__all__ if name.startswith(("bfloat", "float", "int", "uint"))]
    assert len(names) >= 16
    for name in names:
        row, kind = refq.number_format(name), np.dtype(getattr(ml_dtypes, name))
        info = (ml_dtypes.finfo if row.is_float else ml_dtypes.iinfo)(kind)
        assert float(row.max) == float(info.max) and row.bits == info.bits


def test_every_small_type_of_onnx_resolves():
    kinds = [name for name in onnx.TensorProto.DataType.keys() if re.match("B?FLOAT|U?INT|DOUBLE", name)]
    assert len(kinds) >= 20
    for name in kinds:
        if name not in ("INT32", "INT64", "UINT32", "UINT64"):
            assert refq.number_format(name) in FORMATS.values()
    assert refq.number_format("UINT32") == Int("uint32", 32, signed=False, ref="by rule (VAL-8)")


# name by rule: (exponent, significand, bias, special, signed, tie)
BY_RULE = {
    "e3m3ieee": (3, 3, 3, "ieee", True, "even"),
    "e4m3b9fn": (4, 3, 9, "fn", True, "even"),
    "ue6m2fn": (6, 2, 31, "fn", False, "even"),
    "e5m4b20fnuz": (5, 4, 20, "fnuz", True, "even"),
    "e2m2finite": (2, 2, 1, "finite", True, "even"),
    "e1m0finite": (1, 0, 0, "finite", True, "even"),
    "e5m0scale": (5, 0, 15, "scale", False, "up"),
    "e8m0b100scale": (8, 0, 100, "scale", False, "up"),
    "e3m2scale": (3, 2, 3, "scale", False, "up"),
    "e11m52fn": (11, 52, 1023, "fn", True, "even"),
    "E6M1FN": (6, 1, 31, "fn", True, "even"),
}


@pytest.mark.parametrize("name", BY_RULE)
def test_floats_by_rule(name):
    row = refq.number_format(name)
    assert (row.exp, row.man, row.bias, row.special, row.signed, row.tie) == BY_RULE[name]
    assert row.name == name.lower() and refq.number_format(row.name) == row and row.pad == 0


@pytest.mark.parametrize("spelling, name", [
    ("e4m3b7fn", "e4m3fn"), ("e5m2b15ieee", "e5m2"), ("e5m2ieee", "e5m2"), ("e4m3b8fnuz", "e4m3fnuz"),
    ("e04m03fn", "e4m3fn"), ("e2m1b1finite", "e2m1"), ("e11m52ieee", "binary64"), ("e8m23ieee", "binary32"),
    ("ue8m0scale", "e8m0"), ("e8m0b127scale", "e8m0"), ("ue4m3b7fn", "ue4m3"), ("int08", "int8"),
    ("uint004", "uint4"), ("binary08p04se", "binary8p4se"), ("p3109_k4p2sf", "binary4p2sf"),
    ("e3m3b3ieee", "e3m3ieee"), ("int032", "int32"),
    ("pow2int08", "pow2int8"), ("pow2int04", "pow2int4"), ("posit08", "posit8"), ("takum_log08", "takum_log8"),
    ("lns08f03", "lns8f3")])
def test_one_format_has_one_row(spelling, name):
    """However a format is spelled, equal rows come out, with the canonical name."""
    row = refq.number_format(spelling)
    assert row == refq.number_format(name) and row.name == name


@pytest.mark.parametrize("name, arguments", [
    ("Binary8p3sf", (8, 3, True, "finite")), ("binary3p1ue", (3, 1, False, "extended")),
    ("BINARY16P11SE", (16, 11)), ("p3109_k6p6uf", (6, 6, False, "finite")), ("P3109_K10P3SE", (10, 3))])
def test_p3109_by_rule(name, arguments):
    assert refq.number_format(name) == p3109(*arguments)


@pytest.mark.parametrize("bits", [1, 3, 16, 17, 24, 32])
def test_integers_by_rule(bits):
    for word, signed in (("int", True), ("uint", False)):
        row = refq.number_format(f"{word}{bits}")
        assert (row.bits, row.signed, row.encoding, row.frac) == (bits, signed, "twos", 0)
        assert row.name == f"{word}{bits}"


AMBIGUOUS_NAMES = [
    ("e4m3", "e4m3fn, e4m3ieee, e4m3fnuz"), ("E4M3", "e4m3fn, e4m3ieee, e4m3fnuz"), ("fp8", "e4m3fn, e5m2"),
    ("float8", "e4m3fn, e5m2"), ("fp6", "e2m3, e3m2"), ("float6", "e2m3, e3m2"),
    ("binary8p4", "binary8p4se, binary8p4sf"), ("binary8p3", "binary8p3se, binary8p3sf"),
    ("e5m3", "ue5m3, e5m3fn"), ("e3m3", "e3m3ieee, e3m3fn"), ("e4m3b9", "e4m3b9ieee, e4m3b9fn"),
    ("ue6m2", "ue6m2ieee, ue6m2fn"), ("e6m1fnuz", "e6m1b32fnuz, e6m1b31fnuz"),
    ("e3m0", "e3m0scale, e3m0fn, e3m0finite"),
]


@pytest.mark.parametrize("name, candidates", AMBIGUOUS_NAMES)
def test_ambiguous_names_are_refused_with_candidates(name, candidates):
    with pytest.raises(InputError, match=f"format '{name}' is ambiguous; say which: {candidates}") as refusal:
        refq.number_format(name)
    offered = str(refusal.value).split("say which: ")[1].split(" (")[0].split(", ")
    rows = [refq.number_format(candidate) for candidate in offered]
    assert len({row.name for row in rows}) == len(rows) >= 2


def test_every_listed_ambiguity_offers_rows():
    for name, candidates in AMBIGUOUS.items():
        rows = [refq.number_format(candidate) for candidate in candidates]
        meanings = {row if row.is_listed else row.layout for row in rows}
        assert len({row.name for row in rows}) == len(rows) and len(meanings) >= 2, name
        with pytest.raises(InputError, match="is ambiguous"):
            refq.number_format(name)


# TensorCast's grammar (formats.md 6.1): behind tcast: its own meanings hold
TENSORCAST = [
    ("tcast:e4m3fnuz", dict(exp=4, man=3, bias=7, special="fnuz"), 480),
    ("tcast:e5m2", dict(exp=5, man=2, bias=15, special="ieee"), 57344),
    ("tcast:e4m3fn", dict(exp=4, man=3, bias=7, special="fn"), 448),
    ("TCAST:E8M0", dict(exp=8, man=0, bias=127, special="scale"), 2 ** 127),
    ("tcast:uint4", dict(bits=4, signed=False), 15),
]


@pytest.mark.parametrize("name, fields, largest", TENSORCAST)
def test_tensorcast_names(name, fields, largest):
    row = refq.number_format(name)
    assert {key: getattr(row, key) for key in fields} == fields and row.max == largest


def test_tensorcast_s_e4m3fnuz_is_not_onnx_s():
    theirs, ours = refq.number_format("tcast:e4m3fnuz"), refq.number_format("e4m3fnuz")
    assert theirs.bias == ours.bias - 1 and theirs.name != ours.name and theirs.max == 2 * ours.max
    assert refq.encode([1.0], theirs)[0] != refq.encode([1.0], ours)[0]


UNKNOWN = [
    ("e4m3fm", "'e4m3fm' is not known; nearest names: e4m3fn"),
    ("float8_e4m3fnz", "nearest names: float8_e4m3fn"),
    ("bfloat61", "nearest names: bfloat16"), ("", "'' is not known$"), ("qqqq", "'qqqq' is not known$"),
    ("int0", "integers of 0 bits are not number formats here; allowed are 1 to 32"),
    ("int33", "integers of 33 bits"), ("uint64", "integers of 64 bits"),
    ("e0m3fn", "allowed are 1 to 11 exponent bits"), ("e12m3fn", "allowed are 1 to 11 exponent"),
    ("e4m53fn", "and 0 to 52 trailing bits"), ("tcast:e40m3", "allowed are 1 to 11"),
    ("e4m3b32769fn", "its bias is too large; allowed are 0 to 32768"),
    ("e5m0b123456789scale", "its bias is too large"),
    ("e1m0ieee", "needs a trailing significand"), ("e1m0fn", "leave no positive value"),
    ("ue4m3b8fnuz", "must be signed"), ("int4f5", "integers of 4 bits, 5 of them behind the point, are not"),
    ("pow2int1", "1 bits are not allowed; 2 to 8 are"), ("pow2int9", "9 bits are not allowed; 2 to 8 are"),
    ("binary2p1se", "P3109 has no format K=2"), ("binary17p3se", "P3109 has no format K=17"),
    ("binary8p8se", "P3109 has no format K=8 P=8"), ("binary8p9ue", "P3109 has no format"),
    ("binary8p0sf", "P3109 has no format"), ("mxfp4", "'mxfp4' is not known"),
    ("e4m3fn e5m2", "is not known"), ("e-4m3fn", "is not known"), ("e4m3b-7fn", "is not known"),
    ("e4m3b99999999999fn", "is not known"),
]


@pytest.mark.parametrize("name, words", UNKNOWN)
def test_unknown_names_are_refused(name, words):
    with pytest.raises(InputError, match=words):
        refq.number_format(name)


@pytest.mark.parametrize("thing", [None, 8, 1.5, np.float32, np.dtype("f4"), b"e4m3fn", ["e4m3fn"]], ids=repr)
def test_what_is_no_name(thing):
    with pytest.raises(InputError, match="named by a string or given as a row, not"):
        refq.number_format(thing)


def test_huge_digits_end_quickly():
    """A name is data from outside: no digits in it may cost memory or minutes."""
    for digits in (5, 9, 100, 5000):
        for name in ("int{}", "e{}m3fn", "e{}m3", "e3m{}fnuz", "binary{}p3se", "e4m3b{}", "e4m3b{}fn",
                     "tcast:e{}m3"):
            with pytest.raises(InputError, match=r"^(number format|integers|P3109)"):
                refq.number_format(name.format("9" * digits))
