"""Codebook collections: tables of values, of which each tile or subtile chooses one (Spec: CB-1 to CB-10).

A collection is a row of CODEBOOKS, one of TensorCast's implicit names (`cb42f1346_e2m3fnuz`), whose tables
are generated from the name, or user tables given to `explicit`. `select` finds the table of least error.
"""

import json
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np

from refq.errors import InputError
from refq.formats.listed import Codebook
from refq.formats.names import number_format
from refq.formats.rows import Float, registered_in
from refq.formats.values import floor_log2


@dataclass(frozen=True)
class Tables:
    """A collection of tables with the same number of codes (Spec: CB-1).

    emax: exponent that an exponent scale rule takes for the element's: the compute format's.
    """

    name: str
    tables: tuple[Codebook, ...]
    emax: int
    ref: str = ""
    aka: tuple[str, ...] = ()

    def __post_init__(self):
        sizes = {len(table.values) for table in self.tables}
        if len(sizes) != 1 or len(self.tables) > 256:
            raise InputError(f"{self.name}: needs 1 to 256 tables of one size, got {len(self.tables)} of "
                             f"{', '.join(map(str, sorted(sizes))) or 'none'}")

    @property
    def width(self) -> int:
        """Bits of a code: an index into a table."""
        return self.tables[0].bits

    @property
    def meta_bits(self) -> int:
        """Bits that name a table."""
        return (len(self.tables) - 1).bit_length()

    @property
    def max(self) -> Fraction:
        """The largest value of any table."""
        return max(table.max for table in self.tables)


# ------------------------------------------------------------------------------------------------------------
# TensorCast's implicit names

_IMPLICIT = re.compile(r"cb([1-8])([0-8])((?:[fi]\d*(?:e[0-3]*)?|[ps]\d*)+)_([a-z0-9]+)")
_ALL_SHIFTS = re.compile(r"icb([3-6])([0-3])(f|i|fi)_([a-z0-9]+)")
_GENERIC = re.compile(r"i?cb\d\d[a-z0-9]*(_[a-z0-9]+){1,2}")
_CLAUSE = re.compile(r"([fips])(\d*)(e?)(\d*)")


@lru_cache(maxsize=256)
def _implicit(name: str) -> Tables | None:
    """The collection that a name describes (CB-9); None for names of another form."""
    if shape := _ALL_SHIFTS.fullmatch(name):
        bits, meta, patterns, number = shape.groups()
        clauses = [(kind, tuple(range(2 ** int(meta))), (0,), 1) for kind in patterns]
        count = len(clauses) * 2 ** int(meta)
    elif shape := _IMPLICIT.fullmatch(name):
        bits, meta, text, number = shape.groups()
        clauses = [_clause(*part.groups()) for part in _CLAUSE.finditer(text)]
        count = 2 ** int(meta)
    else:
        return None
    line, emax = number_line(number)
    if int(bits) < 2:
        raise InputError(f"codebook {name!r}: one bit leaves a pattern no positive value; allowed are 2 to 8")
    halves = [half for clause in clauses for half in _halves(name, int(bits), line, emax, *clause)]
    if len(halves) != count:
        raise InputError(f"codebook {name!r} describes {len(halves)} tables, but its name says {count}")
    tables = (Codebook(f"{name}.{place}", (*half, *(-value for value in half)), "away", "CB-6")
              for place, half in enumerate(halves))
    return Tables(name, tuple(tables), emax, "TensorCast docs/codebook.md (CB-9)")


def _clause(kind: str, digits: str, e: str, eoffsets: str) -> tuple:
    """(pattern, positions or None for the pattern's own, exponent steps, interval)."""
    if kind in "ps":
        interval, positions = int(digits[:1] or 1), digits[1:] or "0"
        return kind, tuple(map(int, positions)), (0,), interval
    steps = tuple(map(int, eoffsets)) or ((0, 1) if e else (0,))
    return kind, tuple(map(int, digits)) or None, steps, 1


def number_line(number: str) -> tuple[list[float], int]:
    """(positive finite values, ascending; emax) of a compute format under TensorCast's name (CB-5)."""
    row = number_format(f"tcast:{number}")
    if not isinstance(row, Float) or not row.signed or row.bits > 9:
        raise InputError(f"tcast:{number} cannot fill a codebook; "
                         "allowed are TensorCast's signed numbers of at most 9 bits")
    values = [row.layout.magnitude(index) for index in range(1, row.layout.max_index + 1)]
    return [float(m * Fraction(2) ** exponent) for m, exponent in values], row.emax


def _halves(name: str, bits: int, line, emax: int, kind: str, positions, steps, interval: int):
    """The non-negative values of every table of one clause of the name, 0 first (CB-6, CB-7, CB-8)."""
    count, top = 2 ** (bits - 1) - 1, len(line) - 1
    place = {value: index for index, value in enumerate(line)}
    if kind in "fi":
        pattern = [value * Fraction(2) ** emax for value in _pattern(name, kind, bits)]
        own = top - _places(name, kind, pattern, place)[-1]
    else:
        gaps = [interval + (n if kind == "p" else 0) for n in range(count - 1)]
        pattern, own = [top - sum(gaps[:n]) for n in reversed(range(count))], 0
    for step in steps:
        lowered = _places(name, kind, [v / 2 ** step for v in pattern], place) if kind in "fi" else pattern
        for position in (own,) if positions is None else positions:
            shifted = [index + own - position for index in lowered]
            if shifted[0] < 0 or shifted[-1] > top or len(set(shifted)) < count:
                raise InputError(f"codebook {name!r}: pattern {kind!r} at position {position} "
                                 f"does not fit on a number line of {top + 1} values")
            yield (0.0, *(line[index] for index in shifted))


def _places(name: str, kind: str, values, place) -> list[int]:
    """Where a pattern's values stand on the number line."""
    missing = [value for value in values if float(value) not in place]
    if missing:
        raise InputError(f"codebook {name!r}: {float(missing[0])} of pattern {kind!r} "
                         "is not on the number line")
    return [place[float(value)] for value in values]


def _pattern(name: str, kind: str, bits: int) -> list[Fraction]:
    """The positive values of pattern f or i, the power of two below the largest at 1 (CB-6)."""
    if kind == "f" and not 3 <= bits <= 6:
        raise InputError(f"codebook {name!r}: pattern 'f' needs 3 to 6 index bits, not {bits}")
    values, emax = number_line(f"e2m{bits - 3}fnuz" if kind == "f" else f"e1m{bits - 2}fnuz")
    return [Fraction(value) / 2 ** emax for value in values]


def codebook(name) -> Tables | None:
    """The collection of a name, None where the name is none of a codebook.

    name: a row or alias of CODEBOOKS, or TensorCast's implicit name
    `cb<index bits><meta bits><patterns>_<number>`; a collection is returned as it is. Case does not matter.
    Raises InputError for a codebook that cannot be generated. Spec: CB-9.
    """
    if isinstance(name, Tables):
        return name
    if not isinstance(name, str):
        return None
    key = name.strip().lower().removeprefix("tcast:")
    known = next((row for row in CODEBOOKS.values() if key in (row.name, *row.aka)), None) or _implicit(key)
    if known is None and _GENERIC.fullmatch(key):
        raise InputError(f"codebook {name!r} says nothing of its tables; the patterns are f, i, p and s, and "
                         "tables of your own are named by explicit(...) and registered")
    return known


CODEBOOKS: dict[str, Tables] = {name: _implicit(name) for name in (
    "cb41fi_e2m2fnuz", "cb41f01_e2m2fnuz", "cb42fe0123_e3m2fnuz", "cb42f1346_e2m3fnuz",
    "cb81ie_int9", "cb51ie_int7", "cb31ie_int5")}


# ------------------------------------------------------------------------------------------------------------
# user tables

def explicit(name: str, tables, emax: int | None = None, tie: str = "away", ref: str = "user",
             aka: tuple[str, ...] = ()) -> Tables:
    """A collection of user tables (Spec: CB-3); `registered` makes its name known.

    tables: nested sequences or an array, (tables, codes); or the path of a .json file with such a list, or of
    an .npz or .npy file with one such array. A code is a place in its table, in any order.
    emax: exponent that exponent scale rules use; of the largest value when None. tie: a tie rule of LIST-2.
    Raises InputError for tables that are unequal, not a power of two long, without 0 or not float32 numbers.
    """
    rows = _read(Path(tables)) if isinstance(tables, (str, Path)) else tables
    try:
        rows = [[float(value) for value in row] for row in rows]
    except (TypeError, ValueError):
        raise InputError(f"{name}: the tables must be sequences of numbers, one for each table") from None
    made = tuple(_table(f"{name}.{place}", row, tie, ref) for place, row in enumerate(rows))
    if made and not max((table.max for table in made)) > 0:
        raise InputError(f"{name}: no table has a positive value")
    largest = max((table.max for table in made), default=1)
    return Tables(name, made, floor_log2(largest) if emax is None else emax, ref, aka)


def _table(name: str, values: list[float], tie: str, ref: str) -> Codebook:
    """One user table, checked."""
    size = len(values)
    if not 2 <= size <= 256 or size & (size - 1):
        raise InputError(f"{name}: a table has 2, 4, 8 ... 256 values, not {size}")
    with np.errstate(over="ignore"):
        wrong = [value for value in values if not np.isfinite(value) or float(np.float32(value)) != value]
    if wrong:
        raise InputError(f"{name}: {wrong[0]!r} is not a finite float32 number")
    if "0.0" not in map(repr, values):
        raise InputError(f"{name}: 0 must be among its values")
    return Codebook(name, tuple(values), tie, ref)


def _read(path: Path):
    """What a file of tables holds."""
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text())
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if len(loaded.files) != 1:
                raise InputError(f"{path} holds {len(loaded.files)} arrays, not one")
            return loaded[loaded.files[0]]
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a file of codebook tables: {error}") from None


def registered(*rows: Tables):
    """Put collections into the table for the length of a `with` block. Raises InputError if one is taken."""
    return registered_in(CODEBOOKS, rows)


# ------------------------------------------------------------------------------------------------------------
# the choice of a table

LONGEST = 1 << 11           # values: float32 sums of more seldom decide anything
CHUNK = 1 << 14             # values at a time, so that a chunk of every table stays in the second cache


def select(x, values, divisor=None, valid=None) -> np.ndarray:
    """For every unit the index of the table with the least exact sum of squared errors, uint8 (Spec: CB-4).

    x: (units, size) float64 or float32. values: for each table an array of x's shape, float64 or float32: the
    values that x / divisor was rounded to. divisor: (units,) floats, the value of the scale, or None for 1.
    valid: bool, x's shape, False where x is padding; padding of x = 0 with the value 0 needs none.
    Equal sums give the lowest index; a unit with a NaN or infinity (or such a divisor) gives 0.
    Raises InputError for more than 256 tables.

    The squared errors without x^2 are summed in float32 (of float32 numbers), then float64, with a bound on
    the error of the sum; exact arithmetic makes the choice where the bounds leave one.
    """
    if not 1 <= len(values) <= 256:
        raise InputError(f"{len(values)} tables are nothing to choose from; 1 to 256 are")
    units, size = x.shape
    chosen = np.zeros(units, np.uint8)
    if len(values) == 1 or not x.size:
        return chosen
    rows = max(1, CHUNK // size)
    dtype = x.dtype if size <= LONGEST else np.dtype(np.float64)
    room = np.empty((3, min(rows, units), size), dtype)
    left, choices = [], []
    for start in range(0, units, rows):
        part = slice(start, min(start + rows, units))
        some = _rows(part, x, values, divisor, valid)
        chosen[part], near, open_ = _sums(*some, room[:, : part.stop - start])
        if open_.size:
            left.append(open_ + start)
            choices.append(near[:, open_])
    if left:
        left, possible = np.concatenate(left), np.concatenate(choices, axis=1)
        chosen[left] = _among(*_rows(left, x, values, divisor, valid), possible, dtype)
    return chosen


def _among(x, values, d, possible, dtype):
    """The choice for the units that sums in a dtype leave open, between the tables that are possible."""
    first = possible.argmax(axis=0).astype(np.uint8)
    least = values[0].copy()
    for table, v in enumerate(values[1:], 1):
        np.copyto(least, v, where=(first == table)[:, None])
    differ = ~np.isfinite(x).all(axis=1)
    for some, v in zip(possible, values):
        differ |= some & (v != least).any(axis=1)
    rows = np.flatnonzero(differ)                               # the others are ties: the same values
    if rows.size:
        rest = _rows(rows, x, values, d, None)
        first[rows] = (_exactly(*rest, possible[:, rows]) if dtype == np.float64
                       else select(rest[0].astype(np.float64), *rest[1:]))
    return first


def _rows(part, x, values, d, valid):
    """Some of the units: x, values and divisor, with zeros in the padding."""
    x, values = x[part], [v[part] for v in values]
    if valid is not None:
        x, values = np.where(valid[part], x, 0), [np.where(valid[part], v, 0) for v in values]
    return x, values, None if d is None else d[part]


@np.errstate(all="ignore")
def _sums(x, values, d, room):
    """(the choice, the tables near the least sum, units where these are several), in the dtype of `room`.

    With w = v d the sum is F = sum w (w - 2 x) = sum (w - x)^2 - X, X = sum x^2. Rounded, in any order, it is
    off by at most e = (n + 8) u times sum (w - x)^2 + x^2 = F + 2 X, since |w| |w - 2 x| = |(w - x)^2 - x^2|,
    and by what products too small for the dtype lose. So the least true sum is one of those at most
    e (4 X + 2 F) above the least F.
    """
    dtype, size = room.dtype, x.shape[1]
    info, ones = np.finfo(dtype), np.ones(size, dtype)
    twice, w, terms = room
    np.multiply(x, dtype.type(2), out=twice, dtype=dtype)
    unit, least = (size + 16) * info.eps / 2, 4 * size * info.smallest_normal
    slack = _row_sums(np.multiply(twice, twice, out=terms), ones) * unit + least
    if d is not None:
        edge = 2.0 ** (info.minexp // 4)
        slack[~((abs(d) > edge) & (abs(d) < 1 / edge))] = np.inf    # the dtype might not hold the divisor
        d = d.astype(dtype)[:, None]
    sums = np.empty((len(values), len(x)), dtype)
    for v, room_for in zip(values, sums):
        w = v if d is None else np.multiply(v, d, out=room[1], dtype=dtype, casting="unsafe")
        np.subtract(w, twice, out=terms, dtype=dtype, casting="unsafe")
        np.multiply(terms, w, out=terms, casting="unsafe")
        room_for[:] = _row_sums(terms, ones)
    lowest = sums.min(axis=0)
    limit = lowest + (slack + np.maximum(lowest, 0) * (2 * unit))
    near = sums <= limit
    count, chosen = near.view(np.uint8).sum(axis=0, dtype=np.uint8), near[1].view(np.uint8).copy()
    for table in range(2, len(values)):
        chosen += near[table] * np.uint8(table)
    open_ = np.flatnonzero(count != 1)
    near[:, count == 0] = True                                  # a NaN or infinity, or 256 tables near
    return chosen, near, open_


def _row_sums(terms, ones):
    """The sum of every row."""
    if ones.size > 4:
        return terms @ ones
    total = terms[:, 0].copy()
    for column in range(1, ones.size):
        total += terms[:, column]
    return total


def _product(v, d):
    """v d in float64, rounded at most once."""
    return v.astype(np.float64, copy=False) if d is None else np.multiply(v, d[:, None], dtype=np.float64)


def _exactly(x, values, d, possible):
    """The choice for units that rounded sums leave open, between the tables that are possible."""
    finite = np.isfinite(x).all(axis=1) & (True if d is None else np.isfinite(d) & (d != 0))
    best = np.zeros(len(x), np.intp)
    best[finite] = possible[:, finite].argmax(axis=0)
    stack = np.stack(values)
    for table in range(1, len(values)):
        rows = np.flatnonzero(finite & possible[table] & (best < table))
        rows = rows[(stack[table, rows] != stack[best[rows], rows]).any(axis=1)]        # else a tie
        if rows.size:
            scales = None if d is None else d[rows]
            less = _sign_of_difference(x[rows], stack[table, rows], stack[best[rows], rows], scales) < 0
            best[rows[less]] = table
    return best


@np.errstate(all="ignore")
def _sign_of_difference(x, v, old, d):
    """The sign of sum (x - v d)^2 - sum (x - old d)^2 = sum (v d - old d) (v d + old d - 2 x), exactly.

    Where every number is a multiple of one power of two and no sum reaches 2^53 of its squares, float64 is
    exact; the units where it is not go through fractions.
    """
    differ = v != old
    w, before, twice = (np.where(differ, part, 0.0)
                        for part in (_product(v, d), _product(old, d), np.multiply(x, 2, dtype=np.float64)))
    step, other = w - before, w + before - twice
    quantum = np.minimum(np.minimum(_last_place(w), _last_place(before)), _last_place(twice)).min(axis=1)
    reach = (abs(w) + abs(before) + abs(twice)).max(axis=1) / quantum
    sign = np.sign((step * other).sum(axis=1))
    sure = (reach ** 2 * x.shape[1] < 2.0 ** 52) & (quantum > 2.0 ** -500)
    if d is not None:                                                   # are its products with v exact?
        sure &= (abs(d) < _last_place(d) * 2.0 ** 29) & (abs(d) > 2.0 ** -400)
    for row in np.flatnonzero(~sure):
        scale = 1 if d is None else Fraction(float(d[row]))
        total = sum((scale * (a - b) * (scale * (a + b) - 2 * c) for a, b, c in
                     zip(*([Fraction(float(n)) for n in part[row][differ[row]]] for part in (v, old, x)))),
                    Fraction(0))
        sign[row] = (total > 0) - (total < 0)
    return sign


def _last_place(values):
    """The power of two of the lowest bit set of every number, infinity for 0."""
    significand, exponent = np.frexp(np.asarray(values, np.float64))
    whole = (significand * 2.0 ** 53).astype(np.int64)
    return np.where(whole == 0, np.inf, np.ldexp((whole & -whole).astype(np.float64), exponent - 53))
