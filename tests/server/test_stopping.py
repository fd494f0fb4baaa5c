"""A run that ends itself: by the validation part of the proxy set alone, and the same after a kill."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted import MODEL, TRAINING, ScriptedLink, examples, only

from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.models.methods.registry import make_method
from diastole.models.networks.family import initial_state
from diastole.models.proxy import Proxy
from diastole.models.training import Examples
from diastole.server.coordinator import Coordinator
from diastole.server.events import Event, RoundClosed, RunFinished, RunStarted
from diastole.server.settings import RoundConfig, Settings
from diastole.server.snapshot import Snapshot
from diastole.server.stopping import StoppingConfig, early_end


def rounds(values: list[float | None]) -> list[RoundClosed]:
    return [RoundClosed(k, 1, "", None, {}, 0, 0, 0.0, validation=value) for k, value in enumerate(values, 1)]


def obvious(values: list[float | None], patience: int, least: float, *, higher: bool) -> bool:
    """Return whether a run ends behind these rounds: nothing in the last `patience` beat the record before them."""
    if not values or values[-1] is None:
        return False
    records, best = [0], None
    for number, value in enumerate(values, 1):
        if value is None or not math.isfinite(value):
            continue
        if best is None or (value - best > least if higher else best - value > least):
            best = value
            records.append(number)
    return len(values) - records[-1] >= patience


@pytest.mark.parametrize("metric", ["accuracy", "mae", "loss"])
def test_a_run_ends_once_so_many_rounds_have_brought_nothing(metric: str) -> None:
    draws = random.Random(metric)
    ended = 0
    for _ in range(300):
        values = [draws.choice([None, math.nan, *(k / 4 for k in range(5))]) for _ in range(draws.randint(0, 9))]
        rule = StoppingConfig(metric, draws.randint(1, 5), draws.choice([0.0, 0.3]))
        found = early_end(rule, rounds(values))
        assert bool(found) == obvious(values, rule.rounds, rule.least, higher=metric == "accuracy")
        ended += bool(found)
    assert 50 < ended < 250
    assert not early_end(None, rounds([0.5] * 9))


def test_it_says_what_the_best_was_and_when() -> None:
    found = early_end(StoppingConfig("accuracy", 2), rounds([0.25, 0.5, 0.5, 0.375]))
    assert found == "no better accuracy on the proxy set's validation part for 2 rounds; the best was 50.0% in round 2"
    assert early_end(StoppingConfig("loss", 1), rounds([math.nan])).endswith("for 1 rounds; none was a number")


def made(
    proxy: Proxy, test: Examples, keep: Any = None, stopping: StoppingConfig | None = None
) -> tuple[Coordinator, list[Event]]:
    events: list[Event] = []
    settings = Settings(MODEL, TRAINING, RoundConfig(count=8), seed=3, stopping=stopping)
    method = make_method("width", MODEL, [1.0, 0.5], TRAINING)
    link = ScriptedLink(["a", "b"])
    return Coordinator(
        settings, method, link, initial_state(MODEL, 0), proxy=proxy, test=test, observers=(events.append,), keep=keep
    ), events


def test_the_test_set_does_not_decide_and_what_is_trained_is_not_changed(tmp_path: Path) -> None:
    proxy, rule = Proxy(examples(20, 1), examples(10, 2)), StoppingConfig("loss", 2, 0.4)
    kept: list[Snapshot] = []
    one, events = made(proxy, examples(30, 3), kept.append, rule)
    one.run()
    (finished,) = only(events, RunFinished)
    assert not finished.stopped
    assert finished.early.startswith("no better loss on the proxy set's validation part for 2 rounds")
    assert 2 <= finished.rounds == len(one.closed) < 8
    # It was evaluated when it ended, like any last round.
    assert one.closed[-1].scores
    assert made(proxy, examples(30, 4), stopping=rule)[0].run().keys() == one.state.keys()
    other, _ = made(proxy, examples(30, 4), stopping=rule)
    other.run()
    assert len(other.closed) == len(one.closed)
    free, _ = made(proxy, examples(30, 3), kept.append)
    free.run()
    assert [replace(closed, validation=None) for closed in one.closed] == [
        replace(closed, seconds=mine.seconds) for closed, mine in zip(free.closed, one.closed, strict=False)
    ]

    # Killed behind its last round, and before it.
    for number in (finished.rounds, finished.rounds - 1):
        kept[number - 1].write(tmp_path / "run", "label")
        again, told = made(proxy, examples(30, 3), stopping=rule)
        again.resume(Snapshot.read(tmp_path / "run", lambda label: None))
        again.run()
        assert [event.closed for event in only(told, RunStarted)] == [number]
        assert only(told, RunFinished) == [finished]
        assert all(torch.equal(again.state[name], one.state[name]) for name in one.state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"proxy": 0}}, "stopping: looks at the validation part of the proxy set only, and there is none; "),
        ({"data": {"proxy_labels": False}}, "stopping: needs labels of the proxy set"),
        ({"stopping": {"metric": "acuracy"}}, "stopping.metric: must be one of accuracy, f1"),
        ({"stopping": {"rounds": 0}}, "stopping.rounds"),
    ],
)
def test_what_cannot_end_a_run_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        Experiment.parse({"stopping": {}} | changes, "x")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_infinite_loss_survives_a_snapshot(tmp_path: Path) -> None:
    closed = RoundClosed(1, 1, "", {"loss": math.inf}, {}, 0, 0, 0.0, validation=-math.inf)
    trust = {"alarms": 0, "prepared": 0, "norms": []}
    Snapshot({}, {}, {}, {}, trust, [closed], {}).write(tmp_path / "run", "label")
    assert Snapshot.read(tmp_path / "run", lambda label: None).closed == [closed]
