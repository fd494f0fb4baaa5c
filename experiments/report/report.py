"""What a run leaves behind: numbers for programs, pictures for people, the models."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diastole.experiments.errors import ExperimentError
from diastole.experiments.field import Spent
from diastole.experiments.personal import as_dict as personal_dict
from diastole.experiments.report.figures import can_draw, write_figures
from diastole.experiments.report.metric import reached
from diastole.experiments.report.picture import figure, partition_figure, personal_figure
from diastole.experiments.result import Result
from diastole.proto.files import write_bytes
from diastole.proto.jsontext import from_json
from diastole.server.events import RoundClosed, finite
from diastole.server.events import as_dict as event_dict

REPORT = "report.json"

PICTURES = ("curves", "partition", "personal")


def as_dict(result: Result) -> dict[str, Any]:
    """Return everything but the tensors, for JSON; the keys of accuracy are null where it is not measured."""
    document = {
        "diastole": version("diastole"),
        "run": result.run_id,
        "experiment": result.experiment.model_dump(mode="json"),
        "finished": result.finished,
        "early": result.early,
        "failed": result.failed,
        "metrics": list(result.metrics),
        "scores": {result.experiment.method: result.scores},
        "accuracy": {result.experiment.method: result.accuracy},
        "tiers": [asdict(row) | {"accuracy": row.accuracy} for row in result.tiers],
        "devices": [asdict(row) for row in result.devices],
        "rounds": _rounds(result.rounds),
        "rolled_back": [
            {"round": each.round, "at": each.at, "rounds": _rounds(each.undone)} for each in result.rollbacks
        ],
        "personal": personal_dict(result.personal, result.metric),
        "field": _field(result),
    }
    found: dict[str, Any] = finite(document)
    return found


def write(result: Result, folder: Path, figures: Sequence[str] = ("png",)) -> list[Path]:
    """Write the models, the report and, if there is matplotlib, pictures into `folder`; return the paths.

    `figures` are the kinds of pictures (`experiments/report/figures.py`). Raises `ExperimentError` if the result is
    unfinished and the folder holds a finished one.
    """
    if not result.finished and holds_finished(folder):
        raise ExperimentError(
            f"{folder} holds the result of a finished run, which this unfinished one does not replace; "
            "choose another folder"
        )
    # What cannot be had again for less than the run comes first.
    paths = [folder / "model.safetensors", folder / REPORT]
    result.file.write(paths[0])
    write_bytes(paths[1], (json.dumps(as_dict(result), indent=2) + "\n").encode())
    pictures: dict[str, Any] = dict.fromkeys(PICTURES)
    if can_draw():
        pictures["curves"] = figure(result)
        if result.dealt is not None:
            pictures["partition"] = partition_figure(result, result.dealt)
        if result.personal:
            pictures["personal"] = personal_figure(result)
    return paths + write_figures(folder, pictures, figures)


def holds_finished(folder: Path) -> bool:
    """Return whether there is the report of a finished run in a folder."""
    try:
        return bool(from_json((folder / REPORT).read_text())["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def time_to_target(rounds: Sequence[RoundClosed], target: float, metric: str = "accuracy") -> float | None:
    """Return the seconds from the start of the first round to the close of the first that reached `target`.

    They are virtual if the rounds were run on a virtual clock. None if no evaluated round reached it. `target` is
    a value of the global model's `metric`, shares in [0, 1]; a run reaches it from the side that is worse.
    """
    seconds = 0.0
    for closed in rounds:
        seconds += closed.seconds
        if reached(metric, (closed.scores or {}).get(metric), target):
            return seconds
    return None


def _field(result: Result) -> dict[str, Any] | None:
    """Return what a run cost in the field; seconds are virtual, and of a round from its start to its end."""
    if result.field is None:
        return None
    rounds = []
    for closed in result.rounds:
        spent = result.field.rounds.get(closed.round, Spent())
        costs = {"seconds": closed.seconds, "joules": spent.joules, "down": spent.down, "up": spent.up}
        rounds.append({"round": closed.round} | costs)
    return {
        "seconds": result.field.seconds,
        "joules": sum(spent.joules for spent in result.field.devices.values()),
        "rounds": rounds,
        "devices": {name: asdict(spent) for name, spent in result.field.devices.items()},
    }


def _rounds(rounds: Sequence[RoundClosed]) -> list[dict[str, Any]]:
    return [event_dict(closed) for closed in rounds]
