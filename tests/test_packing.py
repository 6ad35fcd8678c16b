"""Codes as one little-endian stream of bits (PACK-1): bytes by hand, the inverse, and what is refused."""

import numpy as np
import pytest

import refq
from refq.blocks.packing import pack_codes, unpack_codes
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
