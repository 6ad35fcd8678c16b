"""Writing files whole or not at all."""

import os
import tempfile
from pathlib import Path

from refq.errors import InputError


def write_whole(path, content) -> None:
    """Write text (UTF-8) or bytes to a path: to a temporary name beside it first, then renamed over it.

    An existing file is never half-overwritten. Raises InputError when the folder is missing or not writable.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
