"""Loop, Scan and If: operators with bodies, against onnxruntime."""

import itertools

import numpy as np
import pytest
from engine_models import agree, build, free, normal, value
from onnx import TensorProto, helper

from refq.errors import InputError
from refq.models.engine import Engine

node = helper.make_node
COUNT, GO = value("i", dtype=TensorProto.INT64, dims=[]), value("go", dtype=TensorProto.BOOL, dims=[])
ON = value("on", dtype=TensorProto.BOOL, dims=[])


def loop(nodes, carried=(), scanned=(), trips=4, inputs=(), condition="", weights=()):
    """Model of a Loop over `nodes`. carried: (name before, name in the body, name after, dims); scanned:
    (name in the body, dims)."""
    before = [COUNT, GO, *(free(inside, *dims) for _, inside, _, dims in carried)]
    after = [ON, *(free(name, *dims) for *_, name, dims in carried),
             *(free(name, *dims) for name, dims in scanned)]
    body = helper.make_graph(nodes, "body", before, after)
    outputs = [f"y{number}" for number in range(len(carried) + len(scanned))]
    made = node("Loop", ["trips" if trips is not None else "", condition, *(first for first, *_ in carried)],
                outputs, "loop", body=body)
    weights = {**dict(weights), **({"trips": np.int64(trips)} if trips is not None else {})}
    return build([made], list(inputs), outputs, weights)


KEEP = node("Identity", ["go"], ["on"])


@pytest.mark.parametrize("dims", ((), (3,), (2, 3), (2, 3, 4)), ids=len)
@pytest.mark.parametrize("trips", (0, 1, 4))
def test_loop_stacks_its_scan_outputs(dims, trips):
    nodes = [KEEP, node("Mul", ["x", "h"], ["g"]), node("Neg", ["g"], ["piece"]),
             node("Exp", ["x"], ["same"])]
    x = np.asarray(normal(*dims))
    model = loop(nodes, [("x", "h", "g", dims)], [("piece", dims), ("same", dims)], trips, [value("x", x)])
    agree(model, {"x": x})
    assert Engine(model).run({"x": x})["y1"].shape == (trips, *dims)


@pytest.mark.parametrize("first", (True, False))
@pytest.mark.parametrize("trips", (None, 3, 100))
def test_loop_ends_by_its_condition(trips, first):
    """h doubles while below 10; the number of turns is in the scan output."""
    nodes = [node("Add", ["h", "h"], ["g"]), node("Less", ["g", "ten"], ["on"]),
             node("Cast", ["i"], ["turn"], to=TensorProto.FLOAT)]
    weights = {"ten": np.float32(10), "first": np.array(first)}
    model = loop(nodes, [("x", "h", "g", ())], [("turn", ())], trips, [free("x")], "first", weights)
    agree(model, {"x": np.asarray(1.5, np.float32)})


def test_loop_counts_and_gets_its_condition():
    nodes = [KEEP, node("Cast", ["i"], ["turn"], to=TensorProto.FLOAT),
             node("Cast", ["go"], ["going"], to=TensorProto.FLOAT)]
    got = Engine(loop(nodes, [], [("turn", ()), ("going", ())], 3)).run({})
    assert [got["y0"].tolist(), got["y1"].tolist()] == [[0, 1, 2], [1, 1, 1]]


def test_loop_without_turns_needs_a_shape():
    model = loop([KEEP, node("Exp", ["x"], ["p"])], [], [("p", ())], 0, [free("x", "n")])
    attribute = model.graph.node[0].attribute[0].g.output[1].type.tensor_type
    attribute.ClearField("shape")
    with pytest.raises(InputError, match=r"node 'loop' \(Loop\) failed: .*does not declare the shape"):
        Engine(model).run({"x": normal(2)})


def scan(x, y, count, **attributes):
    """Model of a Scan whose body adds up one input and gives the sum and its product with the other."""
    body = helper.make_graph(
        [node("Add", ["s", "a"], ["t"]), node("Mul", ["t", "b"], ["m"]), node("Identity", ["t"], ["u"])],
        "body", [free(name, count) for name in "sab"], [free(name, count) for name in "tmu"])
    made = node("Scan", ["zero", "x", "y"], ["last", "ms", "us"], "scan", body=body, num_scan_inputs=2,
                **attributes)
    return build([made], [value("x", x), value("y", y)], ["last", "ms", "us"],
                 {"zero": np.zeros(count, np.float32)})


def test_scan_axes_and_directions():
    for axes, ways, out_axes, out_ways in itertools.product(
            ((0, 0), (1, 0), (-1, 1)), ((0, 0), (1, 0), (0, 1)), ((0, 0), (1, 0), (-1, -2)),
            ((0, 0), (1, 0))):
        x, y = (normal(*((4, 3) if axis == 0 else (3, 4))) for axis in axes)
        model = scan(x, y, 3, scan_input_axes=axes, scan_input_directions=ways, scan_output_axes=out_axes,
                     scan_output_directions=out_ways)
        agree(model, {"x": x, "y": y})


def test_scan_of_one_turn_and_none():
    for turns in (1, 0):
        x, y = normal(turns, 3), normal(turns, 3)
        got = Engine(scan(x, y, 3)).run({"x": x, "y": y})
        assert [array.shape for array in got.values()] == [(3,), (turns, 3), (turns, 3)]
        np.testing.assert_array_equal(got["last"], x.sum(axis=0))


def test_scan_refuses_inputs_of_different_lengths():
    x, y = normal(4, 3), normal(5, 3)
    with pytest.raises(InputError, match=r"the scanned inputs have \[4, 5\] slices"):
        Engine(scan(x, y, 3)).run({"x": x, "y": y})


def test_bodies_in_bodies_see_what_is_around_them():
    """A Loop in a Loop, an If in that; weights inside each; `x` from the outermost graph."""
    branch = {name: helper.make_graph([node(op, ["p", "x"], [name])], name, [], [free(name, 2)])
              for name, op in (("then_branch", "Add"), ("else_branch", "Sub"))}
    inner = helper.make_graph(
        [node("Identity", ["go2"], ["on2"]), node("Mul", ["p2", "half"], ["p"]),
         node("Greater", ["i", "limit"], ["late"]), node("If", ["late"], ["q2"], **branch)], "inner",
        [value("i2", dtype=TensorProto.INT64, dims=[]), value("go2", dtype=TensorProto.BOOL, dims=[]),
         free("p2", 2)],
        [value("on2", dtype=TensorProto.BOOL, dims=[]), free("q2", 2)],
        [helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])])
    nodes = [KEEP, node("Loop", ["three", "", "h"], ["g"], body=inner)]
    weights = {"three": np.int64(3), "limit": np.int64(1)}
    model = loop(nodes, [("x", "h", "g", (2,))], [("g", (2,))], 4, [free("x", 2)], weights=weights)
    del model.graph.node[0].attribute[0].g.output[-1]
    del model.graph.node[0].output[-1], model.graph.output[-1]
    agree(model, {"x": normal(2)})


def test_an_omitted_output_in_a_body_is_no_omitted_input():
    """Both are named "": onnx.reference gives Clip the first output of RNN as its lower bound."""
    nodes = [KEEP, node("RNN", ["x", "w", "w"], ["", "h"], hidden_size=1),
             node("Clip", ["x", "", "most"], ["c"]), node("Add", ["c", "h"], ["p"])]
    weights = {"w": np.ones((1, 1, 1), np.float32), "most": np.float32(1)}
    model = loop(nodes, [], [("p", (3, 1, 1))], 2, [free("x", 3, 1, 1)], weights=weights)
    agree(model, {"x": np.float32([-1, 2, 0.5]).reshape(3, 1, 1)})


def test_a_failing_node_in_a_body_is_named():
    nodes = [KEEP, node("Reshape", ["x", "shape"], ["p"], "bad")]
    model = loop(nodes, [], [("p", (2,))], 2, [free("x", 3)], weights={"shape": np.int64([2])})
    with pytest.raises(InputError, match=r"node 'loop' \(Loop\): node 'bad' \(Reshape\) failed"):
        Engine(model).run({"x": normal(3)})
