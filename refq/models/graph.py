"""The graph of an ONNX model as an index: who makes a tensor, who reads it, what is known before any input.

A model is one main graph plus the bodies of If, Loop and Scan; each of these is a `Scope`. A name used in a
body may be defined in any scope around it. Local functions must be inlined before (refq.models.files.inline).
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from refq.errors import InputError
from refq.models.operators import DequantizeLinear
from refq.models.tensors import array_of

# Operators whose value from constants is safe to take from onnx.reference: moves, casts, plain arithmetic.
FOLDABLE = frozenset("""
    Identity Transpose Reshape Squeeze Unsqueeze Flatten Cast CastLike DequantizeLinear QuantizeLinear
    Concat Slice Split Gather Expand Shape Mul Div Add Sub Neg Abs Sqrt Reciprocal Pow
    ReduceSum ReduceSumSquare ReduceL2
""".split())
# Operators that give something else on every run, or whose value is not a function of their inputs alone.
UNPREDICTABLE = frozenset("""
    RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial Dropout
    If Loop Scan SequenceMap
""".split())
QUANTIZE_FROM = 19  # onnx.reference has no QuantizeLinear below; it means the same for older operands
CONSTANT_VALUES = ("value", "sparse_value", "value_float", "value_floats", "value_int", "value_ints",
                   "value_string", "value_strings")


@dataclass(eq=False)
class Scope:
    """One GraphProto.

    owner: the node whose body it is (None for the main graph). label: where that is, in words. path: the same
    as output names of the owners and attribute names, unique in the model.
    """

    graph: GraphProto
    owner: "Node | None" = None
    label: str = ""
    path: tuple[str, ...] = ()
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    sparse: dict[str, onnx.SparseTensorProto] = field(default_factory=dict)
    producers: dict[str, "Node"] = field(default_factory=dict)
    inputs: frozenset[str] = frozenset()
    nodes: "list[Node]" = field(default_factory=list)

    @property
    def parent(self) -> "Scope | None":
        return self.owner.scope if self.owner else None

    def defines(self, name: str) -> bool:
        return any(name in names for names in (self.initializers, self.producers, self.inputs, self.sparse))


@dataclass(frozen=True, eq=False)
class Node:
    """A node with its place: `scope.nodes[position]`."""

    proto: NodeProto
    scope: Scope
    position: int

    @property
    def op(self) -> str:
        return self.proto.op_type

    @property
    def is_standard(self) -> bool:
        return self.proto.domain in ("", "ai.onnx")

    @property
    def key(self) -> str:
        """Its first output that is not left out: unique in its scope, where names need not be."""
        return next((name for name in self.proto.output if name), "")

    @property
    def title(self) -> str:
        """How messages name it: its name where it has one, its key otherwise."""
        return self.proto.name or self.key

    def attribute(self, name: str, default=None):
        for attribute in self.proto.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default


@dataclass(frozen=True, eq=False)
class Static:
    """A tensor that is known before any input: stored in the file, or computed from such tensors.

    name: the tensor; scope: where it is defined. op: "initializer", "Constant" or the operator that computes
    it. key: a number, equal for tensors that are equal by construction (Identity is looked through). node:
    its producer, if any. inputs: what it is computed from (None for an omitted operand). stored: its
    TensorProto, if it has one.
    """

    name: str
    scope: Scope
    op: str
    key: int
    node: Node | None = None
    inputs: "tuple[Static | None, ...]" = ()
    stored: TensorProto | None = None

    @property
    def root(self) -> "Static":
        """The stored tensor at the end of the chain of first operands."""
        return self if self.is_leaf else next(i for i in self.inputs if i is not None).root

    @property
    def is_leaf(self) -> bool:
        return self.op in ("initializer", "Constant")

    @property
    def chain(self) -> tuple[str, ...]:
        """The operators between the stored tensor and this one, the last first: ("Transpose", "Cast")."""
        return () if self.is_leaf else (self.op, *next(i for i in self.inputs if i is not None).chain)

    @cached_property
    def overridable(self) -> bool:
        """Whether it comes from an initializer that is a graph input too, which a caller may replace."""
        if self.is_leaf:
            return self.op == "initializer" and self.name in self.scope.inputs
        return any(i.overridable for i in self.inputs if i is not None)

    @cached_property
    def unfoldable(self) -> str:
        """The first operator on the way that refq does not compute, "" when there is none."""
        if not self.is_leaf and (self.op not in FOLDABLE or not self.node.is_standard):
            return self.op
        return next((i.unfoldable for i in self.inputs if i is not None and i.unfoldable), "")


@dataclass(frozen=True, eq=False)
class Use:
    """`node.proto.input[index]` reads a tensor; node None: it is a graph output, of `scope`."""

    node: Node | None
    index: int
    scope: Scope


class Graph:
    """Index of a ModelProto. The proto may lack its external data; `directory` is the Folder
    where that data lies, or a path.

    The index describes the model as it was when made; the editing methods change the proto and are applied by
    `commit`, after which a new Graph has to be made.
    """

    def __init__(self, model: onnx.ModelProto, directory=""):
        self.model = model
        self.directory = directory
        self.opset = opset_of(model)
        self.scopes: list[Scope] = []
        self._uses: dict[tuple[int, str], list[Use]] = defaultdict(list)
        self._static: dict[tuple[int, str], Static | None] = {}
        self._keys: dict[tuple, int] = {}
        self._inserted: dict[tuple[int, int], list[NodeProto]] = defaultdict(list)
        self._disconnected: list[tuple[Scope, str]] = []
        self._index(Scope(model.graph))
        self.names = {name for scope in self.scopes for name in _names(scope.graph)}
        for node in self.nodes():  # in file order, so that no trace has far to go
            for name in node.proto.output:
                self.static(node.scope, name)

    # -- reading ---------------------------------------------------------------------------------------------

    def nodes(self) -> Iterator[Node]:
        """Every node in file order, a body's nodes right after their owner."""
        def walk(scope):
            for node in scope.nodes:
                yield node
                for inner in self.scopes:
                    if inner.owner is node:
                        yield from walk(inner)
        return walk(self.scopes[0])

    def find(self, scope: Scope | None, name: str) -> Scope | None:
        """The scope that defines `name` as seen from `scope`; None when nothing does."""
        while scope is not None and not scope.defines(name):
            scope = scope.parent
        return scope

    def uses(self, scope: Scope, name: str) -> list[Use]:
        """Who reads the tensor that `scope` defines under `name`, inner scopes included."""
        return self._uses.get((id(scope), name), [])

    def static(self, scope: Scope, name: str) -> Static | None:
        """What `name`, seen from `scope`, is before any input; None when it depends on one or on chance."""
        home = self.find(scope, name) if name else None
        if home is None:
            return None
        if (id(home), name) not in self._static:
            self._static[id(home), name] = self._trace(home, name)
        return self._static[id(home), name]

    def array(self, static: Static) -> np.ndarray:
        """The value of a static tensor, folded with onnx.reference one operator at a time.

        Raises InputError when data is missing or damaged, or an operator on the way is not foldable.
        """
        if static.unfoldable:
            raise InputError(f"tensor {static.name!r} is computed from constants by {static.unfoldable}, "
                             "which refq does not fold")
        return self._fold(static, {})

    def shape_and_type(self, static: Static) -> tuple[tuple[int, ...], int]:
        """Shape and ONNX element type of a static tensor, without reading the data of a stored one."""
        if static.stored is not None:
            return tuple(static.stored.dims), static.stored.data_type
        if static.op == "initializer":
            sparse = static.scope.sparse[static.name]
            return tuple(sparse.dims), sparse.values.data_type
        array = self.array(static)
        return array.shape, helper.np_dtype_to_tensor_dtype(array.dtype)

    def unique(self, name: str) -> str:
        """`name`, or `name_1`, `name_2`, ... if it is taken anywhere in the model; the result is reserved."""
        candidate, count = name, 0
        while candidate in self.names:
            count += 1
            candidate = f"{name}_{count}"
        self.names.add(candidate)
        return candidate

    # -- editing ---------------------------------------------------------------------------------------------

    def insert_before(self, node: Node, scope: Scope, nodes: list[NodeProto]) -> None:
        """Put new nodes into `scope`, ahead of `node` or of the node of `scope` whose body it is in."""
        while node.scope is not scope:
            node = node.scope.owner
        self._inserted[id(scope), node.position].extend(nodes)

    def rewire(self, use: Use, name: str) -> None:
        """Let an operand read the tensor `name` instead."""
        old = use.node.proto.input[use.index]
        self._disconnected.append((self.find(use.node.scope, old), old))
        use.node.proto.input[use.index] = name

    def commit(self) -> None:
        """Apply the insertions and drop what only served the tensors that nothing reads any more."""
        for scope in reversed(self.scopes):  # bodies first: rewriting a scope's nodes copies their bodies
            if any((id(scope), node.position) in self._inserted for node in scope.nodes):
                nodes = [_copy(proto) for node in scope.nodes
                         for proto in (*self._inserted.get((id(scope), node.position), ()), node.proto)]
                del scope.graph.node[:]
                scope.graph.node.extend(nodes)
        after = Graph(self.model, self.directory)
        _prune(after, [(after.scopes[self.scopes.index(scope)], name) for scope, name in self._disconnected])

    # -- the index -------------------------------------------------------------------------------------------

    def _index(self, scope: Scope) -> None:
        graph = scope.graph
        self.scopes.append(scope)
        scope.initializers = {tensor.name: tensor for tensor in graph.initializer}
        scope.sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        scope.inputs = frozenset(value.name for value in graph.input)
        scope.nodes = [Node(proto, scope, position) for position, proto in enumerate(graph.node)]
        scope.producers = {name: node for node in scope.nodes for name in node.proto.output if name}
        for node in scope.nodes:
            for index, name in enumerate(node.proto.input):
                self._note(Use(node, index, scope), name)
            for attribute in node.proto.attribute:
                for number, body in enumerate(_bodies(attribute)):
                    count = f"[{number}]" if attribute.type == AttributeProto.GRAPHS else ""
                    label = f"{attribute.name}{count} of {node.op} {node.title!r}"
                    self._index(Scope(body, node, f"{label} in {scope.label}" if scope.label else label,
                                      (*scope.path, node.key, attribute.name + count)))
        for index, value in enumerate(graph.output):
            self._note(Use(None, index, scope), value.name)

    def _note(self, use: Use, name: str) -> None:
        home = self.find(use.scope, name) if name else None
        if home is not None:
            self._uses[id(home), name].append(use)

    def _trace(self, scope: Scope, name: str) -> Static | None:
        node = scope.producers.get(name)
        key = self._key(("stored", *scope.path, name))
        if name in scope.initializers or name in scope.sparse:
            return Static(name, scope, "initializer", key, stored=scope.initializers.get(name))
        if node is None or node.op in UNPREDICTABLE or (node.op != "Constant" and not any(node.proto.input)):
            return None
        if node.op == "Constant" and node.is_standard:
            return Static(name, scope, "Constant", key, node, stored=node.attribute("value"))
        inputs = tuple(self.static(scope, i) for i in node.proto.input)
        if any(static is None and i for static, i in zip(inputs, node.proto.input, strict=True)):
            return None
        key = inputs[0].key if node.op == "Identity" else self._key(_operation(node, name, inputs))
        return Static(name, scope, node.op, key, node, inputs)

    def _key(self, parts: tuple) -> int:
        return self._keys.setdefault(parts, len(self._keys))

    def _fold(self, static: Static, known: dict[int, np.ndarray]) -> np.ndarray:
        if static.key not in known:
            if static.is_leaf:
                known[static.key] = self._leaf_array(static)
            elif static.op == "Identity":
                return self._fold(static.inputs[0], known)
            else:
                arrays = [None if i is None else self._fold(i, known) for i in static.inputs]
                known[static.key] = evaluate(static.node.proto, arrays, static.name, self.model.opset_import)
        return known[static.key]

    def _leaf_array(self, static: Static) -> np.ndarray:
        if static.stored is not None:
            return array_of(static.stored, self.directory)
        try:
            if static.op == "initializer":
                return _dense(static.scope.sparse[static.name], self.directory)
            return _constant_array(static.node, self.directory)
        except InputError:
            raise
        except (ValueError, TypeError, IndexError) as error:
            raise InputError(f"the data of tensor {static.name!r} cannot be read: {error}") from error


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operator set that a model imports; 0 when it imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def evaluate(node: NodeProto, arrays: list, output: str, opset_import) -> np.ndarray:
    """One output of one node on given operands (None: omitted), by onnx.reference at the opsets given.

    DequantizeLinear is refq's own: older releases of onnx lack it below opset 19 and above 21.
    """
    feeds = {name: array for name, array in zip(node.input, arrays, strict=True) if name}
    inputs = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
              for name, array in feeds.items()]
    graph = helper.make_graph([node], "fold", inputs, [onnx.ValueInfoProto(name=output)])
    if node.op_type == "QuantizeLinear":
        opset_import = [helper.make_opsetid(entry.domain, max(entry.version, QUANTIZE_FROM))
                        for entry in opset_import if entry.domain in ("", "ai.onnx")]
    model = helper.make_model(graph, opset_imports=opset_import)
    try:
        return np.asarray(ReferenceEvaluator(model, new_ops=[DequantizeLinear]).run([output], feeds)[0])
    except (NotImplementedError, RuntimeError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"tensor {output!r} cannot be folded by {node.op_type}: {error}") from error


def _bodies(attribute: AttributeProto) -> list[GraphProto]:
    if attribute.type == AttributeProto.GRAPH:
        return [attribute.g]
    return list(attribute.graphs) if attribute.type == AttributeProto.GRAPHS else []


def _names(graph: GraphProto) -> Iterator[str]:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield node.name
        yield from node.input
        yield from node.output
    for tensor in graph.sparse_initializer:
        yield tensor.values.name


def _operation(node: Node, name: str, inputs) -> tuple:
    """What makes two computed constants equal: operator, attributes, output and operands."""
    attributes = b"".join(sorted(a.SerializeToString(deterministic=True) for a in node.proto.attribute))
    return (node.op, node.proto.domain, list(node.proto.output).index(name), attributes,
            *(None if i is None else i.key for i in inputs))


def _constant_array(node: Node, directory) -> np.ndarray:
    """The value of a Constant node whose value is not a plain tensor."""
    kind = next((a.name for a in node.proto.attribute if a.name in CONSTANT_VALUES), None)
    value = node.attribute(kind)
    if kind is None:
        raise ValueError(f"Constant {node.title!r} has none of {', '.join(CONSTANT_VALUES)}")
    if kind == "sparse_value":
        return _dense(value, directory)
    dtype = {"value_float": np.float32, "value_int": np.int64, "value_string": object}[kind.removesuffix("s")]
    return np.array(value, dtype)


def _dense(sparse: onnx.SparseTensorProto, directory) -> np.ndarray:
    """A sparse tensor as a full array. Indices are linear [NNZ] or coordinates [NNZ, rank]."""
    values, indices = array_of(sparse.values, directory), array_of(sparse.indices, directory)
    array = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 2:
        array[tuple(indices.T)] = values
    else:
        array.reshape(-1)[indices] = values
    return array


def _copy(proto: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(proto)
    return copy


def _prune(graph: Graph, candidates: list[tuple[Scope, str]]) -> None:
    """Remove the producers of the tensors named that nothing reads, then what only they read, and so on.

    Nodes and tensors that were unused from the beginning stay: they are the author's.
    """
    work = list(candidates)
    dead_nodes: set[int] = set()
    dead_names: dict[int, set[str]] = defaultdict(set)

    def unread(scope, name):
        return all(use.node is not None and id(use.node) in dead_nodes for use in graph.uses(scope, name))

    while work:
        scope, name = work.pop()
        if name in dead_names[id(scope)] or not unread(scope, name):
            continue
        node = scope.producers.get(name)
        if node is None:
            dead_names[id(scope)].add(name)
        elif all(unread(scope, output) for output in node.proto.output if output):
            dead_nodes.add(id(node))
            dead_names[id(scope)].update(node.proto.output)
            work.extend((graph.find(scope, i), i) for i in node.proto.input if i)
    for scope in graph.scopes:
        _remove(scope, dead_nodes, dead_names[id(scope)])


def _remove(scope: Scope, dead_nodes: set[int], dead_names: set[str]) -> None:
    graph = scope.graph
    owned = set(scope.initializers) | set(scope.sparse)
    for position in reversed([node.position for node in scope.nodes if id(node) in dead_nodes]):
        del graph.node[position]
    for values, name_of in ((graph.initializer, lambda t: t.name), (graph.value_info, lambda t: t.name),
                            (graph.sparse_initializer, lambda t: t.values.name),
                            (graph.quantization_annotation, lambda t: t.tensor_name)):
        for position in reversed([k for k, value in enumerate(values) if name_of(value) in dead_names]):
            del values[position]
    for position in reversed([k for k, value in enumerate(graph.input) if value.name in dead_names & owned]):
        del graph.input[position]
