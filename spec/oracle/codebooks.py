"""Codebook collections, the choice of a table, and N:M sparsity.

Written from spec/codebooks.md and spec/sparsity.md. Exact and unhurried: integers and fractions. A table is
the list of its values, a choice is made between lists of values; magnitudes arrive as scalar.Value.
"""

import re
from fractions import Fraction

from spec.oracle.scalar import INFINITE, NAN


# --- number lines (CB-5) --------------------------------------------------------------------------

def line(number):
    """The positive finite values of a compute format under TensorCast's name, ascending (CB-5, TCAST-1)."""
    if integer := re.fullmatch(r"int(\d+)", number):
        number = f"e1m{int(integer[1]) - 2}b1fnuz"
    exp, man, bias, rule = re.fullmatch(r"e(\d+)m(\d+)(?:b(\d+))?(fnuz|inuz|fn)?", number).groups()
    exp, man = int(exp), int(man)
    bias = int(bias) if bias else 2 ** (exp - 1) - 1
    taken = {None: 2 ** man, "fn": 1, "inuz": 1, "fnuz": 0}[rule]         # codes that are no numbers
    found = []
    for code in range(1, 2 ** (exp + man) - taken):
        e, t = divmod(code, 2 ** man)
        found.append(Fraction(2 ** man * (e > 0) + t) * Fraction(2) ** (max(e, 1) - bias - man))
    return found


def binade(x):
    """The exponent of the largest power of two not above x."""
    e = 0
    while Fraction(2) ** e > x:
        e -= 1
    while Fraction(2) ** (e + 1) <= x:
        e += 1
    return e


# --- tables by name (CB-6 to CB-9) ----------------------------------------------------------------

def tables(name):
    """The tables of a name as lists of 2^w values in code order, -0.0 in the code of -0. None: refused."""
    if icb := re.fullmatch(r"icb(\d)(\d)([fi]+)_(.+)", name):
        width, shifts, kinds, number = icb.groups()
        wanted = [(kind, list(range(2 ** int(shifts))), [0]) for kind in kinds]
        count = len(kinds) * 2 ** int(shifts)
    else:
        width, meta, text, number = re.fullmatch(r"cb(\d)(\d)([fips0-9e]+)_(.+)", name).groups()
        count, wanted = 2 ** int(meta), []
        for kind, digits in re.findall(r"([fips])([0-9e]*)", text):
            places, e, steps = digits.partition("e")
            wanted.append((kind, [int(c) for c in places], [int(c) for c in steps or ("01" if e else "0")]))
    halves = [half for clause in wanted for half in _clause(int(width), line(number), *clause)]
    if len(halves) != count or None in halves:
        return None
    return [[Fraction(0), *half, -0.0, *(-value for value in half)] for half in halves]


def _clause(width, values, kind, digits, steps):
    """The positive values of each table of one clause, ascending; None where it leaves the line."""
    count, from_top = 2 ** (width - 1) - 1, values[::-1]
    if kind in "ps":                                                        # CB-8: places from the top
        interval, places = digits[0] if digits else 1, digits[1:] or [0]
        for place in places:
            at, gap, found = place, interval, []
            for _ in range(count):
                found.append(at)
                at, gap = at + gap, gap + (kind == "p")
            yield _at(from_top, found)
        return
    pattern = {"f": lambda: line(f"e2m{width - 3}fnuz"),                    # CB-6
               "i": lambda: [Fraction(n) for n in range(1, count + 1)]}[kind]()
    pattern = [v * Fraction(2) ** (binade(values[-1]) - binade(pattern[-1])) for v in pattern]
    for step in steps:                                                      # CB-7
        lowered = [v / 2 ** step for v in reversed(pattern)]
        for place in digits or [None]:
            if pattern[-1] not in values or not set(lowered) <= set(values):
                yield None
                continue
            moved = 0 if place is None else place - from_top.index(pattern[-1])
            yield _at(from_top, [from_top.index(v) + moved for v in lowered])


def _at(from_top, places):
    """The values in some places, ascending; None where a place is off the line or comes twice."""
    if len(set(places)) < len(places) or not all(0 <= place < len(from_top) for place in places):
        return None
    return [from_top[place] for place in reversed(places)]


# --- the choice (CB-4) ----------------------------------------------------------------------------

def select(x, values, divisor=1):
    """The table of least squared error of one unit. x: numbers or None for a NaN or infinity; values: one
    list of what x was rounded to for each table; divisor None: a NaN."""
    if divisor is None or None in x:
        return 0
    sums = [sum((Fraction(a) - Fraction(v) * Fraction(divisor)) ** 2 for a, v in zip(x, some))
            for some in values]
    return sums.index(min(sums))


# --- sparsity (SPARSE-1, SPARSE-2) ----------------------------------------------------------------

def keep(values, n, m):
    """Whether each of a line of Values stays."""
    kept = []
    for start in range(0, len(values), m):
        run = values[start:start + m]
        order = sorted(range(len(run)), key=lambda i: (_size(run[i]), -i), reverse=True)
        kept += [i in order[:n] for i in range(len(run))]
    return kept


def _size(value):
    """The order of magnitudes: numbers, infinity, NaNs by payload."""
    return [value.kind == NAN, value.kind == INFINITE, value.payload, value.magnitude]


def mask_bytes(kept):
    """SPARSE-2: eight to a byte, the first in the lowest bit."""
    stream = sum(bit << place for place, bit in enumerate(kept))
    return stream.to_bytes((len(kept) + 7) // 8, "little")
