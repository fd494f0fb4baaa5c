"""Rows of a table of sensor data, cut into overlapping windows."""

import csv
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diastole.client.errors import DataError
from diastole.client.sources.labels import number_of
from diastole.client.sources.settings import Settings
from diastole.client.sources.stretches import Stretches
from diastole.models.training import Examples

LONGEST_LINE = 1 << 16
LARGEST = float(np.finfo(np.float32).max)

_Windows = deque[tuple[NDArray[np.float32], float]]


class Cutter:
    """Takes rows, and keeps the newest windows of them; memory does not grow with the rows.

    A window counts if all of its rows have the same label, and with `data.values` if its last row has a value, which is
    its target. A row that cannot be read ends a window: none spans it. With a test share, windows that are kept for the
    test share no row with those that are trained on (`client/sources/stretches.py`).
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        """Make a cutter for a table of which `path` is named in errors."""
        self._path, self._settings = path, settings
        self._stretches = Stretches.of(settings.window, settings.hop, settings.test_share)
        self._number = 0
        share = settings.test_share
        self._windows = _Windows(maxlen=settings.newest)
        self._kept = _Windows(maxlen=max(1, round(settings.newest * share / (1 - share))))
        self._rows: list[tuple[list[float], float | None]] = []
        self._tail = b""
        self._header: list[str] = []
        self._inputs: list[int] = []
        self._label = 0
        self._fault = "no row yet"

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`[columns, window]`. Raises `DataError` before there is a header."""
        if not self._header:
            raise DataError(f"{self._path}: has no header yet; a first line with the names of the columns is accepted")
        return len(self._inputs), self._settings.window

    def begin(self) -> None:
        """Expect a header: what comes now is the beginning of a table."""
        self._rows.clear()
        self._tail, self._header, self._number = b"", [], 0

    def feed(self, data: bytes) -> None:
        """Take the next part of a CSV file. Raises `DataError` for a header without the columns that are needed."""
        *lines, self._tail = (self._tail + data).split(b"\n")
        if len(self._tail) > LONGEST_LINE:
            raise DataError(f"{self._path}: a line goes on beyond {LONGEST_LINE} bytes; a CSV file is accepted")
        for line in lines:
            # A byte that is no text makes its row unreadable, and no more.
            text = line.decode(errors="replace").strip().lstrip("\ufeff")
            if text and self._header:
                self._read(text)
            elif text:
                self.header([name.strip() for name in next(csv.reader([text]))])

    def header(self, names: Sequence[str]) -> None:
        """Take the names of the columns. Raises `DataError` if one that is needed is missing."""
        inputs, labels = self._settings.columns(names)
        for name in (*inputs, *labels):
            if name not in names:
                raise DataError(f"{self._path}: has no column {name!r}; there are {', '.join(names)[:500]}")
        if len(labels) != 1 or not inputs:
            raise DataError(
                f"{self._path}: has {len(inputs)} columns of inputs and {len(labels)} of labels for windows; at least "
                "one, and one, are accepted"
            )
        self._inputs, self._label = [names.index(name) for name in inputs], names.index(labels[0])
        self._header = list(names)

    def examples(self) -> Examples:
        """Return the windows that are kept, oldest first: x float32 `[n, columns, window]`. Raises `DataError`."""
        if not self._windows:
            raise DataError(
                f"{self._path}: has no window yet: {self._fault}; {self._settings.window} rows with one label, one "
                "after another, are accepted"
            )
        return self._examples(self._windows)

    def kept(self) -> Examples:
        """Return the windows that are kept for a test, in the same form; perhaps none."""
        return self._examples(self._kept) if self._kept else Examples.empty()

    def _examples(self, windows: _Windows) -> Examples:
        x = torch.from_numpy(np.stack([window for window, _ in windows]))
        kind = torch.float32 if self._settings.values else torch.int64
        return Examples(x, torch.tensor([target for _, target in windows], dtype=kind))

    def _read(self, text: str) -> None:
        try:
            fields = next(csv.reader([text]))
            if len(fields) != len(self._header):
                raise ValueError(f"a row has {len(fields)} fields, the header {len(self._header)}")
            values = [_finite(fields[place]) for place in self._inputs]
            label = self._target(fields[self._label].strip())
        except (ValueError, csv.Error, DataError) as error:
            self._fault = str(error)[:200]
            self._rows.clear()
            return
        self.row(values, label)

    def _target(self, text: str) -> float | None:
        if not text:
            return None
        return _finite(text) if self._settings.values else number_of("label", text, self._settings.classes)

    def row(self, values: list[float], target: float | None) -> None:
        """Take a row, with the number of its class, or its value; None for a row without a label."""
        self._rows.append((values, target))
        self._fault = "too few rows, or their labels differ"
        if len(self._rows) < self._settings.window:
            return
        kinds = {label for _, label in self._rows}
        last, side = self._rows[-1][1], self._stretches.side(self._number)
        self._number += 1
        if side != "gap" and last is not None and (self._settings.values or len(kinds) == 1):
            windows = self._windows if side == "training" else self._kept
            # float32 [columns, window], contiguous.
            windows.append((np.array([row for row, _ in self._rows], np.float32).T.copy(), last))
        del self._rows[: self._settings.hop]


def _finite(text: str) -> float:
    value = float(text)
    if not abs(value) <= LARGEST:
        raise ValueError(f"a row holds {text[:100]}; finite float32 values are accepted")
    return value
