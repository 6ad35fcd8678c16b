"""What is said of blocks: drawings hold every bit, formulas and examples give the quantiser's values."""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import refq
from refq.blocks import anatomy, one_block, show, table
from refq.blocks.codebooks import CODEBOOKS
from refq.blocks.gguf import GGUF
from refq.blocks.layouts import BLOCK_LAYOUTS, LAYOUTS, SCALE_LAYOUTS
from refq.blocks.recipes import RECIPES, recipe_of
from refq.blocks.rotation import ROTATIONS
from refq.blocks.rows import DATA_TYPES
from refq.blocks.rules import RULES
from refq.errors import InputError
from refq.formats.listed import meaning
from refq.formats.rows import FORMATS, LISTED

BY_RULE = ["cb42f1346_e2m3fnuz_e8m0_t32s8", "e2m1_e8m0_t32n2m4", "e2m1_e8m0_t0x32", "e2m1_e8m0_t8x0",
           "smint8f6_e8m0_t16x16s4x4o2", "uint4_binary16_binary16_t32", "e2m1_ue4m3_binary32_t16",
           "e4m3fn_float32_tensor", "int4_bfloat16_t7", "e2m1_e8m0_t1", "e2m1_e8m0_t100000x100000"]
SCALED = [*DATA_TYPES, *BY_RULE]
EVERY = [*SCALED, *(f"gguf:{name}" for name in GGUF), *FORMATS, *LISTED]


# --- parts and drawings -----------------------------------------------------------------------------------

@pytest.mark.parametrize("name", EVERY)
def test_every_type_is_drawn(name):
    text = show.drawing(name)
    assert max(map(len, text.splitlines())) <= show.WIDTH
    parts = anatomy.parts_of(name)
    for part in parts:
        assert f"{part.name} {part.format}".strip() in text and show.sizes(part) in text
        assert " ".join(letter * bits for letter, bits in part.fields) in text
        assert set(letter for letter, _ in part.fields) <= set(anatomy.FIELDS)
    assert show.plain(text).isascii() and len(show.plain(text)) == len(text)


@pytest.mark.parametrize("name", SCALED)
def test_the_bits_of_a_block(name):
    """The drawing's bits are those of bits_per_value, where the block is of a fixed size."""
    block, parts = refq.data_type(name), anatomy.parts_of(name)
    total, values = anatomy.block_bits(parts), anatomy.block_values(block)
    if total is not None:
        assert Fraction(total, values) == block.bits_per_value
    else:
        assert block.tile in ("channel", "tensor") or "channel" in block.tile


@pytest.mark.parametrize("row", GGUF.values(), ids=GGUF.get)
def test_the_bytes_of_a_gguf_block(row):
    """Every byte is drawn once, in order."""
    parts = anatomy.parts_of(row)
    assert anatomy.block_bits(parts) == 8 * row.bytes
    at = 0
    for part in parts:
        assert int(re.search(r"\d+", part.labels[0])[0]) == at
        at += part.total // 8


MXFP4 = """\
scale e8m0     element e2m1
8 bits         32 x 4 bits = 128
┌──────────┐   ┌────────┬────────┬────────┬─────┬────────┐
│ EEEEEEEE │   │ S EE M │ S EE M │ S EE M │ ... │ S EE M │
└──────────┘   └────────┴────────┴────────┴─────┴────────┘
                   0        1        2              31

E exponent; S sign; M significand"""

INT4 = """\
+--------------------+   +-------+-------+-------+-----+-------+
| S EEEEE MMMMMMMMMM |   | S MMM | S MMM | S MMM | ... | S MMM |
+--------------------+   +-------+-------+-------+-----+-------+"""


def test_figure_2_of_the_paper():
    assert show.drawing("mxfp4") == MXFP4
    assert INT4 in show.plain(show.drawing("int4"))
    assert "│ EEEE │          │ S MM │ S MM │ S MM │ S MM │" in show.drawing("b4int3")


def test_a_narrow_drawing():
    for name in ("nvfp4", "q4_k", "binary64"):
        assert max(map(len, show.drawing(name, 72).splitlines()[:-2])) <= 72


# --- facts and examples -----------------------------------------------------------------------------------

@pytest.mark.share(3)
@pytest.mark.parametrize("name", EVERY)
def test_every_type_has_its_facts(name):
    text = show.show_block(name)
    assert "bits/value" in text and "value" in text and "source" in text
    assert max(map(len, text.splitlines())) <= show.WIDTH
    if name in SCALED:
        block = refq.data_type(name)
        for words in (block.name, block.element, block.scale, block.recipe, RULES[block.rule].clause):
            assert words in text


def evaluated(text):
    """The value of a formula with numbers, `... = value`."""
    left = text.split(" = ")[0].replace("^", "**")
    return eval(re.sub(r"(?<![*\d.])(\d+\.?\d*)", r"Fraction('\1')", left), {"Fraction": Fraction})


@pytest.mark.parametrize("name", [
    "e2m1", "e4m3fn", "e5m2", "e8m0", "ue4m3", "e4m0scale", "e6m2b48scale", "mxint8", "binary8p1uf",
    "binary8p4se", "smint3f1", "int4f2", "uint4", "e3m4", "bfloat16"])
def test_worked_formulas_are_true(name):
    row = refq.number_format(name)
    step = 1 if row.width <= 8 else 331
    for code in range(0, 1 << row.width, step):
        value = meaning(row, code)
        if not isinstance(value, str) and value and " = " in (text := show.worked(row, code)):
            assert evaluated(text) == value, text


@pytest.mark.parametrize("name, formula", [
    ("e2m1", "(-1)^S * 1.M * 2^(E - 1); where E = 0: (-1)^S * 0.M * 2^0"), ("e8m0", "2^(E - 127)"),
    ("e6m2b48scale", "1.M * 2^(E - 48)"), ("int4f2", "SM * 2^-2, SM an integer in two's complement"),
    ("smint3f1", "(-1)^S * M * 2^-1"), ("uint4", "M"), ("nf4", "table[C]"),
    ("posit8", "by the rules of posit numbers (LIST-4)"), ("binary8p1uf", "2^(E - 128); where E = 0: 0")])
def test_formulas(name, formula):
    assert show.formula(refq.number_format(name)) == formula


@pytest.mark.parametrize("name", [name for name in SCALED if "tensor" not in name])
def test_the_example_is_the_quantisers(name):
    """Elements, scale, offsets, zero point and tensor scale of the example multiply to its value."""
    block = refq.data_type(name)
    given = show.EXAMPLE[: anatomy.block_values(block)]
    shown = one_block.one_block(given, block)
    for place in range(len(given)):
        value = meaning(shown.elements[place], shown.codes[place])
        scale = meaning(block.scale_row, shown.scale) * (shown.tensor_scale or 1)
        for level in shown.offsets:
            scale *= Fraction(2) ** (level[place] if block.rule == "hif4" else -level[place])
        if block.zero:
            zero = meaning(block.zero_row, shown.zero)
            exact = value * scale - zero if block.zero_row.is_float else (value - zero) * scale
        else:
            exact = value * scale
        assert Fraction(float(exact)) == shown.decoded[place]


# --- values as a block ------------------------------------------------------------------------------------

def cells(text):
    """The table of values as dicts, one a value."""
    head, *lines = text.split("\n\n")[1].splitlines()
    return [dict(zip(head.split(), re.sub(r"(?<=[01]) (?=[01])", "", line).split())) for line in lines]


@pytest.mark.parametrize("name", [*SCALED, "e4m3fn", "int8", "Q4_0", "Q5_1", "Q8_0", "TQ1_0", "gguf:nvfp4"])
def test_values_of_every_type(name):
    block = anatomy.block_kind(name)
    count = anatomy.block_values(block) if anatomy.is_block(block) and anatomy.is_data_type(block) else None
    values = np.float32([1, 2.5, -7, 0.375])[:count]
    text = one_block.show_values(name, values)
    assert len(text.split("\n\n")[1].splitlines()) == 1 + len(values) and "decoded" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("rule, because, scale", [
    ("floor", "none: the exponent is never raised", "0x7f (1)"),
    ("ceil", "raised by one where m > 1: 1.75 is", "0x80 (2)"),
    ("rceil", "raised by one where m > 1.5: 1.75 is", "0x80 (2)"),
    ("even", "raised by one where m >= 1.75: 1.75 is", "0x80 (2)"),
    ("midmax", "raised by one where m > 1.75: 1.75 is not", "0x7f (1)"),
    ("midmax_ge", "raised by one where m >= 1.75: 1.75 is", "0x80 (2)")])
def test_why_an_exponent(rule, because, scale):
    text = one_block.show_values("mxfp4", np.float32([1, 2.5, -7]), f"ocp,rule={rule}")
    lines = dict(re.split(r" {2,}", line, maxsplit=1) for line in text.split("\n\n")[0].splitlines()
                 if not line.startswith(" ") and "  " in line)
    assert lines["amax"] == "7 = m * 2^e with m = 1.75 and e = 2" and lines["threshold"] == because
    assert lines["scale"] == f"e8m0 {scale}" and lines["exponent"].endswith(f"= {int(scale == '0x80 (2)')}")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_explains_itself(name):
    """With values, with zeros, with a NaN and with an infinity, for a data type that it takes."""
    how, told = RECIPES[name], 0
    for dtype in ("mxfp4", "nvfp4", "hif4", "int4", "e2m1_ue4m3_t16", "mxfp8_e4m3"):
        try:
            recipe_of(refq.data_type(dtype), name)
        except InputError:
            continue
        for values in ([1, 2.5, -7], [0], [np.nan, 1], [np.inf, 1]):
            text = one_block.show_values(dtype, np.float32(values), name)
            assert f"{name}: " in text and f"({how.clause})" in " ".join(text.split()) and "\nscale " in text
            told += 1
    assert told


def test_the_table_of_values():
    found = cells(one_block.show_values("mxfp4", np.float32([1, 2.5, -7])))
    assert [(row["code"], row["bits"], row["decoded"], row["error"]) for row in found] == [
        ("0x2", "0010", "1", "0"), ("0x4", "0100", "2", "-0.5"), ("0xf", "1111", "-6", "1")]


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8_e4m3", "mxint8", "b4int3", "mx9", "smint8f6_e8m0_t8s2o2",
                                  "cb42f1346_e2m3fnuz_e8m0_t32s8", "e2m1_e8m0_t32n2m4"])
@pytest.mark.parametrize("rule", [rule.name for rule in RULES.values() if rule.kind == "exponent"])
def test_the_reasons_are_true(name, rule):
    """The exponent that the sentences arrive at is the scale's; so are the offsets of subtiles."""
    block, random = refq.data_type(name), np.random.default_rng(7)
    for _ in range(8):
        values = np.float32(random.normal(size=4) * 2.0 ** random.integers(-12, 12))
        values[random.integers(4)] = random.choice(np.float32([0, 1.75, 1.5, 2, 7, 1.9375]))
        text = one_block.show_values(name, values, f"ocp,rule={rule}")
        exponent = re.findall(r"^(?:exponent .* = |clamped +to )(-?\d+)", text, re.MULTILINE)[-1]
        shown = one_block.one_block(values, block, f"ocp,rule={rule}")
        assert meaning(block.scale_row, shown.scale) == Fraction(2) ** int(exponent)
        bits = sum(bits for _, bits in block.subtiles)
        for own, offset in re.findall(r"exponent (-?\d+): offset (\d)", text):
            assert int(offset) == max(0, min(int(exponent) - int(own), 2 ** bits - 1))


WHY = [
    ("mxfp4", [0, 0], "every value is zero; a zero block gets code 0 (BLOCK-5)"),
    ("mxfp4", [1, np.nan], "the block holds NaN: the scale's NaN, elements 0 (BLOCK-6)"),
    ("mxfp4", [1, -np.inf], "the block holds an infinity: the scale's NaN"),
    ("b4int3", [1e-6], "to -7: e4m0scale goes from 2^-7 to 2^7"),
    ("nvfp4", [1, 2.5, -7], "amax of all / (6 * 448) = 1/384"),
    ("int4", [1, -7], "amax / 7 = 1, rounded to nearest even in binary16"),
    ("uint4", [1, 2.5, -5], "from -5 to 2.5, zero included"), 
    ("uint4", [2.5, -7], "(11): -least value / scale, rounded"),
    ("bitnet", [1, -3], "mean magnitude = 2, rounded"), ("hif4", [1, -7], "amax / 7 = 1"),
    ("mx9", [1, 0.25, -7], "subtile 0    amax 1, exponent 0: offset 1"),
    ("mx9", [0, 0, -7], "subtile 0    only zeros: offset 1"),
    ("e2m1_e8m0_t32n1m2", [1, -7], "kept"),
    ("cb42f1346_e2m3fnuz_e8m0_t32s8", [1, -7], "table"),
    ("Q4_0", [1, -8], "GGUF-11"),
]


@pytest.mark.parametrize("name, values, words", WHY)
def test_why(name, values, words):
    assert words in one_block.show_values(name, np.float32(values))


def test_sparse_values_do_not_count():
    """What is not kept is no part of the largest magnitude."""
    shown = one_block.one_block(np.float32([3, -7, 1, 2]), refq.data_type("e2m1_e8m0_t32n1m2"))
    assert shown.kept == [False, True, False, True] and shown.codes[0] == shown.codes[2] == 0


def test_two_dimensions_are_filled_row_by_row():
    block = refq.data_type("smint8f6_e8m0_t2x4s1x2o2")
    shown = one_block.one_block(np.float32([8, 4, 2, 1, 0.5, 1]), block)
    assert shown.quantized.shape == (2, 4) and shown.offsets == [[0, 0, 2, 2, 3, 3]]
    with pytest.raises(InputError, match="holds 8 values, but 9 are given"):
        one_block.one_block(np.ones(9), block)


@pytest.mark.parametrize("value, text", [
    (Fraction(1, 3), "1/3"), (Fraction(2) ** 4000, "1.31820e+1204"), (Fraction(1, 2 ** 4000), "7.58608e-1205"),
    (Fraction(5, 2 ** 20), "4.76837e-06"), (Fraction(-448), "-448"), ("nan", "NaN")])
def test_short_numbers(value, text):
    assert one_block.short(value) == text


def test_values_beyond_every_float():
    """Errors are exact, so that their squares may lie outside float64."""
    text = one_block.show_values("mxfp4", np.float64([1e300, 1e-300]))
    assert "sum of squared errors: 1.0" in text and "e+600" in text


def test_sources():
    half = refq.number_format("float16")
    assert one_block.from_source([0x3C00], half).dtype == np.float32
    assert one_block.from_source([0x3FF0000000000000], refq.number_format("float64")).dtype == np.float64


# --- names ------------------------------------------------------------------------------------------------

def test_names():
    assert anatomy.block_kind("MXFP4") is DATA_TYPES["mxfp4"]
    assert anatomy.block_kind("gguf:mxfp4") is GGUF["MXFP4"]
    assert anatomy.block_kind("q4_k") is GGUF["Q4_K"] and anatomy.block_kind(GGUF["Q4_0"]) is GGUF["Q4_0"]
    assert anatomy.block_kind("e4m3fn").scale is None
    for name in ("zz", None, 7, "gguf:", "fp8"):
        with pytest.raises(InputError):
            anatomy.block_kind(name)


# --- tables -----------------------------------------------------------------------------------------------

def test_the_tables_list_everything():
    found, text = table.as_dicts(), table.text()
    assert [row["data type"] for row in found["data_types"]] == list(DATA_TYPES)
    for section, rows in (("gguf", GGUF), ("rotations", ROTATIONS), ("rules", RULES), ("recipes", RECIPES)):
        assert [next(iter(row.values())) for row in found[section]] == list(rows)
    for section, title in table.SECTIONS.items():
        assert title in text and found[section]
    assert all(row["clause"] for section in ("rules", "recipes") for row in found[section])
    encodes = {row["GGUF type"]: row["encode"] for row in found["gguf"]}
    assert encodes["Q4_0"].startswith("plain rounding") and encodes["Q4_K"] == "decode only (search)"


def test_the_readme_table_has_every_data_type():
    """That the README holds this very text, tools/regen.py --check tells (tests/test_vectors.py)."""
    names = []
    lines, lists = table.markdown().split("\n\n")
    for line in lines.splitlines()[2:]:
        first, *others = line.strip("| ").split(" | ")[0].split(", ")
        names += [first, *(other.replace("…", first) for other in others)]
    assert sorted(names) == sorted(DATA_TYPES)
    for rows in (RULES, RECIPES, ROTATIONS, GGUF, CODEBOOKS, LAYOUTS, SCALE_LAYOUTS, BLOCK_LAYOUTS):
        assert all(f"`{name}`" in lists for name in rows)
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    assert table.markdown() in readme
    assert "\n".join(show.drawing("b4int3").splitlines()[:6]) in readme
