"""Pages of the reference, made from the code when the site is built: commands, keys of experiment files, the wire."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from inspect import cleandoc, getdoc
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import typer
from griffe import Docstring
from pydantic import BaseModel
from pydantic.fields import FieldInfo

PROTOS = Path(__file__).resolve().parents[2] / "proto" / "diastole" / "v1"


def commands() -> str:
    """Return every command with its arguments, options and defaults."""
    from diastole.cli.main import app

    lines = ["# Every option", "", "Made from the commands themselves; `--help` says the same."]
    for path, command in _commands(typer.main.get_command(app), ()):
        lines += ["", f"## {' '.join(path)}", "", _prose(command.help or "")]
        rows = [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
        if rows:
            lines += ["", "| option | default | meaning |", "| --- | --- | --- |", *rows]
    return "\n".join(lines) + "\n"


def _commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    here = (*path, command.name if path else "diastole")
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _commands(command.commands[name], here)
    elif not command.hidden:
        yield here, command


def _row(parameter: click.Parameter) -> str:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    if isinstance(parameter, click.Argument):
        names = f"`{parameter.human_readable_name}`"
    default = "" if parameter.default in (None, "", False) or callable(parameter.default) else f"`{parameter.default}`"
    return (
        f"| {names} | {'required' if parameter.required else default} | {_cell(getattr(parameter, 'help', '') or '')} |"
    )


def experiment() -> str:
    """Return every key of an experiment's file, table by table."""
    from diastole.simulations.simulation import Simulation

    lines = [
        "# Experiment files",
        "",
        "Every key of a file that `simulate`, `compare` and `serve` read. Made from the code.",
    ]
    tables = list(_tables(Simulation, ""))
    times = Counter(path for path, _ in tables)
    for path, table in tables:
        # A table of which there are several kinds.
        kind = f": {table.__name__.lower()}" if times[path] > 1 else ""
        lines += ["", f"## {f'[{path}]{kind}' if path else 'Top level'}", "", _summary(table), ""]
        said = _attributes(table)
        lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        for name, field in _fields(table).items():
            if not _inner(field.annotation):
                kind = _kind(field)
                lines.append(f"| `{name}` | {kind} | {_default(field)} | {_cell(said.get(name, ''))} |")
    return "\n".join(lines) + "\n"


def _tables(table: type, path: str) -> Iterator[tuple[str, type]]:
    yield path, table
    for name, field in _fields(table).items():
        for inner in _inner(field.annotation):
            star = ".NAME" if "Mapping" in str(field.annotation) or "dict" in str(field.annotation) else ""
            yield from _tables(inner, f"{path}.{name}{star}".lstrip("."))


def _fields(table: type) -> dict[str, FieldInfo]:
    if issubclass(table, BaseModel):
        return table.model_fields
    hints = get_type_hints(table)
    return {field.name: _of_dataclass(field, hints[field.name]) for field in fields(table)}


def _of_dataclass(field: Field[Any], annotation: Any) -> FieldInfo:
    if field.default_factory is not MISSING:
        return FieldInfo(annotation=annotation, default_factory=field.default_factory)
    return FieldInfo(annotation=annotation, default=... if field.default is MISSING else field.default)


def _inner(annotation: Any) -> list[type]:
    """Return the tables that a key's type names."""
    if isinstance(annotation, type) and (is_dataclass(annotation) or issubclass(annotation, BaseModel)):
        return [annotation]
    return [table for part in get_args(annotation) for table in _inner(part)]


def _summary(table: type) -> str:
    return _cell(cleandoc(getdoc(table) or "").split("\n\n")[0])


def _attributes(model: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        for section in Docstring(cleandoc(base.__dict__.get("__doc__") or ""), parser="google").parsed:
            if section.kind.value == "attributes":
                found |= {item.name: item.description for item in section.value}
    return found


def _kind(field: FieldInfo) -> str:
    text = getattr(field.annotation, "__name__", "") if isinstance(field.annotation, type) else str(field.annotation)
    return "`" + re.sub(r"(typing|collections\.abc|pathlib|diastole(\.\w+)*)\.", "", text) + "`"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "" if value is None or value in ("", (), {}) else f"`{value}`"


def wire() -> str:
    """Return the services and messages of the wire with their comments."""
    lines = ["# The wire", "", "The gRPC services and their messages (`proto/diastole/v1`). Made from the sources."]
    for path in sorted(PROTOS.glob("*.proto")):
        text = path.read_text().partition("package ")[2].partition("\n")[2].strip()
        lines += ["", f"## {path.name}", "", "```protobuf", text, "```"]
    return "\n".join(lines) + "\n"


def python() -> str:
    """Return the page on which the documentation of `import diastole` is put."""
    import diastole

    names = [name for name in diastole.__all__ if name != "__version__"]
    where = diastole._WHERE
    head = ["# Python", "", "What `import diastole` gives. Made from the docstrings."]
    return "\n".join([*head, *(f"\n::: {where[name]}.{name}" for name in names)]) + "\n"


PAGES = {"commands": commands, "experiment": experiment, "python": python, "wire": wire}


def _prose(text: str) -> str:
    return cleandoc(text.replace("\b", ""))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
