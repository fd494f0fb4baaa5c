"""The value that names a sub-model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from diastole.models.errors import SpecError

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""How values that come from outside are read: no unknown key, and no number that is not finite."""


@validated(frozen=True, slots=True, config=STRICT)
class SubModelSpec:
    """One sub-model of the global model, named the same on the server, on the wire and on the device.

    Each method reads the attributes that concern it and leaves the others at their defaults, which mean "all of it".

    Attributes:
        method: the compressor that makes it.
        width: share of the hidden channels kept, in (0, 1].
        nested: widths that are trained inside this one, each in (0, 1]; not part of the label either.
        stages: first stages kept; 0 for all.
        start: stages that stay at full width before the narrow ones.
        blocks: for each stage, the positions of the residual blocks kept.
        kernels: sizes of the elastic kernels, block by block.
        expands: expansion ratios of the elastic blocks, block by block; in networks without such blocks, the shares of
            the channels kept, stage by stage.
        depths: how many blocks of each stage each of several independent networks has, in the order of `nested`; not
            part of the label either.
        bases: which of several independent networks it consists of.
        route: the way through stitched networks: the number of a configuration, counted from 1; 0 for none.
        rank: of low-rank layers; 0 for full ones.
        density: share of the scalars kept, in (0, 1].
        distil: weight of what its smaller parts learn from itself; 0 for none.
        objective: settings of what it is trained for, in the order of the method's options; those of all sizes of a
            run are the same, so they are not part of the label.

    """

    method: str
    width: float = Field(default=1.0, gt=0, le=1)
    nested: tuple[float, ...] = ()
    stages: int = Field(default=0, ge=0)
    start: int = Field(default=0, ge=0)
    blocks: tuple[tuple[int, ...], ...] = ()
    kernels: tuple[int, ...] = ()
    expands: tuple[float, ...] = ()
    depths: tuple[tuple[int, ...], ...] = ()
    bases: tuple[int, ...] = ()
    route: int = Field(default=0, ge=0)
    rank: int = Field(default=0, ge=0)
    density: float = Field(default=1.0, gt=0, le=1)
    distil: float = Field(default=0.0, ge=0)
    objective: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        """A short name for tables, such as `width 0.5`: the method, the width, and what else is not all of it."""
        plain = SubModelSpec(self.method)
        same = ("method", "width", "nested", "depths", "objective")
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in same}
        extra = [f"{name} {_brief(value)}" for name, value in given.items() if value != getattr(plain, name)]
        width = [] if self.width == 1 and extra else [f"{self.width:g}"]
        return " ".join([self.method, *width, *extra])

    def to_json(self) -> str:
        """Return the spec as compact JSON."""
        return _ADAPTER.dump_json(self, exclude_defaults=True).decode()

    @staticmethod
    def from_json(text: str) -> "SubModelSpec":
        """Parse what `to_json` wrote. Raises `SpecError`."""
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise SpecError(f"sub-model spec {text!r}: {one_line(error)}") from None


def one_line(error: ValidationError, schema: Mapping[str, Any] | None = None) -> str:
    """Return every fault that pydantic found on one line: `key: what is wrong, not the value`.

    With the JSON schema of what was expected, a key that is none is told with those that are.
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
            # A rule of our own says itself what is wrong, and its input may be a whole document.
            faults.append(f"{key}: {fault['ctx']['error']}" if fault["loc"] else str(fault["ctx"]["error"]))
        else:
            faults.append(f"{key}: {fault['msg']}, not {fault['input']!r}")
    return "; ".join(faults)


def _keys(schema: Mapping[str, Any], here: Mapping[str, Any], path: Sequence[int | str]) -> Iterable[str]:
    """Return the keys of the table at `path` below a part of a schema."""
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


_ADAPTER = TypeAdapter(SubModelSpec)
