"""Data that stay in their files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diastole.client.errors import DataError
from diastole.client.sources.mapped import Mapped
from diastole.experiments.data import sets
from diastole.experiments.data.reading import Reading
from diastole.models.batches import slices

DRAWS = np.random.default_rng(0)


def folder(path: Path, x: np.ndarray, **more: np.ndarray) -> Path:
    path.mkdir()
    y = np.arange(len(x)) % 3
    for name, array in ({"x_train": x, "y_train": y, "x_test": x[:4], "y_test": y[:4]} | more).items():
        np.save(path / f"{name}.npy", array)
    return path


@pytest.mark.parametrize(
    ("x", "layout"),
    [
        (DRAWS.integers(0, 256, (9, 5, 4), np.uint8), ""),
        (DRAWS.integers(0, 256, (9, 5, 6, 3), np.uint8), ""),
        (DRAWS.integers(0, 256, (9, 3, 5, 6), np.uint8), "channels-first"),
        (DRAWS.random((9, 5, 6, 3), np.float32), "channels-last"),
        (DRAWS.normal(size=(9, 2, 7)).astype(np.float16), ""),
        (DRAWS.integers(0, 50, (9, 7)), ""),
    ],
)
def test_what_stays_in_files_is_read_as_an_archive_is(x: np.ndarray, layout: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "set", x, user_train=np.array(list("abcabcabc")))
    np.savez(tmp_path / "set.npz", **{file.stem: np.load(file) for file in path.iterdir()})
    reading = Reading(layout=layout)  # type: ignore[arg-type]
    whole, found = sets.load("npz", tmp_path / "set.npz", reading), sets.load("npy", path, reading)
    assert sets.kind_of(path) == "npy"
    assert isinstance(found.train, Mapped)
    assert (found.input_shape, found.classes) == (whole.input_shape, whole.classes)
    index = torch.tensor([8, 0, 3, 3])
    for one, other in (
        (found.train.subset(index), whole.train.subset(index)),
        (found.train.part(2, 5), whole.train.part(2, 5)),
    ):
        assert torch.equal(one.x, other.x)
        assert one.x.is_contiguous()
        assert torch.equal(one.y, other.y)
    assert torch.equal(torch.cat([part.x for part in slices(found.test, 3)]), whole.test.x)
    assert found.train.subset(index[:0]).x.shape == (0, *whole.input_shape)
    tokens = found.train.to(torch.int64)
    for some in (tokens.part(2, 5).x, tokens.subset(index[:0]).x):
        assert some.dtype == torch.int64
    assert torch.equal(tokens.subset(index).x, whole.train.to(torch.int64).subset(index).x)
    assert found.users is not None
    assert found.users.tolist() == [0, 1, 2] * 3


def test_no_more_is_in_memory_than_what_is_asked_for(tmp_path: Path) -> None:
    labels = np.zeros(1 << 20, np.uint8)
    path = folder(tmp_path / "set", np.zeros((4, 32, 32), np.uint8), y_train=labels, y_test=labels[:4])
    # A file of holes, 1 GiB.
    np.lib.format.open_memmap(path / "x_train.npy", "w+", np.uint8, (1 << 20, 32, 32))
    own = lambda: int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0])  # noqa: E731
    before = own()
    found = sets.load("npy", path, Reading())
    assert len(found.train) == 1 << 20
    assert (found.train.subset(torch.tensor([5, 1 << 19])).x == -1).all()
    assert own() - before < 64_000


def test_what_is_written_to_a_copy_stays_out_of_the_file(tmp_path: Path) -> None:
    x = DRAWS.random((9, 4), np.float32)
    found = sets.load("npy", folder(tmp_path / "set", x), Reading())
    for part in (found.train.part(0, 9), found.train.subset(torch.arange(9)), found.test.part(0, 4)):
        part.x.zero_()
    assert np.array_equal(np.load(tmp_path / "set" / "x_train.npy"), x)


def test_files_that_are_not_accepted_are_one_line(tmp_path: Path) -> None:
    x = np.zeros((6, 4), np.float32)
    for number, (changes, line) in enumerate(
        [
            ({"x_train": x.astype(">f4")}, "x_train.npy: is >f4 [6, 4]; numbers in this machine's order of bytes"),
            ({"x_train": np.full((6, 4), np.inf, np.float32)}, "x_train holds a value that is not finite"),
            ({"x_train": np.zeros((6, 4), np.complex64)}, "x_train is complex64"),
            ({"x_train": x[:0]}, "x_train is float32 [0, 4]; at least one"),
            ({"x_test": x[:4, :3]}, "an example of x_test has the shape [3]; [4], as in x_train"),
            ({"y_train": np.zeros(5, int)}, "y_train is int64 [5]"),
            ({"y_test": np.array([{}] * 4)}, "y_test.npy: cannot be read; a NumPy array (.npy)"),
        ]
    ):
        path = folder(tmp_path / str(number), x, **changes)
        with pytest.raises(DataError, match=r"^[^\n]*$") as refused:
            sets.load("npy", path, Reading())
        assert line in str(refused.value)
