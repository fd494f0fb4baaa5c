"""The server's own step: what is not usable is not taken, and the line says whose fault it is."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scripted import MODEL, TRAINING, ScriptedLink, examples, only

from diastole.models.methods.registry import make_method
from diastole.models.methods.widths.width import WidthMethod
from diastole.models.networks.family import initial_state
from diastole.models.proxy import Proxy
from diastole.models.state import State
from diastole.server.coordinator import Coordinator
from diastole.server.errors import StepError
from diastole.server.events import Event, RoundClosed, RunFinished
from diastole.server.optimisers import ServerOptimiserConfig
from diastole.server.proxy import ProxyConfig
from diastole.server.settings import RoundConfig, Settings
from diastole.server.steps import check_step


def play(method: Any, **settings: Any) -> tuple[Coordinator, list[Event]]:
    events: list[Event] = []
    coordinator = Coordinator(
        Settings(MODEL, TRAINING, RoundConfig(count=4), seed=3, **settings),
        method,
        ScriptedLink("abc"),
        initial_state(MODEL, 0),
        proxy=Proxy(examples(20, 1), examples(10, 2)),
        test=examples(30, 3),
        observers=(events.append,),
    )
    coordinator.run()
    return coordinator, events


DIVERGING = {
    "server": (
        {"optimiser": ServerOptimiserConfig("fedavgm", learning_rate=1e30)},
        "the server's step (server.learning_rate = 1e+30) ",
    ),
    "proxy": (
        {"proxy_training": ProxyConfig(epochs=2, learning_rate=1e9)},
        "the server's own training (proxy.learning_rate = 1e+09) ",
    ),
}


@pytest.mark.parametrize("name", ["width", "conv"])
@pytest.mark.parametrize("what", DIVERGING)
def test_a_step_that_diverges_is_not_taken_and_ends_the_run_by_its_own_name(what: str, name: str) -> None:
    settings, line = DIVERGING[what]
    method = make_method(name, MODEL, [1.0, 0.5], TRAINING)
    coordinator, events = play(method, **settings)
    (closed,) = only(events, RoundClosed)
    assert closed.abandoned.startswith(line)
    assert closed.abandoned.endswith("kept")
    assert coordinator.failed == closed.abandoned
    assert only(events, RunFinished) == [RunFinished(1, stopped=False, failed=closed.abandoned)]
    # What is left is what the run began with, moments and maps included, and it can be scored.
    assert coordinator.snapshot().optimiser == {}
    assert math.isfinite((closed.scores or {})["loss"])
    assert all(torch.isfinite(tensor).all() for tensor in coordinator.state.values())


class Diverging(WidthMethod):
    """Spoils the model in its own work for round 3."""

    def prepare(self, state: State, proxy: Proxy | None, moment: Any) -> State:
        factor = 1e30 if moment.round == 3 else 1.0
        return super().prepare({name: tensor * factor for name, tensor in state.items()}, proxy, moment)


def test_a_methods_own_work_is_checked_too() -> None:
    method = Diverging(MODEL, [1.0], TRAINING)
    coordinator, events = play(method)
    assert [bool(closed.abandoned) for closed in only(events, RoundClosed)] == [False, True]
    assert "method width's own work for round 3 moves" in coordinator.failed
    # The method holds the good state again.
    assert all(torch.equal(method.compress(method.whole)[name], t) for name, t in coordinator.state.items())


def test_work_that_goes_wrong_before_the_first_round_is_one_line() -> None:
    class Early(WidthMethod):
        def prepare(self, state: State, proxy: Proxy | None, moment: Any) -> State:
            return {name: tensor * torch.nan for name, tensor in state.items()}

    with pytest.raises(StepError, match=r"method width's own work for round 1 makes tensor .* not finite"):
        play(Early(MODEL, [1.0], TRAINING))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 65537.0, -1e38])
def test_a_step_is_within_what_an_update_may_change(value: float) -> None:
    before = {"w": torch.zeros(3), "steps": torch.tensor(5), "none": torch.zeros(0)}
    after = before | {"w": torch.tensor([0.0, value, 1.0])}
    with pytest.raises(StepError, match=r"the step (makes|moves) tensor 'w'"):
        check_step(after, before, "the step")


def test_a_large_value_that_hardly_moved_is_no_fault() -> None:
    before = {"w": torch.tensor([1e9, 0.0])}
    after = {"w": torch.tensor([1e9, 65536.0])}
    assert check_step(after, before, "the step") is after


def test_a_run_without_a_round_that_counts_has_failed() -> None:
    settings = Settings(MODEL, TRAINING, RoundConfig(count=2, quorum=1.0), seed=3)
    link = ScriptedLink("ab", lambda u: u if u.device == "a" else None)
    coordinator = Coordinator(settings, make_method("width", MODEL, [1.0], TRAINING), link, initial_state(MODEL, 0))
    coordinator.run()
    assert coordinator.failed == "no round counted; the last one: 1 of 2 devices delivered; the quorum is 2"
    again = Coordinator(settings, make_method("width", MODEL, [1.0], TRAINING), link, initial_state(MODEL, 0))
    link.spoil = lambda u: u if u.device == "a" or u.task.round == 2 else replace(u, state={})
    again.run()
    assert again.failed == ""
