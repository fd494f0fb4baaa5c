"""An experiment: what is trained, on what, how, and by which method; nothing of how devices are simulated."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator
from torch import Tensor

from diastole.experiments import toml
from diastole.experiments.data.reading import Reading
from diastole.experiments.errors import ExperimentError
from diastole.experiments.parts import DEFAULT_TIERS, LONGEST_NAME, MOST_TIERS, Data, Network, Tier
from diastole.experiments.section import Codecs, Section
from diastole.models.errors import SpecError
from diastole.models.losses import is_own
from diastole.models.methods.registry import METHODS, TRICKS, Conditions, MethodRow, parse_options
from diastole.models.metrics import known
from diastole.models.networks.config import ModelConfig
from diastole.models.schedule import CONSTANT
from diastole.models.spec import one_line
from diastole.models.training import TrainConfig
from diastole.proto.coding import Coding
from diastole.proto.errors import DiastoleError
from diastole.proto.payload import PayloadError
from diastole.server.admission import AdmissionConfig
from diastole.server.optimisers import ServerOptimiserConfig
from diastole.server.overrides import Override, is_pattern
from diastole.server.proxy import ProxyConfig
from diastole.server.settings import RoundConfig
from diastole.server.stopping import StoppingConfig

SIMULATED = ("engine", "device", "precision", "workers", "plan", "partition", "population", "attack", "flower", "sweep")
"""Keys and tables of the same file that only simulations use (`simulations/simulation.py`)."""

MOST_OVERRIDES, MOST_PATTERNS = 10_000, 100


class Experiment(Section):
    """What is trained, on what, how, and by which method.

    Attributes:
        name: for reports.
        seed: every random draw derives from it.
        method: how sub-models are made: a method or a baseline of `models/methods/registry.py`.
        recipe: "paper" for what the method's paper trains with beside the method, where the file does not say it
            itself; "none" for the file's own values alone. None: "paper" for a method that the file names, "none" in a
            comparison, and for the default method.
        codec: how payloads travel, a name of `proto/codec.py`: "exact" keeps every bit.
        codecs: the same by direction.
        proxy: the server's own training on its proxy set after each round, the same for every method.
        limits: what a tier may not exceed of what plain training at its width takes, and 2 % more: "memory" (peak
            bytes of training), "macs" (of training on one example), "bytes" (a payload); any of them, or none.
        metrics: what models are judged by (`models/metrics.py`); the first one decides. By default what suits the
            loss.
        server: the server's optimiser; as the recipe says by default, or else FedAvg.
        admission: how far devices are trusted.
        overrides: what the operator decides for devices, by patterns of their names; the first that fits holds.
        stopping: ends the run before its last round, by the validation part of the proxy set; by default nothing does.
        methods: options of methods, by the method's name; those of other methods than the experiment's lie idle.

    """

    name: str = Field(default="experiment", max_length=200)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    method: str = "width"
    recipe: Literal["paper", "none"] | None = None
    codec: str = "exact"
    codecs: Codecs = Codecs()
    data: Data = Data()
    model: Network = Network()
    tiers: dict[str, Tier] = Field(default_factory=lambda: dict(DEFAULT_TIERS), max_length=MOST_TIERS)
    training: TrainConfig = Field(default_factory=TrainConfig)
    rounds: RoundConfig = Field(default_factory=RoundConfig)
    metrics: tuple[str, ...] = Field(default=(), max_length=32)
    server: ServerOptimiserConfig | None = None
    proxy: ProxyConfig = Field(default_factory=ProxyConfig)
    limits: tuple[Literal["macs", "memory", "bytes"], ...] = Field(default=("memory",), max_length=3)
    admission: AdmissionConfig = Field(default_factory=AdmissionConfig)
    overrides: dict[str, Override] = Field(default_factory=dict, max_length=MOST_OVERRIDES)
    stopping: StoppingConfig | None = None
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)

    _unused: tuple[str, ...] = PrivateAttr(())

    @field_validator("method")
    @classmethod
    def _known(cls, value: str) -> str:
        return METHODS.known(value)

    @field_validator("metrics")
    @classmethod
    def _metrics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(known(name) for name in value))

    @field_validator("tiers")
    @classmethod
    def _names(cls, value: dict[str, Tier]) -> dict[str, Tier]:
        for name in value:
            # A tier's devices have a folder of that name, and say on the wire which is theirs.
            if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or name[0] == "." or {*name} & {*"/\\"}:
                raise ValueError(
                    f"tier {name!r}: 1 to {LONGEST_NAME} printable characters are accepted; no / or \\, no . in front"
                )
        return value

    @field_validator("methods")
    @classmethod
    def _by_name(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, options in value.items():
            try:
                parse_options(name, options)
            except SpecError as error:
                raise ValueError(str(error)) from None
        found = {METHODS.name(name): options for name, options in value.items()}
        if len(found) < len(value):
            raise ValueError(f"two names of one method among {', '.join(value)}")
        return found

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not any(tier.devices for tier in self.tiers.values()):
            raise ValueError("tiers: no tier has a device")
        if self.row.each_width and len(self.widths) > 1:
            raise ValueError(f"method {self.method}: is a run for each width, which only comparisons have")
        if self.row.proxy and self.data.proxy < 2:
            raise ValueError(f"method {self.method}: data.proxy must be at least 2, not {self.data.proxy}")
        try:
            _ = self.coding
        except PayloadError as error:
            raise ValueError(str(error)) from None
        self._check_stopping()
        self._check_overrides()
        options = parse_options(self.method, self.options)
        self._check_labels(options)
        if (needed := self.row.classes(options)) and self.training.loss != "cross-entropy":
            raise ValueError(
                f"method {self.method}: {needed} needs one class an example, and so training.loss "
                f'"cross-entropy", not "{self.training.loss}"'
            )
        conditions = Conditions(
            self.training, self.data.proxy, self.data.proxy_labels, self.proxy.epochs, self.optimiser.name
        )
        try:
            self.row.check(options, conditions)
        except SpecError as error:
            raise ValueError(str(error)) from None
        return self

    def _check_overrides(self) -> None:
        """Refuse tiers that there are not, and more patterns than can be looked through for each device."""
        for pattern, override in self.overrides.items():
            if override.tier and override.tier not in self.tiers:
                known = ", ".join(map(repr, self.tiers))
                raise ValueError(f"overrides.{pattern}.tier: no tier {override.tier!r}; accepted: {known}")
        if (count := sum(map(is_pattern, self.overrides))) > MOST_PATTERNS:
            raise ValueError(f"overrides: {count} patterns; at most {MOST_PATTERNS} are accepted, and any names")

    def _check_stopping(self) -> None:
        """Refuse to end a run by a validation part that is not there."""
        if self.stopping is None:
            return
        if self.data.proxy < 2:
            raise ValueError(
                "stopping: looks at the validation part of the proxy set only, and there is none; data.proxy must be "
                f"at least 2, not {self.data.proxy}"
            )
        if not self.data.proxy_labels:
            raise ValueError("stopping: needs labels of the proxy set; data.proxy_labels must be true")

    def _check_labels(self, options: Any) -> None:
        """Refuse what cannot do without labels if the proxy set has none."""
        if self.data.proxy_labels or not self.data.proxy or self.row.unlabelled(options):
            return
        if self.row.proxy:
            raise ValueError(f"method {self.method}: needs labels of the proxy set; data.proxy_labels must be true")
        if self.proxy.epochs:
            raise ValueError(
                f"method {self.method}: cannot train on a proxy set without labels; "
                f"proxy.epochs must be 0, not {self.proxy.epochs}, or data.proxy_labels true"
            )

    @property
    def row(self) -> MethodRow:
        """What the registry knows of the method."""
        return METHODS[self.method]

    @property
    def options(self) -> Mapping[str, Any]:
        """The method's own options, as they are given."""
        return self.methods.get(self.method, {})

    @property
    def coding(self) -> Coding:
        """How payloads travel."""
        return Coding.of(self.codecs.up or self.codec, self.codecs.down or self.codec)

    @property
    def functions(self) -> tuple[str, ...]:
        """The user's own functions that the file names, beside the model's."""
        stops = self.stopping.metric if self.stopping else ""
        return (*self.training.functions, *filter(is_own, (*self.metrics, stops)))

    def judged_by(self, y: Tensor) -> tuple[str, ...]:
        """Return the metrics, the first of which decides, for targets like `y`."""
        return self.metrics or self.training.criterion.metrics(y)

    def reading(self, seed: int | None = None, spool: Path | None = None) -> Reading:
        """Return how the data set is read; by default in a run of the experiment's seed, and into memory."""
        data, loss = self.data, self.training.criterion.row
        return Reading(
            self.seed if seed is None else seed,
            data.test,
            data.layout,
            data.size,
            data.label,
            data.user,
            data.input,
            data.seconds,
            loss is not None and loss.kind != "classes",
            spool,
        )

    @property
    def scheduled(self) -> bool:
        """Whether the number of rounds decides what each of them does."""
        return bool(self.schedule) or self.row.scheduled(parse_options(self.method, self.options))

    @property
    def schedule(self) -> str:
        """How the learning rate falls over the rounds, the recipe included; empty if it stays."""
        found = replace(self.training, **_table("training", self.added))
        return str(found.schedule) if found.scheduled else ""

    @property
    def added(self) -> dict[str, Any]:
        """What the recipe sets of `[training]` and `[server]`, by dotted keys: only what the file leaves out."""
        found, training = dict[str, Any](), self.training
        loss = training.criterion.row
        reads_balance = loss is None or "balance" in loss.settings
        named = "method" in self.model_fields_set
        for key, value in self.row.recipe.items() if self.recipe == "paper" or (self.recipe is None and named) else ():
            table, _, name = key.partition(".")
            free = self.server is None if table == "server" else getattr(training, name) is None
            # A loss that would not read it must not be refused for it.
            if free and (name != "balance" or reads_balance):
                found[key] = value
        return found

    @property
    def optimiser(self) -> ServerOptimiserConfig:
        """The server's optimiser: the experiment's, or else the recipe's."""
        return self.server or ServerOptimiserConfig(**_table("server", self.added))

    @property
    def tricks(self) -> dict[str, Any]:
        """What any method could have and the experiment has, by dotted keys; what a recipe adds once it is resolved."""
        training = {name: getattr(self.training, name) for name in TRICKS}
        found = {f"training.{name}": value for name, value in training.items() if value not in (None, 0, CONSTANT)}
        plain = asdict(ServerOptimiserConfig())
        server = asdict(self.server or ServerOptimiserConfig())
        return found | {f"server.{name}": value for name, value in server.items() if value != plain[name]}

    def resolved(self, y: Tensor) -> Self:
        """Return the experiment with what the recipe adds, for targets like `y`; once more it adds nothing."""
        added = _table("training", self.added)
        if not len(self.training.criterion.labels(y[:1])):
            added.pop("balance", None)
        training = replace(self.training, **added)
        return self.model_copy(update={"training": training, "server": self.optimiser, "recipe": "none"})

    @property
    def devices(self) -> int:
        """The number of devices over all tiers."""
        return sum(tier.devices for tier in self.tiers.values())

    @property
    def widths(self) -> list[float]:
        """The tiers' widths, smallest first."""
        return sorted({tier.width for tier in self.tiers.values()})

    @property
    def unused(self) -> tuple[str, ...]:
        """What the file says of simulated devices, which a run over real ones does not use."""
        mine = set(self.model_fields_set) & set(SIMULATED)
        return tuple(key for key in SIMULATED if key in mine or key in self._unused)

    def network(self, input_shape: tuple[int, ...], classes: int, outputs: tuple[int, ...] = ()) -> ModelConfig:
        """Return the global model's configuration for the given data. Raises `ModelError`.

        Args:
            input_shape: of one example.
            classes: rows of the classifier; of a model that gives values, how many.
            outputs: the shape of what the model gives for one example; empty for `[classes]`.

        """
        fields = {name: getattr(self.model, name) for name in FIELDS}
        fields["options"] = tuple(sorted(self.model.options.items()))
        fields["outputs"] = () if outputs == (classes,) else outputs
        return ModelConfig.of(input_shape=input_shape, classes=classes, **fields)

    def changed(self, **changes: Any) -> Self:
        """Return a copy with some keys changed, checked again; a dotted key is written with two underscores.

        Raises `ExperimentError`.
        """
        document = self.document()
        for key, value in changes.items():
            toml.put(document, key.split("__"), value)
        return type(self).parse(document, self.name)

    def document(self) -> dict[str, Any]:
        """Return what `parse` makes the same experiment of."""
        return self.model_dump(exclude=None if "method" in self.model_fields_set else {"method"})

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Read an experiment from a TOML file, with some keys changed: `table.key=value`. Raises `ExperimentError`."""
        return cls.parse(toml.read(path, overrides), str(path))

    @classmethod
    def parse(cls, document: Mapping[str, Any], source: str) -> Self:
        """Return the experiment in a parsed TOML document. Raises `ExperimentError` naming every wrong key.

        What only simulations know is left unread, if this is none, and remembered in `unused`.
        """
        toml.check_bounds(document, source)
        foreign = [key for key in SIMULATED if key in document and key not in cls.model_fields]
        try:
            found = cls.model_validate({key: value for key, value in document.items() if key not in foreign})
        except ValidationError as error:
            raise ExperimentError(f"{source}: {one_line(error, _schema(cls))}") from None
        except DiastoleError as error:
            raise ExperimentError(f"{source}: {error}") from None
        found._unused = tuple(foreign)
        return found


def _table(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of one table among dotted keys."""
    return {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}


FIELDS = tuple(name for name in Network.model_fields if name not in ("initial", "fresh", "statistics"))


@cache
def _schema(kind: type[Experiment]) -> dict[str, Any]:
    """Return the JSON schema of an experiment, which takes long to make."""
    return kind.model_json_schema()
