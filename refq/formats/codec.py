"""Codes from values and values from codes, on whole arrays: what users call. definition.py has the rules."""

import numpy as np

from refq.errors import InputError
from refq.formats import listed
from refq.formats.definition import chunks, code_dtype, convert_words, values_of
from refq.formats.fast import STEP, pair_table, plan, value_table
from refq.formats.names import number_format
from refq.formats.policies import overflow_rule, rounding_rule
from refq.formats.rows import Int, Row
from refq.formats.values import check_code

TABLE_FROM = 1 << 12        # smaller arrays go through the definition: filling a table would cost more
PAIRS_FROM = 1 << 14        # smaller arrays are decoded one code at a time

# Sources beside the rows of the table: integers of any numpy width.
_INTEGER_SOURCES = {np.dtype(f"{kind}{bits // 8}"): Int(f"{word}{bits}", bits, signed=kind == "i")
                    for kind, word in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)}


# ------------------------------------------------------------------------------------------------------------
# the public three

def encode(x, format, rounding="rne", overflow="sat", random_bits=None, random_width=None, out=None):
    """Round an array of numbers into a number format, once, from the source (Spec: CAST-1, CAST-2, CAST-3).

    x: array of any shape and layout, of float64, float32, float16, ml_dtypes.bfloat16 or any integer dtype.
    format: a name or a row. rounding: a key of ROUNDINGS. overflow: a key of OVERFLOWS.
    random_bits: for the stochastic roundings, unsigned integers below 2^random_width, broadcast to x.
    out: array of x's shape and the returned dtype, which receives the codes.
    Returns codes: the smallest unsigned integer dtype that holds the format, x's shape.
    Defaults: to nearest even, saturating (OFP8 SAT): what is out of range becomes the nearest finite value.
    Raises InputError for an unknown name, dtype or operand.
    """
    x = np.asarray(x)
    source = source_row(x.dtype)
    return convert(_words(x), source, format, rounding, overflow, random_bits, random_width, out)


def decode(codes, format, dtype=np.float32, out=None):
    """The values of codes as an array of float64, float32 or float16, always exact (Spec: VAL-7).

    codes: array of unsigned integers below 2^width. Every NaN code gives the canonical quiet NaN.
    out: array of codes' shape and the dtype asked for.
    Raises InputError when some value of the format is not exact in the dtype, or a code is out of range.
    """
    row, dtype = number_format(format), float_dtype(dtype)
    codes = _codes_array(codes, row)
    result = _result(out, codes.shape, dtype, codes)
    decoder(row, dtype, codes.size)(codes.reshape(-1), result.reshape(-1))
    return _deliver(result, out)


def convert(codes, source, target, rounding="rne", overflow="sat", random_bits=None, random_width=None,
            out=None):
    """Codes of one format to codes of another with a single rounding, no float in between (Spec: CAST-4).

    codes: array of unsigned integers below 2^width of the source format.
    Other arguments and errors as `encode`.
    """
    source, target = number_format(source), number_format(target)
    codes = _codes_array(codes, source)
    run = encoder(source, target, rounding, overflow, codes.size, random_width)
    bits = random_operand(rounding_rule(rounding), random_bits, random_width, codes.shape)
    result = _result(out, codes.shape, code_dtype(target), codes)
    run(codes.reshape(-1), result.reshape(-1), bits)
    return _deliver(result, out)


def encoder(source: Row, target: Row, rounding="rne", overflow="sat", size=1 << 62, random_width=None):
    """A function (words, room, random_bits=None) that converts flat source codes into flat room.

    It owns its scratch memory, so a loop over pieces of one array makes it once and calls it for each piece.
    size: values expected in all; a few are converted by the definition, many by a table.
    """
    rule, limits = rounding_rule(rounding), overflow_rule(overflow, target.special)
    tabulated = size >= TABLE_FROM and not rule.stochastic
    fast = plan(source, target, rounding, overflow) if tabulated else None
    if fast is None:
        def run(words, room, random_bits=None):
            for part in chunks(words.size):
                bits = None if random_bits is None else random_bits[part]
                room[part] = convert_words(words[part], source, target, rule, limits, bits, random_width or 0)
    else:
        step = min(size, STEP)
        word, index = np.empty(step, code_dtype(source)), np.empty(step, np.intp)

        def run(words, room, random_bits=None):
            for part in chunks(words.size, STEP):
                u = words[part]
                fast.look_up(u, word[: u.size], index[: u.size], room[part])
    return run


def decoder(row: Row, dtype: np.dtype, size=1 << 62):
    """A function (codes, room) that writes the values of flat codes into flat room; see `encoder`."""
    _refuse_inexact(row, dtype)
    if row.width > 16:
        def run(codes, room):
            for part in chunks(codes.size):
                room[part] = values_of(row, codes[part], dtype)
        return run
    pairs = pair_table(row, dtype) if row.width <= 8 and size >= PAIRS_FROM else None
    single, index = value_table(row, dtype), np.empty(min(size, STEP), np.intp)

    def look_up(table, words, room):
        for part in chunks(words.size, STEP):
            i = index[: words[part].size]
            i[...] = words[part]
            table.take(i, out=room[part], mode="clip")      # all are in range; "clip" avoids a buffered copy

    def run(codes, room):
        even = codes.size & ~1 if pairs is not None else 0
        if even:
            look_up(pairs, codes[:even].view(np.uint16), room[:even].view(pairs.dtype))
        look_up(single, codes[even:], room[even:])
    return run


def source_row(dtype: np.dtype) -> Row:
    """The number format of a numpy dtype. Raises InputError for one that is not a source (CAST-2)."""
    dtype = np.dtype(dtype)
    if dtype in _INTEGER_SOURCES:
        return _INTEGER_SOURCES[dtype]
    names = {"float64": "binary64", "float32": "binary32", "float16": "binary16", "bfloat16": "bfloat16"}
    if dtype.name not in names or not dtype.isnative:
        raise InputError(f"values of dtype {dtype} are not accepted; allowed are float64, float32, float16, "
                         "bfloat16 and integers, in native byte order")
    return number_format(names[dtype.name])


def as_floats(x):
    """An array of any source dtype as float32 or float64 with the same values.

    Raises InputError for a dtype that is not a source (CAST-2), and for integers beyond 2^53 of more than 24 bits.
    """
    source = source_row(x.dtype)
    if x.dtype in (np.float32, np.float64):
        return x
    if source.precision <= 24:
        with np.errstate(invalid="ignore"):         # signalling NaNs
            return x.astype(np.float32)
    if x.size and max(abs(int(x.max())), abs(int(x.min()))) > 1 << 53:
        raise InputError("integers must lie between -2^53 and 2^53")
    return x.astype(np.float64)


# ------------------------------------------------------------------------------------------------------------
# arguments and results

def _words(x):
    """The bit patterns of an array of numbers as unsigned integers, C-contiguous, same shape."""
    return np.ascontiguousarray(x).reshape(x.shape).view(f"u{x.dtype.itemsize}")


def _codes_array(codes, row: Row):
    codes = np.asarray(codes)
    if codes.dtype.kind not in "ui":
        raise InputError(f"codes of {row.name} must be unsigned integers, got dtype {codes.dtype}")
    if codes.size and (codes.dtype.kind == "i" or 8 * codes.itemsize > row.width):
        check_code(row, int(codes.min()))
        check_code(row, int(codes.max()))
    return np.ascontiguousarray(codes, dtype=code_dtype(row)).reshape(codes.shape)


def float_dtype(dtype) -> np.dtype:
    """A dtype that values can be decoded into. Raises InputError for any other."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found not in (np.float64, np.float32, np.float16):
        raise InputError(f"cannot decode into dtype {dtype}; allowed are float64, float32 and float16, "
                         "in native byte order")
    return found


def exact_in(row: Row, dtype) -> bool:
    """Whether every finite value of a format is a value of float64, float32 or float16 (Spec: VAL-7)."""
    if row.is_listed:
        return listed.holds(np.dtype(dtype), row)
    room = source_row(dtype)
    in_range = max(row.max, -row.lowest) <= room.max
    return in_range and row.precision <= room.precision and row.layout.qmin >= room.layout.qmin


def _refuse_inexact(row: Row, dtype: np.dtype):
    if not exact_in(row, dtype):
        raise InputError(f"not every value of {row.name} is exact in {dtype}; decode into a wider dtype, "
                         "or use refq.formats.values.exact for fractions")


def random_operand(rule, random_bits, width, shape):
    """The random operand as flat uint64, or None for a deterministic rule."""
    if not rule.stochastic:
        if random_bits is not None or width is not None:
            raise InputError(f"rounding {rule.name!r} takes no random_bits; "
                             "the stochastic ones are sra, srb and src")
        return None
    whole = isinstance(width, (int, np.integer)) and not isinstance(width, bool)
    if random_bits is None or not whole or not 1 <= width <= 32:
        raise InputError(f"rounding {rule.name!r} needs random_bits and a random_width of 1 to 32, "
                         f"got random_width={width!r}")
    bits = np.asarray(random_bits)
    if bits.dtype.kind not in "ui" or bits.size and (int(bits.min()) < 0 or int(bits.max()) >> width):
        raise InputError(f"random_bits must be integers from 0 to 2^{width} - 1")
    try:
        return np.broadcast_to(bits.astype(np.uint64), shape).reshape(-1)
    except ValueError:
        raise InputError(f"random_bits of shape {bits.shape} do not broadcast to {tuple(shape)}") from None


def _result(out, shape, dtype, operand):
    """A C-contiguous array to fill: `out` itself where it is one and shares no memory with the operand."""
    if out is None:
        return np.empty(shape, dtype)
    fits = isinstance(out, np.ndarray) and out.shape == tuple(shape) and out.dtype == dtype
    if not fits or not out.flags.writeable:
        raise InputError(f"out must be a writeable array of shape {tuple(shape)} and dtype {np.dtype(dtype)}")
    apart = out.flags.c_contiguous and not np.may_share_memory(out, operand)
    return out if apart else np.empty(shape, dtype)


def _deliver(result, out):
    if out is None or result is out:
        return result
    out[...] = result
    return out
