"""refq against numpy, ml_dtypes, gfloat, torch and onnx, through the comparisons of tools/cross.py.

A library may differ only where tools/cross.py predicts it, code by code. The table below lists every such
deviation and the comparisons in which it must show, so that a fixed library, as much as a broken refq, fails
a test.
"""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import refq
from refq.formats.rows import FORMATS
from tools import cross

LOWEST_BINADE = "E8M0: the lowest binade goes up, code 0 is taken for a subnormal"
# library -> cause -> comparisons that show it (a pattern over their names); nothing else may differ
DEVIATIONS = {
    "ml_dtypes": {
        "NaN: another sign or payload": "decode (bfloat16|e3m4|e4m3.*|e5m2.*)",
        "float64 is rounded to float32 first, so twice": "encode .* from binary64",
        LOWEST_BINADE: "encode e8m0 from (binary32|binary64|bfloat16)",
        "integers: cut toward zero and wrapped by a C cast": "encode u?int[124] from binary32",
        "integers: outside int32 the C cast is undefined": "encode u?int[124] from binary32",
    },
    "gfloat": {
        "NaN: always the code of all ones": "encode (e5m2|e4m3fn|binary16|bfloat16) .*",
        "E8M0: zero and what lies below 2^-127 have no code": "encode e8m0 .*",
        "E8M0: a tie goes to the even code, not up": "encode e8m0 rne-.*",
        "unsigned formats: a negative operand stays negative": r"encode (e8m0|binary\d+p\d+u[ef]) .*",
        "SatNone of a finite domain: NaN beyond the range, as after v4.0":
            r"encode binary\d+p\d+.f .*-satnone",
    },
    "torch": {
        "NaN: another sign or payload": "decode .*|encode (bfloat16|binary16) from binary32",
        "float64 is rounded to float32 first, so twice": "encode .* from binary64",
        LOWEST_BINADE: "encode e8m0 from (binary32|binary64|bfloat16)",
    },
    "onnx": {
        "NaN: as ml_dtypes does, with the sign kept, or -0 and +0 where there is none":
            "encode (e4m3fn|e5m2|e2m1) .*",
        LOWEST_BINADE: "encode e8m0 .*",
        "E8M0: infinity becomes NaN, not the largest value": "encode e8m0 saturate=1",
    },
}
# Comparisons per library, so that none goes missing
LEAST = {"numpy": 5, "ml_dtypes": 60, "gfloat": 1000, "torch": 20, "onnx": 12}
PROCESSOR = {("torch", "NaN: another sign or payload")}     # shown or not, by vector unit


@pytest.fixture(scope="module", params=list(cross.LIBRARIES))
def outcomes(request):
    pytest.importorskip(request.param)
    return request.param, [cross.judge(case) for case in cross.LIBRARIES[request.param]()]


def test_no_difference_is_unexplained_and_no_quirk_is_gone(outcomes):
    library, judged = outcomes
    assert len(judged) >= LEAST[library]
    lines = [line for outcome in judged for line in outcome.lines()]
    assert not lines, f"{len(lines)} lines, the first:\n" + "\n".join(lines[:10])


def test_every_deviation_is_in_the_table_and_shows(outcomes):
    library, judged = outcomes
    if library == "numpy":      # whether signalling NaNs turn quiet depends on the processor
        assert {cause for outcome in judged for cause in outcome.causes} <= {
            "NaN: signalling NaNs are not made quiet where the processor does not do it"}
        return
    table = DEVIATIONS[library]
    shown = {(cause, outcome.case.what) for outcome in judged for cause in outcome.causes}
    listed = {(cause, outcome.case.what) for outcome in judged for cause, pattern in table.items()
              if re.fullmatch(pattern, outcome.case.what)}
    assert shown <= listed, sorted(shown - listed)[:5]
    missing = {pair for pair in listed - shown if (library, pair[0]) not in PROCESSOR}
    assert not {pair for pair in missing if _reachable(*pair)}, sorted(missing)[:5]
    assert {cause for cause, _ in shown} >= {cause for cause in table if (library, cause) not in PROCESSOR}


def _reachable(cause, what):
    """Formats of one positive value or without overflow from float32 cannot show every cause."""
    wide = re.search(r"binary(\d+)p(\d+)([su])([ef])", what)
    if not wide:
        return True
    row = refq.number_format(wide[0])
    if cause.startswith("SatNone"):
        return "rtz" not in what and row.max < FORMATS["binary32"].max and row.signed
    return row.min_positive > FORMATS["binary32"].min_positive


def test_numpy_and_refq_agree_on_every_finite_cast():
    cases = list(cross.numpy_cases())
    assert len(cases) == LEAST["numpy"]
    for case in cases:
        finite = ~np.isnan(cross.values(case))
        assert finite.sum() > 60_000
        assert np.array_equal(case.ours[finite], case.theirs[finite])


# --- single cases typed by hand: (type, operand, what ml_dtypes gives, what one rounding gives) ---------

TWICE = [
    ("float8_e4m3fn", 1.0625 + 2.0 ** -30, 0x38, 0x39),
    ("float8_e4m3fn", -431.99999999999994, 0xFE, 0xFD),
    ("bfloat16", 1 + 2.0 ** -8 + 2.0 ** -40, 0x3F80, 0x3F81),
    ("float4_e2m1fn", 0.25 + 2.0 ** -40, 0x0, 0x1),
]


@pytest.mark.parametrize("name, x, twice, once", TWICE)
def test_ml_dtypes_rounds_float64_twice_and_refq_once(name, x, twice, once):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    word = f"u{np.dtype(getattr(ml_dtypes, name)).itemsize}"
    assert np.array([x]).astype(getattr(ml_dtypes, name)).view(word)[0] == twice
    assert refq.encode(np.array([x]), name)[0] == once
    assert refq.encode(np.array([x]).astype(np.float32), name)[0] == twice


def test_numpy_keeps_payloads_as_the_ieee_rule_does():
    words = np.uint32([0x7FC00001, 0xFFC00000, 0x7FFFFFFF, 0x7FD55555, 0xFFC02000])
    with np.errstate(all="ignore"):
        theirs = words.view(np.float32).astype(np.float16).view(np.uint16)
    assert refq.encode(words.view(np.float32), "binary16", overflow="ieee").tolist() == theirs.tolist()
    assert theirs.tolist() == [0x7E00, 0xFE00, 0x7FFF, 0x7EAA, 0xFE01]


# --- the judge itself -----------------------------------------------------------------------------------

def small(theirs, *quirks):
    codes = np.arange(4, dtype=np.uint8)
    row = FORMATS["e4m3fn"]
    return cross.Case("here", "decode", row, row, codes, codes, np.array(theirs, np.uint8), quirks)


SEVEN = cross.Quirk("two is seven", lambda case: case.operands == 2, lambda case: np.full_like(case.ours, 7))
ANY = cross.Quirk("three is free", lambda case: case.operands == 3)


@pytest.mark.parametrize("theirs, unexplained, gone, causes", [
    ([0, 1, 2, 3], [], [2], {}),
    ([0, 1, 7, 3], [], [], {"two is seven": 1}),
    ([0, 1, 6, 3], [2], [], {}),
    ([0, 1, 7, 9], [], [], {"two is seven": 1, "three is free": 1}),
    ([0, 5, 7, 9], [1], [], {"two is seven": 1, "three is free": 1}),
])
def test_judge(theirs, unexplained, gone, causes):
    outcome = cross.judge(small(theirs, SEVEN, ANY))
    assert (outcome.unexplained.tolist(), outcome.gone.tolist()) == (unexplained, gone)
    assert outcome.causes == causes
    assert len(outcome.lines()) == len(unexplained) + len(gone)
    assert outcome.differences == sum(causes.values()) + len(unexplained)


def test_judge_refuses_an_empty_or_shortened_comparison():
    whole = small([0, 1, 2, 3])
    nothing = replace(whole, operands=whole.operands[:0], ours=whole.ours[:0], theirs=whole.theirs[:0])
    for case in (replace(whole, theirs=whole.theirs[:3]), nothing):
        with pytest.raises(AssertionError, match="nothing to compare"):
            cross.judge(case)


@pytest.mark.parametrize("theirs, code, word", [
    ([0, 1, 2, 3], 0, "0 unexplained"), ([0, 9, 2, 3], 1, "1 unexplained")])
def test_tool_exit_code_and_text(monkeypatch, capsys, theirs, code, word):
    monkeypatch.setattr(cross, "LIBRARIES", {"numpy": lambda: [small(theirs)]})
    assert cross.main([]) == code
    assert word in capsys.readouterr().out


def test_tool_json_and_a_missing_library(monkeypatch, capsys):
    libraries = {"numpy": lambda: [small([0, 1, 7, 3], SEVEN)], "no-such-library": None}
    monkeypatch.setattr(cross, "LIBRARIES", libraries)
    assert cross.main(["--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["version"] == np.__version__ and first["differences"] == {"two is seven": 1}
    assert first["comparisons"] == 1 and first["cases"] == 4 and first["unexplained"] == 0
    assert second["version"] is None and second["comparisons"] == 0
    assert cross.main(["no-such-library"]) == 0
    assert "not installed" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cross.main(["another"])
    assert stop.value.code == 2
