"""The float32 arithmetic of the stacks whose bits recipes reproduce, one operation at a time.

Three kinds of small functions, which rows of recipes.py name: how scales come about, how values are
divided, and what the element codes of zeros and NaN are. Unless a comment says otherwise, every operation is
on float32 arrays and rounds to nearest even, as in the stack; nothing is fused (Spec: REC-2). "amax" is
REC-4's: a NaN wins, then an infinity.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from refq.blocks.gguf import SCALE_RULES, SCALE_TABLES, nearest_codes
from refq.blocks.rows import Block
from refq.blocks.scales import (Choices, Scales, amax, exponents, nan_code, power_scales, scales_of,
                                shared_exponent)
from refq.blocks.tiles import Tiles
from refq.errors import InputError
from refq.formats import codec
from refq.formats.rows import Row

F32 = np.float32
LARGEST = np.finfo(F32).max
SIXTH = F32(1) / F32(6)
NVFP4_TOP = F32(2688)               # 448 * 6, the largest value of NVFP4 under a tensor scale of 1


# ------------------------------------------------------------------------------------------------------------
# sources: what a recipe takes a value for, before anything else (Spec: REC-2, REC-19)

def _to_float32(values):
    return values if values.dtype == F32 else values.astype(F32)


def _without_subnormals(values):
    values = _to_float32(values)
    return np.where(np.abs(values) < F32(2.0 ** -126), np.copysign(F32(0), values), values)


SOURCES: dict[str, Callable | None] = {"exact": None, "float32": _to_float32, "normal": _without_subnormals}


# ------------------------------------------------------------------------------------------------------------
# exponent scales

def log2(x):
    """The binary logarithm of float32 numbers, rounded to float32 (Spec: REC-3).

    float64's error is far smaller than the distance of any float32 logarithm from a tie that decides a floor
    or a ceiling: tests/test_recipes.py looks at them all.
    """
    return np.log2(x.astype(np.float64)).astype(F32)


@cache
def _least_words():
    """Of every exponent from -127: the word of the least float32 whose logarithm rounds to the next one."""
    powers = np.arange(1, 256, dtype=np.int64)[:, None] << 23
    words = (powers - np.arange(64, 0, -1)).astype(np.uint32)
    reached = np.floor(log2(words.view(F32))) == np.arange(-126, 129)[:, None]
    least = powers[:, 0] - reached.sum(axis=1)
    return np.append(least, 0x7FFFFFFF).astype(np.uint32)


def _floor_log2(x):
    """floor(log2(x)) of float32 from zero up, int32, without a logarithm each; of subnormals -127."""
    words = x.view(np.uint32)
    field = words >> np.uint32(23)
    return field.astype(np.int32) - np.int32(127) + (words >= _least_words().take(field))


def _held(exponent):
    """Whole float32 numbers as exponents; infinities and NaN end up out of the way."""
    return np.clip(np.nan_to_num(exponent, nan=0), -1000, 1000).astype(np.int64)


def _largest(block: Block):
    return F32(float(block.elements.max))


def _by_logarithm_up(flat, tiles: Tiles, block: Block, choices: Choices, _):
    """torchao RCEIL, ModelOpt MX: ceil(log2(amax / max)). Spec: REC-10, REC-12."""
    d = amax(flat, flat.shape[1]) / _largest(block)
    return power_scales(_held(np.ceil(log2(d))), d, block, choices)


def _by_reciprocal_up(flat, tiles: Tiles, block: Block, choices: Choices, _):
    """TransformerEngine MXFP8: amax * (1 / max) up to the next power of two. Spec: REC-7."""
    d = amax(flat, flat.shape[1], no_nan=choices.nan == "ignored") * (F32(1) / _largest(block))
    return power_scales(shared_exponent(d, 0, (1, False)), d, block, choices)


def _by_logarithm_down(flat, tiles: Tiles, block: Block, choices: Choices, _):
    """microxcaling: floor(log2(amax)) - emax; beyond the scale format as an infinity. Spec: REC-17."""
    largest = amax(flat, flat.shape[1])
    found = _held(np.floor(log2(largest))) - block.elements.emax
    beyond = (found > exponents(block.scale_row.name)[1]) & np.isfinite(largest)
    return power_scales(found, np.where(beyond, np.inf, largest), block, choices)


def _by_carry(flat, tiles: Tiles, block: Block, choices: Choices, _):
    """compressed-tensors MX: half a unit of e2m1 (of e2m3 in e2m3) onto the bits of amax; a carry out of the
    largest binade makes an infinity. Spec: REC-14."""
    words, inf = amax(flat, flat.shape[1]).view(np.uint32), np.uint32(0x7F800000)
    half = np.uint32(1 << (23 - (4 if block.element == "e2m3" else 2)))
    carried = words + half & inf
    found = (carried >> np.uint32(23)).astype(np.int64) - 127 - block.elements.emax
    return power_scales(found, np.where(words < inf, carried, words).view(F32), block, choices)


def _tensorcast(bump: bool):
    """TensorCast, torch mode: exponents value by value, those of zeros -23; nothing is clamped. Spec: REC-18.

    bump: mode "midmax".
    """
    def scales(flat, tiles: Tiles, block: Block, choices: Choices, _):
        valid, element = tiles.valid(), block.elements
        largest = amax(flat, flat.shape[1], no_nan=True, no_inf=True)
        zero = ((flat == 0) if valid is None else (flat == 0) & valid).any(axis=1)
        infinite, nan = np.isinf(flat).any(axis=1), np.isnan(flat).any(axis=1)
        none = np.int64(-1000)
        found = np.where(largest > 0, shared_exponent(largest, 0, None), none)
        found = np.maximum(found, np.where(zero, -23, none))
        found = np.maximum(found, np.where(infinite | nan, -1, none)) - element.emax
        if bump and block.element_row.is_float:
            past = largest > np.ldexp(float(element.threshold), found)
            found += (past | infinite | (found <= -128)) & ~nan
        lowest, _, code_of = exponents(block.scale_row.name)
        if (found < lowest).any():
            worst = int(found.min())
            raise InputError(f"TensorCast does not clamp: a tile with the exponent {worst} would have the "
                             f"code {worst - lowest}, which {block.scale} has not")
        return Scales(code_of[found - lowest].astype(codec.code_dtype(block.scale_row)),
                      np.ldexp(1.0, found)[:, None], np.zeros(len(flat), bool))
    return scales


def _wrapped(flat, tiles: Tiles, block: Block, choices: Choices, _):
    """TensorCast's Triton kernels: exponents by bits, and a byte of what comes out. Spec: REC-19."""
    largest, row = amax(flat, flat.shape[1], no_nan=True), block.scale_row
    plain = np.isfinite(largest) & (largest > 0)
    past = choices.rule.past(block.elements)
    found = np.where(plain, shared_exponent(largest, 0, past), np.where(largest > 0, 128, -127))
    found -= block.elements.emax
    codes = ((found + 127) & 0xFF).astype(codec.code_dtype(row))
    return Scales(codes, np.ldexp(1.0, found)[:, None], codes == nan_code(row))


def _triton(up: bool):
    """Triton: a quotient in float32, and the exponent field of its bits, rounded up or not. Spec: REC-21."""
    def scales(flat, tiles: Tiles, block: Block, choices: Choices, _):
        divisor = _largest(block) if up else F32(2.0 ** block.elements.emax)
        words = (amax(flat, flat.shape[1]) / divisor).view(np.uint32)
        if up:
            words = words + np.uint32(0x7FFFFF)             # a NaN carries out of the field
        codes = (words >> np.uint32(23) & np.uint32(0xFF)).astype(codec.code_dtype(block.scale_row))
        factor = np.where(codes == 0, 0.0, np.ldexp(1.0, 127 - codes.astype(np.int64)))
        return Scales(codes, factor[:, None], codes == nan_code(block.scale_row))
    return scales


# ------------------------------------------------------------------------------------------------------------
# float scales

def _nvfp4(tensor_of, scale_of, factor_of, vanished=0):
    """Two levels in float32.

    tensor_of: amax of the array -> tensor scale.
    scale_of: (amax of a tile, tensor scale) -> its scale before it is rounded.
    factor_of: (scale, tensor scale) -> what values are multiplied or divided by.
    vanished: the code of what rounds to zero.
    """
    def scales(flat, tiles: Tiles, block: Block, choices: Choices, tensor_scale):
        row = block.scale_row
        largest = amax(flat, flat.shape[1])
        if block.outer and tensor_scale is None:
            overall = amax(largest, largest.size)[0] if largest.size else F32(0)
            tensor_scale = F32(tensor_of(overall))
            tensor_scale = F32(np.nan) if np.isnan(tensor_scale) else tensor_scale
        codes = codec.encode(scale_of(largest, tensor_scale), row, "rne", "sat")
        codes[codes == 0] = vanished
        factor = factor_of(codec.decode(codes, row, F32), tensor_scale)
        return Scales(codes, factor.astype(np.float64)[:, None], codes == nan_code(row), tensor_scale)
    return scales


def _te_tensor(overall):
    """Spec: REC-8."""
    g = np.minimum(NVFP4_TOP / overall, LARGEST)
    return F32(1) if overall == 0 or g == 0 else g


def _te_scale(largest, g):
    return np.clip(largest * (g * SIXTH), F32(0), F32(448))


def _te_factor(s, g):
    return np.minimum(F32(1) / (s * (F32(1) / g)), LARGEST)


def _multiplier(overall):
    """Spec: REC-11, REC-13."""
    return overall / NVFP4_TOP


def _torchao_scale(largest, g):
    s = largest / F32(6)
    return np.clip(s if g is None else s / g, F32(2.0 ** -6), F32(448))


def _torchao_factor(s, g):
    return (F32(1) if g is None else F32(1) / g) / s


def _modelopt_scale(largest, g):
    w = largest / (F32(6) * g)
    return np.clip(np.where(w == 0, F32(1), w), F32(2.0 ** -9), F32(448))


def _compressed_tensor(overall):
    """Spec: REC-15. np.maximum keeps a NaN."""
    g = F32(1) / np.maximum(overall, F32(2.0 ** -126)) * NVFP4_TOP
    return g if np.isfinite(g) else F32(1)


def _compressed_scale(largest, g):
    return np.clip(g * (largest / F32(6)), F32(0), F32(448))


def _tensor_scale_of_one(block: Block, tensor_scale):
    """The tensor scale of a stack that has none (Spec: REC-6)."""
    if tensor_scale is not None and tensor_scale != 1:
        raise InputError(f"tensor_scale {tensor_scale!r}: this recipe knows no tensor scale but 1")
    return F32(1) if block.outer else None


def _rounded_up(flat, tiles: Tiles, block: Block, choices: Choices, tensor_scale):
    """cuDNN: amax / 6 rounded up; a float64 quotient of a float32 tells which side it is on. Spec: REC-16."""
    row, largest = block.scale_row, amax(flat, flat.shape[1])
    tensor_scale = _tensor_scale_of_one(block, tensor_scale)
    sound = np.isfinite(largest)
    quotient = np.where(sound, largest.astype(np.float64) / float(block.elements.max), 0)
    codes = codec.encode(quotient, row, "rup", "sat")
    codes[~sound] = nan_code(row)
    divisor = np.where(sound & (largest > 0), codec.decode(codes, row, np.float64), 1.0)
    return Scales(codes, divisor[:, None], ~sound, tensor_scale)


def _ggml(flat, tiles: Tiles, block: Block, choices: Choices, tensor_scale):
    """GGML: scales of GGUF-16 and GGUF-17, in halves for the doubled levels. Spec: REC-22."""
    largest, row = amax(flat, flat.shape[1], no_nan=True), block.scale_row
    codes = SCALE_RULES[row.name](largest)
    if row.name == "e8m0":
        codes[np.isinf(largest)] = 0
    halves = SCALE_TABLES[row.name][codes].astype(np.float64)
    tensor_scale = _tensor_scale_of_one(block, tensor_scale)
    return Scales(codes, halves[:, None], np.zeros(len(flat), bool), tensor_scale)


SCALES: dict[str, Callable] = {
    "exact": scales_of,
    "logarithm-up": _by_logarithm_up,
    "reciprocal-up": _by_reciprocal_up,
    "logarithm-down": _by_logarithm_down,
    "carry": _by_carry,
    "tensorcast": _tensorcast(bump=False),
    "tensorcast-midmax": _tensorcast(bump=True),
    "wrapped": _wrapped,
    "triton-up": _triton(up=True),
    "triton-down": _triton(up=False),
    "te-nvfp4": _nvfp4(_te_tensor, _te_scale, _te_factor),
    "torchao-nvfp4": _nvfp4(_multiplier, _torchao_scale, _torchao_factor),
    "modelopt-nvfp4": _nvfp4(_multiplier, _modelopt_scale, np.multiply),
    "compressed-nvfp4": _nvfp4(_compressed_tensor, _compressed_scale, np.divide, vanished=0x20),
    "up": _rounded_up,
    "ggml": _ggml,
}

BY_RULE = frozenset({"exact", "wrapped"})       # these look at the recipe's scale rule, those at its odd tiles
BY_CHOICE = frozenset({"exact", "logarithm-up", "reciprocal-up", "logarithm-down", "carry"})


# ------------------------------------------------------------------------------------------------------------
# how values are divided: (element row, values, factors, room) -> float32 quotients, which are then rounded
# into the element format as usual. "exact" is elements.py's own.

def _multiplied(row: Row, part, factor, room):
    return np.multiply(part, factor, out=room)


def _divided(row: Row, part, factor, room):
    return np.divide(part, factor, out=room)


def _triton_product(row: Row, part, factor, room):
    """In e2m1 the three float32 above 1/4 count as 1/4: the kernel shifts their bits out. Spec: REC-21."""
    y = np.multiply(part, factor, out=room)
    if row.name == "e2m1":
        words = y.view(np.uint32)
        near = (words & np.uint32(0x7FFFFFFF)) - np.uint32(0x3E800001) < np.uint32(3)
        words[near] &= np.uint32(0xFFFFFFFC)
    return y


def _half_up(row: Row, part, factor, room):
    """microxcaling: |q| / unit + 1/2 in float32, without its fraction. Spec: REC-17."""
    q = np.divide(part, factor, out=room)
    size, unit = np.abs(q), np.int32(row.layout.qmin)
    if row.is_float:
        unit = np.clip(_floor_log2(size) - np.int32(row.layout.man), unit, np.int32(100))
    power = (unit + np.int32(127) << np.int32(23)).view(F32)        # exact, both times
    size /= power
    size += F32(0.5)
    np.floor(size, out=size)
    size *= power
    np.negative(size, out=size, where=q < 0)
    np.copyto(q, size)
    return q


def _nearest_level(row: Row, part, half, room):
    """GGML: the level of the least error; of a NaN or an infinity level 0. Spec: REC-22."""
    values = codec.decode(nearest_codes(part, half), row, F32)
    room[...] = np.where(np.isfinite(part), values, F32(0))
    return room


QUOTIENTS: dict[str, Callable | None] = {
    "exact": None, "multiply": _multiplied, "divide": _divided, "triton": _triton_product,
    "half-up": _half_up, "nearest-level": _nearest_level,
}


# ------------------------------------------------------------------------------------------------------------
# what becomes of the codes of zeros and NaN: (codes, quotients, element row), in place

def _below(codes, y, row: Row):
    codes[y == 0] = 0


def _below_in_e2m1(codes, y, row: Row):
    if row.name == "e2m1":
        _below(codes, y, row)


def _below_or_nan(codes, y, row: Row):
    codes[(y == 0) | np.isnan(y)] = 0


def _minus_zeros(codes, y, row: Row):
    codes[(y == 0) | np.isnan(y)] = 1 << (row.width - 1)


def _nan_to_b(codes, y, row: Row):
    codes[np.isnan(y)] = 0xB


FINISHES: dict[str, Callable | None] = {
    "kept": None, "below": _below, "below-in-e2m1": _below_in_e2m1, "below-or-nan": _below_or_nan,
    "minus-zeros": _minus_zeros, "nan-to-b": _nan_to_b,
}


# What the keys of these tables mean, for people.
WORDS: dict[str, dict[str, str]] = {
    "source": {
        "exact": "every value as it is",
        "float32": "every value rounded to float32 first",
        "normal": "every value rounded to float32 first, and its subnormals zeros",
    },
    "scales": {
        "exact": "the scale rule in exact arithmetic",
        "logarithm-up": "ceil(log2(amax / max)), the logarithm rounded to float32",
        "reciprocal-up": "amax * (1 / max) in float32, up to a power of two",
        "logarithm-down": "floor(log2(amax)) - emax, the logarithm rounded to float32",
        "carry": "amax rounded to the bits of e2m1 (in e2m3: of e2m3) in float32, then its exponent - emax",
        "tensorcast": "the largest exponent of the values, -23 of a zero and -1 of an infinity, unclamped",
        "tensorcast-midmax": "as tensorcast, and one more past max + ulp/2 and for infinities",
        "wrapped": "the scale rule with the exponent -127 for zeros, modulo 256",
        "triton-up": "amax / max in float32, its bits + 7FFFFF, of which the exponent field",
        "triton-down": "amax / 2^emax in float32, of which the exponent field",
        "te-nvfp4": "in float32 g = 2688 / amax, s = amax * (g * (1/6)) up to 448",
        "torchao-nvfp4": "in float32 g = amax / 2688, s = (amax / 6) / g held in [2^-6, 448]",
        "modelopt-nvfp4": "in float32 g = amax / 2688, s = amax / (6 * g), 1 for 0, held in [2^-9, 448]",
        "compressed-nvfp4": "in float32 g = (1 / amax) * 2688, s = g * (amax / 6) up to 448, 1/8 for 0",
        "up": "amax / max exactly, rounded up into the scale format",
        "ggml": "GGML's float32 ways to e8m0 and ue4m3",
    },
    "quotient": {
        "exact": "value / scale, rounded once into the element",
        "multiply": "value * factor in float32",
        "divide": "value / scale in float32",
        "triton": "value * factor in float32; in e2m1 the three float32 above 1/4 count as 1/4",
        "half-up": "value / scale in float32, rounded by adding half a unit in float32",
        "nearest-level": "the level of least float32 error, the lower code on a tie",
    },
    "finish": {
        "kept": "zeros keep their sign",
        "below": "zeros are +0; what is below zero keeps its sign",
        "below-in-e2m1": "in e2m1 zeros are +0; what is below zero keeps its sign",
        "below-or-nan": "zeros and NaN quotients are +0; what is below zero keeps its sign",
        "minus-zeros": "zeros of either sign and NaN quotients are -0",
        "nan-to-b": "zeros keep their sign; a NaN quotient has the code b",
    },
    "tensor": {
        "multiplier": "values are multiplied by the stored tensor scale",
        "divisor": "values are divided by the stored tensor scale",
    },
}
