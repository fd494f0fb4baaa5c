"""A `cnn` for images from a model.safetensors, in NumPy alone: for a device that only answers.

    python numpy_cnn.py model.safetensors shard.npz --size "width 0.25"

It needs numpy and safetensors, and neither torch nor diastole. It is slow, and it is the shortest code that shows what
such a file holds; its logits are those of `diastole infer` up to rounding (a test compares them).
"""

import argparse
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

Array = NDArray[np.float32]
Weights = dict[str, Array]
EPSILON = 1e-5


def load(path: str, size: str) -> tuple[dict[str, Any], Weights]:
    """Return the global model's description, and the parameters of the sub-model with this label by name."""
    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["diastole"])
        prefix = f"{size or about['whole']}:"
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (it is no mapping)
        weights = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    model = json.loads(about["model"])
    if model["name"] != "cnn" or len(model["input_shape"]) != 3 or not weights:
        raise SystemExit(f"{path}: no cnn for images, or no {size!r}; it has {', '.join(about['sizes'])}")
    return model, weights


def forward(weights: Weights, group: int, x: Array) -> Array:
    """Return logits `[n, classes]` of `x` `[n, channels, height, width]`."""
    for stage in range(len(weights) // 3):
        x = _convolution(x, weights[f"stages.{stage}.0.weight"])
        x = _norm(x, weights[f"stages.{stage}.1.weight"], weights[f"stages.{stage}.1.bias"], group)
        x = _pool(np.maximum(x, 0))
    return x.reshape(len(x), -1) @ weights["classifier.weight"].T + weights["classifier.bias"]


def _convolution(x: Array, weight: Array) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)


def _norm(x: Array, weight: Array, bias: Array, group: int) -> Array:
    groups = x.reshape(len(x), x.shape[1] // group, -1)
    deviation = np.sqrt(groups.var(2, keepdims=True) + EPSILON)
    x = ((groups - groups.mean(2, keepdims=True)) / deviation).reshape(x.shape)
    return x * weight[:, None, None] + bias[:, None, None]


def _pool(x: Array) -> Array:
    height, width = x.shape[2] // 2, x.shape[3] // 2
    blocks = x[:, :, : 2 * height, : 2 * width].reshape(*x.shape[:2], height, 2, width, 2)
    return np.asarray(blocks.max((3, 5)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data", help="an .npz with x")
    parser.add_argument("--size", default="", help="label of a sub-model; by default the whole one")
    given = parser.parse_args()
    described, parameters = load(given.model, given.size)
    inputs = np.load(given.data, allow_pickle=False)["x"].astype(np.float32)
    print(forward(parameters, described["group"], inputs).argmax(1).tolist())  # noqa: T201
