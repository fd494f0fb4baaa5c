"""The examples a device trains on."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diastole.client import data
from diastole.client.errors import DataError
from diastole.models.networks.config import ModelConfig
from diastole.models.training import Examples


def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    examples = Examples(torch.randn(7, 3, 4), torch.arange(7))
    data.save(tmp_path / "shard.npz", examples)
    loaded = data.load(tmp_path / "shard.npz")
    assert torch.equal(loaded.x, examples.x)
    assert torch.equal(loaded.y, examples.y)


def test_images_are_scaled_as_in_a_simulation(tmp_path: Path) -> None:
    np.savez(tmp_path / "raw.npz", x_train=np.array([[[0, 255]]], np.uint8), y_train=np.array([3]))
    loaded = data.load(tmp_path / "raw.npz")
    assert loaded.x.tolist() == [[[[-1.0, 1.0]]]]
    assert loaded.y.tolist() == [3]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(3)}, "found a; an archive with x and y"),
        ({"x": np.zeros((2, 3), np.float32), "y": np.zeros(3, np.int64)}, r"y is int64 \[3\]"),
        ({"x": np.full((2, 3), np.nan, np.float32), "y": np.zeros(2, np.int64)}, "not finite"),
        ({"x": np.zeros((0, 3), np.float32), "y": np.zeros(0, np.int64)}, "at least one example"),
        ({"x": np.array([{}], dtype=object), "y": np.zeros(1, np.int64)}, "cannot be read"),
    ],
)
def test_wrong_archives_are_one_line(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "shard.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        data.load(tmp_path / "shard.npz")
    assert "\n" not in str(caught.value)


def test_agents_of_one_folder_take_different_archives(tmp_path: Path) -> None:
    for name in ("a", "b"):
        data.save(tmp_path / f"{name}.npz", Examples(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)))
    with data.claim(tmp_path) as first, data.claim(tmp_path) as second:
        assert [first.stem, second.stem] == ["a", "b"]
        with pytest.raises(DataError, match="all of its 2 archives"), data.claim(tmp_path):
            pass
    with data.claim(tmp_path) as again:
        assert again.stem == "a"
    with data.claim(tmp_path / "b.npz") as named, data.claim(tmp_path / "b.npz"):
        assert named.stem == "b"


def test_tokens_are_those_of_the_models_vocabulary() -> None:
    model = ModelConfig("transformer", (4,), 3, (8,), blocks=(1,), vocabulary=50)
    data.check_tokens("x", torch.tensor([[0.0, 1.0, 2.0, 49.0]]), model)
    for wrong in (50.0, -1.0, 0.5):
        with pytest.raises(DataError, match=f"x: a token is {wrong:g}; whole numbers from 0 to 49"):
            data.check_tokens("x", torch.tensor([[0.0, 1.0, 2.0, wrong]]), model)
    data.check_tokens("x", torch.full((1, 1, 8, 8), 0.5), ModelConfig("cnn", (1, 8, 8), 3))
