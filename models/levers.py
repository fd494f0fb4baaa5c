"""Levers: how a device trains the same sub-model in less memory."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from diastole.models.errors import ModelError
from diastole.models.parts import PARTS, PATTERN, is_part
from diastole.models.spec import STRICT, one_line

RECOMPUTE, MICRO_BATCH, HALF_STATE, PARTIAL = "recompute", "micro-batch", "half-state", "partial"
LEVERS = (RECOMPUTE, MICRO_BATCH, HALF_STATE)
"""The levers that train all of a sub-model."""

KNOWN = (*LEVERS, PARTIAL)
"""Every lever that this version knows."""

LONGEST_JSON = 1 << 10


@validated(frozen=True, slots=True, config=STRICT)
class Levers:
    """The levers that one task is trained with; by default none.

    Attributes:
        recompute: activations inside of blocks are not kept for the backward pass but computed a second time (Chen et
            al. 2016). The result has the same bits on a CPU, unless what a block gives is used in several places.
        micro_batch: the examples of a step are taken this many at a time and their gradients added up; 0 for all at
            once. The result is the same within float tolerance.
        half_state: the optimiser keeps the mean of the gradients (SGD's momentum, Adam's first moment) in bfloat16.
            The result is close, not the same.
        part: of the sub-model that alone is trained, and sent back (`models/parts.py`); empty for all of it.

    """

    recompute: bool = False
    micro_batch: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    half_state: bool = False
    part: str = Field(default="", pattern=PATTERN)

    @property
    def used(self) -> tuple[str, ...]:
        """The names of the levers that are used."""
        both = zip(KNOWN, (self.recompute, self.micro_batch, self.half_state, self.part), strict=True)
        return tuple(name for name, used in both if used)

    def to_json(self) -> str:
        """Return the levers as compact JSON; nothing for none."""
        # An agent of an older version does not know of parts.
        return _ADAPTER.dump_json(self, exclude=None if self.part else {"part"}).decode() if self.used else ""

    @staticmethod
    def from_json(text: str) -> "Levers":
        """Parse what `to_json` wrote. Raises `ModelError`."""
        if len(text) > LONGEST_JSON:
            raise ModelError(f"levers of {len(text)} characters; at most {LONGEST_JSON} are accepted")
        try:
            return _ADAPTER.validate_json(text) if text else NO_LEVERS
        except ValidationError as error:
            raise ModelError(f"levers {text[:200]!r}: {one_line(error)[:1000]}") from None


def check_choices(levers: Sequence[str], parts: Sequence[str], fit: str) -> None:
    """Raise `ValueError` for an unknown lever or part, and for parts where a training loop of a user's own runs."""
    if unknown := [lever for lever in levers if lever not in LEVERS]:
        raise ValueError(f"levers: {unknown[0]!r} is not known; accepted: {', '.join(LEVERS)}")
    if unknown := [part for part in parts if not is_part(part)]:
        raise ValueError(f"parts: {unknown[0]!r} is not known; accepted: {', '.join(PARTS)}")
    if parts and fit:
        raise ValueError("parts: a training loop of one's own trains all of a sub-model; leave out parts or fit")


NO_LEVERS = Levers()
"""No lever."""

_ADAPTER = TypeAdapter(Levers)
