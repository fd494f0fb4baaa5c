"""What a run came to, whether its devices were real or simulated."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diastole.client.model_file import ModelFile
from diastole.experiments.experiment import Experiment
from diastole.experiments.field import FieldCost
from diastole.experiments.personal import Personal, shared
from diastole.experiments.report.rows import DeviceRow, TierRow, device_rows, tier_rows
from diastole.experiments.run import Run
from diastole.models.crossing import CPU, send_all
from diastole.models.method import Method, Size, Wide
from diastole.models.metrics import shown, title
from diastole.models.networks.config import ModelConfig
from diastole.models.recalibrate import ready
from diastole.models.seeds import reference_plan
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.server.coordinator import Coordinator
from diastole.server.events import RoundClosed
from diastole.server.ledger import Account
from diastole.server.snapshot import Rollback

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Dealt:
    """How examples were dealt to simulated devices.

    Attributes:
        kind: in words.
        counts: returns how many examples of each label each device has, int64 `[devices, classes]`.

    """

    kind: str
    counts: Callable[[], Tensor]


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """What a run came to.

    Attributes:
        experiment: what was asked for.
        metrics: what models are judged by, the first one above all.
        config: the global model.
        whole: the sub-model that is the global model as people use it.
        state: the final global model.
        rounds: what each round came to, in order.
        accounts: what each device that was there brought and spent, by name.
        sizes: on offer, smallest first.
        parts: of `whole` and of every exported size: its parameters, and statistics where it normalises by batches.
        fits: for each tier, in order, the largest exported size that fits most of its devices.
        early: why the run ended itself before its last round; empty if it did not.
        failed: why the run could not go on, or came to nothing; empty if it did not fail.
        field: what it cost in the field, if the devices were drawn from a population; seconds are then virtual.
        dealt: how examples were dealt, if the devices were simulated.
        personal: scores of devices on examples that they keep for that, by name, if they keep any: of simulated devices
            with the final model, of others with their last update, if their owners share them.
        run_id: which run of a coordinator it was; empty for a simulation.
        kept: what the method has learned beside, that sub-models need which are not among `parts`.
        rollbacks: rounds that operators have taken back, in order.

    """

    experiment: Experiment
    metrics: tuple[str, ...]
    config: ModelConfig
    whole: SubModelSpec
    state: State
    rounds: Sequence[RoundClosed]
    accounts: Mapping[str, Account]
    sizes: Sequence[Size]
    parts: Mapping[SubModelSpec, State]
    fits: Mapping[str, Size | None]
    early: str = ""
    failed: str = ""
    field: FieldCost | None = None
    dealt: Dealt | None = None
    personal: Mapping[str, Personal] = dataclasses.field(default_factory=dict)
    run_id: str = ""
    kept: State = dataclasses.field(default_factory=dict)
    rollbacks: Sequence[Rollback] = ()

    def __repr__(self) -> str:
        experiment, metric, score = self.experiment, self.metric, self.score
        how = "not evaluated" if score is None else f"{title(metric)} {shown(metric, score)}"
        rounds = f"{len(self.rounds)} of {experiment.rounds.count} rounds"
        return f"<Result of {experiment.name!r}: {experiment.method}, {rounds}, {len(self.accounts)} devices, {how}>"

    @property
    def metric(self) -> str:
        """The metric that the run is judged by."""
        return self.metrics[0]

    @property
    def scores(self) -> dict[str, float]:
        """The final global model's scores on the test set: the experiment's metrics, and "loss"; {} without a round."""
        return (self.rounds[-1].scores if self.rounds else None) or {}

    @property
    def score(self) -> float | None:
        """Its score by the metric that the run is judged by; None if no round was run."""
        return self.scores.get(self.metric)

    @property
    def accuracy(self) -> float | None:
        """Its accuracy, in [0, 1]; None if no round was run, or accuracy is not among the experiment's metrics."""
        return self.scores.get("accuracy")

    @property
    def finished(self) -> bool:
        """Whether every round was run, or the run ended itself, and it did not fail."""
        return not self.failed and (len(self.rounds) >= self.experiment.rounds.count or bool(self.early))

    @property
    def tiers(self) -> list[TierRow]:
        """A row a tier, in the experiment's order; with a population, a row a class."""
        return tier_rows(self)

    @property
    def devices(self) -> list[DeviceRow]:
        """A row a device that was there, by name."""
        return device_rows(self)

    @property
    def file(self) -> ModelFile:
        """The models, as a file holds them."""
        tiers = {name: size.spec.label for name, size in self.fits.items() if size}
        return ModelFile(
            self.config,
            self.experiment.method,
            self.experiment.options,
            len(self.rounds),
            self.state,
            {spec.label: spec for spec in self.parts},
            {spec.label: state for spec, state in self.parts.items()},
            tiers,
            self.whole.label,
            {
                "task": f"{self.experiment.training.loss}, judged by {', '.join(self.metrics)}",
                "data": self.experiment.data.name,
            },
            self.kept,
        )

    def model(self, tier: str | None = None, size: str | None = None, budget: int | str | None = None) -> nn.Module:
        """Return a trained module, ready to use: the global model, or a part of it.

        Args:
            tier: the largest exported size that fits most devices of this tier.
            size: the sub-model of this label.
            budget: the largest one whose parameters take at most so many bytes, such as "2 MB".

        Raises `ModelFileError` for more than one of these, or one that there is not.

        """
        return self.file.module(tier, size, budget)

    def as_dict(self) -> dict[str, Any]:
        """Return everything but tensors, for JSON."""
        from diastole.experiments.report.report import as_dict

        return as_dict(self)

    def save(self, folder: Path | str, figures: Sequence[str] = ("png",)) -> list[Path]:
        """Write the models, the report and, if there is matplotlib, pictures into `folder`; return the paths.

        `figures` are kinds of pictures: "png", "pdf", "svg". Raises `ExperimentError`.
        """
        from diastole.experiments.report.figures import check_kinds
        from diastole.experiments.report.report import write

        check_kinds(figures)
        return write(self, Path(folder), figures)

    def plot(self) -> "Figure":
        """Return a matplotlib figure of scores by round and by bytes. Raises `ExperimentError` without matplotlib."""
        from diastole.experiments.report.figures import check_drawing, shown
        from diastole.experiments.report.picture import figure

        check_drawing()
        return shown(figure(self))


def result_of(
    run: Run,
    coordinator: Coordinator,
    *,
    groups: Sequence[str] = (),
    deadline: float | None = None,
    field: FieldCost | None = None,
    dealt: Dealt | None = None,
    personal: Mapping[str, Personal] | None = None,
    run_id: str = "",
) -> Result:
    """Return what a coordinator's run came to, over the devices that its link has seen.

    `groups` are what devices are told apart by, the experiment's tiers by default; `deadline` is that of a round, if
    sizes depend on it.
    """
    method, accounts = coordinator.method, dict(coordinator.ledger)
    exported = [size.spec for size in coordinator.sizes if size.exported]
    with reference_plan():
        parts = {spec: usable(run, method, spec) for spec in dict.fromkeys([method.whole, *exported])}
    fits = {}
    for group in groups or tuple(run.experiment.tiers):
        profiles = {n: a.profile for n, a in accounts.items() if a.profile is not None and a.profile.tier == group}
        fits[group] = run.fitting(coordinator.sizes, profiles, deadline)
    return Result(
        experiment=run.experiment,
        metrics=run.metrics,
        config=run.model,
        whole=method.whole,
        state=send_all(coordinator.state, CPU),
        rounds=tuple(coordinator.closed),
        accounts=accounts,
        sizes=tuple(coordinator.sizes),
        parts=parts,
        fits=fits,
        early=coordinator.early,
        failed=coordinator.failed,
        field=field,
        dealt=dealt,
        personal=personal or shared(accounts, run.metrics[0]),
        run_id=run_id,
        kept=method.lasting() if isinstance(method, Wide) else {},
        rollbacks=tuple(coordinator.rollbacks),
    )


def usable(run: Run, method: Method, spec: SubModelSpec) -> State:
    """Return what a sub-model is used with."""
    module = method.module(spec)
    module.load_state_dict(send_all(method.compress(spec), CPU))
    inputs = run.proxy.training.x if run.proxy else torch.empty(0)
    return {name: tensor.detach() for name, tensor in ready(module, inputs).state_dict().items()}
