"""quantize_model: the weights of an ONNX model in a data type of refq."""

import json
import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from onnx import TensorProto, helper

from refq.blocks.quantize import Quantized
from refq.blocks.rows import Block, data_type
from refq.diffusion.methods import METHODS
from refq.errors import InputError
from refq.models import choices, files
from refq.models import data as model_data
from refq.models.budget import within_budget
from refq.models.calibrate import Calibration, Options, byte_count
from refq.models.checkpoint import Checkpoint, facts_of
from refq.models.choices import Casting, Group, Rules, grouped
from refq.models.deliver import deliver, proof, stamp
from refq.models.export import FLOAT_PLAN, Plan, Tables, encode_weight, float_weight, plan, restored
from refq.models.graph import Graph
from refq.models.insert import Weight, insert
from refq.models.progress import teller
from refq.models.measure import measure
from refq.models.report import OutputErrors, Report, Row
from refq.models.solve import Coded
from refq.models.spool import Spool
from refq.models.weights import FLOATS, WeightSite, find_weights, read_weight
from refq.version import __version__

LADDER = ("mxfp4", "mxfp6_e2m3", "mxfp8_e4m3")      # what a budget chooses from where nothing is said
MEMORY = "1G"


def quantize_model(model_input, model_output=None, dtype="mxfp4", method="ed", calibration=None, rules=(),
                   keep_float=(), budget=None, export="native", rounding=None, recipe=None, labels=None,
                   batch=None, engine="numpy", memory=MEMORY, workers=None, resume=False, progress=None,
                   say=None) -> Report:
    """Quantise the weights of an ONNX model, each along the axis that its layer sums over.

    model_input: a path or a ModelProto (which is not changed). model_output: a path, or None: the result is
    then Report.model. dtype: a data type (refq.data_type), or "float" to leave all that no rule names.
    method: a key of refq.diffusion's METHODS: "ed", "gptq", "qronos" look at activations, "rtn" casts
    directly. calibration: the data they look at, as refq.models.data.batches takes it: a file, a folder,
    "module:object", an object with get_next(), "random". rules: "pattern=dtype" or "pattern=dtype:method",
    the last that matches counts; keep_float: patterns of layers to leave, whatever rules say; patterns are
    globs over node names, output names and weight names. budget: average bits per weight: of the data types
    in `dtype` (a list, or names with commas between; where it is a single one, of mxfp4, mxfp6 and mxfp8)
    each layer gets one by how much it disturbs the model's outputs. export: "native" (packed standard types,
    the smallest file), "portable" (runs in onnxruntime's CPU kernels) or "float" (dequantised values); a data
    type that ONNX cannot express so is written in the next of these.
    rounding: of the elements, None for the recipe's. recipe: of the data types, None for their own.
    labels, batch: as refq.models.data.batches takes them. engine: "numpy" or "onnxruntime". memory: of
    activations, in bytes or as "512M"; beyond it they go to disk. workers: threads, None for all processors.
    resume: go on with a run that was interrupted. progress: True for a bar on the terminal, or a function of
    (work done, all work, words). say: a function that is given lines to read before the work.

    Returns a Report with one row per weight-bearing node. A file that exists at model_output is replaced only
    once the new one is complete: written, checked, read back and compared weight by weight. Same input, same
    bytes, for any number of workers. Raises InputError for a model that cannot be read or run or has no
    weight to quantise, for data that does not fit it, for a weight with a NaN or an infinity, for unknown
    names, for patterns that match nothing, for a budget that nothing fits into, where an interrupted run
    stands in the way or is not there to resume, and when the output would overwrite the input.
    Spec: MODEL-1 to MODEL-7.
    """
    began, say = time.perf_counter(), say or (lambda text: None)
    casting, warnings = Casting(rounding, recipe), []
    candidates, dtype = _candidates(dtype, budget)
    rules = Rules(dtype, method, rules, keep_float, casting)
    for block in {*rules.blocks, *candidates}:
        plan(block, export)
    options = _options(rules, calibration, budget, engine, memory, workers, labels, batch)
    source = files.load(model_input)
    if model_output is not None:
        files.refuse_target(model_output, source)
    checkpoint = _checkpoint(model_output, options, resume)
    flaw, parameters = files.problem(source.model, source.path), files.parameter_count(source.model)
    graph = Graph(files.inline(source, warnings), source.directory)
    resolved = rules.resolve(find_weights(graph))
    _require_some(resolved)
    settings = {"dtype": ",".join(block.name for block in candidates) or rules.default.name, "method": method,
                "export": export, **rules.cast_words(candidates)}
    with ExitStack() as stack:
        tell = stack.enter_context(teller(progress))
        run = stack.enter_context(Calibration(graph, options)) if options else None
        if run:
            warnings += [note for note in run.start() if note not in warnings]
        if budget is not None:
            resolved = within_budget(float(budget), candidates, resolved, graph, run, casting, tell)
            warnings.append(f"each layer's data type was chosen within a budget of {budget:g} bits per "
                            "weight")
        if rules.rules or budget is not None:
            say(choices.table(resolved))
        graph, resolved, plans = _raised(source, graph, resolved, export, warnings)
        spool = stack.enter_context(Spool(model_output))
        weights = Weights(graph, resolved, plans, casting, spool)
        if run:
            facts = {**settings, "rules": json.dumps(weights.choices),
                     "engine": engine}
            run.code(weights, checkpoint, checkpoint and facts_of(source, run.digest, facts), say, tell)
        else:
            for number, group in enumerate(weights.groups):
                weights.cast(number)
                tell(number + 1, len(weights.groups), group.first.tensor)
        facts = run.words(source, model_output, warnings) if run else {}
        weights.insert()
        stamp(graph.model, {**settings, "layers": json.dumps(weights.made)})
        size = deliver(graph.model, model_output, source, weights.done, flaw, warnings, spool)
    if checkpoint:
        checkpoint.done()
    return Report(rows=weights.rows(), version=__version__, parameters=parameters, source_bytes=source.size,
                  target_bytes=size, source=str(source.path or ""), target=str(model_output or ""),
                  warnings=tuple(warnings), model=graph.model if model_output is None else None,
                  rules=rules.listed, seconds=time.perf_counter() - began, **facts, **settings)


# -- what to do ----------------------------------------------------------------------------------------------

def _candidates(dtype, budget) -> tuple[list[Block], object]:
    """(the data types that a budget chooses from, the default data type)."""
    names = dtype.split(",") if isinstance(dtype, str) else dtype
    names = list(names) if isinstance(names, (list, tuple)) else [names]
    if budget is None:
        if len(names) > 1:
            raise InputError(f"{len(names)} data types, {', '.join(map(str, names))}, and no budget to "
                             "choose by; give one data type, or a budget")
        return [], names[0]
    blocks = [data_type(name) for name in (names if len(names) > 1 else LADDER)]
    return blocks, blocks[0]


def _options(rules: Rules, calibration, budget, engine, memory, workers, labels, batch) -> Options | None:
    """How the walk is done, None where no data is given and none is needed."""
    if calibration is not None:
        return Options(calibration, engine, byte_count(memory), workers, labels, batch)
    if budget is not None:
        raise InputError("a budget needs data, to measure what each layer disturbs: give calibration data "
                         f"({model_data.KINDS})")
    if asked := sorted({choice.method for choice in (rules.default, *rules.rules)
                        if choice.block and METHODS[choice.method].plan}):
        raise InputError(f"method {asked[0]!r} codes weights by the activations they meet, and there is no "
                         f"calibration data: give some ({model_data.KINDS}), or take method 'rtn', the "
                         "direct cast, which needs none")
    return None


def _checkpoint(output, options, resume: bool) -> Checkpoint | None:
    if output is not None and options:
        return Checkpoint(output, resume)
    if resume:
        raise InputError("only a run with calibration data that writes a file can be resumed")
    return None


def _require_some(resolved) -> None:
    if not any(site.view for site, _ in resolved):
        raise InputError("the model has no weight that can be quantised"
                         + choices.because([site for site, _ in resolved]))


def _raised(source, graph: Graph, resolved, export: str, warnings):
    """(the model at the opset that its new weights need, its sites, plans by data type).

    Where the opset cannot be raised, weights that need it are written as float.
    """
    blocks = {choice.block.name: choice.block for site, choice in resolved if site.view}
    plans = {name: plan(block, export) for name, block in blocks.items()}

    def needed(site, choice):
        return plans[choice.block.name].opset_for(choice.block, site.view, site.stored_shape)
    have = graph.opset
    most = max(needed(site, choice) for site, choice in resolved if site.view)
    model, reason = files.raise_opset(graph.model, most, warnings)
    if reason:
        high = {choice.block.name for site, choice in resolved if site.view and needed(site, choice) > have}
        plans |= {name: replace(FLOAT_PLAN, reason=reason) for name in high}
    if model is graph.model:
        return graph, resolved, plans
    graph, known = Graph(model, source.directory), {site.place: (site, choice) for site, choice in resolved}
    sites = [(site, *known[site.place]) for site in find_weights(graph)]
    return graph, [(site if old.view else replace(site, view=None, reason=old.reason), choice)
                   for site, old, choice in sites], plans


# -- the weights ---------------------------------------------------------------------------------------------

class Weights:
    """The new weights of a model in the making, and the rows of its report."""

    def __init__(self, graph: Graph, resolved, plans: dict[str, Plan], casting: Casting, spool: Spool):
        self.graph, self.plans, self.casting, self.spool = graph, plans, casting, spool
        self.sites = [site for site, _ in resolved]
        self.groups = grouped(resolved)
        self.tables = Tables(graph.unique)
        self._made: dict[int, Weight] = {}
        self._rows = {site.place: _skipped(site) for site in self.sites if not site.view}

    @property
    def choices(self) -> dict[str, str]:
        """Label of each layer -> data type and method that were chosen."""
        return {site.label: group.choice.words for group in self.groups for site in group.sites}

    @property
    def done(self) -> list[Weight]:
        return [weight for _, weight in sorted(self._made.items())]

    @property
    def made(self) -> dict[str, str]:
        """Label of each layer -> data type and method that its weight has."""
        return {site.label: f"{row.dtype}:{row.method}" for site in self.sites
                if (row := self._rows[site.place]).quantised}

    def matrix(self, group: Group) -> np.ndarray:
        return read_weight(self.graph, group.first)

    def direct(self, matrix: np.ndarray, group: Group) -> Quantized:
        """The direct cast of a group's matrix."""
        block = group.choice.block
        return self.casting(matrix, block, group.first.tile_axis(block))

    def cast(self, number: int, reason: str = ""):
        """Cast a group directly; as `finish`."""
        matrix = self.matrix(self.groups[number])
        return self.finish(number, matrix, Coded(self.direct(matrix, self.groups[number])), reason)

    def finish(self, number: int, matrix: np.ndarray, coded: Coded, reason: str = ""):
        """Take a group's new weight. reason: what the report should say of it.

        Returns a function from a site to the array that it will read, or None where the weight stays as it
        was, its values being beyond the type of the file.
        """
        group, site, q = self.groups[number], self.groups[number].first, coded.q
        effective = restored(q, site.type)
        if not np.isfinite(effective).all():
            words = f"its quantised values go beyond {FLOATS[site.type]}, the type of the file"
            self._tell(group, replace(_skipped(site), reason=words))
            return None
        where = (q, site.view, site.stored_shape, site.type, site.tensor)
        chosen = self.plans[group.choice.block.name]
        try:
            exported, words = encode_weight(*where, chosen, self.tables), chosen.reason
        except InputError as error:
            exported, words = float_weight(*where, self.tables), str(error)
        found = measure(matrix, q, effective)
        row = replace(_skipped(site), dtype=q.dtype.name, status="quantised", method=_method(group, coded),
                      reason="; ".join(filter(None, (words, reason))), axis=site.view.axis,
                      bits=float(q.bits_per_value), stored_bits=exported.bits, encoding=exported.encoding,
                      sqnr_db=found.sqnr_db, saturated=found.saturated, flushed=found.flushed,
                      histogram=found.histogram, errors=_output_errors(group, coded))
        shown = proof(effective, site, exported, self.tables, self.graph.model.opset_import)
        self.spool.take(exported.initializers)
        self._made[number] = Weight(group.sites, exported, shown)
        self._tell(group, row)
        stored = site.view.restore(effective, site.stored_shape)
        stored = stored.astype(helper.tensor_dtype_to_np_dtype(site.type), copy=False)
        return lambda other: site.as_seen(stored, other)

    def _tell(self, group: Group, row: Row) -> None:
        self._rows.update((site.place, _row_of(site, group.sites, row)) for site in group.sites)

    def insert(self) -> None:
        """Put the weights into the graph."""
        read = {name for item in self.done for node in item.exported.nodes for name in node.input}
        tables = (table for table in self.tables.initializers.values() if table.name in read)
        self.graph.model.graph.initializer.extend(tables)
        insert(self.graph, self.done)

    def rows(self) -> tuple[Row, ...]:
        """A row for every site, in file order."""
        return tuple(self._rows[site.place] for site in self.sites)


def _method(group: Group, coded: Coded) -> str:
    asked, errors = group.choice.method, coded.errors
    if errors is None or errors.direct == errors.parts:
        return "rtn"
    return asked if not errors.direct else f"{asked}, rtn in {errors.direct} of {errors.parts} parts"


def _output_errors(group: Group, coded: Coded) -> OutputErrors | None:
    errors = coded.errors
    return None if errors is None else OutputErrors(
        group.choice.method, coded.rows, coded.held, errors.signal, errors.rtn, errors.asked, errors.kept,
        errors.local, errors.inherited, coded.seconds)


def _skipped(site: WeightSite) -> Row:
    kind = FLOATS.get(site.type) or TensorProto.DataType.Name(site.type).lower()
    return Row(node=site.node.proto.name, op=site.node.op, output=site.key, tensor=site.tensor,
               shape=site.stored_shape, dtype="" if site.type == TensorProto.UNDEFINED else kind,
               status="skipped", reason=site.reason, where=site.node.scope.label, reached=site.reached,
               parameters=site.parameters)


def _row_of(site: WeightSite, members, row: Row) -> Row:
    """The row of one of the layers that share a weight."""
    own = _skipped(site)
    return replace(row, node=own.node, op=own.op, output=own.output, tensor=own.tensor, where=own.where,
                   shape=own.shape, reached=own.reached, axis=site.view.axis if row.quantised else None,
                   first=site is members[0],
                   reason="; ".join(filter(None, (row.reason, site.note))),
                   shared=tuple(other.key for other in members if other is not site))
