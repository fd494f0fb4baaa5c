"""Curves in files."""

import csv
import json
import sys
from pathlib import Path

import pytest

from diastole.server.events import RoundClosed, RunStarted
from diastole.simulations.errors import ExperimentError
from diastole.simulations.experiment import Experiment
from diastole.simulations.trackers import TRACKERS, scalars, track

CLOSED = RoundClosed(3, 7, "", 0.5, {"width 0.5": 0.25}, 10, 20, 1.5)


def test_files_are_appended_to(tmp_path: Path) -> None:
    for _ in range(2):
        with track(["csv", "jsonl"], Experiment(), tmp_path) as observers:
            for observer in observers:
                observer(RunStarted("width", 5, ("a",)))
                observer(CLOSED)
    rows = list(csv.DictReader((tmp_path / "rounds.csv").open()))
    assert [(row["round"], row["accuracy"], row["bytes_up"]) for row in rows] == [("3", "0.5", "20")] * 2
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events] == ["run_started", "round_closed"] * 2
    assert events[1]["tier_accuracy"] == {"width 0.5": 0.25}


def test_what_was_not_measured_is_left_out() -> None:
    assert scalars(CLOSED)["accuracy/width 0.5"] == 0.25
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
