"""The embedded example: a Fashion-MNIST CNN with labelled images. What is in it, and under which licence:
README.md."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy


@dataclass(frozen=True)
class Example:
    """The model file and its data.

    `images` and `calibration` are float32 [N,1,28,28], pixel/255, ready for the model's input `image`; the
    labels are int64 [N], 0..9. `images` come from the test set, `calibration` from the training set.
    """

    model_path: Path
    images: numpy.ndarray
    labels: numpy.ndarray
    calibration: numpy.ndarray
    calibration_labels: numpy.ndarray


def load():
    """The Example. Needs numpy only."""
    home = resources.files(__name__)
    with (home / "fashion_mnist.npz").open("rb") as file, numpy.load(file) as data:
        return Example(
            model_path=Path(str(home / "fashion_cnn.onnx")),
            images=_pixels(data["images"]),
            labels=data["labels"].astype(numpy.int64),
            calibration=_pixels(data["calibration"]),
            calibration_labels=data["calibration_labels"].astype(numpy.int64),
        )


def _pixels(images):
    return images.astype(numpy.float32) / numpy.float32(255)
