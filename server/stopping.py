"""Early stopping: a run ends before its last round once the server's own validation examples see no more progress."""

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass as validated

from diastole.models.metrics import LOSS, better, known, shown, title
from diastole.models.spec import STRICT
from diastole.server.events import RoundClosed


def _known(name: str) -> str:
    return name if name in ("", LOSS) else known(name)


@validated(frozen=True, slots=True, config=STRICT)
class StoppingConfig:
    """When a run ends before its last round (Prechelt, "Early Stopping - But When?", 1998).

    The global model is scored on the validation part of the proxy set, never on the test set, in every round that is
    evaluated.

    Attributes:
        metric: the score that must get better, a metric by name or "loss"; empty: what the run is judged by.
        rounds: that may pass without an improvement.
        least: what a score must be better by, in the metric's own unit (0.01 is one point of accuracy), to count as
            an improvement.

    """

    metric: Annotated[str, AfterValidator(_known)] = ""
    rounds: int = Field(default=10, ge=1)
    least: float = Field(default=0.0, ge=0)


def early_end(stopping: StoppingConfig | None, closed: Sequence[RoundClosed]) -> str:
    """Return why a run ends behind these rounds, or an empty string; it depends on their scores alone."""
    if stopping is None:
        return ""
    sign = 1.0 if better(stopping.metric) == "higher" else -1.0
    best, since = -math.inf, 0
    for this in closed:
        value = math.nan if this.validation is None else sign * this.validation
        # The first finite score is an improvement whatever it is; one that is not a number never is.
        if value > best + stopping.least:
            best, since = value, this.round
    if not closed or closed[-1].validation is None or closed[-1].round - since < stopping.rounds:
        return ""
    when = f"the best was {shown(stopping.metric, sign * best)} in round {since}" if since else "none was a number"
    rounds = closed[-1].round - since
    return f"no better {title(stopping.metric)} on the proxy set's validation part for {rounds} rounds; {when}"
