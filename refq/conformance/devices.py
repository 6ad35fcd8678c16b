"""Devices under test: a command behind a pipe, a Python callable, a file of results; and refq itself.

A device reads the header line and then operand lines, and answers every operand line with
`operands_results`, in order. Spec: CHECK-1, CHECK-2.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from refq.errors import InputError
from refq.vectors.sets import answer
from refq.vectors.vec import Header, VectorSet, join, pattern, split_columns

TAIL = 2000         # characters of a device's error output that are kept
GRACE = 2.0         # seconds for the pipes to run dry once the command has ended
BATCH = 4096        # operand lines refq's own device takes at a time


@dataclass(frozen=True)
class Run:
    """What a device gave back: its lines, and why that is no run if it is none."""

    device: str
    lines: list[str]
    problem: str = ""
    errors: str = ""        # the end of its error output


@dataclass(frozen=True)
class Pipe:
    """Any command: header and operands on its standard input, answers on its standard output.

    command: a shell command line. timeout: seconds for the whole run. The command may answer line by line or
    all at the end; one that ends early, hangs, fails or floods its output makes no run, and never a hang.
    """

    command: str
    timeout: float = 600.0

    def run(self, vectors: VectorSet) -> Run:
        """Spec: CHECK-2."""
        text = vectors.operand_lines()
        limit = 4 * len(vectors.text()) + (1 << 20)
        process = subprocess.Popen(self.command, shell=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, start_new_session=True)
        flood = threading.Event()
        output, errors = bytearray(), bytearray()
        threads = [threading.Thread(target=_feed, args=(process, text.encode("ascii")), daemon=True),
                   threading.Thread(target=_drain, args=(process, output, limit, flood), daemon=True),
                   threading.Thread(target=_keep_tail, args=(process.stderr, errors), daemon=True)]
        for thread in threads:
            thread.start()
        problem = self._wait(process, flood, limit)
        deadline = time.monotonic() + GRACE
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in threads):       # something it started still holds a pipe
            _kill(process)
            for thread in threads:
                thread.join()
        for stream in (process.stdout, process.stderr):
            stream.close()
        return Run(self.command, output.decode("utf-8", "replace").splitlines(), problem,
                   bytes(errors).decode("utf-8", "replace").strip())

    def _wait(self, process, flood, limit) -> str:
        """Wait for the end of the command; the reason when it did not end well."""
        try:
            status = process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            _kill(process)
            return f"the device did not finish within {self.timeout:g} seconds"
        if flood.is_set():
            return f"the device printed more than {limit} bytes and was stopped"
        if status < 0 or status > 128:      # a shell adds 128
            return f"the device died of signal {-status if status < 0 else status - 128}"
        return f"the device ended with status {status}" if status else ""


def _kill(process) -> None:
    """End a command and whatever it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


def _feed(process, data: bytes) -> None:
    for step in (lambda: process.stdin.write(data), process.stdin.close):
        try:
            step()
        except OSError:
            pass                # the device stopped reading; its answers tell the rest


def _drain(process, output: bytearray, limit: int, flood) -> None:
    while part := process.stdout.read1(1 << 16):
        output += part
        if len(output) > limit:
            flood.set()
            _kill(process)
            return


def _keep_tail(stream, tail: bytearray) -> None:
    while part := stream.read1(1 << 14):
        tail += part
        del tail[:-TAIL]


@dataclass(frozen=True)
class Call:
    """A Python function: operand columns as unsigned code arrays in, result columns out.

    function: called once with the operand columns, each of shape (n,) or (n, count) (Spec: VEC-3);
    `.view(numpy.float32)` turns f32 codes into numbers. It returns one integer array, or a tuple of them for
    several result fields.
    """

    function: Callable
    name: str = ""

    def run(self, vectors: VectorSet) -> Run:
        name = self.name or getattr(self.function, "__name__", "function")
        try:
            results = self.function(*(column.copy() for column in vectors.operands))
        except Exception as error:      # whatever the device raises is its answer
            return Run(name, [], f"the function raised {type(error).__name__}: {error}")
        fields = vectors.header.result_fields
        columns = results if isinstance(results, tuple) else (results,)
        columns = [np.asarray(column) for column in columns]
        for column, golden, field in zip(columns, vectors.results, fields):
            if column.shape != golden.shape or column.dtype.kind not in "ui":
                return Run(name, [], f"the function gave {field} as {column.dtype} of shape {column.shape}; "
                                     f"expected unsigned integers of shape {golden.shape}")
            if column.size and (int(column.min()) < 0 or int(column.max()) >> field.width):
                problem = f"the function gave codes outside the {field.width} bits of {field.token}"
                return Run(name, [], problem)
        if len(columns) != len(fields):
            return Run(name, [], f"the function gave {len(columns)} result columns; expected {len(fields)}")
        return Run(name, [f"{a}_{b}" for a, b in zip(vectors.operand_texts(), join(fields, columns))])


@dataclass(frozen=True)
class Results:
    """A file of answers written by a simulator or script; `-` reads standard input."""

    path: str

    def run(self, vectors: VectorSet) -> Run:
        try:
            data = sys.stdin.buffer.read() if str(self.path) == "-" else Path(self.path).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from None
        return Run(str(self.path), data.decode("utf-8", "replace").splitlines())


def as_device(device):
    """A device from a command string, a callable, a path object, or a device already."""
    if hasattr(device, "run"):
        return device
    if callable(device):
        return Call(device)
    if isinstance(device, os.PathLike):
        return Results(str(device))
    if isinstance(device, str):
        return Pipe(device)
    raise InputError(f"{device!r} is not a device: give a command, a callable, a path or a device object")


def main_device(stdin, stdout) -> None:
    """refq as a device: read a header and operand lines, answer them with refq's own codec.

    stdin, stdout: text streams. Raises InputError for a header or operand line off the grammar.
    Spec: CHECK-1.
    """
    header = Header.parse(stdin.readline().rstrip("\n"))
    fields, number = header.operand_fields, 1
    shape = re.compile(pattern(fields))
    while lines := [line.rstrip("\n") for line in islice(stdin, BATCH)]:
        for number, line in enumerate(lines, number + 1):
            if not shape.fullmatch(line):
                raise InputError(f"line {number}: {line[:80]!r} is not an operand line of {header.name}")
        results = answer(header, split_columns(fields, lines))
        stdout.writelines(f"{a}_{b}\n" for a, b in zip(lines, join(header.result_fields, results)))
    stdout.flush()
