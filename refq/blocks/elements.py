"""The third stage of the quantiser: values and their scales -> element codes.

It works on rows: one row of values for every unit (the smallest subtile, or the tile), cut into cache-sized
pieces. quantize.py says why float64 quotients decide every rounding.
"""

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from refq.blocks import codebooks
from refq.blocks.recipes import Recipe
from refq.blocks.rows import Block
from refq.blocks.rules import RULES
from refq.blocks.scales import Scales, sticky, sum_to_odd, to_odd
from refq.blocks.stacks import FINISHES, QUOTIENTS
from refq.errors import InputError
from refq.formats import codec
from refq.formats.definition import CHUNK
from refq.formats.policies import rounding_rule
from refq.formats.rows import Int, Row

FAR_BELOW = 2.0 ** -500     # far below every boundary between elements; what underflows beyond is left alone
SHORT = 16          # rows of fewer values than this have their scale written out, value by value


@dataclass(frozen=True)
class Casting:
    """Everything stage 3 needs: rows (units, values) in float32 or float64, the scales, the rules.

    draws: random bits, one a value, or None; random_width: their number.
    """

    rows: np.ndarray
    scales: Scales
    block: Block
    recipe: Recipe
    rounding: str
    draws: np.ndarray | None = None
    random_width: int | None = None

    def codes(self):
        """(units, values) element codes. Spec: BLOCK-4 to BLOCK-6, BLOCK-14."""
        row = self.block.element_row
        found = np.empty(self.rows.shape, codec.code_dtype(row))
        cast = self._asymmetric() if self.block.zero else self._symmetric(row)
        for rows, columns in pieces(self.rows):
            cast(rows, columns, found[rows, columns])
        found[self._dead] = zero_code(row)
        return found

    def best_codes(self, valid=None):
        """(element codes, the table that each unit takes). valid: False where values are padding. Spec: CB-4."""
        tables = self.block.tables
        quotients, working = self._quotients(min(tables, key=lambda row: row.min_positive))
        runs = [self._encoding(row, working) for row in tables]
        decoders = [codec.decoder(row, np.dtype(np.float32), self.rows.size) for row in tables]
        found = np.empty(self.rows.shape, codec.code_dtype(tables[0]))
        chosen = np.empty(len(self.rows), np.uint8)
        # Quotients by powers of two are exact, or so small that every table has a zero for them.
        powers = RULES[self.block.rule].kind == "exponent" and self.rounding in ("rne", "rna", "rnz", "rtz")
        for rows in slabs(self.rows):
            y = quotients(rows, slice(None))
            codes = np.empty((len(tables), *y.shape), found.dtype)
            values = np.empty(codes.shape, np.float32)
            for run, decode, some, back in zip(runs, decoders, codes, values):
                run(y, rows, slice(None), some)
                decode(some.reshape(-1), back.reshape(-1))
            part, divisor = (y, None) if powers else (self.rows[rows], self._divisor[rows])
            chosen[rows] = codebooks.select(part, values, divisor, None if valid is None else valid[rows])
            place = chosen[rows] * np.intp(len(part)) + np.arange(len(part))
            found[rows] = codes.reshape(-1, part.shape[1]).take(place, axis=0)
        dead = self._dead
        found[dead], chosen[dead] = zero_code(tables[0]), 0
        return found, chosen

    @property
    def _dead(self):
        return np.repeat(self.scales.dead, self._units)

    @cached_property
    def _divisor(self):
        """One divisor a unit."""
        divisor = self.scales.divisor
        return (np.repeat(divisor, self._units) if divisor.shape[1] == 1 else divisor).reshape(-1)

    @property
    def _units(self) -> int:
        """Units of a tile; 1 where there are no tiles."""
        return max(len(self.rows), 1) // max(len(self.scales.dead), 1)

    def _symmetric(self, row: Row):
        """A function (rows, columns, room) that writes the codes of a piece."""
        quotients, working = self._quotients(row)
        run = self._encoding(row, working)
        return lambda rows, columns, room: run(quotients(rows, columns), rows, columns, room)

    def _quotients(self, row: Row):
        """(a function (rows, columns) -> what is rounded, valid until the next call; its dtype)"""
        rule = rounding_rule(self.rounding)
        way, factor, working = self._division(row, self._divisor, rule.stochastic)
        scratch, tiniest = np.empty(min(self.rows.size, _room(self.rows)), working), _tiniest(working)
        directed = row.is_listed or rule.name in ("rup", "rdn", "rto")
        guarded = directed and self.recipe.quotient == "exact"

        def quotients(rows, columns):
            part = self.rows[rows, columns]
            y = way(part, beside(factor[rows], part), scratch[: part.size].reshape(part.shape))
            if guarded:                                 # what underflows is still not zero
                lost = (y == 0) & (part != 0)
                if lost.any():
                    y[lost] = np.copysign(tiniest, part[lost])
            return y
        return quotients, working

    def _encoding(self, row: Row, working):
        """A function (quotients, rows, columns, room) that writes their codes."""
        run = codec.encoder(codec.source_row(working), row, self.rounding, self.recipe.overflow, self.rows.size,
                            self.random_width)
        finish = FINISHES[self.recipe.finish]

        def encode(y, rows, columns, room):
            bits = None if self.draws is None else self.draws[rows, columns].reshape(-1)
            flat = room.reshape(-1)
            run(y.reshape(-1).view(f"u{working.itemsize}"), flat, bits)
            if finish:
                finish(flat, y.reshape(-1), row)
        return encode

    def _division(self, row: Row, divisor, stochastic: bool):
        """(quotient function, factors, dtype of the quotients)"""
        if self.recipe.quotient != "exact":
            way = partial(QUOTIENTS[self.recipe.quotient], row)
            return way, divisor.astype(np.float32), np.dtype(np.float32)
        if RULES[self.block.rule].kind == "exponent":
            single = row.min_positive >= 2.0 ** -100 and bool(np.all(divisor >= 2.0 ** -126))
            single &= self.recipe.finish == "kept"                          # float32 would make zeros
            working = self.rows.dtype if single else np.dtype(np.float64)   # float32 would drown ties
            return _by_power, (1 / divisor).astype(working), working
        way = _by_long_division if stochastic else _by_odd_division if self.block.needs_odd else _by_division
        return way, divisor, np.dtype(np.float64)

    def _asymmetric(self):
        """As _symmetric, with a zero point. Spec: BLOCK-14."""
        row, zero_row, divisor = self.block.element_row, self.block.zero_row, self._divisor
        if rounding_rule(self.rounding).stochastic:
            raise InputError(f"rounding {self.rounding!r} is not defined for {self.block.name}, "
                             "which has a zero point")
        zeros = codec.decode(self.scales.zeros, zero_row, np.float64)
        shifted, top = zero_row.is_float, row.layout.max_index
        reach = max(int(max(zero_row.max, -zero_row.lowest)), top).bit_length() + 1
        target = row if shifted else Int("quotients", reach)
        stack = None
        if self.recipe.quotient != "exact":
            stack, divisor, working = self._division(row, divisor, False)
        else:
            working = np.dtype(np.float64)
        run = codec.encoder(codec.source_row(working), target, self.rounding, "sat", self.rows.size)

        def cast(rows, columns, room):
            part, zero = self.rows[rows, columns], zeros[rows, None]
            if stack:
                y = stack(part, divisor[rows, None], np.empty(part.shape, working))
            else:
                wide = part.astype(np.float64)
                wide = to_odd(sum_to_odd(wide, np.broadcast_to(zero, part.shape)) if shifted else wide)
                y = np.ascontiguousarray(wide / divisor[rows, None])
                np.copyto(y, np.copysign(_tiniest(y.dtype), wide), where=(y == 0) & (wide != 0))   # as above
            codes = np.empty(part.size, codec.code_dtype(target))
            run(y.reshape(-1).view(f"u{working.itemsize}"), codes)
            if not shifted:
                signed = (codes.astype(np.int64) << (64 - target.width)) >> (64 - target.width)
                codes = np.clip(signed.reshape(part.shape) + zero.astype(np.int64), 0, top)
            room[...] = codes.reshape(part.shape)
        return cast


def zero_code(row: Row) -> int:
    """The code of +0, or of the smallest value where there is no zero."""
    return row.zero if row.is_listed else row.layout.code(False, row.layout.first)


def slabs(rows):
    """Slices of whole rows, about CHUNK values each."""
    step = max(1, CHUNK // max(rows.shape[1], 1))
    return (slice(start, start + step) for start in range(0, rows.shape[0], step))


def pieces(rows):
    """(rows, columns) of about CHUNK values each: several whole rows, or parts of one long row."""
    for some in slabs(rows):
        for start in range(0, rows.shape[1], CHUNK):
            yield some, slice(start, min(start + CHUNK, rows.shape[1]))


def _room(rows) -> int:
    return max(CHUNK, rows.shape[1])


def _tiniest(dtype):
    return np.finfo(dtype).smallest_subnormal


def beside(factor, part):
    """One factor a row in a shape that goes with the values of a piece."""
    if part.shape[1] >= SHORT:
        return factor[:, None]
    return np.repeat(factor, part.shape[1]).reshape(part.shape)     # short rows make slow inner loops


# ------------------------------------------------------------------------------------------------------------
# quotients

def _by_power(part, inverse, room):
    return np.multiply(part, inverse, out=room, dtype=room.dtype)


def _by_division(part, divisor, room):
    return np.divide(to_odd(part) if part.dtype == np.float64 else part, divisor, out=room)


def _by_odd_division(part, divisor, room):
    """Quotients rounded to odd at 53 bits, for divisors of at most 24: what float64 lost shows in the remainder,
    x - high * d - low * d, whose every step is exact."""
    quotient = np.divide(part, divisor, out=room, dtype=np.float64)
    words = quotient.view(np.int64)
    high = (words & ~np.int64((1 << 24) - 1)).view(np.float64)
    rest = (part - high * divisor) - (quotient - high) * divisor
    outward = (rest > 0) == (quotient > 0)
    lost = (rest != 0) & (words & 1 == 0) & np.isfinite(rest) & (np.abs(quotient) > FAR_BELOW)
    np.add(words, np.where(outward, 1, -1), out=words, where=lost)
    return quotient


def _by_long_division(part, divisor, room):
    return long_division(part.astype(np.float64), divisor, room)


def long_division(values, divisor, room):
    """Quotients rounded to odd at 52 or 53 significant bits: enough for 32 random bits below any element."""
    fraction, exponent = np.frexp(values)
    scale, power = np.frexp(divisor)
    dividend = np.ldexp(np.abs(fraction), 63).astype(np.uint64)         # 53 bits at the top of 63
    scale = np.ldexp(scale, 32).astype(np.uint64)                       # at most 32 bits (blocks/rows.py)
    high, rest = np.divmod(dividend, scale)
    low, rest = np.divmod(rest << np.uint64(31), scale)
    quotient = high << np.uint64(31) | low | (rest != 0)                # 62 or 63 bits, the last one sticky
    quotient = sticky(quotient, 10).astype(np.float64)
    return np.copysign(np.ldexp(quotient, exponent - power - 62), values, out=room)
