"""What a run is, apart from its devices."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass as validated

from diastole.models.networks.config import ModelConfig
from diastole.models.spec import STRICT
from diastole.models.training import TrainConfig
from diastole.server.admission import AdmissionConfig
from diastole.server.labels import MOST_LABELS, wrong
from diastole.server.optimisers import ServerOptimiserConfig
from diastole.server.overrides import Override
from diastole.server.planner import Limits
from diastole.server.proxy import ProxyConfig
from diastole.server.sampler import SAMPLERS
from diastole.server.stopping import StoppingConfig


@validated(frozen=True, slots=True, config=STRICT)
class RoundConfig:
    """When a round begins and when it closes.

    Attributes:
        count: rounds in the run.
        cohort: devices a round; None for every device that some size fits.
        sampler: how they are drawn, a name of `server/sampler.py`: "uniform", "fair-share", "tier-balanced" or "oort".
        labels: of the devices that may take part: each of these, as the operator has given them; simulated devices have
            none, and all may.
        goal: updates at which a round closes, at most `cohort`; None: it waits for the whole cohort. Later ones are not
            needed.
        quorum: share of the cohort, or of the goal, whose updates a round needs to count, in (0, 1].
        deadline: seconds a round may take; None for no limit. With simulated devices it counts on the virtual clock
            only.
        patience: seconds to wait for enough devices before the run is given up; None: as long as it takes.
        evaluate_every: rounds between two evaluations; the last round is always evaluated.

    """

    count: int = Field(default=10, ge=0)
    cohort: int | None = Field(default=None, ge=1)
    sampler: str = "uniform"
    labels: dict[str, str] = Field(default_factory=dict, max_length=MOST_LABELS)
    goal: int | None = Field(default=None, ge=1)
    quorum: float = Field(default=0.5, gt=0, le=1)
    deadline: float | None = Field(default=None, gt=0)
    patience: float | None = Field(default=None, ge=0)
    evaluate_every: int = Field(default=1, ge=1)

    @field_validator("sampler")
    @classmethod
    def _known(cls, value: str) -> str:
        return SAMPLERS.known(value)

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        if text := wrong(value):
            raise ValueError(text)
        return value

    def __post_init__(self) -> None:
        if self.goal is not None and self.cohort is not None and self.goal > self.cohort:
            raise ValueError(f"goal: must be at most the cohort, {self.cohort}, not {self.goal}")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is, apart from its devices.

    Attributes:
        model: the global model.
        training: how devices train.
        rounds: when rounds begin and close.
        seed: every draw of the run derives from it.
        optimiser: the server's.
        proxy_training: the server's own training after each round.
        devices: how many that can be given a task must be online before the first round.
        expected: how many of each tier are expected, to say who is missing.
        ignore_budgets: whether every device gets the largest size, even if it does not fit.
        limits: the most that a device of a tier may be asked for, by the tier's name.
        metrics: what the global model and its sizes are scored by beside the loss; a run is judged by the first.
        stopping: when the run ends before its last round; None: never.
        admission: how far devices are trusted.
        overrides: what the operator decides for devices, by patterns of their names.

    """

    model: ModelConfig
    training: TrainConfig
    rounds: RoundConfig
    seed: int
    optimiser: ServerOptimiserConfig = field(default_factory=ServerOptimiserConfig)
    proxy_training: ProxyConfig = field(default_factory=ProxyConfig)
    devices: int = 1
    expected: Mapping[str, int] = field(default_factory=dict)
    ignore_budgets: bool = False
    limits: Mapping[str, Limits] = field(default_factory=dict)
    metrics: tuple[str, ...] = ("accuracy",)
    stopping: StoppingConfig | None = None
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    overrides: Mapping[str, Override] = field(default_factory=dict)
