"""Run an ONNX model in numpy.

`onnx.reference` does the work, one node at a time; refq.models.operators replaces what it computes slowly or
wrongly. Nodes that depend on weights alone (a DequantizeLinear in front of a weight, say) are computed once,
when the engine is made; every other result is dropped after its last use. Sums are taken in the dtype of the
tensors, float16 and bfloat16 products in float32.
"""

import numpy as np
import onnx
import onnx.version_converter
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from refq.errors import InputError
from refq.models import files
from refq.models.graph import UNPREDICTABLE, opset_of
from refq.models.operators import OPS, WRONG

# Below 14 BatchNormalization, and below 13 Softmax, mean something that onnx.reference does not compute.
OLDEST_OPSET = 14


class Engine:
    """An ONNX model ready to run.

    `model` is a ModelProto or a path. A copy of it runs, `.model`: local functions inlined, opsets below 14
    raised. Raises InputError for what is not a model, an opset that cannot be raised, an operator that
    nothing here can run, or one known to be computed wrongly.
    """

    def __init__(self, model):
        self.model = _prepared(model)
        try:
            evaluator = ReferenceEvaluator(self.model, new_ops=list(OPS))
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"the model cannot run in numpy: {error}") from error
        graph = self.model.graph
        self.inputs = {value.name: _tensor_type(value) for value in graph.input}
        self.outputs = tuple(value.name for value in graph.output)
        self._defaults = {k: v for k, v in evaluator.rt_inits_.items() if k in self.inputs}
        weights = {k: v for k, v in evaluator.rt_inits_.items() if k not in self.inputs}
        self._constants, self._operators = _folded(evaluator.rt_nodes_, weights)
        # run() may hand these out; writing to them must not change later runs
        for array in (*self._defaults.values(), *self._constants.values()):
            if isinstance(array, np.ndarray):
                array.flags.writeable = False

    def run(self, feeds, outputs=None):
        """`feeds`: input name -> array of exactly the dtype and shape the model declares. `outputs`: names of
        any tensors of the main graph (default: its outputs). Returns name -> array, in that order.

        Raises InputError for a feed that does not fit, an unknown name, or a node that fails (naming the
        node).
        """
        _check_feeds(feeds, self.inputs, self._defaults)
        outputs = self.outputs if outputs is None else tuple(outputs)
        values = {"": None, **self._constants, **self._defaults, **feeds}
        for operator, finished in self._plan(outputs):
            _run_node(operator, values)
            for name in finished:
                values.pop(name, None)
        return {name: values[name] for name in outputs}

    def _plan(self, outputs):
        """(operator, names to drop after it) for every node that `outputs` need, in order."""
        made = {name for operator in self._operators for name in operator.output}
        known = made | self.inputs.keys() | self._constants.keys()
        for name in outputs:
            if name not in known:
                raise InputError(f"the model has no tensor {name!r}; its outputs are {_listed(self.outputs)}")
        plan, mentioned = [], set(outputs)
        for operator in reversed(self._operators):  # who mentions a name first is then the last to use it
            if mentioned.intersection(operator.output):
                names = _uses(operator.onnx_node).union(operator.output) - {""}
                plan.append((operator, names - mentioned - self._constants.keys()))
                mentioned |= names
        return plan[::-1]


def run_batches(model, feeds, batch_size, progress=None, outputs=None):
    """Run `model` (an Engine, a ModelProto or a path) over `feeds` in parts of `batch_size` along axis 0, and
    put the outputs together along axis 0. Returns name -> array.

    `progress(done, total)`, if given, is called after every part with numbers of rows. Raises InputError as
    Engine.run does, when the feeds have no or different lengths, and when an output does not have one row, of
    one shape throughout, for every input row.
    """
    engine = model if isinstance(model, Engine) else Engine(model)
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

def _prepared(model):
    """ModelProto or path -> a copy that holds all its data, without local functions, of an opset that
    onnx.reference computes."""
    source = files.load(model)
    model = files.inline(source, [])
    _embed(model, source)
    _name_standard_domain(model)
    opset = opset_of(model)
    _refuse_wrong(model.graph, opset)
    if not 0 < opset < OLDEST_OPSET:
        return model
    try:
        raised = onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except Exception as error:  # RuntimeError, ConvertError, checker errors: no common base
        raise InputError(f"the model is of opset {opset}; refq runs opset {OLDEST_OPSET} and later, and "
                         f"onnx.version_converter cannot raise it: {error}") from error
    if opset < 11:
        _keep_old_resize(raised.graph)
    return raised


def _embed(model, source):
    """Bring external data into the proto. A ModelProto does not say where that lay, a path does."""
    if source.path:
        files.embed(model, source.directory)
    for tensor in files.tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise InputError(f"the data of tensor {tensor.name!r} is in another file, and a ModelProto does "
                             "not say where; give the model's path, or load it with its external data")


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


def _refuse_wrong(graph, opset):
    """Refuse what onnx.reference accepts and computes wrongly, see operators.WRONG."""
    for node in _all_nodes(graph):
        for ops, below, concerns, why in WRONG:
            if not node.domain and node.op_type in ops and opset < below and concerns(node):
                raise InputError(f"{_title(node)} cannot run in numpy: onnx.reference {why}")


def _all_nodes(graph):
    for node in graph.node:
        yield node
        for subgraph in _subgraphs(node):
            yield from _all_nodes(subgraph)


def _subgraphs(node):
    for attribute in node.attribute:
        yield from ([attribute.g] if attribute.HasField("g") else attribute.graphs)


def _uses(node):
    """Names a node may read: its inputs, and whatever its subgraphs mention."""
    names = set(node.input)
    for subgraph in _subgraphs(node):
        names.update(value.name for value in subgraph.output)
        for inner in subgraph.node:
            names |= _uses(inner)
    return names


# -- running ------------------------------------------------------------------------------------------------

def _folded(operators, values):
    """(`values` and all that follows from them alone, the operators that are left for every run)."""
    values, left = {"": None, **values}, []
    for operator in operators:
        if operator.op_type not in UNPREDICTABLE and values.keys() >= set(operator.input):
            _run_node(operator, values)
        else:
            left.append(operator)
    del values[""]
    return values, left


def _run_node(operator, values):
    """Run one operator of onnx.reference on `values` and put its outputs there."""
    node = operator.onnx_node
    for name in node.input:
        if name not in values:
            raise InputError(f"{_title(node)} reads {name!r}, which is no input, no dense initializer and no "
                             "output of a node before it")
    context = {"context": values} if operator.need_context() else {}
    try:
        # An ONNX operator has no exceptions: an overflow is Inf, Inf - Inf is NaN, neither earns a warning.
        with np.errstate(all="ignore"):
            results = operator.run(*(values[name] for name in node.input), **context)
    except Exception as error:  # whatever an implementation raises, the user needs to know where
        reason = error.__cause__ or error
        raise InputError(f"{_title(node)} failed: {type(reason).__name__}: {reason}") from error
    values.update((name, value) for name, value in zip(node.output, results) if name)


def _title(node):
    return f"node {node.name or next(filter(None, node.output), '')!r} ({node.op_type})"


def _listed(names):
    return ", ".join(repr(name) for name in names)


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
