"""Tables: an example in each row of a CSV or Parquet file."""

from pathlib import Path

import torch

from diastole.client.errors import DataError
from diastole.client.sources.table import KINDS, answers, column, inputs, read
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.held import whole
from diastole.experiments.data.reading import Reading, numbered
from diastole.experiments.data.targets import Column, targets
from diastole.models.training import Examples

ACCEPTED = f"a table ({', '.join(KINDS)}), or a folder with train and test as such tables"


def load(path: Path, reading: Reading) -> Dataset:
    """Return the rows of a table: a column of labels, maybe one of users, and numbers in all others.

    Labels and users may be numbers or words; they are numbered in their order. Several columns of targets, "a,b" in
    `reading.label`, give `[n, columns]`. x is float32 `[n, columns]`, as it is in the table. A single table has no test
    part, so a share of each class is drawn for it. Raises `DataError` naming the column, or without pandas.
    """
    tables = [path] if path.is_file() else [_part(path, "train"), _part(path, "test")]
    frames = [read(table, ACCEPTED) for table in tables]
    labels = [reading.label] if reading.label in frames[0].columns else reading.label.replace(" ", "").split(",")
    others = [name for name in frames[0].columns if name not in (*labels, reading.user)]
    x = [inputs(table, frame, others) for table, frame in zip(tables, frames, strict=True)]
    columns = [
        Column(table, f"column {reading.label!r}", answers(table, frame, labels), "the table", len(frame))
        for table, frame in zip(tables, frames, strict=True)
    ]
    y, classes = targets(columns, reading, renumber=True)
    users = None
    if reading.user in frames[0].columns:
        users = torch.from_numpy(numbered(column(tables[0], frames[0], reading.user))[0])
    return whole("table", [Examples(*each) for each in zip(x, y, strict=True)], classes, users, reading)


def _part(folder: Path, stem: str) -> Path:
    found = [folder / f"{stem}{kind}" for kind in KINDS if (folder / f"{stem}{kind}").is_file()]
    if len(found) != 1:
        raise DataError(f"{folder}: holds {len(found)} tables named {stem}; one, of {', '.join(KINDS)}, is accepted")
    return found[0]
