"""The value that names a sub-model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from diastole.models.errors import SpecError

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""How values from outside are validated: unknown keys, and numbers that are not finite, are refused."""

LONGEST_LABEL = 1000
"""The most characters of a label; most labels have some tens, a supernet's deepest architectures some hundreds."""

_DOCUMENT = TypeAdapter(dict[str, Any])


@dataclass(frozen=True, slots=True)
class SubModelSpec:
    """One sub-model of the global model, named the same on the server, on the wire and on the device.

    Attributes:
        method: the name of the method that makes it (`models/methods/registry.py`).
        label: a short name for tables, such as `width 0.5`; unique among the sizes of a run.
        options: what the method needs to build it: a frozen dataclass of the method's own, which pydantic validates.

    """

    method: str
    label: str
    options: Any

    def __post_init__(self) -> None:
        """Raise `SpecError` for a label that is too long, or that a terminal could not show."""
        if not 0 < len(self.label) <= LONGEST_LABEL or not self.label.isprintable():
            raise SpecError(f"label {self.label[:40]!r}: expected 1 to {LONGEST_LABEL} printable characters")

    def to_json(self) -> str:
        """Return the spec as compact JSON; `registry.read_spec` reads it."""
        kind: type = type(self.options)
        options = adapter(kind).dump_python(self.options, mode="json", exclude_defaults=True)
        document = {"method": self.method, "label": self.label, "options": options}
        return _DOCUMENT.dump_json(document).decode()


def labelled(method: str, options: Any, width: float = 1.0, **parts: Any) -> SubModelSpec:
    """Return a spec whose label is the method, the width, and each of `parts` that is not empty, such as `stages 2`.

    A width of 1 is left out if there are other parts.
    """
    extra = [f"{name} {_brief(value)}" for name, value in parts.items() if value]
    shown = [] if width == 1 and extra else [f"{width:g}"]
    return SubModelSpec(method, " ".join([method, *shown, *extra]), options)


@cache
def adapter(kind: type) -> TypeAdapter[Any]:
    """Return the pydantic adapter that reads and writes the values of a class."""
    return TypeAdapter(kind)


def one_line(error: ValidationError, schema: Mapping[str, Any] | None = None) -> str:
    """Return, on one line, every fault that pydantic found; see `faults_of`."""
    return "; ".join(faults_of(error, schema))


def faults_of(error: ValidationError, schema: Mapping[str, Any] | None = None) -> list[str]:
    """Return every fault that pydantic found, each as `key: what is wrong, not the value`.

    If the JSON `schema` of the expected value is given, the text of an unknown key lists the known ones.
    """
    faults = []
    for fault in error.errors():
        key = ".".join(map(str, fault["loc"])).encode("unicode_escape").decode() or "value"
        kind = fault["type"]
        if kind in ("extra_forbidden", "unexpected_keyword_argument"):
            known = ", ".join(_keys(schema, schema, fault["loc"][:-1])) if schema else ""
            faults.append(f"{key}: no such key" + (f"; accepted: {known}" if known else ""))
        elif kind in ("missing", "missing_argument"):
            faults.append(f"{key}: is missing")
        elif kind == "value_error":
            # The message of a rule of our own is enough; its input may be a whole document.
            faults.append(f"{key}: {fault['ctx']['error']}" if fault["loc"] else str(fault["ctx"]["error"]))
        else:
            faults.append(f"{key}: {fault['msg']}, not {fault['input']!r}")
    return faults


def keys_of(schema: Mapping[str, Any], path: Sequence[int | str]) -> list[str]:
    """Return the known keys of the table at `path` of a value with this JSON schema."""
    return list(_keys(schema, schema, path))


def _keys(schema: Mapping[str, Any], here: Mapping[str, Any], path: Sequence[int | str]) -> Iterable[str]:
    """Return the known keys of the table at `path` below `here`, a part of a schema."""
    if "$ref" in here:
        return _keys(schema, schema["$defs"][here["$ref"].rpartition("/")[2]], path)
    if "anyOf" in here:
        return _keys(schema, here["anyOf"][0], path)
    table: Mapping[str, Any] = here.get("properties", {})
    if not path:
        return table
    return _keys(
        schema, table.get(str(path[0])) or here.get("additionalProperties") or here.get("items") or {}, path[1:]
    )


def _brief(value: object) -> str:
    if isinstance(value, tuple):
        return "-".join(str(len(part)) if isinstance(part, tuple) else _brief(part) for part in value)
    return f"{value:g}"
