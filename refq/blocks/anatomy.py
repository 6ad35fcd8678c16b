"""What one block holds, bit by bit, as parts that `show` draws in text and `plot` as a picture.

A part is a run of equal cells, such as the elements; a cell is its fields, each a letter of FIELDS for every
bit. Data types (rows.py), number formats (one cell) and GGUF blocks (gguf.py) become parts from their rows.
"""

from dataclasses import dataclass
from math import prod

from refq.blocks.gguf import GGUF, Bits, Gguf, Numbers, Scale, Trits, gguf_type
from refq.blocks.rows import Block, data_type, stored_width
from refq.blocks.tiles import sides
from refq.errors import InputError
from refq.formats.names import number_format
from refq.formats.rows import Row

FIELDS = {
    "S": "sign", "E": "exponent", "M": "significand", "L": "logarithm", "V": "fields of variable length",
    "C": "code, a place among levels", "D": "digits in base 3", "F": "factor of a scale",
    "N": "factor of a minimum", "O": "exponent offset", "T": "choice of a table", "K": "kept or not",
    "0": "counts for nothing",
}
LEAD = 7                    # cells that may be drawn before those left out
LISTED_FIELDS = {"codebook": "C", "exponent": "E", "lns": "L"}      # of listed formats; others: V


@dataclass(frozen=True)
class Part:
    """Equal cells of a block.

    name, format: what they are. fields: (letter, bits) of a cell from its highest bit on. count: cells, None
    where the array decides. labels: what stands below the first LEAD cells and below the last one. shared:
    whose the part is: of the "block", or of the "channel" or "tensor" that the block lies in.
    """

    name: str
    format: str
    fields: tuple[tuple[str, int], ...]
    count: int | None = 1
    labels: tuple[str, ...] = ("",)
    shared: str = "block"

    @property
    def bits(self) -> int:
        """Bits of one cell."""
        return sum(bits for _, bits in self.fields)

    @property
    def total(self) -> int | None:
        """Bits of all cells; None where the array decides."""
        return None if self.count is None else self.count * self.bits

    def shown(self, lead: int) -> list[str | None]:
        """Labels of the cells to draw: `lead` ones (up to LEAD), None for those left out, the last one."""
        if self.count is not None and self.count <= lead + 1:
            return list(self.labels)
        return [*self.labels[:lead], None, self.labels[-1]]


def block_kind(name):
    """The row that the name of a block stands for: a data type's or a GGUF block type's.

    name: of a data type, of a number format, or of a GGUF block type, with `gguf:` ahead where a data type
    has the same name; a row is returned as it is. Raises InputError for an unknown one.
    Spec: BLOCK-2, GGUF-1.
    """
    if isinstance(name, (Block, Gguf)):
        return name
    key = name.strip().lower() if isinstance(name, str) else name
    if isinstance(key, str) and key.startswith("gguf:"):
        return gguf_type(key.removeprefix("gguf:"))
    try:
        return data_type(name)
    except InputError:
        if isinstance(key, str) and key.upper() in GGUF:
            return gguf_type(key)
        raise


def fields_of(row: Row, stored: int | None = None) -> tuple[tuple[str, int], ...]:
    """The fields of a code, from the highest bit on; stored: bits it takes, if more than its own."""
    ahead = (("0", (stored or row.width) - row.width),)
    if row.is_listed:
        letter = LISTED_FIELDS.get(row.kind, "V")
        signs = 0 if letter in "CE" else 1
        parts = (("S", signs), (letter, row.width - signs))
    elif row.is_float:
        parts = (("S", int(row.signed)), ("E", row.exp), ("M", row.man), ("0", row.pad))
    else:
        parts = (("S", int(row.signed)), ("M", row.width - row.signed))
    return tuple(field for field in (*ahead, *parts) if field[1])


def is_data_type(kind) -> bool:
    """Whether a row that block_kind gave is a data type's, and no GGUF block type's."""
    return isinstance(kind, Block)


def is_block(kind) -> bool:
    """Whether a row that block_kind gave is more than one number of a format."""
    return not isinstance(kind, Block) or kind.scale is not None


def parts_of(name) -> tuple[Part, ...]:
    """The parts of a block in order. name: as in block_kind; InputError as there."""
    kind = block_kind(name)
    return _gguf_parts(kind) if isinstance(kind, Gguf) else _block_parts(kind)


def block_values(block: Block) -> int | None:
    """Values of one tile; 1 without a scale, None where the array decides."""
    if block.scale is None:
        return block.sparsity[1] if block.sparsity else 1
    ways = sides(block.tile)
    return prod(ways) if all(isinstance(n, int) for n in ways) else None


def block_bits(parts) -> int | None:
    """Bits that a block stores; what it shares with others left out. None where the array decides."""
    totals = [part.total for part in parts if part.shared == "block"]
    return None if None in totals else sum(totals)


# ------------------------------------------------------------------------------------------------------------
# data types

def _block_parts(block: Block) -> tuple[Part, ...]:
    values, row = block_values(block), block.element_row
    parts, shared = [], block.tile if block.tile in ("channel", "tensor") else "block"
    if block.outer:
        parts.append(_number("tensor scale", number_format(block.outer), "tensor"))
    if block.scale:
        parts.append(_number("scale", block.scale_row, shared))
    if block.zero:
        parts.append(_number("zero point", block.zero_row, shared))
    for size, bits in block.subtiles:
        if bits:
            parts.append(Part("exponent offset", f"of {_size(size)} values", (("O", bits),),
                              *_places(block.tile, size)))
    if block.meta_bits:
        size = block.select_size
        parts.append(Part("table choice", f"of {_size(size)} values", (("T", block.meta_bits),),
                          *_places(block.tile, size)))
    kept = values
    if block.sparsity:
        n, m = block.sparsity
        parts.append(Part("mask", f"{n} of {m} values", (("K", 1),), *_line(values)))
        kept = None if values is None else _kept(sides(block.tile or m), n, m)
    if block.sparsity or values is None or not isinstance(block.tile, tuple):
        places = _line(kept)
    else:
        places = _places(block.tile, (1, 1))
    single = kept == 1
    return (*parts, Part("element", block.element, fields_of(row), *((1, ("",)) if single else places)))


def _kept(ways, n: int, m: int) -> int:
    """Values that N:M sparsity keeps of a full tile, run by run."""
    cross, along = ways
    return cross * (along // m * n + min(n, along % m))


def _number(name: str, row: Row, shared: str) -> Part:
    return Part(name, row.name, fields_of(row, stored_width(row)), shared=shared)


def _line(count: int | None):
    """(count, labels) of cells in a line."""
    if count is None:
        return None, ("0", "1", "2", "n-1")
    return count, _ends(count, str)


def _places(tile, size):
    """(count, labels) of the parts of `size` values of a tile."""
    ways = sides(tile)
    if not all(isinstance(n, int) for n in ways):
        return _line(1 if size == tile else None)
    rows, columns = (whole // part for whole, part in zip(ways, sides(size)))
    if rows == 1:
        return _line(columns)
    return rows * columns, _ends(rows * columns, lambda place: f"{place // columns},{place % columns}")


def _ends(count: int, word) -> tuple[str, ...]:
    """The words for the first LEAD places and the last one."""
    return tuple(word(place) for place in (*range(min(count - 1, LEAD)), count - 1))


def _size(size) -> str:
    return " x ".join(map(str, size)) if isinstance(size, tuple) else str(size)


# ------------------------------------------------------------------------------------------------------------
# GGUF blocks

_HALF = (("S", 1), ("E", 5), ("M", 10))
_SCALE_FIELDS = {"binary16": _HALF, "e8m0": (("E", 8),), "ue4m3": (("0", 1), ("E", 4), ("M", 3))}


def _gguf_parts(row: Gguf) -> tuple[Part, ...]:
    """In the order of their bytes; small numbers that share bytes are one part."""
    parts = {row.scale.at: _gguf_scale("scale d", row.scale)}
    if row.offset:
        parts[row.offset.at] = _gguf_scale("minimum m", row.offset)
    if row.sum_at is not None:
        parts[row.sum_at] = Part("sum s", "binary16", _HALF, labels=(_bytes(row.sum_at, 2),))
    ranges = {}
    for numbers, name, letter in _gguf_numbers(row):
        for field, words in _stacked(numbers, name):
            ranges.setdefault((field.at, field.count), []).append((field, words, letter))
    for (at, count), members in ranges.items():
        parts[at] = _gguf_bytes(at, count, members)
    return tuple(parts[at] for at in sorted(parts))


def _gguf_scale(name: str, scale: Scale) -> Part:
    fields = _SCALE_FIELDS[scale.format]
    size = sum(bits for _, bits in fields) // 8
    labels = _ends(scale.count, lambda place: _bytes(scale.at + size * place, size))
    return Part(name, scale.format, fields, scale.count, labels)


def _gguf_numbers(row: Gguf) -> list[tuple[Numbers, str, str]]:
    found = [(row.codes, "codes", "C")]
    if row.scale.factors:
        found.append((row.scale.factors, "scale factors", "F"))
    if row.offset and row.offset.factors:
        found.append((row.offset.factors, "minimum factors", "N"))
    return found


def _stacked(numbers: Numbers, name: str):
    """Every field of small numbers with words for the numbers and the bits of them that it holds."""
    start = 0
    for run in numbers.runs:
        end = start + run[0].count * run[0].groups
        which, at, start = f"{name} {start} to {end - 1}" if len(numbers.runs) > 1 else name, 0, end
        for field in run:
            bits = f"bits {at} to {at + field.width - 1}" if field.width > 1 else f"bit {at}"
            yield field, which if len(run) == 1 else f"{which}, {bits}"
            at += field.width


def _gguf_bytes(at: int, count: int, members) -> Part:
    """`count` bytes that small numbers lie in, each with the bits of its number from the top."""
    if isinstance(members[0][0], Trits):
        fields = (("D", 8),)
    else:
        spans = sorted(((field.low + field.width * group, letter, field.width) for field, _, letter in members
                        for group in range(field.groups)), reverse=True)
        fields = tuple((letter, width) for _, letter, width in spans)
    labels = _ends(count, lambda place: f"byte {at + place}")
    names = list(dict.fromkeys(words for _, words, _ in sorted(members, key=_low)))
    return Part("; ".join(names), "", fields, count, labels)


def _low(member) -> int:
    field = member[0]
    return field.low if isinstance(field, Bits) else 0


def _bytes(at: int, size: int) -> str:
    return f"byte {at}" if size == 1 else f"bytes {at}-{at + size - 1}"
