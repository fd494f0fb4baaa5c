"""The federation an experiment describes: its devices with their data, and what the server holds."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import torch
from torch import Tensor

from diastole.experiments.data.partitions import partition
from diastole.experiments.data.sets import Dataset, load, split_proxy
from diastole.experiments.experiment import BASELINES, Experiment
from diastole.models.compressor import Compressor, Proxy
from diastole.models.methods.registry import make_compressor
from diastole.models.methods.widths.width import OneSize, width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.seeds import derive_seed, generator
from diastole.models.state import State
from diastole.models.training import Examples
from diastole.models.work import training_work
from diastole.proto.profile import Profile
from diastole.server.coordinator import Coordinator
from diastole.server.events import Observer
from diastole.server.link import Link
from diastole.server.planner import Limits
from diastole.server.settings import RoundConfig, Settings
from diastole.simulations.field.clock import VirtualClock
from diastole.simulations.field.populations import FieldDevice, Population, draw

SLACK = 1.02
"""A tier's budget over what plain training at its width takes, so that no method is shut out by a few logits."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the federation: what it says it is, and the examples only it has.

    Attributes:
        profile: what it says, the number of its examples included.
        held: examples among which are its own; devices share them.
        index: where its own are among these, int64 `[n]`; None: all are.
        shift: what it sees of them in its own way; None: they are as they are.

    """

    profile: Profile
    held: Examples
    index: Tensor | None = None
    shift: Callable[[Examples], Examples] | None = None

    @property
    def examples(self) -> Examples:
        """Its own examples, copied out of what is held if that is more."""
        found = self.held if self.index is None else self.held.subset(self.index)
        return found if self.shift is None else self.shift(found)

    @property
    def labels(self) -> Tensor:
        """The labels of its own examples, int64 `[n]`."""
        return self.held.y if self.index is None else self.held.y[self.index]


@dataclass(frozen=True, slots=True)
class Federation:
    """Everything an experiment needs besides a link.

    Attributes:
        experiment: what was asked for.
        model: the global model.
        devices: by name, in order of tier.
        proxy: the server's own examples, or None.
        test: what nothing is trained or selected on.
        field: the same devices in the field, by name, if the experiment has a population.

    """

    experiment: Experiment
    model: ModelConfig
    devices: Mapping[str, Device]
    proxy: Proxy | None
    test: Examples
    field: Mapping[str, FieldDevice] | None = None

    def initial_state(self, compressor: Compressor) -> State:
        """Return the global state that a run of the experiment's method starts from."""
        return compressor.initial(derive_seed(self.experiment.seed, "model"))

    def compressor(self) -> Compressor:
        """Return the experiment's method; with a baseline, one size is both the global model and all there is."""
        experiment = self.experiment
        if experiment.method in BASELINES:
            width = 1.0 if experiment.method == "proxy" else experiment.widths[0]
            return OneSize(self.model, width, experiment.training)
        options = experiment.methods.get(experiment.method, {})
        return make_compressor(experiment.method, self.model, experiment.widths, experiment.training, options)

    def limits(self) -> dict[str, Limits]:
        """Return what each tier's devices are spared: a little more than plain training at the tier's width takes."""
        found = {}
        for name, tier in self.experiment.tiers.items():
            cost = width_cost(self.model, tier.width, self.experiment.training)
            amounts = {"macs": cost.training_macs, "memory": cost.memory, "bytes": cost.bytes_down}
            wanted = self.experiment.limits
            macs, memory, payload = (int(SLACK * amounts[k]) if k in wanted else None for k in amounts)
            found[name] = Limits(macs, memory, payload)
        return found

    def virtual_rounds(self) -> RoundConfig:
        """Return when rounds begin and close on the virtual clock of a federation with a population."""
        experiment, population = self.experiment, self.experiment.population
        rounds = replace(experiment.rounds, patience=population.patience)
        if population.deadline is None or population.mixture is None:
            return rounds
        # The plain model, so that the deadline is the same for every method.
        examples = sum(device.profile.examples for device in self.devices.values())
        cost = width_cost(self.model, 1.0, experiment.training)
        work = training_work(cost, experiment.training, ceil(examples / len(self.devices)))
        fastest = population.mixture.fastest(work, cost.down)
        return replace(rounds, deadline=population.deadline * fastest)

    def coordinator(
        self, link: Link, observers: tuple[Observer, ...] = (), clock: VirtualClock | None = None, run_id: str = ""
    ) -> Coordinator:
        """Return the coordinator of this federation over `link`; with a virtual clock, over devices of the field.

        `run_id` tells its tasks from those of other runs that the same agents may have been in.
        """
        experiment, compressor = self.experiment, self.compressor()
        settings = Settings(
            model=self.model,
            training=experiment.training,
            rounds=experiment.rounds if clock is None else self.virtual_rounds(),
            seed=experiment.seed,
            optimiser=experiment.optimiser,
            proxy_training=experiment.proxy,
            # In the field there is hardly a moment at which every device is online; the rounds wait for those they
            # need, and all virtual time belongs to one, whether it is run now or after a kill.
            devices=experiment.devices if clock is None else 0,
            ignore_budgets=experiment.method == "fedavg",
            limits=self.limits(),
        )
        return Coordinator(
            settings,
            compressor,
            link,
            self.initial_state(compressor),
            proxy=self.proxy,
            test=self.test,
            observers=observers,
            clock=clock or time.monotonic,
            run_id=run_id,
        )


def make_federation(experiment: Experiment, dataset: Dataset | None = None) -> Federation:
    """Load the data and deal it out.

    `dataset` spares loading it again when several methods are compared. Raises `DataError`, `ModelError` or
    `SpecError`.
    """
    data, seed = experiment.data, experiment.seed
    dataset = dataset or load(data.name, data.path, seed)
    proxy_training, proxy_validation, pool = split_proxy(dataset, data.proxy, seed, data.proxy_validation)
    parts = partition(
        experiment.partition.kind,
        dataset.train.y[pool],
        experiment.devices,
        seed,
        alpha=experiment.partition.alpha,
        shards_per_device=experiment.partition.shards_per_device,
        users=None if dataset.users is None else dataset.users[pool],
        minimum=experiment.partition.minimum,
        balanced=experiment.partition.balanced,
        partitioner=experiment.partition.partitioner,
        options=experiment.partition.options,
    )
    model = experiment.network(dataset.input_shape, dataset.classes)
    # It is in the file of whoever runs this.
    custom.allow(model.factory)
    devices: dict[str, Device] = {}
    digits = max(2, len(str(experiment.devices - 1)))
    for name, tier in experiment.tiers.items():
        needed = int(SLACK * width_cost(model, tier.width, experiment.training).memory)
        memory = needed if "memory" in experiment.limits else None
        for _ in range(tier.devices):
            number, index = len(devices), pool[parts[len(devices)]]
            scale = experiment.partition.noise * number / max(1, experiment.devices - 1)
            shift = partial(_shifted, number, scale, seed) if scale else None
            profile = Profile(name, len(index), memory)
            devices[f"device-{number:0{digits}d}"] = Device(profile, dataset.train, index, shift)
    proxy = Proxy(dataset.train.subset(proxy_training), dataset.train.subset(proxy_validation))
    if not data.proxy_labels:
        proxy = proxy.without_labels()
    population = experiment.population.mixture
    field = _settle(population, experiment, model, devices) if population else None
    return Federation(experiment, model, devices, proxy if data.proxy else None, dataset.test, field)


def _settle(
    population: Population, experiment: Experiment, model: ModelConfig, devices: dict[str, Device]
) -> dict[str, FieldDevice]:
    """Return devices drawn from the population by name, and give `devices` its profiles."""
    memory = int(SLACK * width_cost(model, 1.0, experiment.training).memory)
    drawn = draw(population, len(devices), experiment.seed)
    field = dict(zip(devices, drawn, strict=True))
    for name, item in field.items():
        device = devices[name]
        devices[name] = replace(device, profile=item.profile(device.profile.examples, memory))
    return field


def _shifted(device: int, scale: float, seed: int, examples: Examples) -> Examples:
    """Return device number `device`'s view of its examples under a feature shift, the same at every call."""
    noise = torch.randn(examples.x.shape, generator=generator(seed, device, "feature shift"))
    return Examples(examples.x + scale * noise, examples.y)
