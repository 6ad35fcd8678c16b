"""The embedded example: a Fashion-MNIST CNN with labelled images. What is in it, and under which licence:
README.md."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Example:
    """The model file and its data.

    `images` and `calibration` are float32 [N,1,28,28], pixel/255, ready for the model's input `image`; the
    labels are int64 [N], 0..9. `images` come from the test set, `calibration` from the training set.
    """

    model_path: Path
    images: np.ndarray
    labels: np.ndarray
    calibration: np.ndarray
    calibration_labels: np.ndarray


def load():
    """The Example. Needs numpy only."""
    home = Path(__file__).parent
    with np.load(home / "fashion_mnist.npz") as data:
        return Example(
            model_path=home / "fashion_cnn.onnx",
            images=pixels(data["images"]),
            labels=data["labels"].astype(np.int64),
            calibration=pixels(data["calibration"]),
            calibration_labels=data["calibration_labels"].astype(np.int64),
        )


def pixels(images):
    """uint8 images -> the float32 the model takes: pixel/255, one division."""
    return images.astype(np.float32) / np.float32(255)
