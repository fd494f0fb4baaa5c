"""Tables: an example in each row of a CSV or Parquet file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diastole.client.data import as_inputs
from diastole.client.errors import DataError
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.held import whole
from diastole.experiments.data.reading import Reading, numbered
from diastole.experiments.data.targets import Column, targets
from diastole.models.training import Examples

KINDS = (".csv", ".csv.gz", ".parquet")
ACCEPTED = f"a table ({', '.join(KINDS)}), or a folder with train and test as such tables"


def load(path: Path, reading: Reading) -> Dataset:
    """Return the rows of a table: a column of labels, maybe one of users, and numbers in all others.

    Labels and users may be numbers or words; they are numbered in their order. Several columns of targets, "a,b" in
    `reading.label`, give `[n, columns]`. x is float32 `[n, columns]`, as it is in the table. A single table has no test
    part, so a share of each class is drawn for it. Raises `DataError` naming the column, or without pandas.
    """
    tables = [path] if path.is_file() else [_part(path, "train"), _part(path, "test")]
    frames = [_read(table) for table in tables]
    answers = [reading.label] if reading.label in frames[0].columns else reading.label.replace(" ", "").split(",")
    inputs = [name for name in frames[0].columns if name not in (*answers, reading.user)]
    x = [_inputs(table, frame, inputs) for table, frame in zip(tables, frames, strict=True)]
    columns = [
        Column(table, f"column {reading.label!r}", _targets(table, frame, answers), "the table", len(frame))
        for table, frame in zip(tables, frames, strict=True)
    ]
    y, classes = targets(columns, reading, renumber=True)
    users = None
    if reading.user in frames[0].columns:
        users = torch.from_numpy(numbered(_column(tables[0], frames[0], reading.user))[0])
    return whole("table", [Examples(*each) for each in zip(x, y, strict=True)], classes, users, reading)


def _targets(path: Path, frame: Any, names: list[str]) -> NDArray[Any]:
    """Return the targets `[n]`, or `[n, columns]` of several columns."""
    found = [_column(path, frame, name) for name in names]
    return found[0] if len(found) == 1 else np.stack(found, 1)


def _part(folder: Path, stem: str) -> Path:
    found = [folder / f"{stem}{kind}" for kind in KINDS if (folder / f"{stem}{kind}").is_file()]
    if len(found) != 1:
        raise DataError(f"{folder}: holds {len(found)} tables named {stem}; one, of {', '.join(KINDS)}, is accepted")
    return found[0]


def _read(path: Path) -> Any:
    if not path.name.endswith(KINDS):
        raise DataError(f"{path}: is no table; {ACCEPTED} is accepted")
    try:
        import pandas

        return pandas.read_parquet(path) if path.suffix == ".parquet" else pandas.read_csv(path)
    except ImportError:
        raise DataError(f"{path}: tables need pandas and pyarrow: pip install diastole[tables]") from None
    except (OSError, ValueError) as error:
        brief = next(iter(str(error).splitlines()), "")[:200]
        raise DataError(f"{path}: cannot be read ({brief}); {ACCEPTED} is accepted") from None


def _column(path: Path, frame: Any, name: str) -> NDArray[Any]:
    """Return a column of numbers or words. Raises `DataError` if it is missing or has gaps."""
    if name not in frame.columns:
        raise DataError(f"{path}: has no column {name!r}; there are {', '.join(map(str, frame.columns))[:500]}")
    _refuse_gaps(path, frame, name)
    values: NDArray[Any] = frame[name].to_numpy()
    return values if values.dtype.kind in "biuf" else values.astype(np.str_)


def _inputs(path: Path, frame: Any, columns: list[Any]) -> torch.Tensor:
    missing = [name for name in columns if name not in frame.columns]
    if missing or not columns or not len(frame):
        what = f"no column {missing[0]!r}" if missing else f"{len(frame)} rows and {len(columns)} columns of inputs"
        raise DataError(f"{path}: has {what}; at least one of each, and in test those of train, are accepted")
    for name in columns:
        if frame[name].dtype.kind not in "biuf":
            raise DataError(f"{path}: column {name!r} holds {frame[name].iloc[0]!r}; numbers are accepted")
        _refuse_gaps(path, frame, name)
    return as_inputs(path, "inputs", frame[columns].to_numpy(dtype=np.float32))


def _refuse_gaps(path: Path, frame: Any, name: object) -> None:
    gaps = frame[name].isna().to_numpy()
    if gaps.any():
        raise DataError(
            f"{path}: column {name!r} has no value in row {int(gaps.argmax())}; a value in each is accepted"
        )
