"""The data of stored tensors: in the model file, or in a data file at a location that the model names.

A stranger's model must not make refq read anything but what came with it. So a location is a relative path
to a regular file in the model's folder or below. Symbolic links are followed, and where they end decides: in
that folder, or in the one where the model file itself really is (the cache of a model hub is a folder of
links into a store). A file with more hard links is refused, because where the others lie cannot be known.
Offset and length are checked against the file, and against shape and type.
"""

import math
import mmap
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from refq.errors import InputError

PIECE = 1 << 20     # bytes that are copied at a time
# Types whose values share bytes; all others take whole ones.
BITS = {getattr(TensorProto, kind): bits for kind, bits in (
    ("INT2", 2), ("UINT2", 2), ("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("FLOAT6E2M3", 6),
    ("FLOAT6E3M2", 6)) if hasattr(TensorProto, kind)}
DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data",
               "external_data")


@dataclass(frozen=True)
class Folder:
    """Where the data files of a model may lie. path: the folder that locations start from, "" for none.
    model: the real path of the model file, "" if there is none."""

    path: str
    model: str = ""

    @classmethod
    def of(cls, model_path) -> "Folder":
        return cls(str(Path(model_path).parent), os.path.realpath(model_path))

    def __str__(self) -> str:
        return self.path

    def __fspath__(self) -> str:
        return self.path

    @property
    def roots(self) -> tuple[str, ...]:
        """The real paths of the folders in which data files may lie."""
        roots = (os.path.realpath(self.path), *([os.path.dirname(self.model)] if self.model else []))
        return tuple(dict.fromkeys(roots))


def is_external(tensor: TensorProto) -> bool:
    """Whether the data is at another place than in the tensor."""
    return tensor.data_location == TensorProto.EXTERNAL


def byte_size(tensor: TensorProto) -> int:
    """Bytes of a tensor's values, by its shape and type. Raises InputError where these say no size."""
    with _reading(tensor):
        return _byte_size(tensor)


def array_of(tensor: TensorProto, directory) -> np.ndarray:
    """The values of a stored tensor, read-only, in the dtypes of onnx.numpy_helper.to_array.

    directory: the Folder of the model, or a path ("" for a model that is in no file). External data of whole
    bytes is mapped into memory, not read. Raises InputError, naming the tensor, for data that is missing, cut
    short, of another size than the shape and type say, or at a location that is not allowed.
    """
    with _reading(tensor):
        if is_external(tensor):
            with _opened(tensor, directory) as (file, offset):
                array = _values(tensor, _mapped(file, offset, _byte_size(tensor)))
        elif tensor.HasField("raw_data"):
            array = _values(tensor, np.frombuffer(tensor.raw_data, np.uint8))
        else:
            array = numpy_helper.to_array(tensor)
        array.setflags(write=False)
        return array


def pieces(tensor: TensorProto, directory) -> Iterator[bytes]:
    """The bytes of a tensor as files keep them (little-endian, packed), external data in pieces of at most
    PIECE bytes. Raises InputError as array_of does."""
    with _reading(tensor):
        if is_external(tensor):
            with _opened(tensor, directory) as (file, offset):
                yield from read_pieces(file, offset, _byte_size(tensor))
        else:
            raw = tensor.HasField("raw_data")
            data = tensor.raw_data if raw else numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
            _require_length(tensor, len(data))
            yield data


def read_pieces(file, offset: int, length: int) -> Iterator[bytes]:
    """`length` bytes of an open file in pieces of at most PIECE. Raises ValueError where it ends before."""
    file.seek(offset)
    while length:
        piece = file.read(min(length, PIECE))
        if not piece:
            raise ValueError(f"its file ends {length} bytes before the data does")
        yield piece
        length -= len(piece)


def refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Let a tensor's data be the bytes of a file, in place of what it held or referred to."""
    for field in DATA_FIELDS:
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def reference(tensor: TensorProto) -> dict[str, str]:
    """What an external tensor says of its data: location, offset, length; as it stands there, unchecked."""
    return {entry.key: entry.value for entry in tensor.external_data}


def data_path(location: str, directory) -> Path:
    """The real path of the file at a location. Raises ValueError for one that is not allowed."""
    folder = directory if isinstance(directory, Folder) else Folder(str(directory))
    here, allowed = f"its location {location!r}", f"allowed is a file in {folder.path!r} or below"
    if not folder.path:
        raise ValueError(f"{here} starts from the model's file, and a ModelProto has none; give its path")
    if not location or "\0" in location or os.path.isabs(location) or PureWindowsPath(location).anchor:
        raise ValueError(f"{here} is no relative path; {allowed}")
    if os.path.normpath(location).split(os.sep)[0] == os.pardir:
        raise ValueError(f"{here} leads out of the model's folder; {allowed}")
    roots, real = folder.roots, Path(os.path.realpath(os.path.join(folder.path, location)))
    if not any(real.is_relative_to(root) for root in roots):
        raise ValueError(f"{here} is a link that leads to {str(real)!r}; allowed is a file in "
                         f"{' or '.join(map(repr, roots))} or below")
    return real


# -- the parts of reading ------------------------------------------------------------------------------------

@contextmanager
def _reading(tensor: TensorProto):
    """Turns what goes wrong into an InputError that names the tensor."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename or reference(tensor).get('location')!r}: {error.strerror}"
        raise InputError(f"the data of tensor {tensor.name!r} cannot be read: {reason}") from error
    except (ValueError, TypeError, OverflowError, onnx.checker.ValidationError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the data of tensor {tensor.name!r} cannot be read: {error}") from error


def _byte_size(tensor: TensorProto) -> int:
    if any(length < 0 for length in tensor.dims):
        raise ValueError(f"its shape is {list(tensor.dims)}; lengths are not negative")
    if tensor.data_type in BITS:
        return -(-math.prod(tensor.dims) * BITS[tensor.data_type] // 8)
    if tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        kind = TensorProto.DataType.Name(tensor.data_type)
        raise ValueError(f"its type is {kind}; data of numbers only can be external or raw")
    return math.prod(tensor.dims) * _dtype(tensor).itemsize


def _dtype(tensor: TensorProto) -> np.dtype:
    try:
        return helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise ValueError(f"the installed onnx knows no element type {tensor.data_type}") from None


def _require_length(tensor: TensorProto, length: int) -> None:
    if length != _byte_size(tensor):
        raise ValueError(f"it holds {length} bytes; it must be {_in_words(tensor)}")


def _in_words(tensor: TensorProto) -> str:
    kind = TensorProto.DataType.Name(tensor.data_type)
    return f"{_byte_size(tensor)} bytes, as its shape {list(tensor.dims)} of {kind} takes"


@contextmanager
def _opened(tensor: TensorProto, directory) -> Iterator[tuple]:
    """(the file that holds an external tensor, the offset there), everything checked on the open file."""
    location = reference(tensor).get("location", "")
    path = data_path(location, directory)
    if not path.is_file():
        raise ValueError(f"its location {location!r} is no file: {str(path)!r} " +
                         ("is something else" if path.exists() else "does not exist"))
    with open(path, "rb", buffering=0, opener=_open) as file:
        facts = os.fstat(file.fileno())
        _require_own_file(location, path, facts, directory)
        yield file, _offset(tensor, location, facts.st_size)


def _open(path: str, flags: int) -> int:
    """Of a path without links: one that has come in its place since is not followed, no pipe waited for."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _require_own_file(location: str, path: Path, facts: os.stat_result, directory) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError(f"its location {location!r} is no regular file")
    own = isinstance(directory, Folder) and str(path) == directory.model
    if facts.st_nlink > 1 and not own:
        raise ValueError(f"its location {location!r} is one of {facts.st_nlink} hard links to a file, the "
                         "others may lie anywhere; allowed is a file with one name: put a copy in its place")


def _offset(tensor: TensorProto, location: str, size: int) -> int:
    entries, needed = reference(tensor), _byte_size(tensor)
    numbers = {}
    for key, default in (("offset", 0), ("length", needed)):
        text = entries.get(key, str(default))
        if not (text.isascii() and text.isdigit()):
            raise ValueError(f"its {key} in {location!r} is {text!r}; allowed are whole numbers from 0 on")
        numbers[key] = int(text)
    if numbers["length"] != needed:
        raise ValueError(f"its length in {location!r} is {numbers['length']}; it must be {_in_words(tensor)}")
    if numbers["offset"] + needed > size:
        raise ValueError(f"its location {location!r} is a file of {size} bytes, cut short or another one; it "
                         f"must have from offset {numbers['offset']} on {_in_words(tensor)}")
    return numbers["offset"]


def _mapped(file, offset: int, length: int) -> np.ndarray:
    """Bytes of a file as a read-only array that the system reads when they are used, and may drop again."""
    if not length:
        return np.empty(0, np.uint8)
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    view = mmap.mmap(file.fileno(), offset - start + length, access=mmap.ACCESS_READ, offset=start)
    return np.frombuffer(view, np.uint8, length, offset - start)


def _values(tensor: TensorProto, data: np.ndarray) -> np.ndarray:
    """An array of a tensor's bytes as one of its values: a view of them where the type allows it."""
    if tensor.HasField("segment"):
        raise ValueError("it is a segment of a tensor, which ONNX does not use")
    _require_length(tensor, data.size)
    if tensor.data_type in BITS or sys.byteorder == "big":
        copy = TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=data.tobytes())
        return numpy_helper.to_array(copy)
    dtype = _dtype(tensor)
    if data.ctypes.data % dtype.itemsize:
        data = data.copy()
    return data.view(dtype).reshape(tuple(tensor.dims))
