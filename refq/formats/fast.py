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
from refq.formats.rows import FORMATS, Row

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
    """Conversion of IEEE-style words into a listed format, whose codes start at any word.

    The words of a sign and exponent (a segment) are cut into buckets of 2^shift words, so small that at most
    one code starts inside a bucket. A bucket has two codes, before and after that start; adding what the
    start lacks to the end of the bucket carries exactly the words from the start on into the next bucket.
    """

    codes: np.ndarray               # two for each bucket
    rise: np.ndarray                # of each bucket: 2^shift less the start's place in it, 0 without one
    width: int                      # of the source word
    shift: int | np.ndarray         # for all segments, or for each
    first: np.ndarray | None        # with a shift for each: its first bucket less its first word >> shift
    segment: int                    # words of a segment, as a power of two

    def look_up(self, u, t, i, room):
        """One chunk; arguments as of Plan.look_up."""
        size = min(u.size, _PIECE)
        shift, first, rise = (np.empty(size, u.dtype) for _ in range(3))
        for part in chunks(u.size, _PIECE):
            n = u[part].size
            self._piece(u[part], t[:n], i[:n], shift[:n], first[:n], rise[:n], room[part])

    def _piece(self, u, t, i, shift, first, rise, room):
        """Codes of words u into room; t, shift, first, rise are scratch of u's dtype, i of intp."""
        wrap = self.first is not None
        if wrap:
            np.right_shift(u, u.dtype.type(self.segment), out=t)
            at = _indices(t, i)
            self.shift.take(at, out=shift, mode="clip")
            self.first.take(at, out=first, mode="clip")
        else:
            shift = u.dtype.type(self.shift)
        np.right_shift(u, shift, out=t)
        if wrap:
            np.add(t, first, out=t)                 # the bucket
        self.rise.take(_indices(t, i), out=rise, mode="clip")
        np.add(rise, u, out=rise)
        np.right_shift(rise, shift, out=rise)
        if wrap:
            np.add(rise, first, out=rise)           # the bucket, or the next
        np.add(t, rise, out=t)
        self.codes.take(_indices(t, i), out=room, mode="clip")


@dataclass(frozen=True)
class Search:
    """Where codes start too close together for Steps: a search among the starts."""

    starts: np.ndarray              # source words, ascending: first all positive ones, then all negative ones
    codes: np.ndarray

    def look_up(self, u, t, i, room):
        """One chunk; arguments as of Plan.look_up."""
        self.codes.take(np.searchsorted(self.starts, u, side="right") - 1, out=room, mode="clip")


@dataclass(frozen=True)
class Widened:
    """float32 words looked up as float64, for values among float32's subnormals, all in one segment there."""

    steps: Steps

    def look_up(self, u, t, i, room):
        """One chunk; arguments as of Plan.look_up."""
        wide = np.empty(min(u.size, _PIECE), np.float64)
        scratch = np.empty(wide.size, np.uint64)
        for part in chunks(u.size, _PIECE):
            n = u[part].size
            with np.errstate(invalid="ignore"):                     # of signalling NaNs
                wide[:n] = u[part].view(np.float32)
            self.steps.look_up(wide[:n].view(np.uint64), scratch[:n], i[:n], room[part])


_PIECE = 1 << 13            # words per pass of Steps, which needs more scratch


def _indices(words, scratch):
    """Small unsigned words as intp, in place where they have its size."""
    if words.itemsize == scratch.itemsize:
        return words.view(np.intp)
    scratch[...] = words
    return scratch


def _steps(source: Row, target: Row, rounding: str, limits, define):
    """A fast path from the first source word of every code, by the format's boundaries.

    A Plan where words of 16 bits tell them apart: each start, or the word before it, is a multiple of two
    units of the last place kept. Else Steps, or Search where the starts lie too close together for that.
    """
    kind, width, man = code_dtype(source).type, source.width, source.layout.man
    sign, infinity = kind(1 << (width - 1)), kind(source.layout.inf)
    sides = []
    for (exponent, m), minus in zip(listed.starts(target, rounding, limits), (kind(0), sign)):
        words = np.concatenate([np.array([0, 1, infinity, infinity + kind(1)], kind),
                                _first_words(source, exponent, m)])
        sides.append(words | minus)
    words = np.unique(np.concatenate(sides))
    codes, shift = define(words), width - 16
    if (words % kind(2 << shift) <= 1).all():
        return Plan(define(np.arange(1 << 16).astype(kind) << kind(shift)), shift, define)
    new = np.concatenate([[True], codes[1:] != codes[:-1]])
    return _buckets(words[new], codes[new], width, man) or Search(words[new], codes[new])


def _first_words(source: Row, exponent, m):
    """The least nonzero magnitudes of an IEEE-style source that are not below m * 2^(exponent - 63)."""
    layout = source.layout
    quantum = np.maximum(exponent - layout.man, layout.qmin)
    drop = 63 - exponent + quantum                              # bits of m below the quantum, at least one
    by = np.minimum(drop, 63).astype(np.uint64)
    rest = m & ((np.uint64(1) << by) - np.uint64(1))
    kept = np.where(drop > 63, np.uint64(0), m >> by) + (np.where(drop > 63, m, rest) != 0)
    words = ((quantum - layout.qmin).astype(np.uint64) << np.uint64(layout.man)) + kept
    words = np.where(exponent > source.emax, np.uint64(layout.inf), np.maximum(words, np.uint64(1)))
    return np.minimum(words, np.uint64(layout.inf)).astype(code_dtype(source))


def _buckets(words, codes, width: int, man: int) -> Steps | None:
    """The tables of Steps from the word where each code starts (the first is 0)."""
    kind = words.dtype.type
    segments = np.arange(1 << (width - man), dtype=np.intp)
    shifts = np.full(segments.size, man, np.intp)
    inside = words[(words & kind((1 << man) - 1)) != 0]             # a start on the edge needs no bucket
    apart = inside[1:] ^ inside[:-1]
    same = (apart >> kind(man)) == 0                                # in one segment: two buckets
    np.minimum.at(shifts, (inside[1:][same] >> kind(man)).astype(np.intp), _top_bit(apart[same]))
    shifts[-1] = min(shifts[-1], man - 1)           # no start, hence no carry, in the last bucket: NaNs
    least = int(shifts.min())
    single = width - least <= 16
    if single:
        shifts[:] = least
    counts = 1 << (man - shifts)
    if counts.sum() > TABLE_LIMIT:
        return None
    begin = np.concatenate([[0], np.cumsum(counts)[:-1]])
    first = begin.astype(kind) - (segments.astype(kind) << (man - shifts).astype(kind))
    owner = np.repeat(segments, counts)                             # of each bucket
    shift = shifts.astype(kind)[owner]
    low = (np.arange(owner.size).astype(kind) - first[owner]) << shift
    size = kind(1) << shift
    before = np.searchsorted(words, low, side="right") - 1
    after = np.searchsorted(words, low + (size - kind(1)), side="right") - 1
    rise = np.where(after > before, size - (words[after] - low), kind(0))
    pairs = np.stack([codes[before], codes[after]], axis=1).reshape(-1)
    if single:
        return Steps(pairs, rise, width, least, None, man)
    return Steps(pairs, rise, width, shifts.astype(kind), first, man)


def _top_bit(words):
    """The place of the top set bit of nonzero words."""
    return listed.bit_length(words.astype(np.uint64)) - 1


@lru_cache(maxsize=256)
def plan(source: Row, target: Row, rounding: str, overflow: str):
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
        found = _steps(source, target, rounding, limits, define)
        if isinstance(found, Search) and source.layout == FORMATS["binary32"].layout:
            wide = plan(FORMATS["binary64"], target, rounding, overflow)
            return Widened(wide) if isinstance(wide, Steps) else found
        return found
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
