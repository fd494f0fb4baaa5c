"""A device's task, report and update: the same values on every link."""

from dataclasses import dataclass, field

from diastole.models.levers import NO_LEVERS, Levers
from diastole.models.seeds import derive_seed
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.training import TrainConfig


@dataclass(frozen=True, slots=True)
class Task:
    """One sub-model for one device to train; its parameters travel beside it.

    Attributes:
        task_id: unique within the run, the same for every repetition.
        round: counted from 1.
        device: name of the device.
        spec: the sub-model.
        training: how to train; a schedule of the learning rate is read at `progress`.
        seed: seeds every draw of the task.
        progress: share of the run's rounds that is over, in [0, 1].
        levers: how the device does with less memory.
        threads: the most that a fast plan may have; 0 for what the device's owner allows.

    """

    task_id: str
    round: int
    device: str
    spec: SubModelSpec
    training: TrainConfig
    seed: int
    progress: float = 0.0
    levers: Levers = NO_LEVERS
    threads: int = 0

    @property
    def key(self) -> str:
        """What is sent back: the sub-model as JSON, and its part if there is one."""
        return f"{self.spec.to_json()} {self.levers.part}".rstrip()

    @property
    def codec_seed(self) -> int:
        """Seeds what the codec of the update draws."""
        return derive_seed(self.seed, "codec")


@dataclass(frozen=True, slots=True)
class Scores:
    """How a sub-model does on examples that the device keeps for a test of its own.

    Attributes:
        metric: name of what it is judged by.
        examples: that the device keeps.
        before: score of the sub-model as the device got it.
        after: score once the device has trained it.

    """

    metric: str
    examples: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a device says of its training, beside the parameters.

    Attributes:
        examples: how many the device trained on.
        loss: mean training loss of the last epoch.
        seconds: of training, without transfers.
        scores: what the sub-model is worth to the device, if its owner shares that.
        processor: seconds of the processor, of all threads of the process that trained it; None where several devices
            train in one process at a time, or on a card. It does not travel.

    """

    examples: int
    loss: float
    seconds: float
    scores: Scores | None = None
    # Two trainings of the same bits never take the same time.
    processor: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Update:
    """What a device brought back. Nothing is checked yet but that the state consists of tensors.

    Attributes:
        task: what the device was given.
        state: the parameters of the sub-model; whole once they are admitted.
        report: what the device says of the training.
        trained: names of the tensors that the device has trained, if that is a part; None for all that anybody trains.

    """

    task: Task
    state: State
    report: Report
    trained: frozenset[str] | None = None

    @property
    def told(self) -> State:
        """The state without what this device, for its part, has not trained."""
        part = self.trained
        return self.state if part is None else {n: tensor for n, tensor in self.state.items() if n in part}

    @property
    def spec(self) -> SubModelSpec:
        """The sub-model."""
        return self.task.spec

    @property
    def device(self) -> str:
        """The name of the device."""
        return self.task.device

    @property
    def examples(self) -> int:
        """How many examples the device trained on, as it says."""
        return self.report.examples
