"""Folders with a folder for each class in them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diastole.client.errors import DataError


@dataclass(frozen=True, slots=True)
class Folder:
    """The files in `path/CLASS/`, or in `path/train/CLASS/` and `path/test/CLASS/`.

    Attributes:
        parts: the files of `x_train` and `x_test`, or of `x` if there is no test part, one class after another.
        labels: of the files of each part, int64, numbered in the order of the classes' names.
        classes: how many there are.

    """

    parts: dict[str, list[Path]]
    labels: list[Tensor]
    classes: int

    @staticmethod
    def read(path: Path, kinds: Iterable[str], accepted: str) -> "Folder":
        """Return the files whose names end as one of `kinds`. Raises `DataError`, which says what is `accepted`."""
        train = path / "train" if (path / "train").is_dir() else path
        parts = {"x": _files(train, tuple(kinds), accepted)}
        if train != path and (path / "test").is_dir():
            parts = {"x_train": parts["x"], "x_test": _files(path / "test", tuple(kinds), accepted)}
        place = {name: number for number, name in enumerate(next(iter(parts.values())))}
        unknown = sorted({name for part in parts.values() for name in part} - set(place))
        if unknown:
            raise DataError(f"{path / 'test' / unknown[0]}: no such class in train; {', '.join(place)} are accepted")
        return Folder(
            {key: [file for found in part.values() for file in found] for key, part in parts.items()},
            [torch.tensor([place[it] for it, found in part.items() for _ in found]) for part in parts.values()],
            len(place),
        )


def _files(folder: Path, kinds: tuple[str, ...], accepted: str) -> dict[str, list[Path]]:
    """Return the files of each class, both in the order of their names."""
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = {
        each.name: sorted(file for file in each.iterdir() if file.name.lower().endswith(kinds)) for each in classes
    }
    for name, files in found.items():
        if not files:
            raise DataError(f"{folder / name}: holds none of {', '.join(kinds)}; {accepted}, are accepted")
    if not found:
        raise DataError(f"{folder}: holds no folder; {accepted}, are accepted")
    return found
