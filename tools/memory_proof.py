"""Calibration data does not need memory: the peak of `refq quantize` with N and with 16 N sequences.

    python tools/memory_proof.py --work work/memory

quantises glassllm (tools/real_models.py makes the files) by error diffusion in a process of its own, once
with each amount of data, and prints the most memory that was resident in both. Exit code 1 if it grows by
more than the bar.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMES = 16
BAR = 0.10                  # by how much the peak may grow
UNIT = 1 if sys.platform == "darwin" else 1024      # bytes, of ru_maxrss


def data(folder: Path, sequences: int) -> None:
    """Write glassllm with so many sequences of calibration data."""
    if not (folder / "calibration.npz").exists():
        tool = ROOT / "tools" / "real_models.py"
        subprocess.run([sys.executable, tool, "glassllm", "-o", folder, "--sequences", str(sequences)],
                       check=True, stdout=subprocess.DEVNULL)


def peak(command, folder: Path) -> tuple[float, float]:
    """(most resident bytes, seconds) of a command. A child counts what its parent had when it was made, so
    that this one imports nothing large."""
    began = time.perf_counter()
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"memory_proof: quantising {folder} failed with exit code {child.returncode}")
    return usage.ru_maxrss * UNIT, time.perf_counter() - began


def measure(folder: Path, options) -> float:
    """The peak of one run, printed."""
    command = [sys.executable, "-m", "refq", "quantize", folder / "model.onnx", "-o", folder / "out.onnx",
               "--method", options.method, "--dtype", options.dtype, "--memory", options.memory,
               "--workers", options.workers, "--calibration", folder / "calibration.npz", "--batch", options.batch]
    most, seconds = peak(list(map(str, command)), folder)
    print(f"{folder.name:>5} sequences: {most / 2 ** 20:.1f} MiB at most, {seconds:.0f} s", flush=True)
    return most


def arguments(argv):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = options.add_argument
    add("--sequences", type=int, default=64, help=f"N (default 64); {TIMES} N are tried beside it")
    add("--method", default="ed")
    add("--dtype", default="mxfp4")
    add("--memory", default="32M", help="for activations (default 32M)")
    add("--batch", default="8", help="sequences at a time (default 8)")
    add("--workers", default="1", help="threads (default 1: with more, peaks differ by a tenth from run to run)")
    add("--work", type=Path, default=ROOT / "build" / "memory_proof", help="folder for models and data")
    return options.parse_args(argv)


def main(argv=None) -> int:
    """Exit code 0; 1 when the peak grows too much."""
    options = arguments(argv)
    peaks = []
    for sequences in (options.sequences, TIMES * options.sequences):
        folder = options.work.resolve() / str(sequences)
        data(folder, sequences)
        peaks.append(measure(folder, options))
    growth = peaks[1] / peaks[0] - 1
    print(f"{TIMES} times the data: {100 * growth:+.1f} % of memory (bar {100 * BAR:.0f} %), "
          + ("PASS" if growth < BAR else "FAIL"))
    return 0 if growth < BAR else 1


if __name__ == "__main__":
    sys.exit(main())
