"""quantize_model: the weights of an ONNX model in a data type of refq."""

import difflib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
from onnx import TensorProto

from refq.blocks.quantize import Quantized, quantize
from refq.blocks.rows import Block, data_type
from refq.errors import InputError
from refq.models import files
from refq.models.deliver import deliver, stamp
from refq.models.export import FLOAT_PLAN, Exported, Plan, Tables, encode_weight, float_weight, plan, restored
from refq.models.graph import Graph
from refq.models.insert import Weight, insert
from refq.models.report import Report, Row, measure
from refq.models.weights import FLOATS, WeightSite, find_weights, read_weight
from refq.version import __version__

METHODS = {"rtn": "direct cast: every weight rounded on its own, without looking at activations"}


def quantize_model(model_input, model_output=None, dtype="mxfp4", method="rtn", include=(), exclude=(),
                   export="native", rounding=None, recipe=None, progress=None) -> Report:
    """Quantise the weights of MatMul, Gemm and Conv nodes of an ONNX model along the axis each sums over.

    model_input: a path or a ModelProto (which is not changed). model_output: a path, or None: the result is
    then Report.model. dtype: a data type (refq.data_type). method: a key of METHODS. include, exclude: glob
    patterns over node names, output names and weight names; with include only what matches is quantised,
    exclude wins. export: "native" (packed standard types, the smallest file), "portable" (runs in
    onnxruntime's CPU kernels) or "float" (dequantised values); a data type that ONNX cannot express so is
    written in the next of these. rounding: of the elements, None for the recipe's. recipe: of the data
    type, None for its own. progress: True for a bar on the terminal, or a function of (weights done, weights
    in all, name of the last).

    Returns a Report with one row per weight-bearing node. A file that exists at model_output is replaced only
    once the new one is complete: written, checked, read back and compared weight by weight. Same input, same
    bytes. Raises InputError for a model that cannot be read or has no weight to quantise, for a weight with a
    NaN or an infinity, for unknown names, for patterns that match nothing, and when the output would
    overwrite the input.
    """
    block, chosen, tried = _settings(dtype, method, export, rounding, recipe)
    cast = {"rounding": tried.rounding, "recipe": recipe}
    source = files.load(model_input)
    if model_output is not None:
        files.refuse_target(model_output, source)
    settings = {"dtype": block.name, "method": method, "export": export, "rounding": tried.rounding,
                "recipe": tried.recipe if block.scale else ""}
    flaw, parameters = files.problem(source.model, source.path), files.parameter_count(source.model)
    warnings: list[str] = []

    graph, sites, chosen = _find(source, block, chosen, _patterns(include), _patterns(exclude), warnings)
    rows, done = _cast_all(graph, sites, block, cast, chosen, method, _teller(progress))
    insert(graph, done)
    stamp(graph.model, settings)
    size = deliver(graph.model, model_output, source, done, flaw, warnings)
    return Report(rows=rows, version=__version__, parameters=parameters, source_bytes=source.size,
                  target_bytes=size, source=str(source.path or ""), target=str(model_output or ""),
                  warnings=tuple(warnings), model=graph.model if model_output is None else None, **settings)


# -- what to do ----------------------------------------------------------------------------------------------

def _settings(dtype, method, export, rounding, recipe) -> tuple[Block, Plan, Quantized]:
    """The data type, how it is written, and a value in it; every name is checked before a file is opened."""
    block = data_type(dtype)
    if method not in METHODS:
        raise InputError(f"method {method!r} is not known; this version of refq has {', '.join(METHODS)}")
    tried = quantize(np.ones((1, 1), np.float32), block, -1, rounding, recipe)
    return block, plan(block, export), tried


def _patterns(value) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _find(source, block, chosen: Plan, include, exclude, warnings) -> tuple[Graph, list[WeightSite], Plan]:
    """The model ready for its new weights, its weight sites, and the plan that its opset allows."""
    graph = Graph(files.inline(source, warnings), source.directory)
    sites = _select(_sites(graph, block), include, exclude)
    if not any(site.view for site in sites):
        raise InputError("the model has no weight that can be quantised" + _because(sites))
    needed = max(chosen.opset_for(block, site.view, site.stored_shape) for site in sites if site.view)
    model, reason = files.raise_opset(graph.model, needed, warnings)
    if reason:
        return graph, sites, replace(FLOAT_PLAN, reason=reason)
    if model is not graph.model:
        graph = Graph(model, source.directory)
        sites = _select(_sites(graph, block), include, exclude)
    return graph, sites, chosen


def _sites(graph: Graph, block: Block) -> list[WeightSite]:
    """The weight sites, those left out that the data type's tiles cannot lie on."""
    sites, reason = find_weights(graph), f"{block.name} has tiles of two dimensions, its weight has one"
    if not isinstance(block.tile, tuple):
        return sites
    return [replace(site, view=None, reason=reason)
            if site.view and site.view.axes(site.stored_shape) is None else site for site in sites]


def _because(sites: list[WeightSite]) -> str:
    if not sites:
        return ": it has no MatMul, Gemm or Conv whose weight is constant"
    reasons = [f"{site.node.op} {site.node.title!r}: {site.reason}" for site in sites]
    return "; " + "; ".join(reasons[:4]) + (f"; and {len(reasons) - 4} more" if len(reasons) > 4 else "")


def _select(sites: list[WeightSite], include, exclude) -> list[WeightSite]:
    """The sites, with the reason where a pattern leaves one out. InputError for a pattern without a match."""
    for pattern in (*include, *exclude):
        if not any(_matches(site, pattern) for site in sites):
            raise InputError(f"pattern {pattern!r} matches no weight-bearing node" +
                             _candidates(sites, pattern))
    return [replace(site, view=None, reason=reason) if (reason := _left_out(site, include, exclude)) else site
            for site in sites]


def _left_out(site: WeightSite, include, exclude) -> str:
    if site.view is None:
        return ""
    excluded = next((pattern for pattern in exclude if _matches(site, pattern)), None)
    if excluded is not None:
        return f"excluded by {excluded!r}"
    return "not included" if include and not any(_matches(site, pattern) for pattern in include) else ""


def _matches(site: WeightSite, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in site.names)


def _candidates(sites: list[WeightSite], pattern: str) -> str:
    names = sorted({name for site in sites for name in site.names})
    plain = pattern.strip("*?")
    near = difflib.get_close_matches(plain, names, 4, 0.4) or names[:4]
    return f"; names it could mean: {', '.join(map(repr, near))}" if near else ""


def _teller(progress) -> Callable[[int, int, str], None]:
    """A function to tell of every finished weight."""
    if progress is None or progress is False:
        return lambda done, total, name: None
    if callable(progress):
        return progress
    from tqdm import tqdm
    bar = tqdm(unit="weight", leave=False)

    def tell(done, total, name):
        bar.total = total
        bar.set_postfix_str(name[-30:], refresh=False)
        bar.update(done - bar.n)
        if done == total:
            bar.close()
    return tell


# -- casting -------------------------------------------------------------------------------------------------


def _cast_all(graph: Graph, sites: list[WeightSite], block: Block, cast: dict, chosen: Plan, method: str,
              tell) -> tuple[tuple[Row, ...], list[Weight]]:
    """Quantise every weight once. Returns a row for every site, in order, and the new weights."""
    groups: dict[tuple, list[WeightSite]] = defaultdict(list)
    for site in sites:
        if site.view:
            groups[site.group].append(site)
    tables = Tables(graph.unique)
    rows = {site.place: _skipped(site) for site in sites if not site.view}
    done = []
    for count, members in enumerate(groups.values(), 1):
        item = _cast_one(graph, tuple(members), block, cast, chosen, method, tables)
        if item.row.quantised:
            done.append(item)
        rows.update((site.place, _row_of(site, members, item.row)) for site in members)
        tell(count, len(groups), members[0].tensor)
    read = {name for item in done for node in item.exported.nodes for name in node.input}
    graph.model.graph.initializer.extend(t for t in tables.initializers.values() if t.name in read)
    return tuple(rows[site.place] for site in sites), done


def _cast_one(graph: Graph, sites: tuple[WeightSite, ...], block: Block, cast: dict, chosen: Plan,
              method: str, tables: Tables) -> Weight:
    first = sites[0]
    x = read_weight(graph, first)
    flat = not isinstance(block.tile, tuple)
    q = quantize(x, block, first.view.axis if flat else first.view.axes(first.stored_shape), **cast)
    effective = restored(q, first.type)[0]
    exported, reason = _export(q, first, chosen, tables)
    row = replace(_skipped(first), dtype=q.dtype.name, status="quantised", method=method, reason=reason,
                  axis=first.view.axis, bits=float(q.bits_per_value), stored_bits=exported.bits,
                  encoding=exported.encoding)
    if not np.isfinite(effective).all():
        reason = f"its quantised values go beyond {FLOATS[first.type]}, the type of the file"
        return Weight(sites, q, exported, replace(_skipped(first), reason=reason))
    found = measure(x, q, effective)
    row = replace(row, sqnr_db=found.sqnr_db, saturated=found.saturated, flushed=found.flushed,
                  histogram=found.histogram)
    return Weight(sites, q, exported, row)


def _export(q: Quantized, site: WeightSite, chosen: Plan, tables: Tables) -> tuple[Exported, str]:
    """The weight as the plan says, or as float values with the reason."""
    where = (q, site.view, site.stored_shape, site.type, site.tensor)
    try:
        return encode_weight(*where, chosen, tables), chosen.reason
    except InputError as error:
        return float_weight(*where, tables), str(error)


def _skipped(site: WeightSite) -> Row:
    kind = FLOATS.get(site.type) or TensorProto.DataType.Name(site.type).lower()
    return Row(node=site.node.proto.name, op=site.node.op, output=site.key, tensor=site.tensor,
               shape=site.stored_shape, dtype="" if site.type == TensorProto.UNDEFINED else kind,
               status="skipped", reason=site.reason, where=site.node.scope.label, reached=site.reached,
               parameters=site.parameters)


def _row_of(site: WeightSite, members: list[WeightSite], row: Row) -> Row:
    """The row of one of the layers that share a weight."""
    own = _skipped(site)
    return replace(row, node=own.node, op=own.op, output=own.output, tensor=own.tensor, where=own.where,
                   reached=own.reached, reason="; ".join(filter(None, (row.reason, site.note))),
                   shared=tuple(other.key for other in members if other is not site))
