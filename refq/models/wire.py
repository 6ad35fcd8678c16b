"""Model files of any size in little memory: large tensors stay in the file when it is read, and come from
elsewhere when it is written.

A serialised message is a row of fields: a key (number and kind), then a value. Fields that hold messages have
their length before them, so that they are passed over without being read; and a tensor that grows changes the
lengths of all messages around it.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from refq.models.tensors import byte_size, is_external, refer

LARGE = 1 << 20     # bytes of a field from which on it is looked into when a model is read
DEEPEST = 100       # messages within each other, as in protobuf
# Messages that hold tensors somewhere, by way of each other.
BEARERS = frozenset("""ModelProto GraphProto NodeProto AttributeProto FunctionProto TrainingInfoProto
                       SparseTensorProto TensorProto""".split())
RAW = TensorProto.RAW_DATA_FIELD_NUMBER
_BYTES = 2          # the kind of fields with a length


def read(path) -> onnx.ModelProto:
    """The model in a file, its large raw tensors as external data at their place in that file.

    Raises DecodeError for a file that is no serialised ModelProto.
    """
    with open(path, "rb") as file:
        if not file.seek(0, 2):
            return onnx.ModelProto()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return onnx.ModelProto.FromString(
                _without(data, 0, len(data), onnx.ModelProto.DESCRIPTOR, Path(path).name))


def parts(model: bytes) -> list[bytes | TensorProto]:
    """A serialised model with the data of its external tensors in it: what to write one after the other.

    Of a TensorProto its data comes there; it says where it is found.
    """
    return _within(model, 0, len(model), onnx.ModelProto.DESCRIPTOR)[0]


def _without(data, start: int, end: int, message, location: str, depth: int = 0) -> bytes:
    """A message whose large raw tensors refer to where they are."""
    if depth > DEEPEST:
        raise DecodeError(f"more than {DEEPEST} messages within each other")
    out, kept = bytearray(), start
    for number, first, body, stop in _fields(data, start, end):
        inner = _bearer(message, number)
        if stop - body < LARGE:
            continue
        if message is TensorProto.DESCRIPTOR and number == RAW:
            entry = TensorProto()
            refer(entry, location, body, stop - body)
            new = entry.SerializeToString()
        elif inner is not None:
            new = _field(number, _without(data, body, stop, inner, location, depth + 1))
        else:
            continue
        out += data[kept:first] + new
        kept = stop
    return bytes(out + data[kept:end])


def _within(data: bytes, start: int, end: int, message) -> tuple[list, int]:
    """(the parts of a message, its length)"""
    if message is TensorProto.DESCRIPTOR:
        return _whole_tensor(TensorProto.FromString(data[start:end]))
    made, length, kept = [], 0, start
    for number, first, body, stop in _fields(data, start, end):
        inner = _bearer(message, number)
        if inner is None or data.find(b"location", body, stop) < 0:   # the key that all external data has
            continue
        inside, size = _within(data, body, stop, inner)
        head = data[kept:first] + _head(number, size)
        made += [head, *inside]
        length += len(head) + size
        kept = stop
    return [*made, data[kept:end]], length + end - kept


def _whole_tensor(tensor: TensorProto) -> tuple[list, int]:
    if not is_external(tensor):
        data = tensor.SerializeToString(deterministic=True)
        return [data], len(data)
    bare = TensorProto()
    bare.CopyFrom(tensor)
    for field in ("external_data", "data_location"):
        bare.ClearField(field)
    size = byte_size(tensor)
    head = bare.SerializeToString(deterministic=True) + _head(RAW, size)
    return [head, tensor], len(head) + size


def _bearer(message, number: int):
    """The kind of message in a field, None where it holds no tensor."""
    field = message.fields_by_number.get(number)
    inner = field.message_type if field else None
    return inner if inner is not None and inner.name in BEARERS else None


def _fields(data, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, where the field starts, where its value starts, where it ends) of every field of a message."""
    while start < end:
        key, body = _varint(data, start, end)
        kind, stop = key & 7, body
        if kind == 0:
            _, stop = _varint(data, body, end)
        elif kind in (1, 5):
            stop = body + (8 if kind == 1 else 4)
        elif kind == _BYTES:
            length, body = _varint(data, body, end)
            stop = body + length
        else:
            raise DecodeError(f"a field of kind {kind} at byte {start}")
        if stop > end:
            raise DecodeError(f"the field at byte {start} ends at {stop}, beyond what holds it ({end})")
        yield key >> 3, start, body, stop
        start = stop


def _varint(data, start: int, end: int) -> tuple[int, int]:
    """(number, where it ends): seven bits in a byte, the lowest first, the eighth says that more follow."""
    value = 0
    for at in range(start, min(end, start + 10)):
        value |= (data[at] & 127) << 7 * (at - start)
        if data[at] < 128:
            return value, at + 1
    raise DecodeError(f"a number at byte {start} does not end")


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _head(number: int, length: int) -> bytes:
    return _number(number << 3 | _BYTES) + _number(length)


def _field(number: int, value: bytes) -> bytes:
    return _head(number, len(value)) + value
