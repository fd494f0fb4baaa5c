"""The simulation group, at sizes that take a second."""

import math
import subprocess
import sys
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from diastole.benchmarks import bare, simulation, start
from diastole.benchmarks.errors import BenchmarkError
from diastole.benchmarks.simulation import Workload
from diastole.models.networks.config import ModelConfig
from diastole.models.training import TrainConfig
from diastole.simulations.engines import shared
from diastole.simulations.engines.shared import SHARED_MEMORY

TINY = Workload(ModelConfig("cnn", (1, 8, 8), 10, (4, 8)), 6, 4, 8, 4, 0.1, rounds=2)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Return the processes that a test starts."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def record(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", record)
    return started


@pytest.mark.slow
def test_rows_are_named_measured_and_leave_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, processes: list[subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setattr(simulation, "installed", lambda: False)
    # Shared memory of its own: other tests use the rest meanwhile.
    with TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        monkeypatch.setattr(shared, "SHARED_MEMORY", Path(folder))
        rows = simulation.rows(TINY, TINY, repeats=1, cases=[("tiny", TINY.model, 0.5, 4, TrainConfig())])
        assert list(Path(folder).iterdir()) == []
    assert [(row.name, row.unit, row.better) for row in rows] == [
        ("simulation.overhead", "ms", "lower"),
        ("simulation.pfl", "trainings/s", "higher"),
        ("simulation.fast.tiny.0.5", "trainings/s", "higher"),
    ]
    for row in rows:
        assert all(math.isfinite(number) and number > 0 for number in (row.value, row.baseline))
        assert row.ratio == row.value / row.baseline
    # The others asked the compiler for its version.
    assert sum(sys.executable in process.args for process in processes) == 6  # type: ignore[operator]
    assert all(process.returncode is not None for process in processes)


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, ("flwr", "ray"))), reason="needs diastole[flower]")
def test_flower_is_measured_where_it_is_installed() -> None:
    row = simulation._flower(TINY, 1)
    assert row.name == "simulation.flower"
    assert row.better == "higher"
    assert row.value > 0 < row.baseline


def test_the_workloads_are_those_of_the_published_bars() -> None:
    small, pfl = simulation.SMALL, simulation.PFL
    assert (small.devices, small.trainings, small.examples // small.batch, small.batch) == (20, 1000, 4, 16)
    assert small.model.input_shape == (1, 28, 28)
    assert (pfl.devices, pfl.cohort, pfl.examples, pfl.batch, pfl.rate) == (1000, 50, 50, 10, 0.1)


def test_work_is_divided_between_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake(bare.Helper):
        def __init__(self) -> None:
            self.asked: list[int] = []

        def ask(self, units: int) -> None:
            self.asked.append(units)

        def wait(self) -> None:
            assert len(self.asked) == 1

    helpers = [Fake(), Fake(), Fake()]
    bare.side_by_side(helpers, 10)
    assert sorted(units for helper in helpers for units in helper.asked) == [3, 3, 4]


def test_a_helper_that_fails_ends_the_measurement() -> None:
    with bare.helpers(1, ["-c", "raise SystemExit(3)"]) as (helper,), pytest.raises(BenchmarkError, match="code 3"):
        helper.wait()


def test_updates_that_are_missing_end_the_measurement() -> None:
    with pytest.raises(BenchmarkError, match="7 of 8 trainings"):
        simulation._complete(TINY, [4, 3])


def test_a_bare_loop_answers_each_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(sys, "stdin", StringIO("1\n2\n"))
    with torch.random.fork_rng(devices=[]):
        bare.main([TINY.model.to_json(), *TINY.arguments()])
    assert capsys.readouterr().out == "done\ndone\n"


@pytest.mark.slow
def test_the_start_of_a_simulation_is_timed_and_its_memory_told(processes: list[subprocess.Popen[bytes]]) -> None:
    seconds, memory = start.rows(devices=20, cohort=4, repeats=1)
    assert [(row.name, row.unit, row.better) for row in (seconds, memory)] == [
        ("start.time", "s", "lower"),
        ("start.memory", "GB", "lower"),
    ]
    assert 0 < seconds.value < 120
    # Three processes that have imported torch, and the images in at least one of them.
    assert 0.3 + memory.baseline < memory.value < 8
    assert all(process.returncode == 0 for process in processes)


@pytest.mark.slow
def test_a_simulation_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchmarkError, match=r"ended with code 1: .*rounds\.cohort"):
        start.rows(devices=20, cohort=0, repeats=1)
