"""The embedded example: what is shipped, and that it computes what its README says."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from refq.models import example, metrics
from refq.models.engine import run_batches

HOME = Path(example.__file__).parent


@pytest.fixture(scope="module")
def loaded():
    return example.load()


@pytest.fixture(scope="module")
def logits(loaded):
    return run_batches(loaded.model_path, {"image": loaded.images}, 250)["logits"]


def test_size():
    sizes = [(HOME / name).stat().st_size for name in ("fashion_cnn.onnx", "fashion_mnist.npz", "README.md")]
    assert sum(sizes) <= 2_000_000


def test_data(loaded):
    assert len(loaded.images) == len(loaded.labels) >= 1000
    assert len(loaded.calibration) == len(loaded.calibration_labels) == 256
    for images, labels in ((loaded.images, loaded.labels), (loaded.calibration, loaded.calibration_labels)):
        assert images.dtype == np.float32 and images.shape[1:] == (1, 28, 28)
        assert images.min() == 0 and images.max() == 1
        pixels = np.rint(images * 255).astype(np.uint8)
        np.testing.assert_array_equal(images, pixels / np.float32(255))
        assert labels.dtype == np.int64
        counts = np.bincount(labels, minlength=10)
        assert len(counts) == 10 and counts.max() - counts.min() <= 1


def test_calibration_is_no_test_image(loaded):
    tests = {image.tobytes() for image in loaded.images}
    assert not any(image.tobytes() in tests for image in loaded.calibration)


def test_frozen(loaded):
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.labels = None


def test_model(loaded):
    onnx.checker.check_model(str(loaded.model_path), full_check=True)
    model = onnx.load(loaded.model_path)
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    parameters = {t.name: tuple(t.dims) for t in model.graph.initializer}
    assert sum(np.prod(shape) for shape in parameters.values()) == 224_714
    assert parameters["conv1.weight"] == (16, 1, 3, 3) and parameters["fc1.weight"] == (64, 3136)
    assert [node.name for node in model.graph.node] == [
        "conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "conv3", "relu3",
        "flatten", "fc1", "relu4", "fc2",
    ]
    assert {"recipe", "data", "made_by"} <= {entry.key for entry in model.metadata_props}


def test_readme_tells_the_measured_numbers(loaded, logits):
    text = (HOME / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"the test images here \| ([\d,]+) \| ([.\d]+) \| ([.\d]+) \|", text)
    assert int(row[0].replace(",", "")) == len(logits)
    assert float(row[1]) == pytest.approx(metrics.accuracy(logits, loaded.labels), abs=0.00051)
    assert float(row[2]) == pytest.approx(metrics.nll(logits, loaded.labels), abs=0.0001)
    for name in ("fashion_cnn.onnx", "fashion_mnist.npz"):
        assert f"{(HOME / name).stat().st_size:,} bytes" in text


def test_onnxruntime_agrees(loaded, logits):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(loaded.model_path), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": loaded.images})
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_loading_needs_numpy_only():
    code = ("import sys; from refq.models.example import load; load(); "
            "print(sorted({'onnx', 'scipy', 'tqdm', 'torch', 'ml_dtypes'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
