"""Folders of images, real files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diastole.client.errors import DataError
from diastole.experiments.data.reading import Reading
from diastole.experiments.data.sets import load
from diastole.experiments.experiment import Experiment
from diastole.experiments.run import make_run


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> np.ndarray:
    """Write an image of noise, width and height in `size`, and return its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def refusal(path: Path, **reading: object) -> str:
    with pytest.raises(DataError, match=r"^[^\n]*$") as refused:
        load("images", path, Reading(**reading))  # type: ignore[arg-type]
    return str(refused.value)


def test_train_and_test_are_read_class_by_class(tmp_path: Path) -> None:
    cat = picture(tmp_path / "train" / "cat" / "b.png", 1)
    picture(tmp_path / "train" / "cat" / "a.png", 2)
    picture(tmp_path / "train" / "dog" / "a.PNG", 3)
    dog = picture(tmp_path / "test" / "dog" / "z.png", 4)
    (tmp_path / "train" / "cat" / "notes.txt").touch()
    found = load("images", tmp_path, Reading())
    assert (found.train.x.shape, found.train.y.tolist(), found.classes) == ((3, 3, 5, 6), [0, 0, 1], 2)
    assert (found.test.x.shape, found.test.y.tolist()) == ((1, 3, 5, 6), [1])
    for pixels, x in ((cat, found.train.x[1]), (dog, found.test.x[0])):
        torch.testing.assert_close(x, torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1)


def test_without_a_test_part_a_share_of_each_class_is_drawn(tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / ("cat" if number < 28 else "dog") / f"{number:02}.png", number, mode="L")
    found, again, other = (load("images", tmp_path, Reading(seed, test=0.25)) for seed in (1, 1, 2))
    assert found.train.x.shape[1:] == (1, 5, 6)
    assert (found.test.y.bincount().tolist(), found.train.y.bincount().tolist()) == ([7, 3], [21, 9])
    assert torch.equal(found.test.x, again.test.x)
    assert not torch.equal(found.test.x, other.test.x)


def test_images_are_scaled_if_asked_and_one_with_colours_makes_all_so(tmp_path: Path) -> None:
    for number, (size, mode) in enumerate((((6, 5), "L"), ((9, 4), "RGB"), ((6, 5), "L"), ((6, 5), "L"))):
        picture(tmp_path / "cat" / f"{number}.png", number, size, mode)
    assert "1.png: is 9x4, and 0.png is 6x5; set data.size" in refusal(tmp_path)
    found = load("images", tmp_path, Reading(size=8))
    assert found.train.x.shape[1:] == (3, 8, 8)


def test_what_is_no_folder_of_images_is_one_line(tmp_path: Path) -> None:
    assert "holds no folder; a folder for each class" in refusal(tmp_path)
    (tmp_path / "cat").mkdir()
    assert "cat: holds none of .jpg, .jpeg, .png, .bmp, .webp; a folder for each class" in refusal(tmp_path)
    (tmp_path / "cat" / "a.png").write_bytes(b"no image")
    assert "a.png: cannot be decoded; images in BMP, JPEG, PNG, WEBP are accepted" in refusal(tmp_path)
    picture(tmp_path / "cat" / "a.png")
    assert "0.2 of 1 examples is 0 for the test" in refusal(tmp_path)
    whole = (tmp_path / "cat" / "a.png").read_bytes()
    (tmp_path / "cat" / "b.png").write_bytes(whole[: len(whole) // 2])
    assert "b.png: cannot be decoded" in refusal(tmp_path)


def test_a_class_that_train_does_not_have_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "cat" / "a.png")
    picture(tmp_path / "test" / "dog" / "a.png")
    assert "dog: no such class in train; cat are accepted" in refusal(tmp_path)


def test_an_experiment_takes_a_folder(tmp_path: Path) -> None:
    for number in range(20):
        picture(tmp_path / f"class-{number % 2}" / f"{number}.png", number, (10, 12), "L")
    data = {"name": "images", "path": str(tmp_path), "size": 8, "proxy": 4}
    run = make_run(Experiment.parse({"data": data}, "test"))
    assert (run.model.input_shape, run.model.classes, len(run.test)) == ((1, 8, 8), 2, 4)
