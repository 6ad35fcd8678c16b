"""The numbers of the report, counted one by one, and its three faces: text, JSON, page."""

import json
import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from onnx_models import every_layer, matmul_model, weight

from refq.blocks.quantize import quantize
from refq.blocks.rows import data_type
from refq.formats.codec import decode
from refq.models import page, report
from refq.models.quantize import quantize_model
from refq.models.report import Report, Row, measure

# -- measuring -----------------------------------------------------------------------------------------------


def measured(x, dtype, axis=-1):
    q = quantize(x, dtype, axis)
    return measure(x, q, q.dequantize()), q


def parts_of(q, size):
    """{axis: values} of parts of a size of the data type's row, a number, "channel" or a pair."""
    axes = q.axis if isinstance(q.axis, tuple) else (q.axis,)
    sizes = size if isinstance(size, tuple) else (size,)
    return {axis: q.shape[axis] if n == "channel" else n for axis, n in zip(axes, sizes, strict=True)}


def part_at(parts, q, index, size):
    """The entry of an array of parts that a value belongs to."""
    if size == "tensor":
        return parts.reshape(-1)[0]
    sizes = parts_of(q, size)
    return parts[tuple(place // sizes.get(axis, 1) for axis, place in enumerate(index))]


def fraction(code, row):
    return Fraction(float(decode(np.array([code]), row, np.float64)[0]))


def beyond(target, row, shift=0):
    """Whether a number rounds to nearest even past the ends of a format that are moved by an integer."""
    values = [Fraction(value) for value, _ in row.ascending] if row.is_listed else ()
    top, bottom = row.max - shift, row.lowest - shift
    if row.is_listed:
        return target > top + (top - values[-2]) / 2 or target < bottom - (values[1] - bottom) / 2
    ulp = 2 * (row.overflow_threshold - row.max)
    rest, end = (target - top, top) if target > top else (bottom - target, bottom)
    return rest > ulp / 2 or (rest == ulp / 2 and (end / ulp) % 2 == 1)


def exact_saturation(x, q):
    """Element by element, in fractions: does it round to nearest even beyond the largest value?"""
    block, count = q.dtype, 0
    for index in np.ndindex(x.shape):
        if q.mask is not None and not q.mask[index]:
            continue
        scale, shift, target = Fraction(1), 0, Fraction(float(x[index]))
        if q.scales is not None:
            scale = fraction(part_at(q.scales, q, index, block.tile), block.scale_row)
            for (size, _), offsets in zip(block.subtiles, q.offsets):
                offset = int(part_at(offsets, q, index, size))
                scale *= Fraction(2) ** (offset if block.rule == "hif4" else -offset)
            scale *= Fraction(float(q.tensor_scale)) if q.tensor_scale is not None else 1
        if scale == 0:
            continue
        if q.zeros is not None:
            zero = fraction(part_at(q.zeros, q, index, block.tile), block.zero_row)
            shift, target = (0, target + zero) if block.zero_row.is_float else (zero, target)
        table = 0 if q.tables is None else part_at(q.tables, q, index, block.select_size)
        count += beyond(target / scale, block.tables[table], shift) and x[index] != 0
    return count / x.size


@pytest.mark.parametrize("dtype", [
    "mxfp4", "mxfp8_e4m3", "mxfp6_e2m3", "mxint8", "nvfp4", "int8", "int4", "e2m1", "e4m3fn",
    "int8_float32_tensor", "uint4_float32_t32", "e3m2_float32_channel",
    "mxfp4_16x16", "nvfp4_16x16", "e2m1_e8m0_t0x4", "e2m1_e8m0_t8x0", "mx9", "mx4", "int3_e8m0_t8x4s2x2o2",
    "hif4", "uint4", "uint8", "uint3_float16_bfloat16_t8", "bitnet", "nf4_float16_t16",
    "cb42f1346_e2m3fnuz_e8m0_t16s8", "mxfp4_2of4", "b4int3", "msfp12", "posit8_ue4m3_t8"
])
@pytest.mark.parametrize("axis", [0, 1])
def test_saturation_is_counted_exactly(dtype, axis, monkeypatch):
    x = weight(70, 9, scale=4.0)
    if data_type(dtype).scale is None:
        x.flat[:8] = [7.0, -7.0, np.nextafter(np.float32(7), np.float32(0)), 464, -464, 465, 6.5, -1e9]
    found, q = measured(x, dtype, axis)
    assert found.saturated == exact_saturation(x, q)
    monkeypatch.setattr(report, "SLAB", 100)
    assert measure(x, q, q.dequantize()).saturated == found.saturated


def test_saturation_at_ties_of_zero_points():
    """uint4 at z = 5 and s = 1 goes from -5 to 10: 10.5 rounds to even, 10; at z = 6, 9.5 to 10: beyond."""
    q = quantize(np.float32([[-5, 10]]), "uint4_float32_uint4_t2")
    assert (q.scales.view(np.float32), q.zeros) == (1, 5)
    x = np.float32([[10.5, np.nextafter(np.float32(10.5), np.float32(11))]])
    assert measure(x, q, x).saturated == 1 / 2
    x = np.float32([[-5.5, np.nextafter(np.float32(-5.5), np.float32(0))]])
    assert measure(x, q, x).saturated == 1 / 2
    q = quantize(np.float32([[-6, 9]]), "uint4_float32_uint4_t2")
    x = np.float32([[9.5, -6.5]])
    assert q.zeros == 6 and measure(x, q, x).saturated == 1 / 2


def test_known_saturation():
    """mxfp4 by the floor rule: amax 7.9 has scale 1; beyond 7 is nearer to the next binade than to 6."""
    x = np.array([[7.9, 7.0, 6.999, 6.5, -7.5, 1, 0, 0.2]], np.float32)
    found, q = measured(x, "mxfp4")
    assert q.scales.tolist() == [[127]] and found.saturated == 3 / 8 and found.flushed == 1 / 8


def test_rounding_of_the_scale_is_no_saturation():
    """The largest weight of a channel lies above 127 times its rounded scale by less than half a step."""
    assert measured(weight(64, 16), "int8", 0)[0].saturated == 0


def test_flushed_counts_only_what_was_not_zero():
    x = np.array([[6, 0.1, -0.1, 0.0, -0.0, 0.2, 0.26, 1]], np.float32)
    found, q = measured(x, "mxfp4")
    assert (q.dequantize() == 0).sum() == 5 and found.flushed == 3 / 8


def test_sqnr():
    x = weight(96, 20).astype(np.float64)
    q = quantize(x, "mxfp4", 0)
    effective = q.dequantize()
    found = measure(x, q, effective)
    assert found.sqnr_db == pytest.approx(10 * np.log10((x**2).sum() / ((x - effective)**2).sum()), abs=1e-9)
    exact = np.array([[1.0, 2.0, -3.0]], np.float32)
    for lossless in (exact, np.zeros((4, 4), np.float32)):
        assert measured(lossless, "mxfp4")[0].sqnr_db is None


@pytest.mark.parametrize("shape, axis", [((300, 7), 0), ((7, 300), 1), ((7, 300), 0), ((3, 40, 50), 1),
                                         ((3, 50, 40), 2), ((2000,), 0)])
@pytest.mark.parametrize("dtype", ["mxfp4", "nvfp4", "int8", "int8_float32_tensor", "e2m1"])
def test_pieces_add_up(shape, axis, dtype, monkeypatch):
    whole = measured(weight(*shape), dtype, axis)[0]
    monkeypatch.setattr(report, "SLAB", 100)
    pieces = measured(weight(*shape), dtype, axis)[0]
    assert pieces.sqnr_db == pytest.approx(whole.sqnr_db, abs=1e-9)
    for fact in ("saturated", "flushed", "histogram"):
        assert getattr(pieces, fact) == getattr(whole, fact)


def test_histograms_hold_every_weight():
    x = weight(50, 8)
    found = measured(x, "mxfp4", 0)[0].histogram
    assert sum(found.before) == sum(found.after) == 400 and found.low == -found.high == -np.abs(x).max()
    assert page.histogram(np.zeros(3), np.zeros(3)).before[30] == 3


# -- totals --------------------------------------------------------------------------------------------------

def row(output="y", **facts):
    given = dict(node="", op="MatMul", output=output, tensor="w", shape=(4, 4), dtype="mxfp4",
                 status="quantised", parameters=16, bits=4.25, stored_bits=4.5, sqnr_db=18.0, saturated=0.01,
                 flushed=0.1, histogram=page.histogram(np.ones(3), np.ones(3)))
    return Row(**(given | facts))


def made(*rows, **facts):
    given = dict(rows=tuple(rows), dtype="mxfp4", method="rtn", export="native", rounding="rne", recipe="ocp",
                 version="0", parameters=100, source_bytes=4000, target_bytes=1000)
    return Report(**(given | facts))


SKIPPED = Row("g", "Gather", "e", "table", (9, 4), "float32", "skipped", "a <reason>", parameters=36)


def test_a_shared_weight_counts_once():
    both = made(row("a", shared=("b",)), row("b", shared=("a",)), row("c", bits=8.0, sqnr_db=40.0), SKIPPED)
    assert [r.output for r in both.weights] == ["a", "c"] and both.quantised_parameters == 32
    assert both.average_bits == (4.25 + 8) / 2 and both.worst.output == "a"
    assert "shared with b" in both.table() and "shared with b" in both.to_html()


def test_nothing_lost_and_nothing_done():
    assert made(row(sqnr_db=None)).worst is None
    assert "Every quantised weight is exact" in made(row(sqnr_db=None)).table()
    nothing = made(SKIPPED)
    assert nothing.average_bits is None and "No weight was quantised" in nothing.table()
    assert "No weight was quantised" in nothing.to_html() and json.dumps(nothing.to_json(), allow_nan=False)


# -- faces ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def full():
    return quantize_model(every_layer()[0], dtype="mxfp4", exclude=["conv3"])


def test_text(full):
    text = full.table()
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["layer", "op", "weight"] and max(map(len, lines)) <= 130
    assert sum("<- worst" in line for line in lines) == 1 and "skipped: excluded by 'conv3'" in text
    assert "14 of 15 layers quantised" in text
    worst = next(line for line in lines if "<- worst" in line).split()[0]
    assert any(line.startswith(f"{worst} (") and "hurts most" in line for line in lines)


def test_json_is_plain_and_keeps_its_schema(full):
    data = json.loads(json.dumps(full.to_json(), allow_nan=False))
    assert list(data) == [
        "refq_report", "refq_version", "source", "target", "settings", "totals", "warnings", "rows"
    ]
    assert data["refq_report"] == 1
    assert list(data["settings"]) == ["dtype", "method", "export", "rounding", "recipe"]
    assert list(data["totals"]) == [
        "layers", "quantised_layers", "parameters", "quantised_parameters", "average_bits",
        "average_stored_bits", "source_bytes", "target_bytes", "worst_output", "worst_sqnr_db"
    ]
    assert list(data["rows"][0]) == [
        "node", "op", "output", "tensor", "shape", "dtype", "status", "reason", "where", "reached", "axis",
        "method", "parameters", "bits", "stored_bits", "encoding", "sqnr_db", "saturated", "flushed",
        "shared", "histogram"
    ]
    assert list(data["rows"][0]["histogram"]) == ["low", "high", "before", "after"]
    assert {r["status"] for r in data["rows"]} == {"quantised", "skipped"}


def test_the_page_stands_alone(full):
    html = full.to_html(extra_sections=[("More", "<p id='own'>own html</p>")])
    assert html.startswith("<!doctype html>") and "<script" not in html
    assert not re.search(r"""(?:src|href)\s*=|url\(|https?://|@import""", html)
    assert "prefers-color-scheme: dark" in html and "<p id='own'>own html</p>" in html
    assert html.count("<figure>") == 14 and "excluded by" in html
    for tag in ("section", "table", "svg", "figure", "main", "div"):
        assert html.count(f"<{tag}") == html.count(f"</{tag}>"), tag


def test_the_page_escapes_what_a_model_may_contain():
    hostile = made(row(output="<b>x</b>", node="<script>alert(1)</script>", tensor="a&b", op="<i>"), SKIPPED,
                   warnings=("<u>",), source="<s>.onnx")
    html = hostile.to_html()
    assert not re.search(r"<script|<b>x|<i>|<u>|<s>",
                         html) and "&lt;script&gt;" in html and "a <reason>" not in html


def test_the_worst_layers_come_first():
    rows = [row(f"l{i}", sqnr_db=20.0 + i) for i in range(60)]
    html = made(*reversed(rows)).to_html()
    chart = html[html.index("Which layer hurts"):html.index("Every layer")]
    assert re.findall(r"<title>l(\d+)</title>", chart) == [str(i) for i in range(report.WORST)]
    assert "The worst 40 of 60 are shown" in chart


@pytest.mark.parametrize("db, grade", [(None, "good"), (30, "good"), (29.9, "fair"), (18, "fair"),
                                       (17, "poor"), (0, "bad"), (-3, "bad")])
def test_grades(db, grade):
    assert report.grade_sqnr(db) == grade
    made(row(sqnr_db=db)).to_html()


@pytest.mark.parametrize("share, text", [(None, ""), (0, "0"), (1e-6, "<0.01"), (0.0035, "0.35"),
                                         (0.124, "12.4"), (1, "100.0")])
def test_percent(share, text):
    assert report.percent(share) == text


@pytest.mark.parametrize("names, short", [(["/m/l.0/q/MatMul", "/m/l.1/k/MatMul"], ["0/q", "1/k"]),
                                          (["conv1", "conv2"], ["conv1", "conv2"]), (["a"], ["a"]), ([], []),
                                          (["a/x", "a/x"], ["a/x", "a/x"]), (["a/b", "a/b/c"], ["b", "b/c"]),
                                          (["x.weight", "y.weight"], ["x.", "y."])])
def test_short_names(names, short):
    assert page.short_names(names) == short


def test_a_report_of_a_model_in_memory():
    done = quantize_model(matmul_model(weight(64, 8)))
    assert done.source == done.target == "" and "model: quantised weights" in done.to_html()
    assert replace(done, source="a/b.onnx").to_html().count("b.onnx: quantised weights") == 2
