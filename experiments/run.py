"""A run: all that an experiment needs beside devices, real or simulated."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from diastole.client.data import check_tokens
from diastole.experiments.data.dataset import PART, Dataset, split_proxy
from diastole.experiments.data.sets import load
from diastole.experiments.experiment import Experiment
from diastole.experiments.initial import begin
from diastole.experiments.parts import Tier
from diastole.models.augment import check_augment
from diastole.models.crossing import CPU, send_all
from diastole.models.errors import ModelError, SpecError
from diastole.models.hollow import hollow
from diastole.models.levers import LEVERS
from diastole.models.losses import check_targets, outputs_for
from diastole.models.method import Method, Size
from diastole.models.methods.registry import build, has_part, make_method, parse_options
from diastole.models.methods.widths.width import width_cost
from diastole.models.metrics import LOSS, metric
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.networks.family import network
from diastole.models.networks.registry import NETWORKS
from diastole.models.proxy import Proxy
from diastole.models.recalibrate import check_inputs
from diastole.models.state import State
from diastole.models.training import Examples, Objective
from diastole.models.ways import ways_of
from diastole.proto.profile import Profile
from diastole.server.coordinator import Coordinator
from diastole.server.events import Observer
from diastole.server.link import Link
from diastole.server.overrides import Overrides
from diastole.server.planner import Limits, Planner
from diastole.server.settings import RoundConfig, Settings
from diastole.server.snapshot import Snapshot
from diastole.server.stopping import StoppingConfig
from diastole.server.store.journal import Journal

SLACK = 1.02
"""A tier's budget over what plain training at its width takes, so that no method is shut out by a few logits."""


@dataclass(frozen=True, slots=True)
class Run:
    """All that an experiment needs beside devices.

    Attributes:
        experiment: what was asked for, with what the recipe adds.
        dataset: where the examples come from.
        model: the global model.
        proxy: the server's own examples, or None.
        limits: what each tier's devices may be asked for at most.
        home: where the global model is, and the server's own work is done.

    """

    experiment: Experiment
    dataset: Dataset
    model: ModelConfig
    proxy: Proxy | None
    limits: Mapping[str, Limits]
    home: torch.device = CPU

    @property
    def test(self) -> Examples:
        """What nothing is trained or selected on."""
        return self.dataset.test

    @property
    def metrics(self) -> tuple[str, ...]:
        """What models are judged by, the first one above all."""
        return self.experiment.judged_by(self.test.y)

    @property
    def stopping(self) -> StoppingConfig | None:
        """When the run ends before its last round, by a metric that is named."""
        stopping = self.experiment.stopping
        return stopping and replace(stopping, metric=stopping.metric or self.metrics[0])

    def method(self) -> Method:
        """Return the experiment's method, new: it remembers what a run makes of it."""
        experiment = self.experiment
        return make_method(experiment.method, self.model, experiment.widths, experiment.training, experiment.options)

    def begin(self, method: Method) -> State:
        """Return the global state that the run of a method starts from. Raises `ExperimentError` or `SpecError`."""
        return begin(self.experiment, self.model, method)

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
        journal: Journal | None = None,
        labels: Callable[[str], Mapping[str, str]] | None = None,
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
            journal: keeps the open round.
            labels: returns those of a device; None: all may take part, whatever `rounds.labels` says.

        """
        experiment, method = self.experiment, method or self.method()
        settings = Settings(
            model=self.model,
            training=experiment.training,
            rounds=rounds or experiment.rounds,
            seed=experiment.seed,
            optimiser=experiment.optimiser,
            proxy_training=experiment.proxy,
            devices=sum(self.expected(method).values()) if devices is None else devices,
            expected=self.expected(method),
            ignore_budgets=experiment.row.ignore_budgets,
            limits=self.limits,
            metrics=self.metrics,
            stopping=self.stopping,
            admission=experiment.admission,
            overrides=experiment.overrides,
        )
        return Coordinator(
            settings,
            method,
            link,
            send_all(self.begin(method), self.home),
            proxy=self.proxy and self.proxy.on(self.home),
            test=self.test.on(self.home),
            observers=observers,
            clock=clock,
            run_id=run_id,
            keep=keep,
            journal=journal,
            labels=labels,
            coding=experiment.coding,
        )

    def expected(self, method: Method) -> dict[str, int]:
        """Return how many devices of each tier are expected to take part: of those that some size fits."""
        planner, tiers = self.planner(method.offers(), None), self.experiment.tiers
        there = {name: tier.devices for name, tier in tiers.items() if tier.devices}
        fitting = {name: count for name, count in there.items() if planner.fits(name, Profile(name, 1, levers=LEVERS))}
        return fitting or there

    def planner(self, sizes: Sequence[Size], deadline: float | None) -> Planner:
        """Return a planner that knows nothing of past rounds, for what fits which device."""
        experiment = self.experiment
        return Planner(
            sizes,
            experiment.training,
            deadline=deadline,
            ignore_budgets=experiment.row.ignore_budgets,
            limits=self.limits,
            coding=experiment.coding,
            ways=lambda size: ways_of(self.model, size.spec, experiment.training),
        )

    def fitting(self, sizes: Sequence[Size], profiles: Mapping[str, Profile], deadline: float | None) -> Size | None:
        """Return the largest exported size that fits most of these devices; None if there is none."""
        if not sizes or not profiles:
            return None
        planner = self.planner(sizes, deadline)
        return Counter(planner.fit(name, profile) for name, profile in profiles.items()).most_common(1)[0][0]


def make_run(experiment: Experiment, dataset: Dataset | None = None) -> Run:
    """Return what an experiment needs beside devices; `Run.experiment` has what the recipe adds.

    `dataset` spares loading it again when several methods are run on it. Raises `DataError`, `ModelError` or
    `SpecError`.
    """
    data, seed = experiment.data, experiment.seed
    dataset = dataset or load(data.name, data.path, experiment.reading())
    experiment = experiment.resolved(dataset.train.y)
    training, validation, _ = split_proxy(dataset, data.proxy, seed, data.proxy_validation)
    # They are in the file of whoever runs this.
    for name in (experiment.model.factory, *experiment.functions):
        custom.allow(name)
    model = _network(experiment, dataset)
    dataset = _typed(dataset, model)
    _check_targets(experiment, dataset, model)
    with hollow():
        check_inputs(network(model), len(training))
    proxy = Proxy(dataset.train.subset(training), dataset.train.subset(validation)) if data.proxy else None
    if proxy and not data.proxy_labels:
        proxy = proxy.without_labels()
    limits = {name: _limits(model, tier, experiment) for name, tier in experiment.tiers.items()}
    run = Run(experiment, dataset, model, proxy, limits)
    _check_objective(run)
    _check_parts(run)
    if any(each.size for each in experiment.overrides.values()):
        Overrides(experiment.overrides).check(run.method().offers())
    return run


def _network(experiment: Experiment, dataset: Dataset) -> ModelConfig:
    criterion, y = experiment.training.criterion, dataset.train.y
    outputs = experiment.model.outputs or outputs_for(criterion, y, dataset.classes)
    classes = dataset.classes if criterion.kind(y) == "classes" else outputs[0]
    if outputs != (classes,) and not NETWORKS[experiment.model.name].dense:
        loss = experiment.training.loss
        many = '; for labels of which any number hold there is loss "multi-label"' if loss == "cross-entropy" else ""
        raise SpecError(
            f'data set {dataset.name!r}: targets are {[len(y), *y.shape[1:]]}, which loss "{loss}" answers by outputs '
            f'{[len(y), *outputs]}; model {experiment.model.name} gives {[len(y), classes]}, and only a "custom" model '
            f"may give another shape{many}"
        )
    model = experiment.network(dataset.input_shape, classes, outputs)
    whole = [part.x for part in (dataset.train, dataset.test) if part.x.dtype == torch.int64]
    if model.name == "custom" and not model.vocabulary and whole:
        # Given in Python; files do not tell tokens from other whole numbers.
        model = replace(model, vocabulary=max(1, *(int(x.max()) + 1 for x in whole)))
    return model


def _typed(dataset: Dataset, model: ModelConfig) -> Dataset:
    """Return a data set whose inputs have the type that the model takes. Raises `DataError` for an unknown token."""
    parts = dataset.train, dataset.test
    for name, part in zip(("training", "test"), parts, strict=True):
        for some in torch.split(part.x, PART) if model.vocabulary else ():
            check_tokens(f"data set {dataset.name!r}, {name} part", some, model)
    if all(part.part(0, 1).x.dtype == model.dtype for part in parts):
        return dataset
    train, test = (part.to(model.dtype) for part in parts)
    return replace(dataset, train=train, test=test)


def _check_targets(experiment: Experiment, dataset: Dataset, model: ModelConfig) -> None:
    """Raise `ModelError` or `SpecError` for targets that the loss, a metric or the method cannot take."""
    criterion, method = experiment.training.criterion, experiment.method
    y = dataset.train.y
    if criterion.classified and y.ndim > 1 and not y.is_floating_point() and not NETWORKS[model.name].dense:
        raise ModelError(
            f"data set {dataset.name!r}: train: targets are whole numbers {list(y.shape)}; model {model.name} answers "
            f"one label an example, [{len(y)}]; several labels at once, as zeros and ones, are training.loss "
            f'"multi-label", and classes of places need a "custom" model that gives {list(model.gives)}'
        )
    for name, part in (("train", dataset.train), ("test", dataset.test)):
        check_targets(f"data set {dataset.name!r}: {name}", criterion, part.y, model.gives, model.classes)
    shape, tokens = dataset.input_shape, model.vocabulary > 0
    check_augment("training", experiment.training.augment, criterion, shape, dataset.train.y, tokens)
    kind = criterion.kind(dataset.train.y)
    stops = experiment.stopping.metric if experiment.stopping else ""
    for name in (*experiment.judged_by(dataset.train.y), stops):
        if name not in ("", LOSS) and kind not in metric(name).kinds:
            raise SpecError(f'metrics: "{name}" does not judge what loss "{experiment.training.loss}" gives')
    needed = experiment.row.classes(parse_options(method, experiment.options))
    if needed and dataset.labels is None:
        raise SpecError(
            f"method {method}: {needed} needs one class an example; targets are {list(dataset.train.y.shape)}"
        )


def _check_objective(run: Run) -> None:
    """Raise `ModelError` or `SpecError` if a user's own module brings a loss that sub-models would not have."""
    model, method = run.model, run.experiment.method
    kind = custom.kind(model) if model.factory else nn.Module
    if not issubclass(kind, Objective):
        return
    lost = f"so the loss of {model.factory}, a {Objective.__name__}, would never be asked for"
    with hollow():
        if not isinstance(network(model), kind):
            raise ModelError(f"model.stages takes the module apart, {lost}; leave model.stages out")
        for size in run.method().offers():
            if not isinstance(build(model, size.spec), kind):
                raise SpecError(f"method {method} trains {size.spec.label} by a loss of its own, {lost}; width would")


def _check_parts(run: Run) -> None:
    """Raise `SpecError` for a part that no sub-model of the method has, or that the method cannot take."""
    name, parts = run.experiment.method, run.experiment.training.parts
    method = run.method() if parts else None
    if method is None:
        return
    if not method.partial:
        raise SpecError(f"method {name} takes whole sub-models alone; leave training.parts out")
    for part in parts:
        if not any(has_part(run.model, size.spec, part) for size in method.offers()):
            raise SpecError(
                f"training.parts: no size of method {name} has a part {part!r} that could be trained alone; a custom "
                "model needs names of its blocks in model.stages"
            )


def _limits(model: ModelConfig, tier: Tier, experiment: Experiment) -> Limits:
    """Return a little more than plain training at a tier's width takes, of what the experiment limits."""
    cost = width_cost(model, tier.width, experiment.training)
    amounts = {"macs": cost.training_macs, "memory": cost.memory, "bytes": cost.bytes_down}
    macs, memory, payload = (int(SLACK * amounts[k]) if k in experiment.limits else None for k in amounts)
    return Limits(macs, memory, payload, tier.threads)
