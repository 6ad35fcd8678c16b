"""Reading arrays; writing files whole or not at all."""

import os
import stat
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from refq.errors import InputError


def load_arrays(path) -> dict[str, np.ndarray]:
    """The arrays of an .npy or .npz file by name ("" for .npy's).

    Raises InputError for a file that is none, is cut short, holds pickled objects or no number.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        single = isinstance(loaded, np.ndarray)
        arrays = {"": loaded} if single else {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"cannot read arrays from {path}: {error}") from None
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu" or not array.size:
            raise InputError(f"{path}: array {name!r} of dtype {array.dtype} and shape {array.shape} "
                             "holds no numbers")
    if not arrays:
        raise InputError(f"{path} holds no array")
    return arrays


def write_whole(path, content) -> None:
    """Write text (UTF-8) or bytes to a path: to a temporary name beside it first, then renamed over it.

    An existing file is never half-overwritten, and keeps its rights; links are followed; what is no regular
    file (a pipe, /dev/null) is written to. Raises InputError when the place is missing or not writable.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode if target.exists() else None
        if mode is None or stat.S_ISREG(mode):
            _replace(target, data, 0o666 & ~_umask() if mode is None else stat.S_IMODE(mode))
        else:
            target.write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _replace(target: Path, data: bytes, mode: int) -> None:
    handle, temporary = tempfile.mkstemp(prefix=".refq-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
