"""Where a run's curves go besides the report: files, and trackers that are installed."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.proto.files import write_bytes
from diastole.proto.missing import needed
from diastole.server.events import Event, Observer, RoundClosed, as_dict, kind

Log = Callable[[Mapping[str, float], int], None]
CURVES = "events.out.tfevents.*"
COSTS = ("bytes_down", "bytes_up", "seconds", "abandoned")


@contextmanager
def track(
    names: list[str], experiment: Experiment, folder: Path, closed: Sequence[RoundClosed] = ()
) -> Iterator[tuple[Observer, ...]]:
    """Yield an observer for each named tracker; leaving the block closes them.

    "csv" writes a row a round to `rounds.csv` and "jsonl" every event to `events.jsonl`, both in `folder`, and
    "tensorboard" writes to `folder/tensorboard`. A run that goes on behind the rounds `closed` goes on there: what a
    killed process wrote of later ones is dropped, and what it had not yet written of these is made up for. Any other
    run begins anew, and what an earlier run's trackers left in `folder` is removed. "mlflow" and "wandb" go where those
    libraries are set up to send, each process as a run of its own. Raises `ExperimentError` for a name that is not
    known or not installed.
    """
    trackers = [_tracker(name) for name in names]
    if not closed:
        remove_curves(folder)
    with ExitStack() as stack:
        yield tuple(stack.enter_context(tracker(experiment, folder, closed)) for tracker in trackers)


def check_names(names: Sequence[str]) -> None:
    """Raise `ExperimentError` for a name of no tracker."""
    for name in names:
        _tracker(name)


def remove_curves(folder: Path) -> None:
    """Remove the files that trackers of an earlier run left in `folder`, so that none lies beside a new report."""
    curves = folder / "tensorboard"
    for path in (folder / "rounds.csv", folder / "events.jsonl", *curves.glob(CURVES)):
        path.unlink(missing_ok=True)
    if curves.is_dir() and not any(curves.iterdir()):
        curves.rmdir()


def scalars(event: RoundClosed) -> dict[str, float]:
    """Return a closed round's numbers by name; those of a size are named "accuracy/LABEL", "loss/LABEL" and so on."""
    found = {
        "updates": float(event.updates),
        "bytes_down": float(event.bytes_down),
        "bytes_up": float(event.bytes_up),
        "seconds": event.seconds,
    }
    if event.validation is not None:
        found["validation"] = event.validation
    tiers = {f"{name}/{label}": value for label, row in event.tier_scores.items() for name, value in row.items()}
    return (event.scores or {}) | found | tiers


@contextmanager
def _csv(experiment: Experiment, folder: Path, closed: Sequence[RoundClosed]) -> Iterator[Observer]:
    names, rows = ["round", "updates", *COSTS], list[dict[str, object]]()
    with (folder / "rounds.csv").open("w", newline="") as file:
        csv.DictWriter(file, names).writeheader()

        def write(event: Event) -> None:
            if not isinstance(event, RoundClosed):
                return
            counts = {name: getattr(event, name) for name in ("round", "updates", *COSTS)}
            rows.append(scalars(event) | counts)
            new = [name for name in rows[-1] if name not in names]
            # Behind the updates, in the order in which they are found in a round that was evaluated.
            names[2:2] = new
            writer = csv.DictWriter(file, names)
            if new:
                file.seek(0)
                file.truncate()
                writer.writeheader()
            writer.writerows(rows if new else rows[-1:])
            file.flush()

        for event in closed:
            write(event)
        yield write


@contextmanager
def _jsonl(experiment: Experiment, folder: Path, closed: Sequence[RoundClosed]) -> Iterator[Observer]:
    path = folder / "events.jsonl"
    written = _rewound(path, len(closed))
    with path.open("a") as file:

        def write(event: Event) -> None:
            file.write(json.dumps({"kind": kind(event)} | as_dict(event)) + "\n")
            file.flush()

        for event in closed[written:]:
            write(event)
        yield write


@contextmanager
def _tensorboard(experiment: Experiment, folder: Path, closed: Sequence[RoundClosed]) -> Iterator[Observer]:
    folder /= "tensorboard"
    library = _library("tensorboard", "torch.utils.tensorboard")
    # The last one once more: a process may have been killed before it had written it.
    writer = library.SummaryWriter(str(folder), purge_step=max(1, len(closed)))

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    observe = _rounds(log)
    for event in closed[-1:]:
        observe(event)
    try:
        yield observe
    finally:
        writer.close()


@contextmanager
def _mlflow(experiment: Experiment, folder: Path, closed: Sequence[RoundClosed]) -> Iterator[Observer]:
    mlflow = _library("mlflow")
    with mlflow.start_run(run_name=experiment.name):
        mlflow.log_params({"method": experiment.method, "seed": experiment.seed})
        yield _rounds(lambda values, step: mlflow.log_metrics(dict(values), step=step))


@contextmanager
def _wandb(experiment: Experiment, folder: Path, closed: Sequence[RoundClosed]) -> Iterator[Observer]:
    run = _library("wandb").init(project="diastole", name=experiment.name, config=experiment.model_dump(mode="json"))
    try:
        yield _rounds(lambda values, step: run.log(dict(values), step=step))
    finally:
        run.finish()


TRACKERS = {"csv": _csv, "jsonl": _jsonl, "tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}


def _rewound(path: Path, closed: int) -> int:
    """Cut a file of events off behind round `closed`, or the last before it that is there; return its number."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    found = re.compile(rb'\{"kind": "round_closed", "round": (\d+),.*\n')
    ends = {int(match[1]): k for k, line in enumerate(lines, 1) if (match := found.fullmatch(line))}
    last = max((number for number in ends if number <= closed), default=0)
    write_bytes(path, b"".join(lines[: ends.get(last, 0)]))
    return last


def _tracker(name: str) -> Callable[[Experiment, Path, Sequence[RoundClosed]], Any]:
    if name not in TRACKERS:
        raise ExperimentError(f"unknown tracker {name!r}; known: {', '.join(TRACKERS)}")
    return TRACKERS[name]


def _library(name: str, module: str | None = None) -> Any:
    with needed(ExperimentError, "tracker", name, name):
        return import_module(module or name)


def _rounds(log: Log) -> Observer:
    def observe(event: Event) -> None:
        if isinstance(event, RoundClosed):
            log(scalars(event), event.round)

    return observe
