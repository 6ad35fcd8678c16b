"""Blocks as a picture: every bit that the text shows, in a colour of its own, and which files are written."""

import sys
from pathlib import Path

import pytest

from refq.blocks import anatomy, plot
from refq.blocks.gguf import GGUF
from refq.blocks.plot import COLOURS, SCALE_COLOURS, block_layouts
from refq.blocks.rows import DATA_TYPES
from refq.errors import InputError

pytest.importorskip("matplotlib")

DRAWN = ["mxfp4", "b4int3", "int4", "int8", "nvfp4", "mx9", "hif4", "uint4", "bitnet", "nf4_t64",
         "fp8_128x128", "cb42f1346_e2m3fnuz_e8m0_t32s8", "e2m1_e8m0_t32n2m4", "e4m3fn", "tf32",
         "posit8", "lns8f3"]
EVERY = [*DRAWN, *(f"gguf:{name}" for name in GGUF)]


def drawn(kinds):
    """(letters of the bits, colours of the bits, frames) by place of the row, from left to right."""
    figure = plot._figure(kinds)
    bars = [(round(bar.get_y() + 0.25), bar.get_x(), bar) for bar in figure.axes[0].patches if bar.get_gid()]
    rows = [sorted((x, bar.get_gid(), bar) for y, x, bar in bars if y == place and len(bar.get_gid()) == 1)
            for place in range(len(kinds))]
    frames = [sorted((x, bar.get_width()) for y, x, bar in bars if y == place and bar.get_gid() == "cell")
              for place in range(len(kinds))]
    return rows, frames, figure


@pytest.mark.parametrize("name", EVERY)
def test_every_bit_is_a_square(name):
    """Squares stand side by side without an overlap, spell the fields, and fill the frames of the cells."""
    kind = anatomy.block_kind(name)
    (row,), (frames,), figure = drawn([kind])
    places = [x for x, _, _ in row]
    assert all(right - left >= 1 - 1e-9 for left, right in zip(places, places[1:]))
    spelled = "".join(letter * bits for part in anatomy.parts_of(kind) for label in plot._cells(part)
                      if label is not None for letter, bits in part.fields)
    assert "".join(letter for _, letter, _ in row) == spelled
    assert round(sum(width for _, width in frames), 6) == len(row)
    right = figure.axes[0].get_xlim()[1]
    assert places[-1] + 1 <= right


def test_colours_tell_fields_and_scales_apart():
    assert len({COLOURS[letter] for letter in "SEMOTCKFN0"}) == 10
    assert len({COLOURS[letter] for letter in "SEM"} | {SCALE_COLOURS[letter] for letter in "SEM"}) == 6
    assert set(COLOURS) == set(anatomy.FIELDS) == set(SCALE_COLOURS)
    figure = plot._figure([DATA_TYPES["mxfp4"]])
    words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert words == ["S  sign", "E  exponent", "M  significand", "E  exponent, shared"]


def test_rows_share_one_scale_and_have_their_labels():
    rows, _, figure = drawn([DATA_TYPES[name] for name in ("mxfp4", "b4int3", "int4")])
    assert all(bar.get_width() == 1 for row in rows for _, _, bar in row)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["mxfp4\n136 bits, 32 values\n4.25 bits a value",
                      "b4int3\n16 bits, 4 values\n4 bits a value",
                      "int4\n144 bits, 32 values\n4.5 bits a value"]
    top, bottom = reversed(figure.axes[0].get_ylim())
    assert top < 0 < bottom                                     # the first type at the top
    words = [text.get_text() for text in figure.axes[0].texts]
    assert "scale e8m0\n8 bits" in words and "element e2m1\n32 x 4 bits = 128" in words and "31" in words


def test_words_do_not_overlap():
    """Of the texts above the boxes and below them, as matplotlib lays them out."""
    figure = plot._figure([anatomy.block_kind(name) for name in EVERY[:12]])
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if len(text.get_text()) > 1]
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[place + 1:])


@pytest.mark.parametrize("suffix, start, kind", [(".PNG", b"\x89PNG\r\n", str), (".svg", b"<?xml", Path)])
def test_files(tmp_path, suffix, start, kind):
    path = tmp_path / f"blocks{suffix}"
    assert block_layouts(["mxfp4", DATA_TYPES["int4"], "q4_0"], kind(path)) == path
    assert path.read_bytes().startswith(start) and path.stat().st_size > 5000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("names, file, words", [
    ([], "x.png", "0 blocks to draw; allowed are 1 to 24"), (["mxfp4", "zz"], "x.png", "'zz' is not known"),
    (["fp8"], "x.png", "ambiguous"), (["mxfp4"], "x.pdf", "cannot draw to 'x.pdf'"),
    (["mxfp4"], "missing/x.png", "cannot write .*x.png: No such file")])
def test_refused(tmp_path, names, file, words):
    with pytest.raises(InputError, match=words):
        block_layouts(names, tmp_path / file)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"drawing needs matplotlib: pip install 'refq\[plot\]'"):
        block_layouts(["mxfp4"], tmp_path / "x.png")
    assert not list(tmp_path.iterdir())
