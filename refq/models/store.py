"""Activations of all calibration batches: in memory up to a limit, beyond it in files."""

import itertools
import tempfile
import threading
from pathlib import Path

import numpy as np

from refq.errors import InputError


class Store:
    """Arrays by key, of which at most `limit` bytes are in memory; used as a context manager.

    What does not fit when it is put goes to a file: all batches are met in turn, node after node, so that no
    choice of what to keep would be better. Values that are no arrays (sequences) stay in memory. Safe for
    several threads. `put` raises InputError where there is no room on the disk.
    """

    def __init__(self, limit: int, folder=None):
        self.limit, self.held, self.most, self.spilled = limit, 0, 0, 0
        self._folder, self._temporary = folder, None
        self._values, self._sizes = {}, {}
        self._lock, self._names = threading.Lock(), itertools.count()

    def __enter__(self) -> "Store":
        self._temporary = tempfile.TemporaryDirectory(prefix="refq-", dir=self._folder)
        return self

    def __exit__(self, *_):
        self._values.clear()
        self._temporary.cleanup()

    def __contains__(self, key) -> bool:
        return key in self._values

    def put(self, key, value) -> None:
        size = value.nbytes if isinstance(value, np.ndarray) else 0
        with self._lock:
            fits = self.held + size <= self.limit or not size or value.dtype.hasobject
            if fits:
                self.held += size
                self.most = max(self.most, self.held)
            else:
                self.spilled += size
        if not fits:
            path = Path(self._temporary.name, str(next(self._names)))
            try:
                np.ascontiguousarray(value).tofile(path)
            except OSError as error:
                raise InputError(
                    f"cannot keep activations ({size} bytes more, {self.spilled} in all) in a file of "
                    f"{str(path.parent)!r}: {error}. Allow more memory, or let TMPDIR say where there is room"
                ) from error
            value, size = _Spilled(path, value.dtype, value.shape), 0
        with self._lock:
            self._values[key], self._sizes[key] = value, size

    def get(self, key):
        value = self._values[key]
        return value.read() if isinstance(value, _Spilled) else value

    def drop(self, key) -> None:
        """Forget a value; one that is not there is none to forget."""
        with self._lock:
            value = self._values.pop(key, None)
            self.held -= self._sizes.pop(key, 0)
        if isinstance(value, _Spilled):
            value.path.unlink()


class _Spilled:
    """An array in a file."""

    def __init__(self, path: Path, dtype: np.dtype, shape: tuple[int, ...]):
        self.path, self.dtype, self.shape = path, dtype, shape

    def read(self) -> np.ndarray:
        return np.fromfile(self.path, self.dtype).reshape(self.shape)
