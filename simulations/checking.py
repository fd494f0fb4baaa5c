"""An experiment looked at, and not run: what is wrong with it, or what a run of it would be."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diastole.experiments import toml
from diastole.models.spec import faults_of, keys_of
from diastole.proto.errors import DiastoleError
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.methods import Fit, fits
from diastole.simulations.simulation import Simulation

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""What pydantic calls a key that there is not."""

DEEPEST = 3
"""Tables within tables in which a key is looked for."""


@dataclass(frozen=True, slots=True)
class Planned:
    """What a run would be.

    Attributes:
        name: the experiment's.
        method: that is run.
        network: the global model.
        parameters: of the global model; None if no size is exported.
        training: examples that devices train on.
        test: examples of the test set.
        proxy: the server's own examples.
        rounds: how many.
        cohort: devices of a round.
        devices: how many there are, by tier.
        sizes: the largest size that fits each tier; None where none does.
        metrics: what models are judged by.
        tricks: that any method could have and that the run has, by keys of an experiment.
        recipe: those of them that the recipe of the method's paper has set.
        unused: what `diastole serve` does not use.

    """

    name: str
    method: str
    network: str
    parameters: int | None
    training: int
    test: int
    proxy: int
    rounds: int
    cohort: int
    devices: dict[str, int]
    sizes: dict[str, Fit | None]
    metrics: tuple[str, ...]
    tricks: dict[str, Any]
    recipe: tuple[str, ...]
    unused: tuple[str, ...]


def check(path: Path, overrides: Sequence[str] = ()) -> tuple[list[str], Planned | None]:
    """Return what is wrong with an experiment's file, one line each; or else what a run of it would be.

    The data set is read, and the model is made. Raises `ExperimentError` for a file that is no TOML.
    """
    document = toml.read(path, overrides)
    toml.check_bounds(document, str(path))
    try:
        settings = Simulation.model_validate(document)
    except ValidationError as error:
        schema = Simulation.model_json_schema()
        found = zip(error.errors(), faults_of(error, schema), strict=True)
        return [text + _meant(schema, fault["loc"], fault["type"]) for fault, text in found], None
    except DiastoleError as error:
        return [str(error)], None
    try:
        return [], _planned(make_federation(settings), settings.added)
    except DiastoleError as error:
        return [str(error)], None


def _planned(federation: Federation, added: Mapping[str, Any]) -> Planned:
    run, settings = federation.run, federation.simulation
    tricks = settings.tricks
    sizes = run.method().offers()
    model, devices = run.model, {name: tier.devices for name, tier in settings.tiers.items()}
    return Planned(
        name=settings.name,
        method=settings.method,
        network=f"{model.name} {'x'.join(map(str, model.input_shape))} to {model.classes}",
        parameters=max((size.cost.parameters for size in sizes), default=None),
        training=len(run.dataset.train) - (settings.data.proxy or 0),
        test=len(run.test),
        proxy=settings.data.proxy,
        rounds=settings.rounds.count,
        cohort=min(settings.rounds.cohort or settings.devices, settings.devices),
        devices=devices,
        sizes=fits(federation, sizes),
        metrics=run.metrics,
        tricks=tricks,
        recipe=tuple(key for key in tricks if key in added),
        unused=settings.unused,
    )


def _meant(schema: Mapping[str, Any], loc: Sequence[int | str], kind: str) -> str:
    """Return what an unknown key may have been meant to be."""
    if kind not in UNKNOWN:
        return ""
    *table, name = map(str, loc)
    if near := get_close_matches(name, keys_of(schema, table), 1):
        return f"; did you mean {'.'.join((*table, near[0]))}?"
    everywhere = {".".join(path): path[-1] for path in _paths(schema, ())}
    # The very name in another table, or else one that is like it.
    same = [path for path, last in everywhere.items() if last == name]
    alike = get_close_matches(name, everywhere.values(), 1, 0.8)
    same = same or [path for path, last in everywhere.items() if alike and last == alike[0]]
    return f"; did you mean {same[0]}?" if same else ""


def _paths(schema: Mapping[str, Any], table: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for key in keys_of(schema, table):
        yield (*table, key)
        if len(table) + 1 < DEEPEST:
            yield from _paths(schema, (*table, key))
