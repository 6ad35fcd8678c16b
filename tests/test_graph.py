"""The index of an ONNX graph: what is static, who uses what, and edits that leave the rest alone."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper
from onnx_models import model, node, tensor, value, weight

from refq.errors import InputError
from refq.models.graph import Graph, Use, opset_of

W = np.arange(12, dtype=np.float32).reshape(3, 4)


def static(nodes, tensors=None, opset=17, name="t"):
    """(Graph, Static) of the tensor `t` that the nodes make from the weight `w` [3, 4]."""
    stored = {"w": W} if tensors is None else tensors
    graph = Graph(
        model([*nodes, node("MatMul", ["x", name], ["y"])], {"x": [1, 3]}, {"y": None}, stored, opset=opset))
    return graph, graph.static(graph.scopes[0], name)


def folded(nodes, **options):
    graph, found = static(nodes, **options)
    return graph.array(found)


# -- constants -----------------------------------------------------------------------------------------------

SPARSE = helper.make_sparse_tensor(tensor("", np.array([5.0, 7.0], np.float32)), tensor("", np.array([1, 6])),
                                   [2, 4])
COORDINATES = helper.make_sparse_tensor(tensor("", np.array([5.0, 7.0], np.float32)),
                                        tensor("", np.array([[0, 1], [1, 2]])), [2, 4])
DENSE = np.array([[0, 5, 0, 0], [0, 0, 7, 0]], np.float32)


@pytest.mark.parametrize("attributes, expected", [
    ({"value": tensor("", W)}, W),
    ({"value_float": 2.5}, np.float32(2.5)),
    ({"value_floats": [1.0, 2.5]}, np.array([1, 2.5], np.float32)),
    ({"value_int": 3}, np.int64(3)),
    ({"value_ints": [3, 4]}, np.array([3, 4], np.int64)),
    ({"sparse_value": SPARSE}, DENSE),
    ({"sparse_value": COORDINATES}, DENSE),
])
def test_constant_nodes_of_every_value_kind(attributes, expected):
    got = folded([node("Constant", [], ["t"], **attributes)])
    assert got.dtype == expected.dtype and np.array_equal(got, expected)


def test_a_constant_string():
    assert folded([node("Constant", [], ["t"], value_string="abc")]) == b"abc"


def test_a_sparse_initializer_is_read_and_measured():
    sparse = helper.make_sparse_tensor(tensor("w", np.array([5.0, 7.0], np.float32)),
                                       tensor("i", np.array([1, 6])), [2, 4])
    graph = Graph(
        model([node("MatMul", ["x", "w"], ["y"])], {"x": [1, 2]}, {"y": [1, 4]}, sparse_initializer=[sparse]))
    found = graph.static(graph.scopes[0], "w")
    assert graph.shape_and_type(found) == ((2, 4), T.FLOAT)
    assert np.array_equal(graph.array(found), DENSE)


# -- chains --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("opset, nodes, expected", [
    (17, [node("Identity", ["w"], ["t"])], W),
    (17, [node("Transpose", ["w"], ["t"])], W.T),
    (17, [node("Transpose", ["w"], ["a"], perm=[1, 0]), node("Identity", ["a"], ["t"])], W.T),
    (17, [node("Reshape", ["w", "s"], ["t"])], W.reshape(2, 6)),
    (11, [node("Unsqueeze", ["w"], ["t"], axes=[0])], W[None]),
    (13, [node("Unsqueeze", ["w", "zero"], ["t"])], W[None]),
    (11, [node("Unsqueeze", ["w"], ["a"], axes=[1]), node("Squeeze", ["a"], ["t"], axes=[1])], W),
    (13, [node("Unsqueeze", ["w", "zero"], ["a"]), node("Squeeze", ["a", "zero"], ["t"])], W),
    (17, [node("Flatten", ["w"], ["t"], axis=0)], W.reshape(1, 12)),
    (17, [node("Cast", ["w"], ["a"], to=T.FLOAT16), node("Cast", ["a"], ["t"], to=T.FLOAT)], W),
    (17, [node("Concat", ["w", "w"], ["t"], axis=0)], np.concatenate([W, W])),
    (17, [node("Mul", ["w", "scale"], ["t"])], W * np.float32(0.5)),
    (17, [node("Split", ["w"], ["a", "t"], axis=1)], W[:, 2:]),
    (17, [node("Shape", ["w"], ["a"]), node("Reshape", ["w", "a"], ["t"])], W),
])
def test_chains_fold_at_the_models_opset(opset, nodes, expected):
    tensors = {"w": W, "s": np.array([2, 6]), "zero": np.array([0]), "scale": np.float32(0.5).reshape(())}
    got = folded(nodes, tensors=tensors, opset=opset)
    assert got.dtype == expected.dtype and np.array_equal(got, expected)


@pytest.mark.parametrize("opset, scale, attributes, expected", [
    (13, np.float32(0.5).reshape(()), {}, [[0.5, 1], [1.5, 2]]),
    (13, np.array([0.5, 2], np.float32), {"axis": 0}, [[0.5, 1], [6, 8]]),
    (21, np.array([[0.5], [2]], np.float32), {"axis": 1, "block_size": 2}, [[0.5, 1], [6, 8]]),
])
def test_dequantized_constants_fold(opset, scale, attributes, expected):
    """onnx.reference has no DequantizeLinear below 19; opset 13 means the same."""
    tensors = {"w": np.array([[1, 2], [3, 4]], np.int8), "s": scale}
    got = folded([node("DequantizeLinear", ["w", "s"], ["t"], **attributes)], tensors=tensors, opset=opset)
    assert got.dtype == np.float32 and np.array_equal(got, np.array(expected, np.float32))


def test_the_path_of_a_chain():
    _, found = static([
        node("Identity", ["w"], ["a"]),
        node("Transpose", ["a"], ["b"]),
        node("Cast", ["b"], ["t"], to=T.DOUBLE)
    ])
    assert found.chain == ("Cast", "Transpose", "Identity") and found.root.name == "w" and found.root.is_leaf


def test_equal_by_construction():
    graph, _ = static([
        node("Transpose", ["w"], ["a"]),
        node("Identity", ["w"], ["i"]),
        node("Transpose", ["i"], ["b"]),
        node("Transpose", ["w"], ["c"], perm=[0, 1]),
        node("Identity", ["a"], ["t"])
    ])
    keys = {name: graph.static(graph.scopes[0], name).key for name in "waibct"}
    assert keys["w"] == keys["i"] and keys["a"] == keys["b"] == keys["t"] and len(set(keys.values())) == 3


@pytest.mark.parametrize("nodes", [
    [node("Relu", ["x"], ["t"])],
    [node("Mul", ["x", "w"], ["t"])],
    [node("RandomNormal", [], ["t"], shape=[3, 4])],
    [node("RandomNormalLike", ["w"], ["t"])],
    [node("Dropout", ["w"], ["t"])],
])
def test_what_depends_on_an_input_or_on_chance_is_not_static(nodes):
    assert static(nodes)[1] is None


def test_constant_but_not_folded():
    graph, found = static([node("Erf", ["w"], ["a"]), node("Transpose", ["a"], ["t"])])
    assert found.unfoldable == "Erf"
    with pytest.raises(InputError, match="'t' is computed from constants by Erf"):
        graph.array(found)


def test_a_custom_operator_with_a_standard_name_is_not_folded():
    _, found = static([node("Transpose", ["w"], ["t"], domain="custom")])
    assert found.unfoldable == "Transpose"


def test_a_very_deep_graph():
    """No recursion along the depth of the network."""
    nodes = [node("Relu", [f"a{i}"], [f"a{i + 1}"]) for i in range(3000)]
    graph = Graph(model(nodes, {"a0": [1]}, {"a3000": [1]}))
    assert graph.static(graph.scopes[0], "a3000") is None


def test_a_constant_computed_along_many_paths_folds_in_time():
    nodes = [node("Add", [f"a{i}", f"a{i}"], [f"a{i + 1}"]) for i in range(60)]
    got = folded([*nodes, node("Identity", ["a60"], ["t"])], tensors={"a0": np.ones(1)})
    assert got == [2.0 ** 60]


# -- overridable, damaged, missing ---------------------------------------------------------------------------

def test_an_initializer_that_is_an_input_is_overridable():
    proto = model([node("Transpose", ["w"], ["t"]), node("MatMul", ["x", "t"], ["y"])],
                  {"x": [1, 4], "w": [3, 4]}, {"y": [1, 3]}, {"w": W})
    graph = Graph(proto)
    assert graph.static(graph.scopes[0], "t").overridable
    assert not static([node("Transpose", ["w"], ["t"])])[1].overridable


def test_damaged_data_is_named():
    graph, found = static([node("Identity", ["w"], ["t"])])
    found.root.stored.raw_data = b"\0" * 10
    with pytest.raises(InputError, match="data of tensor 'w' cannot be read"):
        graph.array(found)


def test_missing_external_data_is_named(tmp_path):
    graph, found = static([node("Identity", ["w"], ["t"])])
    onnx.external_data_helper.set_external_data(found.root.stored, "gone.bin")
    found.root.stored.ClearField("raw_data")
    graph.directory = str(tmp_path)
    with pytest.raises(InputError, match="tensor 'w'.*gone.bin"):
        graph.array(found)


# -- scopes --------------------------------------------------------------------------------------------------

def nested():
    """An If whose branches use the outer weight, one of them inside a Loop with a weight of its own."""
    steps = [
        node("MatMul", ["s", "inner"], ["p"], name="deep"),
        node("MatMul", ["p", "w"], ["s2"], name="deep_outer"),
        node("Identity", ["go"], ["go2"])
    ]
    carried = [value("i", [], T.INT64), value("go", [], T.BOOL), value("s", [2, 4])]
    loop_body = helper.make_graph(steps, "body", carried, [value("go2", [], T.BOOL), value("s2", [2, 4])],
                                  [tensor("inner", weight(4, 4))])
    then_branch = helper.make_graph([node("MatMul", ["x", "w"], ["a"], name="shallow")], "then", [],
                                    [value("a", [2, 4])])
    else_branch = helper.make_graph([node("Loop", ["n", "", "x"], ["b"], body=loop_body)], "else", [],
                                    [value("b", [2, 4])])
    return model([node("If", ["c"], ["y"], name="choice", then_branch=then_branch, else_branch=else_branch)],
                 [value("x", [2, 4]), value("c", [], T.BOOL)], {"y": [2, 4]},
                 {"w": weight(4, 4, seed=1), "n": np.array(2)})


def test_bodies_are_scopes_that_see_outward():
    graph = Graph(nested())
    onnx.checker.check_model(graph.model)
    assert {scope.label for scope in graph.scopes} == {
        "", "then_branch of If 'choice'", "else_branch of If 'choice'",
        "body of Loop 'b' in else_branch of If 'choice'"}
    loop = next(scope for scope in graph.scopes if scope.label.startswith("body"))
    assert graph.static(loop, "w").scope is graph.scopes[0] and graph.static(loop, "inner").scope is loop
    assert graph.static(loop, "s") is None and graph.static(loop, "x") is None
    assert sorted(use.node.title for use in graph.uses(graph.scopes[0], "w")) == ["deep_outer", "shallow"]
    assert len({scope.path for scope in graph.scopes}) == 4
    assert [n.op for n in graph.nodes()].count("MatMul") == 3


def test_inserting_into_outer_scopes_and_rewiring_inner_nodes():
    proto = nested()
    graph = Graph(proto)
    proto.graph.initializer.append(tensor("w_new", weight(4, 4, seed=2)))
    deep = next(n for n in graph.nodes() if n.title == "deep_outer")
    graph.insert_before(deep, graph.scopes[0], [node("Identity", ["w_new"], ["fresh"])])
    for use in list(graph.uses(graph.scopes[0], "w")):
        graph.rewire(use, "fresh")
    graph.commit()
    onnx.checker.check_model(proto)
    after = Graph(proto)
    assert [n.op for n in after.scopes[0].nodes] == ["Identity", "If"]
    assert "w" not in after.scopes[0].initializers and len(after.uses(after.scopes[0], "fresh")) == 2


# -- editing -------------------------------------------------------------------------------------------------

def edited(nodes, tensors, target="y", index=1, inputs=None, outputs=None, **options):
    """The model after operand `index` of the node that makes `target` was rewired to the new tensor `n`."""
    proto = model(nodes, inputs or {"x": [1, 3]}, outputs or {"y": None}, {**tensors, "n": W}, **options)
    graph = Graph(proto)
    user = graph.scopes[0].producers[target]
    graph.rewire(Use(user, index, user.scope), "n")
    graph.commit()
    return proto


def test_a_chain_that_nothing_reads_any_more_goes():
    proto = edited([
        node("Transpose", ["w"], ["a"]),
        node("Cast", ["a"], ["t"], to=T.FLOAT),
        node("MatMul", ["x", "t"], ["y"])
    ], {"w": W}, value_info=[value("a", [4, 3])])
    assert [n.op_type for n in proto.graph.node] == ["MatMul"]
    assert [t.name for t in proto.graph.initializer] == ["n"] and not proto.graph.value_info


def test_what_others_read_stays():
    proto = edited([
        node("Transpose", ["w"], ["t"]),
        node("MatMul", ["x", "t"], ["y"]),
        node("Relu", ["w"], ["z"])
    ], {"w": W}, outputs={"y": None, "z": None})
    assert [n.op_type for n in proto.graph.node] == ["MatMul", "Relu"]
    assert sorted(t.name for t in proto.graph.initializer) == ["n", "w"]


def test_a_graph_output_stays():
    proto = edited([node("Transpose", ["w"], ["t"]),
                    node("MatMul", ["x", "t"], ["y"])], {"w": W}, outputs={"y": None, "t": None})
    assert [n.op_type for n in proto.graph.node] == ["Transpose", "MatMul"]


def test_what_was_unused_from_the_beginning_stays():
    proto = edited([
        node("Transpose", ["w"], ["t"]),
        node("Transpose", ["u"], ["idle"]),
        node("MatMul", ["x", "t"], ["y"])
    ], {"w": W, "u": W, "lonely": W})
    assert [n.output[0] for n in proto.graph.node] == ["idle", "y"]
    assert sorted(t.name for t in proto.graph.initializer) == ["lonely", "n", "u"]


def test_an_initializer_takes_its_graph_input_with_it():
    proto = edited([node("MatMul", ["x", "w"], ["y"])], {"w": W}, inputs={"x": [1, 3], "w": [3, 4]})
    assert [v.name for v in proto.graph.input] == ["x"]


def test_one_output_of_several_in_use_keeps_the_node():
    proto = edited([
        node("Split", ["w"], ["t", "s"], axis=1),
        node("MatMul", ["x", "t"], ["y"]),
        node("MatMul", ["x", "s"], ["z"])
    ], {"w": W}, outputs={"y": None, "z": None})
    assert [n.op_type for n in proto.graph.node] == ["Split", "MatMul", "MatMul"]


def test_unique_names_avoid_every_name_of_the_model():
    graph = Graph(nested())
    assert graph.unique("inner") == "inner_1" and graph.unique("inner") == "inner_2"   # of a body
    assert graph.unique("deep") == "deep_1"                                            # a node's name
    assert graph.unique("free") == "free"


def test_the_opset():
    assert opset_of(model([], {}, {}, opset=[helper.make_opsetid("x", 3),
                                             helper.make_opsetid("ai.onnx", 12)])) == 12
