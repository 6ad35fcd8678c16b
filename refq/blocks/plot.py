"""The bits of blocks as a picture: one row a data type, all to one scale (needs the optional matplotlib)."""

from pathlib import Path

from refq.blocks.anatomy import FIELDS, Part, block_bits, block_kind, block_values, parts_of
from refq.blocks.gguf import Gguf
from refq.blocks.show import sizes
from refq.errors import InputError
from refq.formats.plot import INK, SOFT, new_figure, picture_path, write_picture
from refq.formats.show import number

LIMIT_ROWS = 24
BIT, ROW, MARGIN, LEAST = 0.16, 1.25, 2.4, 6.5  # inches: a bit, a row, the names at the left, least width
LETTER = 0.4                            # bits that a letter of the words takes
GAP, LEFT_OUT = 2.5, 3.0                # between parts, and for cells left out, in bits
COLOURS = {
    "S": "#d1495b", "E": "#1f6feb", "M": "#f2b134", "L": "#f2b134", "V": "#8a6fc9", "C": "#c06c9b",
    "D": "#b5533c", "F": "#4f9d69", "N": "#c98a6f", "O": "#8f4fd1", "T": "#5c4b8a", "K": "#7b8794",
    "0": "#dfe4ea",
}
SCALE_COLOURS = COLOURS | {"S": "#7d3c46", "E": "#0f766e", "M": "#8fd3c1"}
SCALES = ("scale", "tensor scale", "zero point", "scale d", "minimum m", "sum s")
_DARK_LETTERS = ("#f2b134", "#dfe4ea", "#8fd3c1")       # colours on which dark letters read better


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
    figure = new_figure((max(LEAST, MARGIN + BIT * width), ROW * len(kinds) + 0.7))
    axes = figure.subplots()
    for place, (kind, row) in enumerate(zip(kinds, rows)):
        for part, start, _ in row:
            _draw_part(axes, part, start, place)
    axes.set_yticks(range(len(kinds)), [_label(kind) for kind in kinds], fontsize=9, color=INK)
    axes.set_xlim(-0.5, max(width, (LEAST - MARGIN) / BIT) + 0.5)
    axes.set_ylim(len(kinds) - 0.5, -0.68)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    _legend(axes, [part for row in rows for part, _, _ in row], figure.get_figwidth())
    return figure


def _placed(parts) -> list[tuple[Part, float, float]]:
    """Each part with where it begins and ends, in bits."""
    found, at = [], 0.0
    for part in parts:
        cells = sum(LEFT_OUT if label is None else part.bits for label in _cells(part))
        end = at + max(cells, LETTER * max(map(len, _words(part).splitlines())))
        found.append((part, at, end))
        at = end + GAP
    return found


def _cells(part: Part) -> list[str | None]:
    few = part.count is not None and part.count * part.bits <= 16
    return part.shown(7 if few else 3 if part.bits <= 8 else 1)


def _words(part: Part) -> str:
    return f"{part.name} {part.format}".strip().replace("; ", ";\n") + f"\n{sizes(part)}"


def _colour(part: Part, letter: str) -> str:
    return (SCALE_COLOURS if part.name in SCALES else COLOURS)[letter]


def _draw_part(axes, part: Part, start: float, place: int):
    """The cells of a part, its words above and the labels of the cells below."""
    axes.text(start, place - 0.29, _words(part), ha="left", va="bottom", fontsize=7.5, color=INK)
    at = start
    for label in _cells(part):
        size = LEFT_OUT if label is None else part.bits
        if label is None:
            axes.text(at + size / 2, place, "…", ha="center", va="center", fontsize=12, color=SOFT)
        else:
            _draw_cell(axes, part, at, place)
            axes.text(at + size / 2, place + 0.28, label, ha="center", va="top", fontsize=6.5, color=SOFT)
        at += size


def _draw_cell(axes, part: Part, start: float, place: int):
    """One cell: a square a bit, a fine frame round every field and one round all."""
    at = start
    for letter, bits in part.fields:
        colour = _colour(part, letter)
        for bit in range(bits):
            axes.barh(place, 1, 0.5, at + bit, color=colour, edgecolor="white", linewidth=0.6, gid=letter)
            axes.text(at + bit + 0.5, place, letter, ha="center", va="center", fontsize=6.5,
                      color=INK if colour in _DARK_LETTERS else "white")
        axes.barh(place, bits, 0.5, at, fill=False, edgecolor=INK, linewidth=0.5, gid="field")
        at += bits
    axes.barh(place, part.bits, 0.5, start, fill=False, edgecolor=INK, linewidth=1.1, gid="cell")


def _legend(axes, parts, width: float):
    """What the colours mean; those of scales and zero points last."""
    words = {}
    for shared in (False, True):
        for part in (part for part in parts if (part.name in SCALES) == shared):
            words |= {_colour(part, letter): f"{letter}  {FIELDS[letter]}{', shared' * shared}"
                      for letter, _ in part.fields}
    handles = [axes.barh(0, 0, 0, color=colour, label=text) for colour, text in words.items()]
    columns = max(1, min(len(words), int((width - MARGIN) / 2)))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 0), ncols=columns, fontsize=8,
                frameon=False, labelcolor=INK, handlelength=1.0, handleheight=1.0, columnspacing=1.6)


def _label(kind) -> str:
    bits, values = block_bits(parts_of(kind)), kind.values if isinstance(kind, Gguf) else block_values(kind)
    stored = f"{bits} bits, {values} value{'s' * (values != 1)}" if bits is not None else "size of the array"
    return f"{kind.name}\n{stored}\n{number(kind.bits_per_value)} bits a value"
