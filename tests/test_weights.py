"""Which nodes bear a weight, which matrix that is, and which axis the layer sums over."""

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper
from onnx_models import (LAYERS, every_layer, feeds, input_name, matrix, model, node, run_reference, tensor,
                         value, weight, weight_name)

from refq.errors import InputError
from refq.models.graph import Graph
from refq.models.weights import find_weights, read_weight


def sites(proto):
    return find_weights(Graph(proto))


def only(nodes, tensors, inputs=None, **options):
    """The one site of a model."""
    found = sites(model(nodes, inputs or {"x": None}, {"y": None}, tensors, **options))
    assert len(found) == 1
    return found[0]


# -- matrices ------------------------------------------------------------------------------------------------

def test_every_kind_of_layer_is_found_as_its_matrix():
    proto, weights = every_layer()
    graph = Graph(proto)
    found = {site.key: site for site in find_weights(graph)}
    assert list(found) == list(LAYERS)
    for name, site in found.items():
        expected, axis = matrix(name, weights[name])
        assert site.view.axis == axis and site.stored_shape == weights[name].shape, name
        assert np.array_equal(read_weight(graph, site), expected), name


@pytest.mark.parametrize("name", LAYERS)
def test_the_reduction_axis_is_the_one_the_layer_sums_over(name):
    """With ones at index 3 of that axis and zeros elsewhere, outputs differ only in where they look at x."""
    proto, weights = every_layer()
    (array, axis), given = matrix(name, weights[name]), feeds(proto)
    probe = np.zeros_like(array)
    probe[(slice(None),) * axis + (3,)] = 1.0
    stored = next(t for t in proto.graph.initializer if t.name == weight_name(name))
    stored.CopyFrom(tensor(stored.name, probe.reshape(weights[name].shape)))
    got, x = run_reference(proto, given, [name])[0], given[input_name(name)]
    op, _, _, _, _, attributes = LAYERS[name]
    if op == "Conv":  # every output channel of a group sees the same tap
        for group in np.split(np.moveaxis(got, 1, 0), attributes.get("group", 1)):
            assert np.array_equal(group, np.broadcast_to(group[:1], group.shape))
    else:
        entries = attributes.get("alpha", 1.0) * np.take(x, 3, axis=x.shape.index(array.shape[axis]))
        assert all(np.isclose(entries, out).any() for out in got.ravel())


@pytest.mark.parametrize("nodes, axis, reached", [
    ([node("MatMul", ["x", "w"], ["y"])], 0, ()),
    ([node("Transpose", ["w"], ["t"]), node("MatMul", ["x", "t"], ["y"])], 0, ("Transpose",)),
    ([node("Identity", ["w"], ["t"]), node("MatMul", ["t", "x"], ["y"])], 1, ("Identity",)),
    ([
        node("Cast", ["w"], ["a"], to=T.DOUBLE),
        node("Transpose", ["a"], ["t"]),
        node("Gemm", ["x", "t"], ["y"], transB=1)
    ], 1, ("Cast", "Transpose")),
])
def test_weights_behind_other_nodes(nodes, axis, reached):
    site = only(nodes, {"w": weight(8, 8)})
    assert (site.view.axis, site.reached) == (axis, reached)
    assert site.tensor == ("t" if reached not in ((), ("Identity",)) else "w")
    assert {"w", "y"} <= site.names


def test_weights_in_constant_nodes():
    site = only([
        node("Constant", [], ["w"], value=tensor("", weight(8, 4))),
        node("MatMul", ["x", "w"], ["y"])
    ], {})
    assert site.tensor == "w" and site.stored_shape == (8, 4) and site.type == T.FLOAT


def test_the_right_operand_comes_first():
    site = only([node("MatMul", ["a", "b"], ["y"])], {"a": weight(4, 4), "b": weight(4, 4)})
    assert site.operand == 1 and site.view is None and "both operands are constant" in site.reason


def test_products_of_activations_bear_no_weight():
    assert sites(
        model([node("MatMul", ["x", "x"], ["y"]),
               node("Gemm", ["x", "y"], ["z"])], {"x": [3, 3]}, {"z": None})) == []


# -- sharing -------------------------------------------------------------------------------------------------

def test_sharing_is_the_same_constant_in_the_same_view():
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Identity", ["w"], ["i"]),
        node("MatMul", ["x", "i"], ["b"]),
        node("MatMul", ["w", "x"], ["c"]),
        node("Transpose", ["w"], ["t"]),
        node("Transpose", ["i"], ["u"]),
        node("MatMul", ["x", "t"], ["d"]),
        node("MatMul", ["x", "u"], ["e"])
    ]
    found = sites(model(nodes, {"x": [4, 4]}, {k: None for k in "abcde"}, {"w": weight(4, 4)}))
    groups = {}
    for site in found:
        groups.setdefault(site.group, []).append(site.key)
    assert sorted(groups.values()) == [["a", "b"], ["c"], ["d", "e"]]


# -- rows for what is not cast -------------------------------------------------------------------------------

LSTM = {"w": weight(1, 16, 4), "r": weight(1, 16, 4)}


@pytest.mark.parametrize("nodes, tensors, reason", [
    ([node("ConvTranspose", ["x", "w"], ["y"])], {"w": weight(4, 4, 3, 3)}, "not cast yet"),
    ([node("LSTM", ["x", "w", "r"], ["", "y"], hidden_size=4)], LSTM, "not cast yet"),
    ([node("GRU", ["x", "w", "r"], ["y"], hidden_size=4)], LSTM, "not cast yet"),
    ([node("RNN", ["x", "w", "r"], ["y"], hidden_size=4)], LSTM, "not cast yet"),
    ([node("Einsum", ["x", "w"], ["y"], equation="ij,jk->ik")], {"w": weight(4, 4)}, "not cast yet"),
    ([node("Gather", ["w", "x"], ["y"])], {"w": weight(9, 4)}, "lookup table"),
    ([node("MatMulInteger", ["x", "w"], ["y"])], {"w": np.ones((4, 4), np.int8)}, "quantised already"),
    ([node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=16, N=4, bits=4, block_size=16)],
     {"w": np.ones((4, 1, 8), np.uint8), "s": np.ones(4, np.float32)}, "quantised already"),
    ([node("Conv", ["x", "x"], ["y"])], {}, "computed at run time"),
    ([node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((4, 4), np.int32)}, "int32"),
    ([node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((0, 4), np.float32)}, "nothing to cast"),
    ([node("Erf", ["w"], ["e"]), node("MatMul", ["x", "e"], ["y"])], {"w": weight(4, 4)}, "by Erf"),
])
def test_weights_that_are_not_cast_have_a_site_with_the_reason(nodes, tensors, reason):
    site = only(nodes, tensors)
    assert site.view is None and reason in site.reason and site.key == "y"


@pytest.mark.parametrize(
    "nodes, tensors",
    [
        ([node("Gather", ["w", "x"], ["y"])], {"w": np.arange(9)}),  # shape arithmetic
        ([node("Gather", ["w", "i"], ["g"]),
          node("Mul", ["g", "x"], ["y"])], {"w": weight(9, 4), "i": np.array([1, 2])}),
        ([node("Add", ["x", "w"], ["y"])], {"w": weight(4)}),
        ([node("LayerNormalization", ["x", "w"], ["y"])], {"w": weight(4)}),
    ])
def test_what_is_no_weight_has_no_site(nodes, tensors):
    assert sites(model(nodes, {"x": None}, {"y": None}, tensors)) == []


def test_weights_in_bodies_are_found():
    then_branch = helper.make_graph([node("MatMul", ["x", "w"], ["a"])], "then", [], [value("a", None)])
    else_branch = helper.make_graph([node("MatMul", ["x", "v"], ["b"])], "else", [], [value("b", None)],
                                    [tensor("v", weight(4, 4))])
    proto = model([node("If", ["c"], ["y"], then_branch=then_branch, else_branch=else_branch)],
                  [value("x", [2, 4]), value("c", [], T.BOOL)], {"y": None}, {"w": weight(4, 4)})
    found = sites(proto)
    assert {site.key for site in found} == {"a", "b"} and all(site.view for site in found)
    assert {site.node.scope.label for site in found} == {"then_branch of If 'y'", "else_branch of If 'y'"}


def test_layers_are_told_apart_without_names():
    found = sites(
        model([
            node("MatMul", ["x", "w"], ["a"], name="same"),
            node("MatMul", ["a", "w"], ["b"], name="same"),
            node("MatMul", ["b", "w"], ["y"])
        ], {"x": [1, 4]}, {"y": None}, {"w": weight(4, 4)}))
    assert [site.key for site in found] == ["a", "b", "y"] and len({site.place for site in found}) == 3


# -- reading -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_place(bad):
    array = weight(8, 4)
    array[5, 2] = bad
    graph = Graph(
        model([node("MatMul", ["x", "w"], ["y"], name="layer")], {"x": [1, 8]}, {"y": None}, {"w": array}))
    with pytest.raises(InputError, match=rf"'w' of MatMul 'layer' holds {bad} at \(5, 2\)"):
        read_weight(graph, find_weights(graph)[0])


def test_a_replaceable_default_is_noted():
    given = {"x": [1, 4], "w": [4, 4]}
    assert "a caller could replace" in only([node("MatMul", ["x", "w"], ["y"])], {"w": weight(4, 4)},
                                            given).note
    assert only([node("MatMul", ["x", "w"], ["y"])], {"w": weight(4, 4)}, given, ir=3, opset=8).note == ""
