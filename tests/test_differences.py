"""refq diff: which rules differ, the smallest tiles that show it, counts and cost."""

import json
from dataclasses import replace

import numpy as np
import pytest

import refq
from refq.blocks.recipes import RECIPES
from refq.conformance.diff_report import as_dict, text
from refq.conformance.differences import TOP, boundary_tiles, diff
from refq.errors import InputError

INF, NAN = float("inf"), float("nan")


def witness(found, kind):
    return next(one for one in found.witnesses if one.kind == kind)


def test_the_same_recipe_does_not_differ():
    found = diff("ocp", "ocp", "mxfp4")
    assert not found.differ and not found.rules and not found.witnesses
    assert found.counts.tiles > 10000 and found.counts.error_a == found.counts.error_b > 0
    assert text(found) == "ocp and ocp are the same on mxfp4."


# data type, scale rule: a one-value tile with few bits whose scale rule `floor` and that rule choose apart
RULES = [("mxfp4", "ceil", 1.5), ("mxfp4", "rceil", 1.75), ("mxfp4", "even", 1.75), ("mxfp4", "midmax_ge", 1.75),
         ("mxfp4", "tosa", 1.75), ("mxfp8_e4m3", "rceil", 1.875), ("mxfp8_e4m3", "even", 1.9375),
         ("mxfp8_e4m3", "even_e2m1", 1.75), ("mxfp8_e4m3", "midmax", 1.875), ("mxfp6_e2m3", "even", 1.9375)]


@pytest.mark.parametrize("dtype, rule, value", RULES)
def test_scale_rules_are_told_apart_by_one_value(dtype, rule, value):
    """formats.md 3.2: the significand where each rule leaves floor."""
    found = diff("ocp", f"ocp,rule={rule}", dtype)
    assert [field for field, *_ in found.rules] == ["rule"]
    shown = witness(found, "the scale of an ordinary tile")
    assert shown.values == (value,)
    assert int(shown.b["scale"], 16) == int(shown.a["scale"], 16) + 1
    assert found.counts.scales and found.counts.decoded


def test_strict_and_inclusive_midpoints():
    """Row 30 of the disagreements: amax exactly on the midpoint."""
    found = diff("ocp,rule=midmax", "ocp,rule=midmax_ge", "mxfp4")
    shown = witness(found, "the scale of an ordinary tile")
    assert shown.values == (1.75,) and (shown.a["scale"], shown.b["scale"]) == ("7d", "7e")
    assert not diff("ocp,rule=tosa", "ocp,rule=midmax", "mxfp8_e4m3").differ
    assert not diff("ocp,rule=tosa", "ocp,rule=midmax_ge", "mxfp4").differ


@pytest.mark.parametrize("change, kind, value, scales", [
    ("zero_tile=one", "the scale of a tile of zeros", 0.0, ("00", "7f")),
    ("nan_tile=ignored", "the scale of a tile with a NaN", NAN, ("ff", "00")),
    ("inf_tile=largest", "the scale of a tile with an infinity", INF, ("ff", "fe")),
    ("inf_tile=ignored", "the scale of a tile with an infinity", INF, ("ff", "00"))])
def test_named_choices_show_on_their_own_tiles(change, kind, value, scales):
    found = diff("ocp", f"ocp,{change}", "mxfp4")
    assert {one.kind for one in found.witnesses} == {kind}
    shown = found.witnesses[0]
    assert np.array_equal(shown.values, (value,), equal_nan=True)
    assert (shown.a["scale"], shown.b["scale"]) == scales
    assert not found.counts.decoded             # the counted set is finite


def test_roundings_differ_in_elements_alone():
    found = diff("ocp", "ocp,rounding=rnz", "mxfp4")
    shown = witness(found, "the code of a number of an ordinary tile")
    assert len(shown.values) == 2 and shown.a["scale"] == shown.b["scale"]
    assert found.counts.scales == 0 < found.counts.codes == found.counts.decoded


def test_a_tensor_scale_is_kept_apart():
    found = diff("exact", "exact,tiny_tile=flush", "nvfp4")
    shown = witness(found, "the scale of a tile below the smallest scale")
    assert (shown.a["scale"], shown.b["scale"]) == ("01", "00")
    x = np.float32([[TOP], [shown.values[0]]])
    q = refq.quantize(x, "nvfp4")
    assert f"{q.scales[1, 0]:02x}" == "01" and float(q.tensor_scale) == shown.a["tensor_scale"]


def test_counts_on_given_data():
    x = np.float32([[1.75] * 32 + [1.0] * 32])
    found = diff("ocp", "ocp,rule=ceil", "mxfp4", [(x, -1)], "two tiles")
    counts = found.counts
    assert (counts.tiles, counts.values, counts.scales, counts.codes) == (2, 64, 1, 32)
    assert counts.decoded == 32 and found.data == "two tiles"
    assert counts.error_a == 32 * 0.25 ** 2 and counts.error_b == 32 * 0.25 ** 2
    assert "scales          1       2   50.000%" in text(found)


def test_every_witness_is_what_quantize_gives():
    for dtype, a, b in (("mxfp6_e3m2", "ocp", "ocp,rule=rceil,zero_tile=one,rounding=rna"),
                        ("mx6", "ocp", "ocp,rule=even"), ("int4", "exact", "exact,zero_tile=one"),
                        ("mxfp4_32x32", "ocp", "ocp,rule=ceil"), ("uint4", "exact", "exact,zero_tile=one")):
        found = diff(a, b, dtype)
        assert found.differ
        for one in found.witnesses:
            x = np.float32(one.values)[None]
            for recipe, shown in ((a, one.a), (b, one.b)):
                q = refq.quantize(x, dtype, recipe=recipe)
                assert int(shown["scale"], 16) == q.scales.ravel()[0]
                assert [int(code, 16) for code in shown["codes"]] == q.codes.ravel().tolist()
                assert np.array_equal(shown["values"], q.dequantize(np.float64).ravel(), equal_nan=True)


def test_json_is_json():
    found = as_dict(diff("ocp", "ocp,nan_tile=ignored,rule=ceil", "mxfp4"))
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found and again["differ"] and again["data"]["tiles"] > 10000
    assert {one["field"] for one in again["rules"]} == {"rule", "nan_tile"}
    assert any(one["values"] == ["nan"] and one["words"] == ["7fc00000"] for one in again["witnesses"])


def test_rows_may_be_given():
    mine = replace(RECIPES["ocp"], name="mine", rule="ceil")
    assert diff("ocp", mine, "mxfp4").b.name == "mine"


@pytest.mark.parametrize("a, b, dtype, words", [
    ("ocp", "exact", "mxfp4", "'exact' is for float scales, but mxfp4 has the exponent scale e8m0"),
    ("ocp", "opc", "mxfp4", "recipe 'opc' is not known; allowed are ocp"),
    ("ocp", "ocp,rule=amax", "mxfp4", "scale rule amax is not for the scale e8m0 of mxfp4"),
    ("ocp", "ocp,rule=up", "mxfp4", "scale rule 'up' is not known"),
    ("ocp", "ocp,tile=3", "mxfp4", "'tile=3' is no change; allowed are rule, zero_tile"),
    ("ocp", "ocp,zero_tile=two", "mxfp4", "zero_tile 'two' is not known; allowed are lowest, one"),
    ("ocp", "ocp", "e4m3fn", "e4m3fn has no scale, so recipes do not differ on it")])
def test_refused(a, b, dtype, words):
    with pytest.raises(InputError, match=words):
        diff(a, b, dtype)


@pytest.mark.parametrize("dtype, thresholds", [
    ("mxfp4", (1, 1.5, 1.75)), ("mxfp8_e4m3", (1, 1.75, 1.8125, 1.9375)), ("mxfp8_e5m2", (1, 1.75, 1.875)),
    ("mxfp6_e2m3", (1, 1.875, 1.9375)), ("mxint8", (1, 1.984375, 1.9921875))])
def test_boundary_tiles_hold_every_threshold(dtype, thresholds):
    """formats.md 3.2's table of thresholds, each with its float32 neighbours."""
    tops = set(np.concatenate(list(boundary_tiles(refq.data_type(dtype))))[:, 0].tolist())
    for value in map(np.float32, thresholds):
        assert {float(value), float(np.nextafter(value, np.float32(0))),
                float(np.nextafter(value, np.float32(9)))} <= tops
