"""Speed, side by side with peers in one process and one thread: `python tools/bench.py [--size 24]`.

Every row times refq and each installed peer in turn, round by round, on the same array, so that a drifting
machine moves both. A time is the best round, the one least disturbed; a ratio is peer / refq of those. Peers
(ml_dtypes, gfloat, torch) are optional.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np

import refq
from refq.formats.table import columns

# What each format is called elsewhere: (refq, ml_dtypes, torch, gfloat)
FORMATS = [
    ("e4m3fn", "float8_e4m3fn", "float8_e4m3fn", "ocp_e4m3"),
    ("e5m2", "float8_e5m2", "float8_e5m2", "ocp_e5m2"),
    ("e4m3fnuz", "float8_e4m3fnuz", "float8_e4m3fnuz", None),
    ("e2m3", "float6_e2m3fn", None, "ocp_e2m3"),
    ("e2m1", "float4_e2m1fn", None, "ocp_e2m1"),
    ("bfloat16", "bfloat16", "bfloat16", "bfloat16"),
]
BLOCKS = ("mxfp4", "mxfp8", "mxfp6", "mxint8", "nvfp4", "int4", "int8")
# Data types with more than tiles along one axis: (the plain type of the same element, most times its time)
PLAIN = {"mxfp4_32x32": ("mxfp4", 3), "mxfp4_16x16": ("mxfp4", 3), "mxfp8_e4m3_32x32": ("mxfp8_e4m3", 3),
         "nvfp4_16x16": ("nvfp4", 3), "fp8_128x128": ("fp8_1x128", 3), "mx9": ("msfp16", 3), "mx6": ("msfp13", 3),
         "mx4": ("smint3f1_e8m0_t16", 3), "smint8f6_e8m0_t32s8o2": ("smint8f6_e8m0_t32", 3),
         "hif4": ("msfp12", 3), "nf4_t64": ("int4_binary32_t64", 10), "bnb_fp4_t64": ("int4_binary32_t64", 10),
         "cb42f1346": ("mxfp4", 10), "cb41fi": ("mxfp4", 10)}
BARS = {("encode", "ml_dtypes"): 6, ("encode", "gfloat"): 40, ("decode", "ml_dtypes"): 7}
DIFFUSED = ("mxfp4", "int4", "nvfp4")       # coded by error diffusion from Gram matrices; the bar is the first's
SIDE, PRODUCTS = 4096, 2.5          # of a weight; times one float64 product of that size that its codes may take
LAYER_SIDE, LAYER_ROWS = 1024, 2000         # of a layer whose Gram matrices are part of the time
BAR_PRECISION = 6           # the bars are for formats of at most so many significant bits
GFLOAT_SIZE, GFLOAT_ROUNDS = 1 << 19, 2     # gfloat is slow: fewer values and rounds, compared per value


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=24, help="log2 of the number of values (default 24)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each row (default 15)")
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    x = np.random.default_rng(0).standard_normal(1 << options.size, dtype=np.float32)
    rounds = options.rounds
    rows = [*encode_rows(x, rounds), *decode_rows(x.size, rounds), *block_rows(x, rounds), *diffusion_rows()]
    print(f"2^{options.size} values, one thread, {rounds} rounds; best ns per value, ratios peer / refq\n")
    print(text(rows))
    print(f"\nimport refq beyond numpy: {import_seconds():.3f} s (bar 0.150)")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
    return 0 if all(row["met"] is not False for row in rows) else 1


def encode_rows(x, rounds):
    few = x[:GFLOAT_SIZE].astype(np.float64)
    for name, mld, torch_name, gf in FORMATS:
        out = np.empty(x.shape, refq.encode(x[:1], name).dtype)
        yield measure("encode", name, x.size, lambda: refq.encode(x, name, out=out), {
            "ml_dtypes": peer_mld(mld, lambda kind: lambda: x.astype(kind)),
            "torch": peer_torch(torch_name, lambda torch, kind: _torch_cast(torch, x, kind)),
            "gfloat": peer_gfloat(gf, lambda gfloat, info: _gfloat_encode(gfloat, few, info)),
        }, rounds)


def decode_rows(size, rounds):
    rng = np.random.default_rng(1)
    for name, mld, torch_name, gf in FORMATS:
        row = refq.number_format(name)
        if row.width > 8:
            continue
        codes = rng.integers(0, 1 << row.width, size, dtype=np.uint8)
        out = np.empty(size, np.float32)
        yield measure("decode", name, size, lambda: refq.decode(codes, name, out=out), {
            "ml_dtypes": peer_mld(mld, lambda kind: lambda: codes.view(kind).astype(np.float32)),
            "torch": peer_torch(torch_name, lambda torch, kind: _torch_back(torch, codes, kind)),
            "gfloat": peer_gfloat(gf, lambda gfloat, info: _gfloat_decode(gfloat, codes, info)),
        }, rounds)


def block_rows(x, rounds):
    blocks = x.reshape(-1, 4096) if x.size >= 4096 else x.reshape(1, -1)
    for name in BLOCKS:
        yield measure("quantise", name, x.size, lambda: refq.quantize(blocks, name), {}, rounds)
        q = refq.quantize(blocks, name)
        yield measure("dequantise", name, x.size, q.dequantize, {}, rounds)
    for name, (plain, most) in PLAIN.items():
        yield measure("quantise", name, x.size, lambda: refq.quantize(blocks, name),
                      {"plain": lambda: refq.quantize(blocks, plain)}, rounds, {"plain": 1 / most})


def diffusion_rows(rounds=2):
    """Error diffusion of a weight from Gram matrices beside one product; of a smaller layer, sums included."""
    rng = np.random.default_rng(2)
    w, x = (rng.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2))
    gram, square = refq.Gram.of(x), w.astype(np.float64)
    for name in DIFFUSED:
        yield measure("diffuse", name, w.size, lambda: refq.diffuse_gram(w, gram, name, errors=False),
                      {"product": lambda: square @ square}, rounds,
                      {"product": 1 / PRODUCTS} if name == DIFFUSED[0] else {})
    w, x = w[:LAYER_SIDE, :LAYER_SIDE].copy(), x[:LAYER_ROWS, :LAYER_SIDE].copy()
    yield measure("sum up, diffuse", "mxfp4", w.size, lambda: refq.diffuse(w, x, dtype="mxfp4", errors=False), {},
                  rounds)


def measure(what, name, size, ours, peers, rounds, bars=None):
    """One row: best ns per value of refq and each peer, their ratios, bars (by default those of BARS)."""
    peers = {peer: run for peer, run in peers.items() if run is not None}
    counts = {peer: min(size, GFLOAT_SIZE) if peer == "gfloat" else size for peer in peers}
    seconds = {"refq": []} | {peer: [] for peer in peers}
    for run in (ours, *peers.values()):
        run()
    for number in range(rounds):
        seconds["refq"].append(clock(ours) / size)
        for peer, run in peers.items():
            if peer != "gfloat" or number < GFLOAT_ROUNDS:
                seconds[peer].append(clock(run) / counts[peer])
    best = {who: min(times) * 1e9 for who, times in seconds.items()}
    ratios = {peer: best[peer] / best["refq"] for peer in peers}
    if bars is None:
        bars = {peer: bar for (kind, peer), bar in BARS.items() if kind == what and peer in peers
                and refq.number_format(name).precision <= BAR_PRECISION}
    met = all(ratios[peer] >= bar for peer, bar in bars.items()) if bars else None
    return {"what": what, "name": name, "ns": best, "ratios": ratios, "bars": bars, "met": met}


def clock(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peer_mld(name, make):
    try:
        import ml_dtypes
    except ImportError:
        return None
    return make(getattr(ml_dtypes, name))


def peer_torch(name, make):
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    return make(torch, getattr(torch, name)) if name else None


def peer_gfloat(name, make):
    try:
        import gfloat
        from gfloat import formats
    except ImportError:
        return None
    return make(gfloat, getattr(formats, f"format_info_{name}")) if name else None


def _torch_cast(torch, x, kind):
    tensor = torch.from_numpy(x)
    return lambda: tensor.to(kind)


def _torch_back(torch, codes, kind):
    tensor = torch.from_numpy(codes).view(kind)
    return lambda: tensor.to(torch.float32)


def _gfloat_encode(gfloat, few, info):
    return lambda: gfloat.encode_ndarray(info, gfloat.round_ndarray(info, few))


def _gfloat_decode(gfloat, codes, info):
    few = codes[:GFLOAT_SIZE]
    return lambda: gfloat.decode_ndarray(info, few)


def import_seconds():
    """Time `import refq` adds to an interpreter that has numpy: best of five, each in a fresh process."""
    code = "import numpy, time; t = time.perf_counter(); import refq; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    with tempfile.TemporaryDirectory() as compiled:             # as installed packages are
        setting = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        runs = [subprocess.run(command, capture_output=True, text=True, check=True, env=setting) for _ in range(6)]
    return min(float(run.stdout) for run in runs)


def text(rows):
    peers = ("ml_dtypes", "torch", "gfloat", "plain", "product")
    lines = [("", "", "refq ns", *(f"{peer} ns" for peer in peers), *(f"/{peer}" for peer in peers), "bars")]
    for row in rows:
        bars = ", ".join(f">= {bar}x {peer}" if bar >= 1 else f"<= {1 / bar:.2g} times {_beside(row, peer)}"
                         for peer, bar in row["bars"].items())
        verdict = {True: f"met: {bars}", False: f"BELOW: {bars}", None: ""}[row["met"]]
        times = [f"{row['ns'][peer]:.2f}" if peer in row["ns"] else "-" for peer in ("refq", *peers)]
        ratios = [f"{row['ratios'][peer]:.2g}x" if peer in row["ratios"] else "-" for peer in peers]
        lines.append((row["what"], row["name"], *times, *ratios, verdict))
    return columns(lines, right=range(2, 3 + 2 * len(peers)))


def _beside(row, peer):
    """What a row that may take longer is held against, in words."""
    return f"a float64 product of {SIDE}^3" if peer == "product" else PLAIN[row["name"]][0]


if __name__ == "__main__":
    sys.exit(main())
