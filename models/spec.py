"""The value that names a sub-model."""

from dataclasses import replace

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from diastole.models.errors import SpecError


@validated(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class SubModelSpec:
    """One sub-model of the global model, named the same on the server, on the wire and on the device.

    Attributes:
        method: the compressor that makes it.
        width: share of the hidden channels kept, in (0, 1].

    """

    method: str
    width: float = Field(default=1.0, gt=0, le=1)

    @property
    def label(self) -> str:
        """A short name for tables, such as `width 0.5`."""
        return f"{self.method} {self.width:g}"

    def full(self) -> "SubModelSpec":
        """Return the spec of the whole global model under the same method."""
        return replace(self, width=1.0)

    def to_json(self) -> str:
        """Return the spec as compact JSON."""
        return _ADAPTER.dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> "SubModelSpec":
        """Parse what `to_json` wrote. Raises `SpecError`."""
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise SpecError(f"sub-model spec {text!r}: {one_line(error)}") from None


def one_line(error: ValidationError) -> str:
    """Return every fault that pydantic found on one line: `key: what is wrong, not the value`."""
    faults = []
    for fault in error.errors():
        key = ".".join(map(str, fault["loc"])).encode("unicode_escape").decode() or "value"
        kind = fault["type"]
        if kind in ("extra_forbidden", "unexpected_keyword_argument"):
            faults.append(f"{key}: no such key")
        elif kind in ("missing", "missing_argument"):
            faults.append(f"{key}: is missing")
        else:
            faults.append(f"{key}: {fault['msg']}, not {fault['input']!r}")
    return "; ".join(faults)


_ADAPTER = TypeAdapter(SubModelSpec)
