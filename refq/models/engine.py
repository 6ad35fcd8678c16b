"""Run an ONNX model, whole or node by node, in numpy or in onnxruntime.

`Engine` runs it in numpy: `onnx.reference` does the work, one node at a time; refq.models.operators replaces
what it computes slowly or wrongly. Nodes that depend on weights alone (a DequantizeLinear in front of a
weight, say) are computed once; every other result is dropped after its last use. Sums are taken in the dtype
of the tensors, float16 and bfloat16 products in float32. `OnnxRuntime` is the same in onnxruntime's kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import onnx.version_converter
from onnx import NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from refq.errors import InputError
from refq.models import files
from refq.models.graph import UNPREDICTABLE, opset_of
from refq.models.operators import OPS
from refq.models.tensors import array_of

# Below 14 BatchNormalization, and below 13 Softmax, mean something that onnx.reference does not compute.
OLDEST_OPSET = 14


@dataclass(frozen=True, eq=False)
class Step:
    """A node in the order of running: what it reads (its bodies included; no constants), and the tensors that
    are not needed any more once it ran."""

    node: NodeProto
    reads: tuple[str, ...]
    finished: tuple[str, ...]


class Engine:
    """An ONNX model ready to run in numpy.

    `model` is a ModelProto, a path or a files.Source. A copy of it runs, `.model`: local functions inlined,
    opsets below 14 raised; large tensors stay on disk. Raises InputError for what is not a model, an opset
    that cannot be raised, or an operator that nothing here can run.

    To run it node by node, over several batches at once if need be:

        for step in engine.steps():
            for values in batches:      # each began as engine.start(feeds)
                values.update(engine.run_node(step.node, values))
                for name in step.finished:
                    values.pop(name, None)
    """

    def __init__(self, model):
        source = files.load(model)
        self.directory = source.directory
        self.model = self._prepared(source)
        graph = self.model.graph
        self.inputs = {value.name: _tensor_type(value) for value in graph.input}
        self.outputs = tuple(value.name for value in graph.output)
        weights = self._weights()
        self.defaults = {name: array for name, array in weights.items() if name in self.inputs}
        self.weights = {name: array for name, array in weights.items() if name not in self.inputs}
        _protect(self.defaults)  # run() may hand these out; writing to them must not change later runs
        self._tensors = {*self.inputs, *weights, *(name for node in graph.node for name in node.output)}

    @property
    def constants(self):
        """The weights and all that follows from them alone: name -> array, read-only."""
        return self._folded[0]

    def start(self, feeds):
        """The values that a run begins with: the feeds, checked, and the defaults of the inputs left out."""
        _check_feeds(feeds, self.inputs, self.defaults)
        return {**self.defaults, **feeds}

    def run(self, feeds, outputs=None):
        """`feeds`: input name -> array of exactly the dtype and shape the model declares. `outputs`: names of
        any tensors of the main graph (default: its outputs). Returns name -> array, in that order.

        Raises InputError for a feed that does not fit, an unknown name, or a node that fails (naming the
        node).
        """
        values, outputs = self.start(feeds), self._known_outputs(outputs)
        for step in self.steps(outputs):
            values.update(self.run_node(step.node, values))
            for name in step.finished:
                values.pop(name, None)
        return {name: values[name] if name in values else self.constants[name] for name in outputs}

    def steps(self, outputs=None):
        """A Step for every node that `outputs` (any tensors; default: the model's outputs) need, in order.
        Constants and `outputs` are never finished."""
        constants, nodes = self._folded
        return _steps(nodes, constants, self._known_outputs(outputs))

    def run_node(self, node, values):
        """Run a node of the main graph of `.model`. `values`: name -> array, which go before constants of the
        same name, so that a weight may be replaced for one run. Returns its outputs, name -> array."""
        return self._run(node, _Chain(values, self.constants))

    def _known_outputs(self, outputs):
        outputs = self.outputs if outputs is None else tuple(outputs)
        for name in outputs:
            if name not in self._tensors:
                raise InputError(f"the model has no tensor {name!r}; its outputs are {_listed(self.outputs)}")
        return outputs

    @cached_property
    def _folded(self):
        """(constants, the nodes that are left for every run)"""
        constants, left = _fold(self.model.graph.node, self.weights, self._run)
        _protect(constants)
        return constants, left

    # -- what is numpy's own

    def _prepared(self, source):
        return _raised(_inlined(source), source.directory)

    def _weights(self):
        """Name -> array of the initializers, those on disk mapped into memory."""
        bare = onnx.ModelProto()
        bare.CopyFrom(self.model)
        del bare.graph.initializer[:]
        files.embed(bare, self.directory)           # what nodes and their bodies hold
        try:
            evaluator = _Evaluator(bare, new_ops=list(OPS))
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"the model cannot run in numpy: {_unknown(self.model) or error}") from error
        self._operators = {key_of(operator.onnx_node): operator for operator in evaluator.rt_nodes_}
        stored = {tensor.name: array_of(tensor, self.directory) for tensor in self.model.graph.initializer}
        return evaluator.rt_inits_ | stored

    def _run(self, node, values):
        return _run_operator(self._operators[key_of(node)], values)


class OnnxRuntime(Engine):
    """The same in onnxruntime's CPU kernels with its graph optimisations off: every node is computed as
    written, and results are those of Engine up to rounding.

    The model keeps its opset. Raises InputError where onnxruntime is not installed or cannot run the model.
    """

    def run(self, feeds, outputs=None):
        """As Engine.run, the whole graph at once."""
        values, outputs = self.start(feeds), self._known_outputs(outputs)
        made = tuple(name for name in outputs if name not in values and name not in self.weights)
        values = {**self.weights, **values}
        if made:
            values |= self._session(made)(feeds)
        return {name: values[name] for name in outputs}

    def _prepared(self, source):
        _runtime()
        model = _inlined(source)
        files.embed(model, self.directory)
        return model

    def _weights(self):
        self._sessions = {}
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}

    def _session(self, outputs):
        """A function (feeds) -> {name: array} that computes the given tensors of the model."""
        if outputs not in self._sessions:
            model, declared = self.model, {value.name: value for value in self.model.graph.output}
            if outputs != self.outputs:
                model = onnx.ModelProto()
                model.CopyFrom(self.model)
                del model.graph.output[:]
                model.graph.output.extend(declared.get(name, onnx.ValueInfoProto(name=name))
                                          for name in outputs)
            self._sessions[outputs] = _session(model, "the model")
        return self._sessions[outputs]

    def _run(self, node, values):
        """One node as a model of its own, kept for the next run with the same types."""
        reads = [name for name in _reads(node) if name in values]
        for name in set(node.input) - {"", *reads}:
            raise InputError(_nothing_makes(node, name))
        arrays = {name: values[name] for name in reads}
        # onnxruntime takes no arrays of the types of ml_dtypes; they come as initializers
        stored = {name for name, array in arrays.items() if _is_small(array)}
        inputs = [onnx.ValueInfoProto(name=name, type=_type_of(array))
                  for name, array in arrays.items() if name not in stored]
        key = (key_of(node), *(value.SerializeToString() for value in inputs))
        session = self._sessions.get(key)
        if session is None or stored:
            graph = onnx.helper.make_graph(
                [node], "one node", inputs, [onnx.ValueInfoProto(name=name) for name in node.output if name],
                [numpy_helper.from_array(arrays[name], name) for name in stored])
            model = onnx.helper.make_model(graph, opset_imports=self.model.opset_import,
                                           ir_version=self.model.ir_version)
            session = _session(model, _title(node))
        if not stored:
            self._sessions[key] = session
        return session({name: array for name, array in arrays.items() if name not in stored})


ENGINES = {"numpy": Engine, "onnxruntime": OnnxRuntime}


def run_batches(model, feeds, batch_size, progress=None, outputs=None, engine=Engine):
    """Run `model` (an Engine, or a ModelProto or a path for `engine`) over `feeds` in parts of `batch_size`
    along axis 0, and put the outputs together along axis 0. Returns name -> array.

    `progress(done, total)`, if given, is called after every part with numbers of rows. Raises InputError as
    Engine.run does, when the feeds have no or different lengths, and when an output does not have one row, of
    one shape throughout, for every input row.
    """
    engine = model if isinstance(model, Engine) else engine(model)
    lengths = {name: getattr(value, "shape", ())[:1] for name, value in feeds.items()}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        raise InputError(f"feeds must be arrays of one length along axis 0; here are {lengths}")
    (total,) = next(iter(lengths.values()))
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")
    results = {}
    for begin in range(0, max(total, 1), batch_size):
        end = min(begin + batch_size, total)
        part = engine.run({name: value[begin:end] for name, value in feeds.items()}, outputs)
        for name, value in part.items():
            shape = getattr(value, "shape", ())  # a sequence has none
            row = results[name].shape[1:] if name in results else shape[1:]
            if shape != (end - begin, *row):
                raise InputError(f"output {name!r} has shape {shape} for {end - begin} input rows, so batches"
                                 " cannot be put together; run the whole at once with Engine.run")
            if name not in results:
                results[name] = np.empty((total, *row), value.dtype)
            results[name][begin:end] = value
        if progress:
            progress(end, total)
    return results


# -- preparing a model --------------------------------------------------------------------------------------

def _inlined(source):
    """The model of a source without local functions."""
    for function in source.model.functions:  # the inliner raises them to the model's opset
        if 0 < opset_of(function) < 13:
            _flatten_hardmax(function, set(_names(function)))
    model = files.inline(source, [])
    _name_standard_domain(model)
    return model


def _raised(model, directory):
    """A model of an opset that onnx.reference computes."""
    opset = opset_of(model)
    if not 0 < opset < OLDEST_OPSET:
        return model
    files.embed(model, directory)                   # the converter looks at some tensors
    if opset < 13:
        _flatten_hardmax(model.graph, set(_names(model.graph)))
    try:
        raised = onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except Exception as error:  # RuntimeError, ConvertError, checker errors: no common base
        raise InputError(f"the model is of opset {opset}; refq runs opset {OLDEST_OPSET} and later, and "
                         f"onnx.version_converter cannot raise it: {error}") from error
    if opset < 11:
        _keep_old_resize(raised.graph)
    return raised


def _flatten_hardmax(graph, taken):
    """Hardmax below opset 13 flattened all from its axis on; the converter does this for Softmax only."""
    nodes = []
    for node in graph.node:
        for subgraph in _subgraphs(node):
            _flatten_hardmax(subgraph, taken)
        if node.op_type != "Hardmax" or node.domain:
            nodes.append(node)
            continue
        x, y = node.input[0], node.output[0]
        shape, flat, most = (_unused(f"{y}_{part}", taken) for part in ("shape", "flat", "most"))
        make = onnx.helper.make_node
        nodes += [make("Shape", [x], [shape]), make("Flatten", [x], [flat]),
                  make("Hardmax", [flat], [most], node.name, axis=1), make("Reshape", [most, shape], [y])]
        nodes[-3].attribute.extend(node.attribute)  # the axis, 1 by default in both
    if len(nodes) > len(graph.node):
        nodes = [_copy(node) for node in nodes]
        del graph.node[:]
        graph.node.extend(nodes)


def _names(graph):
    return (name for node in _all_nodes(graph) for name in (*node.input, *node.output))


def _unused(name, taken):
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _copy(node):
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _name_standard_domain(model):
    """"ai.onnx" is another name of the standard domain "", one that onnx.reference does not know."""
    for entry in (*model.opset_import, *_all_nodes(model.graph)):
        if entry.domain == "ai.onnx":
            entry.domain = ""


def _keep_old_resize(graph):
    """Upsample and Resize below opset 11 knew one mapping of places; the converter leaves Resize at its new
    default."""
    for node in _all_nodes(graph):
        if node.op_type == "Resize" and not node.domain:
            mapping = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            node.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in mapping.items())


def _all_nodes(graph):
    for node in graph.node:
        yield node
        for subgraph in _subgraphs(node):
            yield from _all_nodes(subgraph)


def _subgraphs(node):
    for attribute in node.attribute:
        yield from ([attribute.g] if attribute.HasField("g") else attribute.graphs)


def _reads(node):
    """Names that a node may read, each once: its inputs, then whatever its bodies take from around them."""
    names = dict.fromkeys(filter(None, node.input))
    for subgraph in _subgraphs(node):
        own = {value.name for value in (*subgraph.input, *subgraph.initializer)}
        own |= {name for inner in subgraph.node for name in inner.output}
        inside = [name for inner in subgraph.node for name in _reads(inner)]
        names |= dict.fromkeys(name for name in (*inside, *(value.name for value in subgraph.output))
                               if name not in own)
    return list(names)


# -- running ------------------------------------------------------------------------------------------------

class _Evaluator(ReferenceEvaluator):
    """onnx.reference, its bodies of If, Loop and Scan run as the main graph is: constants once, results
    dropped after their last use, a failing node named. (By itself it also takes an omitted output of one node
    for the omitted input of the next: both are called "".)"""

    @cached_property
    def _program(self):
        operators = {key_of(operator.onnx_node): operator for operator in self.rt_nodes_}

        def run(node, values):
            return _run_operator(operators[key_of(node)], values)

        weights = {name: array for name, array in self.rt_inits_.items() if name not in self.input_names}
        constants, nodes = _fold([operator.onnx_node for operator in self.rt_nodes_], weights, run)
        return constants, _steps(nodes, constants, self.output_names), run

    def run(self, output_names, feed_inputs, attributes=None, **options):
        """As ReferenceEvaluator.run."""
        if attributes is not None or not isinstance(self.proto_, onnx.GraphProto):
            return super().run(output_names, feed_inputs, attributes=attributes, **options)
        constants, steps, run = self._program
        values = {**self.rt_inits_, **feed_inputs, **constants}
        for step in steps:
            values.update(run(step.node, values))
            for name in step.finished:
                values.pop(name, None)
        for name in self.output_names:
            if name not in values:
                raise InputError(f"the output {name!r} of the body is made by nothing")
        return [values[name] for name in self.output_names]


class _Chain(Mapping):
    """Two mappings as one, the first before the second, nothing copied."""

    def __init__(self, first, second):
        self.first, self.second = first, second

    def __getitem__(self, name):
        return self.first[name] if name in self.first else self.second[name]

    def __iter__(self):
        return iter({**self.second, **self.first})

    def __len__(self):
        return len({**self.second, **self.first})


def _fold(nodes, weights, run):
    """(`weights` and all that follows from them alone, the nodes that are left for every run)."""
    values, left = dict(weights), []
    for node in nodes:
        if node.op_type not in UNPREDICTABLE and values.keys() >= set(node.input) - {""}:
            values.update(run(node, values))
        else:
            left.append(node)
    return values, left


def _steps(nodes, constants, outputs):
    """A Step for every node that `outputs` need, in order."""
    steps, mentioned = [], set(outputs)
    for node in reversed(nodes):  # who mentions a name first is then the last to use it
        if mentioned.intersection(node.output):
            reads = [name for name in _reads(node) if name not in constants]
            names = {*reads, *filter(None, node.output)}
            steps.append(Step(node, tuple(reads), tuple(sorted(names - mentioned))))
            mentioned |= names
    return steps[::-1]


def _run_operator(operator, values):
    """The outputs of one operator of onnx.reference on `values`, name -> array."""
    node = operator.onnx_node
    for name in node.input:
        if name and name not in values:
            raise InputError(_nothing_makes(node, name))
    context = {"context": {"": None, **values}} if operator.need_context() else {}
    try:
        # An ONNX operator has no exceptions: an overflow is Inf, Inf - Inf is NaN, neither earns a warning.
        with np.errstate(all="ignore"):
            results = operator.run(*(values[name] if name else None for name in node.input), **context)
    except Exception as error:  # whatever an implementation raises, the user needs to know where
        reason = error.__cause__ or error
        if isinstance(error, InputError):
            raise InputError(f"{_title(node)}: {error}") from error
        raise InputError(f"{_title(node)} failed: {type(reason).__name__}: {reason}") from error
    return {name: value for name, value in zip(node.output, results) if name}


def _unknown(model):
    """The operators of a model that onnx does not define, in words; "" where it defines all."""
    names = dict.fromkeys(f"{node.domain}.{node.op_type}" if node.domain else node.op_type
                          for node in _all_nodes(model.graph) if not onnx.defs.has(node.op_type, node.domain))
    return f"onnx has no operator {', '.join(names)}; where onnxruntime has, take the engine onnxruntime" \
        if names else ""


def _protect(arrays):
    for array in arrays.values():
        if isinstance(array, np.ndarray):
            array.flags.writeable = False


def key_of(node):
    """A node's first output that is not left out: unique in its graph."""
    return next(filter(None, node.output), "")


def _title(node):
    return f"node {node.name or key_of(node)!r} ({node.op_type})"


def _nothing_makes(node, name):
    return (f"{_title(node)} reads {name!r}, which is no input, no dense initializer and no output of a node "
            "before it")


def _listed(names):
    return ", ".join(repr(name) for name in names)


# -- onnxruntime ---------------------------------------------------------------------------------------------

def _runtime():
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("the engine onnxruntime needs the package of that name, which is not installed; "
                         "install it or take the engine numpy") from error
    return onnxruntime


def _session(model, what):
    """A function (feeds) -> {output name: array}, on one thread, that it be the same each time."""
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.use_deterministic_compute = True
    options.enable_cpu_mem_arena = False  # which would keep what a node once needed
    try:
        session = runtime.InferenceSession(model.SerializeToString(), options,
                                           providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception type for every kind of refusal
        raise InputError(f"{what} cannot run in onnxruntime: {_first_line(error)}") from error
    names = [output.name for output in session.get_outputs()]

    def run(feeds):
        try:
            return dict(zip(names, session.run(names, feeds)))
        except Exception as error:
            raise InputError(f"{what} failed in onnxruntime: {_first_line(error)}") from error

    return run


def _first_line(error):
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _is_small(value):
    return isinstance(value, np.ndarray) and value.dtype.kind not in "biufcOUST"


def _type_of(value):
    """TypeProto of an array of that dtype, or of a list of such arrays."""
    if isinstance(value, list):
        return onnx.helper.make_sequence_type_proto(_type_of(value[0] if value else np.zeros(0, np.float32)))
    return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(value.dtype), None)


# -- feeds --------------------------------------------------------------------------------------------------

def _tensor_type(value):
    """(dtype, dims) of a graph input; a dim is a number, a name or None. None for what is not a numeric
    tensor, dims None for a tensor of unknown rank."""
    tensor = value.type.tensor_type
    if not tensor.elem_type or tensor.elem_type == TensorProto.STRING:
        return None
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if not tensor.HasField("shape"):
        return dtype, None
    dims = tensor.shape.dim
    return dtype, [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims]


def _check_feeds(feeds, inputs, defaults):
    """Names, dtypes and shapes of the feeds, a named dim having one length throughout."""
    unknown = [name for name in feeds if name not in inputs]
    if unknown:
        raise InputError(f"the model has no input {unknown[0]!r}; its inputs are {_listed(inputs)}")
    missing = [name for name in inputs if name not in feeds and name not in defaults]
    if missing:
        raise InputError(f"no value for input {missing[0]!r}; the inputs are {_listed(inputs)}")
    lengths = {}
    for name, value in feeds.items():
        if inputs[name]:
            _check_feed(name, value, *inputs[name], lengths)


def _check_feed(name, value, dtype, dims, lengths):
    """One feed against its declaration; `lengths` of the named dims seen so far, to which it adds its own."""
    if not isinstance(value, np.ndarray):
        raise InputError(f"input {name!r} is a {type(value).__name__}; it must be a numpy.ndarray of {dtype}")
    if value.dtype != dtype:
        raise InputError(f"input {name!r} is {value.dtype}; the model takes {dtype}; convert it first")
    if dims is None:
        return
    allowed = ", ".join("any" if dim is None else str(lengths.get(dim, dim)) for dim in dims)
    wanted = [lengths.setdefault(dim, have) if isinstance(dim, str) else dim
              for dim, have in zip(dims, value.shape)]
    fits = all(want in (None, have) for want, have in zip(wanted, value.shape))
    if len(dims) != value.ndim or not fits:
        raise InputError(f"input {name!r} has shape {value.shape}; the model takes ({allowed})")
