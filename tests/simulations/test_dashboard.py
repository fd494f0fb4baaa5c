"""The dashboard of runs on this machine: the same page, by the same events."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from diastole.experiments.checkpoint import Checkpoint
from diastole.proto.address import Address
from diastole.server.errors import AddressError
from diastole.server.events import Event, RoundClosed
from diastole.simulations.compare import compare
from diastole.simulations.compared import ComparedRun, Standing
from diastole.simulations.dashboard import ANYWHERE, LocalDashboard
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

DOCUMENT: dict[str, Any] = {
    "name": "small",
    "method": "width",
    "data": {"proxy": 40},
    "model": {"widths": [8, 8]},
    "rounds": {"count": 2},
    "proxy": {"epochs": 0},
    "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 2, "width": 0.5}},
}


def client(board: LocalDashboard) -> httpx.Client:
    url, _, token = board.url.partition("#token=")
    headers = {"authorization": f"Bearer {token}"}
    return httpx.Client(base_url=url, headers=headers, trust_env=False, verify=False)


def told(board: LocalDashboard, run: str) -> dict[str, Any]:
    """Return what the stream tells of a run, once that is over."""
    found: dict[str, Any] = {"points": []}
    with client(board) as caller, caller.stream("GET", "/api/stream", params={"run": run}) as answer:
        for line in answer.iter_lines():
            new = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            found |= new | {"points": found["points"] + new.get("points", [])}
            if found.get("run", {}).get("over"):
                return found
    raise AssertionError("the stream has ended")


def test_a_simulation_is_shown_and_goes_on_with_its_earlier_rounds(tmp_path: Path) -> None:
    federation = make_federation(Simulation.parse(DOCUMENT, "test"))
    checkpoint = Checkpoint(tmp_path / "run.checkpoint", federation.simulation, federation.run.dataset.digest)

    class Stopped(BaseException):
        pass

    def keep(snapshot: Any) -> None:
        Checkpoint.keep(checkpoint, snapshot)
        if len(snapshot.closed) == 1:
            raise Stopped

    checkpoint.keep = keep  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        simulate(federation, (), checkpoint)
    del checkpoint.keep
    with LocalDashboard(ANYWHERE) as board:
        observer = board.watch("one", federation)
        result = simulate(federation, (observer,), checkpoint, lambda coordinator: board.begun("one", coordinator))
        found = told(board, "one")
        assert [point["round"] for point in found["points"]] == [1, 2]
        assert found["points"][-1]["scores"] == result.rounds[-1].scores
        with client(board) as caller:
            rows = caller.get("/api/runs/one/cohort").json()["rows"]
            assert [(row["tier"], row["state"]) for row in rows] == [("large", "folded"), *2 * [("small", "folded")]]
            fleet = caller.get("/api/runs/one/devices").json()["rows"]
            assert all(sum(row["moved"]) for row in fleet)
            family = caller.get("/api/runs/one/family").json()["family"]
            assert [size["outputs"][0] for size in family["sizes"]] == [4, 8]
            assert caller.get("/api/storage").json()["stored"] is None
            refused = caller.post("/api/runs/one/stop", headers={"x-diastole": "1"})
            assert (refused.status_code, "Ctrl-C" in refused.text) == (409, True)


@pytest.mark.slow
def test_a_comparison_shows_each_run(tmp_path: Path) -> None:
    simulation = Simulation.parse({**DOCUMENT, "rounds": {"count": 1}}, "test")
    with LocalDashboard(ANYWHERE) as board:
        compare(simulation, ["width", "smallest"], [0], tmp_path, board.tell, screen=board)
        folded = [told(board, f"{name}-seed0")["run"]["totals"]["folded"] for name in ("width", "smallest")]
        assert folded == [3, 3]
        with client(board) as caller:
            runs = caller.get("/api/scores").json()["runs"]
            assert [(run["id"], len(run["points"])) for run in runs] == [("width-seed0", 1), ("smallest-seed0", 1)]


def test_a_run_of_another_process_is_shown_by_its_scores() -> None:
    run = ComparedRun("width", 0, Simulation.parse(DOCUMENT, "test"))
    with LocalDashboard(ANYWHERE) as board:
        for standing in (Standing(run, 0), Standing(run, 1, 0.5), Standing(run, 2, 0.6), Standing(run, 2, 0.6, True)):
            board.tell(standing)
        found = told(board, run.name)
        assert [point["scores"] for point in found["points"]] == [{"accuracy": 0.5}, {"accuracy": 0.6}]
        assert found["run"]["rounds"] == 2


def test_other_machines_are_not_served() -> None:
    with pytest.raises(AddressError, match="a loopback address is accepted"):
        LocalDashboard(Address("0.0.0.0", 0))


def test_an_observer_takes_no_time_of_the_run() -> None:
    with LocalDashboard(ANYWHERE) as board:
        observer = board.watch("one", make_federation(Simulation.parse(DOCUMENT, "test")))
        event: Event = RoundClosed(1, 0, "", None, {}, 0, 0, 0.0)
        began = time.thread_time()
        for _ in range(1000):
            observer(event)
        assert time.thread_time() - began < 0.1
    assert not [thread for thread in threading.enumerate() if thread.name == "diastole-web"]
