"""Number lines: where the values of formats lie, as a picture (needs the optional matplotlib)."""

import io
from pathlib import Path

import numpy as np

from refq.errors import InputError
from refq.files import write_whole
from refq.formats import codec
from refq.formats.listed import key
from refq.formats.names import number_format
from refq.formats.rows import Row
from refq.formats.table import limit

LIMIT_BITS = 12         # more values than this and a number line is a solid bar
LABELLED = 16           # up to so many values each is labelled
INK, SOFT, _NORMAL, _SUBNORMAL = "#1b2733", "#7b8794", "#1f6feb", "#d9730d"


def number_line(formats, path) -> Path:
    """Draw the values of formats as number lines, one above the other, on a linear and on a logarithmic axis.

    formats: names or rows of at most 12 bits. path: PNG or SVG file to write (written whole or not at all).
    Raises InputError without matplotlib, for wide formats and for other file types.
    """
    rows = [number_format(name) for name in formats]
    if not rows:
        raise InputError("name at least one format to draw")
    for row in rows:
        if row.bits > LIMIT_BITS:
            raise InputError(f"{row.name} has {row.bits} bits; number lines are for at most {LIMIT_BITS}")
    path = picture_path(path)
    write_picture(_figure(rows), path)
    return path


def picture_path(path) -> Path:
    """The path of a picture. Raises InputError unless it ends in .png or .svg."""
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"cannot draw to {path.name!r}; allowed are files ending in .png or .svg")
    return path


def write_picture(figure, path: Path):
    """A matplotlib figure as a file, whole or not at all. Raises InputError where it cannot be written."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=path.suffix.lower()[1:])
    write_whole(path, picture.getvalue())


def new_figure(size):
    """An empty matplotlib figure of (width, height) inches. Raises InputError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("drawing needs matplotlib: pip install 'refq[plot]'") from None
    return Figure(figsize=size, layout="constrained")


def _figure(rows: list[Row]):
    figure = new_figure((12, 1.5 * len(rows) + 1.4))
    linear, logarithmic = figure.subplots(2, 1)
    for place, row in enumerate(rows):
        values, largest = _values(row), float(max(key(row.max), -key(row.lowest)))
        positive = values[values > 0]
        edge = float(row.min_normal or 0)
        _strip(linear, place, values / largest, edge / largest, values)
        _strip(logarithmic, place, positive, edge, positive)
    logarithmic.set_xscale("log", base=2)
    _finish(linear, rows, "every value, linear, each format scaled to its own largest magnitude "
                          "(as a block scale does)")
    _finish(logarithmic, rows, "positive values, logarithmic; orange: subnormals, which thin out "
                               "below the smallest normal")
    return figure


def _values(row: Row):
    codes = np.arange(1 << row.bits).astype(codec.code_dtype(row)) << (row.width - row.bits)
    values = codec.decode(codes, row, np.float64)
    return np.unique(values[np.isfinite(values)]) + 0.0         # + 0.0: one zero, without sign


def _strip(axes, place: int, values, edge: float, named):
    """One format: a stroke a value at `values`, labelled with `named` while there is room."""
    subnormal, width = np.abs(values) < edge, 1.6 if len(values) < 80 else 0.7
    for part, colour in ((values[~subnormal], _NORMAL), (values[subnormal], _SUBNORMAL)):
        axes.vlines(part, place - 0.3, place + 0.3, color=colour, linewidth=width, alpha=0.9)
    axes.axhline(place, color=SOFT, linewidth=0.6, zorder=0)
    if len(values) <= LABELLED:
        for at, value in zip(values, named):
            axes.text(at, place - 0.34, f"{value:g}", ha="center", va="bottom", fontsize=7, color=SOFT)


def _finish(axes, rows: list[Row], title: str):
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=9, color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8, colors=SOFT)


def _label(row: Row) -> str:
    smallest = f", min {limit(row.min_positive)}" if row.is_float else ""
    return f"{row.name}\nmax {limit(row.max)}{smallest}\n{row.count_finite} values"
