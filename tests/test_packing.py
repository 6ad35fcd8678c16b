"""Codes as bytes: the little-endian stream by hand (PACK-1), layouts by name, inverse, refusals."""

from dataclasses import replace

import numpy as np
import pytest

import refq
from refq.blocks.packing import Packed, pack, pack_codes, unpack, unpack_codes
from refq.blocks.quantize import Quantized
from refq.blocks.rows import DATA_TYPES, data_type
from refq.errors import InputError

# (bits, codes, bytes), worked out by hand: the first code in the lowest bits
BY_HAND = [
    (1, [1, 0, 1, 1, 0, 0, 0, 1], "8d"),
    (1, [1], "01"),
    (1, [0, 0, 0, 0, 0, 0, 0, 0, 1], "00 01"),
    (2, [1, 2, 3, 0], "39"),
    (2, [3, 3, 3, 3, 3], "ff 03"),
    (3, [1, 2, 3, 4, 5, 6, 7, 0], "d1 58 1f"),
    (3, [7, 0, 7], "c7 01"),
    (4, [1, 2], "21"),                          # low nibble first
    (4, [0xA, 0xB, 0xC], "ba 0c"),              # the tail is padded with zeros
    (5, [1, 2, 3, 4, 5, 6, 7, 8], "41 0c 52 cc 41"),
    (6, [1, 2, 3, 4], "81 30 10"),              # four in three bytes
    (6, [0x3F], "3f"),
    (6, [0x3F, 0], "3f 00"),
    (7, [0x7F, 0, 0x7F], "7f c0 1f"),
    (8, [0x12, 0xAB], "12 ab"),
    (10, [0x3FF, 1], "ff 07 00"),
    (12, [0xABC, 0x123], "bc 3a 12"),
    (16, [0x1234, 0xABCD], "34 12 cd ab"),      # little endian
    (19, [0x40001, 0], "01 00 04 00 00"),
    (32, [0x12345678], "78 56 34 12"),
    (64, [0x0102030405060708], "08 07 06 05 04 03 02 01"),
]


@pytest.mark.parametrize("bits, codes, want", BY_HAND)
def test_bytes_by_hand(bits, codes, want):
    kind = next(f"u{size}" for size in (1, 2, 4, 8) if bits <= 8 * size)
    packed = pack_codes(np.array(codes, kind), bits)
    assert packed.dtype == np.uint8 and packed.tobytes() == bytes.fromhex(want)
    codes_back = unpack_codes(packed, bits, len(codes))
    assert codes_back.tolist() == codes and codes_back.dtype == kind
    wide = pack_codes(np.array(codes, np.uint64), bits)         # the dtype of the codes does not matter
    assert np.array_equal(wide, packed)


@pytest.mark.parametrize("bits", range(1, 17))
def test_inverse_on_every_size(bits):
    """Sizes around whole bytes and words, and one above numpy's own blocking."""
    rng = np.random.default_rng(bits)
    kind = np.uint8 if bits <= 8 else np.uint16
    for size in [*range(0, 33), 63, 64, 65, 1000, 70_001]:
        codes = rng.integers(0, 1 << bits, size, dtype=np.uint32).astype(kind)
        packed = pack_codes(codes, bits)
        assert packed.shape == (-(-size * bits // 8),)
        assert np.array_equal(unpack_codes(packed, bits, size), codes)
        if size <= 65:
            stream = sum(code << i * bits for i, code in enumerate(codes.tolist()))
            assert packed.tobytes() == stream.to_bytes(len(packed), "little")


@pytest.mark.parametrize("bits", [3, 4, 6, 8, 16])
def test_any_layout_is_read_row_by_row(bits):
    kind = np.uint8 if bits <= 8 else np.uint16
    codes = np.random.default_rng(0).integers(0, 1 << bits, (6, 7, 5)).astype(kind)
    for view in (codes, np.asfortranarray(codes), codes.transpose(2, 0, 1), codes[::-1, ::2], codes[:, 3],
                 codes[0, 0, 0], codes[:0], np.broadcast_to(codes[:1], codes.shape)):
        before = view.tobytes()
        assert np.array_equal(pack_codes(view, bits), pack_codes(view.reshape(-1).copy(), bits))
        assert view.tobytes() == before
    mine = pack_codes(codes, bits)
    mine ^= 0xFF
    assert not np.may_share_memory(mine, codes)


def test_bytes_of_every_kind_are_unpacked():
    packed = pack_codes(np.uint8([1, 2, 3]), 4)
    for given in (packed, packed.tobytes(), packed.tolist(), np.repeat(packed, 2)[::2]):
        given = np.frombuffer(given, np.uint8) if isinstance(given, bytes) else np.asarray(given, np.uint8)
        assert unpack_codes(given, 4, 3).tolist() == [1, 2, 3]


REFUSED = [
    (lambda: pack_codes(np.uint8([16]), 4), "0x10"),
    (lambda: pack_codes(np.uint16([1, 512]), 9), "0x200"),
    (lambda: pack_codes(np.array([-1]), 4), "unsigned|-0?x?1"),
    (lambda: pack_codes(np.float32([1]), 4), "unsigned"),
    (lambda: pack_codes(np.uint8([1]), 0), "1 to 64|bits"),
    (lambda: pack_codes(np.uint8([1]), 65), "1 to 64|bits"),
    (lambda: unpack_codes(np.zeros(2, np.uint8), 4, 5), "3"),
    (lambda: unpack_codes(np.zeros(4, np.uint8), 4, 5), "3"),
    (lambda: unpack_codes(np.zeros(1, np.uint8), 4, 0), "0"),
    (lambda: unpack_codes(np.zeros(2, np.uint8), 6, 4), "3"),
]


@pytest.mark.parametrize("call, words", REFUSED)
def test_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


# --- a quantised array ------------------------------------------------------------------------------------

def test_a_quantised_array_by_hand():
    """A full mxfp4 tile: amax 6 = 1.5 * 2^2, scale 2^0 = code 127; then a short one of 1, scale 2^-2."""
    x = np.zeros((1, 34), np.float32)
    x[0, :4], x[0, 32:] = [6, -0.5, 1.5, -0.0], [1, -1]
    packed = refq.quantize(x, "mxfp4").pack()
    assert packed.codes.tobytes() == bytes.fromhex("97 83" + "00" * 14 + "e6")
    assert packed.scales.tobytes() == bytes.fromhex("7f 7d") and packed.tensor_scale is None


def test_scales_lie_little_endian():
    q = refq.quantize(np.float32([[127, 1], [254, 2]]), "int8")
    packed = q.pack()
    assert packed.codes.tobytes() == bytes.fromhex("7f 01 7f 01")
    assert packed.scales.tobytes() == bytes.fromhex("00 00 80 3f 00 00 00 40")
    half = refq.quantize(np.float32([[7, 1, -7]]), "int4").pack()
    assert half.codes.tobytes() == bytes.fromhex("17 09") and half.scales.tobytes() == bytes.fromhex("00 3c")


def test_the_tensor_scale_comes_along():
    x = np.float32(np.arange(32)).reshape(1, 32)
    packed = refq.quantize(x, "nvfp4").pack()
    assert packed.tensor_scale == np.float32(31 / 2688) and packed.scales.shape == (2,)
    assert refq.quantize(x, "e4m3fn").pack().scales is None


# --- layouts by name (PACK-2 to PACK-9; the rows themselves: test_layouts.py) ------------------------------

TYPES = {"mxfp4": ["onnx", "torch", "gguf", "bitsandbytes", "amd-preshuffle", "scale-first", "gguf-mxfp4"],
         "nvfp4": ["onnx", "gguf-nvfp4", "scale-last"],
         "mxfp6_e2m3": ["onnx", "fp6-torchao-2025", "fp6-torchao-2025-triton", "scale-last-bits"],
         "mxint8": ["torch", "scale-first"], "int4": ["gptq", "awq", "gguf-q4_0"],
         "int8": ["onnx", "scale-last"], "int8_float32_tensor": ["onnx", "scale-first"],
         "int3_float16_t5": ["torchao-uintx", "scale-first-bits"],
         "e2m1": ["onnx", "gguf"], "bfloat16": ["onnx", "msb-first"]}


def same(a, b):
    """Two Quantized, bit for bit."""
    pairs = [(getattr(a, name), getattr(b, name)) for name in ("codes", "scales", "zeros", "tables", "mask")]
    for left, right in [*pairs, *zip(a.offsets, b.offsets, strict=True)]:
        assert (left is None) == (right is None)
        assert left is None or (left.dtype == right.dtype and np.array_equal(left, right))
    for name in ("dtype", "shape", "axis", "recipe", "rounding"):
        assert getattr(a, name) == getattr(b, name)
    assert a.tensor_scale is b.tensor_scale is None or a.tensor_scale == b.tensor_scale


@pytest.mark.parametrize("dtype, layout", [(dtype, name) for dtype, names in TYPES.items() for name in names])
def test_a_quantised_array_comes_back(dtype, layout):
    rng = np.random.default_rng(0)
    for shape in [(1,), (37,), (3, 70), (70, 3), (2, 5, 40), (0,), (0, 3), (3, 0)]:
        for axis in range(len(shape)):
            q = refq.quantize(rng.standard_normal(shape).astype(np.float32), dtype, axis, "rtz")
            same(q.pack(layout).unpack(), q)


@pytest.mark.parametrize("scale_layout", ["onnx", "torch", "cublas-128x4", "amd-e8m0-shuffle"])
def test_scales_in_the_order_of_an_engine(scale_layout):
    for shape, axis in [((200, 100), 1), ((100, 200), 0), ((2, 130, 33), 2), ((33,), 0), ((0, 64), 1)]:
        q = refq.quantize(np.random.default_rng(1).standard_normal(shape), "mxfp4", axis)
        packed = q.pack("torch", scale_layout)
        same(packed.unpack(), q)
        if scale_layout not in ("onnx", "torch"):
            assert np.array_equal(packed.scales, pack(q.scales, scale_layout, axis=axis))


def test_numbers_without_axes():
    q = refq.quantize(np.float32(3), "int8_float32_tensor")
    for layout in ("onnx", "torch", "scale-first", "amd-preshuffle"):
        same(q.pack(layout).unpack(), q)
    assert unpack(pack(np.uint8(5), "torch", 4), (), "torch", 4) == 5
    assert unpack(pack(np.uint8(5), "cublas-128x4"), (), "cublas-128x4") == 5


def test_bytes_from_elsewhere():
    """A 17-byte block of another program: a Packed says what the bytes are."""
    data = bytes.fromhex("80 07" + "00" * 15)
    block = Packed(data, None, None, "mxfp4", (1, 32), layout="gguf-mxfp4")
    assert block.unpack().dequantize().tolist() == [[12.0] + [0.0] * 31]
    apart = Packed(bytes.fromhex("01" + "00" * 15), np.full((128, 4), 128, np.uint8), None, "mxfp4", (1, 32),
                   layout="torch", scale_layout="cublas-128x4")
    assert apart.unpack().dequantize().tolist() == [[1.0] + [0.0] * 31]


def test_masks_are_codes_of_one_bit():
    mask = np.array([True, False, True, True])
    assert pack(mask, "onnx", 1).tolist() == [0b1101]
    assert unpack(b"\x0d", (4,), "onnx", 1).tolist() == [1, 0, 1, 1]


def test_bitsandbytes_fills_with_the_code_of_zero():
    codes = np.uint8([1, 2, 3])
    assert pack(codes, "bitsandbytes", fill=7).tolist() == [0x12, 0x37]
    q = refq.quantize(np.float32([1, 2, 3]), "binary4p2sf")
    zero = int(refq.encode(np.float32(0), "binary4p2sf"))
    assert q.pack("bitsandbytes").codes[-1] & 15 == zero


def test_nothing_is_shared_and_nothing_changes():
    for layout in ("onnx", "torch", "gguf", "hqq", "amd-preshuffle", "gptq", "cublas-128x4"):
        codes = np.random.default_rng(0).integers(0, 256, (16, 32), np.uint8)
        before = codes.copy()
        packed = pack(codes, layout, 8)
        back = unpack(packed, codes.shape, layout, 8)
        assert not np.may_share_memory(packed, codes) and not np.may_share_memory(back, packed)
        assert np.array_equal(codes, before)


# --- every part (PACK-10) and sparse codes (PACK-11) ------------------------------------------------------

BY_RULE = ("uint4_binary16_bfloat16_t32", "uint4_binary16_bfloat16_t32n2m4", "uint4_binary16_uint4_t16n2m4",
           "uint4_binary16_int8_t16x8", "nf4_binary32_t16n1m3", "cb42f1346_e2m3fnuz_e8m0_t32s8",
           "cb42f1346_e2m3fnuz_e8m0_t32n2m4", "e2m1_e8m0_t4x8s2x2o2", "e2m1_e8m0_t0x8", "e2m1_e8m0_t8x0n2m4",
           "int4_e4m0scale_t16s4o1", "e2m1_binary32_channeln3m5", "int3_binary32_tensorn3m4", "int4_ue5m3_t7")


@pytest.mark.parametrize("name", [*DATA_TYPES, *BY_RULE])
def test_every_data_type_comes_back(name):
    """All ways round, with NaN and zeros among the values, and not a bit more than BLOCK-12 counts but for
    the ends of the parts."""
    dtype, rng = data_type(name), np.random.default_rng(0)
    for shape in [(1,), (37,), (3, 70), (70, 3), (2, 5, 40), (33, 100)]:
        axes = list(range(len(shape)))
        if isinstance(dtype.tile, tuple):
            axes = [*axes, (1, 0), (0, len(shape) - 1)] if len(shape) > 1 else []
        for axis in axes:
            x = rng.standard_normal(shape).astype(np.float32)
            if x.size > 60:
                x.flat[3], x.flat[50:60] = np.nan, 0
            q = refq.quantize(x, dtype, axis)
            packed = q.pack()
            same(packed.unpack(), q)
            assert 0 <= 8 * packed.nbytes - q.bits_per_value * x.size <= 7 * (5 + len(q.offsets))


def test_scales_of_less_than_a_byte():
    """The rows of the table of PACK-10."""
    for name, tile, scales, want in [("b4int3", 4, [1, 2, 3, 15], "21 f3"),
                                     ("tt_bfp8_a", 16, [1, 31, 2], "e1 0b")]:
        codes = np.zeros((1, tile * len(scales)), np.uint8)
        q = Quantized(codes, np.uint8([scales]), data_type(name), codes.shape, 1, "ocp")
        assert q.pack().scales.tobytes() == bytes.fromhex(want)
        same(q.pack().unpack(), q)
        same(q.pack(scale_layout="msb-first").unpack(), q)


def test_offsets_zeros_and_tables_by_hand():
    mx9 = data_type("mx9")
    q = Quantized(np.zeros(32, np.uint8), np.uint8([127, 3]), mx9, (32,), 0, "ocp",
                  offsets=(np.uint8([1, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]),))
    packed = q.pack()
    assert [part.tobytes() for part in packed.offsets] == [bytes.fromhex("8d 80")]
    assert packed.scales.tobytes() == bytes.fromhex("7f 03")
    same(packed.unpack(), q)
    q = Quantized(np.uint8([[1, 2], [3, 4]]), np.uint16([[0x3C00, 0x4000]]), data_type("uint4"), (2, 2), 0,
                  "exact", zeros=np.uint8([[7, 9]]))
    packed = q.pack()
    assert (packed.zeros.tobytes(), packed.codes.tobytes()) == (b"\x97", b"\x21\x43")
    same(packed.unpack(), q)
    dtype = data_type("cb42f1346_e2m3fnuz_e8m0_t32")
    q = Quantized(np.zeros(160, np.uint8), np.uint8([127] * 5), dtype, (160,), 0, "ocp",
                  tables=np.uint8([3, 0, 1, 2, 1]))
    assert q.pack().tables.tobytes() == bytes.fromhex("93 01")
    same(q.pack().unpack(), q)


def test_only_kept_codes_are_stored():
    """A line of 10 at 2:4 keeps 2 + 2 + 2, the largest magnitudes in their order."""
    x = np.float32([[6, 1, -4, 0, 0, 1, 0, 2, 3, 4], [0, 0, 0, 0, 0, 0, 0, 0, 0, 6]])
    q = refq.quantize(x, "e2m1_e8m0_t16n2m4")
    packed = q.pack()
    assert packed.codes.tobytes() == bytes.fromhex("e7 42 65 00 00 70")
    assert packed.mask.tobytes() == bytes.fromhex("a5 cf 0c")
    assert q.bits_per_value * 20 == 12 * 4 + 2 * 8 + 20
    for layout in ("torch", "msb-first", "gguf-q4_0-qs", "amd-preshuffle"):
        for axis in (0, 1):
            other = refq.quantize(x, "e2m1_e8m0_t16n2m4", axis)
            same(other.pack(layout).unpack(), other)


def test_dropped_values_have_the_code_of_zero_again():
    """0 is where the zero point lies: code z, or z / s rounded (BLOCK-14)."""
    x = np.float32([[-4, -3, -2, 11], [1, 2, 3, 0.5]]).repeat(2, axis=1)
    for name in ("uint4_binary16_uint4_t4n2m4", "uint4_binary16_bfloat16_t4n2m4"):
        q = refq.quantize(x, name)
        assert set(q.codes[~q.mask].tolist()) != {0}
        same(q.pack().unpack(), q)


Q4 = refq.quantize(np.ones((2, 32), np.float32), "mxfp4")
SPARSE = refq.quantize(np.ones((2, 8), np.float32), "e2m1_e8m0_t8n2m4")
INT8 = refq.quantize(np.ones((2, 32), np.float32), "int8")
ONES = np.ones((2, 32), np.uint8)


def raw(data, dtype, scales=None, layout="onnx"):
    """32 values from bytes."""
    return Packed(data, scales, None, dtype, (32,), layout=layout)


@pytest.mark.parametrize("call, words", [
    (lambda: pack(ONES, "onyx", 4), "layout 'onyx' is not known; nearest names: onnx"),
    (lambda: pack(ONES, "!", 4), "layout '!' is not known; allowed are onnx, msb-first"),
    (lambda: pack(ONES, "onnx"), "several widths; say which bits: 1 to 64"),
    (lambda: pack(ONES, "gguf"), "say which bits: 4, 5, 8"),
    (lambda: pack(ONES, "bitsandbytes", 8), "'bitsandbytes' takes codes of 4 bits, not 8"),
    (lambda: pack(ONES, "onnx", True), "takes codes of 1 to 64 bits, not True"),
    (lambda: pack(ONES, "cublas-128x4", 4), "takes codes of 8 bits, not 4"),
    (lambda: pack(ONES, "gguf-mxfp4"), "stores scales and codes together: pack a Quantized"),
    (lambda: unpack(b"", (2,), "scale-first"), "stores scales and codes together"),
    (lambda: pack(ONES * 16, "torch", 4), "code 0x10 does not fit 4 bits"),
    (lambda: pack(ONES.astype(np.int8), "torch", 4), "unsigned codes, got an array of dtype int8"),
    (lambda: pack(ONES, "torch", 4, axis=2), r"axis 2 is not an axis of an array of shape \(2, 32\)"),
    (lambda: pack(ONES, "torch", 4, fill=16), "fill must be a code of 4 bits, 0 to 15, got 16"),
    (lambda: pack(Q4, "torch", 4), "has its own code width and axis"),
    (lambda: pack(Q4, "cublas-128x4"), "takes codes of 8 bits, not 4"),
    (lambda: INT8.pack("cublas-128x4"), "layout 'cublas-128x4' is for scales; give it as scale_layout"),
    (lambda: INT8.pack(scale_layout="cublas-128x4"), "takes codes of 8 bits, not 32"),
    (lambda: refq.quantize(np.ones(8), "e2m1").pack("scale-first"), "e2m1 has no scale"),
    (lambda: refq.quantize(np.ones(16), "nvfp4").pack("gguf-mxfp4"),
     "is for element e2m1, scale e8m0, tile 32; nvfp4 has scale ue4m3"),
    (lambda: unpack(b"12", (5,), "torch", 4), r"5 codes of 4 bits in the shape \(5,\) take 3 bytes, got 2"),
    (lambda: unpack(b"12", (2, 2), "cublas-128x4"), "take 512 bytes, got 2"),
    (lambda: unpack(b"12", (2, 2), "amd-preshuffle", 4), "take 512 bytes, got 2"),
    (lambda: unpack(b"12", None, "torch", 4), "needs the shape of the codes, .* got None"),
    (lambda: unpack(b"12", (-1,), "torch", 4), "a tuple of sizes from 0"),
    (lambda: unpack(np.float32([1]), (2,), "torch", 4), "bytes or an integer array, got dtype float32"),
    (lambda: unpack(Packed(b"12", None, None)), "needs dtype and shape"),
    (lambda: unpack(raw(b"1" * 16, "mxfp4")), "mxfp4 needs scales apart from its codes"),
    (lambda: unpack(raw(b"1" * 16, "e2m1", b"1")), "e2m1 has no scales apart from its codes"),
    (lambda: unpack(raw(b"1" * 16, "mxfp4", layout="gguf-mxfp4")), "take 17 bytes, got 16"),
    (lambda: SPARSE.pack("scale-first"), "has no place for a mask; e2m1_e8m0_t8n2m4 needs a layout of codes"),
    (lambda: refq.quantize(np.ones((2, 8)), "mx9").pack("scale-first"), "has no place for subtiles"),
    (lambda: refq.quantize(np.ones((2, 8)), "uint4").pack("scale-first"), "has no place for zero points"),
    (lambda: refq.quantize(np.ones((2, 8)), "mxfp4_16x16").pack("scale-last"), "tiles of two dimensions"),
    (lambda: replace(SPARSE, mask=~SPARSE.mask & False).pack(),
     "must keep 2 of every 4 values, 4 of a line of 8"),
    (lambda: replace(SPARSE, codes=SPARSE.codes | 1).pack(), r"must have the code of \+0 in their tile"),
    (lambda: unpack(replace(SPARSE.pack(), mask=None)), "needs mask apart from its codes"),
    (lambda: unpack(replace(SPARSE.pack(), mask=np.zeros(2, np.uint8))),
     "keeps 0 values, but there are codes of 8"),
    (lambda: unpack(replace(Q4.pack(), zeros=b"1")), "mxfp4 has no zeros apart from its codes"),
    (lambda: unpack(replace(Q4.pack(), offsets=(b"1",))), "mxfp4 has 0 levels of offsets, not 1"),
    (lambda: replace(Q4, scales=Q4.scales[:1]).pack("scale-first"), r"array of shape \(2, 1\), not \(1, 1\)"),
])
def test_layouts_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
