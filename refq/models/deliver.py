"""A quantised model checked, written and read back."""

import hashlib
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from refq.errors import InputError
from refq.models import files
from refq.models.export import Exported, Tables
from refq.models.graph import Graph, evaluate
from refq.models.spool import Spool
from refq.models.tensors import Folder, array_of
from refq.models.weights import WeightSite
from refq.version import __version__

PROTO_LIMIT = 2**31 - 1     # bytes of a ModelProto that protobuf can write


@dataclass(frozen=True)
class Proof:
    """What a new weight must read back as, without keeping it: shape, dtype, SHA-256 of its bytes."""

    shape: tuple[int, ...]
    dtype: str
    digest: str

    @classmethod
    def of(cls, array: np.ndarray) -> "Proof":
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return cls(array.shape, array.dtype.name, hashlib.sha256(data).hexdigest())


def proof(effective, site: WeightSite, exported: Exported, tables: Tables, opset_import) -> Proof:
    """What an exported weight reads back as, at the opsets of its model, shown to be what was quantised.

    effective: the matrix that it must give back (export.restored). Call it while the initializers still hold
    their data. Raises RuntimeError when the operators give anything else (where they round twice: more than
    one float32 ulp away).
    """
    found = _folded(exported, tables, opset_import)
    if not _same(found, site.view.restore(effective, site.stored_shape), exported.exact):
        raise _differs(site)
    return Proof.of(found)


def stamp(model: onnx.ModelProto, settings: dict[str, str]) -> None:
    """IR version and metadata of the result."""
    needed = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    inputs = {value.name for value in model.graph.input}
    bare = any(tensor.name not in inputs for tensor in model.graph.initializer)  # allowed from IR 4 on
    model.ir_version = max(model.ir_version, needed, 4 if bare else 3)
    facts = {"refq.version": __version__, **{f"refq.{key}": value for key, value in settings.items()}}
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key not in facts]
    helper.set_model_props(model, dict(kept) | facts)


def deliver(model: onnx.ModelProto, path, source: files.Source, done: list, flaw: str,
            warnings: list[str], spool: Spool | None = None) -> int:
    """Check the result, write it if there is a path, and return its size in bytes.

    done: the new weights (refq.models.insert.Weight), of which the sites and the proof are used. spool: where
    the data of new tensors is. Without a path `model` gets all its data.
    """
    def verify(written, directory, file=None):
        _check(written, file, flaw, warnings)
        _compare(written, directory, done)
    if path is not None:
        return files.write(model, path, source, verify, spool)
    size = files.data_size(model)
    if size > PROTO_LIMIT:
        raise InputError(f"the new model has {size} bytes; one in memory can have {PROTO_LIMIT}: give a path "
                         "to write it to")
    files.embed(model, source.directory, spool)
    data = model.SerializeToString(deterministic=True)
    verify(onnx.load_from_string(data), Folder(""))
    return len(data)


def _check(model: onnx.ModelProto, path, flaw: str, warnings: list[str]) -> None:
    problem = files.problem(model, path)
    if problem and flaw:
        warnings.append(f"onnx.checker objects to the source, and so to the result: {problem}")
    elif problem:
        raise RuntimeError(f"refq made a model that onnx.checker refuses, nothing was written: {problem}")


def _compare(model: onnx.ModelProto, directory, done: list) -> None:
    """Read every weight back through the operators that were written, as each layer sees it, and compare it
    with its proof."""
    graph = Graph(model, directory)
    nodes = {(node.scope.path, node.key): node for node in graph.nodes()}
    for item in done:
        seen = set()
        for site in item.sites:
            node = nodes[site.node.scope.path, site.key]
            static = graph.static(node.scope, node.proto.input[site.operand])
            if static is None:
                raise _differs(site)
            if static.key in seen:
                continue
            if Proof.of(site.as_seen(graph.array(static), item.sites[0])) != item.proof:
                raise _differs(site)
            seen.add(static.key)


def _differs(site: WeightSite) -> RuntimeError:
    return RuntimeError(f"weight {site.tensor!r} of {site.node.title!r} reads back differently from what was "
                        "quantised; nothing was written")


def _folded(exported: Exported, tables: Tables, opset_import) -> np.ndarray:
    """The array that the consumer of an exported weight reads; each operand is dropped after its last use."""
    stored = {tensor.name: tensor for tensor in (*exported.initializers, *tables.initializers.values())}
    values: dict[str, np.ndarray] = {}

    def value(name: str) -> np.ndarray | None:
        if name and name not in values:
            values[name] = array_of(stored[name], Folder(""))
        return values.get(name)
    for position, node in enumerate(exported.nodes):
        made = evaluate(node, [value(name) for name in node.input], node.output[0], opset_import)
        later = {name for other in exported.nodes[position + 1:] for name in other.input}
        values = {name: array for name, array in (*values.items(), (node.output[0], made)) if name in later}
        if node.output[0] == exported.output:
            return made
    return value(exported.output)


def _same(found: np.ndarray, wanted: np.ndarray, exact: bool) -> bool:
    """Equal values; where the chain rounds twice, within one float32 ulp."""
    if found.shape != wanted.shape or exact:
        return np.array_equal(found, wanted)
    found, wanted = found.astype(np.float32), wanted.astype(np.float32)
    return bool((np.abs(found - wanted) <= np.spacing(np.abs(wanted))).all())
