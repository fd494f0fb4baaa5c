"""How fast a device's link is, by its transfers."""

import threading
from contextlib import closing
from pathlib import Path

import pytest
from agents import SPEC, Agent, serve, task

from diastole.client.pace import FILE, LEAST_BYTES, NEWEST, Pace
from diastole.client.statefolder import StateFolder
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state


def test_the_median_of_the_newest_transfers_counts_and_outlives_a_start(tmp_path: Path) -> None:
    with closing(StateFolder(tmp_path)) as folder:
        pace = Pace(folder)
        assert (pace.down, pace.up) == (None, None)
        pace.moved("down", LEAST_BYTES - 1, 1.0)
        assert pace.down is None
        for seconds in (1.0, 2.0, 100.0):
            pace.moved("down", 1_000_000, seconds)
        pace.moved("up", 200_000, 2.0)
        assert (pace.down, pace.up) == (500_000.0, 100_000.0)
        again = Pace(folder)
        assert (again.down, again.up) == (500_000.0, 100_000.0)
        for _ in range(NEWEST):
            again.moved("down", 1_000_000, 10.0)
        assert Pace(folder).down == 100_000.0


@pytest.mark.parametrize("text", [b"[1]", b"{", b'{"down": [-1, 0, "x"]}', b'{"down": [NaN, -1], "up": 3}'])
def test_a_damaged_file_is_no_speed(tmp_path: Path, text: bytes) -> None:
    with closing(StateFolder(tmp_path)) as folder:
        folder.write(FILE, text)
        assert (Pace(folder).down, Pace(folder).up) == (None, None)


def test_an_agent_tells_how_fast_its_transfers_were_when_it_joins_again() -> None:
    model = ModelConfig("cnn", (1, 8, 8), 3, (16, 128))
    state = initial_state(model, 0)
    delivered = threading.Event()
    with closing(serve(model=model)) as link:
        device = Agent(link.port, watch=lambda progress: delivered.set() if progress.outcome else None)
        assert link.wait(1, 60)
        assert link.devices()["one"].down is None
        [*_] = link.dispatch([task(1)], {SPEC: state}, None)
        # The round ends with the update, and the device takes the time of it a moment later.
        assert delivered.wait(10)
        device.connection.rejoin()
        assert link.wait(1, 60)
        found = link.devices()["one"]
    device.join()
    assert found.down is not None
    assert found.up is not None
