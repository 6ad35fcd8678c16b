"""Block sets: which tiles a golden-vector set of op quantize holds, its columns and its answers.

A case is one tile. For two-level types the tensor's own scale is an operand in front of the tile (model
`block`), or the case is a tensor of two tiles and that scale is a result (model `tensor`). Spec: VEC-4,
VEC-12, VEC-13. Sets have columns for scales and element codes: data types with more parts have none.
"""

from collections.abc import Iterator

import numpy as np

from refq.blocks.codebooks import codebook
from refq.blocks.quantize import quantize
from refq.blocks.recipes import recipe_of
from refq.blocks.rows import data_type
from refq.blocks.rules import RULES
from refq.blocks.scales import exponents
from refq.errors import InputError
from refq.formats import codec
from refq.formats.names import number_format
from refq.formats.policies import rounding_rule
from refq.vectors.coverage import Magnitude, floor_index, midpoint, nan_words, neighbours, points
from refq.vectors.vec import SHORT, Field, code_dtype, format_of, short_name

WHOLE = 32          # tile length of generated sets for types whose tile is a whole channel or tensor
ONE = (1, 0)
# Data types whose sets lie under vectors/: what OCP MX, NVIDIA and ONNX name. Those of any other type are
# generated from their names.
COMMITTED = ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4", "mxint8", "nvfp4", "int4")
# Recipes of stacks whose sets lie there too: one of each way to choose scales, and what hardware is judged by.
STACKS = {"mxfp8_e4m3": ("te_mxfp8",), "mxfp4": ("torchao_rceil", "torchao_even", "triton_up", "microxcaling"),
          "nvfp4": ("te_nvfp4", "torchao_nvfp4", "modelopt_nvfp4", "compressed_tensors_nvfp4")}
# tensor scales: 1, about 1/3, small, tiny
OUTER = ((1, 0), (0x555555, -24), (0x5b0a1d, -43), (0x7ffff1, -91))


# ------------------------------------------------------------------------------------------------------------
# the operation

def check(name) -> None:
    """Refuse a set name of op quantize whose parts do not go together. Raises InputError."""
    dtype, source = data_type(name.dst), format_of(name.src)
    rule = rounding_rule(name.round)
    if dtype.name != name.dst:
        raise InputError(f"{name}: sets spell this data type {dtype.name!r}")
    if dtype.scale is None:
        raise InputError(f"{name}: {name.dst} has no scale; use op encode")
    if short_name(source) not in SHORT.values() or rule.stochastic:
        raise InputError(f"{name}: quantize takes {', '.join(SHORT.values())} and a deterministic rounding")
    if name.model == "tensor" and dtype.outer is None:
        raise InputError(f"{name}: the model tensor is for two-level types; use the model block")
    if name.model == "tensor" and not isinstance(dtype.tile, int):
        raise InputError(f"{name}: the model tensor is for tiles of a number of values, not {dtype.tile!r}")
    _check_parts(dtype)


def _check_parts(dtype) -> None:
    """Refuse data types that scales and element codes do not say all about. Raises InputError."""
    parts = {"tiles of two dimensions": isinstance(dtype.tile, tuple), "subtiles": dtype.subtiles,
             "a zero point": dtype.zero, "codebooks": codebook(dtype.element) is not None,
             "sparsity": dtype.sparsity}
    if found := [part for part, has in parts.items() if has]:
        raise InputError(f"{dtype.name} has {found[0]}, for which vector sets have no columns")
    if dtype.rule == "absmean" or (RULES[dtype.rule].kind == "float" and dtype.scale_row.is_listed):
        raise InputError(f"{dtype.name}: vector sets do not know where its scale {dtype.scale} by rule "
                         f"{dtype.rule} changes")
    if dtype.tile == 1:
        raise InputError(f"{dtype.name}: vector sets are for tiles of 2 values or more")


def fields(name, operands) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
    """(input columns, output columns) of a set; the tile length is that of the operands."""
    dtype = data_type(name.dst)
    length = operands[-1].shape[1]
    scale, element = short_name(dtype.scale_row), short_name(dtype.element_row)
    tile, codes = Field(name.src, length), Field(element, length)
    if name.model == "tensor":
        return (tile,), (Field("f32"), Field(scale, length // dtype.tile), codes)
    return ((Field("f32"), tile) if dtype.outer else (tile,)), (Field(scale), codes)


def answer(name, operands) -> tuple[np.ndarray, ...]:
    """Scales and element codes of every case, as columns."""
    dtype, source = data_type(name.dst), format_of(name.src)
    wide = np.float64 if name.src == "f64" else np.float32
    values = codec.decode(operands[-1], source, wide)
    cast = dict(rounding=name.round, recipe=name.policy)
    if name.model == "tensor":
        return _stack([quantize(row, dtype, **cast) for row in values], outer=True)
    if dtype.outer is None and dtype.tile != "tensor":
        return _stack([quantize(values, dtype, **cast)], outer=False)
    if dtype.outer is None:
        return _stack([quantize(row, dtype, **cast) for row in values], outer=False)
    scales = np.empty(len(values), code_dtype(dtype.scale_row.width))
    codes = np.empty(values.shape, code_dtype(dtype.element_row.width))
    for own in np.unique(operands[0]):
        rows = operands[0] == own
        part = quantize(values[rows], dtype, tensor_scale=own.view(np.float32), **cast)
        scales[rows], codes[rows] = part.scales.reshape(-1), part.codes
    return scales, codes


def _stack(parts, outer: bool) -> tuple[np.ndarray, ...]:
    """Columns from quantised arrays: (tensor scales,) scales, codes; each case one row."""
    codes = np.concatenate([np.atleast_2d(part.codes) for part in parts])
    scales = np.concatenate([np.atleast_1d(part.scales).reshape(len(codes) // len(parts), -1)
                             for part in parts])
    scales = scales[:, 0] if scales.shape[1] == 1 else scales
    own = (np.array([part.tensor_scale for part in parts], np.float32).view(np.uint32),) if outer else ()
    return (*own, scales, codes)


def clause(name) -> str:
    """The clauses behind a block set: the scale rule's, then the elements'; a stack's own."""
    dtype = data_type(name.dst)
    how = recipe_of(dtype, name.policy)
    if how.takes:
        return how.clause
    exponent = RULES[dtype.rule].kind == "exponent"
    return ("BLOCK-10" if dtype.outer else "BLOCK-3" if exponent else "BLOCK-9") + ",BLOCK-4"


def committed() -> Iterator[str]:
    """Names of the block sets under vectors/."""
    for dtype in map(data_type, COMMITTED):
        yield f"quantize/f32-{dtype.name}/rne-{dtype.recipe}/block"
        if dtype.outer:
            yield f"quantize/f32-{dtype.name}/rne-{dtype.recipe}/tensor"
        for stack in STACKS.get(dtype.name, ()):
            yield f"quantize/f32-{dtype.name}/rne-{stack}/{'tensor' if dtype.outer else 'block'}"


def of_weights(array, dtype, axis: int, recipe: str | None, limit: int | None):
    """(op, target name, policy, operand columns) of real data; see sets.from_weights."""
    dtype, array = data_type(dtype), np.asarray(array)
    if not array.size:
        raise InputError("an array without elements gives no cases")
    words = np.ascontiguousarray(array).view(f"u{array.itemsize}").reshape(array.shape)
    if dtype.scale is None:
        target = short_name(dtype.element_row)
        return "encode", target, "sat", (_thin(np.unique(words)[:, None], limit)[:, 0],)
    _check_parts(dtype)
    tiles = _thin(np.unique(_cut(words, dtype.tile, axis), axis=0), limit)
    policy = recipe or dtype.recipe
    if dtype.outer is None:
        return "quantize", dtype.name, policy, (tiles,)
    own = quantize(array, dtype, axis=axis, recipe=recipe).tensor_scale
    return "quantize", dtype.name, policy, (np.full(len(tiles), np.float32(own).view(np.uint32)), tiles)


def _cut(words: np.ndarray, tile, axis: int) -> np.ndarray:
    """The tiles of an array along an axis, one per row; a ragged last tile is filled with zero words."""
    if tile == "tensor":
        return words.reshape(1, -1)
    lines = np.moveaxis(np.atleast_1d(words), axis, -1)
    length = lines.shape[-1] if tile == "channel" else tile
    lines = lines.reshape(-1, lines.shape[-1])
    padded = np.zeros((len(lines), -(-lines.shape[1] // length) * length), words.dtype)
    padded[:, :lines.shape[1]] = lines
    return padded.reshape(-1, length)


def _thin(rows: np.ndarray, limit: int | None) -> np.ndarray:
    """At most `limit` rows, evenly spread over the sorted ones."""
    if limit is None or len(rows) <= limit:
        return rows
    return rows[np.arange(limit) * len(rows) // limit]


# ------------------------------------------------------------------------------------------------------------
# the coverage models `block` and `tensor`

def _block(name) -> tuple[np.ndarray, ...]:
    return _columns(name, sorted(_cases(name)))


def notes(name, operands) -> dict[int, str]:
    """Notes by case index: what a tile is for, where that is worth saying."""
    if name.model not in MODELS:
        return {}
    return {index: note for index, (_, note) in enumerate(sorted(_cases(name).items())) if note}


def _columns(name, cases: list[tuple[int, ...]]) -> tuple[np.ndarray, ...]:
    source, two_level = format_of(name.src), data_type(name.dst).outer and name.model == "block"
    table = [(case[:1], case[1:]) if two_level else ((), case) for case in cases]
    tiles = np.array([tile for _, tile in table], code_dtype(source.width))
    return (np.array([own[0] for own, _ in table], np.uint32), tiles) if two_level else (tiles,)


def _cases(name) -> dict[tuple[int, ...], str]:
    """Operand words of every case -> note, by the rules of VEC-13."""
    dtype, source = data_type(name.dst), format_of(name.src)
    length = dtype.tile if isinstance(dtype.tile, int) else WHOLE
    if name.model == "tensor":
        return dict(_pairs(source, dtype, length))
    cases = {}
    for outer in OUTER if dtype.outer else (ONE,):
        prefix = (_word("binary32", outer),) if dtype.outer else ()
        tiles = [tile for rule in _rules(name) for tile in _scale_decisions(source, dtype, length, outer, rule)]
        tiles += _element_decisions(source, dtype, length, outer)
        if outer == ONE:
            tiles += _adversarial(source, length)
        for tile, note in tiles:
            cases.setdefault((*prefix, *tile), note)
    return cases


def _rules(name):
    """The scale rules whose thresholds a set visits: the recipe's, the data type's own, or those a stack may mean."""
    dtype = data_type(name.dst)
    how = recipe_of(dtype, name.policy)
    if how.scales == "exact" or RULES[dtype.rule].kind == "float":
        return [RULES[how.rule or dtype.rule]]
    return [RULES[rule] for rule in ("floor", "rceil")]


def _adversarial(source, length: int) -> Iterator[tuple[tuple[int, ...], str]]:
    """All zero, one non-zero, NaN and infinity at every place, subnormal, huge, all negative, all equal."""
    layout, sign = source.layout, 1 << (source.width - 1)
    one, most, places = source.code_of_one, layout.max_index, (0, length // 2, length - 1)
    usual = _noise(source, length, one, seed=1)

    def put(tile, place, word):
        return (*tile[:place], word, *tile[place + 1:])

    yield (0,) * length, "all +0"
    yield (sign,) * length, "all -0"
    yield tuple(sign * (i % 2) for i in range(length)), "+0 and -0"
    for word, what in ((one, "1"), (1, "the smallest subnormal"), (most, "the largest finite"),
                       (one | sign, "-1")):
        for place in places:
            yield put((0,) * length, place, word), f"one non-zero: {what} at {place}"
    quiet, signalling, negative = nan_words(source)
    for word, what in ((quiet, "quiet NaN"), (signalling, "signalling NaN"), (negative, "negative NaN"),
                       (layout.inf, "+Inf"), (layout.inf | sign, "-Inf")):
        for place in places:
            yield put(usual, place, word), f"{what} at {place}"
        yield put((0,) * length, length // 2, word), f"{what} among zeros"
    yield put(put(usual, 0, layout.inf), length - 1, quiet), "+Inf first, NaN last"
    yield (quiet,) * length, "all NaN"
    yield tuple(word | sign for word in usual), "all negative"
    for word, what in ((one, "1"), (one | sign, "-1"), (1, "the smallest subnormal"),
                       (most, "the largest finite")):
        yield (word,) * length, f"all {what}"
    yield tuple(most | sign * (i % 2) for i in range(length)), "largest finite, both signs"
    yield _noise(source, length, (1 << layout.man) - 1, seed=2), "all subnormal"
    ladder = tuple((i * most // (length - 1)) | sign * (i % 2) for i in range(length))
    yield ladder, "from zero to the largest finite"


def _scale_decisions(source, dtype, length: int, outer: Magnitude,
                     rule) -> Iterator[tuple[tuple[int, ...], str]]:
    """The largest magnitude at and next to every sampled point where the scale changes."""
    if rule.kind == "exponent":
        sampled = _exponents(source, dtype)
        thresholds = [(1, k) for k in sampled] + [(1, k + 1) for k in sampled]
        if past := rule.past(dtype.elements):
            thresholds += [_times(_dyadic(past[0]), (1, k)) for k in sampled]
    else:
        layout, top = dtype.scale_row.layout, _dyadic(dtype.elements.max)
        thresholds = [_times(midpoint(layout, index), top, outer) for index in _scale_indices(dtype)]
    for number, point in enumerate(thresholds):
        for amax in neighbours(source, point):
            if 0 < amax <= source.layout.max_index:
                place = number % length
                noise = _noise(source, length, amax, seed=number)
                yield (*noise[:place], amax, *noise[place + 1:]), ""


def _element_decisions(source, dtype, length: int, outer: Magnitude) -> Iterator[tuple[tuple[int, ...], str]]:
    """For sampled scales, elements at and next to the values, midpoints and end of the element format."""
    element, sign = dtype.element_row, 1 << (source.width - 1)
    for number, scale in enumerate(_scales(source, dtype)):
        step = _times(scale, outer)
        amax = min(floor_index(source, _times(_dyadic(dtype.elements.max), step))[0], source.layout.max_index)
        limit = amax
        if dtype.rule == "floor":       # the largest element may lie above the element format's largest value
            limit = min(floor_index(source, _times((1, dtype.elements.emax + 1), step))[0] - 1,
                        source.layout.max_index)
        items = sorted({place for point in points(element)
                        for place in neighbours(source, _times(point, step))
                        if place <= limit})
        if scale != ONE or outer != ONE:
            items = items[number % 3::max(1, len(items) // (length - 1))][: length - 1]
        for start in range(0, len(items), length - 1):
            part = items[start:start + length - 1]
            tile = [word | sign * (i % 2) for i, word in enumerate(part + [0] * (length - 1 - len(part)))]
            tile.insert((number + start) % length, amax | sign * (number % 2))
            yield tuple(tile), ""


def _pairs(source, dtype, length: int) -> Iterator[tuple[tuple[int, ...], str]]:
    """Tensors of two tiles: equal, far apart, zero, not finite, at the ends of the source."""
    one, layout = source.code_of_one, source.layout
    zero, inf = (0,) * length, (layout.inf,) + (one,) * (length - 1)
    binade = 1 << layout.man
    yield zero + zero, "all zero: the tensor scale is 1"
    yield inf + inf, "no finite tile"
    for number in range(12):
        amax = one + number * binade // 3
        tile = _noise(source, length, amax, seed=number)
        yield _noise(source, length, one, seed=99) + tile, ""
        yield tile + zero, ""
        yield tile + inf, "only finite tiles set the tensor scale"
        low = _noise(source, length, max(1, amax - (number + 8) * binade), seed=number)
        yield tile + low, "second tile far below the first"
    for amax in (1, 2, binade - 1, binade, binade + 1, 24 * binade, layout.max_index - 1, layout.max_index):
        tile = _noise(source, length, amax, seed=amax)
        yield (amax, *tile[1:]) + zero, "tensor scale at an end of its range"


def _scales(source, dtype) -> Iterator[Magnitude]:
    if RULES[dtype.rule].kind == "exponent":
        emax, (lowest, highest, _) = dtype.elements.emax, exponents(dtype.scale)
        yield from ((1, min(max(k - emax, lowest), highest)) for k in _exponents(source, dtype))
    else:
        layout = dtype.scale_row.layout
        yield from (layout.magnitude(index) for index in _scale_indices(dtype))


def _exponents(source, dtype) -> list[int]:
    """Exponents of the largest magnitude to sample: both ends of source and scale, and around 1."""
    emax, (lowest, highest, _) = dtype.elements.emax, exponents(dtype.scale)
    low, high = source.layout.qmin, source.emax
    wanted = {low, low + 1, source.emin - 1, source.emin, *range(emax + lowest - 1, emax + lowest + 3),
              -14, emax - 1,
              emax, emax + 1, emax + 7, *range(emax + highest - 1, emax + highest + 2), high - 1, high}
    return sorted(k for k in wanted if low <= k <= high)


def _scale_indices(dtype) -> list[int]:
    """Indices of scale codes to sample: zero, the subnormal and normal ends, around 1, and the largest."""
    layout, one = dtype.scale_row.layout, dtype.scale_row.code_of_one
    edge = 1 << layout.man
    wanted = {0, 1, 2, 3, edge - 1, edge, edge + 1, one - 1, one, one + 1, one + edge // 2 + 1,
              one + 3 * edge + 5,
              layout.max_index - 1, layout.max_index}
    return sorted(index for index in wanted if 0 <= index <= layout.max_index)


def _dyadic(value) -> Magnitude:
    """A Fraction over a power of two."""
    return value.numerator, 1 - value.denominator.bit_length()


def _times(*factors: Magnitude) -> Magnitude:
    significand, exponent = 1, 0
    for s, e in factors:
        significand, exponent = significand * s, exponent + e
    return significand, exponent


def _word(format: str, value: Magnitude) -> int:
    index, exact = floor_index(number_format(format), value)
    assert exact, value
    return index


def _noise(source, length: int, amax: int, seed: int) -> tuple[int, ...]:
    """Words of mixed sign within six binades below index `amax`, from a fixed linear congruence."""
    state, span, words = 2 * seed + 12345, min(6 << source.layout.man, amax + 1), []
    for _ in range(length):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        words.append(amax - (state >> 33) % span | (state >> 32 & 1) << (source.width - 1))
    return tuple(words)


MODELS = {"block": _block, "tensor": _block}
