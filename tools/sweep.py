"""Digests of a cast over all 2^32 float32 operands, in 256 blocks of 2^24: a conformance set without a file
of vectors.

    python tools/sweep.py e4m3fn                                     rne, sat ->
    vectors/sweeps/encode/f32-e4m3fn/rne-sat.json python tools/sweep.py e5m2 --round rtz --overflow nonsat -o
    x.json python tools/sweep.py e4m3fn --check                             recompute some blocks and compare
    with the file python tools/sweep.py e4m3fn --device ./libmine.so:encode        the digests of a C
    function: void f(const float *, uint8_t *, size_t)

Block b holds the results for the operand codes b * 2^24 to (b + 1) * 2^24 - 1 in order, each code one byte
(two bytes, little endian, for formats wider than 8 bits); its digest is the SHA-256 of those bytes. Equal
digests mean 2^32 equal results; a differing one names the block to search. An interrupted run continues where
it stopped. Spec: VEC-14.
"""

import argparse
import ctypes
import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import refq  # noqa: E402
from refq.formats.policies import overflow_rule, rounding_rule  # noqa: E402
from refq.vectors.vec import short_name  # noqa: E402

BLOCKS, SIZE = 256, 1 << 24
PART = 1 << 20          # operands at a time
# blocks that --check recomputes: zeros, values around 1, NaNs, both signs
SAMPLE = (0, 59, 63, 67, 127, 128, 191, 255)


def block_digest(block: int, cast) -> str:
    """SHA-256 of the results of one block; cast: float32 array -> code array."""
    digest = hashlib.sha256()
    for start in range(block * SIZE, (block + 1) * SIZE, PART):
        codes = cast(np.arange(start, start + PART, dtype=np.uint32).view(np.float32))
        digest.update(codes.astype(codes.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def refq_cast(row, rounding: str, overflow: str):
    """refq's own cast of a float32 array."""
    out = np.empty(PART, refq.encode(np.float32([0]), row, rounding, overflow).dtype)
    return lambda x: refq.encode(x, row, rounding, overflow, out=out)


def library_cast(where: str, row):
    """The cast of a shared library, named FILE:FUNCTION."""
    path, _, name = where.rpartition(":")
    function = getattr(ctypes.CDLL(path), name)
    out = np.empty(PART, np.uint8 if row.width <= 8 else np.uint16)

    def cast(x):
        function(x.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p),
                 ctypes.c_size_t(x.size))
        return out
    return cast


def sweep(facts: dict, cast, path: Path) -> dict:
    """Compute the missing digests of a sweep file, saving after every block."""
    found = json.loads(path.read_text()) if path.exists() else {}
    digests = found.get("sha256", []) if {key: found.get(key) for key in facts} == facts else []
    for block in tqdm(range(len(digests), BLOCKS), initial=len(digests), total=BLOCKS, unit="block",
                      disable=None):
        digests.append(block_digest(block, cast))
        save(path, facts | {"sha256": digests})
    return facts | {"sha256": digests}


def save(path: Path, data: dict) -> None:
    """Write a sweep file as a whole, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {key: value for key, value in data.items() if key != "sha256"}
    head = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items())
    body = ",\n".join(f"  {json.dumps(digest)}" for digest in data["sha256"])
    part = path.with_suffix(".part")
    part.write_text(f"{{\n{head},\n \"sha256\": [\n{body}\n ]\n}}\n")
    os.replace(part, path)


def compare(digests: list[str], cast, blocks) -> list[int]:
    """The blocks whose recomputed digest differs."""
    return [block for block in tqdm(blocks, unit="block", disable=None)
            if block_digest(block, cast) != digests[block]]


def arguments(argv):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("format")
    options.add_argument("--round", default="rne")
    options.add_argument("--overflow", default="sat")
    options.add_argument("-o", "--output", type=Path)
    options.add_argument("--check", action="store_true",
                         help="recompute a sample of blocks of an existing file")
    options.add_argument("--all", action="store_true", help="with --check: every block")
    options.add_argument("--device", metavar="LIBRARY:FUNCTION",
                         help="judge a C function against an existing file instead")
    return options.parse_args(argv)


def main(argv=None) -> int:
    """Exit code 0; 1 when a recomputed block or the device differs; 2 for bad input."""
    options = arguments(argv)
    try:
        row = refq.number_format(options.format)
        if row.width > 16:
            raise refq.InputError(f"{row.name} has {row.width} bits; sweeps end at 16")
        rounding_rule(options.round), overflow_rule(options.overflow)
        cast = refq_cast(row, options.round, options.overflow)
        name = f"encode/f32-{short_name(row)}/{options.round}-{options.overflow}"
        path = options.output or ROOT / "vectors" / "sweeps" / f"{name}.json"
        if not options.check and not options.device:
            sweep({"sweep": 1, "name": name, "blocks": BLOCKS, "operands_per_block": SIZE,
                   "license": "CC0-1.0"}, cast, path)
            return 0
        digests = json.loads(path.read_text())["sha256"]
        if options.device:
            cast = library_cast(options.device, row)
        blocks = range(BLOCKS) if options.all or options.device else SAMPLE
        wrong = compare(digests, cast, blocks)
    except (refq.InputError, OSError, AttributeError) as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    print(f"{len(blocks)} blocks, {len(wrong)} differ"
          + "".join(f"\n  operands {block << 24:08x} to {(block << 24) + SIZE - 1:08x}"
                                                                  for block in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
