"""Columns of CSV and Parquet files."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diastole.client.data import as_inputs
from diastole.client.errors import DataError
from diastole.proto.missing import needed

KINDS = (".csv", ".csv.gz", ".parquet")


def read(path: Path, accepted: str) -> Any:
    """Return a table as a frame of pandas. Raises `DataError`, which says what is `accepted`; also without pandas."""
    if not path.name.endswith(KINDS):
        raise DataError(f"{path}: is no table; {accepted} is accepted")
    with needed(DataError, str(path), "pandas or pyarrow", "diastole[tables]"):
        import pandas

        if path.suffix == ".parquet":
            import pyarrow  # noqa: F401 (pandas reads Parquet by it)
    try:
        return pandas.read_parquet(path) if path.suffix == ".parquet" else pandas.read_csv(path)
    except (OSError, ValueError) as error:
        brief = next(iter(str(error).splitlines()), "")[:200]
        raise DataError(f"{path}: cannot be read ({brief}); {accepted} is accepted") from None


def column(path: Path, frame: Any, name: str) -> NDArray[Any]:
    """Return a column of numbers or words. Raises `DataError` if it is missing or has gaps."""
    if name not in frame.columns:
        raise DataError(f"{path}: has no column {name!r}; there are {', '.join(map(str, frame.columns))[:500]}")
    _refuse_gaps(path, frame, name)
    values: NDArray[Any] = frame[name].to_numpy()
    return values if values.dtype.kind in "biuf" else values.astype(np.str_)


def inputs(path: Path, frame: Any, columns: list[Any]) -> torch.Tensor:
    """Return columns of numbers as float32 `[n, columns]`. Raises `DataError` for a column that is no such."""
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


def answers(path: Path, frame: Any, names: list[str]) -> NDArray[Any]:
    """Return the targets `[n]`, or `[n, columns]` of several columns."""
    found = [column(path, frame, name) for name in names]
    return found[0] if len(found) == 1 else np.stack(found, 1)
