"""Vectors: whether sub-models fill those of the devices' processors."""

import pytest

from diastole.experiments.vectors import Vectors, ragged
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.proto.profile import Profile
from diastole.server.events import DeviceJoined

# Of 64 and 96 channels a quarter is 16 and 24, a half 32 and 48.
MODEL = ModelConfig("cnn", (3, 16, 16), 4, (64, 96), group=4)
SPECS = [spec_of(width) for width in (1.0, 0.5, 0.25)]


@pytest.mark.parametrize(("block", "expected"), [(0, []), (4, []), (8, []), (16, [0.25]), (32, [0.5, 0.25])])
def test_sizes_are_ragged_whose_channels_rounding_would_change(block: int, expected: list[float]) -> None:
    assert ragged(MODEL, SPECS, block) == [spec_of(width) for width in expected]


def test_nobody_is_told_of_what_a_run_has_rounded() -> None:
    rounded = ModelConfig("cnn", (3, 16, 16), 4, (64, 96), group=4, block=32)
    assert ragged(rounded, SPECS, 16) == []


def test_the_operator_is_warned_once(caplog: pytest.LogCaptureFixture) -> None:
    devices = {
        "old": Profile("t", 1),
        "small": Profile("t", 1, simd_block=8),
        "one": Profile("t", 1, simd_block=16),
        "two": Profile("t", 1, simd_block=32),
    }
    watch = Vectors(MODEL, SPECS, lambda: devices)
    for name in devices:
        watch(DeviceJoined(name, "t", 1))
    (line,) = caplog.messages
    assert line.startswith("one computes in vectors of 16 floats, which the channels of width 0.25 do not fill")
    assert "block = 16" in line
