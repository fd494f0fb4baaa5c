"""Tables: an example in each row of a CSV or Parquet file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from diastole.client.data import as_inputs
from diastole.client.errors import DataError
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.held import with_test
from diastole.experiments.data.reading import Reading, numbered, numbered_like
from diastole.models.training import Examples

KINDS = (".csv", ".csv.gz", ".parquet")
ACCEPTED = f"a table ({', '.join(KINDS)}), or a folder with train and test as such tables"


def load(path: Path, reading: Reading) -> Dataset:
    """Return the rows of a table: a column of labels, maybe one of users, and numbers in all others.

    Labels and users may be numbers or words; they are numbered in their order. x is float32 `[n, columns]`, as it is in
    the table. A single table has no test part, so a share of each class is drawn for it. Raises `DataError` naming the
    column, or without pandas.
    """
    tables = [path] if path.is_file() else [_part(path, "train"), _part(path, "test")]
    frames = [_read(table) for table in tables]
    columns = [name for name in frames[0].columns if name not in (reading.label, reading.user)]
    x = [_inputs(table, frame, columns) for table, frame in zip(tables, frames, strict=True)]
    labels, names = numbered(_column(tables[0], frames[0], reading.label))
    users = None
    if reading.user in frames[0].columns:
        users = torch.from_numpy(numbered(_column(tables[0], frames[0], reading.user))[0])
    examples = Examples(x[0], torch.from_numpy(labels))
    if len(tables) == 1:
        return with_test("table", examples, len(names), users, reading)
    what, tested = f"{tables[1]}: column {reading.label!r}", _column(tables[1], frames[1], reading.label)
    tested = numbered_like(what, tested, names, tables[0].name)
    return Dataset("table", examples, Examples(x[1], torch.from_numpy(tested)), len(names), users)


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


def _column(path: Path, frame: Any, name: str) -> Any:
    """Return a column of numbers or words. Raises `DataError` if it is missing or has gaps."""
    if name not in frame.columns:
        raise DataError(f"{path}: has no column {name!r}; there are {', '.join(map(str, frame.columns))[:500]}")
    values = frame[name]
    _refuse_gaps(path, frame, name)
    if values.dtype.kind == "f" and (values != values.round()).any():
        raise DataError(
            f"{path}: column {name!r} holds {values[values != values.round()].iloc[0]}; whole numbers or "
            "words are accepted"
        )
    return values.to_numpy()


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
