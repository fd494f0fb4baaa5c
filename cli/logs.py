"""The log of a long command: where it goes, and how its lines look."""

import io
import json
import logging
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from enum import StrEnum
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diastole.proto.about import About, mark
from diastole.proto.words import plain

if TYPE_CHECKING:
    from rich.console import Console

LONGEST, LONGEST_TRACE = 2_000, 20_000
"""Characters of a message, and of a traceback, that a line shows."""
FILE_BYTES, FILES = 10 << 20, 5
"""Of one file of a log, and how many older ones are kept beside it."""
OTHERS = ("grpc", "asyncio", "concurrent.futures", "py.warnings")
"""Loggers of what the command stands on, whose warnings are kept too."""


class LogFormat(StrEnum):
    """How a line of a log looks."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """What matters enough to be logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


FormatOption = Annotated[LogFormat, typer.Option(help="Lines of the log: for people, or one JSON document each.")]
LevelOption = Annotated[LogLevel, typer.Option(help="The least that is logged.")]
FileOption = Annotated[
    Path | None, typer.Option(help=f"Keep the log in a file too; {FILES} older ones of 10 MB each stay beside it.")
]


class TextFormatter(logging.Formatter):
    """Lines such as `2026-11-27T15:04:40.123Z INFO    round 3/10  5 updates  (run=a1b2 round=3)`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line, and its traceback below it."""
        found = _about(record)
        parts = ("run", found.run), ("round", found.round), ("device", found.device)
        told = " ".join(f"{name}={plain(str(value))}" for name, value in parts if value)
        text = f"{_time(record)} {record.levelname:<7} {plain(record.getMessage(), LONGEST)}"
        return text + (f"  ({told})" if told else "") + "".join(f"\n  {line}" for line in self._trace(record))

    def _trace(self, record: logging.LogRecord) -> list[str]:
        text = self.formatException(record.exc_info) if record.exc_info else ""
        return [plain(line, LONGEST) for line in text[-LONGEST_TRACE:].splitlines()]


class JsonFormatter(TextFormatter):
    """One JSON document a line, with `run`, `round` and `device` in each; null where there is none."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line."""
        found = _about(record)
        document: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "run": found.run or None,
            "round": found.round or None,
            "device": found.device or None,
            "message": plain(record.getMessage(), LONGEST),
        }
        for name in ("event", "fields"):
            if value := getattr(record, name, None):
                document[name] = value
        if trace := self._trace(record):
            document["exception"] = trace
        return json.dumps(document)


class ConsoleHandler(logging.StreamHandler[Any]):
    """Writes above whatever moves on a console."""

    def __init__(self, console: "Console") -> None:
        super().__init__(io.StringIO())
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        try:
            self._console.print(self.format(record), soft_wrap=True)
        except Exception:  # noqa: BLE001 (a log must not end what it tells of)
            self.handleError(record)


@contextmanager
def logging_to(
    console: "Console | None",
    form: LogFormat = LogFormat.TEXT,
    level: LogLevel = LogLevel.INFO,
    file: Path | None = None,
) -> Generator[None, None, None]:
    """Write what `diastole` logs while the block runs, and the warnings of what it stands on.

    Args:
        console: where people read; standard output if it is None.
        form: of the lines.
        level: the least that is logged.
        file: a file that gets the same lines; it is exchanged for a new one before it is too long.

    Raises `OSError` if the file cannot be written.

    """
    handlers: list[logging.Handler] = [_shown(console)]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(RotatingFileHandler(file, maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(JsonFormatter() if form is LogFormat.JSON else TextFormatter())
        handler.addFilter(mark)
    loggers = [logging.getLogger(name) for name in ("diastole", *OTHERS)]
    before = [(logger.level, logger.propagate) for logger in loggers]
    # A full disk or a closed pipe is no reason to write tracebacks.
    raising, logging.raiseExceptions = logging.raiseExceptions, False
    logging.captureWarnings(True)
    try:
        for logger in loggers:
            logger.propagate = False
            logger.setLevel(level.name if logger.name == "diastole" else logging.WARNING)
            for handler in handlers:
                logger.addHandler(handler)
        yield
    finally:
        logging.captureWarnings(False)
        logging.raiseExceptions = raising
        for logger, (earlier, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(earlier)
            logger.propagate = propagate
            for handler in handlers:
                logger.removeHandler(handler)
        for handler in handlers:
            with suppress(OSError):
                handler.close()


def _shown(console: "Console | None") -> logging.Handler:
    # Beside nothing that moves, a line is written as it is: rich takes milliseconds for each.
    if console is not None and console.is_terminal:
        return ConsoleHandler(console)
    return logging.StreamHandler(console.file if console else sys.stdout)


def _time(record: logging.LogRecord) -> str:
    """Return when it was logged, UTC, as ISO 8601 has it."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _about(record: logging.LogRecord) -> About:
    found = getattr(record, "about", None)
    return found if isinstance(found, About) else About()
