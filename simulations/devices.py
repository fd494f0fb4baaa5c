"""Simulated devices: their names, what they say they are, and the examples that are dealt to them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import cast

import torch
from torch import Tensor

from diastole.client.scoring import held_out
from diastole.experiments.data.dataset import Dataset, split_proxy
from diastole.experiments.data.partitions import partition
from diastole.experiments.errors import ExperimentError
from diastole.experiments.result import Dealt
from diastole.experiments.run import SLACK, Run, make_run
from diastole.models.levers import KNOWN
from diastole.models.methods.widths.width import width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.seeds import generator
from diastole.models.training import Examples
from diastole.proto.profile import Profile
from diastole.server.settings import RoundConfig
from diastole.simulations.field.populations import FieldDevice, Mixture, draw
from diastole.simulations.simulation import Partition, Simulation


@dataclass(frozen=True, slots=True)
class Device:
    """A simulated device: what it says it is, and the examples only it has.

    Attributes:
        profile: what it says, the number of its examples included.
        held: examples among which are its own; devices share them.
        index: where its own are among these, int64 `[n]`; None: all are.
        shift: what it sees of them in its own way; None: they are as they are.
        kept: where the examples are that it does not train on but keeps for a test of its own, int64 `[k]`; None: there
            are none.
        flips: the number of classes if it trains on flipped labels, `flips - 1 - label`; 0: they are as they are.

    """

    profile: Profile
    held: Examples
    index: Tensor | None = None
    shift: Callable[..., Examples] | None = None
    kept: Tensor | None = None
    flips: int = 0

    @property
    def examples(self) -> Examples:
        """Its own examples, copied out of what is held if that is more."""
        found = self.held if self.index is None else self.held.subset(self.index)
        found = Examples(found.x, self.targets) if self.flips else found
        return found if self.shift is None else self.shift(found)

    @property
    def places(self) -> Tensor:
        """Where its own examples are among those held, int64 `[n]`."""
        return torch.arange(len(self.held)) if self.index is None else self.index

    @property
    def kept_examples(self) -> Examples:
        """The examples that it keeps for a test of its own, copied."""
        found = self.held.subset(torch.empty(0, dtype=torch.int64) if self.kept is None else self.kept)
        return found if self.shift is None else self.shift(found, "feature shift of a test")

    @property
    def targets(self) -> Tensor:
        """The targets of its own examples, `[n, ...]`."""
        found = self.held.y if self.index is None else self.held.y[self.index]
        return self.flips - 1 - found if self.flips else found


@dataclass(frozen=True, slots=True)
class Federation:
    """A run, and the simulated devices that it is over.

    Attributes:
        simulation: what was asked for, with what the recipe adds.
        run: all that it needs beside devices.
        devices: by name, in order of tier.
        field: the same devices in the field, by name, if there is a population.
        attackers: names of the devices that mean harm.

    """

    simulation: Simulation
    run: Run
    devices: Mapping[str, Device]
    field: Mapping[str, FieldDevice] | None = None
    attackers: frozenset[str] = frozenset()

    @property
    def model(self) -> ModelConfig:
        """The global model."""
        return self.run.model

    @property
    def profiles(self) -> dict[str, Profile]:
        """What each device says it is, by name."""
        return {name: device.profile for name, device in self.devices.items()}

    @property
    def dealt(self) -> Dealt | None:
        """How the examples were dealt; None if they have not one label each."""
        if self.run.dataset.labels is None:
            return None
        classes = self.run.dataset.classes
        counts = lambda: torch.stack([device.targets.bincount(minlength=classes) for device in self.devices.values()])  # noqa: E731
        return Dealt(_in_words(self.simulation.partition), counts)

    def with_method(self, method: str) -> "Federation":
        """Return the same devices on the same data, for a run of another method. Raises `ExperimentError`."""
        simulation = self.simulation.changed(method=method)
        return replace(self, simulation=simulation, run=replace(self.run, experiment=simulation))

    def virtual_rounds(self) -> RoundConfig:
        """Return when rounds begin and close on the virtual clock of a federation with a population."""
        simulation, population = self.simulation, self.simulation.population
        rounds = replace(simulation.rounds, patience=population.patience)
        mixture = population.mixture
        if population.deadline is None or mixture is None:
            return rounds
        # The plain model, so that the deadline is the same for every method.
        examples = sum(device.profile.examples for device in self.devices.values())
        cost = width_cost(self.model, 1.0, simulation.training)
        each = ceil(examples / len(self.devices))
        return replace(rounds, deadline=population.deadline * mixture.fastest(cost, simulation.training, each))


def make_federation(simulation: Simulation, dataset: Dataset | None = None) -> Federation:
    """Load the data and deal it out.

    `dataset` spares loading it again when several methods are compared. Raises `DataError`, `ModelError`, `SpecError`,
    or `ExperimentError` for an attack that cannot be.
    """
    run = make_run(simulation, dataset)
    simulation = cast(Simulation, run.experiment)
    devices = _deal(simulation, run)
    attackers = _attackers(simulation, run, devices)
    mixture = simulation.population.mixture
    if mixture is None:
        return Federation(simulation, run, devices, attackers=attackers)
    memory = int(SLACK * width_cost(run.model, 1.0, simulation.training).memory)
    field = _settle(mixture, devices, simulation.seed)
    for name, item in field.items():
        examples = devices[name].profile.examples
        devices[name] = replace(devices[name], profile=item.profile(examples, memory))
    return Federation(simulation, run, devices, field, attackers)


def _deal(simulation: Simulation, run: Run) -> dict[str, Device]:
    dataset, seed, how = run.dataset, simulation.seed, simulation.partition
    *_, pool = split_proxy(dataset, simulation.data.proxy, seed, simulation.data.proxy_validation)
    parts = partition(
        how.kind,
        dataset.strata[pool],
        simulation.devices,
        seed,
        alpha=how.alpha,
        shards_per_device=how.shards_per_device,
        users=None if dataset.users is None else dataset.users[pool],
        minimum=how.minimum,
        balanced=how.balanced,
        partitioner=how.partitioner,
        options=how.options,
    )
    devices: dict[str, Device] = {}
    digits = max(2, len(str(simulation.devices - 1)))
    for name, tier in simulation.tiers.items():
        needed = int(SLACK * width_cost(run.model, tier.width, simulation.training).memory)
        memory = needed if "memory" in simulation.limits else None
        for _ in range(tier.devices):
            number = len(devices)
            index, kept = _kept(pool[parts[number]], simulation.data.personal, seed, number)
            scale = how.noise * number / max(1, simulation.devices - 1)
            shift = partial(_shifted, number, scale, seed) if scale else None
            profile = Profile(name, len(index), memory, levers=KNOWN)
            devices[f"device-{number:0{digits}d}"] = Device(profile, dataset.train, index, shift, kept)
    return devices


def _attackers(simulation: Simulation, run: Run, devices: dict[str, Device]) -> frozenset[str]:
    """Return who attacks; flip the labels of those in `devices` who do that."""
    attack = simulation.attack
    if attack is None:
        return frozenset()
    tiers: dict[str, list[str]] = {name: [] for name in simulation.tiers}
    for name, device in devices.items():
        tiers[device.profile.tier].append(name)
    found = attack.among(tiers, simulation.seed)
    if attack.kind == "label-flip":
        if run.dataset.labels is None:
            raise ExperimentError(
                'attack.kind: "label-flip" needs one class an example; "sign-flip" and "constant" are accepted'
            )
        for name in found:
            devices[name] = replace(devices[name], flips=run.dataset.classes)
    return found


def _kept(index: Tensor, share: float, seed: int, device: int) -> tuple[Tensor, Tensor | None]:
    """Split a device's examples into those that it trains on and those that it keeps; one at least is trained on."""
    places = held_out(len(index), share, generator(seed, device, "personal"))
    return (index[places[0]], index[places[1]]) if places else (index, None)


def _settle(mixture: Mixture, devices: Mapping[str, Device], seed: int) -> dict[str, FieldDevice]:
    """Return devices drawn from a population, by name."""
    return dict(zip(devices, draw(mixture, len(devices), seed), strict=True))


def _shifted(device: int, scale: float, seed: int, examples: Examples, purpose: str = "feature shift") -> Examples:
    """Return device number `device`'s view of its examples under a feature shift, the same at every call."""
    noise = torch.randn(examples.x.shape, generator=generator(seed, device, purpose))
    return Examples(examples.x + scale * noise, examples.y)


def _in_words(how: Partition) -> str:
    return f"{how.kind}, alpha {how.alpha:g}" if "dirichlet" in how.kind or how.kind == "quantity" else how.kind
