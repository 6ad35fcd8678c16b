"""The table of data types: what each row says, every spelling of it, by-rule names, and what is refused."""

from dataclasses import FrozenInstanceError, asdict
from fractions import Fraction

import numpy as np
import pytest

import refq
from refq.blocks.rows import AMBIGUOUS, DATA_TYPES, Block, registered
from refq.errors import InputError
from refq.formats.rows import FORMATS

# name: (element, scale, tile, rule, outer, recipe, bits per value), typed from OCP MX 1.0, NVFP4 and ONNX
TABLE = {
    "mxfp8_e4m3": ("e4m3fn", "e8m0", 32, "floor", None, "ocp", Fraction(33, 4)),
    "mxfp8_e5m2": ("e5m2", "e8m0", 32, "floor", None, "ocp", Fraction(33, 4)),
    "mxfp6_e2m3": ("e2m3", "e8m0", 32, "floor", None, "ocp", Fraction(25, 4)),
    "mxfp6_e3m2": ("e3m2", "e8m0", 32, "floor", None, "ocp", Fraction(25, 4)),
    "mxfp4": ("e2m1", "e8m0", 32, "floor", None, "ocp", Fraction(17, 4)),
    "mxint8": ("mxint8", "e8m0", 32, "floor", None, "ocp", Fraction(33, 4)),
    "nvfp4": ("e2m1", "ue4m3", 16, "amax", "float32", "exact", Fraction(9, 2)),
    "int8": ("int8", "binary32", "channel", "amax", None, "exact", Fraction(8)),
    "int4": ("int4", "binary16", 32, "amax", None, "exact", Fraction(9, 2)),
}

# name: (element, scale, tile, (size, offset bits) of subtiles, zero point, bits per value), from formats.md 6
BLOCK_FLOATING = {
    "msfp12": ("smint4f2", "e8m0", 16, (), None, "4.5"), "msfp13": ("smint5f3", "e8m0", 16, (), None, "5.5"),
    "msfp14": ("smint6f4", "e8m0", 16, (), None, "6.5"), "msfp15": ("smint7f5", "e8m0", 16, (), None, "7.5"),
    "msfp16": ("smint8f6", "e8m0", 16, (), None, "8.5"), "bfp16": ("smint8f6", "e8m0", 8, (), None, "9"),
    "bfp16_t16": ("smint8f6", "e8m0", 16, (), None, "8.5"),
    "mx9": ("smint8f6", "e8m0", 16, ((2, 1),), None, "9"),
    "mx6": ("smint5f3", "e8m0", 16, ((2, 1),), None, "6"),
    "mx4": ("smint3f1", "e8m0", 16, ((2, 1),), None, "4"),
    "tt_bfp8_b": ("smint8f6", "e8m0", 16, (), None, "8.5"),
    "tt_bfp4_b": ("smint4f2", "e8m0", 16, (), None, "4.5"),
    "tt_bfp2_b": ("smint2", "e8m0", 16, (), None, "2.5"),
    "tt_bfp8_a": ("smint8f6", "e5m0scale", 16, (), None, "8.3125"),
    "tt_bfp4_a": ("smint4f2", "e5m0scale", 16, (), None, "4.3125"),
    "tt_bfp2_a": ("smint2", "e5m0scale", 16, (), None, "2.3125"),
    "b4int3": ("smint3f1", "e4m0scale", 4, (), None, "4"),
    "hif4": ("smint4f2", "e6m2b48scale", 64, ((8, 1), (4, 1)), None, "4.5"),
}
OTHERS = {
    "mxfp8_e4m3_t16": ("e4m3fn", "e8m0", 16, (), None, "8.5"),
    "mxfp8_e5m2_16x16": ("e5m2", "e8m0", (16, 16), (), None, "8.03125"),
    "mxfp6_e2m3_32x32": ("e2m3", "e8m0", (32, 32), (), None, "6.0078125"),
    "mxfp6_e3m2_t16": ("e3m2", "e8m0", 16, (), None, "6.5"),
    "mxfp4_t16": ("e2m1", "e8m0", 16, (), None, "4.5"),
    "mxfp4_16x16": ("e2m1", "e8m0", (16, 16), (), None, "4.03125"),
    "mxfp4_32x32": ("e2m1", "e8m0", (32, 32), (), None, "4.0078125"),
    "mxint8_16x16": ("mxint8", "e8m0", (16, 16), (), None, "8.03125"),
    "mxint4": ("int4f2", "e8m0", 32, (), None, "4.25"), "mxint4_t16": ("int4f2", "e8m0", 16, (), None, "4.5"),
    "nvfp4_16x16": ("e2m1", "ue4m3", (16, 16), (), None, "4.03125"),
    "nvfp6_e2m3": ("e2m3", "ue4m3", 16, (), None, "6.5"),
    "nvfp6_e3m2": ("e3m2", "ue4m3", 16, (), None, "6.5"),
    "nvfp8_e4m3": ("e4m3fn", "ue4m3", 16, (), None, "8.5"),
    "nvfp8_e5m2": ("e5m2", "ue4m3", 16, (), None, "8.5"),
    "uint8": ("uint8", "binary32", "channel", (), "uint8", "8"),
    "uint4": ("uint4", "binary16", 32, (), "uint4", "4.625"),
    "fp8_128x128": ("e4m3fn", "binary32", (128, 128), (), None, "8.001953125"),
    "fp8_1x128": ("e4m3fn", "binary32", 128, (), None, "8.25"),
    "bitnet": ("ternary", "binary32", "tensor", (), None, "2"),
    "nf4_t64": ("nf4", "binary32", 64, (), None, "4.5"), "af4_t64": ("af4", "binary32", 64, (), None, "4.5"),
    "bnb_fp4_t64": ("bnb_fp4", "binary32", 64, (), None, "4.5"),
}
RULE_OF = {"hif4": ("hif4", "hif4"), "bitnet": ("absmean", "exact"), "uint8": ("minmax", "exact"),
           "uint4": ("minmax", "exact")}


@pytest.mark.parametrize("name", [*BLOCK_FLOATING, *OTHERS])
def test_more_rows_by_hand(name):
    row, (element, scale, tile, subtiles, zero, bits) = refq.data_type(name), (BLOCK_FLOATING | OTHERS)[name]
    said = row.element, row.scale, row.tile, row.subtiles, row.zero
    assert said == (element, scale, tile, subtiles, zero) and row is DATA_TYPES[name] and row.ref
    assert row.bits_per_value == Fraction(bits)
    assert row.outer == ("float32" if name.startswith("nv") else None)
    usual = ("floor", "ocp") if scale in ("e8m0", "e5m0scale", "e4m0scale") else ("amax", "exact")
    assert (row.rule, row.recipe) == RULE_OF.get(name, usual)
    assert row.zero is None or row.zero_row is refq.number_format(zero)


def test_every_mx_type_has_its_tiles():
    for name in ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4", "mxint8", "mxint4"):
        for label, tile in (("t16", 16), ("16x16", (16, 16)), ("32x32", (32, 32))):
            row = refq.data_type(f"{name}_{label}")
            assert row.tile == tile and row.element == refq.data_type(name).element and row.scale == "e8m0"


@pytest.mark.parametrize("name, bits", [("e6m2b48scale", 8), ("e5m0scale", 5), ("e4m0scale", 4),
                                        ("smint2", 2), ("smint8f6", 8), ("int4f2", 4)])
def test_widths_of_the_formats_in_them(name, bits):
    assert refq.number_format(name).width == bits


# by rule: (element, scale, tile, subtiles, zero, outer, sparsity, rule, bits per value), worked out by hand
BY_RULE_PARTS = {
    "smint8f6_e8m0_t32s8o2": ("smint8f6", "e8m0", 32, ((8, 2),), None, None, None, "floor", "8.5"),
    "e2m1_e8m0_t4x4": ("e2m1", "e8m0", (4, 4), (), None, None, None, "floor", "4.5"),
    "e2m1_e8m0_t8x8s2x4o3": ("e2m1", "e8m0", (8, 8), (((2, 4), 3),), None, None, None, "floor", "4.5"),
    "int8_float16_t0x4": ("int8", "binary16", ("channel", 4), (), None, None, None, "amax", "8"),
    "int8_float16_t4x0": ("int8", "binary16", (4, "channel"), (), None, None, None, "amax", "8"),
    "uint4_float16_float16_t32": ("uint4", "binary16", 32, (), "binary16", None, None, "minmax", "5"),
    "uint4_bfloat16_int8_t16": ("uint4", "bfloat16", 16, (), "int8", None, None, "minmax", "5.5"),
    "e2m3_ue4m3_float32_t16": ("e2m3", "ue4m3", 16, (), None, "float32", None, "amax", "6.5"),
    "int4_e5m2_t8": ("int4", "e5m2", 8, (), None, None, None, "amax", "5"),
    "e2m1_e7m0scale_t16": ("e2m1", "e7m0scale", 16, (), None, None, None, "floor", "4.4375"),
    "nf4_bfloat16_t32": ("nf4", "bfloat16", 32, (), None, None, None, "amax", "4.5"),
    "e2m1_e8m0_t32n2m4": ("e2m1", "e8m0", 32, (), None, None, (2, 4), "floor", "3.25"),
}


@pytest.mark.parametrize("name", BY_RULE_PARTS)
def test_names_by_rule_of_every_part(name):
    row, (*parts, bits) = refq.data_type(name), BY_RULE_PARTS[name]
    said = row.element, row.scale, row.tile, row.subtiles, row.zero, row.outer, row.sparsity, row.rule
    assert said == tuple(parts) and row.bits_per_value == Fraction(bits)
    assert refq.data_type(row.name) == row
    assert row.recipe == ("ocp" if row.rule == "floor" else "exact")


@pytest.mark.parametrize("name", TABLE)
def test_rows_by_hand(name):
    row = refq.data_type(name)
    said = row.element, row.scale, row.tile, row.rule, row.outer, row.recipe, row.bits_per_value
    assert said == TABLE[name] and row is DATA_TYPES[name] and row.ref
    assert row.element_row is refq.number_format(row.element)
    assert row.scale_row is refq.number_format(row.scale)


def test_the_table_has_the_required_rows():
    assert set(TABLE) <= set(DATA_TYPES)


@pytest.mark.parametrize("spelling, name", [
    ("mxfp8", "mxfp8_e4m3"), ("MXFP8", "mxfp8_e4m3"), (" mxfp4 ", "mxfp4"), ("mxfp8_e4m3fn", "mxfp8_e4m3"),
    ("mxfp6", "mxfp6_e2m3"), ("mx_e3m2", "mxfp6_e3m2"), ("mxfp4_e2m1", "mxfp4"), ("MXInt8", "mxint8"),
    ("NVFP4", "nvfp4"), ("int8_float32_channel", "int8"), ("int4_float16_t32", "int4")])
def test_spellings(spelling, name):
    assert refq.data_type(spelling) is DATA_TYPES[name]


def test_every_spelling_belongs_to_one_row():
    spellings = [spelling for row in DATA_TYPES.values() for spelling in (row.name, *row.aka)]
    assert len(spellings) == len(set(spellings)) and all(text == text.lower() for text in spellings)
    for row in DATA_TYPES.values():
        for spelling in (row.name, *row.aka):
            assert refq.data_type(spelling.upper()) is row
    assert not set(spellings) & set(AMBIGUOUS)


# name: (canonical name, element, scale, tile, rule, recipe, bits per value)
BY_RULE = {
    "int4_bfloat16_t32": ("int4_bfloat16_t32", "int4", "bfloat16", 32, "amax", "exact", Fraction(9, 2)),
    "int8_float32_tensor": (
        "int8_binary32_tensor", "int8", "binary32", "tensor", "amax", "exact", Fraction(8)),
    "int8_fp16_channel": (
        "int8_binary16_channel", "int8", "binary16", "channel", "amax", "exact", Fraction(8)),
    "e4m3fn_float32_channel": (
        "e4m3fn_binary32_channel", "e4m3fn", "binary32", "channel", "amax", "exact", Fraction(8)),
    "FP4_E2M1_UE4M3_T16": ("e2m1_ue4m3_t16", "e2m1", "ue4m3", 16, "amax", "exact", Fraction(9, 2)),
    "float8_e5m2_f32_t128": ("e5m2_binary32_t128", "e5m2", "binary32", 128, "amax", "exact", Fraction(33, 4)),
    "e2m1_e8m0_t16": ("e2m1_e8m0_t16", "e2m1", "e8m0", 16, "floor", "ocp", Fraction(9, 2)),
    "int8_ue8m0_t1": ("int8_e8m0_t1", "int8", "e8m0", 1, "floor", "ocp", Fraction(16)),
    "e3m1finite_e5m0scale_t8": (
        "e3m1finite_e5m0scale_t8", "e3m1finite", "e5m0scale", 8, "floor", "ocp", Fraction(45, 8)),
    "binary4p2sf_binary16_channel": (
        "binary4p2sf_binary16_channel", "binary4p2sf", "binary16", "channel", "amax", "exact", Fraction(4)),
}


@pytest.mark.parametrize("name", BY_RULE)
def test_names_by_rule(name):
    row = refq.data_type(name)
    said = row.name, row.element, row.scale, row.tile, row.rule, row.recipe, row.bits_per_value
    assert said == BY_RULE[name]
    assert row.outer is None and refq.data_type(row.name) == row and refq.data_type(row) is row
    x = np.float32([[1, -2, 0.5, 3]])
    back = refq.fake_quantize(x, name)
    assert np.all(np.abs(back - x) <= 3 * 0.26)


@pytest.mark.parametrize("name", ["e4m3fn", "float8_e4m3fn", "bf16", "e3m4", "int3", "uint16", "tf32",
                                  "binary8p3se"])
def test_a_number_format_is_an_unscaled_data_type(name):
    number, row = refq.number_format(name), refq.data_type(name)
    assert (row.name, row.element, row.rule) == (number.name, number.name, "none")
    assert row.scale is row.tile is row.outer is None
    assert row.bits_per_value == number.width
    assert refq.data_type(number).element == number.name


def test_some_names_are_both():
    """int8 and int4 are data types with a scale; the bare formats are asked for as rows."""
    assert refq.data_type("int8").scale == "binary32"
    assert refq.data_type(FORMATS["int8"]).scale is None and refq.data_type("mxint8").scale == "e8m0"


REFUSED = [
    ("fp8", "'fp8' is ambiguous; say which: e4m3fn_float32_channel, e5m2_float32_channel, mxfp8_e4m3"),
    ("FP4", "ambiguous; say which: mxfp4, nvfp4"),
    ("fp6", "ambiguous; say which: mxfp6_e2m3, mxfp6_e3m2"),
    ("mxfp", "ambiguous; say which: mxfp8_e4m3"),
    ("e4m3", "ambiguous; say which: e4m3fn, e4m3ieee, e4m3fnuz"),
    ("cb42f1346_e2m3fnuz", "needs a scale: cb42f1346_e2m3fnuz_e8m0_t32s8"),
    ("mxfp5", "'mxfp5' is not known; nearest names: mxfp"),
    ("nvpf4", "nearest names: nvfp4"),
    ("zzz", "'zzz' is not known"),
    ("", "is not known"),
    ("e4m3_float32_channel", "number format 'e4m3' is ambiguous"),
    ("int8_float33_channel", "number format 'float33' is not known; nearest names: float32"),
    ("int4_float16_t0", "is not known"),
    ("int4_float16_t", "is not known"),
    ("int4_float16_tile", "is not known"),
    ("int8_int8_t32", "the scale format must have a NaN"),
    ("int8_e2m1_t32", "the scale format must have a NaN"),
    ("int1_float32_t32", "the element a zero and a positive value"),
    ("e8m0_float32_t32", "the element a zero and a positive value"),
    ("int8_float64_t32", "float32 must hold every value of int8 and binary64"),
    ("binary64_float32_channel", "float32 must hold every value of binary64 and binary32"),
    ("int32_float32_channel", "float32 must hold every value of int32"),
    ("int26_float32_channel", "float32 must hold every value of int26"),
    ("e2m1_float32_float32_t16", "too many significant bits together to divide exactly"),
    ("int8_e9m0scale_t32", "needs a floating scale format with a zero, not e9m0scale"),
    ("e8m3b200finite_e8m0_t32", "float32 must hold every value of e8m3b200finite"),
    ("int4_float16_float16_t32", "outer scale is float32 or none"),
    ("int4_float16_uint4_t32", "outer scale is float32 or none"),
    ("uint4_e8m0_uint4_t32", "rule minmax needs a floating scale format with a zero, not e8m0"),
    ("e2m1_e6m2b48scale_t16", "needs a floating scale format with a zero, not e6m2b48scale"),
    ("uint20_float32_uint8_t32", "at most 16 bits, not uint20"),
    ("smint8f6_e8m0_t16s3o1", "subtile 3 with 1 offset bits is not allowed"),
    ("smint8f6_e8m0_t16s16o1", "subtile 16 with 1 offset bits is not allowed"),
    ("smint8f6_e8m0_t16s2o5", "subtile 2 with 5 offset bits is not allowed"),
    ("smint8f6_e8m0_t16s2", "subtiles without offset bits are for the choice among codebooks"),
    ("smint8f6_e8m0_channels2o1", "subtiles need a tile of a fixed size"),
    ("int8_float32_t16s2o1", "exponent offsets need one level of subtiles and an exponent scale"),
    ("e2m1_e8m0_t8x8s3x2o1", "is not allowed; its size must divide"),
    ("e2m1_e8m0_t32n4m4", "sparsity 4:4 is not known; N:M keeps N of M values"),
    (None, "named by a string or given as a row, not None"),
    (8, "named by a string or given as a row, not 8"),
    (np.float32, "named by a string or given as a row"),
]


@pytest.mark.parametrize("name, words", REFUSED, ids=repr)
def test_refused(name, words):
    with pytest.raises(InputError, match=words):
        refq.data_type(name)


def test_the_widest_types_that_divide_exactly():
    """The limits are limits: one bit less is a data type."""
    for name in ("int25_float32_channel", "binary32_float32_t32", "int16_e8m0_t32", "binary32_e8m0_t32",
                 "tf32_float32_t32", "e2m1_bfloat16_float32_t16"):
        assert refq.data_type(name).scale


# what a row may not say: (fields, words)
BAD_ROWS = [
    (dict(rule="ceiling"), "scale rule 'ceiling' is not known; allowed are none, floor, ceil"),
    (dict(rule="none"), "a scale needs a rule and a tile"),
    (dict(scale=None), "a scale needs a rule and a tile"),
    (dict(tile=None), "a scale needs a rule and a tile"),
    (dict(tile=0), "tile 0 is not allowed; a number from 1, 'channel', 'tensor' or a pair"),
    (dict(tile=-32), "tile -32 is not allowed"),
    (dict(tile="row"), "tile 'row' is not allowed"),
    (dict(tile=1.5), "tile 1.5 is not allowed"),
    (dict(element="e9"), "number format 'e9' is not known"),
    (dict(scale="e9"), "number format 'e9' is not known"),
    (dict(scale="e8m0"), "rule amax needs a floating scale format with a zero, not e8m0"),
    (dict(rule="floor"), "rule floor needs an exponent scale format"),
    (dict(outer="binary16"), "the outer scale is float32 or none"),
    (dict(rule="floor", scale="e8m0", outer="float32"), "goes with rule amax, not 'float32'"),
    (dict(outer="float32", scale="float16"), "too many significant bits"),
]


@pytest.mark.parametrize("fields, words", BAD_ROWS)
def test_rows_that_contradict_themselves(fields, words):
    good = dict(name="mine", element="e2m1", scale="ue4m3", tile=16, rule="amax")
    Block(**good)
    with pytest.raises(InputError, match="mine: .*" + words if "number format" not in words else words):
        Block(**good | fields)


def test_rows_are_frozen_plain_data():
    row = DATA_TYPES["nvfp4"]
    with pytest.raises(FrozenInstanceError):
        row.tile = 32
    assert Block(**asdict(row)) == row and hash(row) == hash(Block(**asdict(row)))


def test_a_registered_data_type_is_known_everywhere_and_gone_after():
    row = Block("twos", "int2", "bfloat16", 4, "amax", aka=("also_twos",))
    with registered(row):
        assert refq.data_type("twos") is refq.data_type("ALSO_TWOS") is row
        q = refq.quantize(np.float32([[1, -1, 0.4, 0.6, 8]]), "twos")
        assert q.dequantize().tolist() == [[1, -1, 0, 1, 8]]
        with pytest.raises(InputError, match="the name 'twos' is taken"), registered(row):
            pass
        assert "twos" in DATA_TYPES
    with pytest.raises(InputError, match="'twos' is not known"):
        refq.data_type("twos")
    with pytest.raises(ZeroDivisionError), registered(row):
        1 / 0
    assert "twos" not in DATA_TYPES
