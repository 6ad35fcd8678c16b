"""Layers as matrix products: the inputs of every operator, checked by what the operator itself computes.

The output of a layer without bias is bilinear: O(W) = X W^T up to the order of its numbers. So for any two
weights <O(V), O(W)> = sum over products <X V^T, X W^T>, and that holds for all V, W only if X^T X is right.
"""

import numpy as np
import pytest
from onnx import TensorProto as T

from refq.models.engine import Engine
from refq.models.graph import Graph
from refq.models.layers import PIECE, canonical, form_of
from refq.models.weights import find_weights
from tests.onnx_models import model, node, rng, value

BILINEAR = {
    "matmul right": ("MatMul", "x w", (2, 3, 50), (50, 6), {}),
    "matmul vector right": ("MatMul", "x w", (3, 50), (50,), {}),
    "matmul left": ("MatMul", "w x", (50, 4), (6, 50), {}),
    "matmul left of many": ("MatMul", "w x", (2, 50, 4), (6, 50), {}),
    "matmul of a vector": ("MatMul", "x w", (50,), (50, 6), {}),
    "matmul batched": ("MatMul", "x w", (2, 3, 20), (2, 20, 5), {}),
    "matmul batched left": ("MatMul", "w x", (2, 20, 3), (2, 5, 20), {}),
    "matmul one x for many": ("MatMul", "x w", (1, 3, 20), (4, 20, 5), {}),
    "matmul x without a batch": ("MatMul", "x w", (3, 20), (4, 20, 5), {}),
    "matmul broadcast both ways": ("MatMul", "x w", (3, 1, 2, 20), (1, 4, 20, 5), {}),
    "gemm": ("Gemm", "x w", (3, 50), (50, 6), {}),
    "gemm transA transB": ("Gemm", "x w", (50, 3), (6, 50), {"transA": 1, "transB": 1}),
    "gemm left": ("Gemm", "w x", (50, 3), (6, 50), {}),
    "gemm left transA transB": ("Gemm", "w x", (3, 50), (50, 6), {"transA": 1, "transB": 1}),
    "conv 1d": ("Conv", "x w", (2, 5, 19), (6, 5, 7), {"pads": [2, 3], "strides": [2]}),
    "conv 2d": ("Conv", "x w", (2, 4, 9, 8), (6, 4, 3, 2), {"pads": [1, 0, 1, 1], "strides": [2, 1]}),
    "conv 2d dilated groups": ("Conv", "x w", (2, 6, 9, 9), (4, 3, 3, 3), {"group": 2, "dilations": [2, 2]}),
    "conv 2d same": ("Conv", "x w", (2, 4, 7, 7), (6, 4, 3, 3),
                     {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "conv depthwise": ("Conv", "x w", (2, 6, 8, 8), (12, 1, 3, 3), {"group": 6}),
    "conv 3d": ("Conv", "x w", (2, 3, 5, 6, 7), (4, 3, 2, 3, 2), {"strides": [1, 2, 1]}),
    "conv pointwise": ("Conv", "x w", (2, 40, 4, 4), (6, 40, 1, 1), {}),
    "transpose 1d": ("ConvTranspose", "x w", (2, 5, 9), (5, 6, 4), {"strides": [3], "output_padding": [1]}),
    "transpose 2d": ("ConvTranspose", "x w", (2, 4, 5, 6), (4, 3, 3, 3),
                     {"strides": [2, 3], "pads": [1, 0, 0, 2]}),
    "transpose 2d padded beyond the kernel": ("ConvTranspose", "x w", (2, 4, 7, 7), (4, 3, 2, 2),
                                              {"pads": [2, 3, 3, 2]}),
    "transpose 2d groups dilated": ("ConvTranspose", "x w", (2, 6, 5, 5), (6, 2, 3, 2),
                                    {"group": 3, "dilations": [2, 1], "strides": [2, 2]}),
    "transpose 2d same": ("ConvTranspose", "x w", (2, 4, 5, 5), (4, 3, 3, 3),
                          {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "transpose 2d shape": ("ConvTranspose", "x w", (2, 4, 5, 5), (4, 3, 3, 3),
                           {"output_shape": [10, 11], "strides": [2, 2]}),
    "transpose 3d": ("ConvTranspose", "x w", (1, 3, 3, 4, 3), (3, 2, 2, 2, 3), {"strides": [2, 1, 2]}),
    "einsum": ("Einsum", "x w", (2, 3, 20), (20, 6), {"equation": "bsd,df->bsf"}),
    "einsum turned": ("Einsum", "x w", (2, 3, 20), (6, 20), {"equation": "bsd,fd->bsf"}),
    "einsum heads": ("Einsum", "x w", (2, 3, 20), (20, 4, 5), {"equation": "bsd,dhk->bhsk"}),
    "einsum back": ("Einsum", "x w", (2, 3, 4, 5), (4, 5, 7), {"equation": "bshk,hkd->bsd"}),
    "einsum batch": ("Einsum", "x w", (2, 4, 3, 5), (4, 5, 7), {"equation": "bhsk,hkd->bhsd"}),
    "einsum left": ("Einsum", "w x", (20, 3), (6, 20), {"equation": "ab,bc->ca"}),
    "einsum dots": ("Einsum", "x w", (2, 3, 20), (20, 6), {"equation": "...d,df->...f"}),
    "einsum implicit": ("Einsum", "x w", (3, 20), (20, 6), {"equation": "ab,bc"}),
    "einsum dots implicit": ("Einsum", "x w", (2, 3, 20), (20, 6), {"equation": "...d,df"}),
    "einsum summed away": ("Einsum", "x w", (3, 4, 20), (20, 6), {"equation": "abd,df->bf"}),
}

STEPS, BATCH, FEATURES, HIDDEN = 5, 3, 7, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
KINDS = [(op, direction, layout, lengths, initial, attributes)
         for op, extra in (("LSTM", {}), ("RNN", {}), ("GRU", {}), ("GRU", {"linear_before_reset": 1}),
                           ("GRU", {"clip": 0.3, "activations": ["HardSigmoid", "Tanh"]}))
         for direction in ("forward", "reverse", "bidirectional")
         for layout, lengths, initial in ((0, False, False), (0, True, True), (1, True, True))
         for attributes in [extra]]


def build(kind, array):
    op, operands, x_shape, _, attributes = BILINEAR[kind]
    proto = model([node(op, operands.split(), ["y"], name="layer", **attributes)], {"x": x_shape},
                  [value("y", None)], {"w": array})
    return proto


def the_form(proto):
    (site,) = find_weights(Graph(proto))
    return form_of(site), site


def gathered(form, x, output=None, others=()):
    """[products, rows, columns] of one stream in one piece."""
    operands = {list(form.site.node.proto.input).index("x"): x, **dict(others)}
    return np.concatenate(list(form.inputs(operands.get, output)), axis=1).astype(np.float64)


def outputs_by_form(form, site, x, array):
    """X W^T of every part, in float64."""
    matrix = canonical(site.view.matrix(array.astype(np.float64)), form.axis)
    met = gathered(form, x)
    return [met[part.product] @ matrix[part.where].reshape(-1, form.columns).T for part in form.parts()]


@pytest.mark.parametrize("kind", BILINEAR)
def test_the_products_of_the_form_are_those_of_the_operator(kind):
    *_, x_shape, w_shape, _ = BILINEAR[kind]
    x = rng(1).standard_normal(x_shape).astype(np.float32)
    arrays = [rng(seed).standard_normal(w_shape).astype(np.float32) for seed in (2, 3)]
    form, site = the_form(build(kind, arrays[0]))
    ours = [outputs_by_form(form, site, x, array) for array in arrays]
    theirs = [Engine(build(kind, array)).run({"x": x})["y"].astype(np.float64) for array in arrays]
    for one, other in ((0, 0), (1, 1), (0, 1)):
        mine = sum(float(np.sum(a * b)) for a, b in zip(ours[one], ours[other]))
        right = float(np.sum(theirs[one] * theirs[other]))
        scale = np.linalg.norm(theirs[one]) * np.linalg.norm(theirs[other])
        assert abs(mine - right) < 1e-5 * scale
    assert sum(part.size for part in ours[0]) == theirs[0].size
    assert form.row_count(theirs[0]) == gathered(form, x).shape[1]


@pytest.mark.parametrize("kind", ["conv 2d dilated groups", "transpose 2d groups dilated", "matmul batched"])
def test_a_row_of_weights_moves_its_own_outputs_only(kind):
    """One weight changed: as many outputs change, by as much, in the operator and in the form."""
    *_, x_shape, w_shape, _ = BILINEAR[kind]
    x, array = rng(1).standard_normal(x_shape).astype(np.float32), rng(2).standard_normal(w_shape)
    array = array.astype(np.float32)
    form, site = the_form(build(kind, array))
    for place in (0, array.size // 2, array.size - 1):
        moved = array.copy()
        moved.flat[place] += 1
        ours = [b - a for a, b in zip(*(outputs_by_form(form, site, x, w) for w in (array, moved)))]
        a, b = (Engine(build(kind, w)).run({"x": x})["y"].astype(np.float64) for w in (array, moved))
        theirs = np.sort(np.abs(b - a).ravel())
        mine = np.sort(np.concatenate([np.abs(part).ravel() for part in ours]))
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", BILINEAR)
def test_every_row_of_the_matrix_is_in_one_part(kind):
    form, site = the_form(build(kind, np.ones(BILINEAR[kind][3], np.float32)))
    counts = np.zeros(form.shape[:-1] + (form.columns,), int)
    for part in form.parts():
        counts[part.where] += 1
        assert 0 <= part.product < form.products
    assert (counts == 1).all()


def test_large_inputs_come_in_pieces():
    proto = model([node("Conv", ["x", "w"], ["y"])], {"x": [2, 16, 300, 300]}, [value("y", None)],
                  {"w": np.ones((4, 16, 3, 3), np.float32)})
    form, _ = the_form(proto)
    x = rng(1).standard_normal((2, 16, 300, 300)).astype(np.float32)
    pieces = list(form.inputs({0: x}.get, None))
    assert len(pieces) > 4 and max(piece.size for piece in pieces) <= 2 * PIECE
    assert sum(piece.shape[1] for piece in pieces) == 2 * 298 * 298


# -- recurrent layers ----------------------------------------------------------------------------------------

def recurrent(op, direction, layout, lengths, initial, attributes):
    """(model that gives Y, feeds, the arrays W, R, B)."""
    count, gates = 2 if direction == "bidirectional" else 1, GATES[op] * HIDDEN
    if "activations" in attributes:
        attributes = attributes | {"activations": attributes["activations"] * count}
    w, r = (rng(seed).standard_normal((count, gates, k)).astype(np.float32)
            for seed, k in ((1, FEATURES), (2, HIDDEN)))
    b = rng(3).standard_normal((count, 2 * gates)).astype(np.float32)
    x = rng(4).standard_normal((STEPS, BATCH, FEATURES)).astype(np.float32)
    h = rng(5).standard_normal((count, BATCH, HIDDEN)).astype(np.float32)
    x, h = (x.swapaxes(0, 1), h.swapaxes(0, 1)) if layout else (x, h)
    feeds = {"x": np.ascontiguousarray(x)}
    feeds |= {"n": np.array([5, 2, 4], np.int32)} if lengths else {}
    feeds |= {"h": np.ascontiguousarray(h)} if initial else {}
    names = ["x", "w", "r", "b", "n" if lengths else "", "h" if initial else ""]
    layer = node(op, names, ["y"], hidden_size=HIDDEN, direction=direction, layout=layout, **attributes)
    kinds = {"n": T.INT32}
    inputs = [value(name, array.shape, kinds.get(name, T.FLOAT)) for name, array in feeds.items()]
    tensors = {"w": w, "r": r, "b": b}
    return model([layer], inputs, [value("y", None)], tensors, opset=22, ir=10), feeds, (w, r, b)


def states_before(proto, feeds, layout, backwards, direction):
    """h before every step by running the layer on what comes before it only: rows of (time, row) active."""
    engine, steps, rows = Engine(proto), STEPS, BATCH
    lengths = feeds.get("n", np.full(rows, steps))
    x = feeds["x"].swapaxes(0, 1) if layout else feeds["x"]
    first = feeds.get("h")
    first = np.zeros((rows, HIDDEN)) if first is None else first[:, direction] if layout else first[direction]
    found = []
    for t in range(steps):
        for n in range(rows):
            if t >= lengths[n]:
                continue
            seen = x[t + 1:lengths[n], n] if backwards else x[:t, n]
            if not len(seen):
                found.append(first[n])
                continue
            part = np.zeros((steps, rows, FEATURES), np.float32)
            part[:len(seen), n] = seen
            own = {**feeds, "x": np.ascontiguousarray(part.swapaxes(0, 1) if layout else part)}
            own["n"] = np.full(rows, len(seen), np.int32)
            y = _with_lengths(engine, proto, own)
            y = y.transpose(1, 2, 0, 3) if layout else y
            found.append(y[0 if backwards else len(seen) - 1, direction, n])
    return np.array(found)


def _with_lengths(engine, proto, feeds):
    if "n" in engine.inputs:
        return engine.run(feeds)["y"]
    copy = type(proto)()
    copy.CopyFrom(proto)
    copy.graph.node[0].input[4] = "n"
    copy.graph.input.append(value("n", [BATCH], T.INT32))
    return Engine(copy).run(feeds)["y"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind[:5])))
def test_states_are_those_before_each_step(kind):
    op, direction, layout, lengths, initial, attributes = kind
    proto, feeds, (w, r, b) = recurrent(*kind)
    sites = find_weights(Graph(proto))
    assert [site.operand for site in sites] == [1, 2]
    y = Engine(proto).run(feeds)["y"]
    operands = {0: feeds["x"], 1: w, 2: r, 3: b, 4: feeds.get("n"), 5: feeds.get("h")}
    inputs, states = (np.concatenate(list(form_of(site).inputs(operands.get, y)), axis=1) for site in sites)
    x = feeds["x"].swapaxes(0, 1) if layout else feeds["x"]
    active = np.arange(STEPS)[:, None] < feeds.get("n", np.full(BATCH, STEPS))
    np.testing.assert_array_equal(inputs[0], x[active])
    scaled = op == "GRU" and not attributes.get("linear_before_reset")
    for d in range(len(w)):
        wanted = states_before(proto, feeds, layout, direction == "reverse" or d == 1, d)
        np.testing.assert_allclose(states[2 * d if scaled else d], wanted, atol=1e-6)
        if scaled:
            reset = slice(HIDDEN, 2 * HIDDEN)
            gate = x[active] @ w[d, reset].T + wanted @ r[d, reset].T
            gate += b[d, reset] + b[d, 4 * HIDDEN:5 * HIDDEN]
            if "clip" in attributes:
                gate = np.clip(np.clip(gate, -0.3, 0.3) * 0.2 + 0.5, 0, 1)
            else:
                gate = 1 / (1 + np.exp(-gate))
            np.testing.assert_allclose(states[2 * d + 1], gate * wanted, atol=1e-6)
