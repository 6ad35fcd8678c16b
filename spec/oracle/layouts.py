"""Where the bits of codes lie: element layouts, blocks with their scales, swizzled matrices.

Written from spec/layouts.md. A layout arrives as a dict of plain numbers and words: "planes" (dicts of "low",
"width", "order", "stretch", "first"), "span", "block", "word", "shuffle". Arrays are flat lists in row-major
order with a shape beside them; everything here moves one bit at a time.
"""

from itertools import product
from math import gcd, prod

LINE = 0                        # a word of this size: the bytes of a line all stay together


def up(count, multiple):
    return (count + multiple - 1) // multiple * multiple


# --- one line of codes ----------------------------------------------------------------------------

def places(count, bits, layout):
    """PACK-3, PACK-4, PACK-6: (values with filling, bytes, {(value, bit): (byte, bit of the byte)})."""
    filled = up(count, multiple(bits, layout))
    block = layout["block"] or filled or 1
    where, start = {}, 0
    for first in range(0, filled, block):
        for plane in layout["planes"]:
            width = bits - plane["low"] if plane["width"] is None else plane["width"]
            for q, value in enumerate(order(plane, width, block)):
                for b in range(width):
                    p = q * width + (b if plane["first"] == "low" else width - 1 - b)
                    bit = p % 8 if plane["first"] == "low" else 7 - p % 8
                    where[first + value, plane["low"] + b] = start + p // 8, bit
            start += (block * width + 7) // 8
    return filled, start, where


def multiple(bits, layout):
    """PACK-6: a line is filled up to whole blocks; without blocks, so that split planes have equal runs."""
    if layout["block"]:
        return layout["block"]
    most = 1
    for plane in layout["planes"]:
        width = bits - plane["low"] if plane["width"] is None else plane["width"]
        if plane["order"] == "split":
            most = most * runs(width) // gcd(most, runs(width))
    return most


def runs(width):
    """PACK-4: how many values share a byte."""
    return 8 // width


def order(plane, width, block):
    """PACK-4: the values of a block in the order they lie in a plane."""
    if plane["order"] == "sequence":
        return range(block)
    if plane["order"] == "split":
        stretch = plane["stretch"] or block
        step = stretch // runs(width)
        return [at + run * step + i for at in range(0, block, stretch) for i in range(step)
                for run in range(runs(width))]
    listed = plane["order"]
    return [at + value for at in range(0, block, len(listed)) for value in listed]


def pack_line(codes, bits, layout, fill=0):
    """The bytes of one line."""
    filled, size, where = places(len(codes), bits, layout)
    line = bytearray(size)
    for value, code in enumerate(list(codes) + [fill] * (filled - len(codes))):
        for b in range(bits):
            byte, bit = where[value, b]
            line[byte] |= (code >> b & 1) << bit
    return bytes(line)


def unpack_line(line, count, bits, layout):
    """PACK-6: the codes of one line; filling is not looked at."""
    _, size, where = places(count, bits, layout)
    assert len(line) == size, f"{count} codes take {size} bytes, not {len(line)}"
    return [sum((line[where[value, b][0]] >> where[value, b][1] & 1) << b for b in range(bits))
            for value in range(count)]


# --- arrays ---------------------------------------------------------------------------------------

def rows(shape, axis):
    """The flat indices of every row along an axis, the rows in row-major order of the other axes."""
    before, after, length = prod(shape[:axis]), prod(shape[axis + 1:]), shape[axis]
    return [[(i * length + j) * after + k for j in range(length)]
            for i in range(before) for k in range(after)]


def pack(codes, shape, axis, bits, layout, fill=0):
    """PACK-2 to PACK-6, PACK-9: the bytes of an array, in the order of their addresses."""
    if layout["span"] == "tensor":
        return pack_line(codes, bits, layout, fill)
    shape = shape or (1,)
    axis %= len(shape)
    lines = [pack_line([codes[i] for i in row], bits, layout, fill) for row in rows(shape, axis)]
    if layout["shuffle"]:
        return shuffle_lines(lines, shape, axis, bits, layout)
    return bytes(lines[line][byte] for line, byte in addresses(shape, axis, bits, layout))


def unpack(packed, shape, axis, bits, layout):
    """The inverse of pack."""
    if layout["span"] == "tensor":
        return unpack_line(packed, prod(shape), bits, layout)
    form = shape or (1,)
    axis %= len(form)
    size = places(form[axis], bits, layout)[1]
    lines = [bytearray(size) for _ in rows(form, axis)]
    if layout["shuffle"]:
        matrices, count = batch(form, axis)
        data = unswizzle(packed, matrices, count, size, layout["shuffle"])
        lines = [data[i * size:(i + 1) * size] for i in range(len(lines))]
    else:
        for value, (line, byte) in zip(packed, addresses(form, axis, bits, layout)):
            lines[line][byte] = value
    codes = [0] * prod(shape)
    for row, line in zip(rows(form, axis), lines):
        for i, code in zip(row, unpack_line(line, form[axis], bits, layout)):
            codes[i] = code
    return codes


def addresses(shape, axis, bits, layout):
    """PACK-5: for every byte of the packed array in order, its line and which byte of the line it is."""
    size = places(shape[axis], bits, layout)[1]
    before, after = prod(shape[:axis]), prod(shape[axis + 1:])
    if layout["word"] == LINE:
        return [(line, byte) for line in range(before * after) for byte in range(size)]
    word = layout["word"]
    return [(i * after + k, w * word + byte) for i in range(before) for w in range(size // word)
            for k in range(after) for byte in range(word)]


def shuffle_lines(lines, shape, axis, bits, layout):
    """PACK-9: the lines as a matrix of bytes, or as a batch of matrices."""
    size = places(shape[axis], bits, layout)[1]
    return swizzle([byte for line in lines for byte in line], *batch(shape, axis), size, layout["shuffle"])


def batch(shape, axis):
    """PACK-8: how many matrices the rows along an axis form, and how many rows each has."""
    others = shape[:axis] + shape[axis + 1:]
    return prod(others[:-1]), others[-1] if others else 1


# --- matrices of bytes ----------------------------------------------------------------------------

def offset(i, j, cols, shuffle):
    """PACK-8, PACK-9: where byte (i, j) of a padded matrix of cols columns lies.

    Both indices are taken apart into digits, coarse to fine; the address is those digits in another order.
    """
    height, width = prod(shuffle["rows"]), prod(shuffle["cols"])
    digits = [(i // height, None)] + mixed(i % height, shuffle["rows"])
    digits += [(j // width, cols // width)] + mixed(j % width, shuffle["cols"])
    at = 0
    for part in shuffle["order"]:
        digit, radix = digits[part]
        at = digit if radix is None else at * radix + digit
    return at


def mixed(index, radices):
    """The digits of an index with their radices, the most significant first."""
    digits = []
    for radix in reversed(radices):
        digits.insert(0, (index % radix, radix))
        index //= radix
    return digits


def padded(count, cols, shuffle):
    return up(count, shuffle["pad"][0]), up(cols, shuffle["pad"][1])


def swizzle(data, matrices, count, cols, shuffle):
    """PACK-8: matrices of count rows and cols columns, one after another; padding is 0."""
    high, wide = padded(count, cols, shuffle)
    packed = bytearray(matrices * high * wide)
    for m, i, j in product(range(matrices), range(count), range(cols)):
        packed[m * high * wide + offset(i, j, wide, shuffle)] = data[(m * count + i) * cols + j]
    return bytes(packed)


def unswizzle(packed, matrices, count, cols, shuffle):
    """The inverse of swizzle; padding is not looked at."""
    high, wide = padded(count, cols, shuffle)
    assert len(packed) == matrices * high * wide
    return bytes(packed[m * high * wide + offset(i, j, wide, shuffle)]
                 for m, i, j in product(range(matrices), range(count), range(cols)))


# --- blocks ---------------------------------------------------------------------------------------

def pack_blocks(codes, scales, bits, scale_bits, tile, layout, inner):
    """PACK-7: the blocks of one row: codes of all its values, one scale of scale_bits bits for each tile.

    layout: a dict of "fields", "tiles", "invert", "join"; inner: the layout of one tile's codes.
    """
    packed = bytearray()
    for first in range(0, len(scales), layout["tiles"]):
        streams = {"scales": "", "codes": ""}                   # bits, the lowest first
        for t in range(first, first + layout["tiles"]):
            mine = [code ^ layout["invert"] for code in (codes[t * tile:(t + 1) * tile] + [0] * tile)[:tile]]
            wide = scale_bits if layout["join"] == "bits" else up(scale_bits, 8)
            streams["scales"] += stream(scales[t] if t < len(scales) else 0, wide)
            if layout["join"] == "bits":
                streams["codes"] += "".join(stream(code, bits) for code in mine)
            else:
                streams["codes"] += "".join(stream(byte, 8) for byte in pack_line(mine, bits, inner))
        block = "".join(streams[field] for field in layout["fields"])
        packed += int("0" + block[::-1], 2).to_bytes((len(block) + 7) // 8, "little")
    return bytes(packed)


def stream(code, width):
    return "".join(str(code >> b & 1) for b in range(width))
