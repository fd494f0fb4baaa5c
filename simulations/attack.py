"""Attackers in a simulation: which devices mean harm, and what they do."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from diastole.experiments.errors import ExperimentError
from diastole.experiments.section import Section
from diastole.models.seeds import generator

MOST_VALUE = 1e30


class Attack(Section):
    """`[attack]`: devices that mean harm; simulations only.

    Attributes:
        kind: what they do. "label-flip": they train on labels `classes - 1 - label` (Fang et al. 2020). "sign-flip":
            they send what they were sent, less `factor` times what training has changed. "constant": they send `value`
            in every place.
        names: patterns of the names of attackers, such as "device-0[01]".
        tiers: how many devices of a tier attack, by the tier's name; the run's seed draws which.
        factor: of "sign-flip".
        value: of "constant".
        examples: that attackers announce and report; 0: those that they have.

    """

    kind: Literal["label-flip", "sign-flip", "constant"]
    names: tuple[str, ...] = Field(default=(), max_length=1000)
    tiers: dict[str, int] = Field(default_factory=dict)
    factor: float = Field(default=1.0, gt=0, le=MOST_VALUE)
    value: float = Field(default=0.0, ge=-MOST_VALUE, le=MOST_VALUE)
    examples: int = Field(default=0, ge=0, lt=1 << 40)

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if not self.names and not any(self.tiers.values()):
            raise ValueError("names and tiers: one of them must say who attacks")
        if any(count < 0 for count in self.tiers.values()):
            raise ValueError("tiers: counts of at least 0 are accepted")
        return self

    def among(self, tiers: Mapping[str, Sequence[str]], seed: int) -> frozenset[str]:
        """Return the names of the attackers, of devices by tier. Raises `ExperimentError` if nobody is meant."""
        everybody = [name for devices in tiers.values() for name in devices]
        found = set[str]()
        for pattern in self.names:
            meant = [name for name in everybody if fnmatchcase(name, pattern)]
            if not meant:
                raise ExperimentError(
                    f"attack.names: {pattern!r} is the name of no device; {everybody[0]} to {everybody[-1]} are there"
                )
            found.update(meant)
        for tier, count in self.tiers.items():
            devices = tiers.get(tier, ())
            if count > len(devices):
                raise ExperimentError(f"attack.tiers.{tier}: {count} of {len(devices)} devices; at most all can attack")
            order = torch.randperm(len(devices), generator=generator(seed, tier, "attackers")).tolist()
            found.update(devices[place] for place in order[:count])
        return frozenset(found)
