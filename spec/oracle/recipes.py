"""Recipes: every remaining choice of one stack, for tiles of binary32 values.

Written from spec/recipes.md. A recipe is a row of words and small functions. float32 operations are done one
by one on Values: exactly, then rounded once by f32(), subnormals kept. A stack's scale function gives the
code of a tile's scale and the factor of its elements; one loop does the rest. Block and formats arrive as in
blocks.quantise.
"""

from decimal import Decimal, localcontext
from fractions import Fraction
from math import ceil, floor, inf
from typing import NamedTuple

from spec.oracle import blocks, gguf, rules
from spec.oracle.blocks import SAT, tiles
from spec.oracle.scalar import INFINITE, NAN, NUMBER, Value, decode, encode, exact, facts

BINARY32 = facts({"kind": "float", "exp": 8, "man": 23, "bias": 127, "special": "ieee", "signed": True,
                  "tie": "even", "pad": 0})
IEEE = dict(SAT, above=("inf", "nan", "max"), infinite=("inf", "nan", "max"), negative=("nan", "max"))
SATSYM = dict(SAT, lowest="symmetric")                        # OVER-7
NOT_A_NUMBER = Value(NAN, payload=Fraction(1, 2))
LARGEST = Fraction(2) ** 128 - Fraction(2) ** 104              # the largest binary32 number


class Refused(ValueError):
    """The recipe is not for this data type, or the stack has no code for this tile (REC-1, REC-18)."""


class Quantised(NamedTuple):
    """Element codes, scale codes of the tiles, tensor scale code, zero-point codes; None where absent."""

    codes: list
    scales: list
    outer: int
    zeros: list = None


class Context(NamedTuple):
    """What a scale function looks at: facts of element and scale, the rule, the tensor scale as a Value."""

    element: object
    scale: object
    rule: str
    g: Value


# --- float32 (REC-2, REC-3) -------------------------------------------------------------------------

def f32(v):
    """A Value rounded to binary32, to nearest even, infinite beyond the range."""
    return v if v.kind != NUMBER else decode(encode(v, BINARY32, "rne", IEEE), BINARY32)


def number(x):
    return f32(exact(Fraction(x)))


def mul(a, b):
    v = blocks.product(a, b)
    return NOT_A_NUMBER if v.kind == NAN else f32(v)


def div(a, b):
    if NAN in (a.kind, b.kind) or a.kind == b.kind == INFINITE or (is_zero(a) and is_zero(b)):
        return NOT_A_NUMBER
    negative = a.negative != b.negative
    if a.kind == INFINITE or is_zero(b):
        return Value(INFINITE, negative)
    if b.kind == INFINITE:
        return Value(NUMBER, negative, Fraction(0))
    return f32(Value(NUMBER, negative, a.magnitude / b.magnitude))


def is_zero(v):
    return v.kind == NUMBER and v.magnitude == 0


def held(v, low, high):
    """A Value that is not negative, or NaN, held between two Fractions; a NaN stays."""
    if v.kind == NAN:
        return v
    size = high if v.kind == INFINITE else min(max(v.magnitude, low), high)
    return exact(Fraction(size))


def power(exponent):
    return exact(Fraction(2) ** exponent)


def log2(x):
    """REC-3: the logarithm of a positive Fraction, rounded once to binary32."""
    whole = blocks.floor_log2(x)
    rest = x / Fraction(2) ** whole
    with localcontext() as context:
        context.prec = 60                                      # it is whole, or irrational and far from ties
        log = whole + (Decimal(rest.numerator) / Decimal(rest.denominator)).ln() / Decimal(2).ln()
    v = number(Fraction(log))
    return -v.magnitude if v.negative else v.magnitude


ONE = number(1)


# --- largest magnitudes (REC-4) ---------------------------------------------------------------------

def amax(values, skip_nan=False):
    """The largest magnitude: a NaN wins or, with skip_nan, is passed over; then an infinity; 0 of nothing."""
    if not skip_nan and any(v.kind == NAN for v in values):
        return NOT_A_NUMBER
    if any(v.kind == INFINITE for v in values):
        return Value(INFINITE)
    return exact(max((v.magnitude for v in values if v.kind == NUMBER), default=Fraction(0)))


# --- scales that are powers of two: (code, factor) --------------------------------------------------

def clamped(exponent):
    """An exponent held in -127 ... 127, as a code of e8m0 and the power it stands for."""
    e = min(max(exponent, -127), 127)
    return e + 127, power(e)


def exact_exponent(tile, a, c):
    """BLOCK-3, BLOCK-5 to BLOCK-7 under any rule: tosa, cudnn_mx."""
    if a.kind != NUMBER:
        return 0xFF, NOT_A_NUMBER
    return clamped(rules.shared_exponent(c.rule, a.magnitude, c.element) if a.magnitude else -127)


def te_mxfp8(tile, a, c):
    """REC-7."""
    d = mul(a, number(1 / rules.largest(c.element)))
    if d.kind == NAN:
        return 0xFF, NOT_A_NUMBER
    if d.kind == INFINITE:
        return 0xFE, power(127)
    e = -blocks.floor_log2(1 / d.magnitude) if d.magnitude else -127       # ceil(log2(d))
    return (e + 127, power(e)) if e > -127 else (0, ONE)


def torchao_bits(tile, a, c):
    """REC-9."""
    if a.kind == NAN:
        return 0xFF, NOT_A_NUMBER
    e = 128 if a.kind == INFINITE else -127                    # the exponent field, less 127
    if a.kind == NUMBER and a.magnitude:
        e = max(blocks.floor_log2(a.magnitude), -127) + rules.bump(c.rule, a.magnitude, c.element)
    code = min(max(e - rules.emax(c.element), -127), 127) + 127
    return code, power(max(code - 127, -126))


def torchao_rceil(tile, a, c):
    """REC-10."""
    d = div(a, number(rules.largest(c.element)))
    if d.kind == NAN:
        return 0xFF, NOT_A_NUMBER
    if d.kind == INFINITE:
        return 0xFE, power(127)
    code, factor = clamped(ceil(log2(d.magnitude)) if d.magnitude else -127)
    return code, factor if code else ONE


def modelopt_mxfp4(tile, a, c):
    """REC-12."""
    d = div(a, number(rules.largest(c.element)))
    if d.kind != NUMBER:
        return 0, NOT_A_NUMBER
    return clamped(ceil(max(log2(d.magnitude), -127)) if d.magnitude else -127)


def modelopt_mxfp8(tile, a, c):
    """REC-12."""
    d = div(a, number(rules.largest(c.element)))
    if d.kind == INFINITE:
        return 0xFE, power(127)
    return clamped(ceil(log2(d.magnitude)) if d.kind == NUMBER and d.magnitude else -127)


def compressed_tensors_mx(tile, a, c):
    """REC-14."""
    rule = "even" if rules.precision(c.element) == 4 and rules.emax(c.element) == 2 else "even_e2m1"
    if a.kind != NUMBER:
        return 0xFF, NOT_A_NUMBER
    if a.magnitude < Fraction(2) ** -127:
        return 0, power(-127)
    e = blocks.floor_log2(a.magnitude) + rules.bump(rule, a.magnitude, c.element)
    return (0xFF, NOT_A_NUMBER) if e == 128 else clamped(e - rules.emax(c.element))


def microxcaling(tile, a, c):
    """REC-17."""
    if a.kind != NUMBER:
        return 0xFF, NOT_A_NUMBER
    e = (floor(log2(a.magnitude)) if a.magnitude else -126) - rules.emax(c.element)
    return (0xFF, NOT_A_NUMBER) if e > 127 else clamped(e)


def tensorcast(tile, a, c):
    """REC-18."""
    def exponent(v):
        if v.kind != NUMBER:
            return -1
        return blocks.floor_log2(v.magnitude) if v.magnitude else -23
    e = max(exponent(v) for v in tile) - rules.emax(c.element)
    if c.rule == "midmax" and not c.element.integer:
        nan, infinite = (any(v.kind == kind for v in tile) for kind in (NAN, INFINITE))
        past = a.kind == NUMBER and a.magnitude / Fraction(2) ** e > rules.midmax(c.element)
        e += not nan and (past or infinite or e <= -128)
    if e < -127:
        raise Refused(f"the exponent {e} of a tile is below -127, and this stack has no code for it (REC-18)")
    return e + 127, power(e)


def tensorcast_triton(tile, a, c):
    """REC-19: subnormals are zeros by now; an infinity counts as 2**128."""
    e = 128 if a.kind == INFINITE else -127
    if a.kind == NUMBER and a.magnitude:
        e = blocks.floor_log2(a.magnitude) + rules.bump(c.rule, a.magnitude, c.element)
    e -= rules.emax(c.element)
    return (e + 127) % 256, power(e)


def triton(tile, a, c):
    """REC-21."""
    over = rules.largest(c.element) if c.rule == "rceil" else Fraction(2) ** rules.emax(c.element)
    d = div(a, number(over))
    if d.kind == NAN:
        return (0, number(0)) if c.rule == "rceil" else (0xFF, NOT_A_NUMBER)
    if d.kind == INFINITE:
        return 0xFF, NOT_A_NUMBER
    bits = encode(d, BINARY32, "rne", IEEE) + (0x7FFFFF if c.rule == "rceil" else 0)
    code = bits >> 23
    return code, div(ONE, power(code - 127)) if code else number(0)


def ggml_mxfp4(tile, a, c):
    """REC-22, GGUF-16."""
    if a.kind == INFINITE:
        return 0, gguf.e8m0(0)
    code = gguf.mxfp4_scale(float(a.magnitude))
    return code, gguf.e8m0(code)


# --- float scales: (code, factor) -------------------------------------------------------------------

def scale_code(v, c):
    """A scale rounded to nearest even into the scale format, its value; a NaN is the format's NaN."""
    code = encode(v, c.scale, "rne", SAT)
    return code, decode(code, c.scale)


def te_nvfp4(tile, a, c):
    """REC-8."""
    wanted = mul(a, mul(c.g, number(Fraction(1, 6))))
    code, s = scale_code(held(wanted, 0, 448), c)
    return code, held(div(ONE, mul(s, div(ONE, c.g))), 0, LARGEST)


def torchao_nvfp4(tile, a, c):
    """REC-11."""
    wanted = div(a, number(6))
    if c.g is None:
        code, s = scale_code(held(wanted, Fraction(2) ** -6, 448), c)
        return code, div(ONE, s)
    code, s = scale_code(held(div(wanted, c.g), Fraction(2) ** -6, 448), c)
    return code, div(div(ONE, c.g), s)


def modelopt_nvfp4(tile, a, c):
    """REC-13."""
    wanted = div(a, mul(number(6), c.g))
    code, s = scale_code(held(ONE if is_zero(wanted) else wanted, Fraction(2) ** -9, 448), c)
    return code, mul(s, c.g)


def compressed_tensors_nvfp4(tile, a, c):
    """REC-15."""
    code, s = scale_code(held(mul(c.g, div(a, number(6))), 0, 448), c)
    if code == 0:
        code, s = scale_code(number(Fraction(1, 8)), c)
    return code, div(s, c.g)


def cudnn_nvfp4(tile, a, c):
    """REC-16."""
    if a.kind != NUMBER:
        return scale_code(NOT_A_NUMBER, c)
    code = encode(exact(a.magnitude / rules.largest(c.element)), c.scale, "rup", SAT)
    return code, decode(code, c.scale)


def ggml_nvfp4(tile, a, c):
    """REC-22, GGUF-17."""
    code = 0x7E if a.kind == INFINITE else gguf.nvfp4_scale(float(a.magnitude))
    return code, gguf.ue4m3(code)


def onnx(tile, a, c):
    """REC-23, without a zero point."""
    if a.kind != NUMBER:
        return scale_code(NOT_A_NUMBER, c)
    if not a.magnitude:
        return scale_code(ONE, c)
    code = rules.float_scale(a.magnitude / rules.largest(c.element), c.scale)
    return code, decode(code, c.scale)


# --- tensor scales (REC-6) --------------------------------------------------------------------------

def te_tensor(a):
    g = div(number(2688), a)
    g = held(g, 0, LARGEST) if g.kind != NAN else g
    return ONE if is_zero(a) or is_zero(g) else g


def multiplier(a):
    return div(a, number(2688))


def compressed_tensors_tensor(a):
    g = mul(div(ONE, a if a.kind != NUMBER else exact(max(a.magnitude, Fraction(2) ** -126))), number(2688))
    return g if g.kind == NUMBER else ONE


def no_tensor(a):
    return ONE


# --- quotients and elements: a Value -> a code ------------------------------------------------------

def exact_quotient(x, factor):
    if x.kind != NUMBER or factor.kind != NUMBER:
        return div(x, factor)
    return x if is_zero(x) else x._replace(magnitude=x.magnitude / factor.magnitude)


def nearest(rounding="rne", overflow=SAT):
    return lambda q, element: encode(q, element, rounding, overflow)


def signed_by_value(code_of):
    """The sign bit says whether the quotient is below zero: a quotient -0 becomes +0."""
    return lambda q, element: code_of(q._replace(negative=False) if is_zero(q) else q, element)


def nan_as(code_of, code):
    """A NaN quotient has a code of its own."""
    return lambda q, element: code if q.kind == NAN else code_of(q, element)


def compressed_element(q, element):
    """REC-14: only the FP4 path takes the sign from the comparison with zero."""
    return (BELOW if rules.largest(element) == 6 else KEPT)(q, element)


def all_zeros_negative(q, element):
    """REC-12: modelopt_mxfp4: a zero quotient of either sign, and a NaN, is code 8."""
    return 8 if q.kind == NAN or is_zero(q) else encode(q, element, "rnz", SAT)


def half_up_in_float32(q, element):
    """REC-17: the magnitude in units of the last place, plus 1/2 in float32, cut; at most Mhi."""
    unit = element.quantum
    if not element.integer and q.magnitude:
        unit += max(floor(log2(q.magnitude)) - (1 - element.bias), 0)
    t = mul(Value(NUMBER, False, q.magnitude), power(-unit))
    count = floor(f32(exact(t.magnitude + Fraction(1, 2))).magnitude)
    top = rules.largest(element)
    return encode(q._replace(magnitude=min(count * Fraction(2) ** unit, top)), element, "rne", SAT)


def triton_element(q, element):
    """REC-21: the three float32 above 1/4 become 0 in e2m1."""
    quarter = Fraction(1, 4)
    lost = q.kind == NUMBER and 0 < q.magnitude - quarter <= 3 * quarter / 2 ** 23
    lost = lost and rules.largest(element) == 6
    return encode(q._replace(magnitude=Fraction(0)) if lost else q, element, "rne", SAT)


# --- THE table --------------------------------------------------------------------------------------

MX4, MX6, MX8 = ("e2m1",), ("e2m3", "e3m2"), ("e4m3fn", "e5m2")
ONNX = ("int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16",
        "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e2m1")
KEPT, BELOW = nearest(), signed_by_value(nearest())
FLOATS = ("float32", "binary32", "float16", "binary16", "bfloat16")


def row(scale, elements, scales=("e8m0",), rule=None, quotient=exact_quotient, code=KEPT, **more):
    base = {"scale": scale, "elements": elements, "scales": scales, "rule": rule, "quotient": quotient,
            "code": code, "skip_nan": False, "outer": "none", "tensor": None, "subnormals": True}
    assert set(more) <= set(base)
    return base | more


def nvfp4(scale, tensor, outer, quotient, code=BELOW):
    return row(scale, MX4, ("ue4m3",), quotient=quotient, code=code, tensor=tensor, outer=outer)


MX = MX8 + MX6 + MX4
RECIPES = {
    "te_mxfp8": row(te_mxfp8, MX8, skip_nan=True, code=nearest(overflow=dict(SAT, nan_code="ones"))),
    "te_nvfp4": nvfp4(te_nvfp4, te_tensor, "required", mul),
    "torchao_floor": row(torchao_bits, MX, rule="floor"),
    "torchao_ceil": row(torchao_bits, MX, rule="ceil"),
    "torchao_even": row(torchao_bits, MX, rule="even"),
    "torchao_rceil": row(torchao_rceil, MX),
    "torchao_nvfp4": nvfp4(torchao_nvfp4, multiplier, "optional", mul, nan_as(KEPT, 0xB)),
    "modelopt_mxfp4": row(modelopt_mxfp4, MX4, quotient=div, code=all_zeros_negative),
    "modelopt_mxfp8": row(modelopt_mxfp8, ("e4m3fn",)),
    "modelopt_nvfp4": nvfp4(modelopt_nvfp4, multiplier, "required", div, nan_as(BELOW, 7)),
    "compressed_tensors_mx": row(compressed_tensors_mx, ("e4m3fn", "e2m3", "e2m1"), quotient=div,
                                 code=compressed_element),
    "compressed_tensors_nvfp4": nvfp4(compressed_tensors_nvfp4, compressed_tensors_tensor, "required", div,
                                      nan_as(BELOW, 0)),
    "cudnn_mx": row(exact_exponent, MX, rule="rceil"),
    "cudnn_nvfp4": nvfp4(cudnn_nvfp4, no_tensor, "one", exact_quotient, KEPT),
    "microxcaling": row(microxcaling, MX + ("mxint8",), quotient=div,
                        code=signed_by_value(half_up_in_float32)),
    "tensorcast": row(tensorcast, MX + ("mxint8",), rule="floor", code=nearest(overflow=SATSYM)),
    "tensorcast_midmax": row(tensorcast, MX + ("mxint8",), rule="midmax", code=nearest(overflow=SATSYM)),
    **{"tensorcast_triton_" + name: row(tensorcast_triton, MX, rule=rule, skip_nan=True, subnormals=False,
                                        code=BELOW)
       for name, rule in [("floor", "floor"), ("ceil", "ceil"), ("midmax", "midmax_ge"), ("option3", "even"),
                          ("topbinade", "rceil")]},
    "tosa": row(exact_exponent, MX + ("mxint8",), rule="tosa"),
    "triton_up": row(triton, MX8 + MX4, rule="rceil", quotient=mul, code=triton_element),
    "triton_down": row(triton, MX8 + MX4, rule="floor", quotient=mul, code=triton_element),
    "ggml_mxfp4": row(ggml_mxfp4, MX4, skip_nan=True),
    "ggml_nvfp4": row(ggml_nvfp4, MX4, ("ue4m3",), skip_nan=True, outer="one", tensor=no_tensor),
    "onnx_quantizelinear": row(onnx, ONNX, FLOATS, quotient=div),
}


DIVISORS = ("te_nvfp4", "compressed_tensors_nvfp4")            # the others multiply (REC-6)


# --- quantise ---------------------------------------------------------------------------------------

def quantise(values, shape, axis, block, formats, recipe, outer=None):
    """Codes, scale codes and tensor scale code of an array of Values under a recipe of the table (REC-1).

    outer, where given, is the tensor scale's binary32 code, in the stack's own convention.
    """
    recipe = RECIPES[recipe]
    check(block, recipe)
    values = [f32(v) for v in values]
    if not recipe["subnormals"]:
        tiny = [v.kind == NUMBER and v.magnitude < Fraction(2) ** -126 for v in values]
        values = [v._replace(magnitude=Fraction(0)) if t else v for v, t in zip(values, tiny)]
    context = Context(facts(formats[block["element"]]), facts(formats[block["scale"]]), recipe["rule"], None)
    if block["outer"]:
        if outer is None:
            outer = encode(recipe["tensor"](amax(values, recipe["skip_nan"])), BINARY32, "rne", IEEE)
        if recipe["outer"] == "one" and outer != 0x3F800000:
            raise Refused(f"tensor scale {outer:08x}: this stack knows only 1 (REC-6)")
        context = context._replace(g=decode(outer, BINARY32))
    codes, scales, zeros = [0] * len(values), [], [] if block.get("zero") else None
    for indices in tiles(shape, axis, block["tile"]):
        tile = [values[i] for i in indices]
        if zeros is None:
            found, tile_codes = quantise_tile(tile, context, recipe)
        else:
            found, zero, tile_codes = with_zero_point(tile, context, facts(formats[block["zero"]]))
            zeros.append(zero)
        scales.append(found)
        for i, code in zip(indices, tile_codes):
            codes[i] = code
    return Quantised(codes, scales, outer, zeros)


def with_zero_point(tile, c, zero):
    """REC-23: the scale code, zero-point code and element codes of a tile that covers lo ... hi."""
    if not zero.integer:
        raise Refused("a zero point in a floating format is not QuantizeLinear's (REC-23)")
    if any(v.kind != NUMBER for v in tile):
        return scale_code(NOT_A_NUMBER, c)[0], 0, [0] * len(tile)
    numbers = [-v.magnitude if v.negative else v.magnitude for v in tile]
    scale, point = rules.minmax_scale(numbers, c.element, c.scale, zero)
    scale = scale or scale_code(ONE, c)[0]
    z = decode(point, zero)
    z = -z.magnitude if z.negative else z.magnitude
    return scale, point, quantize_linear(tile, decode(scale, c.scale), z, c.element)


def quantise_tile(tile, context, recipe):
    """The scale code and the element codes of one tile."""
    code, factor = recipe["scale"](tile, amax(tile, recipe["skip_nan"]), context)
    if recipe["scale"] in (ggml_mxfp4, ggml_nvfp4):
        return code, [ggml_element(v, factor) for v in tile]
    if decode(code, context.scale).kind == NAN:                # REC-5
        return code, [0] * len(tile)
    return code, [recipe["code"](recipe["quotient"](v, factor), context.element) for v in tile]


def ggml_element(v, d):
    """REC-22, GGUF-15: the nearest level in float32; of a NaN the code 0."""
    if v.kind == NAN:
        return 0
    x = inf if v.kind == INFINITE else float(v.magnitude)
    return gguf.nearest_level(-x if v.negative else x, d)


def check(block, recipe):
    """REC-1: a recipe is for plain tiles of its own element and scale formats."""
    zero = block.get("zero") and recipe["scale"] is not onnx
    plain = not (block.get("subtiles") or zero or block.get("sparsity"))
    outer = recipe["outer"] == "optional" or bool(block["outer"]) == (recipe["outer"] == "required")
    outer = outer or recipe["outer"] == "one"
    known = block["element"] in recipe["elements"] and block["scale"] in recipe["scales"]
    if not (plain and outer and known):
        raise Refused(f"this recipe is not for {block['element']} with {block['scale']} (REC-1)")


def dequantise(q, shape, axis, block, formats, recipe, dtype):
    """REC-6, BLOCK-11: codes of dtype: element times scale, times or by g, exact and rounded once."""
    values = [decode(c, formats[block["element"]]) for c in q.codes]
    g = None if q.outer is None else decode(q.outer, BINARY32)
    for indices, code in zip(tiles(shape, axis, block["tile"]), q.scales):
        scale = decode(code, formats[block["scale"]])
        for i in indices:
            values[i] = blocks.product(values[i], scale)
            if g is not None:
                values[i] = (quotient if recipe in DIVISORS else blocks.product)(values[i], g)
    return [encode(v, dtype, "rne", blocks.OUT) for v in values]


def quotient(a, b):
    """An exact quotient of a number or NaN by a number, an infinity or a NaN."""
    if NAN in (a.kind, b.kind) or (is_zero(a) and is_zero(b)):
        return NOT_A_NUMBER
    negative = a.negative != b.negative
    if is_zero(b):
        return Value(INFINITE, negative)
    return Value(NUMBER, negative, Fraction(0) if b.kind == INFINITE else a.magnitude / b.magnitude)


def quantize_linear(values, scale, zero, element):
    """REC-23: codes of some Values under one given scale, a Value, and one integer zero point."""
    codes = []
    for v in values:
        q = div(f32(v), scale)
        if element.integer and q.kind == NUMBER:
            whole = round(-q.magnitude if q.negative else q.magnitude)
            q = exact(Fraction(whole + zero))
        codes.append(encode(q, element, "rne", dict(SAT, nan_int="zero")))
    return codes
