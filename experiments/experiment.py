"""An experiment: everything that decides a run, from one TOML file."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from diastole.client.plan import Plan
from diastole.experiments.errors import ExperimentError
from diastole.models.errors import SpecError
from diastole.models.methods.registry import METHODS, parse_options
from diastole.models.networks.config import ModelConfig, Named, refuse_stages
from diastole.models.spec import one_line
from diastole.models.training import TrainConfig
from diastole.server.optimisers import ServerOptimiserConfig
from diastole.server.proxy import ProxyConfig
from diastole.server.settings import RoundConfig
from diastole.simulations.field import populations
from diastole.simulations.field.populations import DeviceClass
from diastole.simulations.field.presets import PRESETS

BASELINES = ("fedavg", "exclusive", "smallest", "proxy")


class Section(BaseModel):
    """A table of the file; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Section):
    """`[data]`: where the examples come from.

    Attributes:
        name: "digits" (comes with scikit-learn), "npz", "idx" or "cifar".
        path: of the file or folder; not for "digits".
        proxy: labelled training examples that the server keeps and no device gets.
        proxy_validation: the share of them that is for selection only.
        proxy_labels: False takes the labels away from the proxy examples, whichever they are; what needs them is
            then refused. The examples are the same, dealt evenly over the classes.

    """

    name: str = "digits"
    path: Path | None = None
    proxy: int = Field(default=100, ge=0)
    proxy_validation: float = Field(default=0.25, gt=0, lt=1)
    proxy_labels: bool = True


class Partition(Section):
    """`[partition]`: how the other training examples are dealt to devices; `simulations.partitions` has the kinds.

    Attributes:
        noise: feature shift on top of any kind: device k of n sees its inputs under Gaussian noise of standard
            deviation `noise * k / (n - 1)` (Li et al. 2022, feature skew), drawn once.
        partitioner: of "flwr": the class of flwr-datasets that deals.
        options: of "flwr": arguments for that class; the number of partitions is that of devices.

    """

    kind: Literal["iid", "dirichlet", "inner-dirichlet", "shards", "quantity", "users", "flwr"] = "dirichlet"
    alpha: float = Field(default=0.3, gt=0)
    shards_per_device: int = Field(default=2, ge=1)
    minimum: int = Field(default=1, ge=1)
    balanced: bool = False
    noise: float = Field(default=0.0, ge=0)
    partitioner: str = ""
    options: dict[str, Any] = Field(default_factory=dict)


class Network(Section):
    """`[model]`: the global model; the input shape and the classes are those of the data.

    Attributes:
        factory: "package.module:function" that returns the module of a "custom" model. Whoever runs the experiment
            imports and calls it.
        stages: the blocks of each stage of a "custom" model, by their paths in it.

    """

    name: Literal["cnn", "simple-cnn", "resnet", "mobilenet", "vit", "transformer", "custom"] = "cnn"
    widths: tuple[int, ...] = (16, 32)
    blocks: tuple[int, ...] = ()
    group: int = Field(default=4, ge=1)
    patch: int = Field(default=4, ge=1)
    vocabulary: int = Field(default=0, ge=0)
    kernel: Literal[3, 5, 7] = 7
    expand: float = Field(default=6.0, ge=1)
    factory: str = ""
    stages: Named = ()

    @model_validator(mode="after")
    def _known(self) -> "Network":
        refuse_stages(self.name, self.stages)
        return self


class Tier(Section):
    """`[tiers.NAME]`: devices of one strength.

    Attributes:
        devices: how many.
        width: share of the channels that a device of this tier can just train: its memory budget is what that
            sub-model needs.

    """

    devices: int = Field(ge=0)
    width: float = Field(gt=0, le=1)


DEFAULT_TIERS = {
    "large": Tier(devices=2, width=1.0),
    "medium": Tier(devices=3, width=0.5),
    "small": Tier(devices=3, width=0.25),
}


class Population(Section):
    """`[population]`: simulated devices as they are in the field, on a virtual clock.

    With a preset or classes, memory, speed, links, power, mishaps and availability of the devices are theirs.
    `[tiers]` then only says which widths are offered and how many devices there are, and times of a round are virtual.

    Attributes:
        preset: a name of `simulations/field/presets.py`; empty for none.
        classes: a population of one's own, in the place of a preset.
        deadline: of a round, in multiples of the time that the preset's fastest class takes to download, train and
            upload the full size with the mean number of examples. `rounds.deadline` says it in virtual seconds.
        pause: virtual seconds after each round. Models of a study are small and their rounds short; without a pause
            a whole run may fit into a minute of the day.
        patience: virtual seconds to wait for a device to come online; takes the place of `rounds.patience`.

    """

    preset: Literal[
        "", "phones", "pi", "wearables", "mixed", "compute-limited", "memory-limited", "bandwidth-limited"
    ] = ""
    classes: tuple[DeviceClass, ...] = ()
    deadline: float | None = Field(default=None, gt=0)
    pause: float = Field(default=0.0, ge=0)
    patience: float = Field(default=7 * 86_400.0, ge=0)

    @property
    def mixture(self) -> populations.Population | None:
        """The population, or None."""
        if self.classes:
            return populations.Population("own", self.classes)
        return PRESETS[self.preset] if self.preset else None

    @model_validator(mode="after")
    def _one(self) -> "Population":
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

    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)


class Experiment(Section):
    """A whole experiment.

    Attributes:
        name: for reports.
        seed: every random draw derives from it.
        method: how sub-models are made (a name of `models.methods.registry`), or a baseline, for which one size is
            the global model: "fedavg" (every device trains the largest tier's size as if it could), "exclusive" (only
            devices that fit that size), "smallest" (every device trains the smallest tier's size), "proxy" (no
            devices; the full size).
        engine: how devices are simulated: "loop" (one after another), "processes" (worker processes), "batched"
            (those of one sub-model together), "auto" (of these three the fastest for each sub-model, by a short
            measurement) or "flower" (Flower's simulation on Ray; on more than one machine too).
        workers: of "processes" and "flower", and threads of "batched"; by default one a core. Not with a Ray
            cluster, which knows its cores.
        device: where "batched", and "auto" if it chooses that, trains: "cpu" or "cuda".
        plan: how simulated devices do their arithmetic: "reference" (the same bits everywhere) or "fast".
        proxy: the server's own training on its proxy set after each round, the same for every method.
        limits: what a tier may not exceed of what plain training at its width takes, and 2 % more: "memory" (peak
            bytes of training), "macs" (of training on one example), "bytes" (a payload); any of them, or none.
        server: the server's optimiser; the method's own by default, which is mostly FedAvg.
        methods: options of methods, by the method's name; those of other methods than the experiment's lie idle.

    """

    name: str = "experiment"
    seed: int = Field(default=0, ge=0)
    method: str = "width"
    engine: Literal["loop", "processes", "batched", "auto", "flower"] = "loop"
    device: Literal["cpu", "cuda"] = "cpu"
    workers: int | None = Field(default=None, ge=1)
    plan: Plan = "reference"
    data: Data = Data()
    partition: Partition = Partition()
    model: Network = Network()
    tiers: dict[str, Tier] = Field(default_factory=lambda: dict(DEFAULT_TIERS))
    training: TrainConfig = Field(default_factory=TrainConfig)
    rounds: RoundConfig = Field(default_factory=RoundConfig)
    population: Population = Population()
    flower: Flower = Flower()
    server: ServerOptimiserConfig | None = None
    proxy: ProxyConfig = Field(default_factory=ProxyConfig)
    limits: tuple[Literal["macs", "memory", "bytes"], ...] = ("memory",)
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> "Experiment":
        if self.method not in (*METHODS, *BASELINES):
            raise ValueError(f"method: must be one of {', '.join((*METHODS, *BASELINES))}, not {self.method!r}")
        if not any(tier.devices for tier in self.tiers.values()):
            raise ValueError("tiers: no tier has a device")
        if self.device != "cpu" and self.engine not in ("batched", "auto"):
            raise ValueError(f'device {self.device}: only engines "batched" and "auto" can use it, not "{self.engine}"')
        if self.method == "proxy" and not (self.proxy.epochs and self.data.proxy):
            raise ValueError("method proxy: proxy.epochs and data.proxy must both be at least 1")
        self._check_labels()
        if self.method in METHODS and METHODS[self.method].proxy and self.data.proxy < 2:
            raise ValueError(f"method {self.method}: data.proxy must be at least 2, not {self.data.proxy}")
        for name, options in self.methods.items():
            try:
                parsed = parse_options(name, options)
            except SpecError as error:
                raise ValueError(f"methods: {error}") from None
            statistics = name == self.method and getattr(parsed, "initialise", "") == "devices"
            if statistics and self.optimiser.name not in ("fedavg", "fedavgm"):
                raise ValueError(
                    f'methods.{name}.initialise "devices": statistics need server.name "fedavg" or "fedavgm", '
                    f'not "{self.optimiser.name}", which is not linear'
                )
            if name == self.method and self.proxy.epochs and not getattr(parsed, "labels", True):
                raise ValueError(f"methods.{name}.labels = false: proxy.epochs must be 0, not {self.proxy.epochs}")
        if self.population.deadline is not None and not self.population.mixture:
            raise ValueError(
                "population.deadline: needs population.preset or .classes; without one there is rounds.deadline"
            )
        if self.population.deadline is not None and self.rounds.deadline is not None:
            raise ValueError("population.deadline and rounds.deadline: at most one of them")
        return self

    def _check_labels(self) -> None:
        """Refuse what cannot do without labels if the proxy set has none."""
        method = METHODS.get(self.method)
        if self.data.proxy_labels or not self.data.proxy or (method and method.unlabelled):
            return
        if method and not getattr(parse_options(self.method, self.methods.get(self.method, {})), "labels", True):
            return
        if method and method.proxy:
            raise ValueError(f"method {self.method}: needs labels of the proxy set; data.proxy_labels must be true")
        if self.proxy.epochs:
            raise ValueError(
                f"method {self.method}: cannot train on a proxy set without labels; "
                f"proxy.epochs must be 0, not {self.proxy.epochs}, or data.proxy_labels true"
            )

    @property
    def optimiser(self) -> ServerOptimiserConfig:
        """The server's optimiser: the experiment's, or else the method's own."""
        own = METHODS[self.method].server if self.method in METHODS else {}
        return self.server or ServerOptimiserConfig(**own)

    @property
    def devices(self) -> int:
        """The number of devices over all tiers."""
        return sum(tier.devices for tier in self.tiers.values())

    @property
    def widths(self) -> list[float]:
        """The widths that the method offers: each tier's own, or the one of a baseline."""
        widths = sorted({tier.width for tier in self.tiers.values()})
        if self.method in BASELINES:
            return widths[:1] if self.method == "smallest" else widths[-1:]
        return widths

    def network(self, input_shape: tuple[int, ...], classes: int) -> ModelConfig:
        """Return the global model's configuration for the given data."""
        return ModelConfig(
            name=self.model.name,
            input_shape=input_shape,
            classes=classes,
            widths=self.model.widths,
            blocks=self.model.blocks,
            group=self.model.group,
            patch=self.model.patch,
            vocabulary=self.model.vocabulary,
            factory=self.model.factory,
            kernel=self.model.kernel,
            expand=self.model.expand,
            stages=self.model.stages,
        )

    def changed(self, **changes: Any) -> "Experiment":
        """Return a copy with some keys changed, checked again; a dotted key is written with two underscores.

        Raises `ExperimentError`.
        """
        document = self.model_dump()
        for key, value in changes.items():
            *tables, name = key.split("__")
            table = document
            for part in tables:
                table = table[part]
            table[name] = value
        return parse(document, self.name)


def parse(document: Mapping[str, Any], source: str) -> Experiment:
    """Return the experiment in a parsed TOML document. Raises `ExperimentError` naming every wrong key."""
    try:
        return Experiment.model_validate(document)
    except ValidationError as error:
        raise ExperimentError(f"{source}: {one_line(error, Experiment.model_json_schema())}") from None


@dataclass(frozen=True, slots=True)
class Override:
    """`table.key=value` from the command line; the value is TOML, or else a plain string."""

    keys: tuple[str, ...]
    value: Any

    @staticmethod
    def read(text: str) -> "Override":
        """Parse one override. Raises `ExperimentError`."""
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise ExperimentError(f"{text!r}: an override reads table.key=value")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        return Override(tuple(key.strip().split(".")), parsed)


def load(path: Path, overrides: list[str] | None = None) -> Experiment:
    """Read an experiment; a relative `data.path` is taken from the file's folder. Raises `ExperimentError`."""
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ExperimentError(f"{path}: no such file; give the path of an experiment in TOML") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise ExperimentError(f"{path}: not TOML: {error}") from None
    data = document.get("data")
    if isinstance(data, dict) and isinstance(data.get("path"), str):
        data["path"] = path.parent / data["path"]
    for override in map(Override.read, overrides or []):
        table = document
        for part in override.keys[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ExperimentError(f"{'.'.join(override.keys)}: {part} is not a table")
        table[override.keys[-1]] = override.value
    return parse(document, str(path))
