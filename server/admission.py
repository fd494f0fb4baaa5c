"""The checks that an update passes before it may touch the aggregate."""

import math
from collections.abc import Iterable
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from diastole.models.accumulator import MAX_DELTA, MOST_EXAMPLES, check_change
from diastole.models.crossing import numbers
from diastole.models.errors import StateError
from diastole.models.hollow import hollow
from diastole.models.method import Method
from diastole.models.parts import train_only
from diastole.models.rows import Row
from diastole.models.spec import STRICT, SubModelSpec
from diastole.models.state import State, check_state
from diastole.models.task import Update

MOST_SECONDS = 1e8
"""Of training that a device may report: three years. Whatever is more is no time of training."""


@validated(frozen=True, slots=True, config=STRICT)
class AdmissionConfig:
    """How far devices are trusted.

    Attributes:
        share: of a round's examples that one device may count for at most, or twice an equal share if that is more.
        norm: the root mean square of what an update may change, in multiples of the median of the round, or of past
            rounds; what is longer is shortened, and beyond ten times that quarantined. 0: there is no such bound.
        fold: how contributions are folded: "mean", "trimmed-mean", "median" or "multi-krum" (`server/robust`).
        trim: the share of a round's devices that may be faulty, for "trimmed-mean" and "multi-krum".
        rollbacks: rounds in a row most of whose updates are quarantined before the run ends; the first of them takes
            back the round before.
        offences: rounds in which a device's updates are quarantined, with none accepted in between, before it is
            suspended; 0: never.
        suspension: rounds of its first suspension; each further one is twice as long.

    """

    share: float = Field(default=0.5, gt=0, le=1)
    norm: float = Field(default=10.0, ge=0)
    fold: Literal["mean", "trimmed-mean", "median", "multi-krum"] = "mean"
    trim: float = Field(default=0.25, ge=0, lt=0.5)
    rollbacks: int = Field(default=3, ge=1)
    offences: int = Field(default=3, ge=0)
    suspension: int = Field(default=5, ge=1)


def most_examples(announced: Iterable[int], share: float) -> float:
    """Return the examples that one device of a round counts for at most.

    Args:
        announced: the examples of each device of the round, as its profile says.
        share: the most that one device may have of the sum of what all count for; twice an equal share if that is more.

    What is announced too much by one device does not lift the others' bound.

    """
    counts = sorted(announced)
    share = max(share, 2 / max(1, len(counts)))
    total = 0
    for place, count in enumerate(counts):
        # Every device from here on is bounded by `most`, if `most` is below what this one announces.
        rest = len(counts) - place
        if share * rest < 1 and (most := share * total / (1 - share * rest)) < count:
            return most
        total += count
    return math.inf


def expected_state(method: Method, spec: SubModelSpec, part: str = "") -> State:
    """Return tensors with the names, shapes and dtypes of a sub-model's parameters, and no memory.

    Those that are trained, if only a part of it is, require gradients.
    """
    with hollow():
        module = method.module(spec)
    if part:
        train_only(module, part)
    return dict(module.named_parameters())


def check(update: Update, sent: State, expected: State, announced: int, cohort: int) -> None:
    """Check an update's tensors and what its device says of its training.

    `sent` is the state that would come back without any training, `expected` that of `expected_state` for the task's
    spec, `announced` the number of examples in the device's profile, `cohort` the number of devices in the round. What
    is not trained need not come back. Raises `StateError` for names, shapes or dtypes that differ, values that are not
    finite or further from what was sent than can be folded, parameters that are not trained (masks) and yet differ from
    what was sent, and reports that make no sense.
    """
    there = {n: tensor for n, tensor in expected.items() if tensor.requires_grad or n in update.state}
    if not (isinstance(update.state, Row) and _fine(update.state, sent, there)):
        check_state(update.state, there)
        check_change(update.state, sent)
    still = [name for name, tensor in there.items() if not tensor.requires_grad]
    same = numbers([(update.state[name] == sent[name]).all() for name in still])
    for name, alike in zip(still, same, strict=True):
        if not alike:
            raise StateError(f"tensor {name!r} is not trained, but it came back changed")
    if not 1 <= update.examples <= announced:
        raise StateError(f"update counts {update.examples} examples; the device announced {announced}")
    # So that no device can use up the weight that the whole cohort may have.
    if update.examples > MOST_EXAMPLES / cohort:
        most = int(MOST_EXAMPLES / cohort)
        raise StateError(f"update counts {update.examples} examples; in a cohort of {cohort}, {most} are accepted")
    report = update.report
    if not (0 <= report.loss < math.inf and 0 <= report.seconds <= MOST_SECONDS):
        raise StateError(
            f"update reports loss {report.loss} and {report.seconds} seconds; both must be finite and at least 0, and "
            f"the seconds at most {MOST_SECONDS:g}"
        )


def _fine(row: Row, sent: State, expected: State) -> bool:
    """Return whether a row passes the checks of states and changes, of which all rows of its stack know the results."""
    stack = row.stack
    return stack.sent is sent and stack.alike(expected) and stack.moves.farthest[row.number] <= MAX_DELTA
