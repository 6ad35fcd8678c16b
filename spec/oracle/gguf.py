"""GGUF blocks: the values of a block's bytes, and the bytes of a block's values, one block at a time.

Written from spec/gguf.md. A block is a bytes object. Values are Python floats that are exact in float32; every
arithmetic step is done on Fractions and rounded once, to float32 or binary16, as the clauses say.
"""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

# --- float32 and binary16 arithmetic (GGUF-10) ----------------------------------------------------

INF, NAN = math.inf, math.nan


def nearest(x, digits, quantum, limit):
    """A Fraction to `digits` significant bits, in steps from 2**quantum up, to nearest even; from limit on: inf."""
    if x == 0:
        return 0.0
    size = abs(x)
    top = size.numerator.bit_length() - size.denominator.bit_length()
    top -= size < Fraction(2) ** top
    step = Fraction(2) ** max(top - digits + 1, quantum)
    size = round(size / step) * step                           # round(): nearest integer, ties to even
    return math.copysign(INF if size >= limit else float(size), x)


def single(x):
    return nearest(x, 24, -149, 2 ** 128)


def half(x):
    """A float to binary16, as a float."""
    return x if x == 0 or not math.isfinite(x) else math.copysign(nearest(Fraction(x), 11, -24, 2 ** 16), x)


def mul(a, b):
    if 0 in (a, b) or not (math.isfinite(a) and math.isfinite(b)):
        return a * b                                           # signs of zeros, infinities, NaN: as in any format
    return math.copysign(single(Fraction(a) * Fraction(b)), a * math.copysign(1.0, b))


def add(a, b):
    if not (math.isfinite(a) and math.isfinite(b)) or a == -b:
        return a + b
    return single(Fraction(a) + Fraction(b))


def div(a, b):
    if a == 0 or not math.isfinite(a) or not math.isfinite(b):
        return a / b
    return math.copysign(single(Fraction(a) / Fraction(b)), a * math.copysign(1.0, b))


def inverse(d, numerator=1.0):
    return div(numerator, d) if d else 0.0


# --- fields (GGUF-2, GGUF-3) ----------------------------------------------------------------------

def place(n, at, width, stride):
    """The byte and the lowest bit of number n of bits(at, ..., width, stride)."""
    group, rest = divmod(n, 8 // width * stride)
    return at + group * stride + rest % stride, rest // stride * width


def bits(block, n, at, width, stride):
    byte, low = place(n, at, width, stride)
    return block[byte] >> low & (1 << width) - 1


def trit(block, n):
    """GGUF-4: trit n of TQ1_0."""
    byte, k, _ = trit_place(n)
    return (block[byte] * 3 ** k % 256) * 3 // 256


def trit_place(n):
    """The byte and the digit of trit n, and the digits in that byte."""
    if n < 160:
        return n % 32, n // 32, 5
    if n < 240:
        return 32 + (n - 160) % 16, (n - 160) // 16, 5
    return 48 + (n - 240) % 4, (n - 240) // 4, 4


# --- layout (GGUF-1, GGUF-4, GGUF-8) --------------------------------------------------------------

E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

# type: values, bytes, tiles, code fields (at, width, stride), level of a code
TYPES = {
    "Q4_0": (32, 18, 1, [(2, 4, 16)], lambda q: q - 8),
    "Q4_1": (32, 20, 1, [(4, 4, 16)], lambda q: q),
    "Q5_0": (32, 22, 1, [(6, 4, 16), (2, 1, 1)], lambda q: q - 16),
    "Q5_1": (32, 24, 1, [(8, 4, 16), (4, 1, 1)], lambda q: q),
    "Q8_0": (32, 34, 1, [(2, 8, 1)], lambda q: (q + 128) % 256 - 128),
    "Q8_1": (32, 36, 1, [(4, 8, 1)], lambda q: (q + 128) % 256 - 128),
    "Q2_K": (256, 84, 16, [(16, 2, 32)], lambda q: q),
    "Q3_K": (256, 110, 16, [(32, 2, 32), (0, 1, 32)], lambda q: q - 4),
    "Q4_K": (256, 144, 8, [(16, 4, 32)], lambda q: q),
    "Q5_K": (256, 176, 8, [(48, 4, 32), (16, 1, 32)], lambda q: q),
    "Q6_K": (256, 210, 16, [(0, 4, 64), (128, 2, 32)], lambda q: q - 32),
    "IQ4_NL": (32, 18, 1, [(2, 4, 16)], lambda q: NL[q]),
    "IQ4_XS": (256, 136, 8, [(8, 4, 16)], lambda q: NL[q]),
    "TQ1_0": (256, 54, 1, None, lambda q: q - 1),
    "TQ2_0": (256, 66, 1, [(0, 2, 32)], lambda q: q - 1),
    "MXFP4": (32, 17, 1, [(1, 4, 16)], lambda q: E2M1[q]),
    "NVFP4": (64, 36, 4, [(4, 4, 8)], lambda q: E2M1[q]),
    "Q1_0": (128, 18, 1, [(2, 1, 1)], lambda q: (-1, 1)[q]),
    "Q2_0": (64, 18, 1, [(2, 2, 1)], lambda q: q - 1),
}


def code(block, name, n):
    """The code of value n."""
    fields = TYPES[name][3]
    if fields is None:
        return trit(block, n)
    total = shift = 0
    for at, width, stride in fields:
        total |= bits(block, n, at, width, stride) << shift
        shift += width
    return total


# --- scales (GGUF-5, GGUF-6) ----------------------------------------------------------------------

def binary16(block, at):
    """The binary16 number at a byte."""
    word = block[at] | block[at + 1] << 8
    e, t = word >> 10 & 31, word & 1023
    if e == 31:
        size = NAN if t else INF
    else:
        size = float((t + (1024 if e else 0)) * Fraction(2) ** (max(e, 1) - 25))
    return -size if word >> 15 else size


def e8m0(c):
    return float(Fraction(2) ** (c - 128))


def ue4m3(c):
    e, t = c >> 3 & 15, c & 7
    if c == 0x7F:
        return 0.0
    return float(t * Fraction(2) ** -10 if e == 0 else (8 + t) * Fraction(2) ** (e - 11))


def six(block, low, shift, high, up):
    """A number of six bits: four from bit `shift` of byte `low`, two from bit `up` of byte `high`."""
    return block[low] >> shift & 15 | (block[high] >> up & 3) << 4


def factor(block, name, i):
    """The scale factor of tile i."""
    match name:
        case "Q2_K":
            return block[i] & 15
        case "Q3_K":
            return six(block, 96 + i % 8, i // 8 * 4, 104 + i % 4, i // 4 * 2) - 32
        case "Q4_K" | "Q5_K":
            return six(block, 4 + i, 0, 4 + i, 4) if i < 4 else six(block, 8 + i, 0, i, 6)
        case "Q6_K":
            return (block[192 + i] + 128) % 256 - 128
        case "IQ4_XS":
            return (bits(block, i, 4, 4, 1) | bits(block, i, 2, 2, 1) << 4) - 32
    return 1


def minimum(block, name, i):
    """The factor of tile i's offset."""
    if name == "Q2_K":
        return block[i] >> 4
    return six(block, 8 + i, 0, 8 + i, 4) if i < 4 else six(block, 8 + i, 4, 4 + i, 6)


SCALE_AT = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208, "TQ1_0": 52, "TQ2_0": 64}
MINIMUM_AT = {"Q2_K": 82, "Q4_K": 2, "Q5_K": 2}


def scale(block, name, i):
    """The scale of tile i."""
    if name == "MXFP4":
        return e8m0(block[0])
    if name == "NVFP4":
        return ue4m3(block[i])
    return mul(binary16(block, SCALE_AT.get(name, 0)), float(factor(block, name, i)))


# --- decode (GGUF-7) ------------------------------------------------------------------------------

def decode(block, name):
    """The values of one block."""
    values, size, tiles, _, level = TYPES[name]
    assert len(block) == size
    result = []
    for n in range(values):
        i = n * tiles // values
        value = mul(float(level(code(block, name, n))), scale(block, name, i))
        if name in ("Q4_1", "Q5_1"):
            value = add(value, binary16(block, 2))
        elif name in MINIMUM_AT:
            value = add(value, -mul(binary16(block, MINIMUM_AT[name]), float(minimum(block, name, i))))
        result.append(value)
    return result


# --- encode (GGUF-9 .. GGUF-19) -------------------------------------------------------------------

def encode(x, name, variant="reference"):
    """The bytes of one block of finite float32 values."""
    values, size, tiles, fields, level = TYPES[name]
    assert len(x) == values
    block, recipe = bytearray(size), RECIPES[name]
    codes = recipe(x, block, name, *([variant] if recipe is amax_recipe else []))
    for n, q in enumerate(codes):
        if fields is None:
            byte, k, _ = trit_place(n)
            block[byte] += q * 3 ** (4 - k)                    # v of GGUF-3; at most 242
        else:
            for at, width, stride in fields:
                byte, low = place(n, at, width, stride)
                block[byte] |= (q & (1 << width) - 1) << low
                q >>= width
    if fields is None:
        block[:52] = bytes(-(-256 * v // 243) for v in block[:52])
    return bytes(block)


def store(block, at, value):
    """half(value) at a byte."""
    value = half(value)
    sign = 0x8000 if math.copysign(1, value) < 0 else 0
    if math.isinf(value):
        word = 0x7C00
    else:
        units = int(Fraction(abs(value)) * 2 ** 24)            # counted in the smallest quantum
        e = max(units.bit_length() - 11, 0)
        word = (e << 10) + (units >> e)
    block[at:at + 2] = (sign | word).to_bytes(2, "little")


def whole(y, top, stray=0):
    """GGUF-11, GGUF-12, GGUF-14."""
    return min(top, int(y)) if math.isfinite(y) else stray


def extreme_recipe(x, block, name):
    """GGUF-11."""
    h = {"Q4_0": 8, "Q5_0": 16}[name]
    most = 0.0
    for v in x:
        if abs(v) > abs(most):
            most = v
    d = div(most, float(-h))
    store(block, 0, d)
    return [whole(add(mul(v, inverse(d)), h + 0.5), 2 * h - 1) for v in x]


def range_recipe(x, block, name):
    """GGUF-12."""
    t = {"Q4_1": 15, "Q5_1": 31}[name]
    least = most = x[0]
    for v in x[1:]:
        least, most = v if v < least else least, v if v > most else most
    d = div(add(most, -least), float(t))
    store(block, 0, d)
    store(block, 2, least)
    return [whole(add(mul(add(v, -least), inverse(d)), 0.5), t) for v in x]


def amax_recipe(x, block, name, variant):
    """GGUF-13, GGUF-14, GGUF-19."""
    t = {"Q8_0": 127.0, "Q8_1": 127.0}.get(name, 1.0)
    a = max(abs(v) for v in x)
    d = div(a, t)
    i = inverse(a, t) if variant == "x86" else inverse(d)
    zero, total, codes = 0 if t == 127.0 else 1, 0, []
    for y in (mul(v, i) for v in x):
        if math.isfinite(y):
            exact = Fraction(y)
            away = math.floor(abs(exact) + Fraction(1, 2)) * (1 if y > 0 else -1)
            q = away if variant == "reference" else round(exact)
            total += q
            codes.append(q + zero & 255)
        elif variant == "x86":
            codes.append(0x80)
        elif variant == "arm":
            codes.append(0xFF if y == INF else 0)
        else:
            codes.append(1 if name in ("TQ1_0", "TQ2_0") else 0)
    store(block, SCALE_AT.get(name, 0), d)
    if name == "Q8_1":
        store(block, 2, mul(float(total), d))
    return codes


def mean_recipe(x, block, name):
    """GGUF-18."""
    total = 0.0
    for v in x:
        total = add(total, abs(v))
    store(block, 0, div(total, 128.0))
    return [int(v >= 0) for v in x]


def mxfp4_recipe(x, block, name):
    """GGUF-15, GGUF-16."""
    block[0] = mxfp4_scale(max(abs(v) for v in x))
    return [nearest_level(v, e8m0(block[0])) for v in x]


def nvfp4_recipe(x, block, name):
    """GGUF-15, GGUF-17."""
    for i in range(4):
        block[i] = nvfp4_scale(max(abs(v) for v in x[16 * i:16 * i + 16]))
    return [nearest_level(v, ue4m3(block[n // 16])) for n, v in enumerate(x)]


def nearest_level(x, d):
    """GGUF-15."""
    errors = [abs(add(mul(float(level), d), -x)) for level in E2M1]
    return errors.index(min(errors))


def mxfp4_scale(a):
    """GGUF-16."""
    return (floor_log2(a) - 2 + 127) % 256 if a else 0


def floor_log2(a):
    """The floor of log2(a) rounded to float32."""
    with localcontext() as context:
        context.prec = 40                                      # no boundary is that near: they are dyadic, while
        power = math.frexp(a)[1] - 1                           # the logarithm is whole or irrational
        log = power + (Decimal(a) / Decimal(2) ** power).ln() / Decimal(2).ln()
        return math.floor(single(Fraction(log)))


def nvfp4_scale(a):
    """GGUF-17."""
    v = min(div(a, 6.0), 448.0)
    if v < 2 ** -6:
        return min(7, int(add(mul(v, 512.0), 0.5)))
    if v >= 248:
        return 0x7E
    e = math.frexp(v)[1] - 1                                   # 2**e <= v < 2**(e + 1)
    units = math.floor(Fraction(v) * Fraction(2) ** (3 - e) + Fraction(1, 2))
    return (e + 7 << 3) + units - 8                            # 16 units carry into the exponent


RECIPES = {"Q4_0": extreme_recipe, "Q5_0": extreme_recipe, "Q4_1": range_recipe, "Q5_1": range_recipe,
           "Q8_0": amax_recipe, "Q8_1": amax_recipe, "TQ1_0": amax_recipe, "TQ2_0": amax_recipe,
           "Q2_0": amax_recipe, "Q1_0": mean_recipe, "MXFP4": mxfp4_recipe, "NVFP4": nvfp4_recipe}
