"""`[sweep]`: which keys a sweep tries values of, and how it chooses."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from diastole.experiments import toml
from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import SIMULATED
from diastole.experiments.section import Section

MOST_TRIALS, MOST_PARAMETERS, MOST_CHOICES, MOST_SEEDS = 100_000, 32, 1000, 1000

FIXED = ("name", "seed", "method", "data", "tiers", "limits", "metrics", *SIMULATED)
"""Keys and tables that say what the task is, or only how it is simulated."""


class Range(Section):
    """Numbers from `low` to `high`, both among them; whole numbers if all that is given is whole.

    Attributes:
        low: the least.
        high: the greatest.
        log: whether a search draws their logarithms evenly.
        step: between two numbers; None for any number.

    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = Field(default=None, gt=0)

    @property
    def whole(self) -> bool:
        """Whether the numbers are whole."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low}: must be below high {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(f"log: needs low above 0, not {self.low}, and no step")
        return self


Choices = Annotated[
    tuple[bool | int | float | str | tuple[Any, ...], ...], Field(min_length=1, max_length=MOST_CHOICES)
]


class Sweep(Section):
    """`[sweep]`: values of keys that are tried for each method, and how the best are chosen.

    Attributes:
        parameters: a range or a list of values for each key, such as "training.learning_rate".
        trials: how many points are tried for each method; None for every combination of lists.
        methods: that are swept, unless the command names others.
        seeds: runs of each trial, from the experiment's seed on; the mean counts.
        batch: trials that are drawn at a time, without knowing of each other.
        sampler: how trials are drawn: "tpe" learns from those before, "random" does not.
        metric: what is compared: a figure of a run, such as "mean_tier_accuracy"; empty for the global model's.
        validation: where: on this share of the training examples, which no device of a trial gets, or on the
            validation part of the "proxy" set. Never on the test set.
        prune: the round from which on a drawn trial is ended when, at its first seed, its best score so far is behind
            the median of the trials before it at that round (the median rule of Optuna); 0: never.

    """

    parameters: dict[str, Range | Choices] = Field(default_factory=dict, max_length=MOST_PARAMETERS)
    trials: int | None = Field(default=None, ge=1, le=MOST_TRIALS)
    methods: tuple[str, ...] = ()
    seeds: int = Field(default=1, ge=1, le=MOST_SEEDS)
    batch: int = Field(default=1, ge=1, le=MOST_TRIALS)
    sampler: Literal["tpe", "random"] = "tpe"
    metric: str = ""
    validation: Literal["proxy"] | Annotated[float, Field(gt=0, lt=1)] = 0.1
    prune: int = Field(default=0, ge=0, le=MOST_TRIALS)

    @field_validator("parameters", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        return dict(_flat(value)) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for key in self.parameters:
            if key.split(".")[0] in FIXED:
                raise ValueError(f"parameters: {key} says what the task is; how models are trained may be swept")
        if self.trials is None:
            for key, values in self.parameters.items():
                if isinstance(values, Range):
                    raise ValueError(f"trials: needed, because {key} is a range")
        return self

    def of(self, method: str) -> dict[str, "Range | Choices"]:
        """Return the parameters that a method has: options of other methods are none of its own."""
        others = [key for key in self.parameters if key.startswith("methods.")]
        others = [key for key in others if not key.startswith(f"methods.{method}.")]
        return {key: values for key, values in self.parameters.items() if key not in others}


def combinations(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every combination of lists of values, the last key's changing fastest."""
    return [dict(zip(parameters, values, strict=True)) for values in product(*parameters.values())]


def grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Return the lists of values in `table.key=value,value` texts. Raises `ExperimentError`."""
    found = dict[str, list[Any]]()
    for text in texts:
        read = toml.Override.read(text)
        value = text.partition("=")[2]
        try:
            values = toml.Override.read(f"values=[{value}]").value
        except ExperimentError:
            values = value
        if not isinstance(values, list):
            values = [toml.Override.read(f"value={part.strip()}").value for part in value.split(",")]
        if not values or "" in values:
            raise ExperimentError(f"{text[:100]!r}: a grid reads table.key=value,value")
        found[".".join(read.keys)] = values
    return found


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is in tables of tables under dotted keys, a range being no such table."""
    for key, value in table.items():
        if isinstance(value, Mapping) and not set(value) & set(Range.model_fields):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
