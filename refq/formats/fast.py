"""The fast path: tables filled by the definition, so that they cannot disagree with it.

A source word becomes a table index by dropping low bits, with everything dropped or-ed into the last place
kept (round to odd), which no later rounding to at least two bits less can tell from the word itself.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from refq.formats import listed
from refq.formats.definition import chunks, code_dtype, convert_words, values_of
from refq.formats.policies import overflow_rule, rounding_rule
from refq.formats.rows import Row

STEP = 1 << 16              # elements per pass: few calls, and still within L2
TABLE_LIMIT = 1 << 19       # entries of the largest table


@dataclass(frozen=True)
class Plan:
    """How a source word becomes a table index: shifted right, sticky bit or-ed into the last place.

    A plan with a window first clips the magnitude to [low, high], counts from low and puts the sign on top;
    words it cannot tell apart (infinities, NaN, zeros where tiny values round away from them) go to the
    definition.
    """

    table: np.ndarray
    shift: int
    define: Callable                # flat source codes -> flat target codes, by the definition
    low: int | None = None          # source words: ends of the window
    high: int = 0
    infinity: int = 0               # of the source
    zeros: bool = False             # zeros go to the definition

    def look_up(self, u, t, i, room):
        """One chunk: source words u, scratch t (as u) and i (intp), codes into room."""
        special = self.low is not None and self._window(u, t, i.view(u.dtype)[: u.size])
        if self.low is None:
            self._upper(u, t)
        if t.itemsize == i.itemsize:
            i = t.view(np.intp)
        else:
            i[...] = t
        self.table.take(i, out=room, mode="clip")       # indices are in range; "clip" avoids a buffered copy
        magnitude = self._magnitude(u)
        if special:
            beyond = (u & magnitude) >= self.infinity
            room[beyond] = self.define(u[beyond])
        if self.zeros and (zero := (u & magnitude) == 0).any():
            room[zero] = self.define(u[zero])

    def _upper(self, u, t):
        """Table indices into t."""
        if self.shift:
            self._shift(u, t, t)
        else:
            t[...] = u

    def _window(self, u, t, s):
        """Table indices into t, with scratch s; True where infinities or NaN need the definition."""
        kind, width = u.dtype.type, 8 * u.itemsize
        np.bitwise_and(u, self._magnitude(u), out=t)
        special = bool(t.size) and t.max() >= self.infinity
        np.clip(t, kind(self.low), kind(self.high), out=t)
        np.subtract(t, kind(self.low), out=t)
        self._shift(t, s, t)
        np.right_shift(u, kind(width - 1), out=s)
        np.left_shift(s, kind(self.sign_at), out=s)
        np.bitwise_or(t, s, out=t)
        return special

    def _shift(self, words, scratch, out):
        """words >> shift into out, with everything dropped or-ed into the last place kept."""
        kind = words.dtype.type
        mask = kind((1 << self.shift) - 1)          # low bits + mask carry into the last place iff any is set
        np.bitwise_and(words, mask, out=scratch)
        np.add(scratch, mask, out=scratch)
        np.bitwise_or(words, scratch, out=out)
        np.right_shift(out, kind(self.shift), out=out)

    @property
    def sign_at(self) -> int:
        return ((self.high - self.low) >> self.shift).bit_length()

    @staticmethod
    def _magnitude(u):
        return u.dtype.type((1 << (8 * u.itemsize - 1)) - 1)


@dataclass(frozen=True)
class Steps:
    """Conversion of IEEE-style words into a listed format: one code from each start up to the next."""

    starts: np.ndarray              # source words, ascending: first all positive ones, then all negative ones
    codes: np.ndarray

    def look_up(self, u, t, i, room):
        """One chunk; arguments as of Plan.look_up."""
        self.codes.take(np.searchsorted(self.starts, u, side="right") - 1, out=room, mode="clip")


def _steps(source: Row, target: Row, rounding: str, limits, define) -> Plan | Steps:
    """The first source word of every code, from the format's boundaries.

    A Plan where words of 16 bits tell them apart: each start, or the word before it, is a multiple of two
    units of the last place kept.
    """
    infinity, sign = source.layout.inf, 1 << (source.width - 1)
    starts = set()
    for negative, edges in enumerate(listed.starts(target, rounding, limits)):
        words = {0, 1, infinity, infinity + 1, *(min(_first_word(source, *edge), infinity) for edge in edges)}
        starts |= {word | negative * sign for word in words}
    words = np.array(sorted(starts), code_dtype(source))
    shift = source.width - 16
    if (words % words.dtype.type(2 << shift) <= 1).all():
        return Plan(define(np.arange(1 << 16).astype(words.dtype) << words.dtype.type(shift)), shift, define)
    return Steps(words, define(words))


def _first_word(source: Row, exponent: int, m: int) -> int:
    """The least nonzero magnitude of an IEEE-style source that is not below m * 2^(exponent - 63)."""
    layout = source.layout
    quantum = max(exponent - layout.man, layout.qmin)
    return (quantum - layout.qmin << layout.man) - (-m >> (63 - exponent + quantum)) or 1


@lru_cache(maxsize=256)
def plan(source: Row, target: Row, rounding: str, overflow: str) -> Plan | Steps | None:
    """The fast path for a deterministic conversion, or None where the definition itself must run."""
    rule, limits = rounding_rule(rounding), overflow_rule(overflow, target.special)

    def define(words):
        parts = (words[part] for part in chunks(words.size))
        return np.concatenate([convert_words(part, source, target, rule, limits) for part in parts])

    bits, kind = source.width, code_dtype(source).type
    if bits <= 16:
        return Plan(define(np.arange(1 << bits, dtype=kind)), 0, define)
    if not source.is_float or source.special != "ieee" or source.layout.pad:
        return None
    if target.is_listed:
        return _steps(source, target, rounding, limits, define)
    # Round to odd is invisible to a later rounding when two more bits are kept than the target can use, in
    # every binade; below the source's normal range the kept quantum must still be a quarter of the target's.
    shift = min(source.layout.man - target.precision - 1, target.layout.qmin - 2 - source.layout.qmin)
    if shift < 1:
        return None
    if bits - shift <= 18:
        shift = min(shift, bits - 16)
        return Plan(define(np.arange(1 << (bits - shift)).astype(kind) << kind(shift)), shift, define)
    return _windowed_plan(source, target, shift, define)


def _windowed_plan(source: Row, target: Row, shift: int, define) -> Plan | None:
    """A table from an eighth of the smallest quantum up to four times the largest value."""
    man, kind, infinity = source.layout.man, code_dtype(source).type, source.layout.inf
    bias = 1 - source.layout.qmin - man
    low, high = target.layout.qmin - 3 + bias << man, target.emax + 2 + bias << man
    count = 1 << ((high - low) >> shift).bit_length()
    if low < 1 << man or high >= infinity or 2 * count > TABLE_LIMIT:
        return None
    words = kind(low) + (np.arange(count).astype(kind) << kind(shift))
    words = np.concatenate([words, words | kind(1 << (source.width - 1))])
    unused = (words & kind(infinity)) == kind(infinity)         # beyond high: not numbers, never looked up
    table = define(np.where(unused, kind(0), words))
    zero = define(np.array([0, 1 << (source.width - 1)], kind))
    return Plan(table, shift, define, low, high, infinity, zeros=bool((zero != table[[0, count]]).any()))


@lru_cache(maxsize=256)
def value_table(row: Row, dtype: np.dtype) -> np.ndarray:
    """The value of every code of a format of at most 16 bits (read only)."""
    table = values_of(row, np.arange(1 << row.width, dtype=code_dtype(row)), dtype)
    table.flags.writeable = False
    return table


_PAIR = {2: np.uint32, 4: np.uint64, 8: np.complex128}      # any dtype of twice the size: its bytes matter


@lru_cache(maxsize=64)
def pair_table(row: Row, dtype: np.dtype) -> np.ndarray:
    """Two values for each pair of neighbouring codes, packed into one word of twice the size."""
    single = np.zeros(256, dtype)
    single[: 1 << row.width] = value_table(row, dtype)
    pairs = np.empty((65536, 2), dtype)
    low, high = (0, 1) if sys.byteorder == "little" else (1, 0)
    pairs[:, low], pairs[:, high] = np.tile(single, 256), np.repeat(single, 256)
    return pairs.reshape(-1).view(_PAIR[dtype.itemsize])
