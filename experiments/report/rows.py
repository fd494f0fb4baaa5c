"""The rows of a report: a tier of devices, and a device, each as the link saw it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diastole.experiments.field import Spent

if TYPE_CHECKING:
    from diastole.experiments.result import Result


@dataclass(frozen=True, slots=True)
class TierRow:
    """One tier of devices: its sub-model, what that costs, and what it came to.

    Attributes:
        tier: the tier's name.
        devices: how many there were.
        spec: the sub-model's label, with a population that of most devices; empty if no size fits the tier, or it
            has no devices.
        parameters: trainable scalars of the sub-model.
        training_macs: multiply-accumulates of training one example.
        memory: peak bytes of training, predicted.
        bytes_down: payload bytes a device and round, measured.
        bytes_up: likewise uploaded.
        seconds: of training a device and round, measured; virtual with a population.
        scores: of the sub-model on the test set, by metric, and "loss"; empty if not evaluated.
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
    scores: dict[str, float]
    field_seconds: float | None = None
    joules: float | None = None

    @property
    def accuracy(self) -> float | None:
        """The sub-model's accuracy, in [0, 1]; None if it was not measured."""
        return self.scores.get("accuracy")


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


def tier_rows(result: "Result") -> list[TierRow]:
    """Return a row a tier, in the experiment's order; with a population, a row a class."""
    rows, scores = [], result.rounds[-1].tier_scores if result.rounds else {}
    for name, size in result.fits.items():
        members = [device for device in result.accounts if _tier(result, device) == name]
        accounts = [result.accounts[member] for member in members]
        # A device's bytes include rounds whose update did not count, its seconds do not.
        rounds = max(1, len(result.rounds)) * max(1, len(members))
        trained = max(1, sum(account.accepted for account in accounts))
        spent = _spent(result, members)
        rows.append(
            TierRow(
                tier=name,
                devices=len(members),
                spec=size.spec.label if size else "",
                parameters=size.cost.parameters if size else 0,
                training_macs=size.cost.training_macs if size else 0,
                memory=size.cost.memory if size else 0,
                bytes_down=sum(account.bytes_down for account in accounts) / rounds,
                bytes_up=sum(account.bytes_up for account in accounts) / rounds,
                seconds=sum(account.seconds for account in accounts) / trained,
                scores=scores.get(size.spec.label, {}) if size else {},
                field_seconds=spent.seconds / rounds if spent else None,
                joules=spent.joules / rounds if spent else None,
            )
        )
    return rows


def device_rows(result: "Result") -> list[DeviceRow]:
    """Return a row a device that was there, by name."""
    rows = []
    for name, account in sorted(result.accounts.items()):
        spent = _spent(result, [name])
        rows.append(
            DeviceRow(
                device=name,
                tier=_tier(result, name),
                spec=account.spec,
                examples=account.profile.examples if account.profile else 0,
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


def _tier(result: "Result", device: str) -> str:
    profile = result.accounts[device].profile
    return profile.tier if profile else ""


def _spent(result: "Result", members: Sequence[str]) -> Spent | None:
    field = result.field
    return sum((field.devices.get(name, Spent()) for name in members), Spent()) if field else None
