"""A coordinator that dies in the middle of a round: the same round goes on, with what had come, to the same bits."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from diastole.client import agent
from diastole.client.agent import Progress
from diastole.client.connection import Connection
from diastole.experiments.errors import NothingLearnedError
from diastole.experiments.experiment import Experiment
from diastole.experiments.result import Result
from diastole.experiments.run import make_run
from diastole.experiments.serving import Serving
from diastole.proto.profile import Profile
from diastole.server.events import Event, RoundClosed, RoundStarted, UpdateAccepted, UpdateQuarantined
from diastole.server.wire import hub
from diastole.server.wire.device_service import DeviceService
from diastole.server.wire.exchange import Exchange
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

DOCUMENT = {
    "seed": 3,
    "method": "width",
    "data": {"proxy": 40},
    "rounds": {"count": 3, "patience": 60},
    "tiers": {"large": {"devices": 1, "width": 0.5}, "small": {"devices": 2, "width": 0.25}},
}
FEDERATION = make_federation(Simulation.parse(DOCUMENT, "test"))


class DeadError(BaseException):
    """Stands for a kill: nobody is told anything. Real ones are in tests/system/test_killed_coordinators.py."""


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], NoReturn]]:
    """Yield what ends a coordinator in the middle of its words: from then on it tells its devices nothing."""

    def die() -> NoReturn:
        for name in ("finish", "release", "_finish", "cancel"):
            patch.setattr(DeviceService, name, lambda *arguments, **more: None)
        patch.setattr(Exchange, "close", lambda exchange: [])
        patch.setattr(hub, "FAREWELL_SECONDS", 0.0)
        raise DeadError

    with monkeypatch.context() as patch:
        yield die


def serve(state: Path, port: int = 0, *observers: Callable[[Event], None]) -> Serving:
    run = make_run(Experiment.parse(DOCUMENT, "test"))
    return Serving(run, f"127.0.0.1:{port}", state, observers=observers, lease=60.0, figures=())


def join(name: str, port: int, held: threading.Event, watch: Callable[[Progress], None]) -> agent.Summary:
    """Be an agent that trains when `held` is set."""
    item = FEDERATION.devices[name]

    def told(progress: Progress) -> None:
        watch(progress)
        if not progress.outcome:
            assert held.wait(60)

    said = Profile(item.profile.tier, len(item.examples), memory=item.profile.memory)
    return agent.run(Connection(f"127.0.0.1:{port}", name, said, patience=60.0), item.examples, told)


@pytest.fixture
def undisturbed() -> Result:
    return simulate(FEDERATION)


def same(found: Result, expected: Result) -> None:
    assert all(torch.equal(tensor, expected.state[name]) for name, tensor in found.state.items())
    assert [(each.updates, each.scores) for each in found.rounds] == [
        (each.updates, each.scores) for each in expected.rounds
    ]
    assert {name: account.accepted for name, account in found.accounts.items()} == {
        name: account.accepted for name, account in expected.accounts.items()
    }


def test_the_open_round_goes_on_with_the_updates_that_had_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Result
) -> None:
    """One device's update had come, one is killed away with its task, and one trains through it all."""
    heard, trained = list[Event](), list[tuple[str, int]]()
    held = {name: threading.Event() for name in FEDERATION.devices}
    _, *others = held

    def watch(event: Event) -> None:
        if isinstance(event, RoundClosed) and event.round == 1:
            for name in others:
                held[name].clear()
        if isinstance(event, UpdateAccepted) and event.round == 2:
            die()

    def note(name: str) -> Callable[[Progress], None]:
        return lambda progress: trained.append((name, progress.round)) if not progress.outcome else None

    for each in held.values():
        each.set()
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(3))
        with dying(monkeypatch) as die:
            run = serve(tmp_path, 0, watch)
            agents = [pool.submit(join, name, run.port, held[name], note(name)) for name in held]
            with run, pytest.raises(DeadError):
                run.wait(60)
        again = stack.enter_context(serve(tmp_path, run.port, heard.append))
        assert (again.run_id, again.closed) == (run.run_id, 1)
        for name in others:
            held[name].set()
        result = again.wait(60)
        for each in agents:
            each.result(60)
    same(result, undisturbed)
    started = next(event for event in heard if isinstance(event, RoundStarted))
    assert (started.round, started.kept, len(started.specs)) == (2, 1, 3)
    # Nobody trained a task twice.
    assert sorted(trained) == sorted((name, number) for name in held for number in (1, 2, 3))
    assert not list((tmp_path / "objects").rglob("*.*"))
    assert [path for path in (tmp_path / "objects").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("how", ["suspend", pytest.param("ctrl-c", marks=pytest.mark.slow)])
def test_a_coordinator_that_is_asked_to_go_leaves_the_round_open(tmp_path: Path, undisturbed: Result, how: str) -> None:
    heard, trained = list[Event](), list[tuple[str, int]]()
    held, reached = {name: threading.Event() for name in FEDERATION.devices}, threading.Event()
    first, *others = held

    def watch(event: Event) -> None:
        if isinstance(event, UpdateAccepted) and event.round == 1:
            reached.set()

    def note(name: str) -> Callable[[Progress], None]:
        return lambda progress: trained.append((name, progress.round)) if not progress.outcome else None

    held[first].set()
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(3))
        with suppress(KeyboardInterrupt), serve(tmp_path, 0, watch) as run:
            agents = [pool.submit(join, name, run.port, held[name], note(name)) for name in held]
            assert reached.wait(60)
            if how == "ctrl-c":
                raise KeyboardInterrupt
            assert run.suspend(60)
            with pytest.raises(NothingLearnedError):
                run.wait(60)
        again = stack.enter_context(serve(tmp_path, run.port, heard.append))
        for name in others:
            held[name].set()
        result = again.wait(60)
        for each in agents:
            each.result(60)
    assert again.run_id == run.run_id
    same(result, undisturbed)
    started = next(event for event in heard if isinstance(event, RoundStarted))
    assert (started.round, started.kept, len(started.specs)) == (1, 1, 3)
    # Nobody was told to give a task up, and nobody trained one twice.
    assert sorted(trained) == sorted((name, number) for name in held for number in (1, 2, 3))


@pytest.mark.slow
def test_a_quarantined_update_is_not_folded_in_after_a_new_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, held = list[Event](), threading.Event()
    held.set()
    # Refused by a process that knows better than the next one.
    refusing = {"on": True}

    def check(*arguments: object) -> None:
        from diastole.models.errors import StateError

        if refusing["on"] and arguments[0].device == names[0]:  # type: ignore[attr-defined]
            raise StateError("too far away")

    def watch(event: Event) -> None:
        if isinstance(event, UpdateQuarantined):
            refusing["on"] = False
            die()

    names = list(FEDERATION.devices)
    monkeypatch.setattr("diastole.server.admitting.check", check)
    with ThreadPoolExecutor(3) as pool:
        with dying(monkeypatch) as die:
            run = serve(tmp_path, 0, watch)
            agents = [pool.submit(join, name, run.port, held, lambda progress: None) for name in names]
            with run, pytest.raises(DeadError):
                run.wait(60)
        with serve(tmp_path, run.port, heard.append) as again:
            result = again.wait(60)
        for each in agents:
            each.result(60)
    assert [each.updates for each in result.rounds] == [2, 3, 3]
    (event,) = [event for event in heard if isinstance(event, UpdateQuarantined)]
    assert (event.round, event.device, event.reason) == (1, names[0], "too far away")
    assert result.accounts[names[0]].quarantined == 1
