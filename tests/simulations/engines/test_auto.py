"""The engine that is chosen by measurement."""

import logging
from collections.abc import Callable
from contextlib import closing

import pytest
import torch

from diastole.experiments.errors import ExperimentError
from diastole.models.methods.widths.width import spec_of
from diastole.models.moment import Moment
from diastole.models.seeds import derive_seed
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.engines import auto
from diastole.simulations.engines.auto import AutoLink, Name
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

SIZES = (spec_of(0.25), spec_of(1.0))


def federation(**changes: object) -> Federation:
    document = {
        "engine": "auto",
        "workers": 2,
        "rounds": {"count": 1},
        "tiers": {"large": {"devices": 2, "width": 1.0}, "small": {"devices": 4, "width": 0.25}},
    }
    return make_federation(Simulation.parse(document | changes, "test"))


def tasks(made: Federation) -> tuple[list[Task], dict[SubModelSpec, State]]:
    method, found = made.run.method(), []
    method.prepare(method.initial(derive_seed(made.simulation.seed, "model")), None, Moment())
    for k, name in enumerate(made.devices):
        spec = SIZES[1] if k < 2 else SIZES[0]
        found.append(Task(f"r1-{name}", 1, name, spec, made.simulation.training, k))
    return found, {spec: method.compress(spec) for spec in SIZES}


def test_a_federation_agrees_with_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    expected = simulate(federation(engine="loop"))
    with caplog.at_level(logging.INFO, logger="diastole.simulations.engines.auto"):
        found = simulate(federation())
    assert len(caplog.messages) == 2
    assert all("is trained by" in line for line in caplog.messages)
    for name, tensor in expected.state.items():
        torch.testing.assert_close(found.state[name], tensor, rtol=1e-4, atol=1e-5)
    assert found.rounds[0].bytes_down == expected.rounds[0].bytes_down


def test_each_size_is_measured_once_and_goes_to_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    choices: dict[SubModelSpec, Name] = dict(zip(SIZES, ("batched", "loop"), strict=True))
    asked = []

    def predict(self: AutoLink, work: list[Task], state: State) -> dict[Name, float]:
        asked.append(work[0].spec)
        return {name: float(name != choices[work[0].spec]) for name in ("loop", "processes", "batched")}

    monkeypatch.setattr(AutoLink, "_predict", predict)
    made = federation()
    with closing(AutoLink(made, made.run.method().offers())) as link:
        for _ in range(2):
            outcomes = list(link.dispatch(*tasks(made), None))
            assert {o.device for o in outcomes if isinstance(o, Update)} == set(made.devices)
        assert link.choices == choices
        assert sorted(asked, key=lambda spec: spec.label) == list(SIZES)
        assert set(link._started) == {"batched", "loop"}
        assert all(item.bytes_down > 0 for item in link.traffic().values())
        link.interrupt()
        assert list(link.dispatch(*tasks(made), None)) == []


def test_the_shortest_run_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(rounds: int, alone: float, together: float | None) -> Name:
        monkeypatch.setattr(AutoLink, "_time_loop", lambda self, work, state: alone)
        monkeypatch.setattr(AutoLink, "_time_batched", lambda self, work, state, alone: together)
        monkeypatch.setattr(auto.os, "cpu_count", lambda: 2)
        made = federation(rounds={"count": rounds})
        work, states = tasks(made)
        return AutoLink(made, made.run.method().offers())._choose(work[2:], states[SIZES[0]])

    assert chosen(1, 0.001, None) == "loop"
    assert chosen(1000, 0.01, None) == "processes"
    assert chosen(1000, 0.01, 0.02) == "processes"
    assert chosen(1000, 0.01, 0.005) == "batched"


def test_measuring_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    made, steps, timed = federation(), list[int](), auto._time

    def counted(run: Callable[[int], None]) -> float:
        return timed(lambda count: (steps.append(count), run(count))[1])

    monkeypatch.setattr(auto, "_time", counted)
    with closing(AutoLink(made, made.run.method().offers())) as link:
        work, states = tasks(made)
        assert set(link._predict(work[2:], states[SIZES[0]])) == {"loop", "processes", "batched"}
    assert sum(steps) == 2 * (1 + auto.STEPS * auto.REPEATS) < 50


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_line() -> None:
    with pytest.raises(ExperimentError, match='use "cpu"'):
        simulate(federation(device="cuda"))


def test_a_gpu_needs_an_engine_that_can_use_it() -> None:
    with pytest.raises(ExperimentError, match="engines 'loop', 'batched', 'auto' can use it, not 'processes'"):
        federation(engine="processes", device="cuda")
    with pytest.raises(ExperimentError, match=r"not 'flower'; flower\.gpus"):
        federation(engine="flower", device="cuda")
    with pytest.raises(ExperimentError, match=r"device cuda:0,cuda:1: engines .* not 'loop'"):
        federation(engine="loop", device="cuda:0,cuda:1")
