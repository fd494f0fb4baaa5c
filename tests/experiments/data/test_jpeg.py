"""Data sets whose images are kept as JPEG files."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diastole.client.errors import DataError
from diastole.experiments.data.reading import Reading
from diastole.experiments.data.sets import load

Image = pytest.importorskip("PIL.Image")
COLOURS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250]], np.uint8)


def file(colour: NDArray[np.uint8], size: tuple[int, int] = (8, 16)) -> bytes:
    """Return the JPEG file of an image of one colour, `size` high and wide."""
    written = io.BytesIO()
    Image.fromarray(np.broadcast_to(colour, (*size, 3)).copy()).save(written, "JPEG", quality=95)
    return written.getvalue()


def archive(folder: Path, **changes: Any) -> Path:
    files = [file(colour) for colour in COLOURS]
    content = {
        "jpeg_train": np.frombuffer(b"".join(files), np.uint8),
        "offset_train": np.cumsum([0, *map(len, files)]).astype(np.uint32),
        "y_train": np.array([0, 1, 2], np.uint8),
        "jpeg_test": np.frombuffer(files[2], np.uint8),
        "offset_test": np.array([0, len(files[2])], np.uint32),
        "y_test": np.array([2], np.uint8),
    }
    path = folder / "set.npz"
    np.savez(path, allow_pickle=True, **{k: v for k, v in (content | changes).items() if v is not None})
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as refused:
        load("npz", path, Reading())
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_files_become_images_in_order(tmp_path: Path) -> None:
    dataset = load("npz", archive(tmp_path, user_train=np.array([4, 4, 9])), Reading())
    assert dataset.input_shape == (3, 8, 16)
    assert dataset.train.y.tolist() == [0, 1, 2]
    assert dataset.users is not None
    assert dataset.users.tolist() == [4, 4, 9]
    found = (dataset.train.x.mean((2, 3)).numpy() + 1) * 127.5
    np.testing.assert_allclose(found, COLOURS, atol=4)
    np.testing.assert_allclose((dataset.test.x.mean((2, 3)).numpy() + 1) * 127.5, COLOURS[2:], atol=4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"offset_train": None},
            r"jpeg_train is uint8 \[\d+\] and offset_train float64 \[0\]; bytes \[n\], and two or",
        ),
        ({"jpeg_test": None}, r"jpeg_test is float64 \[0\]"),
        ({"y_test": None, "y_train": None}, "y_train is missing"),
        ({"jpeg_train": np.zeros(9, np.uint16)}, r"jpeg_train is uint16 \[9\]"),
        ({"offset_train": np.zeros((2, 2), np.int64)}, r"offset_train int64 \[2, 2\]"),
        ({"offset_train": np.array([0])}, r"offset_train int64 \[1\]"),
        ({"offset_train": np.array([-1, 5])}, "two or more numbers from 0 to n"),
        ({"offset_train": np.array([0, 9, 3, 20])}, "never fall"),
        ({"offset_train": np.array([0, 1 << 40])}, "never fall"),
        ({"offset_test": np.array([0, 40])}, "file 0 of jpeg_test: cannot be decoded"),
        ({"offset_test": np.array([0, 0])}, "file 0 of jpeg_test: cannot be decoded"),
        ({"y_train": np.array([0, 1])}, r"y_train is int64 \[2\]"),
    ],
)
def test_archives_that_are_not_accepted(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = archive(tmp_path, **changes)
    with pytest.raises(DataError, match=says):
        load("npz", path, Reading())
    assert refusal(path).startswith(str(path))


def test_images_are_of_one_size(tmp_path: Path) -> None:
    files = [file(COLOURS[0]), file(COLOURS[1], (16, 16)), file(COLOURS[2])]
    path = archive(
        tmp_path,
        jpeg_train=np.frombuffer(b"".join(files), np.uint8),
        offset_train=np.cumsum([0, *map(len, files)]),
    )
    assert "file 1 of jpeg_train: is 16x16, and" in refusal(path)


def test_without_pillow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "Pillow is not installed; pip install 'diastole[simulation]'" in refusal(path)
