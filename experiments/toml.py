"""Documents of settings: read from a TOML file, changed key by key, and bounded before anything else looks at them."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from diastole.experiments.errors import ExperimentError

LARGEST_FILE = 1 << 20
DEEPEST, LONGEST, LARGEST = 12, 10_000, 1 << 63


@dataclass(frozen=True, slots=True)
class Override:
    """`table.key=value` from the command line; the value is TOML, or else a plain string."""

    keys: tuple[str, ...]
    value: Any

    @classmethod
    def read(cls, text: str) -> Self:
        """Parse one override. Raises `ExperimentError`."""
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise ExperimentError(f"{text[:100]!r}: an override reads table.key=value")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):
            parsed = value
        return cls(tuple(key.strip().split(".")), parsed)


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return a file's document with some keys changed; a relative path is taken from the file's folder.

    Raises `ExperimentError`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ExperimentError(f"{path}: is larger than {LARGEST_FILE} bytes; an experiment in TOML is accepted")
        document = tomllib.loads(content.decode())
    except FileNotFoundError:
        raise ExperimentError(f"{path}: no such file; give the path of an experiment in TOML") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: cannot be read ({error})") from None
    except RecursionError:
        raise ExperimentError(f"{path}: not TOML: tables within tables go too deep") from None
    except ValueError as error:
        raise ExperimentError(f"{path}: not TOML: {error}") from None
    _resolve(document, path.parent)
    return overridden(document, overrides)


def _resolve(document: dict[str, Any], folder: Path) -> None:
    """Take relative paths of data and of weights from a folder, in place."""
    for table, key in (("data", "path"), ("model", "initial")):
        found = document.get(table)
        if isinstance(found, dict) and isinstance(found.get(key), str):
            found[key] = folder / found[key]
    methods = document.get("methods")
    for options in methods.values() if isinstance(methods, dict) else ():
        if isinstance(options, dict) and isinstance(options.get("anchors"), list):
            options["anchors"] = [str(folder / each) if isinstance(each, str) else each for each in options["anchors"]]


def overridden(document: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Change keys of a document, `table.key=value` each, and return it. Raises `ExperimentError`."""
    for override in map(Override.read, overrides):
        put(document, override.keys, override.value)
    return document


def put(document: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a key of a table of a table ..., making tables that are missing. Raises `ExperimentError`."""
    table = document
    for part in keys[:-1]:
        # A table that may be left out is None in an experiment's own dump.
        if table.get(part) is None:
            table[part] = {}
        table = table[part]
        if not isinstance(table, dict):
            raise ExperimentError(f"{_shown('.'.join(keys))}: {_shown(part)} is not a table")
    table[keys[-1]] = value


def check_bounds(document: Mapping[str, Any], source: str) -> None:
    """Raise `ExperimentError` for what no experiment has: too deep, too long, too large, or no text."""
    left = [(key, value, 1) for key, value in document.items()]
    seen = 0
    while left:
        key, value, depth = left.pop()
        seen += 1
        inner: list[tuple[Any, Any]] = []
        if not _text(key):
            raise ExperimentError(f"{source}: {_shown(str(key))}: a key that is not text")
        if isinstance(value, Mapping):
            inner = list(value.items())
        elif isinstance(value, list | tuple):
            inner = [(key, each) for each in value]
        elif isinstance(value, int) and not -LARGEST <= value < LARGEST:
            raise ExperimentError(f"{source}: {_shown(key)}: a number of more than 63 bits is not accepted")
        elif isinstance(value, str | Path) and not _text(str(value)):
            raise ExperimentError(f"{source}: {_shown(key)}: {_shown(str(value))} is not text that UTF-8 can write")
        if depth > DEEPEST:
            raise ExperimentError(f"{source}: {_shown(key)}: tables within tables go deeper than {DEEPEST}")
        if len(inner) > LONGEST or seen > 10 * LONGEST:
            raise ExperimentError(f"{source}: {_shown(key)}: more than {LONGEST} values are not accepted")
        left += [(name, each, depth + 1) for name, each in inner]


def _text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _shown(text: str) -> str:
    return text[:100].encode("unicode_escape").decode()
