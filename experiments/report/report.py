"""What a run leaves behind: numbers for programs, a picture for people, the model."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diastole.models.compressor import Offer
from diastole.server.checkpoints import write_bytes, write_state
from diastole.server.events import RoundClosed
from diastole.server.ledger import Account
from diastole.server.planner import Planner
from diastole.simulations.field.clock import Spent
from diastole.simulations.devices import Federation
from diastole.experiments.report.picture import can_draw, draw, draw_partition
from diastole.simulations.simulate import Outcome

PICTURES = ("accuracy.png", "partition.png")


@dataclass(frozen=True, slots=True)
class TierRow:
    """One tier of devices: its sub-model, what that costs, and what it came to.

    Attributes:
        tier: the tier's name.
        devices: how many.
        spec: the sub-model's label, with a population that of most devices; empty if no size fits the tier.
        parameters: trainable scalars of the sub-model.
        training_macs: multiply-accumulates of training one example.
        memory: peak bytes of training, predicted.
        bytes_down: payload bytes a device and round, measured.
        bytes_up: likewise uploaded.
        seconds: of training a device and round, measured; virtual with a population.
        accuracy: of the sub-model on the test set, in [0, 1]; None if not evaluated.
        field_seconds: virtual seconds a device and round is busy in the field; None without a population.
        joules: that a device and round costs there, above what the device draws anyway; None likewise.

    """

    tier: str
    devices: int
    spec: str
    parameters: int
    training_macs: int
    memory: int
    bytes_down: float
    bytes_up: float
    seconds: float
    accuracy: float | None
    field_seconds: float | None = None
    joules: float | None = None


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """What one device brought and spent over the run; bytes are payload bytes, seconds are of training.

    `field_seconds` are those it was busy in the field, and `joules` what that cost; None without a population.
    """

    device: str
    tier: str
    spec: str
    examples: int
    updates: int
    quarantined: int
    bytes_down: int
    bytes_up: int
    seconds: float
    macs: int
    field_seconds: float | None = None
    joules: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A run, and the baselines it is held against (by method name)."""

    federation: Federation
    outcome: Outcome
    baselines: Mapping[str, Outcome]

    def tiers(self) -> list[TierRow]:
        """Return a row a tier, in the experiment's order; with a population, a row a class."""
        rows = []
        experiment = self.federation.experiment
        population = experiment.population.mixture
        for name in [kind.name for kind in population.classes] if population else list(experiment.tiers):
            members = [n for n, device in self.federation.devices.items() if device.profile.tier == name]
            offer = self._offer(members)
            accounts = [self.outcome.accounts[m] for m in members if m in self.outcome.accounts]
            # A device's bytes include rounds whose update did not count, its seconds do not.
            rounds = max(1, len(self.outcome.rounds)) * max(1, len(members))
            trained = max(1, sum(account.accepted for account in accounts))
            spent = self._spent(members)
            rows.append(
                TierRow(
                    tier=name,
                    devices=len(members),
                    spec=offer.spec.label if offer else "",
                    parameters=offer.cost.parameters if offer else 0,
                    training_macs=offer.cost.training_macs if offer else 0,
                    memory=offer.cost.memory if offer else 0,
                    bytes_down=sum(account.bytes_down for account in accounts) / rounds,
                    bytes_up=sum(account.bytes_up for account in accounts) / rounds,
                    seconds=sum(account.seconds for account in accounts) / trained,
                    accuracy=self._tier_accuracy(offer),
                    field_seconds=spent.seconds / rounds if spent else None,
                    joules=spent.joules / rounds if spent else None,
                )
            )
        return rows

    def devices(self) -> list[DeviceRow]:
        """Return a row a device."""
        rows = []
        for name, device in self.federation.devices.items():
            account, spent = self.outcome.accounts.get(name, Account()), self._spent([name])
            rows.append(
                DeviceRow(
                    device=name,
                    tier=device.profile.tier,
                    spec=account.spec.label if account.spec else "",
                    examples=device.profile.examples,
                    updates=account.accepted,
                    quarantined=account.quarantined,
                    bytes_down=account.bytes_down,
                    bytes_up=account.bytes_up,
                    seconds=account.seconds,
                    macs=account.macs,
                    field_seconds=spent.seconds if spent else None,
                    joules=spent.joules if spent else None,
                )
            )
        return rows

    def accuracies(self) -> dict[str, float | None]:
        """Return the final global accuracy of the method and of every baseline, in [0, 1]."""
        own = {self.federation.experiment.method: self.outcome.accuracy}
        return own | {name: outcome.accuracy for name, outcome in self.baselines.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the tensors, for JSON."""
        return {
            "diastole": version("diastole"),
            "experiment": self.federation.experiment.model_dump(mode="json"),
            "accuracy": self.accuracies(),
            "tiers": [asdict(row) for row in self.tiers()],
            "devices": [asdict(row) for row in self.devices()],
            "rounds": _rounds(self.outcome.rounds),
            "field": _field(self.outcome),
            "baselines": {name: _rounds(outcome.rounds) for name, outcome in self.baselines.items()},
        }

    def write(self, folder: Path) -> list[Path]:
        """Write the model, the report and, if there is matplotlib, two pictures into `folder`; return the paths.

        Pictures of an earlier run are removed, not left beside a report that is not theirs.
        """
        # What cannot be had again for less than the run comes first.
        paths = [folder / name for name in ("model.safetensors", "report.json", *PICTURES)]
        write_state(paths[0], self.outcome.state)
        write_bytes(paths[1], (json.dumps(self.as_dict(), indent=2) + "\n").encode())
        if not can_draw():
            for picture in paths[2:]:
                picture.unlink(missing_ok=True)
            return paths[:2]
        write_bytes(paths[2], draw(self))
        write_bytes(paths[3], draw_partition(self.federation))
        return paths

    def _offer(self, members: Sequence[str]) -> Offer | None:
        deadline = self.federation.virtual_rounds().deadline if self.outcome.field else None
        return fitting(self.federation, self.outcome.offers, members, deadline)

    def _spent(self, members: Sequence[str]) -> Spent | None:
        field = self.outcome.field
        return sum((field.devices[name] for name in members), Spent()) if field else None

    def _tier_accuracy(self, offer: Offer | None) -> float | None:
        if offer is None or not self.outcome.rounds:
            return None
        return self.outcome.rounds[-1].tier_accuracy.get(offer.spec.label)


def fitting(
    federation: Federation, offers: Sequence[Offer], members: Sequence[str], deadline: float | None = None
) -> Offer | None:
    """Return the largest exported size that fits most of these devices; without a population they are all alike."""
    experiment = federation.experiment
    if not offers or not members:
        return None
    planner = Planner(
        offers,
        experiment.training,
        experiment.seed,
        deadline=deadline,
        ignore_budgets=experiment.method == "fedavg",
        limits=federation.limits(),
    )
    return Counter(planner.fit(name, federation.devices[name].profile) for name in members).most_common(1)[0][0]


def time_to_accuracy(rounds: Sequence[RoundClosed], target: float) -> float | None:
    """Return the seconds from the start of the first round to the close of the first that reached `target`.

    They are virtual if the rounds were run on a virtual clock. None if no evaluated round reached it. `target` is
    the global model's accuracy, in [0, 1].
    """
    seconds = 0.0
    for closed in rounds:
        seconds += closed.seconds
        if closed.accuracy is not None and closed.accuracy >= target:
            return seconds
    return None


def _field(outcome: Outcome) -> dict[str, Any] | None:
    """Return what a run cost in the field; seconds are virtual, and of a round from its start to its end."""
    if outcome.field is None:
        return None
    rounds = []
    for closed in outcome.rounds:
        spent = outcome.field.rounds.get(closed.round, Spent())
        costs = {"seconds": closed.seconds, "joules": spent.joules, "down": spent.down, "up": spent.up}
        rounds.append({"round": closed.round} | costs)
    return {
        "seconds": outcome.field.seconds,
        "joules": sum(spent.joules for spent in outcome.field.devices.values()),
        "rounds": rounds,
        "devices": {name: asdict(spent) for name, spent in outcome.field.devices.items()},
    }


def _rounds(rounds: Sequence[RoundClosed]) -> list[dict[str, Any]]:
    return [asdict(closed) for closed in rounds]
