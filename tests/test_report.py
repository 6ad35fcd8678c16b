"""The report on a quantised model: totals worked out by hand, and its three faces: text, JSON, page."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from onnx_models import every_layer, matmul_model, weight

from refq.models import page, report_page, report_text
from refq.models.compare import Answers, Comparison, OutputFigures
from refq.models.quantize import quantize_model
from refq.models.report import OutputErrors, Report, Row

INF, NAN = math.inf, math.nan


def row(output="y", **facts):
    given = dict(node="", op="MatMul", output=output, tensor="w", shape=(4, 4), dtype="mxfp4",
                 status="quantised", method="rtn", parameters=16, bits=4.25, stored_bits=4.5, sqnr_db=18.0,
                 saturated=0.01, flushed=0.1, histogram=page.histogram(np.ones(3), np.ones(3)))
    return Row(**(given | facts))


def made(*rows, **facts):
    given = dict(rows=tuple(rows), dtype="mxfp4", method="rtn", export="native", rounding="rne", recipe="ocp",
                 version="0", parameters=100, source_bytes=4000, target_bytes=1000)
    return Report(**(given | facts))


def errors(error=2.0, rtn=8.0, asked_error=None, **facts):
    """Of a layer with the signal 100."""
    given = dict(asked="ed", rows=96, held=32, signal=100.0, rtn_error=rtn,
                 asked_error=error if asked_error is None else asked_error, error=error, local_error=1.0,
                 inherited_error=0.5, seconds=1.25)
    return OutputErrors(**(given | facts))


def diffused(output="y", *, method="ed", facts=None, **numbers):
    """A row with output errors."""
    return row(output, method=method, errors=errors(**numbers), **(facts or {}))


SKIPPED = Row("g", "Gather", "e", "table", (9, 4), "float32", "skipped", "a <reason>", parameters=36)
LOGITS = OutputFigures("logits", (8, 10), 80, 79, 0, 15.25, 0.98, 1.5, 8, 0.0125, 0, 0.975)
COMPARED = Comparison("m.onnx", "quantised", "calib.npz", "numpy", 32, 4, (LOGITS,), "logits", 30,
                      (Answers("m.onnx", 0.9, 0.3, None), Answers("quantised", 0.8, 0.4, None)), ("a note",))


# -- output errors of one layer ------------------------------------------------------------------------------

def test_output_errors_by_hand():
    """Signal 100; direct cast loses 8, the layer as kept 2 (0.5 of it inherited), alone it loses 1."""
    found = errors()
    assert (found.ratio, found.asked_ratio, found.added_error, found.hurt) == (0.25, 0.25, 1.5, 0.015)
    for db, quotient in ((found.accumulated_sqnr_db, 50), (found.rtn_sqnr_db, 12.5),
                         (found.inherited_sqnr_db, 200), (found.local_sqnr_db, 100)):
        assert db == pytest.approx(10 * math.log10(quotient), rel=1e-14)
    unknown = errors(local_error=None, inherited_error=None)
    assert unknown.local_sqnr_db is unknown.inherited_sqnr_db is unknown.added_error is None
    assert unknown.hurt == 0.02


def test_output_errors_at_the_edges():
    exact = errors(0.0, 0.0, local_error=0.0, inherited_error=0.0)
    assert exact.ratio is exact.asked_ratio is None and exact.hurt == 0
    assert exact.accumulated_sqnr_db == exact.local_sqnr_db == exact.rtn_sqnr_db == INF
    rounded = errors(-1e-14, 8.0, inherited_error=-1e-13)       # sums that rounding left below 0
    assert rounded.ratio == rounded.hurt == rounded.added_error == 0 and rounded.accumulated_sqnr_db == INF
    assert errors(signal=0.0).accumulated_sqnr_db == -INF and errors(signal=0.0).hurt == INF
    assert errors(0.0, signal=0.0, inherited_error=0.0).hurt == 0
    assert math.isnan(errors(NAN).accumulated_sqnr_db) and errors(NAN).hurt == INF
    assert errors(INF).accumulated_sqnr_db == -INF and errors(INF).hurt == INF
    assert errors(0.25).hurt == -0.0025                         # less than what it inherited


# -- totals --------------------------------------------------------------------------------------------------

def test_a_shared_weight_counts_once():
    both = made(row("a", shared=("b",)), row("b", shared=("a",), first=False), row("c", bits=8.0, sqnr_db=40.0), SKIPPED)
    assert [r.output for r in both.weights] == ["a", "c"] and both.quantised_parameters == 32
    assert both.average_bits == (4.25 + 8) / 2 and both.worst.output == "a"
    assert "shared with b" in both.table() and "shared with b" in both.to_html()


def test_nothing_lost_and_nothing_done():
    assert made(row(sqnr_db=INF)).worst is None
    assert "Every quantised weight is exact" in made(row(sqnr_db=INF)).table()
    nothing = made(SKIPPED)
    assert nothing.average_bits is None and "No weight was quantised" in nothing.table()
    assert "No weight was quantised" in nothing.to_html() and json.dumps(nothing.to_json(), allow_nan=False)
    exact = made(diffused(error=0.0, rtn=0.0, inherited_error=0.0))
    assert exact.worst is exact.lowest is None and exact.gain.mean_ratio is None
    assert "The outputs of every layer are exact" in exact.table() and "exact" in exact.to_html()


def test_the_gain_over_direct_cast():
    """Ratios 1/4, 1/8, 1 (direct cast kept) and one without: geometric mean 32^(-1/3), median 1/4."""
    found = made(diffused("a"), diffused("b", error=1.0),
                 diffused("c", method="rtn", error=8.0, asked_error=12.0),
                 diffused("d", error=0.0, rtn=0.0), diffused("e", method="rtn", asked="rtn", error=8.0),
                 row("f"), SKIPPED)
    gain = found.gain
    assert (gain.layers, gain.better, gain.worse, gain.rtn_kept) == (4, 2, 0, 1)
    assert gain.mean_ratio == pytest.approx(32 ** (-1 / 3), rel=1e-14) and gain.median_ratio == 0.25
    assert len(found.measured) == 5
    text = found.table()
    assert ("against direct cast: 2 of 4 layers better; direct cast kept in 1; "
            "geometric mean 0.31, median 0.25") in text
    assert "ed had 1.50 times the error" in text and "outputs not measured; weights 18.0 dB" in text
    assert made(diffused("a", error=9.0)).gain.worse == 1
    assert made(row()).gain is None and made(diffused(asked="rtn", method="rtn")).gain is None


def test_the_layer_that_hurts_is_the_one_that_adds_most():
    """b's outputs are worst, but 60 of its 64 come from before; a adds 30."""
    a, b = diffused("a", error=30.0, inherited_error=0.0), diffused("b", error=64.0, inherited_error=60.0)
    found = made(a, b)
    assert found.worst is a and found.lowest is b
    text = " ".join(found.table().split())
    assert ("a (MatMul) hurts most: its outputs have an SQNR of 5.2 dB, and would be exact had it stayed in "
            "float. The lowest SQNR, 1.9 dB, is that of b, most of it from layers before it.") in text
    assert "Output errors are 5.48 times those of direct cast" in text      # sqrt(30/8 * 64/8)
    html = found.to_html()
    chart = html[html.index("Which layer hurts"):html.index("Along the depth")]
    assert re.findall(r"<title>(\w)</title>", chart)[:2] == ["a", "b"]


def test_data_types_differ_by_layer():
    found = made(row("a"), row("b", dtype="nvfp4", bits=4.5), row("c"), SKIPPED, rules=(("b", "nvfp4:rtn"),))
    assert found.dtypes == {"mxfp4": 2, "nvfp4": 1}
    assert "mxfp4 in 2 layers, nvfp4 in 1" in found.table() and "rule: b = nvfp4:rtn" in found.table()
    html = found.to_html()
    assert "mxfp4 in 2 layers, nvfp4 in 1" in html and "rule b</dt><dd>nvfp4:rtn" in html
    assert "1 rule beside it" in html and "4.33 bits per weight" in found.table()
    assert made(row()).dtypes == {"mxfp4": 1} and "mxfp4 in" not in made(row()).table()


# -- faces without calibration -------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def full():
    """Every kind of layer, one of them left out."""
    done = quantize_model(every_layer()[0], dtype="mxfp4", method="rtn")
    return replace(done, rows=tuple(replace(SKIPPED, output="conv3") if row.output == "conv3" else row
                                    for row in done.rows))


def test_text(full):
    text = full.table()
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["layer", "op", "weight"] and max(map(len, lines)) <= 130
    assert sum("<- worst" in line for line in lines) == 1 and "skipped: a <reason>" in text
    assert "27 of 28 layers quantised" in text
    worst = next(line for line in lines if "<- worst" in line).split()[0]
    assert any(line.startswith(f"{worst} (") and "hurts most" in line for line in lines)


def test_json_is_plain_and_keeps_its_schema(full):
    data = json.loads(json.dumps(full.to_json(), allow_nan=False))
    assert list(data) == [
        "refq_report", "refq_version", "source", "target", "settings", "totals", "warnings", "rows",
        "comparison"
    ]
    assert data["refq_report"] == 2 and data["comparison"] is None
    assert list(data["settings"]) == ["dtype", "method", "export", "rounding", "recipe", "rules",
                                      "calibration"]
    assert list(data["totals"]) == [
        "layers", "quantised_layers", "measured_layers", "dtypes", "parameters", "quantised_parameters",
        "average_bits", "average_stored_bits", "source_bytes", "target_bytes", "worst_output",
        "worst_sqnr_db", "gain", "memory", "seconds"
    ]
    assert list(data["rows"][0]) == [
        "node", "op", "output", "tensor", "shape", "dtype", "status", "reason", "where", "reached", "axis",
        "method", "parameters", "bits", "stored_bits", "encoding", "sqnr_db", "saturated", "flushed",
        "shared", "histogram", "errors", "first"
    ]
    assert list(data["rows"][0]["histogram"]) == ["low", "high", "before", "after"]
    assert {r["status"] for r in data["rows"]} == {"quantised", "skipped"}
    assert {r["errors"] for r in data["rows"]} == {None}


def test_the_page_stands_alone(full):
    html = full.to_html(extra_sections=[("More", "<p id='own'>own html</p>")])
    assert html.startswith("<!doctype html>") and "<p id='own'>own html</p>" in html
    assert html.count("<figure>") == 27 and "a &lt;reason&gt;" in html
    stands_alone(html)


def stands_alone(html):
    assert "<script" not in html and "prefers-color-scheme: dark" in html
    assert not re.search(r"""(?:src|href)\s*=|url\(|https?://|@import""", html)
    for tag in ("section", "table", "svg", "figure", "main", "div", "details", "p", "b", "small", "text"):
        assert len(re.findall(f"<{tag}[ >]", html)) == html.count(f"</{tag}>"), tag


def test_the_worst_layers_come_first():
    rows = [row(f"l{i}", sqnr_db=20.0 + i) for i in range(60)]
    html = made(*reversed(rows)).to_html()
    chart = html[html.index("Which layer hurts"):html.index("Every layer")]
    assert re.findall(r"<title>l(\d+)</title>", chart) == [str(i) for i in range(report_page.WORST)]
    assert "The worst 40 of 60 are shown" in chart


@pytest.mark.parametrize("db", [INF, 30, 29.9, 18, 17, 0, -3, -INF, NAN])
def test_any_sqnr_is_drawn(db):
    made(row(sqnr_db=db), row("z")).to_html()
    assert made(row(sqnr_db=db), row("z")).table()


def test_a_report_of_a_model_in_memory():
    done = quantize_model(matmul_model(weight(64, 8)), method="rtn")
    assert done.source == done.target == "" and "model: quantised weights" in done.to_html()
    assert replace(done, source="a/b.onnx").to_html().count("b.onnx: quantised weights") == 2


# -- faces with calibration ----------------------------------------------------------------------------------

@pytest.fixture
def measured():
    rows = (diffused("a"), diffused("b", error=30.0, rtn=40.0), SKIPPED,
            diffused("c", method="ed, rtn in 3 of 144 parts", error=4.0, facts={"dtype": "nvfp4"}))
    return made(*rows, method="ed", calibration="calib.npz: 512 rows", comparison=COMPARED,
                memory="1 GB", seconds=754.0, warnings=("a warning",))


def test_the_table_of_outputs(measured):
    text = measured.table()
    lines = text.splitlines()
    assert lines[0].split() == ("layer op weight data type method bits float dB rtn dB kept dB ratio "
                                "local dB sat. % flush. % s").split()
    assert lines[2].split() == ("a MatMul 4x4 mxfp4 ed 4.25 23.0 11.0 17.0 0.25 20.0 1.00 10.0 1.2").split()
    assert lines[3].endswith("<- hurts most") and lines[4].endswith("skipped: a <reason>")
    assert "ed+rtn" in lines[5] and lines[5].endswith("ed, rtn in 3 of 144 parts")
    assert max(map(len, lines[:1] + lines[6:9])) <= report_text.WIDTH
    for words in ("Measured on 32 rows held back.", "calibration: calib.npz: 512 rows",
                  "time: 12 min 34 s; memory: 1 GB", "note: a warning", "note: a note",
                  "logits 8x10 15.2 0.980000 1.5 0.0125 97.50 %", "float 90.00 % 0.3000",
                  "quantised 80.00 % 0.4000",
                  "Top-1 goes from 90.00 % to 80.00 %, NLL from 0.3000 to 0.4000."):
        assert words in " ".join(text.split()), words
    assert "that the codes were made from" in made(diffused(held=0)).table()


def test_columns_with_nothing_to_say_are_left_out():
    text = made(diffused(asked="rtn", method="rtn", local_error=None, seconds=None)).table()
    assert text.splitlines()[0].split("bits")[1].split() == "float dB kept dB sat. % flush. %".split()
    assert "rtn dB" not in text and "ratio" not in text and "direct cast" not in text
    html = made(diffused(asked="rtn", method="rtn", local_error=None, seconds=None)).to_html()
    assert "<th class=\"n\">rtn dB" not in html and "error vs direct cast" not in html


def test_long_names_are_cut_where_they_stay_different():
    rows = [diffused(f"/model/layers.{i}/self_attn/{p}_proj/MatMul") for i in (0, 11) for p in "qk"]
    assert [line.split()[0] for line in made(*rows).table().splitlines()[2:6]] == [
        "0/self_attn/q_proj", "0/self_attn/k_proj", "11/self_attn/q_proj", "11/self_attn/k_proj"]
    rows = [diffused(f"{'x' * 30}{i}{'y' * 30}") for i in range(2)]
    names = [line.split()[0] for line in made(*rows).table().splitlines()[2:4]]
    assert names == ["..." + "0" + "y" * 30, "..." + "1" + "y" * 30]


def test_many_outputs_are_told_by_the_worst():
    outputs = tuple(OutputFigures(f"o{i}", (2,), 2, 2, sqnr_db=20.0 - i, cosine=1.0) for i in range(9))
    found = replace(COMPARED, outputs=(*outputs, LOGITS))
    text = made(diffused(), comparison=found).table()
    at = [text.index(f"\n{name} ") for name in ("logits", "o8", "o7", "o6", "o5", "o4")]
    assert at == sorted(at) and "\no3 " not in text and "and 4 more outputs" in text
    assert "o3" in made(diffused(), comparison=found).to_html()


def test_json_with_outputs(measured):
    data = json.loads(json.dumps(measured.to_json(), allow_nan=False))
    found = data["rows"][0]["errors"]
    assert list(found) == [
        "asked", "rows", "held", "signal", "rtn_error", "asked_error", "error", "local_error",
        "inherited_error", "seconds", "ratio", "asked_ratio", "added_error", "accumulated_sqnr_db",
        "rtn_sqnr_db", "inherited_sqnr_db", "local_sqnr_db"
    ]
    assert found["ratio"] == 0.25 and found["local_sqnr_db"] == 20
    totals = data["totals"]
    assert totals["worst_output"] == "b" and totals["worst_sqnr_db"] == 10 * math.log10(100 / 30)
    assert totals["gain"] == {"layers": 3, "better": 3, "worse": 0, "rtn_kept": 0, "median_ratio": 0.5,
                              "mean_ratio": pytest.approx((0.25 * 0.75 * 0.5) ** (1 / 3), rel=1e-14)}
    assert (totals["measured_layers"], totals["memory"], totals["seconds"]) == (3, "1 GB", 754.0)
    assert data["comparison"]["outputs"][0]["sqnr_db"] == 15.25
    strange = made(diffused(error=INF, rtn=NAN), diffused("b", error=0.0, signal=NAN),
                   rules=(("*", "float"),))
    data = json.loads(json.dumps(strange.to_json(), allow_nan=False))
    assert data["rows"][0]["errors"]["error"] == "inf" and data["settings"]["rules"] == [["*", "float"]]
    assert data["rows"][0]["errors"]["accumulated_sqnr_db"] == "-inf"


def test_the_page_of_outputs(measured):
    html = measured.to_html()
    stands_alone(html)
    at = [html.index(f"<h2>{title}") for title in (
        "Which layer hurts", "Along the depth of the network", "The whole model", "Against the labels",
        "Every layer", "Weights before and after", "How it was made", "Notes", "What the columns mean",
        "What is said of the whole model")]
    assert at == sorted(at) and html.index('class="tiles"') < at[0]
    for words in ("0.45×", "3 of 3 layers better; geometric mean 0.45, median 0.50",    # (3/32)^(1/3)
                  "mxfp4 in 2 layers, nvfp4 in 1", "80.00 %", "float: 90.00 %", "lowest output SQNR",
                  "3: c\nnvfp4, ed, rtn in 3 of 144 parts\n14.0 dB as kept\n11.0 dB cast directly", "a note",
                  "hurts most</span>", "12 min 34 s", "mxfp4:ed"):
        assert words in html, words
    text = replace(COMPARED, answers=tuple(replace(a, perplexity=math.exp(a.nll)) for a in COMPARED.answers))
    assert "float: 1.35; top-1 80.00 %" in replace(measured, comparison=text).to_html()
    assert "97.50 % same top-1" in replace(measured, comparison=replace(COMPARED, answers=())).to_html()


def test_a_page_of_many_layers():
    rows = [diffused(f"l{i}", error=50.0 - i / 10, rtn=60.0) for i in range(200)]
    html = made(*rows).to_html()
    stands_alone(html)
    chart = html[html.index("Which layer hurts"):html.index("Along the depth")]
    names = re.findall(r"<title>l(\d+)</title>", chart)
    assert names == [str(i) for i in range(report_page.WORST)] and "the next 26</summary>" in chart
    assert "The worst 40 of 200 are shown" in chart and html.count('class="place"') == 200


@pytest.mark.parametrize("facts", [{"error": 0.0, "rtn": 0.0, "inherited_error": 0.0}, {"error": INF},
                                   {"error": NAN}, {"signal": 0.0}, {"inherited_error": None},
                                   {"error": 1e300, "rtn": 1e-300}, {"error": -1e-9}, {"signal": NAN},
                                   {"local_error": None, "inherited_error": None, "seconds": None}])
def test_any_errors_are_told(facts):
    for rows in ((diffused(**facts),), (diffused(**facts), diffused("z"), row("w"))):
        found = made(*rows, method="ed")
        assert found.table() and json.dumps(found.to_json(), allow_nan=False)
        html = found.to_html()
        stands_alone(html)
        assert not re.search(r'="-?(nan|inf)', html)


def test_the_page_escapes_what_a_model_may_contain():
    hostile = dict(node="<script>alert(1)</script>", tensor="a&b", op="<i>", dtype="<s>")
    strange = replace(COMPARED, outputs=(replace(LOGITS, name="<em>"),), notes=("<q>",), data="<tt>")
    for rows in ((row("<b>x</b>", **hostile), SKIPPED),
                 (diffused("<b>x</b>", facts=hostile), diffused("<b>y</b>"), SKIPPED)):
        html = made(*rows, warnings=("<u>",), source="<s>.onnx", comparison=strange, calibration="<tt>",
                    memory="<tt>", rules=(("<i>", "<i>"),)).to_html()
        assert not re.search(r"<script|<b>[xy]|<i>|<u>|<s>|<tt>|<em>|<q>", html)
        assert "&lt;script&gt;" in html and "a <reason>" not in html


@pytest.mark.parametrize("names, short", [(["/m/l.0/q/MatMul", "/m/l.1/k/MatMul"], ["0/q", "1/k"]),
                                          (["conv1", "conv2"], ["conv1", "conv2"]), (["a"], ["a"]), ([], []),
                                          (["a/x", "a/x"], ["a/x", "a/x"]), (["a/b", "a/b/c"], ["b", "b/c"]),
                                          (["x.weight", "y.weight"], ["x.", "y."])])
def test_short_names(names, short):
    assert page.short_names(names) == short
