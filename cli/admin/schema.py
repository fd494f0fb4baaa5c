"""`diastole admin schema`: what the commands print with `--json`, as JSON Schema, made of the wire's messages."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

import typer
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from diastole.cli.admin.verb import REALS, group
from diastole.cli.options import print_json
from diastole.proto.errors import DiastoleError

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SIGNED = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}
FIELD = re.compile(r"\s*(?:repeated |optional )?[\w.]+(?:<[\w., ]+>)? (\w+) = \d+;")
OPENED = re.compile(r"\s*(?:message|enum|oneof) (\w+) \{(\})?")

app = group("")


class NoSchemaError(DiastoleError):
    """A command that prints no JSON, or none at all."""

    exit_code = 2


@app.command()
def schema(
    command: Annotated[list[str] | None, typer.Argument(help="Such as `runs list`; by default all.")] = None,
) -> None:
    """Print the JSON Schema of what a command prints with --json, or those of all commands.

    Example: `diastole admin schema runs list`
    """
    # Here, because that imports this module.
    from diastole.cli.admin.app import app as admin

    name = " ".join(command or ())
    if not name:
        print_json(schemas(admin))
        return
    known = dict(_functions(admin))
    if name not in known:
        raise NoSchemaError(f"{name!r} prints no JSON; there are: {', '.join(sorted(known))}")
    defs: dict[str, Any] = {}
    print_json({"$schema": DIALECT, **_document(known[name], defs), "$defs": defs})


def schemas(admin: typer.Typer) -> dict[str, Any]:
    """Return the messages that commands print under "$defs", and what each command prints under "commands"."""
    defs: dict[str, Any] = {}
    commands = {name: _document(function, defs) for name, function in sorted(_functions(admin))}
    return {"$schema": DIALECT, "$defs": dict(sorted(defs.items())), "commands": commands}


def _functions(app: typer.Typer, *path: str) -> Iterator[tuple[str, Any]]:
    for each in app.registered_commands:
        if each.callback is not None and (
            getattr(each.callback, "gives", None) or getattr(each.callback, "shape", None)
        ):
            yield " ".join((*path, each.name or each.callback.__name__)), each.callback
    for part in app.registered_groups:
        if part.typer_instance is not None:
            yield from _functions(part.typer_instance, *path, *([part.name] if isinstance(part.name, str) else []))


def _document(function: Any, defs: dict[str, Any]) -> dict[str, Any]:
    gives: Any = function.gives or function.shape
    (one,) = gives if isinstance(gives, list) else [gives]
    if isinstance(one, Mapping):
        keys = {name: {"type": TYPES[kind]} for name, kind in one.items()}
        found = {"type": "object", "properties": keys, "required": list(keys), "additionalProperties": False}
    else:
        found = _message(one.DESCRIPTOR, defs)
    return {"type": "array", "items": found} if isinstance(gives, list) else found


def _message(about: Descriptor, defs: dict[str, Any]) -> dict[str, Any]:
    """Return a reference to a message's schema, which is in `defs` then."""
    if about.name not in defs:
        defs[about.name] = found = {"type": "object", "additionalProperties": False}
        told = _comments(about.file.name).get(about.name, {})
        keys = {field.name: _field(field, defs) for field in about.fields}
        found["properties"] = {
            name: {**key, **({"description": told[name]} if name in told else {})} for name, key in keys.items()
        }
        found["required"] = [field.name for field in about.fields if field.is_repeated or not field.has_presence]
    return {"$ref": f"#/$defs/{about.name}"}


def _field(field: FieldDescriptor, defs: dict[str, Any]) -> dict[str, Any]:
    if field.message_type and field.message_type.GetOptions().map_entry:
        value = _value(field.message_type.fields_by_name["value"], defs)
        return {"type": "object", "additionalProperties": value}
    value = _value(field, defs)
    return {"type": "array", "items": value} if field.is_repeated else value


def _value(field: FieldDescriptor, defs: dict[str, Any]) -> dict[str, Any]:
    if field.message_type:
        return _message(field.message_type, defs)
    if field.enum_type:
        enum: EnumDescriptor = field.enum_type
        return {"enum": [value.name for value in enum.values]}
    if field.cpp_type in REALS:
        return {"type": ["number", "null"]}
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"type": "boolean"}
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return {"type": "string"}
    return {"type": "integer"} if field.cpp_type in SIGNED else {"type": "integer", "minimum": 0}


@cache
def _comments(name: str) -> Mapping[str, Mapping[str, str]]:
    """Return what a `.proto` file says of the fields of each of its messages."""
    text = (files("diastole.v1") / name.rpartition("/")[2]).read_text()
    found: dict[str, dict[str, str]] = {}
    inside, said = list[str](), list[str]()
    for line in text.splitlines():
        if line.strip().startswith("//"):
            said.append(line.strip().removeprefix("//").strip())
            continue
        if opened := OPENED.match(line):
            inside += [] if opened[2] else [opened[1]]
        elif line.strip() == "}" and inside:
            inside.pop()
        elif (field := FIELD.match(line)) and inside and said:
            found.setdefault(inside[-1], {})[field[1]] = " ".join(said)
        said = []
    return found
