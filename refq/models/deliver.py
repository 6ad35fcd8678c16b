"""A quantised model checked, written and read back."""

import numpy as np
import onnx
from onnx import helper

from refq.models import files
from refq.models.export import restored
from refq.models.graph import Graph
from refq.models.insert import Weight
from refq.version import __version__


def stamp(model: onnx.ModelProto, settings: dict[str, str]) -> None:
    """IR version and metadata of the result."""
    needed = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    inputs = {value.name for value in model.graph.input}
    bare = any(tensor.name not in inputs for tensor in model.graph.initializer)  # allowed from IR 4 on
    model.ir_version = max(model.ir_version, needed, 4 if bare else 3)
    facts = {"refq.version": __version__, **{f"refq.{key}": value for key, value in settings.items()}}
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key not in facts]
    helper.set_model_props(model, dict(kept) | facts)


def deliver(model: onnx.ModelProto, path, source: files.Source, done: list[Weight], flaw: str,
             warnings: list[str]) -> int:
    """Check the result, write it if there is a path, and return its size in bytes."""
    def verify(written, directory, file=None):
        _check(written, file, flaw, warnings)
        _compare(written, directory, done)
    if path is not None:
        return files.write(model, path, source, verify)
    files.embed(model, source.directory)
    data = model.SerializeToString(deterministic=True)
    verify(onnx.load_from_string(data), "")
    return len(data)


def _check(model: onnx.ModelProto, path, flaw: str, warnings: list[str]) -> None:
    problem = files.problem(model, path)
    if problem and flaw:
        warnings.append(f"onnx.checker objects to the source, and so to the result: {problem}")
    elif problem:
        raise RuntimeError(f"refq made a model that onnx.checker refuses, nothing was written: {problem}")


def _compare(model: onnx.ModelProto, directory: str, done: list[Weight]) -> None:
    """Read every weight back through the operators that were written and compare it with what it must be."""
    graph = Graph(model, directory)
    nodes = {(node.scope.path, node.key): node for node in graph.nodes()}
    for item in done:
        wanted = restored(item.q, item.sites[0].type)[0].reshape(item.sites[0].stored_shape)
        for site in item.sites:
            node = nodes[site.place]
            found = graph.array(graph.static(node.scope, node.proto.input[site.operand]))
            if not _same(found, wanted, item.exported.exact):
                raise RuntimeError(
                    f"weight {site.tensor!r} of {node.title!r} reads back differently from what was "
                    "quantised; nothing was written")


def _same(found: np.ndarray, wanted: np.ndarray, exact: bool) -> bool:
    """Equal values; where the chain rounds twice, within one float32 ulp."""
    if found.shape != wanted.shape or exact:
        return np.array_equal(found, wanted)
    found, wanted = found.astype(np.float32), wanted.astype(np.float32)
    return bool((np.abs(found - wanted) <= np.spacing(np.abs(wanted))).all())
