"""Holding what operators' commands print against the schemas that are documented."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "admin.json"


@cache
def documented() -> Any:
    return json.loads(SCHEMAS.read_text())


def check_printed(words: tuple[object, ...], document: Any) -> None:
    """Raise `jsonschema.ValidationError` if a command has printed something else than is documented."""
    texts = list(map(str, words))
    name = next(name for count in (2, 1) if (name := " ".join(texts[:count])) in documented()["commands"])
    schema = {"$defs": documented()["$defs"], **documented()["commands"][name]}
    jsonschema.validate(document, schema, jsonschema.Draft202012Validator)
