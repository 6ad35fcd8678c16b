"""The bits of blocks as a picture: one row a data type, all to the same scale (needs the optional matplotlib)."""

from pathlib import Path

from refq.blocks.anatomy import FIELDS, Part, block_bits, block_kind, block_values, parts_of
from refq.blocks.gguf import Gguf
from refq.blocks.show import sizes
from refq.errors import InputError
from refq.formats.plot import INK, SOFT, new_figure, picture_path, write_picture
from refq.formats.show import number

LIMIT_ROWS = 24
GAP, LEFT_OUT = 2.5, 3.0            # between parts, and for cells left out, in bits
COLOURS = {
    "S": "#d1495b", "E": "#1f6feb", "M": "#f2b134", "L": "#f2b134", "V": "#8a6fc9", "C": "#3fa796",
    "D": "#3fa796", "F": "#6d8fd6", "N": "#c98a6f", "O": "#9b5de5", "T": "#2a7f62", "K": "#7b8794",
    "0": "#dfe4ea",
}
_SCALES = ("scale", "tensor scale", "zero point", "scale d", "minimum m", "sum s")


def block_layouts(names, path) -> Path:
    """Draw the bits of one block of each data type, one row a type to the same bit scale.

    names: as block_kind takes them, or rows. path: PNG or SVG file to write (written whole or not at all).
    Raises InputError for unknown names, without matplotlib and for other file types.
    """
    kinds, path = [block_kind(name) for name in names], picture_path(path)
    if not 1 <= len(kinds) <= LIMIT_ROWS:
        raise InputError(f"{len(kinds)} blocks to draw; allowed are 1 to {LIMIT_ROWS}")
    write_picture(_figure(kinds), path)
    return path


def _figure(kinds):
    rows = [_placed(parts_of(kind)) for kind in kinds]
    width = max(end for row in rows for _, _, end in row)
    figure = new_figure((min(22, max(9, 3.2 + 0.16 * width)), 1.15 * len(kinds) + 0.9))
    axes = figure.subplots()
    for place, (kind, row) in enumerate(zip(kinds, rows)):
        for part, start, end in row:
            _draw_part(axes, part, start, end, place)
    axes.set_yticks(range(len(kinds)), [_label(kind) for kind in kinds], fontsize=9, color=INK)
    axes.set_xlim(-0.5, width + 0.5)
    axes.set_ylim(len(kinds) - 0.45, -0.62)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    _legend(axes, [part for row in rows for part, _, _ in row])
    return figure


def _placed(parts) -> list[tuple[Part, float, float]]:
    """Each part with where it begins and ends, in bits."""
    found, at = [], 0.0
    for part in parts:
        end = at + sum(LEFT_OUT if label is None else part.bits for label in _cells(part))
        end = max(end, at + 0.62 * max(map(len, _words(part))))      # room for its words
        found.append((part, at, end))
        at = end + GAP
    return found


def _cells(part: Part) -> list[str | None]:
    few = part.count is not None and part.count * part.bits <= 16
    return part.shown(7 if few else 3 if part.bits <= 8 else 1)


def _words(part: Part) -> tuple[str, str]:
    return f"{part.name} {part.format}".strip(), sizes(part)


def _draw_part(axes, part: Part, start: float, end: float, place: int):
    """The cells of a part, its name above and its size below."""
    title, size = _words(part)
    axes.text(start, place - 0.36, title, ha="left", va="bottom", fontsize=7.5, color=INK)
    axes.text(start, place + 0.27, size, ha="left", va="top", fontsize=7, color=SOFT)
    at = start
    for label in _cells(part):
        if label is None:
            axes.text(at + LEFT_OUT / 2, place, "…", ha="center", va="center", fontsize=12, color=SOFT)
            at += LEFT_OUT
            continue
        at = _draw_cell(axes, part, at, place)


def _draw_cell(axes, part: Part, at: float, place: int) -> float:
    """One cell, a square a bit, framed; gives where it ends."""
    from matplotlib.patches import Rectangle
    start = at
    for letter, bits in part.fields:
        for _ in range(bits):
            axes.add_patch(Rectangle((at, place - 0.25), 1, 0.5, facecolor=COLOURS[letter], edgecolor="white",
                                     linewidth=0.6, gid=letter))
            axes.text(at + 0.5, place, letter, ha="center", va="center", fontsize=6.5,
                      color=INK if letter in "ML0" else "white")
            at += 1
    axes.add_patch(Rectangle((start, place - 0.25), part.bits, 0.5, fill=False, edgecolor=INK,
                             linewidth=1.6 if part.name in _SCALES else 0.9, gid="cell"))
    return at


def _legend(axes, parts):
    from matplotlib.patches import Patch
    letters = dict.fromkeys(letter for part in parts for letter, _ in part.fields)
    axes.legend(handles=[Patch(color=COLOURS[letter], label=f"{letter}  {FIELDS[letter]}") for letter in letters],
                loc="upper left", bbox_to_anchor=(0, 0), ncols=len(letters), fontsize=8, frameon=False,
                labelcolor=INK, handlelength=1.0, handleheight=1.0, columnspacing=1.6)


def _label(kind) -> str:
    bits, values = block_bits(parts_of(kind)), kind.values if isinstance(kind, Gguf) else block_values(kind)
    stored = f"{bits} bits, {values} value{'s' * (values != 1)}" if bits is not None else "size of the array"
    return f"{kind.name}\n{stored}\n{number(kind.bits_per_value)} bits a value"
