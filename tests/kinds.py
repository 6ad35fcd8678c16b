"""One small model of every kind of layer that bears a weight, with inputs for as many samples as one likes.

KINDS: name -> function without arguments that returns (ModelProto, feeds), where feeds(seed, samples) gives
the inputs of a run, name -> array. Samples lie along axis 0 of inputs and outputs. Most have layers before and
after the one that names them, so that what it sees once the model is quantised is not what it saw before.
Products sum over 20 to 70 weights, numbers that no tile size divides.
"""

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper
from onnx_models import model, node, rng, tensor, value, weight

KINDS = {}
BATCHWISE = ("lstm_layout", "gru_layout")       # onnxruntime's CPU kernels have no layout 1
TYPES = {np.float32: T.FLOAT, np.float16: T.FLOAT16, np.int64: T.INT64, np.int32: T.INT32}


def kind(function):
    KINDS[function.__name__] = function
    return function


class Net:
    """A model in the making. inputs: name -> shape of one sample, or (shape, how to draw it)."""

    def __init__(self, opset=17, dtype=np.float32, **inputs):
        self.opset, self.dtype, self.nodes, self.tensors, self.functions = opset, dtype, [], [], []
        self.inputs = {name: (*entry, self.normal)[:2] if entry and isinstance(entry[0], tuple)
                       else (entry, self.normal) for name, entry in inputs.items()}

    def normal(self, random, shape):
        """Values of one factor that a sample's values have in common, and of their own."""
        common = random.standard_normal((shape[0], *(1,) * (len(shape) - 1)))
        return (random.standard_normal(shape) + 0.5 * common).astype(self.dtype)

    def weight(self, *shape, fan=None, name=None):
        """The name of a new weight; fan: over how many a product sums, by default the first axis."""
        name = name or f"w{len(self.tensors)}"
        values = weight(*shape, seed=len(self.tensors), scale=(fan or shape[0]) ** -0.5, dtype=self.dtype)
        return self.constant(values, name)

    def constant(self, values, name=None):
        name = name or f"c{len(self.tensors)}"
        self.tensors.append(tensor(name, np.asarray(values)))
        return name

    def __call__(self, op, *operands, outputs=1, **attributes):
        """The output of a new node, or outputs; outputs may also be their names, "" where one is left out."""
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)] if isinstance(outputs, int) else outputs
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(node(op, list(operands), names, name=name, **attributes))
        return names[0] if len(names) == 1 else names

    def dense(self, x, inputs, outputs):
        return self("Relu", self("MatMul", x, self.weight(inputs, outputs)))

    def done(self, *outputs, opset=None, functions=()):
        """(model, feeds); outputs are tensors of the model's type."""
        kinds = {name: draw(rng(0), (1, *shape)).dtype.type for name, (shape, draw) in self.inputs.items()}
        declared = [value(name, ["n", *shape], TYPES[kinds[name]])
                    for name, (shape, _) in self.inputs.items()]
        proto = model(self.nodes, declared, [value(name, None, TYPES[self.dtype]) for name in outputs],
                      self.tensors, opset=opset or self.opset)
        proto.functions.extend(functions)
        known = onnx.shape_inference.infer_shapes(proto)
        for number in range(len(outputs)):
            proto.graph.output[number].CopyFrom(known.graph.output[number])

        def feeds(seed=0, samples=8):
            random = rng(seed)
            return {name: draw(random, (samples, *shape)) for name, (shape, draw) in self.inputs.items()}
        return proto, feeds


def below(limit, least=0, dtype=np.int64):
    """Draws whole numbers from least to limit - 1."""
    return lambda random, shape: random.integers(least, limit, shape).astype(dtype)


# -- MatMul, Gemm --------------------------------------------------------------------------------------------

@kind
def matmul():
    net = Net(x=(50,))
    return net.done(net("MatMul", net.dense("x", 50, 40), net.weight(40, 33)))


@kind
def matmul_left():
    net = Net(x=(37, 5))
    hidden = net("Relu", net("MatMul", net.weight(45, 37, fan=37), "x"))
    return net.done(net("MatMul", net.weight(6, 45, fan=45), hidden))


@kind
def matmul_batched():
    """[samples, 2, 7, K] times a matrix for each of the two, then a left one for each of the seven."""
    net = Net(x=(2, 7, 40))
    hidden = net("Relu", net("MatMul", "x", net.weight(2, 40, 35, fan=40)))
    turned = net("Transpose", hidden, perm=[0, 2, 3, 1])
    return net.done(net("MatMul", net.weight(7, 4, 35, fan=35), turned))


@kind
def matmul_vector():
    net = Net(x=(3, 50))
    return net.done(net("MatMul", net.dense("x", 50, 40), net.weight(40)))


@kind
def gemm():
    net = Net(x=(50,))
    hidden = net("Gemm", "x", net.weight(50, 40), net.weight(40), alpha=0.5, beta=2.0)
    hidden = net("Tanh", net("Gemm", hidden, net.weight(35, 40, fan=40), net.weight(1, 35), transB=1))
    turned = net("Transpose", hidden)
    return net.done(net("Gemm", turned, net.weight(35, 6), alpha=1.5, transA=1))


@kind
def gemm_left():
    """The weight is the first operand; samples lie along the columns of what it meets."""
    net = Net(x=(50,))
    hidden = net("Gemm", net.weight(40, 50, fan=50), "x", transB=1)
    hidden = net("Gemm", net.weight(40, 6), net("Relu", hidden), transA=1, alpha=0.75)
    return net.done(net("Transpose", hidden))


# -- Conv, ConvTranspose -------------------------------------------------------------------------------------

@kind
def conv1d():
    net = Net(x=(5, 19))
    hidden = net("Relu", net("Conv", "x", net.weight(8, 5, 7, fan=35), net.weight(8), pads=[3, 3]))
    return net.done(net("Conv", hidden, net.weight(6, 8, 5, fan=40), strides=[2], dilations=[2]))


@kind
def conv2d():
    net = Net(x=(4, 9, 8))
    hidden = net("Conv", "x", net.weight(8, 4, 3, 3, fan=36), auto_pad="SAME_UPPER", strides=[2, 1])
    hidden = net("Conv", net("Relu", hidden), net.weight(6, 4, 3, 3, fan=36), net.weight(6), group=2)
    hidden = net("Relu", hidden)
    return net.done(net("Conv", hidden, net.weight(40, 6, 1, 1, fan=6)))


@kind
def conv3d():
    net = Net(x=(2, 5, 6, 5))
    hidden = net("Relu", net("Conv", "x", net.weight(4, 2, 3, 2, 3, fan=36), auto_pad="SAME_LOWER"))
    return net.done(net("Conv", hidden, net.weight(3, 4, 2, 2, 3, fan=48), strides=[1, 2, 1]))


@kind
def conv_depthwise():
    net = Net(x=(6, 9, 9))
    hidden = net("Relu", net("Conv", "x", net.weight(6, 6, 1, 1, fan=6)))
    hidden = net("Conv", hidden, net.weight(12, 1, 5, 5, fan=25), group=6, dilations=[1, 2],
                 pads=[2, 4, 2, 4])
    return net.done(net("Conv", net("Relu", hidden), net.weight(4, 12, 1, 1, fan=12)))


@kind
def conv_batchnorm():
    net = Net(x=(4, 7, 7))
    hidden = net("Conv", "x", net.weight(8, 4, 3, 3, fan=36))
    numbers = [net.constant(np.abs(weight(8, seed=seed))) for seed in range(3)]
    hidden = net("BatchNormalization", hidden, numbers[0], net.weight(8), *numbers[1:])
    hidden = net("GlobalAveragePool", net("Relu", net("Conv", hidden, net.weight(9, 8, 3, 3, fan=72))))
    return net.done(net("Gemm", net("Flatten", hidden), net.weight(9, 5)))


@kind
def conv_transpose():
    net = Net(x=(5, 4, 5))
    hidden = net("Relu", net("Conv", "x", net.weight(12, 5, 3, 3, fan=45), pads=[1, 1, 1, 1]))
    hidden = net("ConvTranspose", hidden, net.weight(12, 4, 3, 2, fan=36), net.weight(4), strides=[2, 2],
                 output_padding=[1, 0], pads=[1, 0, 1, 0])
    return net.done(net("Conv", net("Relu", hidden), net.weight(3, 4, 3, 3, fan=36)))


@kind
def conv_transpose_1d():
    net = Net(x=(20, 5))
    hidden = net("Relu", net("ConvTranspose", "x", net.weight(20, 12, 3, fan=40), strides=[2], dilations=[2]))
    return net.done(net("ConvTranspose", hidden, net.weight(12, 5, 4, fan=40), auto_pad="SAME_UPPER",
                        strides=[3]))


@kind
def conv_transpose_3d():
    net = Net(x=(6, 3, 3, 2))
    hidden = net("Relu", net("ConvTranspose", "x", net.weight(6, 5, 2, 3, 2, fan=40)))
    return net.done(net("ConvTranspose", hidden, net.weight(5, 4, 2, 2, 2, fan=40), strides=[1, 2, 1]))


@kind
def conv_transpose_grouped():
    """Two groups, then one for every channel."""
    net = Net(x=(8, 4, 4))
    hidden = net("Relu", net("Conv", "x", net.weight(8, 8, 2, 2, fan=32)))
    hidden = net("Relu", net("ConvTranspose", hidden, net.weight(8, 3, 3, 3, fan=36), net.weight(6), group=2,
                             strides=[2, 1]))
    return net.done(net("ConvTranspose", hidden, net.weight(6, 1, 5, 5, fan=25), group=6))


# -- recurrent layers ----------------------------------------------------------------------------------------
# Samples lie along axis 0 of every input; a Transpose in front brings the steps there.

STEPS, FEATURES, SIZE = 5, 37, 21
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(op, directions=1, lengths=False, states=False, peepholes=False, layout=0, **attributes):
    """Two layers: the second of one direction sees the outputs of the first, which has what is asked for."""
    inputs = {"x": (STEPS, FEATURES)}
    if lengths:
        inputs["lengths"] = ((), below(STEPS + 1, 1, np.int32))
    if states:
        inputs |= {name: (directions, SIZE) for name in ("h", "c")[:2 if op == "LSTM" else 1]}
    net, gates = Net(**inputs), GATES[op]

    def steps_first(name, perm):
        return name if layout else net("Transpose", name, perm=perm)

    def weights(directions, features):
        return (net.weight(directions, gates * SIZE, features, fan=features),
                net.weight(directions, gates * SIZE, SIZE, fan=SIZE),
                net.weight(directions, 2 * gates * SIZE, fan=SIZE))
    operands = [steps_first("x", [1, 0, 2]), *weights(directions, FEATURES), "lengths" if lengths else ""]
    operands += [steps_first(name, [1, 0, 2]) for name in ("h", "c") if name in inputs]
    if peepholes:
        operands += [""] * (7 - len(operands)) + [net.weight(directions, 3 * SIZE, fan=SIZE)]
    if directions == 2:
        attributes["direction"] = "bidirectional"
    if layout:
        attributes["layout"] = 1
    first, last = net(op, *operands, outputs=2, hidden_size=SIZE, **attributes)
    if layout:                                      # [samples, steps, directions, H]
        hidden = net("Transpose", first, perm=[1, 0, 2, 3])
    else:                                           # [steps, directions, samples, H]
        hidden = net("Transpose", first, perm=[0, 2, 1, 3])
        last = net("Transpose", last, perm=[1, 0, 2])
    hidden = net("Reshape", hidden, net.constant(np.array([0, 0, directions * SIZE])))
    _, second = net(op, hidden, *weights(1, directions * SIZE), outputs=["", "second"], hidden_size=SIZE)
    second = net("Reshape", second, net.constant(np.array([-1, SIZE])))
    return net.done(net("MatMul", second, net.weight(SIZE, 4)), last)


RECURRENT = {
    "lstm": ("LSTM", {}),
    "lstm_reverse": ("LSTM", {"direction": "reverse", "states": True}),
    "lstm_both": ("LSTM", {"directions": 2, "lengths": True, "states": True}),
    "lstm_peepholes": ("LSTM", {"peepholes": True, "lengths": True}),
    "lstm_layout": ("LSTM", {"layout": 1, "states": True}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "gru_reset_first": ("GRU", {"states": True, "lengths": True}),
    "gru_reverse": ("GRU", {"direction": "reverse", "lengths": True, "linear_before_reset": 1}),
    "gru_both": ("GRU", {"directions": 2, "states": True}),
    "gru_layout": ("GRU", {"layout": 1, "directions": 2, "lengths": True}),
    "rnn": ("RNN", {"states": True}),
    "rnn_reverse": ("RNN", {"direction": "reverse", "lengths": True}),
    "rnn_both": ("RNN", {"directions": 2, "activations": ["Tanh", "Softsign"], "lengths": True}),
}
KINDS |= {name: lambda op=op, options=options: recurrent(op, **options)
          for name, (op, options) in RECURRENT.items()}


# -- Einsum, Gather ------------------------------------------------------------------------------------------

@kind
def einsum():
    """A dense layer, heads apart and together again, as attention has them."""
    net = Net(x=(3, 40))
    hidden = net("Relu", net("Einsum", "x", net.weight(40, 36), equation="bsd,df->bsf"))
    hidden = net("Relu", net("Einsum", hidden, net.weight(36, 3, 11), equation="bsd, dhe -> bhse"))
    return net.done(net("Einsum", hidden, net.weight(3, 11, 20, fan=33), equation="bhse,hed->bsd"))


@kind
def einsum_turned():
    """The axis summed over between or behind the others."""
    net = Net(x=(3, 40))
    hidden = net("Relu", net("Einsum", "x", net.weight(3, 40, 12, fan=40), equation="bsd,hdk->bshk"))
    hidden = net("Einsum", hidden, net.weight(35, 12, 3, fan=36), equation="bshk,fkh")    # [b, f, s]
    return net.done(net("Einsum", net.weight(6, 35, fan=35), net("Relu", hidden), equation="of,bfs->bso"))


@kind
def einsum_batched():
    """A matrix for each head, at the front and in the middle; then one value a head."""
    net = Net(x=(3, 4, 40))
    hidden = net("Relu", net("Einsum", "x", net.weight(3, 40, 35, fan=40), equation="bhsd,hde->bhse"))
    hidden = net("Relu", net("Einsum", hidden, net.weight(20, 3, 35, fan=35), equation="bhse,fhe->bhsf"))
    return net.done(net("Einsum", hidden, net.weight(3, 20, fan=20), equation="...hsf,hf->...sh"))


@kind
def einsum_three():
    """A weight between two inputs, as a bilinear layer has it, and a label that only the weight has."""
    net = Net(x=(20,), z=(9,))
    left, right = net.dense("x", 20, 25), net.dense("z", 9, 7)
    hidden = net("Einsum", left, net.weight(25, 12, 7, fan=175), right, equation="bi,ioj,bj->bo")
    return net.done(net("Einsum", hidden, net.weight(12, 3, 4, fan=36), equation="bi,ijo->bo"))


@kind
def gather_tied():
    """A table that the output layer multiplies with, transposed."""
    net = Net(ids=((6,), below(45)))
    table = net.weight(45, 40, name="table", fan=4)
    hidden = net.dense(net("Gather", table, "ids"), 40, 40)
    return net.done(net("MatMul", hidden, net("Transpose", table)))


@kind
def gather_tied_gemm():
    """The same with a Gemm, which turns the table itself."""
    net = Net(ids=((), below(45)))
    table = net.weight(45, 40, name="table", fan=4)
    hidden = net("Relu", net("Gemm", net("Gather", table, "ids"), net.weight(40, 40)))
    return net.done(net("Gemm", hidden, net("Identity", table), transB=1))


@kind
def gather_columns():
    """A table whose entries are its columns."""
    net = Net(ids=((6,), below(30)))
    entries = net("Gather", net.weight(50, 30), "ids", axis=1)          # [50, samples, 6]
    return net.done(net.dense(net("Transpose", entries, perm=[1, 2, 0]), 50, 20))


# -- sharing and branches ------------------------------------------------------------------------------------

@kind
def shared():
    """One weight three times in a chain, the last time transposed."""
    net = Net(x=(40,))
    square = net.weight(40, 40)
    hidden = net("Tanh", net("MatMul", "x", square))
    hidden = net("Tanh", net("MatMul", hidden, square))
    return net.done(net("MatMul", hidden, net("Transpose", square, perm=[1, 0])))


@kind
def branches():
    """A residual block, and branches that come together again in a Concat."""
    net = Net(x=(40,))
    hidden = net("Add", net.dense(net.dense("x", 40, 30), 30, 40), "x")
    both = net("Concat", net.dense(hidden, 40, 20), net.dense(hidden, 40, 25), axis=-1)
    return net.done(net("MatMul", both, net.weight(45, 6)))


@kind
def several():
    """Several inputs and outputs, one of them from the middle."""
    net = Net(a=(20,), b=(3, 5))
    first = net.dense("a", 20, 30)
    second = net.dense(net("Reshape", "b", net.constant(np.array([0, 15]))), 15, 30)
    total = net("Add", first, second)
    return net.done(net("MatMul", total, net.weight(30, 4)), second, net("MatMul", total, net.weight(30, 5)))


# -- bodies and functions ------------------------------------------------------------------------------------

def body(nodes, inputs, outputs, tensors=()):
    """inputs, outputs: name -> (shape, type), or the shape of float32."""
    def infos(entries):
        return [value(name, *(entry if isinstance(entry, tuple) else (entry,)))
                for name, entry in entries.items()]
    return helper.make_graph(nodes, "body", infos(inputs), infos(outputs), list(tensors))


@kind
def if_branches():
    """Both branches read a weight from outside, one has its own. Which runs, the sign of an input decides."""
    def sign(random, shape):
        return np.full(shape, random.choice([-1, 1]), np.float32)
    net = Net(x=(40,), sign=((), sign))
    hidden, outer = net.dense("x", 40, 36), net.weight(36, 36, name="outer")
    first = body([node("MatMul", [hidden, outer], ["first"])], {}, {"first": ["n", 36]})
    second = body([node("MatMul", [hidden, "own"], ["s"]), node("Tanh", ["s"], ["u"]),
                   node("MatMul", ["u", outer], ["second"])], {}, {"second": ["n", 36]},
                  [tensor("own", weight(36, 36, seed=9, scale=1 / 6))])
    positive = net("Greater", net("ReduceSum", "sign", keepdims=0), net.constant(np.float32(0)))
    chosen = net("If", positive, then_branch=first, else_branch=second)
    return net.done(net("MatMul", net("Relu", chosen), net.weight(36, 5)))


@kind
def loop():
    """Three turns of a body with a weight of its own and one from outside."""
    net = Net(x=(40,))
    hidden, outer = net.dense("x", 40, 36), net.weight(36, 36, name="outer")
    turn = body([node("MatMul", ["state", "own"], ["a"]), node("Tanh", ["a"], ["b"]),
                 node("MatMul", ["b", outer], ["next"]), node("Identity", ["go"], ["on"])],
                {"i": ([], T.INT64), "go": ([], T.BOOL), "state": ["n", 36]},
                {"on": ([], T.BOOL), "next": ["n", 36]}, [tensor("own", weight(36, 36, seed=9, scale=1 / 6))])
    count, yes = net.constant(np.array(3)), net.constant(np.array(True))
    last = net("Reshape", net("Loop", count, yes, hidden, body=turn), net.constant(np.array([-1, 36])))
    return net.done(net("MatMul", last, net.weight(36, 5)))


@kind
def scan():
    """A recurrent layer written out: a step's input and the state before it, each with its weight."""
    net = Net(x=(4, 30), h=(36,))
    outer = net.weight(30, 36, name="outer")
    step = body([node("MatMul", ["before", "own"], ["a"]), node("MatMul", ["now", outer], ["b"]),
                 node("Add", ["a", "b"], ["c"]), node("Tanh", ["c"], ["after"]),
                 node("Identity", ["after"], ["seen"])],
                {"before": ["n", 36], "now": ["n", 30]}, {"after": ["n", 36], "seen": ["n", 36]},
                [tensor("own", weight(36, 36, seed=9, scale=1 / 6))])
    last, every = net("Scan", "h", net("Transpose", "x", perm=[1, 0, 2]), outputs=2, body=step,
                      num_scan_inputs=1)
    return net.done(net("MatMul", last, net.weight(36, 5)), net("Transpose", every, perm=[1, 0, 2]))


@kind
def functions():
    """A function called twice with weights given to it, which has a constant one too."""
    inner = [node("Constant", [], ["k"], value=tensor("", weight(36, 36, seed=9, scale=1 / 6))),
             node("Transpose", ["b"], ["t"]), node("MatMul", ["a", "t"], ["u"]), node("Tanh", ["u"], ["v"]),
             node("MatMul", ["v", "k"], ["c"])]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    block = helper.make_function("local", "Block", ["a", "b"], ["c"], inner, imports[:1])
    net = Net(x=(40,))
    hidden = net("Block", "x", net.weight(36, 40, fan=40), domain="local")
    hidden = net("Block", hidden, net.weight(36, 36), domain="local")
    return net.done(net("MatMul", hidden, net.weight(36, 5)), opset=imports, functions=[block])


# -- types, opsets, ways to store ----------------------------------------------------------------------------

@kind
def float16():
    net = Net(x=(4, 6, 6), dtype=np.float16)
    hidden = net("Relu", net("Conv", "x", net.weight(8, 4, 3, 3, fan=36), net.weight(8, fan=8)))
    hidden = net("Flatten", hidden)
    hidden = net("Relu", net("MatMul", hidden, net.weight(128, 40)))
    return net.done(net("Gemm", hidden, net.weight(6, 40, fan=40), transB=1))


@kind
def constants():
    """Weights in Constant nodes, one of them behind a Transpose, one turned from float16."""
    net = Net(x=(50,))
    first = net("Constant", value=tensor("", weight(40, 50, scale=0.2)))
    second = net("Constant", value=tensor("", weight(40, 35, scale=0.2, seed=8, dtype=np.float16)))
    hidden = net("Relu", net("MatMul", "x", net("Transpose", first, perm=[1, 0])))
    hidden = net("Relu", net("MatMul", hidden, net("Cast", second, to=T.FLOAT)))
    third = net("Constant", value_floats=weight(35 * 4, scale=0.2, seed=9).tolist())
    return net.done(net("MatMul", hidden, net("Reshape", third, net.constant(np.array([35, 4])))))


@kind
def opset9():
    """As exporters wrote models then."""
    net = Net(opset=9, x=(4, 8, 8))
    hidden = net("Conv", "x", net.weight(8, 4, 3, 3, fan=36), pads=[1, 1, 1, 1])
    numbers = [net.constant(np.abs(weight(8, seed=seed))) for seed in range(3)]
    hidden = net("BatchNormalization", hidden, numbers[0], net.weight(8), *numbers[1:])
    hidden = net("MaxPool", net("Relu", hidden), kernel_shape=[2, 2], strides=[2, 2])
    hidden = net("Reshape", hidden, net.constant(np.array([0, -1])))
    hidden = net("Relu", net("Gemm", hidden, net.weight(30, 128, fan=128), net.weight(30), transB=1))
    return net.done(net("Softmax", net("Gemm", hidden, net.weight(30, 6), net.weight(6)), axis=1))
