"""The grid of a weight array in one data type: which scales a block of columns may have, and what a column of
values is cast to once they are chosen.

Arrays here lie column by column: (columns, rows), a column of W being one line of memory. Tiles that share a
scale across rows, subtiles, zero points and codebooks are all spread to one line a unit of columns, so that
casting a column is arithmetic on lines. Spec: ED-2, ED-4, ED-5.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from refq.blocks.elements import Casting, zero_code
from refq.blocks.quantize import Quantized, quantize
from refq.blocks.recipes import Recipe
from refq.blocks.rows import Block
from refq.blocks.rules import RULES
from refq.blocks.scales import OVERFLOW, Scales, exponents, to_odd
from refq.blocks.tiles import Tiles, sides
from refq.diffusion.gram import turned
from refq.errors import InputError
from refq.formats import codec
from refq.formats.policies import ROUNDINGS, rounding_rule

# What float64 rounds to whole numbers by itself; the other roundings look at the part cut off
WHOLE = {"rne": np.rint, "rtz": np.trunc, "rup": np.ceil, "rdn": np.floor}
DIRECTED = ("rup", "rdn", "rto")        # of the tiniest value they may make an element: it must not get lost

TINIEST = np.finfo(np.float64).smallest_subnormal

# Candidates of the scale search beside the rule's own scale (ED-5): codes, or sixteenths of a float scale
EXPONENT_STEPS = (1, -1)
SIXTEENTHS = (18, 15, 14, 13, 12, 11)


@dataclass(frozen=True)
class Choice:
    """The scales of a block of columns: its tiles from the top row down.

    codes, zeros: (tiles,) or None. offsets: (tiles, parts) of each level. tables: (tiles, units) or None.
    steps: (units along the block, rows) what one code step means: scale x tensor scale x subtile.
    divisor: likewise, what values are divided by. dead: (rows,) or None: where all elements are zero.
    zero: (rows,) the zero point as a number, or None. taken: (units along, rows) tables, or None.
    """

    codes: np.ndarray | None
    steps: np.ndarray
    divisor: np.ndarray
    offsets: tuple = ()
    zeros: np.ndarray | None = None
    tables: np.ndarray | None = None
    dead: np.ndarray | None = None
    zero: np.ndarray | None = None
    taken: np.ndarray | None = None


class Grid:
    """A weight array (rows, columns) and its data type.

    rounding: of the elements, a deterministic one; None: the recipe's. direct: what quantize makes of it.
    width: columns of a block. edges: where blocks begin, and the last end. movable: whether blocks
    have scales that can be chosen while columns are coded.
    """

    def __init__(self, w, block: Block, how: Recipe, axis: int, tensor_scale=None, rounding=None):
        self.rounding = how.rounding_of(rounding)
        if rounding_rule(self.rounding).stochastic:
            known = ", ".join(name for name, rule in ROUNDINGS.items() if not rule.stochastic)
            raise InputError(f"rounding {self.rounding!r} is not defined where errors are diffused; only "
                             f"deterministic roundings are allowed: {known}")
        self.block, self.how, self.axis = block, how, axis
        self.direct = quantize(w, block, axis, rounding, how, tensor_scale=tensor_scale)
        lines = w if axis == 1 else w.T
        single = codec.source_row(lines.dtype).precision <= 24
        self.source = lines.astype(np.float32 if single else np.float64)
        self.rows, self.columns = lines.shape
        mask = self.direct.mask
        self.mask = None if mask is None else self.lines(mask)
        if mask is not None:
            self.source[~self.mask.T] = 0
        along = sides(block.tile)[1] if block.scale else None
        self.movable = isinstance(along, int)
        self.width = min(along, self.columns) if self.movable else self.columns
        self.edges = [*range(0, self.columns, self.width), self.columns]

    def lines(self, array, dtype=None):
        """An array of the shape of w column by column: (columns, rows), C-contiguous."""
        return turned(array, dtype) if self.axis == 1 else np.ascontiguousarray(array, dtype=dtype)

    @cached_property
    def plain(self) -> bool:
        """Whether scales and quotients are exact: scales may be chosen, and lines are cast directly."""
        how = self.how
        ways = how.source, how.scales, how.bottom, how.quotient, how.finish, how.tensor
        return ways == ("exact", "exact", "scale", "exact", "kept", "multiplier")

    @property
    def code_dtype(self):
        return codec.code_dtype(self.block.element_row)

    # --- scales -------------------------------------------------------------------------------------------

    def frame(self, columns: int) -> Tiles:
        """How so many columns fall into tiles."""
        return _frame(self.block, self.rows, columns)

    def of_values(self, values) -> Choice:
        """The choice that the data type's rule makes for a block of values, (rows, columns of the block)."""
        if self.block.scale is None:
            ones = np.ones((1, self.rows))
            return Choice(None, ones, ones)
        frame, values = self.frame(values.shape[1]), np.ascontiguousarray(values)
        if not self.plain:
            values = self.how.source_of(values.astype(self.source.dtype, copy=False))
        flat = frame.cut(values)
        with np.errstate(all="ignore"):
            scales = self.how.scales_of(flat, frame, self.block, self.direct.tensor_scale)
        return self._choice(frame, flat, scales)

    def neighbours(self, choice: Choice, values) -> list[Choice]:
        """The candidates of the scale search around a choice made for values, itself first. Spec: ED-5."""
        frame = self.frame(values.shape[1])
        flat = frame.cut(np.ascontiguousarray(values))
        return [choice] + [self._choice(frame, flat, self._scales(frame, flat, codes, choice.offsets))
                           for codes in self._codes_beside(choice.codes)]

    def _codes_beside(self, codes):
        row = self.block.scale_row
        if RULES[self.block.rule].kind == "exponent":
            lowest, highest, code_of = exponents(row.name)
            exponent = np.frexp(self._scale_values(codes))[1] - 1
            return [code_of[np.clip(exponent + step, lowest, highest) - lowest].astype(codes.dtype)
                    for step in EXPONENT_STEPS]
        values, found = self._scale_values(codes), []
        for count in SIXTEENTHS:
            moved = codec.encode(values * (count / 16), row, "rne", OVERFLOW)     # rounded once
            moved = np.where((moved == 0) & (codes != 0), codes, moved).astype(codes.dtype)
            if not any((moved == other).all() for other in (codes, *found)):
                found.append(moved)
        return found

    def _scales(self, frame, flat, codes, offsets) -> Scales:
        """Scales of given codes: with the offsets given, and zero points that go with them."""
        tensor_scale = self.direct.tensor_scale
        values = self._scale_values(codes) * (1.0 if tensor_scale is None else float(tensor_scale))
        zeros = None
        if self.block.zero:
            row, reach = self.block.zero_row, np.maximum(-flat.min(axis=1), 0).astype(np.float64)
            point = reach if row.is_float else to_odd(reach) / np.where(values > 0, values, 1.0)
            zeros = codec.encode(point, row, "rne", OVERFLOW)
        divisor = np.where(values > 0, values, 1.0)[:, None] * self._factors(frame, offsets)
        return Scales(codes, divisor, values == 0, self.direct.tensor_scale, offsets, zeros)

    def _factors(self, frame, offsets):
        """2^offset or 2^-offset of every unit of every tile: (tiles, units), or 1."""
        units, found = frame.values // (frame.unit[0] * frame.unit[1]), 1.0
        for part in offsets:
            wide = np.repeat(part.astype(np.int64), units // part.shape[1], axis=1)
            found = np.ldexp(found, wide if self.block.rule == "hif4" else -wide)
        return found

    def _choice(self, frame, flat, scales: Scales) -> Choice:
        block, tensor_scale = self.block, self.direct.tensor_scale
        values = self._scale_values(scales.codes)
        if tensor_scale is not None:
            outer = float(tensor_scale)
            values = values / outer if self.how.tensor == "divisor" else values * outer
        steps = values[:, None] * self._factors(frame, scales.offsets)
        spread = self._spreader(frame)
        tables = None
        if len(block.tables) > 1:
            unit, valid = frame.unit[0] * frame.unit[1], frame.valid()
            casting = Casting(flat.reshape(-1, unit), scales, block, self.how, self.rounding)
            tables = casting.best_codes(None if valid is None else valid.reshape(-1, unit))[1]
            tables = tables.reshape(len(flat), -1)
        dead = scales.dead | (values == 0)
        zeros, shape = scales.zeros, (len(flat), frame.values // (frame.unit[0] * frame.unit[1]))
        number = None if zeros is None else codec.decode(zeros, block.zero_row, np.float64)
        per_tile = frame.size
        return Choice(
            scales.codes, spread(np.broadcast_to(steps, shape), frame.unit),
            spread(np.broadcast_to(scales.divisor, shape), frame.unit),
            scales.offsets, zeros, tables,
            spread(dead[:, None], per_tile)[0] if dead.any() else None,
            None if number is None else spread(number[:, None], per_tile)[0],
            None if tables is None else spread(tables, frame.unit))

    def _spreader(self, frame):
        """(tiles, parts) of parts of a size -> (parts along the block, rows)."""
        def spread(parts, size):
            if not frame.axes:
                return np.repeat(parts.reshape(1, 1), self.rows, axis=1)
            lines = frame.join_parts(np.ascontiguousarray(parts), size).T
            return np.ascontiguousarray(np.repeat(lines, size[0], axis=1)[:, : self.rows])
        return spread

    # --- columns ------------------------------------------------------------------------------------------

    def caster(self, choices, first: int):
        """A function (column of the block, values, codes, room) that casts a line of values.

        choices: the candidates; a line is (candidates, rows). first: the block's first column. Writes codes,
        and what they mean into room; may change the values. Lines are C-contiguous float64.
        """
        steps = np.stack([c.steps for c in choices], axis=1)
        divisor = np.stack([c.divisor for c in choices], axis=1)
        dead = [np.zeros(self.rows, bool) if c.dead is None else c.dead for c in choices]
        dead = np.stack(dead) if any(c.dead is not None for c in choices) else None
        zero = None if choices[0].zero is None else np.stack([c.zero for c in choices])
        if not self.plain:
            cast = self._by_recipe(choices, zero)
        elif zero is not None:
            cast = self._asymmetric(zero)
        else:
            cast = self._symmetric(choices)
        lines = self.block.scale and self.block.tile != "tensor"
        unit = self.frame(self.width).unit[1] if lines else self.columns
        exponent = RULES[self.block.rule].kind == "exponent"
        inverse = 1 / divisor if exponent and self.plain else None
        shifted = zero is not None and self.block.zero_row.is_float
        directed = self.rounding in DIRECTED

        def run(column, values, codes, room):
            u = column // unit
            if self.mask is not None:
                np.copyto(values, 0.0, where=~self.mask[first + column])
            if self.plain:                                      # else the recipe divides in a way of its own
                if shifted:
                    np.add(values, zero, out=values)
                some = values != 0 if directed else None
                if exponent:
                    np.multiply(values, inverse[u], out=values)
                else:
                    np.divide(values, divisor[u], out=values)
                if directed:
                    np.copyto(values, np.copysign(TINIEST, values), where=some & (values == 0))
            cast(u, values, divisor[u], codes, room)
            room *= steps[u]
            if shifted:
                room -= zero
            if dead is not None:
                codes[dead], room[dead] = zero_code(self.block.element_row), 0.0
        return run

    @cached_property
    def _rounds(self):
        """For every table the functions from quotients to codes and from codes to elements."""
        return [(codec.encoder(codec.source_row(np.float64), row, self.rounding, self.how.overflow),
                 codec.decoder(row, np.dtype(np.float64))) for row in self.block.tables]

    @cached_property
    def _decode_scale(self):
        return codec.decoder(self.block.scale_row, np.dtype(np.float64))

    def _scale_values(self, codes):
        """What scale codes mean, without the tensor scale."""
        values = np.empty(codes.shape)
        self._decode_scale(codes, values)
        return values

    def _symmetric(self, choices):
        """Quotients to codes and their values, by the table that each row takes."""
        rounds, members = self._rounds, {}

        def one(u, quotients, divisor, codes, room):
            encode, decode = rounds[0]
            encode(quotients.reshape(-1).view(np.uint64), codes.reshape(-1))
            decode(codes.reshape(-1), room.reshape(-1))

        def chosen(u, quotients, divisor, codes, room):
            if u not in members:
                taken = np.concatenate([c.taken[u] for c in choices])
                members[u] = [np.flatnonzero(taken == table) for table in range(len(rounds))]
            y, codes, room = (part.reshape(-1) for part in (quotients, codes, room))
            for (encode, decode), places in zip(rounds, members[u]):
                if places.size:
                    some, meant = np.empty(places.size, codes.dtype), np.empty(places.size)
                    encode(y[places].view(np.uint64), some)
                    decode(some, meant)
                    codes[places], room[places] = some, meant
        return one if len(rounds) == 1 else chosen

    def _asymmetric(self, zero):
        """Spec: BLOCK-14, with quotients in float64; those of a float zero point have it added already."""
        top, shifted = self.block.element_row.layout.max_index, self.block.zero_row.is_float

        def cast(u, quotients, divisor, codes, room):
            y = to_whole(quotients, self.rounding)
            if not shifted:
                y += zero
            np.clip(y, 0, top, out=y)
            codes[...] = y
            np.subtract(y, 0 if shifted else zero, out=room)
        return cast

    def _by_recipe(self, choices, zero):
        """Casts as a recipe prescribes that divides or finishes in a way of its own."""
        if len(self.block.tables) > 1:
            raise InputError(f"recipe {self.how.name!r} cannot diffuse {self.block.name}: it has codebooks")
        (choice,) = choices             # nobody searches beside a stack's own scales
        decode = codec.decoder(self.block.element_row, np.dtype(np.float64))
        tiles = None
        if choice.zeros is not None:
            frame = self.frame(self.width)
            tiles = self._spreader(frame)(choice.zeros[:, None], frame.size)[0]

        def cast(u, values, divisor, codes, room):
            lines = np.ascontiguousarray(values.T, dtype=self.source.dtype)
            lines = self.how.source_of(lines)
            none = np.zeros(self.rows, bool)
            scales = Scales(none, np.ascontiguousarray(divisor.T), none, self.direct.tensor_scale, (), tiles)
            with np.errstate(all="ignore"):
                codes[...] = Casting(lines, scales, self.block, self.how, self.rounding).codes().T
            decode(codes.reshape(-1), room.reshape(-1))
            if zero is not None and not self.block.zero_row.is_float:
                room -= zero
        return cast

    # --- the result ---------------------------------------------------------------------------------------

    def quantized(self, codes, choices: list[Choice]) -> Quantized:
        """The array that quantize would make of these codes, (columns, rows), and of each block's choice."""
        made = replace(self.direct, codes=turned(codes) if self.axis == 1 else codes)
        if self.block.scale is None:
            return made
        frames = [self.frame(stop - start) for start, stop in zip(self.edges, self.edges[1:])]

        def joined(name, size_of, place=None):
            parts = [getattr(c, name) if place is None else getattr(c, name)[place] for c in choices]
            lines = [f.join_parts(np.ascontiguousarray(part.reshape(part.shape[0], -1)), size_of(f))
                     for f, part in zip(frames, parts)]
            found = np.concatenate(lines, axis=1) if frames[0].axes else lines[0]
            return found if self.axis == 1 else turned(found)
        levels = [sides(size) for size, bits in self.block.subtiles if bits]
        return replace(
            made, scales=joined("codes", lambda f: f.size),
            offsets=tuple(joined("offsets", lambda f, size=size: size, place)
                          for place, size in enumerate(levels)),
            zeros=None if made.zeros is None else joined("zeros", lambda f: f.size),
            tables=None if made.tables is None else joined("tables", lambda f: f.unit))

    def tile_rows(self, lines):
        """(anything, rows) summed over the rows that share a scale: (anything, tiles)."""
        size = self._cross
        return lines if size == 1 else np.add.reduceat(lines, np.arange(0, self.rows, size), axis=-1)

    def of_rows(self, tiles):
        """(tiles,) -> (rows,)"""
        return np.repeat(tiles, self._cross)[: self.rows]

    @property
    def tile_lines(self) -> int:
        """Lines of tiles from the top row down: rows, or fewer where rows share a scale."""
        return -(-self.rows // self._cross)

    @property
    def _cross(self) -> int:
        across = sides(self.block.tile)[0]
        return self.rows if across == "channel" else min(across, self.rows)

    def merged(self, candidates: list[Choice], best) -> Choice:
        """One choice that takes candidate best[tile] for every tile."""
        def pick(parts, index):
            found = parts[0].copy()
            for place, part in enumerate(parts[1:], 1):
                found[..., index == place] = part[..., index == place]
            return found

        def of_tiles(name):
            parts = [getattr(c, name) for c in candidates]
            return None if parts[0] is None else pick([part.T for part in parts], best).T
        return replace(candidates[0], **{name: of_tiles(name) for name in ("codes", "zeros", "tables")})


def to_whole(y, rounding: str):
    """float64 rounded to whole numbers, in place. Spec: ROUND-2 to ROUND-4."""
    if rounding in WHOLE:
        return WHOLE[rounding](y, out=y)
    cut = np.trunc(y)
    rest = np.abs(y - cut)                              # exact
    away = {"rna": rest >= 0.5, "rnz": rest > 0.5, "rto": (rest > 0) & (cut % 2 == 0)}[rounding]
    return np.add(cut, np.copysign(away, y), out=y)


@lru_cache(maxsize=64)
def _frame(block: Block, rows: int, columns: int) -> Tiles:
    axis = (0, 1) if isinstance(block.tile, tuple) else 1
    return Tiles.of((rows, columns), block.tile, axis, [size for size, _ in block.subtiles])
