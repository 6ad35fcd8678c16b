"""Codes as bytes, and back (Spec: PACK-1)."""

from dataclasses import dataclass

import numpy as np

from refq.errors import InputError


@dataclass(frozen=True)
class Packed:
    """A quantised array as bytes: uint8 arrays of element codes and of scale codes (None where unscaled)."""

    codes: np.ndarray
    scales: np.ndarray | None
    tensor_scale: np.float32 | None


def pack_codes(codes, bits: int) -> np.ndarray:
    """Codes of `bits` bits as a little-endian bit stream over the whole array in row-major order, zero padded to bytes.

    codes: unsigned integer array below 2^bits, any shape. Returns a flat uint8 array of ceil(size * bits / 8).
    4-bit codes lie low nibble first, 2-bit codes four a byte, 6-bit codes four in three bytes. Spec: PACK-1.
    """
    flat = np.ascontiguousarray(codes).reshape(-1)
    _check(flat, bits)
    if bits in (8, 16, 32, 64):
        return flat.astype(f"<u{bits // 8}").view(np.uint8)
    if bits in (1, 2, 4):
        lanes = 8 // bits
        padded = np.zeros(-(-flat.size // lanes) * lanes, np.uint8)
        padded[: flat.size] = flat
        packed = padded[0::lanes].copy()
        for lane in range(1, lanes):
            packed |= padded[lane::lanes] << np.uint8(bits * lane)
        return packed
    stream = (flat[:, None] >> np.arange(bits, dtype=flat.dtype)) & flat.dtype.type(1)
    return np.packbits(stream.astype(np.uint8).reshape(-1), bitorder="little")


def unpack_codes(packed, bits: int, size: int) -> np.ndarray:
    """The first `size` codes of `bits` bits from a packed uint8 array: the inverse of `pack_codes` (flat).

    Raises InputError when the bytes are too few or too many.
    """
    packed = np.ascontiguousarray(packed, np.uint8).reshape(-1)
    if packed.size != -(-size * bits // 8):
        raise InputError(f"{size} codes of {bits} bits take {-(-size * bits // 8)} bytes, got {packed.size}")
    kind = np.dtype(next(f"u{n}" for n in (1, 2, 4, 8) if bits <= 8 * n))
    if bits in (8, 16, 32, 64):
        return packed.view(f"<u{bits // 8}").astype(kind)
    stream = np.unpackbits(packed, count=size * bits, bitorder="little").reshape(size, bits).astype(kind)
    return (stream << np.arange(bits, dtype=kind)).sum(axis=1, dtype=kind)


def _check(flat, bits: int):
    if flat.dtype.kind != "u" or not 1 <= bits <= 64:
        raise InputError(f"packing takes unsigned codes of 1 to 64 bits, got dtype {flat.dtype} and {bits} bits")
    if flat.size and bits < 8 * flat.itemsize and int(flat.max()) >> bits:
        raise InputError(f"code {int(flat.max()):#x} does not fit {bits} bits")
