"""Curves in files."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.experiments.report.trackers import TRACKERS, scalars, track
from diastole.server.events import RoundClosed, RunStarted

CLOSED = RoundClosed(
    3, 7, "", {"accuracy": 0.5, "loss": 2.0}, {"width 0.5": {"accuracy": 0.25, "loss": 3.0}}, 10, 20, 1.5
)


def scored(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "loss": 2.0}


def write(names: list[str], folder: Path, closed: int, *rounds: int, accuracy: float = 0.5) -> None:
    """Track a run that goes on behind `closed` rounds and closes these."""
    earlier = [replace(CLOSED, round=number, scores=scored(0.25)) for number in range(1, closed + 1)]
    with track(names, Experiment(), folder, earlier) as observers:
        for event in (RunStarted("width", 12, ("a",), closed), *rounds):
            for observer in observers:
                observer(replace(CLOSED, round=event, scores=scored(accuracy)) if isinstance(event, int) else event)


def read_files(folder: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Return round and accuracy of every row, and the kind of every event with its round."""
    rows = [(row["round"], row["accuracy"]) for row in csv.DictReader((folder / "rounds.csv").open())]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return rows, [f"{event['kind']} {event.get('round', event.get('closed'))}" for event in events]


def test_files_have_a_row_a_round_and_a_line_an_event(tmp_path: Path) -> None:
    write(["csv", "jsonl"], tmp_path, 0, 3)
    [row] = csv.DictReader((tmp_path / "rounds.csv").open())
    assert list(row) == [
        *("round", "updates", "accuracy", "loss", "accuracy/width 0.5", "loss/width 0.5"),
        *("bytes_down", "bytes_up", "seconds", "abandoned"),
    ]
    assert [row[name] for name in ("round", "updates", "accuracy", "loss", "bytes_up")] == [
        "3",
        "7",
        "0.5",
        "2.0",
        "20",
    ]
    assert (row["accuracy/width 0.5"], row["loss/width 0.5"]) == ("0.25", "3.0")
    started, closed = (json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert (started["kind"], closed["kind"]) == ("run_started", "round_closed")
    assert (closed["scores"], closed["tier_scores"]) == (CLOSED.scores, CLOSED.tier_scores)
    # Of readers that know accuracy only.
    assert (closed["accuracy"], closed["tier_accuracy"]) == (0.5, {"width 0.5": 0.25})


def test_files_begin_anew_with_a_run_and_go_on_with_one_that_goes_on(tmp_path: Path) -> None:
    files = ["csv", "jsonl"]
    write(files, tmp_path, 0, 1, 2, 3)
    write(files, tmp_path, 0, 1, 2, accuracy=0.25)
    assert read_files(tmp_path)[0] == [("1", "0.25"), ("2", "0.25")]
    # Killed between the row of round 2 and its checkpoint, and within the next line.
    for name in ("rounds.csv", "events.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write('{"kin' if name == "events.jsonl" else "1")
    write(files, tmp_path, 1, *range(2, 13))
    rows, events = read_files(tmp_path)
    assert rows == [("1", "0.25"), *((str(k), "0.5") for k in range(2, 13))]
    closed = [f"round_closed {k}" for k in range(2, 13)]
    assert events == ["run_started 0", "round_closed 1", "run_started 1", *closed]
    # Round 1 is not round 12.
    write(files, tmp_path, 1)
    assert read_files(tmp_path) == ([("1", "0.25")], ["run_started 0", "round_closed 1", "run_started 1"])


def test_what_a_killed_process_had_not_written_of_a_round_that_had_closed_is_made_up_for(tmp_path: Path) -> None:
    files = ["csv", "jsonl"]
    write(files, tmp_path, 0, 1, accuracy=0.25)
    write(files, tmp_path, 3, 4)
    rows, events = read_files(tmp_path)
    assert rows == [("1", "0.25"), ("2", "0.25"), ("3", "0.25"), ("4", "0.5")]
    closed = ["round_closed 1", "round_closed 2", "round_closed 3"]
    assert events == ["run_started 0", *closed, "run_started 3", "round_closed 4"]


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return every scalar's steps and values, as TensorBoard shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    found = accumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_shows_every_number_of_one_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    write(["tensorboard"], tmp_path, 0, 1, 2, 3)
    found = read_tensorboard(tmp_path)
    assert {tag: len(steps) for tag, steps in found.items()} == dict.fromkeys(scalars(CLOSED), 3)
    assert found["accuracy/width 0.5"] == [(1, 0.25), (2, 0.25), (3, 0.25)]
    write(["tensorboard"], tmp_path, 0, 1, 2, accuracy=0.25)
    assert read_tensorboard(tmp_path)["accuracy"] == [(1, 0.25), (2, 0.25)]
    # Killed between round 2 and its checkpoint.
    write(["tensorboard"], tmp_path, 1, 2, 3)
    assert read_tensorboard(tmp_path)["accuracy"] == [(1, 0.25), (2, 0.5), (3, 0.5)]


def test_a_wrong_name_empties_no_file(tmp_path: Path) -> None:
    write(["csv"], tmp_path, 0, 1)
    with pytest.raises(ExperimentError), track(["csv", "clearml"], Experiment(), tmp_path):
        pass
    assert "1," in (tmp_path / "rounds.csv").read_text()


def test_what_was_not_measured_is_left_out() -> None:
    assert scalars(CLOSED)["loss/width 0.5"] == 3.0
    assert "accuracy" not in scalars(RoundClosed(1, 0, "", None, {}, 0, 0, 0.0))


def test_a_tracker_that_is_not_known_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(ExperimentError, match="unknown tracker 'clearml'; known: csv"),
        track(["clearml"], Experiment(), tmp_path),
    ):
        pass


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name in TRACKERS
    monkeypatch.setitem(sys.modules, {"tensorboard": "torch.utils.tensorboard"}.get(name, name), None)
    with pytest.raises(ExperimentError, match=f"pip install {name}"), track([name], Experiment(), tmp_path):
        pass
