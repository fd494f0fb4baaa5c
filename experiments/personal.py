"""Personal scores: how a model does on each device's own examples, before and after the device has trained it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from diastole.server.ledger import Account


@dataclass(frozen=True, slots=True)
class Personal:
    """One device's scores on the examples that it keeps for a test of its own.

    Attributes:
        spec: the label of the device's sub-model.
        examples: that it keeps.
        before: scores by metric, and of simulated devices "loss", of the sub-model as the device gets it.
        after: likewise once the device has trained it as in a round.

    """

    spec: str
    examples: int
    before: dict[str, float]
    after: dict[str, float]


@dataclass(frozen=True, slots=True)
class Quantiles:
    """How a score is spread over devices, each counting alike: its mean, and the 5th, 50th and 95th percentile."""

    mean: float
    low: float
    median: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> "Quantiles":
        """Return how these values, at least one, are spread."""
        found = np.fromiter(values, np.float64)
        return Quantiles(float(found.mean()), *map(float, np.percentile(found, (5, 50, 95))))


def shared(accounts: Mapping[str, Account], metric: str) -> dict[str, Personal]:
    """Return the scores by a metric that real devices sent beside their last updates, by name."""
    return {
        name: Personal(account.spec, found.examples, {found.metric: found.before}, {found.metric: found.after})
        for name, account in accounts.items()
        if (found := account.scores) is not None and found.metric == metric
    }


def spread(personal: Mapping[str, Personal], name: str) -> dict[str, Quantiles]:
    """Return how a score is spread over the devices, "before" and "after"."""
    return {
        "before": Quantiles.of(device.before[name] for device in personal.values()),
        "after": Quantiles.of(device.after[name] for device in personal.values()),
    }


def as_dict(personal: Mapping[str, Personal], metric: str) -> dict[str, Any] | None:
    """Return all of it for JSON, with the spread of the metric that runs are judged by; None without a device."""
    if not personal:
        return None
    quantiles = {when: asdict(found) for when, found in spread(personal, metric).items()}
    return {"metric": metric, **quantiles, "devices": {name: asdict(device) for name, device in personal.items()}}
