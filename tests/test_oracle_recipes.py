"""Scale rules and recipes: every worked line of spec/rules.md and recipes.md, and facts typed by hand."""

import re
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import pytest

import refq
from spec.oracle import recipes, rules, scalar
from tests.anchors import value

SPEC = Path(__file__).resolve().parent.parent / "spec"


def words(name):
    row = refq.number_format(name)
    return asdict(row) | {"kind": "float" if row.is_float else "int"}


def source_value(text):
    """A value of a worked line: a, 2^b, a*2^b, binary32:CODE, inf, nan, -0."""
    if ":" in text:
        name, code = text.split(":")
        return scalar.decode(int(code, 16), words(name))
    sign, bare = text.startswith("-"), text.removeprefix("-")
    if bare in ("nan", "inf"):
        return scalar.Value(bare, sign)
    return scalar.Value(scalar.NUMBER, sign, abs(value(bare)))


def repeated(text):
    """The words of a text, `v~n` being n times v."""
    return [part for word in text.split() for part in [word.split("~")[0]] * int((word + "~1").split("~")[1])]


def lines(page):
    text = (SPEC / page).read_text()
    for block in re.findall(r"^```(?:rule|recipe)\n(.*?)^```", text, re.M | re.S):
        for line in block.splitlines():
            if line.partition("#")[0].strip():
                yield line.partition("#")[0].strip()


def quantised(recipe, name, texts):
    block = refq.data_type(name)
    names = (block.element, block.scale, block.outer, block.zero)
    values = [source_value(text) for text in texts]
    formats = {n: words(n) for n in names if n}
    return recipes.quantise(values, (len(values),), 0, asdict(block), formats, recipe)


@pytest.mark.parametrize("line", list(lines("rules.md")))
def test_rule(line):
    left, _, result = line.partition(" = ")
    verb, rule, element, *rest = left.split()
    if verb == "rule":
        assert rules.shared_exponent(rule, value(rest[0]), words(element)) == int(result)
        return
    scale, *texts = rest
    if rule == "minmax":
        zero, *texts = texts
        numbers = [-v.magnitude if v.negative else v.magnitude for v in map(source_value, texts)]
        got = rules.minmax_scale(numbers, words(element), words(scale), words(zero))
    else:
        got = (rules.absmean_scale([source_value(text).magnitude for text in texts], words(scale)),)
    assert list(got) == [int(part, 16) for part in result.split("/")]


@pytest.mark.parametrize("line", list(lines("recipes.md")))
def test_recipe(line):
    left, _, result = line.partition(" = ")
    _, recipe, name, *texts = left.split()
    if result == "refused":
        with pytest.raises(recipes.Refused):
            quantised(recipe, name, repeated(" ".join(texts)))
        return
    got = quantised(recipe, name, repeated(" ".join(texts)))
    parts = [[got.outer]] * (got.outer is not None) + [got.scales, got.codes]
    assert parts == [[int(code, 16) for code in repeated(part)] for part in result.split("/")], \
        " / ".join(" ".join(f"{code:x}" for code in part) for part in parts)


# --- thresholds typed by hand (the study of formats, 3.2) -------------------------------------------

THRESHOLDS = {                  # e4m3fn, e5m2, e3m2, e2m3, e2m1, mxint8
    "ceil": (">", 1, 1, 1, 1, 1, 1),
    "rceil": (">", 1.75, 1.75, 1.75, 1.875, 1.5, 1.984375),
    "even": (">=", 1.9375, 1.875, 1.875, 1.9375, 1.75, 1.9921875),
    "even_e2m1": (">=", 1.75, 1.75, 1.75, 1.75, 1.75, 1.75),
    "midmax": (">", 1.8125, 1.875, 1.875, 1.9375, 1.75, 1.9921875),
    "midmax_ge": (">=", 1.8125, 1.875, 1.875, 1.9375, 1.75, 1.9921875),
}
ELEMENTS = ("e4m3fn", "e5m2", "e3m2", "e2m3", "e2m1", "mxint8")


@pytest.mark.parametrize("rule", [*THRESHOLDS, "tosa", "floor"])
def test_threshold(rule):
    for place, element in enumerate(ELEMENTS):
        how, *points = THRESHOLDS.get(rule, THRESHOLDS["midmax_ge"])
        if rule == "tosa" and element == "e4m3fn":
            how = ">"
        point, least = Fraction(points[place]), Fraction(1, 2 ** 23)
        bumps = [rules.bump(rule, (point + d) * 4, words(element)) for d in (0, least)]
        assert bumps == ([0, 0] if rule == "floor" else [int(how == ">="), 1]), (rule, element)
        if point > 1:
            assert rules.bump(rule, point - least, words(element)) == 0


def test_thresholds_are_those_of_the_page():
    """The table of RULE-1 says what the oracle does."""
    page = (SPEC / "rules.md").read_text()
    for rule, (how, *points) in THRESHOLDS.items():
        cells = re.search(rf"^\| `{rule}` \| ([>≥] .*) \|$", page, re.M)[1].split(" | ")
        assert cells[:6] == [("≥ " if how == ">=" else "> ") + str(point) for point in points], rule


# --- float32 ------------------------------------------------------------------------------------------

def test_float32_operations():
    n = recipes.number
    assert n(Fraction(1, 6)).magnitude == Fraction(0xAAAAAB, 2 ** 26)
    assert n(Fraction(1, 448)).magnitude == Fraction(0x924925, 2 ** 32) > Fraction(1, 448)
    assert recipes.div(n(1), n(0)).kind == recipes.INFINITE
    assert recipes.div(n(0), n(0)).kind == recipes.mul(n(0), recipes.Value("inf")).kind == recipes.NAN
    assert recipes.mul(n(Fraction(2) ** 127), n(2)).kind == recipes.INFINITE
    assert recipes.mul(n(Fraction(2) ** -100), n(Fraction(2) ** -50)).magnitude == 0
    assert recipes.mul(n(Fraction(2) ** -100), n(3 * Fraction(2) ** -50)).magnitude == Fraction(2) ** -148


def test_logarithm():
    """REC-3: 250 of 254 floors wrong below powers of two, and not below 2, 4, 1 and 1/2."""
    wrong = []
    for k in range(-125, 129):
        below = Fraction(2) ** k * (1 - Fraction(1, 2 ** 24))
        if recipes.log2(below) == k:
            wrong.append(k)
    assert len(wrong) == 250 and not {-1, 0, 1, 2} & set(wrong)
    assert recipes.log2(Fraction(8)) == 3 and recipes.log2(Fraction(1, 2 ** 149)) == -149


def test_every_recipe_has_a_worked_line():
    named = {line.split()[1] for line in lines("recipes.md")}
    assert set(recipes.RECIPES) <= named | {"ocp", "exact"}


def test_refusals():
    for recipe, name in [("te_mxfp8", "mxfp4"), ("te_nvfp4", "e2m1_ue4m3_t16"), ("triton_up", "mxfp6_e2m3"),
                         ("ggml_mxfp4", "nvfp4"), ("onnx_quantizelinear", "mxfp4")]:
        with pytest.raises(recipes.Refused):
            quantised(recipe, name, ["1"])


# --- what a line of one tile cannot say ----------------------------------------------------------------

def array(recipe, name, texts, shape, axis, outer=None):
    block = refq.data_type(name)
    names = (block.element, block.scale, block.outer, block.zero)
    formats = {n: words(n) for n in names if n}
    q = recipes.quantise([source_value(t) for t in texts], shape, axis, asdict(block), formats, recipe, outer)
    return q, asdict(block), formats


def test_zero_points_of_quantizelinear():
    """REC-23: s = 7.5/15 and 0 -> 1; q = rne(x/s) + z."""
    texts = ["-1.5", "6", "0.25", "0.75", "0", "-0", "0", "0", "1", "inf", "0", "0"]
    q, _, _ = array("onnx_quantizelinear", "uint4_binary32_uint8_t4", texts, (3, 4), 1)
    assert q.scales == [0x3F000000, 0x3F800000, 0x7FC00000]
    assert q.zeros == [3, 0, 0]
    assert q.codes == [0, 15, 3, 5, 0, 0, 0, 0, 0, 0, 0, 0]           # 0.25/s and 0.75/s are ties: to 0 and to 2


def test_given_scales_of_quantizelinear():
    values = [source_value(text) for text in ("1", "-1", "0.5", "1000", "inf", "nan")]
    codes = recipes.quantize_linear(values, recipes.number(Fraction(1, 2)), 128, scalar.facts(words("uint8")))
    assert codes == [130, 126, 129, 255, 255, 0]
    codes = recipes.quantize_linear(values[:1], recipes.number(0), 5, scalar.facts(words("int8")))
    assert codes == [127]


def test_axis_and_ragged_tiles():
    """Tiles run along the axis, the last one shorter; scales in the order of BLOCK-1."""
    texts = [text for k in range(34) for text in (f"{k + 1}", f"{2 * k + 2}")]
    q, _, _ = array("torchao_floor", "mxfp4", texts, (34, 2), 0)
    assert q.scales == [0x7F + 3, 0x7F + 4, 0x7F + 3, 0x7F + 4]        # largest 32, 64, 34, 68
    assert q.codes[:4] == [0, 0, 0, 0] and q.codes[-4:] == [6, 6, 6, 6]


def test_divisors_divide():
    """REC-6: 6/1 under te_nvfp4 has g = 448 and s = 448: 6 * 448 / 448."""
    q, block, formats = array("te_nvfp4", "nvfp4", ["6", "-0.5"], (2,), 0)
    got = recipes.dequantise(q, (2,), 0, block, formats, "te_nvfp4", words("binary32"))
    assert got == [0x40C00000, 0xBF000000]
    q, block, formats = array("modelopt_nvfp4", "nvfp4", ["2688", "-224"], (2,), 0)
    got = recipes.dequantise(q, (2,), 0, block, formats, "modelopt_nvfp4", words("binary32"))
    assert got == [0x45280000, 0xC3600000]


def test_given_tensor_scale():
    """A multiplier 2, and a divisor 1/2, mean the same."""
    for recipe, outer in [("modelopt_nvfp4", 0x40000000), ("compressed_tensors_nvfp4", 0x3F000000)]:
        q, _, _ = array(recipe, "nvfp4", ["12", "3"], (2,), 0, outer)
        assert (q.scales, q.codes, q.outer) == ([0x38], [7, 3], outer)
    with pytest.raises(recipes.Refused):
        array("cudnn_nvfp4", "nvfp4", ["12", "3"], (2,), 0, 0x40000000)


def test_double_rounding_of_quantizelinear():
    """x / s in float32 is a tie that the exact quotient is not: 0.1 in units of amax / 127."""
    found = []
    scale = recipes.div(recipes.number(1), recipes.number(127))
    for k in range(1, 127):
        middle = recipes.mul(recipes.number(Fraction(2 * k + 1, 2)), scale)
        exact = middle.magnitude / scale.magnitude
        if exact != Fraction(2 * k + 1, 2):
            codes = recipes.quantize_linear([middle], scale, 0, scalar.facts(words("int8")))
            found.append(codes[0] != round(exact))
    assert any(found) and not all(found)
