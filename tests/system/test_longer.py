"""A finished run that is given more rounds comes to what all of them at once come to."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diastole.experiments.checkpoint import Checkpoint
from diastole.experiments.errors import ExperimentError
from diastole.models.methods.registry import METHODS
from diastole.server.events import Event, RoundClosed
from diastole.simulations.compare import compare
from diastole.simulations.compared import Standing
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate, simulate_in
from diastole.simulations.simulation import Simulation

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def experiment(count: int, **changes: Any) -> Simulation:
    document = {
        "seed": 5,
        "data": {"proxy": 20},
        "model": {"widths": [8, 8]},
        "rounds": {"count": count, "evaluate_every": 2},
        "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 2, "width": 0.5}},
    }
    return Simulation.parse(document | changes, "test")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"server": {"name": "fedadam", "learning_rate": 0.01}}, marks=pytest.mark.slow),
        {"population": {"preset": "phones", "pause": 14400.0}},
        pytest.param({"method": "diastole", "data": {"proxy": 40}, "proxy": {"epochs": 1}}, marks=pytest.mark.slow),
        pytest.param(
            {"method": "depthfl", "recipe": "none", "methods": {"depthfl": {"ramp": 0.0}}}, marks=pytest.mark.slow
        ),
    ],
    ids=["optimiser", "population", "diastole", "depthfl without a ramp"],
)
def test_more_rounds_are_those_of_one_long_run(changes: dict[str, Any], tmp_path: Path) -> None:
    whole = simulate(make_federation(experiment(4, **changes)))
    simulate_in(tmp_path, make_federation(experiment(1, **changes)))
    first, _ = simulate_in(tmp_path, make_federation(experiment(3, **changes)), track=["csv"])
    found, _ = simulate_in(tmp_path, make_federation(experiment(4, **changes)), track=["csv"])
    assert all(torch.equal(found.state[name], whole.state[name]) for name in whole.state)
    spent = [{n: (a.accepted, a.macs, a.bytes_down) for n, a in o.accounts.items()} for o in (found, whole)]
    assert spent[0] == spent[1]
    assert found.field == whole.field
    # A last round is always evaluated; it is the last no longer.
    assert [r.scores is not None for r in first.rounds] == [False, True, True]
    assert [r.scores for r in found.rounds] == [r.scores for r in whole.rounds]
    assert [r.scores is not None for r in found.rounds] == [False, True, False, True]
    assert [line.split(",")[0] for line in (tmp_path / "rounds.csv").read_text().splitlines()] == ["round", *"1234"]


def test_the_same_command_starts_anew_and_so_do_fewer_rounds(run: Run, tmp_path: Path) -> None:
    (tmp_path / "it.toml").write_text("[model]\nwidths = [8, 8]\n[tiers]\none = { devices = 1, width = 0.5 }\n")
    command = ("simulate", tmp_path / "it.toml", "--out", tmp_path)
    assert run(*command, "--set", "rounds.count=2")[0] == 0
    for count, behind in ((2, ""), (3, "going on after round 2"), (1, "")):
        code, text, _ = run(*command, "--set", f"rounds.count={count}")
        assert (code, behind in text, "going on" in text) == (0, True, bool(behind))
        assert len(json.loads((tmp_path / "report.json").read_text())["rounds"]) == count


def test_a_method_with_a_schedule_is_refused(tmp_path: Path) -> None:
    for method in ("depthfl", "scalefl", "superfednas", "deps", "snnet", "snnetv2"):
        assert experiment(2, method=method).scheduled, method
    without = {"snnet": {"warmup": 0.0}, "depthfl": {"ramp": 0.0}, "scalefl": {"after": 0.0}, "ofa": {}, "width": {}}
    for method, options in without.items():
        assert not experiment(2, method=method, recipe="none", methods={method: options}).scheduled, method
    simulate_in(tmp_path, make_federation(experiment(1, method="depthfl", recipe="none")))
    longer = make_federation(experiment(2, method="depthfl", recipe="none"))
    with pytest.raises(
        ExperimentError, match="cannot go on to 2 rounds, because the rounds of method depthfl"
    ) as caught:
        simulate_in(tmp_path, longer)
    assert "\n" not in str(caught.value)
    assert len(simulate_in(tmp_path, longer, fresh=True)[0].rounds) == 2


class StoppedError(BaseException):
    """Stands for the end of a process."""


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if not METHODS[name].each_width])
def test_a_method_without_a_schedule_does_not_look_at_the_number_of_rounds(method: str, tmp_path: Path) -> None:
    changes = {
        "method": method,
        "recipe": "none",
        "data": {"proxy": 40},
        "proxy": {"epochs": 1},
        "model": {"widths": [8, 16]},
    }
    if experiment(1, **changes).scheduled:
        return

    def stop(event: Event) -> None:
        if isinstance(event, RoundClosed):
            raise StoppedError

    first = simulate(make_federation(experiment(1, **changes)))
    settings = experiment(7, **changes)
    made = make_federation(settings)
    kept = Checkpoint(tmp_path / "run.checkpoint", settings, made.run.dataset.digest)
    with pytest.raises(StoppedError):
        simulate(made, (stop,), kept)
    snapshot = kept.check()
    assert snapshot is not None
    assert all(torch.equal(snapshot.state[name], tensor) for name, tensor in first.state.items())


def test_a_comparison_is_given_more_rounds(tmp_path: Path) -> None:
    whole = compare(experiment(2), ["smallest"], [5], tmp_path / "whole")
    compare(experiment(1), ["smallest"], [5], tmp_path / "out", track=["jsonl"])
    told = list[Standing]()
    found = compare(experiment(2), ["smallest"], [5], tmp_path / "out", told.append, track=["jsonl"])
    assert [s.round for s in told if s.run.name == "smallest-seed5"] == [1, 2, 2]
    (a,), (b,) = whole.runs["smallest"], found.runs["smallest"]
    assert (a.scores, a.tiers, [r.bytes for r in a.rounds]) == (b.scores, b.tiers, [r.bytes for r in b.rounds])
    lines = (tmp_path / "out" / "runs" / "smallest-seed5" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["round"] for event in events if event["kind"] == "round_closed"] == [1, 2]
    with pytest.raises(ExperimentError, match="of another experiment; start afresh"):
        compare(experiment(1), ["smallest"], [5], tmp_path / "out")
