"""TensorCast's language: numbers, scales, whole data types, and the way back into its strings."""

from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st

import refq
from refq.blocks import tensorcast
from refq.blocks.codebooks import codebook
from refq.blocks.tensorcast import PREDEFINED, number, parse, spell
from refq.errors import InputError
from spec.oracle import codebooks as oracle


@dataclass(frozen=True)
class Fields:
    """The fields of a Block that the strings say."""

    element: str
    scale: str | None = None
    zero: str | None = None
    outer: str | None = None
    tile: object = None
    subtiles: tuple = ()
    sparsity: tuple | None = None
    name: str = "it"


# two strings -> the fields they say, typed by hand from docs/number.md and docs/scale.md
SAID = {
    ("tcast:e2m1fnuz", "e8m0_t32"): dict(element="e2m1b1fnuz", scale="e8m0", tile=32),
    ("tcast:e4m3fnuz", "float32"): dict(element="e4m3b7fnuz", scale="binary32", tile="tensor"),
    ("e4m3b8fnuz", "float32_t0"): dict(element="e4m3fnuz", scale="binary32", tile="channel"),
    ("e4m3fn", "float32_t"): dict(element="e4m3fn", scale="binary32", tile="channel"),
    ("float8_e5m2fnuz", "bfloat16_t16"): dict(element="e5m2fnuz", scale="bfloat16", tile=16),
    ("torch.float8_e4m3fn", "e5m0_t8"): dict(element="e4m3fn", scale="e5m0scale", tile=8),
    ("tcast:int8", "e8m0_t8"): dict(element="e1m6b1fnuz", scale="e8m0", tile=8),
    ("tcast:int3", "e4m0_t4"): dict(element="e1m1b1fnuz", scale="e4m0scale", tile=4),
    ("uint4", "float16_int8_t16n2m4"): dict(
        element="uint4", scale="binary16", zero="int8", tile=16, sparsity=(2, 4)),
    ("uint8", "bfloat16_bfloat16_t0_t32"): dict(
        element="uint8", scale="bfloat16", zero="bfloat16", tile=("channel", 32)),
    ("e4m3fn", "tcast:e4m3_float32_t16_t16"): dict(
        element="e4m3fn", scale="e4m3ieee", outer="binary32", tile=(16, 16)),
    ("cb42f1346_e2m3fnuz", "e8m0_t32s8"): dict(
        element="cb42f1346_e2m3fnuz", scale="e8m0", tile=32, subtiles=((8, 0),)),
    ("CB41FI_E2M2FNUZ", "E8M0_T16S4_T16S4"): dict(
        element="cb41fi_e2m2fnuz", scale="e8m0", tile=(16, 16), subtiles=(((4, 4), 0),)),
    ("tcast:int8", "e8m0_t16s2o1"): dict(element="e1m6b1fnuz", scale="e8m0", tile=16, subtiles=((2, 1),)),
    ("tcast:e2m1fnuz", "e8m0_t32s8o2n2m4"): dict(
        element="e2m1b1fnuz", scale="e8m0", tile=32, subtiles=((8, 2),), sparsity=(2, 4)),
    ("e2m1fnuz", "e8m0_t8_t32s8o1"): dict(
        element="e2m1b1fnuz", scale="e8m0", tile=(8, 32), subtiles=(((8, 8), 1),)),
    ("e2m1fnuz", "int8_t32"): dict(element="e2m1b1fnuz", scale="pow2int8", tile=32),
    ("e5m2", None): dict(element="e5m2"),
    ("tcast:e5m2", None): dict(element="e5m2"),
    ("bfloat16", None): dict(element="bfloat16"),
    ("float24", None): dict(element="e8m15ieee"),
    ("float12", None): dict(element="e5m6ieee"),
    ("binary8p2", None): dict(element="tcast:e6m1b32inuz"),
    ("tcast:e2m1fnuz_e8m0_t32", None): dict(element="e2m1b1fnuz", scale="e8m0", tile=32),
    ("TCAST:cb42f1346_e2m3fnuz_e8m0_t32s8", None): dict(
        element="cb42f1346_e2m3fnuz", scale="e8m0", tile=32, subtiles=((8, 0),)),
    ("tcast:float8_e4m3fnuz_float32_t16_t0", None): dict(
        element="e4m3fnuz", scale="binary32", tile=(16, "channel")),
    ("tcast:mx6", None): dict(element="cb51ie_int7", scale="e8m0", tile=16, subtiles=((2, 0),)),
    ("tcast:uint8_Fi", None): dict(element="uint8", scale="binary32", zero="int8", tile="tensor"),
    ("tcast:uint8_FF", None): dict(element="uint8", scale="binary32", zero="binary32", tile="tensor"),
    ("tcast:uint8_ff", None): dict(element="uint8", scale="binary16", zero="binary16", tile="tensor"),
    ("tcast:FP8_EC", None): dict(element="e4m3fn", scale="e8m0", tile="channel"),
    ("tcast:nvf4", None): dict(element="e2m1b1fnuz", scale="e4m3ieee", tile=16),
    ("tcast:mxfp4s16", None): dict(element="e2m1b1fnuz", scale="e8m0", tile=(16, 16)),
    ("tcast:mxfp4f4", None): dict(element="cb42f1346_e2m3fnuz", scale="e8m0", tile=32, subtiles=((8, 0),)),
}


@pytest.mark.parametrize("strings", SAID, ids=lambda pair: "-".join(filter(None, pair)))
def test_hand_typed_types(strings):
    assert parse(*strings) == SAID[strings]


@pytest.mark.parametrize("code, largest", [
    ("e4m3fnuz", 480), ("e4m3b8fnuz", 240), ("float8_e4m3fnuz", 240), ("e5m2", 57344), ("e4m3", 240),
    ("e4m3fn", 448),
    ("e2m1fnuz", 6), ("e2m3fnuz", Fraction(15, 2)), ("e3m2fnuz", 28), ("e2m3", Fraction(15, 4)),
    ("int8", Fraction(127, 64)), ("int3", Fraction(3, 2)), ("uint4", 15), ("e4m3b8inuz", 224),
    ("float16", 65504)])
def test_numbers_have_tensorcasts_meaning(code, largest):
    row = number(code)
    assert row.max == largest
    if row.is_float and row.bits <= 8 and not code.startswith("float"):
        assert oracle.line(code)[-1] == largest


@pytest.mark.parametrize("strings, words", [
    (("e4m3fnuz", "e8m0_t32"), r"ambiguous; say which: tcast:e4m3fnuz \(e4m3b7fnuz\) or e4m3b8fnuz"),
    (("e5m2fnuz", None), "tcast:e5m2fnuz .* or e5m2b16fnuz"),
    (("int8", "e8m0_t32"), "ambiguous.*tcast:int8 .*refq's own int8, in one string"),
    (("e2m1", "e8m0_t32"), "ambiguous.*tcast:e2m1 .*refq's own e2m1"),
    (("e2m1fnuz", "e4m3_t16"), "ambiguous; say which: tcast:e4m3, e4m3fn"),
    (("binary8p3", None), "ambiguous"), (("tcast:binary8p4", None), "ambiguous"),
    (("nf4", "float32_t64"), "not a number of TensorCast's"), (("e4m3fn", "nf4_t64"), "not a number of"),
    (("float7", None), "9 to 32 bits"), (("tcast:int1", "e8m0"), "2 to 32"), (("uint40", "e8m0"), "1 to 32"),
    (("e8m0", None), "only a scale"), (("tcast:e8m0_float32", None), "only a scale"),
    (("uint8", "float32"), "need a zero point"), (("uint8", "e8m0_int8"), "need a float scale"),
    (("uint8", "int8_int8"), "need a float scale"), (("uint8", "float32_uint8"), "a zero point is a float"),
    (("uint8", "float32_e8m0"), "a zero point is a float or sig"),
    (("e4m3fn", "t32"), "one or two numbers"), (("e4m3fn", "e8m0_e8m0_e8m0_t32"), "one or two numbers"),
    (("e4m3fn", "e8m0_t32_t32_t32"), "3 tile segments"), (("e4m3fn", "e8m0_t32_float32"), "neither a number"),
    (("e4m3fn", "e8m0_t24"), "no tile of 24"), (("e4m3fn", "e8m0_t2048"), "no tile of 2048"),
    (("e4m3fn", "e8m0_t32d0"), "axis="), (("e4m3fn", "e8m0_t32x"), "neither a number nor a tile"),
    (("e4m3fn", "e8m0_t32s5"), "divides its tile"), (("e4m3fn", "e8m0_t32s1"), "at least 2 values"),
    (("e4m3fn", "e8m0_t0s4"), "divides its tile"), (("e4m3fn", "e8m0_t32o1"), "goes with a subtile"),
    (("e4m3fn", "e8m0_t32s4o3"), "1 or 2 bits"), (("e4m3fn", "e8m0_t8s4o1_t8s4o2"), "different offsets"),
    (("e4m3fn", "e8m0_t0_t0"), "only one of two axes"), (("e4m3fn", "e8m0_t0_t8s4"), "a tile on both axes"),
    (("e4m3fn", "e8m0_t8n2m4_t8"), "last segment"), (("tcast:uint8_Ff", None), "uint8_FF, uint8_ff"),
    (("cb44_e4m3fn", "e8m0_t32"), "nothing of its tables"), (("tcast:", None), "not a number of"),
    (("e4m3fn", ""), "not a number")])
def test_refused_strings(strings, words):
    with pytest.raises(InputError, match=words):
        parse(*strings)


def test_the_prefix_says_which_meaning():
    assert parse("tcast:int8", "e8m0_t32") == parse("tcast:int8", "tcast:e8m0_t32")
    assert parse("tcast:e2m1fnuz", "e4m3_t16") == parse("e2m1fnuz", "tcast:e4m3_t16")
    assert refq.number_format(parse("tcast:e4m3fnuz")["element"]).max == 480


# --- predefined names -------------------------------------------------------------------------------------

def test_predefined_names():
    assert len(PREDEFINED) == 125
    for name, strings in PREDEFINED.items():
        assert parse(f"tcast:{name}") == parse(f"tcast:{strings[0]}", strings[1]), name
    for short, long in (("mxfp8", "mxfp8e4"), ("mxbf8", "mxfp8e5"), ("mxfp4", "mxfp4e2"),
                        ("mxbf6", "mxfp6e3")):
        assert PREDEFINED[short] == PREDEFINED[long]
    assert PREDEFINED["bfp16"] == ("int8", "e8m0_t8") and PREDEFINED["mxint8t16s"] == ("int8", "e8m0_t16_t16")
    assert PREDEFINED["uint4_nic"] == ("uint4", "e4m3_int8_t0") and PREDEFINED["bf8_e"] == ("e5m2", "e8m0")
    assert tensorcast.predefined("e4m3fn") is None


# --- there and back ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", PREDEFINED)
def test_predefined_types_spell_themselves(name):
    assert spell(Fields(**parse(f"tcast:{name}"))) == PREDEFINED[name]


FLOATS = ["float32", "float16", "bfloat16", "e4m3", "e5m2", "e4m3fn", "e5m3fn", "e4m3b8fnuz", "e4m3fnuz",
          "e6m1b32inuz"]
SIZES = st.sampled_from(tensorcast.TILES[1:])


@st.composite
def scale_strings(draw, unsigned):
    """A canonical scale string."""
    if unsigned:
        numbers = [draw(st.sampled_from(FLOATS)), draw(st.sampled_from([*FLOATS, "int8", "int4"]))]
    else:
        numbers = [draw(st.sampled_from([*FLOATS, "e8m0", "e4m0", "e5m0", "e8m0", "int8"]))]
        numbers += draw(st.sampled_from([[], ["float32"]]))
    tiles = []
    sizes = draw(st.lists(SIZES, max_size=2))
    subtiled = draw(st.booleans())
    bits = draw(st.sampled_from(["", "o1", "o2"]))
    for size in sizes:
        sub = draw(st.sampled_from([2 ** n for n in range(1, 10)])) if subtiled else size
        tiles.append(f"t{size}" + (f"s{sub}{bits}" if sub < size else ""))
    if sizes and not subtiled and draw(st.booleans()):
        tiles[draw(st.integers(0, len(tiles) - 1))] = "t0"
    if tiles and draw(st.booleans()):
        m = draw(st.integers(2, 32))
        tiles[-1] += f"n{draw(st.integers(1, m - 1))}m{m}"
    return "_".join([*numbers, *tiles])


NUMBERS = [*FLOATS, "e2m1fnuz", "e2m3fnuz", "e3m2fnuz", "int8", "int4", "int3", "e2m1", "e3m2b1fn", "float24",
           "cb42f1346_e2m3fnuz", "cb41fi_e2m2fnuz", "cb51ie_int7", "icb42fi_e4m3fn"]


@settings(max_examples=500, deadline=None)
@given(st.data(), st.booleans())
def test_round_trip(data, unsigned):
    code = data.draw(st.sampled_from(["uint8", "uint4", "uint2"] if unsigned else NUMBERS))
    scale = data.draw(scale_strings(unsigned))
    fields = parse(f"tcast:{code}", scale)
    said = spell(Fields(**fields))
    assert parse(f"tcast:{said[0]}", said[1]) == fields == parse("tcast:" + "_".join(said))
    assert said[1] == scale and (said[0] == code or code == "float24")


@pytest.mark.parametrize("code", [code for code in NUMBERS if not code.startswith(("int", "cb", "icb"))])
def test_unscaled_round_trip(code):
    said = spell(Fields(**parse(f"tcast:{code}")))
    assert said[1] is None and parse(f"tcast:{said[0]}") == parse(f"tcast:{code}")


@pytest.mark.parametrize("fields, words", [
    (dict(element="e2m1"), "no number that means e2m1"), (dict(element="nf4"), "no number that means nf4"),
    (dict(element="int8"), "no number"), (dict(element="ue4m3"), "no number"),
    (dict(element="mxint8"), "no number"),
    (dict(element="uint8"), "only floats without a scale"), (dict(element="e1m6b1fnuz"), "only floats"),
    (dict(element="e4m3fn", scale="ue4m3", tile=16), "no number that means ue4m3"),
    (dict(element="e4m3fn", scale="e8m0", tile=24), "no tile of 24"),
    (dict(element="e4m3fn", scale="e8m0", tile=(1, 128)), "no tile of 1;"),
    (dict(element="e4m3fn", scale="e8m0", tile=64, subtiles=((8, 1), (4, 1))), "2 levels"),
    (dict(element="e4m3fn", scale="e8m0", tile=16, subtiles=((4, 3),)), "1 or 2 bits"),
    (dict(element="e4m3fn", scale="e8m0", tile="tensor", sparsity=(2, 4)), "cannot say sparsity"),
    (dict(element="e4m3fn", scale="e8m0", tile=("channel", "channel")), "only one of two axes"),
    (dict(element="e4m3fn", scale="binary32", zero="int8", tile=8), "cannot say zero"),
    (dict(element="uint4", scale="binary16", zero="uint4", tile=8), "zero point is a float or signed")])
def test_what_tensorcast_cannot_say(fields, words):
    with pytest.raises(InputError, match=words):
        spell(Fields(**fields))


def test_an_outer_scale_under_another_name():
    assert spell(Fields("e4m3fn", "e8m0", outer="float32", tile=16)) == ("e4m3fn", "e8m0_float32_t16")


def test_codebooks_keep_their_names():
    fields = parse("tcast:cb42f1346_e2m3fnuz", "e8m0_t32s8")
    assert codebook(fields["element"]).width == 4 and spell(Fields(**fields))[0] == fields["element"]
