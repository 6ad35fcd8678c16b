"""Number lines: what is drawn, which files are written, and what is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest

import refq
from refq.errors import InputError
from refq.formats import plot
from refq.formats.plot import LABELLED, number_line
from refq.formats.rows import FORMATS

pytest.importorskip("matplotlib")

DRAWN = ["e2m1", "e4m3fn", "e8m0", "mxint8", "int1", "uint1", "uint4", "smint4", "binary8p1uf", "binary8p3se",
         "e5m2fnuz", "int12", "e1m0finite", "e5m6ieee"]


def strokes(axes):
    """The places of all strokes on one axis, by colour."""
    return {tuple(np.round(lines.get_color()[0][:3], 3)): [segment[0][0] for segment in lines.get_segments()]
            for lines in axes.collections if len(lines.get_segments())}


def values_of(name):
    row = refq.number_format(name)
    decoded = refq.decode(np.arange(1 << row.width), row, np.float64)
    return row, np.unique(decoded[np.isfinite(decoded)]) + 0.0


@pytest.mark.parametrize("name", DRAWN)
def test_every_value_has_one_stroke(name):
    row, values = values_of(name)
    linear, logarithmic = plot._figure([row]).axes
    scaled = np.sort(np.concatenate(list(strokes(linear).values())))
    assert np.array_equal(scaled, values / max(values.max(), -values.min()))
    assert len(scaled) == row.count_finite and np.abs(scaled).max() == 1
    positive = np.sort(np.concatenate([*strokes(logarithmic).values(), []]))
    assert np.array_equal(positive, values[values > 0])


@pytest.mark.parametrize("name", ["e2m1", "e4m3fn", "binary8p3se", "e8m0", "int4"])
def test_subnormals_have_their_own_colour(name):
    row, values = values_of(name)
    _, logarithmic = plot._figure([row]).axes
    small = [value for value in values if 0 < value < float(row.min_normal or 0)]
    colours = strokes(logarithmic)
    assert len(colours) == (2 if small else 1)
    assert not small or sorted(min(colours.values(), key=min)) == small


def test_few_values_are_labelled_and_many_are_not():
    linear, logarithmic = plot._figure([FORMATS["e2m1"]]).axes
    assert [text.get_text() for text in linear.texts] == [f"{value:g}" for value in values_of("e2m1")[1]]
    assert [text.get_text() for text in logarithmic.texts] == ["0.5", "1", "1.5", "2", "3", "4", "6"]
    assert FORMATS["e3m2"].count_finite > LABELLED and not plot._figure([FORMATS["e3m2"]]).axes[0].texts


def test_formats_stand_one_above_the_other_with_their_facts():
    rows = [FORMATS[name] for name in ("e4m3fn", "e5m2", "int4")]
    for axes in plot._figure(rows).axes:
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert labels == ["e4m3fn\nmax 448, min 2^-9\n253 values", "e5m2\nmax 57344, min 2^-16\n247 values",
                          "int4\nmax 7\n16 values"]
        top, bottom = axes.get_ylim()
        assert top > bottom                                     # the first format at the top
        segments = [segment for lines in axes.collections for segment in lines.get_segments()]
        assert {round(segment[:, 1].mean()) for segment in segments} == {0, 1, 2}
    assert plot._figure(rows).axes[1].get_xscale() == "log"


@pytest.mark.parametrize("suffix, start, kind", [(".PNG", b"\x89PNG\r\n", str), (".svg", b"<?xml", Path)])
def test_files(tmp_path, suffix, start, kind):
    path = tmp_path / f"line{suffix}"
    assert number_line(["e2m1", FORMATS["e3m2"], "float8_e4m3fn"], kind(path)) == path
    assert path.read_bytes().startswith(start) and path.stat().st_size > 5000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["int1", "e8m0", "e1m0finite", "binary8p1uf", "e5m6ieee"])
def test_every_kind_of_format_becomes_a_file(tmp_path, name):
    """No warning either: they are errors here."""
    number_line([name], tmp_path / "line.svg")
    assert b"</svg>" in (tmp_path / "line.svg").read_bytes()[-20:]


@pytest.mark.parametrize("formats, name, words", [
    ([], "x.png", "name at least one format"), (["e2m1", "zz"], "x.png", "'zz' is not known"),
    (["e4m3"], "x.png", "ambiguous"),
    (["tf32"], "x.png", "tf32 has 19 bits; number lines are for at most 12"),
    (["e2m1", "binary16"], "x.png", "binary16 has 16 bits"), (["int13"], "x.png", "int13 has 13 bits"),
    (["e2m1"], "x.pdf", "cannot draw to 'x.pdf'; allowed are files ending in .png or .svg"),
    (["e2m1"], "x", "cannot draw to 'x'"), (["e2m1"], "png", "cannot draw to 'png'"),
    (["e2m1"], "missing/x.png", "cannot write .*x.png: No such file"),
    (["binary12p1ue"], "x.png", "not every value of binary12p1ue is exact in float64"),
])
def test_refused(tmp_path, formats, name, words):
    with pytest.raises(InputError, match=words):
        number_line(formats, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"drawing needs matplotlib: pip install 'refq\[plot\]'"):
        number_line(["e2m1"], tmp_path / "x.png")
    assert not list(tmp_path.iterdir())
