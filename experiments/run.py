"""A run: all that an experiment needs beside devices, real or simulated."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from diastole.client.data import check_tokens
from diastole.experiments.data.dataset import PART, Dataset, split_proxy
from diastole.experiments.data.sets import load
from diastole.experiments.experiment import Experiment
from diastole.models.hollow import hollow
from diastole.models.method import Method, Size
from diastole.models.methods.registry import make_method
from diastole.models.methods.widths.width import width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.networks.family import network
from diastole.models.proxy import Proxy
from diastole.models.recalibrate import check_inputs
from diastole.models.seeds import derive_seed
from diastole.models.training import Examples
from diastole.proto.codec import CODECS
from diastole.proto.profile import Profile
from diastole.server.coordinator import Coordinator
from diastole.server.events import Observer
from diastole.server.link import Link
from diastole.server.planner import Limits, Planner
from diastole.server.settings import RoundConfig, Settings
from diastole.server.snapshot import Snapshot

SLACK = 1.02
"""A tier's budget over what plain training at its width takes, so that no method is shut out by a few logits."""


@dataclass(frozen=True, slots=True)
class Run:
    """All that an experiment needs beside devices.

    Attributes:
        experiment: what was asked for.
        dataset: where the examples come from.
        model: the global model.
        proxy: the server's own examples, or None.
        limits: what each tier's devices may be asked for at most.

    """

    experiment: Experiment
    dataset: Dataset
    model: ModelConfig
    proxy: Proxy | None
    limits: Mapping[str, Limits]

    @property
    def test(self) -> Examples:
        """What nothing is trained or selected on."""
        return self.dataset.test

    def method(self) -> Method:
        """Return the experiment's method, new: it remembers what a run makes of it."""
        experiment = self.experiment
        return make_method(experiment.method, self.model, experiment.widths, experiment.training, experiment.options)

    def coordinator(
        self,
        link: Link,
        observers: Sequence[Observer] = (),
        *,
        method: Method | None = None,
        rounds: RoundConfig | None = None,
        devices: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        run_id: str = "",
        keep: Callable[[Snapshot], None] | None = None,
    ) -> Coordinator:
        """Return the coordinator of this run over `link`.

        Args:
            link: to the devices.
            observers: are told of everything.
            method: what `method()` has returned; a new one by default.
            rounds: in the place of the experiment's.
            devices: to wait for before the first round; by default as many as the tiers have.
            clock: in seconds.
            run_id: tells the run's tasks from those of other runs that the same agents may have been in.
            keep: is given a snapshot behind every closed round.

        """
        experiment, method = self.experiment, method or self.method()
        settings = Settings(
            model=self.model,
            training=experiment.training,
            rounds=rounds or experiment.rounds,
            seed=experiment.seed,
            optimiser=experiment.optimiser,
            proxy_training=experiment.proxy,
            devices=experiment.devices if devices is None else devices,
            ignore_budgets=experiment.row.ignore_budgets,
            limits=self.limits,
        )
        return Coordinator(
            settings,
            method,
            link,
            method.initial(derive_seed(experiment.seed, "model")),
            proxy=self.proxy,
            test=self.test,
            observers=observers,
            clock=clock,
            run_id=run_id,
            keep=keep,
            codec=CODECS[experiment.codec],
        )

    def fitting(self, sizes: Sequence[Size], profiles: Mapping[str, Profile], deadline: float | None) -> Size | None:
        """Return the largest exported size that fits most of these devices; None if there is none."""
        if not sizes or not profiles:
            return None
        experiment = self.experiment
        planner = Planner(
            sizes,
            experiment.training,
            deadline=deadline,
            ignore_budgets=experiment.row.ignore_budgets,
            limits=self.limits,
        )
        return Counter(planner.fit(name, profile) for name, profile in profiles.items()).most_common(1)[0][0]


def make_run(experiment: Experiment, dataset: Dataset | None = None) -> Run:
    """Return what an experiment needs beside devices.

    `dataset` spares loading it again when several methods are run on it. Raises `DataError`, `ModelError` or
    `SpecError`.
    """
    data, seed = experiment.data, experiment.seed
    dataset = dataset or load(data.name, data.path, data.reading(seed))
    training, validation, _ = split_proxy(dataset, data.proxy, seed, data.proxy_validation)
    model = experiment.network(dataset.input_shape, dataset.classes)
    for part in (dataset.train, dataset.test):
        for some in torch.split(part.x, PART) if model.vocabulary else ():
            check_tokens(some, model)
    # It is in the file of whoever runs this.
    custom.allow(model.factory)
    if model.factory:
        with hollow():
            check_inputs(network(model), len(training))
    proxy = Proxy(dataset.train.subset(training), dataset.train.subset(validation)) if data.proxy else None
    if proxy and not data.proxy_labels:
        proxy = proxy.without_labels()
    limits = {name: _limits(model, tier.width, experiment) for name, tier in experiment.tiers.items()}
    return Run(experiment, dataset, model, proxy, limits)


def _limits(model: ModelConfig, width: float, experiment: Experiment) -> Limits:
    """Return a little more than plain training at a width takes, of what the experiment limits."""
    cost = width_cost(model, width, experiment.training)
    amounts = {"macs": cost.training_macs, "memory": cost.memory, "bytes": cost.bytes_down}
    macs, memory, payload = (int(SLACK * amounts[k]) if k in experiment.limits else None for k in amounts)
    return Limits(macs, memory, payload)
