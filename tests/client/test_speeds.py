"""Speeds: what a device measures of itself."""

from math import isfinite

import pytest

from diastole.client import speeds
from diastole.client.speeds import GUESS, PROBES
from diastole.models.kinds import KINDS
from diastole.models.methods.widths.width import width_cost
from diastole.models.training import TrainConfig


def test_the_networks_have_every_kind_of_work() -> None:
    found = {kind for model, size in PROBES for kind in width_cost(model, 1.0, TrainConfig(batch_size=size)).work}
    assert found == set(KINDS) == set(GUESS)


def test_a_device_tells_a_speed_for_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "SECONDS", 0.0)
    found = speeds.measured()
    assert set(found.speeds) == set(KINDS)
    assert all(speed > 0 and isfinite(speed) for speed in (found.macs_per_second, *found.speeds.values()))
