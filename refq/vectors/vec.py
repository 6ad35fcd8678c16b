"""The .vec grammar: golden vectors as text that $readmemh loads and a script reads in one line.

    // refq-vec 1  op=encode src=f32 dst=e4m3fn round=rne overflow=sat model=boundary ... license=CC0-1.0
    00000000_00
    43e80000_7e // tie at the overflow boundary

One header line, then one case per line: operands, then results, each a fixed number of lower-case hex digits.
Spec: VEC-1 to VEC-7. The reader refuses everything else and names the line.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from refq.errors import InputError
from refq.formats.names import number_format

MAGIC = "// refq-vec 1  "
LICENCE = "CC0-1.0"
KEYS = ("op", "src", "dst", "in", "out", "round", "overflow", "recipe", "model", "clause", "count", "license")
OPTIONAL = {"in", "out", "overflow", "recipe"}
SHORT = {"binary64": "f64", "binary32": "f32", "binary16": "f16", "bfloat16": "bf16"}
LONG = {short: name for name, short in SHORT.items()}
NOTE = re.compile(r"[\x20-\x7e]*[\x21-\x7e]")
LABEL = re.compile(r"[a-z0-9][a-z0-9_.-]*")


def short_name(row) -> str:
    """The name of a number format inside set names and headers: f64 f32 f16 bf16, else the row's own name."""
    return SHORT.get(row.name, row.name)


def format_of(token: str):
    """The row a short name stands for. Raises InputError for aliases: a set has one spelling."""
    row = number_format(LONG.get(token, token))
    if short_name(row) != token:
        raise InputError(f"{token!r} is not how sets spell this format: write {short_name(row)!r}")
    return row


@dataclass(frozen=True)
class Field:
    """One column of a .vec line: `count` codes of a number format, or raw random bits (Spec: VEC-3)."""

    token: str          # short format name, or bits<N> for N raw bits
    count: int = 1

    @property
    def width(self) -> int:
        """Bits of one code."""
        raw = re.fullmatch(r"bits(\d+)", self.token)
        return int(raw[1]) if raw else format_of(self.token).width

    @property
    def digits(self) -> int:
        """Hex digits of one code."""
        return -(-self.width // 4)

    def __str__(self) -> str:
        return self.token if self.count == 1 else f"{self.token}x{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Field":
        matched = re.fullmatch(r"(.+?)(?:x([1-9]\d*))?", text)
        if not matched:
            raise InputError(f"{text!r} is not a field: write a format name, or a name, x and a count")
        return cls(matched[1], int(matched[2] or 1))

    def texts(self, codes: np.ndarray) -> list[str]:
        """Hex text of every row of codes, shape (n,) or (n, count); the first element comes first."""
        digits = self.digits
        if self.count == 1:
            return [f"{code:0{digits}x}" for code in codes.reshape(-1).tolist()]
        return ["".join([f"{code:0{digits}x}" for code in row]) for row in codes.tolist()]

    def codes(self, texts: list[str]) -> np.ndarray:
        """The inverse of `texts`: codes, shape (n,) or (n, count). Raises InputError past the width."""
        digits, limit = self.digits, 1 << self.width
        cells = [int(text[i:i + digits], 16) for text in texts for i in range(0, len(text), digits)]
        if cells and max(cells) >= limit:
            bad = next(cell for cell in cells if cell >= limit)
            raise InputError(f"{bad:0{digits}x} does not fit in the {self.width} bits of {self.token}")
        codes = np.array(cells, code_dtype(self.width))
        return codes if self.count == 1 else codes.reshape(-1, self.count)


def code_dtype(width: int) -> np.dtype:
    """The smallest unsigned type of at least `width` bits."""
    return np.dtype(next(f"u{size}" for size in (1, 2, 4, 8) if width <= 8 * size))


@dataclass(frozen=True)
class Header:
    """What a set is: operation, formats, rules, coverage model. One line; it also gives the set's name."""

    op: str
    src: str
    dst: str
    round: str
    model: str
    clause: str
    count: int
    overflow: str = ""
    recipe: str = ""
    inputs: tuple[Field, ...] = ()
    outputs: tuple[Field, ...] = ()
    license: str = LICENCE

    @property
    def name(self) -> str:
        """The set's name, a path (Spec: VEC-1)."""
        policy = self.overflow or self.recipe
        return f"{self.op}/{self.src}-{self.dst}/{self.round}{'-' * bool(policy)}{policy}/{self.model}"

    @property
    def operand_fields(self) -> tuple[Field, ...]:
        return self.inputs or (Field(self.src),)

    @property
    def result_fields(self) -> tuple[Field, ...]:
        return self.outputs or (Field(self.dst),)

    def line(self) -> str:
        """The header line without its newline."""
        facts = vars(self) | {"in": ",".join(map(str, self.inputs)), "out": ",".join(map(str, self.outputs))}
        return MAGIC + " ".join(f"{key}={facts[key]}" for key in KEYS if key not in OPTIONAL or facts[key])

    @classmethod
    def parse(cls, line: str) -> "Header":
        """Read a header line. Raises InputError unless it is exactly what `line()` would write."""
        if not line.startswith(MAGIC):
            raise InputError(f"the first line must start with {MAGIC.strip()!r}, got {line[:60]!r}")
        pairs = [part.partition("=") for part in line[len(MAGIC):].split(" ")]
        facts = {key: value for key, _, value in pairs}
        missing = [key for key in KEYS if key not in facts and key not in OPTIONAL]
        if missing or set(facts) - set(KEYS):
            raise InputError(f"header keys {', '.join(missing) or 'none'} are missing, "
                             f"{', '.join(sorted(set(facts) - set(KEYS))) or 'none'} unknown")
        if not re.fullmatch(r"0|[1-9]\d*", facts["count"]):
            raise InputError(f"count={facts['count']} is not a number of cases")
        fields = {new: tuple(map(Field.parse, facts.pop(old).split(","))) if old in facts else ()
                  for new, old in (("inputs", "in"), ("outputs", "out"))}
        header = cls(**(facts | fields | {"count": int(facts["count"])}))
        if header.line() != line:
            raise InputError(f"the header is not in canonical form; expected {header.line()!r}")
        for column in header.operand_fields + header.result_fields:
            column.width        # an unknown format is refused here
        return header


@dataclass(frozen=True)
class VectorSet:
    """A golden-vector set: header, operand columns, result columns, notes by case index (Spec: VEC-2).

    Every column is an unsigned array of shape (n,), or (n, count) for a field of several codes.
    """

    header: Header
    operands: tuple[np.ndarray, ...]
    results: tuple[np.ndarray, ...]
    notes: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.header.count

    @property
    def name(self) -> str:
        return self.header.name

    def operand_texts(self) -> list[str]:
        """One string per case: the operand fields joined by `_`."""
        return join(self.header.operand_fields, self.operands)

    def result_texts(self) -> list[str]:
        return join(self.header.result_fields, self.results)

    def operand_lines(self) -> str:
        """What a device reads: the header line, then one operand line per case (Spec: CHECK-1)."""
        return "".join(f"{line}\n" for line in [self.header.line(), *self.operand_texts()])

    def text(self) -> str:
        """The whole .vec file."""
        cases = [f"{operand}_{result}" for operand, result in zip(self.operand_texts(), self.result_texts())]
        for index, note in self.notes.items():
            cases[index] += f" // {note}"
        return "".join(f"{line}\n" for line in [self.header.line(), *cases])


def join(fields: Iterable[Field], columns: Iterable[np.ndarray]) -> list[str]:
    """Columns of codes as one text per case, fields joined by `_`."""
    texts = [column.texts(codes) for column, codes in zip(fields, columns)]
    return ["_".join(parts) for parts in zip(*texts)]


def split_columns(fields: tuple[Field, ...], texts: list[str]) -> tuple[np.ndarray, ...]:
    """The inverse of `join`. Raises InputError when a code does not fit its field."""
    parts = [text.split("_") for text in texts]
    return tuple(column.codes([row[place] for row in parts]) for place, column in enumerate(fields))


def pattern(fields: Iterable[Field], digit: str = "[0-9a-f]") -> str:
    """A regular expression for fields joined by `_`."""
    return "_".join(f"{digit}{{{column.digits * column.count}}}" for column in fields)


def parse(text: str, where: str = "text") -> VectorSet:
    """Read .vec text strictly. Raises InputError naming `where` and the line (Spec: VEC-2 to VEC-6)."""
    if not text.endswith("\n") or "\r" in text:
        raise InputError(f"{where}: every line must end in one LF, the last included")
    lines = text[:-1].split("\n")
    number = 1
    try:
        header = Header.parse(lines[0])
        operand_fields, result_fields = header.operand_fields, header.result_fields
        case = re.compile(f"({pattern(operand_fields)})_({pattern(result_fields)})(?: // (.*))?")
        operands, results, notes, last = [], [], {}, ""
        for number, line in enumerate(lines[1:], 2):
            matched = case.fullmatch(line)
            if not matched:
                raise InputError(f"{line[:80]!r} is not a case; expected {_shape(header)}")
            operand, result, note = matched.groups()
            if operand <= last:
                raise InputError(f"operand {operand} {'repeats' if operand == last else 'is out of order'}")
            if note is not None:
                if not NOTE.fullmatch(note):
                    raise InputError(f"note {note!r} must be printable ASCII without trailing space")
                notes[number - 2] = note
            operands.append(operand)
            results.append(result)
            last = operand
        if header.count != len(operands):
            raise InputError(f"the header says count={header.count}, the file has {len(operands)} cases")
        return VectorSet(header, split_columns(operand_fields, operands),
                         split_columns(result_fields, results), notes)
    except InputError as error:
        raise InputError(f"{where}, line {number}: {error}") from None


def _shape(header: Header) -> str:
    """The form of a case in words."""
    return "_".join(f"<{column}: {column.digits * column.count} hex digits>"
                    for column in header.operand_fields + header.result_fields)


def read(path) -> VectorSet:
    """Read a .vec file. Raises InputError when it cannot be read or is off the grammar."""
    try:
        return parse(Path(path).read_bytes().decode("ascii"), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: a .vec file is plain ASCII") from None


def digest(text: str) -> str:
    """SHA-256 of a set's text, in hex (Spec: VEC-7)."""
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def write(vectors: VectorSet, path) -> None:
    """Write a .vec file; the bytes depend on the set alone."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(vectors.text().encode("ascii"))
