"""ONNX files in and out: reading with errors that say what is wrong, writing that leaves no half file."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto, checker, helper, inliner, numpy_helper, version_converter

from refq.errors import InputError
from refq.models.graph import opset_of

EMBED_LIMIT = 1_500_000_000   # bytes of a model file; beyond it tensors go into a data file beside it
EXTERNAL_FROM = 1024          # smaller tensors stay in the model file
ALIGNMENT = 4096              # of every tensor in the data file, so that it can be mapped into memory
DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data",
               "external_data")
# Conversions by onnx.version_converter that change values: (operator, opset from which it does, which nodes).
# Found by running some 80 operators of opset 7 to 20 in onnxruntime before and after; all others agreed.
CONVERTER_WRONG = (
    ("Upsample", 10, lambda attributes: attributes.get("mode") == b"linear"),
    ("Resize", 11, lambda attributes: attributes.get("mode") == b"linear"),
    ("Hardmax", 13, lambda attributes: attributes.get("axis") != -1),
    ("GroupNormalization", 21, lambda attributes: True),
)


@dataclass(frozen=True)
class Source:
    """A model as read: its proto, perhaps without its external data, and where it came from.

    path: None for a ModelProto from memory. directory: where external data lies. size: bytes on disk, data
    included.
    """

    model: onnx.ModelProto
    path: Path | None
    directory: str
    size: int


def load(model_input) -> Source:
    """Read a model from a path, or take a copy of a ModelProto. External data stays on disk until it is used.

    Raises InputError when the file is missing, is not ONNX, or is damaged, and for a ModelProto whose data
    lies outside it.
    """
    if isinstance(model_input, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(model_input)
        _require_model(model, "the ModelProto")
        for tensor in tensors(model):
            if tensor.data_location == TensorProto.EXTERNAL:
                raise InputError(f"the data of tensor {tensor.name!r} is in another file, and a ModelProto "
                                 "does not say where; give the model's path, or load it with all its data")
        return Source(model, None, "", _byte_size(model))
    try:
        path = Path(model_input)
    except TypeError:
        raise InputError(
            f"a model is given as a path or a ModelProto, not as {type(model_input).__name__}") from None
    if not path.is_file():
        raise InputError(f"model file {str(path)!r} does not exist" if not path.exists()
                         else f"model {str(path)!r} is not a file")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} is not an ONNX model, or is cut short: {error}") from error
    except Exception as error:  # the text formats raise their parsers' own errors
        raise InputError(f"{str(path)!r} cannot be read as an ONNX model: {error}") from error
    _require_model(model, repr(str(path)))
    directory = str(path.parent)
    return Source(model, path, directory,
                  path.stat().st_size + sum(_external_sizes(model, path.parent).values()))


def inline(source: Source, warnings: list[str]) -> onnx.ModelProto:
    """The model with its local functions inlined (said in `warnings`); the proto itself when it has none."""
    model = source.model
    if not model.functions:
        return model
    try:
        inlined = inliner.inline_local_functions(model, True)
    except Exception as error:  # the C++ inliner raises its own exception types
        raise InputError(f"the model's local functions cannot be inlined: {error}") from error
    warnings.append(f"{len(model.functions)} local function(s) inlined")
    return inlined


def raise_opset(model: onnx.ModelProto, opset: int, warnings: list[str]) -> tuple[onnx.ModelProto, str]:
    """The model at `opset`, or the proto itself when it is there already or cannot be converted.

    Returns (model, reason): reason is "" or says why the opset could not be raised.
    """
    before = opset_of(model)
    if before >= opset:
        return model, ""
    refusal = f"the opset cannot be raised from {before} to {opset}: "
    wrong = _converted_wrongly(model.graph, before, opset)
    if wrong:
        return model, f"{refusal}converting {', '.join(sorted(wrong))} would change values"
    try:
        raised = version_converter.convert_version(model, opset)
    except Exception as error:  # the C++ converter raises its own exception types
        return model, refusal + str(error).strip().splitlines()[0]
    if _interface(raised) != _interface(model):
        return model, f"{refusal}the converter would change the inputs or outputs"
    _restore_notes(model.graph, raised.graph)
    warnings.append(f"opset raised from {before} to {opset}")
    return raised, ""


def problem(model, path=None) -> str:
    """What onnx.checker says about a model, "" when it passes. path: where it lies, if in a file."""
    try:
        checker.check_model(str(path) if path else model)
    except (checker.ValidationError, ValueError, EncodeError) as error:
        return str(error).strip().splitlines()[0]
    return ""


def tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every dense tensor of a model: initializers and node attributes, bodies and functions included."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def write(model: onnx.ModelProto, path, source: Source, verify) -> int:
    """Write a model to `path`, changing `model` so that it says where its data lies. Returns bytes on disk.

    Everything is written into a new directory beside the target, read back and handed to
    verify(model, directory, path). Only then it is moved into place, so that `path` holds the old file or the
    whole new one.
    """
    path = Path(path)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}") from error
    try:
        target = folder / path.name
        external = sum(map(_tensor_bytes, tensors(model))) > EMBED_LIMIT
        if external:
            _write_data(model, folder / data_name(path), source.directory)
        else:
            embed(model, source.directory)
        target.write_bytes(_serialised(model))
        verify(onnx.load(str(target), load_external_data=False), str(folder), target)
        size = sum(file.stat().st_size for file in folder.iterdir())
        for file in ([folder / data_name(path)] if external else []) + [target]:
            os.replace(file, path.parent / file.name)
        return size
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def data_name(path) -> str:
    """The data file that goes with a model file."""
    return f"{Path(path).name}.data"


def refuse_target(path, source: Source) -> None:
    """Raise InputError unless a model may be written to `path`: a folder that exists, not its own source."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"output {str(path)!r} is a directory; a file name is needed")
    if not path.parent.is_dir():
        raise InputError(f"output {str(path)!r}: the directory {str(path.parent)!r} does not exist")
    if source.path is None:
        return
    own = {source.path, *_external_sizes(source.model, source.path.parent)}
    for target in (path, path.parent / data_name(path)):
        if target.exists() and any(file.exists() and os.path.samefile(file, target) for file in own):
            raise InputError(f"output {str(path)!r} would overwrite the model's own file {str(target)!r}; "
                             "choose another name")


def embed(model: onnx.ModelProto, directory: str) -> None:
    """Bring external data into the proto. Raises InputError when it cannot be read."""
    for tensor in tensors(model):
        _embed_tensor(tensor, directory)


def parameter_count(model: onnx.ModelProto) -> int:
    """Number of floating-point values stored in the model's tensors."""
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    return sum(int(np.prod(tensor.dims)) for tensor in tensors(model) if tensor.data_type in kinds)


# -- reading -------------------------------------------------------------------------------------------------

def _require_model(model: onnx.ModelProto, what: str) -> None:
    if not model.ir_version or not model.opset_import:
        raise InputError(f"{what} is not an ONNX model: it has no IR version or imports no operator set")
    if not model.graph.node:
        raise InputError(f"{what} has no nodes: it computes nothing")


def _byte_size(model: onnx.ModelProto) -> int:
    try:
        return model.ByteSize()
    except (EncodeError, ValueError) as error:
        raise InputError(
            "a ModelProto of more than 2 GB cannot be processed in memory: save it with external data "
            "and give its path") from error


def _external_sizes(model: onnx.ModelProto, directory: Path) -> dict[Path, int]:
    """Data files of a model and their sizes; files that are missing are found out when they are read."""
    entries = [entry for tensor in tensors(model) for entry in tensor.external_data]
    names = {entry.value for entry in entries if entry.key == "location"}
    paths = [directory / name for name in sorted(names)]
    return {path: path.stat().st_size for path in paths if path.is_file()}


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for body in attribute.graphs:
                yield from _graph_tensors(body)


def _converted_wrongly(graph: onnx.GraphProto, before: int, after: int) -> set[str]:
    """Operators of a graph and its bodies that the converter gets wrong between two opsets."""
    found = set()
    for node in graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        found |= {op for op, at, concerns in CONVERTER_WRONG
                  if node.op_type == op and before < at <= after and concerns(attributes)}
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= _converted_wrongly(attribute.g, before, after)
    return found


def _restore_notes(before: onnx.GraphProto, after: onnx.GraphProto) -> None:
    """Put back what the converter drops: metadata and descriptions of nodes, tensors and values."""
    def notes(source, target):
        if not target.metadata_props:
            target.metadata_props.extend(source.metadata_props)
        if not target.doc_string:
            target.doc_string = source.doc_string
    notes(before, after)
    for field in ("initializer", "input", "output", "value_info"):
        targets = {entry.name: entry for entry in getattr(after, field)}
        for entry in getattr(before, field):
            if entry.name in targets:
                notes(entry, targets[entry.name])
    after.quantization_annotation.extend(before.quantization_annotation[len(after.quantization_annotation):])
    made = {node.output[0]: node for node in after.node if node.output}
    for node in before.node:
        target = made.get(node.output[0]) if node.output else None
        if target is None or target.op_type != node.op_type:
            continue
        notes(node, target)
        bodies = {attribute.name: attribute.g for attribute in target.attribute if attribute.HasField("g")}
        for attribute in node.attribute:
            if attribute.name in bodies:
                _restore_notes(attribute.g, bodies[attribute.name])


def _interface(model: onnx.ModelProto) -> tuple:
    """What a conversion must leave alone: the names that callers use."""
    return [value.name for value in model.graph.input], [value.name for value in model.graph.output]


# -- writing -------------------------------------------------------------------------------------------------

def _serialised(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def _tensor_bytes(tensor: TensorProto) -> int:
    length = next((int(e.value) for e in tensor.external_data if e.key == "length"), 0)
    return length or tensor.ByteSize()


def _raw(tensor: TensorProto, directory: str) -> bytes:
    """The little-endian bytes of a tensor, wherever it keeps them."""
    if tensor.data_location != TensorProto.EXTERNAL and tensor.HasField("raw_data"):
        return tensor.raw_data
    try:
        array = numpy_helper.to_array(tensor, base_dir=directory)
    except (ValueError, TypeError, OSError, onnx.checker.ValidationError) as error:
        raise InputError(f"the data of tensor {tensor.name!r} cannot be read: {error}") from error
    return numpy_helper.from_array(array).raw_data


def _embed_tensor(tensor: TensorProto, directory: str) -> None:
    if tensor.data_location == TensorProto.EXTERNAL:
        tensor.raw_data = _raw(tensor, directory)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def _write_data(model: onnx.ModelProto, path: Path, directory: str) -> None:
    """Move every large tensor into a data file, each at a multiple of ALIGNMENT."""
    with open(path, "xb") as file:
        for tensor in tensors(model):
            if tensor.data_type == TensorProto.STRING:
                continue
            if _tensor_bytes(tensor) < EXTERNAL_FROM:
                _embed_tensor(tensor, directory)
                continue
            raw = _raw(tensor, directory)
            file.write(bytes(-file.tell() % ALIGNMENT))
            for values in DATA_FIELDS:
                tensor.ClearField(values)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", path.name), ("offset", file.tell()), ("length", len(raw))):
                tensor.external_data.add(key=key, value=str(value))
            file.write(raw)
