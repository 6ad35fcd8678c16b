"""Source codes worth testing for a target format, found with the oracle alone (standard library only).

A rounding is monotone, so a converter that is right at every value and midpoint of the target, at the
overflow points, and at the source codes just below and above each of these, is right everywhere between them.
A format is a dict or Facts as in spec/oracle/scalar.py; results are sorted lists of source codes.
"""

from collections.abc import Iterator
from fractions import Fraction

from spec.oracle.blocks import SAT
from spec.oracle.scalar import NUMBER, Value, encode, facts

DENSE = 300         # targets with more magnitudes than this are thinned, by the rule of `_indices`


def boundary(source, target, full=False) -> list[int]:
    """Every value, midpoint and overflow point of the target with its neighbours in the source, both signs.

    Unless full, targets of more than DENSE magnitudes keep 24 at either end, those around some 60 binades,
    and some 150 spread evenly.
    """
    s, chosen = facts(source), set()
    for point in points(facts(target), full):
        body = encode(Value(NUMBER, False, point), s, "rtz", SAT) >> s.pad
        chosen.update(range(max(body - 1, 0), min(body + 2, s.top) + 1))
    return signed(s, chosen)


def points(t, full=False) -> Iterator[Fraction]:
    """The positive values of a target, the midpoints between them, and the same two beyond its extremes."""
    scale = Fraction(2) ** t.quantum
    for index in _indices(t, full):
        below, above = _ladder(index, t), _ladder(index + 1, t)
        yield below * scale
        yield (below + above) * scale / 2
    yield above * scale


def _ladder(index, t):
    """The index-th magnitude of a format without an upper limit, in its smallest quanta; 0 is zero."""
    if t.integer:
        return index
    if t.special == "scale":
        return 1 << (index - 1) if index else 0
    e, m = index >> t.man, index & ((1 << t.man) - 1)
    return m if e == 0 else ((1 << t.man) + m) << (e - 1)


def _indices(t, full):
    last = max(t.high, t.low) if t.integer else t.top + (t.special == "scale")
    if full or last < DENSE:
        return range(last + 1)
    return [i for i in _candidates(last, t.man) if 0 <= i <= last]


def _candidates(last, man):
    """The thinning rule; never walks all indices, so that it also serves 32- and 64-bit targets."""
    ends = set(range(25)) | set(range(last - 24, last + 1))
    step = last // 150 | 1
    starts = list(range(0, last, 1 << man)) if man else [1 << k for k in range(last.bit_length())]
    starts = starts[::max(1, len(starts) // 60)]
    near = {start + d for start in starts for d in (-1, 0, 1)}
    return sorted(ends | near | set(range(0, last, step)))


def exponents(source, step=1) -> list[int]:
    """Three significands for every exponent of a source (integers: around every power of two), both signs.

    With a step, only every step-th of the exponents beyond 2**±40, and the three at either end.
    """
    s = facts(source)
    if s.integer:
        bodies = {n + d for n in (1 << k for k in range(s.high.bit_length() + 1)) for d in (-1, 0, 1)}
        return signed(s, {b for b in bodies if 0 <= b <= s.high})
    ones, last = (1 << s.man) - 1, s.top >> s.man
    chosen = [e for e in range(last + 1) if e % step == 0 or abs(e - s.bias) <= 40 or not 2 < e < last - 2]
    bodies = {e << s.man | t for e in chosen for t in (0, ones // 3, ones)}
    return signed(s, {body for body in bodies if body <= s.top})


def specials(source) -> list[int]:
    """Zeros, extremes, infinities, and NaNs quiet and signalling with several payloads, both signs."""
    s = facts(source)
    if s.integer:
        return signed(s, {0, 1, s.high})
    last, quiet = (1 << s.body) - 1, 1 << s.man >> 1
    bodies = {0, 1, 2, (1 << s.man) - 1, 1 << s.man, s.top - 1, s.top}
    bodies |= {s.top + 1 + t for t in (0, 1, 2, quiet - 1, quiet, quiet + 1, quiet | quiet >> 1 | 5, last)}
    return signed(s, {b for b in bodies if 0 <= b <= last}, everything=True)


def signed(s, bodies, everything=False) -> list[int]:
    """Stored codes of both signs of these magnitudes; those past the largest only if everything is wanted."""
    bodies = [b for b in bodies if everything or b <= s.top]
    if s.special == "twos" and s.signed:
        limit, mask = s.top, (1 << s.body) - 1
        return sorted({b for b in bodies if b <= limit} | {-b & mask for b in bodies} | {-limit - 1 & mask})
    signs = (0, 1 << s.body) if s.signed else (0,)
    return sorted((sign | b) << s.pad for b in bodies for sign in signs)
