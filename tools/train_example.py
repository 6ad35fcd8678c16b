"""Train the embedded example: a small CNN on Fashion-MNIST, written as ONNX with a slice of the data.

    python tools/train_example.py

reads the four IDX files of Debian's package `dataset-fashion-mnist` (or of `--data DIRECTORY`) and writes
`fashion_cnn.onnx`, `fashion_mnist.npz` and `README.md` into `refq/models/example/`. Needs torch, which refq
itself does not use. One thread, one seed, deterministic algorithms: two runs on one machine with one torch
give identical files. Another processor or torch may sum in another order, and so give other weights.

The graph is built node by node with `onnx.helper`; no exporter takes part. Its input is pixel/255.
"""

import argparse
import gzip
import math
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from refq.models import metrics  # noqa: E402
from refq.models.engine import run_batches  # noqa: E402
from refq.models.example import pixels  # noqa: E402

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
OUTPUT = ROOT / "refq" / "models" / "example"
SEED, THREADS, EPOCHS, BATCH, PEAK_RATE = 0, 1, 4, 128, 4e-3
CLASSES, SIDE = 10, 28
CHANNELS, HIDDEN, PARAMETERS = (16, 32, 64), 64, 224_714
CALIBRATION = 256
LARGEST = 1_900_000  # bytes of model and data together
OPSET, IR = 17, 8

LICENCE = """\
The images and labels are a part of [Fashion-MNIST](https://github.com/zalandoresearch/fashion-mnist),
copyright 2017 Zalando SE, under the MIT licence:

> Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
> associated documentation files (the "Software"), to deal in the Software without restriction, including
> without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
> copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the
> following conditions:
>
> The above copyright notice and this permission notice shall be included in all copies or substantial
> portions of the Software.
>
> THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT
> LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO
> EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER
> IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR
> THE USE OR OTHER DEALINGS IN THE SOFTWARE.

The weights were trained by this project and are under its own licence (Apache-2.0)."""

README = """\
# The embedded example

Written by `tools/train_example.py`; edit that, not this.

| file | what |
|---|---|
| `fashion_cnn.onnx` | {parameters:,} parameters, {model_bytes:,} bytes, opset {opset}, IR {ir}; \
input `image` float32 [N,1,28,28] = pixel/255, output `logits` [N,10] |
| `fashion_mnist.npz` | {data_bytes:,} bytes: `images`, `labels` ({tests:,} test images, the first \
{per_class} of each class in the order of the test set), `calibration`, `calibration_labels` \
({calibration} training images, the first of each class alike); all uint8 |

**Network.** {network}.

**Recipe.** {recipe}. No augmentation, no validation set, no choice among runs. \
Made with torch {torch}.

| measured with refq's numpy engine | images | top-1 | NLL (nats) |
|---|---|---|---|
| the whole test set | {whole} |
| the test images here | {here} |

{licence}
"""

RECIPE = (
    f"AdamW (weight decay 0.01), one-cycle learning rate with peak {PEAK_RATE:g}, {EPOCHS} epochs of the "
    f"60,000 training images, batch {BATCH}, cross entropy, seed {SEED}, {THREADS} thread"
)
NETWORK = (
    "Three 3x3 convolutions with 16, 32 and 64 channels (padding 1), each followed by ReLU, the first two "
    "also by 2x2 max-pooling; fully connected 64, ReLU, fully connected 10"
)


def read_idx(path):
    """One gzip-compressed IDX file of bytes -> uint8 array of its shape."""
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; install Debian's dataset-fashion-mnist, or give --data")
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise SystemExit(f"{path} is not an IDX file of unsigned bytes: it starts with {raw[:4].hex()}")
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, 4).astype(int)
    return np.frombuffer(raw, np.uint8, -1, 4 + 4 * rank).reshape(shape)


def read_set(directory, prefix):
    """(images uint8 [N,1,28,28], labels uint8 [N]) of `train` or `t10k`."""
    images = read_idx(directory / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(directory / f"{prefix}-labels-idx1-ubyte.gz")
    return images.reshape(-1, 1, SIDE, SIDE), labels


def first_of_each_class(labels, count):
    """Indices, ascending, of the first count // 10 images of each class; classes 0, 1, ... take one more if
    10 does not divide the count."""
    share, extra = divmod(count, CLASSES)
    chosen = [np.flatnonzero(labels == c)[: share + (c < extra)] for c in range(CLASSES)]
    return np.sort(np.concatenate(chosen))


def network():
    """The torch network; the names of its layers become those of the ONNX weights and nodes."""
    layers, inputs = {}, 1
    for index, channels in enumerate(CHANNELS, start=1):
        layers[f"conv{index}"] = nn.Conv2d(inputs, channels, 3, padding=1)
        layers[f"relu{index}"] = nn.ReLU()
        if index < len(CHANNELS):
            layers[f"pool{index}"] = nn.MaxPool2d(2)
        inputs = channels
    side = SIDE // 2 ** (len(CHANNELS) - 1)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(inputs * side * side, HIDDEN)
    layers[f"relu{len(CHANNELS) + 1}"] = nn.ReLU()
    layers["fc2"] = nn.Linear(HIDDEN, CLASSES)
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def train(model, images, labels):
    """Train in place by RECIPE; prints one line per epoch."""
    x, y = torch.from_numpy(pixels(images)), torch.from_numpy(labels.astype(np.int64))
    steps = math.ceil(len(x) / BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, epochs=EPOCHS, steps_per_epoch=steps)
    loss_of = nn.CrossEntropyLoss()
    for epoch in range(EPOCHS):
        begun, total = time.perf_counter(), 0.0
        for batch in torch.randperm(len(x)).split(BATCH):
            optimiser.zero_grad()
            loss = loss_of(model(x[batch]), y[batch])
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(batch)
        seconds = time.perf_counter() - begun
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {total / len(x):.4f}, {seconds:.0f} s", flush=True)
    model.eval()


def onnx_node(name, layer, source, output):
    """One torch layer -> (NodeProto, its initializers)."""
    arrays = {f"{name}.{part}": tensor.detach().numpy() for part, tensor in layer.named_parameters()}
    weights = [numpy_helper.from_array(array, key) for key, array in arrays.items()]
    inputs = [source, *(w.name for w in weights)]
    match layer:
        case nn.Conv2d():
            pads = [layer.padding[0], layer.padding[1]] * 2
            attributes = {"kernel_shape": layer.kernel_size, "pads": pads, "strides": layer.stride}
            return helper.make_node("Conv", inputs, [output], name, **attributes), weights
        case nn.MaxPool2d():
            attributes = {"kernel_shape": [layer.kernel_size] * 2, "strides": [layer.stride] * 2}
            return helper.make_node("MaxPool", inputs, [output], name, **attributes), weights
        case nn.Linear():
            return helper.make_node("Gemm", inputs, [output], name, transB=1), weights
        case nn.ReLU():
            return helper.make_node("Relu", inputs, [output], name), weights
        case nn.Flatten():
            return helper.make_node("Flatten", inputs, [output], name, axis=1), weights
    raise TypeError(f"no ONNX node for {layer}")


def to_onnx(model, metadata):
    """The trained network -> ModelProto with a free batch axis; tensors are named after their node."""
    nodes, weights, source = [], [], "image"
    layers = list(model.named_children())
    for name, layer in layers:
        output = "logits" if name == layers[-1][0] else f"{name}.output"
        node, initializers = onnx_node(name, layer, source, output)
        nodes.append(node)
        weights += initializers
        source = output
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])
    graph = helper.make_graph(nodes, "fashion_cnn", [image], [logits], weights)
    proto = helper.make_model(graph, producer_name="refq", opset_imports=[helper.make_opsetid("", OPSET)])
    proto.ir_version = IR
    helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def compare(proto, model, images):
    """Logits of refq's engine on uint8 images, after checking that torch gives the same."""
    x = pixels(images)
    ours = run_batches(proto, {"image": x}, 1000)["logits"]
    with torch.no_grad():
        theirs = np.concatenate([model(part).numpy() for part in torch.from_numpy(x).split(1000)])
    worst = float(np.abs(ours - theirs).max())
    print(f"ONNX in numpy against torch: largest difference of {len(x):,} x 10 logits {worst:.2g}")
    if worst > 1e-4:
        raise SystemExit("the ONNX model does not compute what torch computes")
    return ours


def write_data(path, tests, training, count):
    """Write the npz of `count` test images and the calibration images; return the indices of the test
    images."""
    chosen = first_of_each_class(tests[1], count)
    calibration = first_of_each_class(training[1], CALIBRATION)
    np.savez_compressed(
        path,
        images=tests[0][chosen],
        labels=tests[1][chosen],
        calibration=training[0][calibration],
        calibration_labels=training[1][calibration],
    )
    return chosen


def write_largest_data(path, tests, training, model_bytes):
    """As many test images as keep model and data within LARGEST bytes, in steps of 100."""
    for count in range(3000, 900, -100):
        chosen = write_data(path, tests, training, count)
        if model_bytes + path.stat().st_size <= LARGEST:
            return chosen
    raise SystemExit(f"even 1,000 test images do not fit {LARGEST:,} bytes beside a model of {model_bytes:,}")


def measured(logits, labels):
    """Columns of the README's table: images, top-1, NLL."""
    return f"{len(labels):,} | {metrics.accuracy(logits, labels):.4f} | {metrics.nll(logits, labels):.4f}"


def main():
    """Train, export, check, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=DEBIAN, help="directory of the IDX files (%(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="directory to write to")
    arguments = parser.parse_args()

    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    training, tests = read_set(arguments.data, "train"), read_set(arguments.data, "t10k")
    model = network()
    parameters = sum(p.numel() for p in model.parameters())
    if parameters != PARAMETERS:
        raise SystemExit(f"the network has {parameters:,} parameters; the recipe has {PARAMETERS:,}")
    train(model, *training)

    proto = to_onnx(model, {
        "data": "Fashion-MNIST, MIT licence, Zalando SE", "input": "image = pixel / 255", "recipe": RECIPE,
        "network": NETWORK, "made_by": f"tools/train_example.py with torch {torch.__version__}",
    })
    logits = compare(proto, model, tests[0])

    arguments.output.mkdir(parents=True, exist_ok=True)
    model_path, data_path = arguments.output / "fashion_cnn.onnx", arguments.output / "fashion_mnist.npz"
    model_path.write_bytes(proto.SerializeToString(deterministic=True))
    model_bytes = model_path.stat().st_size
    chosen = write_largest_data(data_path, tests, training, model_bytes)
    facts = {
        "parameters": parameters, "model_bytes": model_bytes, "data_bytes": data_path.stat().st_size,
        "opset": OPSET, "ir": IR, "network": NETWORK, "recipe": RECIPE, "torch": torch.__version__,
        "tests": len(chosen), "per_class": len(chosen) // CLASSES, "calibration": CALIBRATION,
        "whole": measured(logits, tests[1]), "here": measured(logits[chosen], tests[1][chosen]),
    }
    (arguments.output / "README.md").write_text(README.format(licence=LICENCE, **facts), encoding="utf-8")
    print(*(f"{key}: {value}" for key, value in facts.items()), sep="\n")


if __name__ == "__main__":
    main()
