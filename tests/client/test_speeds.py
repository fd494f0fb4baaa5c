"""Speeds: what a device measures of itself."""

from math import isfinite

import pytest

from diastole.client import speeds
from diastole.client.probes import PROBES
from diastole.client.speeds import GUESS
from diastole.models.kinds import KINDS
from diastole.models.methods.widths.width import width_cost
from diastole.models.training import TrainConfig


def test_the_networks_have_every_kind_of_work_as_it_is_written_down() -> None:
    for probe in PROBES:
        cost = width_cost(probe.model, 1.0, TrainConfig(batch_size=probe.batch))
        assert cost.training_macs == probe.macs
        assert {kind: round(work) for kind, work in cost.work.items() if work} == probe.work
    assert {kind for probe in PROBES for kind in probe.work} == set(KINDS) == set(GUESS)


def test_a_device_tells_a_speed_for_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "SECONDS", 0.0)
    found = speeds.measured()
    assert set(found.speeds) == set(KINDS)
    assert all(speed > 0 and isfinite(speed) for speed in (found.macs_per_second, *found.speeds.values()))
