"""Speeds: what a device measures of itself."""

import os
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest
import torch

from diastole.client import adapting, speeds, timing
from diastole.client.apart import apart, can_fork
from diastole.client.measured import Measured
from diastole.client.plans import cache
from diastole.client.probes import PROBES
from diastole.client.speeds import GUESS
from diastole.client.timing import Timing
from diastole.models.errors import StoppedError
from diastole.models.kinds import KINDS, Work
from diastole.models.methods.widths.width import width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.training import TrainConfig


def test_the_networks_have_every_kind_of_work_as_it_is_written_down() -> None:
    for probe in PROBES:
        cost = width_cost(probe.model, 1.0, TrainConfig(batch_size=probe.batch))
        assert cost.training_macs == probe.macs
        assert {kind: round(work) for kind, work in cost.work.items() if work} == probe.work
    assert {kind for probe in PROBES for kind in probe.work} == set(KINDS)
    assert all(set(guess) == set(KINDS) for guess in GUESS.values())


def test_a_device_tells_a_speed_for_every_kind_and_measures_it_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(speeds, "PROBES", PROBES[:3])
    monkeypatch.setattr(speeds, "TURNS", 1)
    monkeypatch.setattr(timing, "TURN_STEPS", (1, 1))
    found = speeds.told()
    assert set(found.speeds) == set(KINDS)
    assert all(speed > 0 and isfinite(speed) for speed in (found.macs_per_second, *found.speeds.values()))
    # Another measurement would differ.
    assert speeds.told() == found
    (kept,) = cache.folder().glob("*.json")
    kept.write_text(kept.read_text()[:-20])
    assert speeds.told() != found


def test_until_speeds_are_measured_they_are_guessed_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    guessed = speeds.at_once("fast")
    assert not speeds.known("fast")
    assert speeds.at_once("fast") == guessed
    factors = {guessed.speeds[kind] / GUESS["fast"][kind] for kind in KINDS}
    assert max(factors) == pytest.approx(min(factors))
    with pytest.raises(StoppedError):
        speeds.told("reference", stopped=lambda: True)
    assert not speeds.known("reference")
    measured = Measured(1e9, dict.fromkeys(KINDS, 1e9), 1.0)
    monkeypatch.setattr(speeds, "measured", lambda *_: measured)
    assert speeds.told("fast") == measured
    assert speeds.known("fast") == measured
    # What was measured too long ago is better than a guess.
    for each in cache.folder().glob("*.json"):
        os.utime(each, (0, 0))
    assert speeds.at_once("fast") == measured
    assert not speeds.known("fast")


TINY = ModelConfig("cnn", (1, 8, 8), 3, (8, 8))


def test_a_device_predicts_what_it_is_offered_by_having_timed_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(timing, "TURN_STEPS", (1, 1))
    found = Measured(1e9, GUESS["reference"], 0.5)
    own = Timing(adapting.of_models([replace(TINY, input_shape=(1, 16, 16), widths=(32, 64))], "reference"))
    own.turn()
    assert [work["steps"] for work in own.works] == [1.0, 1.0, 1.0]
    factors = (1.5, 0.7, 1.0)
    for one, factor in zip(own._timed, factors, strict=True):
        one.busy[:] = [0.5 * factor * seconds(one.work, found)]
        one.seconds[:] = [4 * one.busy[0]]
    closer = adapting.adjusted(found, own)
    assert closer.pace == pytest.approx(0.25)
    for one in own._timed:
        assert seconds(one.work, closer) * closer.pace == pytest.approx(one.busy[0], rel=0.15)


def seconds(work: Work, measured: Measured) -> float:
    return sum(amount / measured.speeds[kind] for kind, amount in work.items())


def test_a_device_times_no_network_for_which_it_has_no_memory() -> None:
    cost = width_cost(TINY, 1.0, TrainConfig())
    small = width_cost(TINY, 0.25, TrainConfig())

    def timed(memory: int, models: list[ModelConfig]) -> list[float]:
        return [one.work["memory"] for one in adapting.of_models(models, "reference", memory=memory)]

    assert timed(small.memory - 1, [TINY]) == []
    assert timed(small.memory, [TINY]) == [small.work["memory"]]
    both = cost.memory + cost.bytes_down + small.memory
    assert timed(both, [TINY])[:2] == [
        cost.work["memory"],
        small.work["memory"],
    ]


def measured_by(work: Callable[[], Measured]) -> Callable[..., Measured]:
    def measured(plan: str, threads: int, place: str, stopped: Callable[[], bool]) -> Measured:
        assert not stopped()
        return work()

    return measured


@pytest.mark.skipif(not can_fork(), reason="measured in a fork")
def test_speeds_are_measured_in_a_process_that_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        speeds, "measured", measured_by(lambda: Measured(float(os.getpid()), dict.fromkeys(KINDS, 1.0), 1.0))
    )
    process = int(speeds.told().macs_per_second)
    assert process != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.skipif(not can_fork(), reason="measured in a fork")
def test_where_measuring_ends_its_process_the_guess_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    guessed = speeds.at_once()
    monkeypatch.setattr(speeds, "measured", measured_by(os.abort))
    assert speeds.told() == guessed
    assert not speeds.known()


@pytest.mark.skipif(not can_fork(), reason="measured in a fork")
def test_a_process_of_its_own_may_have_threads_where_this_one_has_had_some() -> None:
    product = torch.ones(400, 400) @ torch.ones(400, 400)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.mm(product, product)
        total = float(product.mm(product).sum())
        assert float(apart(lambda stopped: str(float(product.mm(product).sum())), lambda: False)) == total
    finally:
        torch.set_num_threads(threads)
