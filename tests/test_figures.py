"""Figures as grades and words."""

import json
import math

import pytest

from refq.models import figures

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("db, grade", [(INF, "good"), (30, "good"), (29.9, "fair"), (18, "fair"),
                                       (17, "poor"), (0, "bad"), (-INF, "bad"), (NAN, "bad"), (None, "")])
def test_grades_of_sqnr(db, grade):
    assert figures.grade_sqnr(db) == grade


def test_other_grades():
    assert [figures.grade_same(share) for share in (1, 0.98, 0.95, 0)] == ["good", "fair", "poor", "bad"]
    assert [figures.grade_share("flushed", share) for share in (0, 0.2, 0.3, 1)] == [
        "good", "fair", "poor", "bad"]
    assert [figures.grade_ratio(ratio) for ratio in (0.2, 0.9, 1, 1.01, NAN, None)] == [
        "good", "fair", "poor", "bad", "bad", ""]


@pytest.mark.parametrize("db, text", [(None, ""), (INF, "exact"), (18.25, "18.2 dB"), (-INF, "-inf dB")])
def test_decibels(db, text):
    assert figures.decibels(db, " dB") == text


@pytest.mark.parametrize("share, text", [(None, ""), (0, "0"), (1e-6, "<0.01"), (0.0035, "0.35"),
                                         (0.124, "12.4"), (1, "100.0")])
def test_percent(share, text):
    assert figures.percent(share) == text


@pytest.mark.parametrize("ratio, text", [(None, ""), (0, "0.00"), (0.0234, "0.023"), (0.25, "0.25"),
                                         (1, "1.00"), (31.4, "31.4"), (INF, "inf")])
def test_times(ratio, text):
    assert figures.times(ratio) == text


@pytest.mark.parametrize("duration, text", [
    (None, ""), (0.001, "<0.01 s"), (0.424, "0.42 s"), (9.44, "9.4 s"), (37.2, "37 s"), (59.7, "1 min 0 s"),
    (754, "12 min 34 s"), (3599.8, "1 h 0 min"), (12_000, "3 h 20 min")])
def test_seconds(duration, text):
    assert figures.seconds(duration) == text


def test_sizes_counts_and_paths():
    assert [figures.size(n) for n in (873, 1240, 1_240_000, 2_500_000_000)] == [
        "873 B", "1.24 kB", "1.24 MB", "2.5 GB"]
    assert [figures.count(1, "row"), figures.count(1200, "batch")] == ["1 row", "1,200 batches"]
    assert figures.last_part("a/b.onnx") == figures.last_part("a\\b.onnx") == "b.onnx"


def test_plain_is_what_json_has():
    given = {"a": (1.5, INF, -INF), "b": [NAN, None, "x", {"c": (True,)}]}
    assert json.dumps(figures.plain(given), allow_nan=False) == (
        '{"a": [1.5, "inf", "-inf"], "b": ["nan", null, "x", {"c": [true]}]}')
