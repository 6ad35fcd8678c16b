"""ONNX files in and out: reading with errors that say what is wrong, writing that leaves no half file."""

import contextlib
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto, checker, helper, inliner, serialization, version_converter

from refq.errors import InputError
from refq.models import wire
from refq.models.graph import opset_of
from refq.models.spool import EXTERNAL_FROM, Spool
from refq.models.tensors import Folder, byte_size, data_path, is_external, read_pieces, refer, reference

EMBED_LIMIT = 1_500_000_000   # bytes of a model file; beyond it tensors go into a data file beside it
CHECK_LIMIT = 1 << 26         # bytes of a model file that onnx.checker reads itself
ALIGNMENT = 4096              # of every tensor in the data file, so that it can be mapped into memory
Pieces = Callable[[TensorProto], Iterator[bytes]]   # the bytes of a tensor, wherever they are
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

    path: None for a ModelProto from memory. directory: where external data lies; the functions here and in
    refq.models.tensors take it as it is. size: bytes on disk, data included.
    """

    model: onnx.ModelProto
    path: Path | None
    directory: Folder
    size: int


def load(model_input) -> Source:
    """Read a model from a path, or take a copy of a ModelProto; a Source is one already. The data of large
    tensors stays on disk until it is used: in data files, and in the model file, to which these tensors then
    refer as if it were one.

    Raises InputError when the file is missing, is not ONNX, or is damaged, and for a ModelProto whose data
    lies outside it.
    """
    if isinstance(model_input, Source):
        return model_input
    if isinstance(model_input, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(model_input)
        _require_model(model, "the ModelProto")
        for tensor in tensors(model):
            if is_external(tensor):
                raise InputError(f"the data of tensor {tensor.name!r} is in another file, and a ModelProto "
                                 "does not say where; give the model's path, or load it with all its data")
        return Source(model, None, Folder(""), _byte_size(model))
    try:
        path = Path(model_input)
    except TypeError:
        raise InputError(
            f"a model is given as a path or a ModelProto, not as {type(model_input).__name__}") from None
    if not path.is_file():
        raise InputError(f"model file {str(path)!r} does not exist" if not path.exists()
                         else f"model {str(path)!r} is not a file")
    try:
        model = onnx.load(str(path), load_external_data=False) if _is_text(path) else wire.read(path)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} is not an ONNX model, or is cut short: {error}") from error
    except Exception as error:  # the text formats raise their parsers' own errors
        raise InputError(f"{str(path)!r} cannot be read as an ONNX model: {error}") from error
    _require_model(model, repr(str(path)))
    directory = Folder.of(path)
    own = {path.resolve(), *_data_paths(model, directory)}
    return Source(model, path, directory, sum(file.stat().st_size for file in own))


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
    """What onnx.checker says about a model without the data of its external tensors, "" when it passes.

    path: where it lies. A file of up to CHECK_LIMIT bytes is checked as it is, with where its data lies.
    """
    in_file = path is not None and os.path.getsize(path) <= CHECK_LIMIT
    try:
        checker.check_model(str(path) if in_file else _without_data(model))
    except (checker.ValidationError, ValueError, EncodeError) as error:
        return str(error).strip().splitlines()[0]
    return ""


def tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every dense tensor of a model: initializers and node attributes, bodies and functions included."""
    yield from _graph_tensors(model.graph)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)
    for function in model.functions:
        yield from _node_tensors(function.node)


def write(model: onnx.ModelProto, path, source: Source, verify, spool: Spool | None = None) -> int:
    """Write a model to `path`, changing `model` on the way. Returns the bytes on disk.

    The data of its tensors comes from `model`, from where `source` lies, or from `spool`; of external data no
    more than a piece is in memory. More than EMBED_LIMIT bytes go to a data file beside the model. Everything
    is written into a new directory beside the target, read back and handed to verify(model, directory, path).

    Then the files are moved into place, so that whoever reads `path` meets the old model with its data or the
    new one with its own. The data file never replaces another: if data_name(path) is taken by other content,
    the new one's digest goes into its name (and so into the model: its only bytes that depend on what was
    there before). It is moved first, then the model; last, the data file of a replaced result of refq is
    removed. An interruption after the first step leaves the old model as it was (and, where the process was
    killed, the new data file, which nothing reads), one after the second the new model (and the old data
    file, which nothing reads).
    """
    path = Path(path)
    try:
        folder = Path(tempfile.mkdtemp(prefix=".refq-", dir=path.parent))
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}") from error
    try:
        target = folder / path.name
        data = _write_files(model, folder, path, _reader(source.directory, spool))
        verify(wire.read(target), Folder.of(target), target)
        size = sum(file.stat().st_size for file in folder.iterdir())
        _move(target, data, path, _own_files(source))
        return size
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def data_name(path) -> str:
    """The data file that goes with a model file, unless a file of that name is in the way."""
    return f"{Path(path).name}.data"


def refuse_target(path, source: Source) -> None:
    """Raise InputError unless a model may be written to `path`: a folder that exists, not its own source."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"output {str(path)!r} is a directory; a file name is needed")
    if _is_text(path):
        raise InputError(f"output {str(path)!r}: models are written in the binary format; name it .onnx")
    if not path.parent.is_dir():
        raise InputError(f"output {str(path)!r}: the directory {str(path.parent)!r} does not exist")
    own = _own_files(source)
    for target in (path, path.parent / data_name(path)):
        if target.exists() and any(os.path.samefile(file, target) for file in own):
            raise InputError(f"output {str(path)!r} would overwrite the model's own file {str(target)!r}; "
                             "choose another name")


def data_paths(source: Source) -> list[Path]:
    """The files that a model's external tensors refer to, in order, but for those that are missing or not
    allowed: these are found out when they are read."""
    return sorted(_data_paths(source.model, source.directory))


def embed(model: onnx.ModelProto, directory, spool: Spool | None = None) -> None:
    """Bring external data into the proto. Raises InputError when it cannot be read."""
    pieces = _reader(directory, spool)
    for tensor in filter(is_external, tensors(model)):
        _embed_tensor(tensor, pieces(tensor))


def data_size(model: onnx.ModelProto) -> int:
    """About the bytes of a model with all its data: those of its tensors."""
    return sum(byte_size(tensor) if is_external(tensor) else tensor.ByteSize() for tensor in tensors(model))


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


def _is_text(path: Path) -> bool:
    """Whether onnx has a text format for files of such a name."""
    return serialization.registry.get_format_from_file_extension(path.suffix) not in (None, "protobuf")


def _own_files(source: Source) -> set[Path]:
    """The files that a model is read from."""
    return set() if source.path is None else {source.path.resolve(), *data_paths(source)}


def _locations(model: onnx.ModelProto) -> set[str]:
    return {reference(tensor).get("location", "") for tensor in tensors(model) if is_external(tensor)}


def _data_paths(model: onnx.ModelProto, directory: Folder) -> set[Path]:
    paths = set()
    for location in _locations(model):
        with contextlib.suppress(ValueError, OSError):
            paths.add(data_path(location, directory))
    return {path for path in paths if path.is_file()}


def _without_data(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with empty tensors in place of external ones, whose files the checker would look for."""
    if not any(map(is_external, tensors(model))):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in filter(is_external, tensors(copy)):
        for field in ("external_data", "data_location", "dims"):
            tensor.ClearField(field)
        tensor.dims.append(0)
    return copy


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _sparse_tensors(graph.sparse_initializer)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            yield from _sparse_tensors(attribute.sparse_tensors)
            if attribute.HasField("sparse_tensor"):
                yield from _sparse_tensors([attribute.sparse_tensor])
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for body in attribute.graphs:
                yield from _graph_tensors(body)


def _sparse_tensors(sparse) -> Iterator[TensorProto]:
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)


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


def _reader(directory, spool: Spool | None) -> Pieces:
    spool = spool or Spool()
    return lambda tensor: spool.pieces(tensor, directory)


def _embed_tensor(tensor: TensorProto, pieces: Iterator[bytes]) -> None:
    tensor.raw_data = b"".join(pieces)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _write_files(model: onnx.ModelProto, folder: Path, path: Path, pieces: Pieces) -> Path | None:
    """Write what goes to `path` into a folder: the model file and, if need be, a data file (returned)."""
    if data_size(model) > EMBED_LIMIT:
        data = _write_data(model, folder, path, pieces)
        (folder / path.name).write_bytes(_serialised(model))
        return data
    with open(folder / path.name, "xb") as file:
        for part in wire.parts(_serialised(model)):
            file.writelines([part] if isinstance(part, bytes) else pieces(part))
    return None


def _write_data(model: onnx.ModelProto, folder: Path, path: Path, pieces: Pieces) -> Path:
    """Move every large tensor into a data file, each at a multiple of ALIGNMENT."""
    digest, places = hashlib.sha256(), []
    with open(folder / "data", "xb") as file:
        def put(data):
            file.write(data)
            digest.update(data)
        for tensor in tensors(model):
            if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED) and not is_external(tensor):
                continue
            if byte_size(tensor) >= EXTERNAL_FROM:
                put(bytes(-file.tell() % ALIGNMENT))
                places.append((tensor, file.tell(), byte_size(tensor)))
                for piece in pieces(tensor):
                    put(piece)
            elif is_external(tensor):
                _embed_tensor(tensor, pieces(tensor))
    name = _free_name(path, digest.hexdigest(), (folder / "data").stat().st_size)
    for tensor, offset, length in places:
        refer(tensor, name, offset, length)
    return (folder / "data").rename(folder / name)


def _free_name(path: Path, digest: str, size: int) -> str:
    """A name for the data file of a model at `path` that no file has yet, or one with the same content."""
    names = [data_name(path), *(f"{path.name}.{digest[:length]}.data" for length in range(8, 65))]
    return next(name for name in names if not os.path.lexists(path.parent / name)
                or _has_content(path.parent / name, digest, size))


def _has_content(path: Path, digest: str, size: int) -> bool:
    """Whether a path is a plain file that may stand for the new one."""
    facts, found = os.lstat(path), hashlib.sha256()
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1 or facts.st_size != size:
        return False
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
        for piece in read_pieces(file, 0, size):
            found.update(piece)
    return found.hexdigest() == digest


def _move(target: Path, data: Path | None, path: Path, own: set[Path]) -> None:
    """Move the files to where they belong: the data file if it is not there already, then the model."""
    used = None if data is None else path.parent.resolve() / data.name
    unused = _data_of_result(path) - own - {used}
    try:
        if data is not None and not used.exists():
            os.replace(data, used)
        os.replace(target, path)
    except BaseException:
        if data is not None and not data.exists() and target.exists():  # between the two
            used.unlink(missing_ok=True)
        raise
    for file in unused:
        with contextlib.suppress(OSError):
            file.unlink()


def _data_of_result(path: Path) -> set[Path]:
    """The data files, under names that `write` gives, of a result of refq at `path`."""
    try:
        model = wire.read(path) if path.is_file() and not path.is_symlink() else onnx.ModelProto()
    except (DecodeError, OSError, ValueError):
        return set()
    if not any(entry.key == "refq.version" for entry in model.metadata_props):
        return set()
    ours = re.compile(re.escape(path.name) + r"(\.[0-9a-f]{8,64})?\.data")
    found = [path.parent.resolve() / name for name in _locations(model) if ours.fullmatch(name)]
    return {file for file in found if not file.is_symlink()}
