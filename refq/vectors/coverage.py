"""Coverage models: which operands a golden-vector set holds. Named, and generic in the formats.

A magnitude is `significand * 2^exponent` in integers, so that every value, midpoint and threshold is exact;
its neighbours in the source type are the codes next to it. Spec: VEC-8 to VEC-11.
"""

from collections.abc import Iterator

import numpy as np

from refq.errors import InputError
from refq.formats.listed import boundaries, key
from refq.vectors.vec import code_dtype, short_name

Magnitude = tuple[int, int]      # significand, exponent


def codes(row) -> np.ndarray:
    """Every code of a format of at most 16 bits (Spec: VEC-8)."""
    if row.width > 16:
        raise InputError(f"{short_name(row)} has {row.width} bits: all codes are listed for at most 16")
    return np.arange(1 << row.width, dtype=code_dtype(row.width))


def values(source, target) -> np.ndarray:
    """Every value of the target that the source has, both signs, ±0, infinities, a NaN (Spec: VEC-8)."""
    layout, taken = source.layout, {0, source.layout.inf, source.layout.nan}
    for point in magnitudes(target):
        place, exact = floor_index(source, point)
        taken |= {place} if exact and place <= layout.max_index else set()
    return _both_signs(source, taken)


def boundary(source, target) -> np.ndarray:
    """The complete set for a monotone device (Spec: VEC-9).

    Every value, every midpoint, the overflow threshold and the underflow points of the target, each with its
    predecessor and successor in the source; three significands at every source exponent; single bits above a
    few values and midpoints, for devices that drop some sticky bits; the special operands.
    Returns sorted unique source codes. Raises InputError for a source that is not an IEEE-style signed float,
    or a target wider than 16 bits.
    """
    _check_source(source)
    if target.width > 16 or source.width > 64:
        raise InputError(f"boundary sets end at targets of 16 bits, {short_name(target)} has {target.width}")
    taken = set(_grid(source)) | set(_specials(source)) | set(_single_bits(source, target))
    for point in points(target):
        taken.update(neighbours(source, point))
    return _both_signs(source, taken)


def special(source, target) -> np.ndarray:
    """Special operands and the ends of the target's range: what tells overflow rules apart (VEC-10)."""
    _check_source(source)
    if target.is_listed:
        return boundary(source, target)
    layout = target.layout
    taken = set(_specials(source))
    for index in {layout.first, 1, 1 << layout.man, layout.max_index - 1, layout.max_index, layout.top_index,
                  layout.top_index + 1}:
        if index <= layout.top_index + 1:
            taken.update(neighbours(source, layout.magnitude(index))
                         + neighbours(source, midpoint(layout, index)))
    taken.update(neighbours(source, midpoint(layout, 0)))
    return _both_signs(source, taken)


def stochastic(source, target, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Operands and random bits at the decisions of stochastic rounding, `width` random bits (Spec: VEC-11).

    In a few gaps between neighbouring values, points at k and k + 1/2 steps of 2^-width of the gap, just
    above them, each with the random words next to the one where rounding turns up. Both signs. Returns
    (codes, random).
    """
    _check_source(source)
    layout, layout_of_source, cells = target.layout, source.layout, set()
    full = 1 << width
    steps = sorted({k for k in (0, 1, 2, full // 2 - 1, full // 2, full - 2, full - 1) if 0 <= k < full})
    for index in sorted(_gaps(layout)):
        significand, exponent = layout.magnitude(index)
        for k in steps:
            for half in (0, 1):
                point = ((significand << (width + 1)) + 2 * k + half, exponent - width - 1)
                for place in neighbours(source, point)[-2:]:
                    for random in (0, full - k - 2, full - k - 1, full - k, full - 1):
                        if 0 <= random < full:
                            cells.add((place, random))
    cells |= {(place, full // 2) for place in _specials(source)}
    sign = 1 << (layout_of_source.bits - 1)
    table = sorted((code << layout_of_source.pad, random)
                   for place, random in cells for code in (place, place | sign))
    return (np.array([code for code, _ in table], code_dtype(source.width)),
            np.array([random for _, random in table], code_dtype(width)))


def points(target) -> Iterator[Magnitude]:
    """Magnitudes where a rounding of the target can change: values and midpoints, also past the end."""
    if target.is_listed:
        yield from magnitudes(target)
        for negative in (False, True):
            yield from map(_dyadic, boundaries(target, negative=negative))
        return
    for index in range(target.layout.top_index + 2):
        yield target.layout.magnitude(index)
        yield midpoint(target.layout, index)


def magnitudes(row) -> Iterator[Magnitude]:
    """The magnitude of every finite value; of an irrational one a stand-in (Irrational.inside)."""
    if row.is_listed:
        yield from (_dyadic(value) for value, _ in row.ascending)
    else:
        yield from map(row.layout.magnitude, range(row.layout.first, row.layout.top_index + 1))


def _dyadic(value) -> Magnitude:
    value = abs(key(value))
    drop = (value.numerator & -value.numerator).bit_length() - 1 if value else 0
    return value.numerator >> drop, drop - (value.denominator.bit_length() - 1)


def midpoint(layout, index: int) -> Magnitude:
    """Halfway to the next magnitude of the unbounded format: half a unit in the last place above."""
    significand, exponent = layout.magnitude(index)
    return 2 * significand + 1, exponent - 1


def floor_index(source, point: Magnitude) -> tuple[int, bool]:
    """(index, exact): the largest source magnitude not above a point; it may lie past the largest finite."""
    layout, (significand, exponent) = source.layout, point
    if not significand:
        return 0, True
    quantum = max(significand.bit_length() - 1 + exponent - layout.man, layout.qmin)
    shift = exponent - quantum
    scaled = significand << shift if shift >= 0 else significand >> -shift
    exact = shift >= 0 or scaled << -shift == significand
    return ((quantum - layout.qmin) << layout.man) + scaled, exact


def _end(source) -> int:
    """Index of the source's infinity: one past its largest finite magnitude."""
    return source.layout.max_index + 1


def neighbours(source, point: Magnitude) -> list[int]:
    """Indices of a point and its neighbours in the source, or of the two around it, as far as they exist."""
    index, exact = floor_index(source, point)
    near = (index - 1, index, index + 1) if exact else (index, index + 1)
    return [place for place in near if 0 <= place <= _end(source)]


def _grid(source) -> Iterator[int]:
    """Three significands at every source exponent: all zeros, alternating, all ones."""
    man = source.layout.man
    alternating = int("01" * man, 2) & ((1 << man) - 1)
    for exponent in range((source.layout.max_index >> man) + 1):
        yield from ((exponent << man) + trailing for trailing in (0, alternating, (1 << man) - 1))


def _single_bits(source, target) -> Iterator[int]:
    """The smallest, a middle and the largest value, and the midpoints above them, plus one lower bit."""
    if target.is_listed:
        return
    layout = target.layout
    middle = target.code_of_one or 1 << layout.man if target.is_float else layout.max_index // 2
    for index in {1, min(max(layout.first, middle), layout.max_index), layout.max_index}:
        gap, _ = floor_index(source, layout.magnitude(index + 1))
        for point in (layout.magnitude(index), midpoint(layout, index)):
            place, exact = floor_index(source, point)
            if exact and gap <= source.layout.max_index:
                yield from (place + (1 << k) for k in range(source.layout.man) if place + (1 << k) < gap)


def _specials(source) -> list[int]:
    """Zero, ends of the subnormal and normal ranges, infinity, quiet and signalling NaNs with payloads."""
    layout = source.layout
    quiet, infinity, ones = layout.nan, layout.inf, layout.nan_ones
    signalling = [infinity + 1, quiet - 1] if layout.man > 1 else []
    normal = 1 << layout.man
    return [0, 1, 2, normal - 1, normal, normal + 1, layout.max_index - 1, layout.max_index,
            infinity, quiet, min(quiet + 1, ones), ones, *signalling]


def _gaps(layout) -> set[int]:
    """Indices whose gap to the next value is worth sampling: the ends, binade edges, one per few binades."""
    last = layout.max_index
    edge = min(1 << layout.man, last)
    spread = {index for index in range(edge, last, max(1, (last - edge) // 5))}
    return {index for index in {0, 1, edge - 1, edge, last - 1, last} | spread
            if layout.first <= index <= last}


def _both_signs(source, magnitudes: set[int]) -> np.ndarray:
    """Sorted source codes of magnitudes with either sign; a source's padding is zero."""
    sign = 1 << (source.layout.bits - 1)
    wanted = {place for place in magnitudes if place is not None}
    return np.array(sorted(code << source.layout.pad for place in wanted for code in (place, place | sign)),
                    code_dtype(source.width))


def _check_source(source) -> None:
    if source.special != "ieee" or source.layout.sign != "bit":
        raise InputError(f"{short_name(source)} cannot be the source of this model: allowed are signed "
                         "floats with infinities and NaN payloads, such as f64, f32, f16, bf16, tf32")


def nan_words(source) -> list[int]:
    """A quiet, a signalling and a negative quiet NaN code of an IEEE-style source."""
    layout = source.layout
    return [layout.nan, layout.inf + 1, layout.nan | 1 << (layout.bits - 1)]


def holds(wide, row) -> bool:
    """Whether every finite value of a format of at most 16 bits is a value of an IEEE-style wider one."""
    if row.is_listed and not row.exact:
        return False
    places = (floor_index(wide, point) for point in magnitudes(row))
    return all(exact and index <= wide.layout.max_index for index, exact in places)


def landmarks(source, target) -> dict[int, str]:
    """Source code -> note, for the operands of a cast worth a word; either sign."""
    layout = source.layout
    marks = {0: "zero", layout.inf: "infinity", layout.nan: "quiet NaN", layout.inf + 1: "signalling NaN",
             1: "smallest source subnormal", layout.max_index: "largest source value"}
    for point, note in _sites(target):
        index, exact = floor_index(source, point)
        if exact and index <= layout.max_index:
            marks[index] = note
    sign = 1 << (layout.bits - 1)
    marks |= {code | sign: ("minus " if code in (0, layout.inf) else "negative ") + note
              for code, note in marks.items()}
    return {code << layout.pad: note for code, note in marks.items()}


def _sites(target) -> list[tuple[Magnitude, str]]:
    """Points of a target's range that are worth a word."""
    if target.is_listed:
        sites = (target.max, "largest value"), (target.min_positive, "smallest value")
        return [(_dyadic(value), note) for value, note in sites if value is not None and key(value) > 0]
    goal = target.layout
    sites = [(goal.magnitude(goal.max_index + 1), "first value past the end"),
             (midpoint(goal, goal.max_index), "tie at the overflow boundary"),
             (goal.magnitude(goal.max_index), "largest value"),
             (goal.magnitude(1), "smallest value"),
             (midpoint(goal, 0), "tie between zero and the smallest value")]
    if target.is_float and goal.man and not goal.first and 1 << goal.man <= goal.max_index:
        sites += [(goal.magnitude(1 << goal.man), "smallest normal"),
                  (midpoint(goal, (1 << goal.man) - 1), "tie below the smallest normal"),
                  (goal.magnitude(1), "smallest subnormal"),
                  (midpoint(goal, 0), "tie below the smallest subnormal")]
    return sites


def code_landmarks(row) -> dict[int, str]:
    """Code -> note for a decode set: ends of the ranges, specials, 1."""
    if row.is_listed:
        return _listed_landmarks(row)
    layout, pad = row.layout, row.layout.pad
    marks = {code: "NaN" for code in row.nan_codes} | {code: "infinity" for code in row.inf_codes}
    for negative in (False, True)[: 2 if layout.sign != "none" else 1]:
        top = layout.min_index if negative else layout.max_index
        sites = {1: "smallest", top: "largest"}
        if row.is_float and layout.man and not layout.first and 1 << layout.man <= top:
            sites |= {1: "smallest subnormal", (1 << layout.man) - 1: "largest subnormal",
                      1 << layout.man: "smallest normal"}
        if not layout.first and (not negative or layout.neg_zero):
            sites[0] = "zero"
        marks |= {layout.code(negative, index) << pad: ("minus zero" if not index else f"negative {what}")
                  if negative else what
                  for index, what in sites.items()}
    if row.code_of_one is not None:
        marks.setdefault(row.code_of_one, "1")
    return marks


def _listed_landmarks(row) -> dict[int, str]:
    least, largest = row.ascending[0], row.ascending[-1]
    marks = {code: "NaN" for code in row.nan_codes} | {code: "infinity" for code in row.inf_codes}
    marks |= {least[1]: "least", largest[1]: "largest"} | ({row.zero: "zero"} if row.has_zero else {})
    if row.has_neg_zero:
        marks |= {code: "minus zero" for code in range(1 << row.bits) if row.is_minus_zero(code)}
    return {row.code_of_one: "1"} | marks if row.code_of_one is not None else marks
