"""LSTM, GRU and RNN against onnxruntime, attribute by attribute, and where the two differ on purpose."""

import itertools

import numpy as np
import pytest
from engine_models import agree, build, normal, value
from onnx import helper
from onnx_models import run_onnxruntime

from refq.errors import InputError
from refq.models.engine import Engine

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, WIDTH, SIZE = 5, 3, 3, 4
DIRECTIONS = ("forward", "reverse", "bidirectional")
LENGTHS = (None, (5, 2, 3), (4, 1, 3), (5, 0, 2))


def cell(op, lengths=None, given="bhcp", outputs=None, layout=0, dtype=np.float32, **attributes):
    """(model of one cell, feeds). given: which of B, the initial h and c, and P it has."""
    sides = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[op] * SIZE
    feeds = {"x": normal(STEPS, BATCH, WIDTH), "w": normal(sides, rows, WIDTH) / 2,
             "r": normal(sides, rows, SIZE) / 2, "b": normal(sides, 2 * rows) / 2,
             "lengths": None if lengths is None else np.int32(lengths), "h": normal(sides, BATCH, SIZE),
             "c": normal(sides, BATCH, SIZE), "p": normal(sides, 3 * SIZE) / 2}
    for name in "bhcp":
        if name not in given or (name in "cp" and op != "LSTM"):
            feeds[name] = None
    names = [name if array is not None else "" for name, array in feeds.items()]
    while not names[-1]:
        names.pop()
    made = outputs or (["y", "yh", "yc"] if op == "LSTM" else ["y", "yh"])
    if layout:
        feeds |= {name: None if feeds[name] is None else feeds[name].swapaxes(0, 1) for name in "xhc"}
        attributes["layout"] = 1
    feeds = {name: array for name, array in feeds.items() if array is not None}
    feeds |= {name: array.astype(dtype) for name, array in feeds.items() if name != "lengths"}
    node = helper.make_node(op, names, made, "cell", hidden_size=SIZE, **attributes)
    model = build([node], [value(name, array) for name, array in feeds.items()], [])
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made if name)
    return model, feeds


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_directions_lengths_and_states(op, direction, lengths):
    for given in ("", "b", "h", "bh", "bhc", "bhcp", "hp"):
        agree(*cell(op, lengths, given, direction=direction))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_clip(op, direction):
    """Of what goes into the gates; onnxruntime lets what comes out of an LSTM's cell pass, and so do we."""
    for clip, lengths in itertools.product((0.1, 0.5, 2.0), LENGTHS[:2]):
        agree(*cell(op, lengths, direction=direction, clip=clip))


def test_coupled_gates():
    for direction, forget, given in itertools.product(DIRECTIONS, (0, 1), ("b", "bhcp")):
        agree(*cell("LSTM", direction=direction, input_forget=forget, given=given))
        agree(*cell("GRU", direction=direction, linear_before_reset=forget, given=given))
        agree(*cell("GRU", direction=direction, linear_before_reset=forget, clip=0.4, lengths=LENGTHS[1]))


@pytest.mark.parametrize("name", (
    "Sigmoid", "Tanh", "Relu", "Softsign", "Softplus", "LeakyRelu", "ThresholdedRelu", "Elu", "Affine",
    "ScaledTanh", "HardSigmoid"))
def test_activations(name):
    """Every function in every place, with the numbers given, and without where ONNX has defaults."""
    numbers = [{"activation_alpha": [0.3], "activation_beta": [0.7]}]
    if name not in ("ScaledTanh", "ThresholdedRelu", "Affine"):
        numbers.append({})
    for more in numbers:
        agree(*cell("RNN", activations=[name], **more))
        agree(*cell("GRU", activations=["Sigmoid", name], **more))
        agree(*cell("LSTM", activations=["Sigmoid", name, "Tanh"], **more))
        agree(*cell("LSTM", activations=["Sigmoid", "Tanh", name], **more))
        agree(*cell("LSTM", activations=["HardSigmoid", "Tanh", name],
                    activation_alpha=[0.25, 0.3], activation_beta=[0.45, 0.7]))


def test_numbers_of_activations_go_to_those_that_take_some():
    for op, names, alphas, betas in (
        ("LSTM", ("Sigmoid", "LeakyRelu", "Affine", "HardSigmoid", "Elu", "Tanh"), (0.3, 0.2, 0.25, 0.4),
         (0.1, 0.45)),
        ("GRU", ("HardSigmoid", "Tanh", "Sigmoid", "ScaledTanh"), (0.3, 0.9), (0.4, 0.8)),
        ("RNN", ("Elu", "Affine"), (0.3, 0.9), (0.4,)),
    ):
        agree(*cell(op, direction="bidirectional", activations=names, activation_alpha=alphas,
                    activation_beta=betas))


@pytest.mark.parametrize("name, expected", [("ThresholdedRelu", [0, 0, 2]), ("Affine", [-3, 0.5, 2])])
def test_default_numbers(name, expected):
    """Those of the ONNX operators of these names; onnxruntime takes 0."""
    x, one = np.float32([[[-3], [0.5], [2]]]), np.ones((1, 1, 1), np.float32)
    node = helper.make_node("RNN", ["x", "w", "r"], ["y"], "cell", hidden_size=1, activations=[name])
    model = build([node], [value("x", x), value("w", one), value("r", one)], ["y"])
    assert Engine(model).run({"x": x, "w": one, "r": one})["y"].ravel().tolist() == expected


@pytest.mark.parametrize("op", GATES)
def test_layout(op):
    """Batch first; onnxruntime has no kernel for it, so its own time-first results, turned."""
    for direction, lengths in itertools.product(DIRECTIONS, LENGTHS[:2]):
        first, feeds = cell(op, lengths, layout=1, direction=direction)
        last, _ = cell(op, lengths, direction=direction)
        turned = {name: np.ascontiguousarray(array.swapaxes(0, 1)) if name in "xhc" else array
                  for name, array in feeds.items()}
        got = list(Engine(first).run(feeds).values())
        expected = run_onnxruntime(last, turned)
        np.testing.assert_allclose(got[0], expected[0].transpose(2, 0, 1, 3), rtol=2e-5, atol=2e-5)
        for state, other in zip(got[1:], expected[1:], strict=True):
            np.testing.assert_allclose(state, other.swapaxes(0, 1), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("outputs", (["y"], ["", "yh"], ["", "", "yc"], ["y", "", "yc"]))
def test_outputs_left_out(outputs):
    agree(*cell("LSTM", outputs=outputs))


@pytest.mark.parametrize("op", GATES)
def test_float16_cells_compute_in_float32(op):
    model, feeds = cell(op, LENGTHS[1], dtype=np.float16)
    wide_feeds = {name: array.astype(np.float32) if name != "lengths" else array
                  for name, array in feeds.items()}
    wide, _ = cell(op, LENGTHS[1])
    for got, expected in zip(Engine(model).run(feeds).values(), Engine(wide).run(wide_feeds).values()):
        assert got.dtype == np.float16
        np.testing.assert_array_equal(got, expected.astype(np.float16))


def test_lstm_by_hand():
    """One unit with powers of two and Affine gates, all exact. Gates i, o, f, c; peepholes i, o, f."""
    x, zero = np.float32([[[1]], [[2]]]), np.zeros((1, 1, 1), np.float32)
    w, r = np.float32([[[1], [2], [0.5], [4]]]), np.float32([[[1], [0], [2], [0]]])
    p = np.float32([[0.5, 1, 0.25]])
    feeds = {"x": x, "w": w, "r": r, "h": zero, "c": zero, "p": p}
    node = helper.make_node("LSTM", ["x", "w", "r", "", "", "h", "c", "p"], ["y", "yh", "yc"], hidden_size=1,
                            activations=["Affine"] * 3, activation_alpha=[1.0] * 3, activation_beta=[0.0] * 3)
    model = build([node], [value(name, array) for name, array in feeds.items()], ["y", "yh", "yc"])
    # 1: i = 1, f = 0.5, c = 0 + 1 * 4 = 4, o = 2 + 4 = 6, h = 24
    # 2: i = 2 + 24 + 2 = 28, f = 1 + 48 + 1 = 50, c = 50 * 4 + 28 * 8 = 424, o = 4 + 424 = 428, h = 428 * 424
    got = Engine(model).run(feeds)
    assert got["y"].ravel().tolist() == [24, 428 * 424]
    assert (got["yh"].item(), got["yc"].item()) == (428 * 424, 424)


@pytest.mark.parametrize("change, message", [
    ({"lengths": np.int32([6, 1, 1])}, "sequence_lens"), ({"lengths": np.int32([1, 1])}, "sequence_lens"),
    ({"w": normal(1, 16, 2)}, "do not fit"), ({"r": normal(1, 12, 4)}, "do not fit"),
    ({"w": normal(2, 16, 3), "r": normal(2, 16, 4)}, "direction"),
])
def test_refuses_what_does_not_fit(change, message):
    model, feeds = cell("LSTM", LENGTHS[1])
    for info in model.graph.input:
        info.type.tensor_type.ClearField("shape")
    with pytest.raises(InputError, match=rf"node 'cell' \(LSTM\) failed: .*{message}"):
        Engine(model).run({**feeds, **change})


@pytest.mark.parametrize("attributes, message", [
    ({"activations": ["Gelu"]}, "activation 'Gelu' is none of sigmoid, tanh"),
    ({"activations": ["ScaledTanh"]}, "needs activation_alpha"),
    ({"activations": ["Tanh"], "direction": "bidirectional"}, "1 activations given for 2 times 1"),
])
def test_refuses_activations(attributes, message):
    model, feeds = cell("RNN", **attributes)
    with pytest.raises(InputError, match=message):
        Engine(model).run(feeds)
