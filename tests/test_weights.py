"""Which nodes bear a weight, which matrix that is, and which axis the layer sums over."""

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper
from onnx_models import (LAYERS, every_layer, feeds, input_name, matrix, model, node, run_onnxruntime, tensor,
                         unmatrix, value, weight, weight_name)

from refq.errors import InputError
from refq.models.graph import Graph
from refq.models.matrices import weight_matrices
from refq.models.weights import WEIGHT_OPS, View, einsum_labels, find_weights, read_weight


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
        assert site.view.matrix_shape(site.stored_shape) == expected.shape, name
        assert np.array_equal(site.view.restore(expected, site.stored_shape), weights[name]), name
        assert site.table == (LAYERS[name][0] == "Gather") and not site.in_body


@pytest.mark.parametrize("name", [name for name in LAYERS if LAYERS[name][0] != "Gather"])
def test_the_reduction_axis_is_the_one_the_layer_sums_over(name):
    """With ones at index 3 of that axis and zeros elsewhere, every row of the matrix gives the same outputs,
    and outputs differ only in where they look at x."""
    proto, weights = every_layer()
    (array, axis), given = matrix(name, weights[name]), feeds(proto)
    probe = np.zeros_like(array)
    probe[(slice(None),) * axis + (3,)] = 1.0
    stored = next(t for t in proto.graph.initializer if t.name == weight_name(name))
    stored.CopyFrom(tensor(stored.name, unmatrix(name, probe)))
    got, x = run_onnxruntime(proto, given, [name])[0], given[input_name(name)]
    op, _, _, _, _, attributes = LAYERS[name]
    if op in ("Conv", "ConvTranspose"):  # every output channel of a group sees the same tap
        for group in np.split(np.moveaxis(got, 1, 0), attributes.get("group", 1)):
            assert np.array_equal(group, np.broadcast_to(group[:1], group.shape)) and group.any()
    elif op == "Einsum":
        terms, result = (attributes["equation"] + "->b" * (name == "dot")).split("->")[:2]
        rows = tuple(place for place, label in enumerate(result) if label not in terms.split(",")[0])
        first = got[tuple(slice(0, 1) if place in rows else slice(None) for place in range(got.ndim))]
        assert np.allclose(got, first, atol=1e-6) and np.isin(first.round(4), x.round(4)).all()
    else:
        entries = attributes.get("alpha", 1.0) * np.take(x, 3, axis=x.shape.index(array.shape[axis]))
        assert all(np.isclose(entries, out).any() for out in got.ravel())


def test_views_without_steps_that_change_nothing():
    assert View.of((6, 5), 1, shape=(6, 5)) == View(1)
    assert View.of((6, 5, 1), 1, shape=(6, 5)) == View(1, shape=(6, 5))
    assert View.of((6, 1, 4), 1, (6, 1, 1, 4), (0, 2, 1, 3), (6, 4)) == View(1, shape=(6, 4))
    assert View.of((4, 6, 3), 1, perm=(1, 0, 2), shape=(6, 12)) == View(1, perm=(1, 0, 2), shape=(6, 12))
    assert View.of((4, 6), 1, (4, 6), (1, 0)) == View(1, perm=(1, 0))


def test_recurrent_layers_have_two_weights():
    proto = model([node("LSTM", ["x", "w", "r"], ["", "y"], hidden_size=6)], {"x": [5, 2, 4]},
                  {"y": [1, 2, 6]}, {"w": weight(1, 24, 4), "r": weight(1, 24, 6)})
    found = sites(proto)
    assert [(site.operand, site.tensor, site.key, site.view) for site in found] == [
        (1, "w", "y", View(2)), (2, "r", "y", View(2))]
    assert len({site.place for site in found}) == len({site.group for site in found}) == 2
    del proto.graph.initializer[1]
    proto.graph.input.append(value("r", [1, 24, 6]))
    assert [site.reason for site in sites(proto)] == ["", "its weight is computed at run time"]


# -- Einsum --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("equation, operand, labels", [
    ("bsd,df->bsf", 1, ("", "f", "d")), ("df,bsd->bsf", 0, ("", "f", "d")),
    (" bsd , dhe -> bhse", 1, ("", "he", "d")), ("bhsd,hde->bhse", 1, ("h", "e", "d")),
    ("bi,ioj,bj->bo", 1, ("", "o", "ij")), ("...d,df->...f", 1, ("", "f", "d")),
    ("bd,d", 1, ("", "", "d")), ("ab,bc", 1, ("", "c", "b")), ("bi,ijo->bo", 1, ("", "o", "ij")),
    ("Bi,iB->B", 1, ("B", "", "i")), ("ii,ij->j", 1, ("", "j", "i")),
])
def test_einsum_labels(equation, operand, labels):
    assert einsum_labels(equation, operand) == labels


@pytest.mark.parametrize("equation, shape, reason", [
    ("bi,ii->bi", (4, 4), "repeats a label of its weight"), ("bi,...i->b...", (4, 4), "leaves axes"),
    ("bij,ij->bij", (4, 4), "sums over no axis"), ("b,ij->bij", (4, 4), "sums over no axis"),
    ("bi,ij->bj", (4, 4, 4), "does not fit 'ij'"), ("bi", (4, 4), "sums over no axis"),
])
def test_equations_that_are_no_matrix_product(equation, shape, reason):
    site = only([node("Einsum", ["x", "w"], ["y"], equation=equation)], {"w": weight(*shape)})
    assert site.view is None and reason in site.reason


def test_the_weight_of_an_einsum_is_its_only_constant():
    tensors = {"v": weight(4, 4), "w": weight(4, 4)}
    site = only([node("Einsum", ["x", "v", "w"], ["y"], equation="bi,ij,jk->bk")], tensors)
    assert site.view is None and site.reason == "2 of its operands are constant; cast is a single one"
    site = only([node("Einsum", ["v", "w", "w"], ["y"], equation="bi,ij,jk->bk")], tensors)
    assert "all operands are constant" in site.reason
    site = only([node("Einsum", ["x", "w", "x"], ["y"], equation="ai,ij,bj->ab")], tensors)
    assert site.operand == 1 and site.view == View(1, shape=(1, 16))


def test_tables_are_cast_along_their_entries():
    def axis(shape, **attributes):
        return only([node("Gather", ["w", "x"], ["y"], **attributes)], {"w": weight(*shape)}).view.axis
    assert (axis((9, 4)), axis((9, 4), axis=1), axis((9, 4), axis=-1)) == (1, 0, 0)
    assert (axis((9, 2, 4)), axis((9, 2, 4), axis=2), axis((9, 2, 4), axis=1)) == (2, 1, 2)


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

def groups(proto):
    """Keys of the sites of every group, in file order."""
    found = {}
    for site in sites(proto):
        found.setdefault(site.group, []).append(site.key)
    return list(found.values())


def test_sharing_is_the_same_constant_with_the_same_rows():
    """Products over the rows of w, those over its columns, transposed or not."""
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Identity", ["w"], ["i"]),
        node("MatMul", ["x", "i"], ["b"]),
        node("MatMul", ["w", "x"], ["c"]),
        node("Transpose", ["w"], ["t"]),
        node("Transpose", ["i"], ["u"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["d"]),
        node("MatMul", ["u", "x"], ["e"]),
        node("Gemm", ["x", "t"], ["f"], transB=1),
        node("Transpose", ["u"], ["v"]),
        node("Einsum", ["x", "v"], ["g"], equation="ab,cb->ac"),
        node("Reshape", ["w", "s"], ["r"]),
        node("MatMul", ["x", "r"], ["h"])
    ]
    proto = model(nodes, {"x": [4, 4]}, {k: None for k in "abcdefgh"},
                  {"w": weight(4, 4), "s": np.array([4, 4])})
    assert groups(proto) == [["a", "b", "e", "f"], ["c", "d", "g"], ["h"]]


def test_a_table_tied_to_the_output_layer_is_one_weight():
    def tied(*nodes):
        return groups(model([node("Gather", ["table", "ids"], ["e"]), *nodes], [value("ids", [3], T.INT64)],
                            {"y": None}, {"table": weight(40, 64)}))
    turned = node("Transpose", ["table"], ["t"])
    assert tied(turned, node("MatMul", ["e", "t"], ["y"])) == [["e", "y"]]
    assert tied(node("Gemm", ["e", "table"], ["y"], transB=1)) == [["e", "y"]]
    assert tied(node("Einsum", ["e", "table"], ["y"], equation="bd,vd->bv")) == [["e", "y"]]
    assert tied(node("MatMul", ["z", "table"], ["y"])) == [["e"], ["y"]]        # sums over the entries
    assert tied(turned, node("Gather", ["t", "ids"], ["y"])) == [["e"], ["y"]]  # looks up columns


def test_flattened_weights_are_shared_as_they_are():
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Identity", ["w"], ["i"]), node("Conv", ["x", "i"], ["b"]),
             node("ConvTranspose", ["x", "w"], ["c"]), node("Transpose", ["w"], ["t"], perm=[1, 0, 2, 3]),
             node("Conv", ["x", "t"], ["d"])]
    proto = model(nodes, {"x": [1, 4, 9, 9]}, {k: None for k in "abcd"}, {"w": weight(4, 4, 3, 3)})
    assert groups(proto) == [["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize("perms", [[None, None], [[2, 0, 1], [1, 0, 2]], [[0, 2, 1], None]])
def test_what_a_site_sees_of_a_shared_weight(perms):
    """From what the first of a group reads, as arrays."""
    nodes = []
    for number, perm in enumerate(perms):
        nodes += [node("Transpose", ["w"], [f"t{number}"], **({"perm": perm} if perm else {})),
                  node("MatMul", ["x", f"t{number}"], [f"y{number}"])]
    array = weight(3, 4, 5)
    graph = Graph(model(nodes, {"x": None}, {"y0": None, "y1": None}, {"w": array}))
    first, second = find_weights(graph)
    seen = first.as_seen(graph.array(first.static), second)
    assert np.array_equal(seen, graph.array(second.static))
    if first.group == second.group:
        matrices = [np.moveaxis(site.view.matrix(graph.array(site.static)), site.view.axis, -1)
                    for site in (first, second)]
        assert np.array_equal(*matrices)
    assert (first.turn_to(first), first.group == second.group) == ((), perms == [None, None])


def test_matrices_of_a_model_come_once_a_weight():
    nodes = [node("Gather", ["table", "ids"], ["e"]), node("Transpose", ["table"], ["t"]),
             node("MatMul", ["e", "w"], ["h"]), node("MatMul", ["h", "t"], ["y"])]
    proto = model(nodes, [value("ids", [3], T.INT64)], {"y": None},
                  {"table": weight(40, 64), "w": weight(64, 64)})
    assert [(name, array.shape, axis) for name, array, axis in weight_matrices(proto)] == [
        ("table", (40, 64), 1), ("w", (64, 64), 0)]


def test_every_operator_has_one_row():
    rows = [(row.domain, row.op) for row in WEIGHT_OPS]
    assert len(set(rows)) == len(rows) and all(bool(row.view) != bool(row.reason) for row in WEIGHT_OPS)


# -- rows for what is not cast -------------------------------------------------------------------------------

@pytest.mark.parametrize("nodes, tensors, reason", [
    ([node("DeformConv", ["x", "w", "x"], ["y"])], {"w": weight(4, 4, 3, 3)}, "not cast yet"),
    ([node("FusedConv", ["x", "w"], ["y"], domain="com.microsoft")], {"w": weight(4, 4, 3)}, "not cast yet"),
    ([node("ConvTranspose", ["x", "w"], ["y"], group=3)], {"w": weight(4, 4, 3, 3)}, "into 3 groups"),
    ([node("GRU", ["x", "w", "x"], ["y"])], {"w": weight(4, 4)}, "not three axes"),
    ([node("MatMulInteger", ["x", "w"], ["y"])], {"w": np.ones((4, 4), np.int8)}, "quantised already"),
    ([node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=16, N=4, bits=4, block_size=16)],
     {"w": np.ones((4, 1, 8), np.uint8), "s": np.ones(4, np.float32)}, "quantised already"),
    ([node("Conv", ["x", "x"], ["y"])], {}, "computed at run time"),
    ([node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((4, 4), np.int32)}, "int32"),
    ([node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((0, 4), np.float32)}, "nothing to cast"),
    ([node("Erf", ["w"], ["e"]), node("MatMul", ["x", "e"], ["y"])], {"w": weight(4, 4)}, "by Erf"),
])
def test_weights_that_are_not_cast_have_a_site_with_the_reason(nodes, tensors, reason):
    site, *others = sites(model(nodes, {"x": None}, {"y": None}, tensors))
    assert site.view is None and reason in site.reason and site.key == "y"
    assert [other.reason for other in others] == ["its weight is computed at run time"] * len(others)


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
    assert {site.key for site in found} == {"a", "b"} and all(site.view and site.in_body for site in found)
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
