"""The data of new tensors on disk instead of in memory, until the model that they belong to is written."""

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnx import TensorProto

from refq.errors import InputError
from refq.models import tensors
from refq.models.tensors import byte_size, is_external, read_pieces, refer, reference

EXTERNAL_FROM = 1024          # bytes; smaller tensors stay in the model file, and in memory


class Spool:
    """Takes the data of tensors into one temporary file beside `target` (None: where temporary files go).

    Used as a context manager. The file has no name where the system can do that, and is gone when the block
    ends, however it ends. What it has taken says so by a location that no one can guess: a model from outside
    cannot refer to it. `files` resolves it, and nothing of it reaches a file.
    """

    def __init__(self, target=None):
        self._folder = None if target is None else Path(target).parent
        self._location = f"refq-spool-{secrets.token_hex(16)}"
        self._file = None

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()

    def take(self, stored: list[TensorProto]) -> None:
        """Replace, in the list, tensors of EXTERNAL_FROM bytes and more by such as refer to this spool.

        New objects, since a TensorProto keeps the memory of what it once held. Raises InputError when there
        is no room on the disk.
        """
        for position, tensor in enumerate(stored):
            if tensor.HasField("raw_data") and byte_size(tensor) >= EXTERNAL_FROM:
                stored[position] = self._taken(tensor)

    def holds(self, tensor: TensorProto) -> bool:
        return is_external(tensor) and reference(tensor).get("location") == self._location

    def pieces(self, tensor: TensorProto, directory) -> Iterator[bytes]:
        """The bytes of any tensor, in pieces: taken ones from here, all others by tensors.pieces."""
        if not self.holds(tensor):
            return tensors.pieces(tensor, directory)
        return read_pieces(self._file, int(reference(tensor)["offset"]), byte_size(tensor))

    def _taken(self, tensor: TensorProto) -> TensorProto:
        data = tensor.raw_data
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix=".refq-", dir=self._folder)
            offset = self._file.seek(0, 2)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            folder = str(self._folder or tempfile.gettempdir())
            raise InputError(f"cannot keep the new weight {tensor.name!r} ({len(data)} bytes) in a temporary "
                             f"file in {folder!r}: {error.strerror}") from error
        taken = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        refer(taken, self._location, offset, len(data))
        return taken
