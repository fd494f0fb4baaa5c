"""A device's data, of whatever kind they are."""

import re
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from diastole.client import data
from diastole.client.errors import DataError
from diastole.client.sources.classes import Folder
from diastole.client.sources.cutter import Cutter
from diastole.client.sources.images import ACCEPTED, FORMATS, named, pixels
from diastole.client.sources.items import read_items
from diastole.client.sources.labels import numbers_of, targets_of
from diastole.client.sources.layout import arranged
from diastole.client.sources.mapped import InputFile, Mapped
from diastole.client.sources.mapped import opened as mapped
from diastole.client.sources.settings import Settings
from diastole.client.sources.source import Cut, DataSource, Fixed
from diastole.client.sources.table import KINDS, answers, inputs, read
from diastole.client.sources.windows import Windows
from diastole.models.allowed import PATTERN, function
from diastole.models.errors import brief
from diastole.models.training import Examples
from diastole.proto.errors import DiastoleError
from diastole.proto.registry import Registry

SOURCES: Registry[Callable[..., Any]] = Registry("source", {}, Callable, DataError)  # type: ignore[arg-type]
"""Functions that installed packages bring by entry points: each returns a torch `Dataset`, or a `DataSource`."""

TABLES = f"a table ({', '.join(KINDS)})"
IN_TABLES = ("label", "input", "classes", "values", "window", "newest")
PLAIN = Settings()


@contextmanager
def opened(where: str, settings: Settings = PLAIN) -> Iterator[tuple[str, DataSource]]:
    """Open a device's data for as long as the block lasts; yield a name for them, and the source of examples.

    Args:
        where: one of

            * a NumPy archive (.npz), or a folder of archives, of which the first that is free is taken;
            * a folder of NumPy files, `x.npy` and `y.npy`, of which the inputs stay there;
            * a folder with a folder of images for each class;
            * a CSV or Parquet file, an example in each row, or in each window of rows;
            * with `settings.window`, a CSV file that grows, or a FIFO (`client/sources/windows.py`);
            * "package.module:function" that the owner has allowed, or the name of such a function of an installed
              package: it takes `settings.path`, if that is said.
        settings: how they are read.

    Raises `DataError` for what cannot be read, and `ModelError` for a function that is not allowed.

    """
    path = Path(where)
    if not path.exists() and (re.fullmatch(PATTERN, where) or where in SOURCES):
        settings.only(f"data source {where}", "path", "layout", "classes", "values")
        yield where.rpartition(":")[2], _own(where, settings)
    elif settings.window and (path.name.endswith(".csv") or _is_fifo(path)):
        settings.only(f"{path}: a signal", *IN_TABLES)
        with closing(Windows(path, settings)) as windows:
            yield path.stem, windows
    elif not path.is_dir() and path.name.endswith(KINDS):
        settings.only(f"{path}: a table", *IN_TABLES)
        yield path.name.partition(".")[0], _table(path, settings)
    elif path.is_dir() and not any(path.glob("*.npz")):
        yield path.name, Fixed(_arrays(path, settings) if any(path.glob("*.npy")) else _images(path, settings))
    elif _is_fifo(path):
        raise DataError(f"{path}: is a FIFO; it is read with --window")
    else:
        settings.only(f"{path}: an archive")
        with data.claim(path) as archive:
            yield archive.stem, Fixed(data.load(archive))


def _is_fifo(path: Path) -> bool:
    with suppress(OSError):
        return stat.S_ISFIFO(path.stat().st_mode)
    return False


def _arrays(folder: Path, settings: Settings) -> Examples:
    settings.only(f"{folder}: a folder of NumPy files", "layout", "classes", "values")
    x, y = data.names_in(folder, [file.stem for file in sorted(folder.glob("*.npy"))], "a folder of NumPy files")
    inputs = InputFile(str(folder / f"{x}.npy"), settings.layout)
    targets = targets_of(folder, y, mapped(folder / f"{y}.npy"), x, len(inputs.array), settings)
    return Mapped.of(inputs, targets)


def _images(folder: Path, settings: Settings) -> Examples:
    settings.only(f"{folder}: a folder of images", "size", "classes")
    files = next(iter(Folder.read(folder, FORMATS, ACCEPTED).parts.values()))
    y = numbers_of(f"{folder}: folder", [file.parent.name for file in files], settings.classes)
    x = pixels({"x": [partial(named, file) for file in files]}, settings.size)["x"]
    return Examples(data.as_inputs(folder, "x", x), data.as_targets(folder, "y", y, "x", len(x), 2**31))


def _table(path: Path, settings: Settings) -> DataSource:
    frame = read(path, TABLES)
    columns, labels = settings.columns([str(name) for name in frame.columns])
    x = inputs(path, frame, columns)
    y = targets_of(path, f"column {settings.label!r}", answers(path, frame, labels), "the table", len(x), settings)
    if not settings.window:
        return Fixed(Examples(x, y))
    cutter = Cutter(path, settings)
    cutter.header([*columns, *labels])
    for row, target in zip(x.tolist(), y.tolist(), strict=True):
        cutter.row(row, target)
    return Cut(cutter.examples(), cutter.kept())


def _own(name: str, settings: Settings) -> DataSource:
    made = function("data source", name) if ":" in name else SOURCES[name]
    try:
        found = made() if settings.path is None else made(settings.path)
        if isinstance(found, DataSource):
            return found
        x, y = read_items("x", found)
        inputs = data.as_inputs(Path(name), "x", arranged(Path(name), "x", x, settings.layout))
        return Fixed(Examples(inputs, targets_of(Path(name), "y", y, "x", len(x), settings)))
    except DiastoleError:
        raise
    except Exception as error:
        raise DataError(f"data source {name}: {brief(error)}") from error
