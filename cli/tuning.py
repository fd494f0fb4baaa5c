"""What `diastole tune` reads: which keys are tried, over which values, and how."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diastole.experiments import toml
from diastole.experiments.errors import ExperimentError
from diastole.experiments.sweep.ranges import ranges, space_of
from diastole.experiments.sweep.space import grid as values_of
from diastole.simulations.compared import NEUTRAL
from diastole.simulations.simulation import Simulation

TRIALS, EVERY = 20, 4
"""Trials for each method if a key has a range and nothing says how many; and in which round any may be ended: one in so
many.
"""


def planned(keys: str, given: Sequence[str], grid: Sequence[str]) -> dict[str, Any]:
    """Return what is to be tried by key; None for a key whose range is to be looked up. Raises `ExperimentError`."""
    named = dict.fromkeys(key.strip() for key in keys.split(",") if key.strip())
    found = {**named, **{key: values.model_dump() for key, values in ranges(given).items()}, **values_of(grid)}
    double = [
        key
        for key in found
        if (key in named) + sum(text.partition("=")[0].strip() == key for text in (*given, *grid)) > 1
    ]
    if double:
        raise ExperimentError(f"{double[0]}: is named twice; once in --keys, --range or --grid is accepted")
    return found


def sweeping(
    path: Path,
    overrides: Sequence[str],
    methods: Sequence[str],
    parameters: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> Simulation:
    """Return the experiment with what is to be tried, by its `[sweep]` where nothing else was `asked`.

    Of lists alone, every combination is tried, unless a number of trials is said.
    """
    document = toml.read(path, overrides) | {"method": NEUTRAL}
    table = document.pop("sweep", None)
    plain = Simulation.parse(document, str(path))
    table = dict(table) if isinstance(table, dict) else {}
    if parameters:
        table["parameters"] = {
            key: space_of(key, plain) if values is None else values for key, values in parameters.items()
        }
    if not table.get("parameters"):
        raise ExperimentError("nothing to tune: --keys, --range, --grid or [sweep] parameters in the file are needed")
    if not all(isinstance(values, list) for values in table["parameters"].values()):
        table = {"trials": TRIALS} | table
    table = {"prune": max(1, plain.rounds.count // EVERY)} | table
    table |= {key: value for key, value in asked.items() if value is not None}
    if isinstance(part := table.get("validation"), str) and part != "proxy":
        try:
            table["validation"] = float(part)
        except ValueError:
            raise ExperimentError(
                f'--validation {part!r}: a share below 1, such as 0.1, or "proxy" is accepted'
            ) from None
    return plain.changed(sweep=_plain(table))


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table without models of pydantic's."""
    parameters = {k: v.model_dump() if hasattr(v, "model_dump") else v for k, v in table["parameters"].items()}
    return {**table, "parameters": parameters}
