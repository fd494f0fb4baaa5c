"""A simulation: an experiment, and how its devices are simulated; one TOML file says both."""

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from diastole.client.choices import ExecutionPlan
from diastole.experiments.data.partitions import PARTITIONS
from diastole.experiments.experiment import Experiment
from diastole.experiments.section import Section
from diastole.experiments.sweep.space import Sweep
from diastole.models.losses import is_own
from diastole.simulations.attack import Attack
from diastole.simulations.cards import is_card, known, several
from diastole.simulations.engines.arithmetic import Precision
from diastole.simulations.engines.registry import ENGINES
from diastole.simulations.field.populations import POPULATIONS, DeviceClass, Mixture

MOST_CLASSES, MOST_WORKERS = 1000, 4096


class Partition(Section):
    """`[partition]`: how the training examples are dealt to devices (`experiments/data/partitions.py`).

    Attributes:
        kind: a name of that registry, or "package.module:function", which whoever runs the simulation calls.
        noise: feature shift on top of any kind: device k of n sees its inputs under Gaussian noise of standard
            deviation `noise * k / (n - 1)` (Li et al. 2022, feature skew), drawn once.
        partitioner: of "flwr": the class of flwr-datasets that deals.
        options: of "flwr": arguments for that class; the number of partitions is that of devices.

    """

    kind: str = "dirichlet"
    alpha: float = Field(default=0.3, gt=0)
    shards_per_device: int = Field(default=2, ge=1, lt=1 << 40)
    minimum: int = Field(default=1, ge=0, lt=1 << 40)
    balanced: bool = False
    noise: float = Field(default=0.0, ge=0)
    partitioner: str = ""
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        return value if is_own(value) else PARTITIONS.known(value)


class Population(Section):
    """`[population]`: simulated devices as they are in the field, on a virtual clock.

    With a preset or classes, memory, speed, links, power, mishaps and availability of the devices are theirs.
    `[tiers]` then only says which widths are offered and how many devices there are, and times of a round are virtual.

    Attributes:
        preset: a ready-made one (`simulations/field/presets.py`) or one of an installed package; empty for none.
        classes: a population of one's own, in the place of a preset.
        deadline: of a round, in multiples of the time that the preset's fastest class takes to download, train and
            upload the full size with the mean number of examples. `rounds.deadline` says it in virtual seconds.
        pause: virtual seconds after each round. Models of a study are small and their rounds short; without a pause
            a whole run may fit into a minute of the day.
        patience: virtual seconds to wait for a device to come online; takes the place of `rounds.patience`.

    """

    preset: str = ""
    classes: tuple[DeviceClass, ...] = Field(default=(), max_length=MOST_CLASSES)
    deadline: float | None = Field(default=None, gt=0)
    pause: float = Field(default=0.0, ge=0)
    patience: float = Field(default=7 * 86_400.0, ge=0)

    @field_validator("preset")
    @classmethod
    def _known(cls, value: str) -> str:
        return POPULATIONS.known(value) if value else ""

    @property
    def mixture(self) -> Mixture | None:
        """What the devices are drawn from, or None: then there is no virtual clock."""
        if self.classes:
            return Mixture("its own classes", self.classes)
        return POPULATIONS[self.preset] if self.preset else None

    @model_validator(mode="after")
    def _one(self) -> Self:
        names = [kind.name for kind in self.classes]
        if self.classes and self.preset:
            raise ValueError("preset and classes: at most one of them")
        if len(set(names)) < len(names):
            raise ValueError(f"classes: each needs a name of its own, not {', '.join(names)}")
        return self


class Flower(Section):
    """`[flower]`: what Ray gives each client of the "flower" engine.

    Attributes:
        cpus: cores a client takes; as many clients train at a time as there are.
        gpus: share of a GPU; above 0 clients train on it, not on the CPU.

    """

    cpus: float = Field(default=1.0, gt=0, le=MOST_WORKERS)
    gpus: float = Field(default=0.0, ge=0)


class Simulation(Experiment):
    """An experiment, and how its devices are simulated.

    Attributes:
        engine: a name of `simulations/engines/registry.py`: "loop" (one device after another), "processes" (worker
            processes), "batched" (those of one sub-model together), "auto" (of these three the fastest for each
            sub-model, by a short measurement) or "flower" (Flower's simulation on Ray; on more than one machine too).
        workers: of "processes" and "flower", and threads of "batched"; by default one a core. Not with a Ray
            cluster, which knows its cores.
        device: where "loop", "batched" and "auto" train, and where the server's own work is done: "cpu", a card such as
            "cuda", "cuda:1" or "mps", or several for "batched" and "auto", such as "cuda:0,cuda:1".
        precision: of products and convolutions on CUDA cards: "float32", "tf32" (factors rounded to 10 bits) or "bf16"
            (to 7 bits where devices are trained together, else as "tf32"). Weights and sums are float32 in each.
        attack: which devices mean harm, and how; None: all are honest.
        sweep: what `compare` tries before it compares; it is no part of a run, and not in an experiment's document.
        plan: how simulated devices do their arithmetic: "reference" (the same bits everywhere) or "fast".

    """

    engine: str = "loop"
    device: str = Field(default="cpu", max_length=300)
    precision: Precision = "float32"
    workers: int | None = Field(default=None, ge=1, le=MOST_WORKERS)
    plan: ExecutionPlan = "reference"
    partition: Partition = Partition()
    population: Population = Population()
    attack: Attack | None = None
    flower: Flower = Flower()
    sweep: Sweep | None = Field(default=None, exclude=True)

    @field_validator("engine")
    @classmethod
    def _engine(cls, value: str) -> str:
        return ENGINES.known(value)

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        return known(value)

    @model_validator(mode="after")
    def _simulated(self) -> Self:
        needed = 2 if several(self.device) else int(is_card(self.device))
        if ENGINES[self.engine].cards < needed:
            able = ", ".join(repr(name) for name, row in ENGINES.items() if row.cards >= needed)
            shares = "; flower.gpus gives its clients shares of a GPU" if self.engine == "flower" else ""
            raise ValueError(f"device {self.device}: engines {able} can use it, not {self.engine!r}{shares}")
        if self.precision != "float32" and not self.device.startswith("cuda"):
            raise ValueError(f'precision {self.precision}: only CUDA cards have it, not {self.device}; use "float32"')
        if self.population.deadline is not None and not self.population.mixture:
            raise ValueError(
                "population.deadline: needs population.preset or .classes; without one there is rounds.deadline"
            )
        if self.attack is not None and self.attack.examples and self.population.mixture:
            raise ValueError("attack.examples: not with a population, whose clock goes by the examples that there are")
        if self.population.deadline is not None and self.rounds.deadline is not None:
            raise ValueError("population.deadline and rounds.deadline: at most one of them")
        return self

    def changed(self, **changes: Any) -> Self:
        """Return a copy with some keys changed, checked again. Raises `ExperimentError`."""
        if self.sweep is not None and "sweep" not in changes:
            # It is not in the dump that is changed.
            changes = {"sweep": self.sweep.model_dump()} | changes
        return super().changed(**changes)

    @property
    def served(self) -> Experiment:
        """The same run over real devices, without what only simulations know."""
        return Experiment.parse(self.document(), self.name)

    @property
    def groups(self) -> tuple[str, ...]:
        """What devices are told apart by in reports: the tiers or, with a population, its classes."""
        mixture = self.population.mixture
        return tuple(kind.name for kind in mixture.classes) if mixture else tuple(self.tiers)
