"""Folders that Hugging Face's datasets has saved."""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diastole.client.errors import DataError
from diastole.experiments.data import sets
from diastole.experiments.data.reading import Reading

pytestmark = pytest.mark.skipif(not find_spec("datasets"), reason="needs datasets")
DRAWS = np.random.default_rng(0)


def saved(
    folder: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, **splits: dict[str, Any]
) -> Path:
    """Save a data set, or one of the splits `train` and others, and return the folder."""
    import datasets

    kinds = datasets.Features(features) if features else None
    parts = {
        name: datasets.Dataset.from_dict(part, features=kinds) for name, part in ({"train": columns} | splits).items()
    }
    (datasets.DatasetDict(parts) if splits else parts["train"]).save_to_disk(str(folder))
    assert sets.kind_of(folder) == "hf"
    return folder


def refusal(path: Path, **reading: object) -> str:
    with pytest.raises(DataError, match=r"^[^\n]*$") as refused:
        sets.load("hf", path, Reading(**reading))  # type: ignore[arg-type]
    return str(refused.value)


def png(pixels: np.ndarray) -> dict[str, bytes]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue()}


def test_images_with_the_names_of_their_classes(tmp_path: Path) -> None:
    import datasets

    pixels = DRAWS.integers(0, 256, (5, 4, 6, 3), np.uint8)
    images, kinds = [png(each) for each in pixels], datasets.ClassLabel(names=["cat", "cow", "dog"])
    path = saved(
        tmp_path / "set",
        {"img": images[:3], "kind": [2, 0, 2], "note": ["a", "b", "c"], "user": ["u", "v", "u"]},
        {"img": datasets.Image(), "kind": kinds, "note": datasets.Value("string"), "user": datasets.Value("string")},
        test={"img": images[3:], "kind": [0, 2], "note": ["", ""], "user": ["w", "w"]},
    )
    found = sets.load("hf", path, Reading())
    assert (found.classes, found.train.y.tolist(), found.test.y.tolist()) == (3, [2, 0, 2], [0, 2])
    everything = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 * 2 - 1
    assert torch.equal(torch.cat([found.train.x, found.test.x]), everything)
    assert found.users is not None
    assert found.users.tolist() == [0, 1, 0]


def test_tokens_and_words_as_labels(tmp_path: Path) -> None:
    tokens = DRAWS.integers(0, 50, (20, 7))
    path = saved(tmp_path / "set", {"input_ids": tokens.tolist(), "label": ["no", "yes"] * 10, "text": ["x"] * 20})
    found = sets.load("hf", path, Reading(test=0.25))
    assert (len(found.train), len(found.test), found.classes) == (15, 5, 2)
    rows = {tuple(row): k % 2 for k, row in enumerate(tokens.tolist())}
    for part in (found.train, found.test):
        assert [rows[tuple(int(each) for each in x)] for x in part.x] == part.y.tolist()


def test_arrays_and_columns_of_numbers(tmp_path: Path) -> None:
    import datasets

    grid = DRAWS.normal(size=(4, 2, 3)).astype(np.float32)
    kinds = {"x": datasets.Array2D((2, 3), "float32"), "label": datasets.Value("int64")}
    found = sets.load("hf", saved(tmp_path / "a", {"x": grid, "label": [0, 1, 1, 0]}, kinds), Reading(test=0.5))
    assert found.input_shape == (2, 3)
    assert sorted(torch.cat([found.train.x, found.test.x]).flatten().tolist()) == sorted(grid.flatten().tolist())
    columns = {"age": [1, 2, 3, 4], "height": [0.5, 1.5, 2.5, 3.5], "y": [5, 9, 5, 9]}
    found = sets.load("hf", saved(tmp_path / "b", columns), Reading(test=0.5, label="y"))
    assert (found.input_shape, found.classes, sorted(found.train.y.tolist())) == ((2,), 2, [0, 1])
    assert all(x[0] == x[1] + 0.5 for x in found.train.x)


def test_targets_may_be_lists_and_values(tmp_path: Path) -> None:
    tokens = DRAWS.integers(0, 9, (6, 5))
    path = saved(tmp_path / "next", {"ids": tokens.tolist(), "label": np.roll(tokens, -1).tolist(), "y": [0.5] * 6})
    found = sets.load("hf", path, Reading(input="ids", test=0.5))
    assert found.train.y.shape == (3, 5)
    assert sets.load("hf", path, Reading(input="ids", label="y", values=True)).train.y.unique().tolist() == [0.5]


def test_what_cannot_be_told_is_asked_and_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    two = saved(tmp_path / "two", {"a": [[1], [2]], "b": [[1], [2]], "c": [0, 1]})
    assert "has no column 'label'; data.label must say which holds the labels, of a, b, c" in refusal(two)
    assert "data.input must say which column holds the inputs; there are a, b" in refusal(two, label="c")
    assert "has no column 'd', data.input; there are a, b, c" in refusal(two, label="c", input="d")
    assert sets.load("hf", two, Reading(label="c", input="b", test=0.5)).input_shape == (1,)
    ragged = saved(tmp_path / "ragged", {"a": [[1, 2], [2]], "label": [0, 1]})
    assert "column 'a' holds lists of several lengths; one length, cut or padded, is accepted" in refusal(ragged)
    words = saved(tmp_path / "words", {"a": ["x", "y"], "label": [0, 1]})
    assert "data.input must say" in refusal(words)
    assert "column 'a' holds values of the type <U1; images and numbers are accepted" in refusal(words, input="a")
    lists = saved(tmp_path / "lists", {"a": [[1], [2]], "label": [[1, 2], [3]]})
    assert "column 'label' holds lists of several lengths; one length is accepted" in refusal(lists, input="a")
    other = saved(tmp_path / "other", {"a": [[1], [2]], "label": [0, 1]}, test={"a": [[1]], "label": [3]})
    assert "test holds '3', which is no label of column 'label' of train" in refusal(other)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{}")
    assert "broken: cannot be read" in refusal(tmp_path / "broken")
