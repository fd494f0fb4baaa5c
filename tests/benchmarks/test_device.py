"""The benchmark of a device's training steps."""

import pytest

from diastole.benchmarks import device, kernels
from diastole.client.kernels import groupnorm
from diastole.models.networks.config import ModelConfig


@pytest.mark.slow
def test_a_network_is_measured_beside_plain_pytorch() -> None:
    tiny = ModelConfig("cnn", (1, 8, 8), 4, (4, 8))
    row, search = device.rows({"tiny": tiny}, repeats=2)
    assert (row.name, row.unit, row.better) == ("device.tiny", "steps/s", "higher")
    assert min(row.value, row.baseline) > 0
    assert row.notes[0].startswith("channels first, fp32, 1 thread, own pooling; found in ")
    assert (search.name, search.baseline) == ("device.search", 3.0)
    assert "notes" not in row.as_dict()


@pytest.mark.skipif(not groupnorm.available(), reason="no native library")
def test_kernels_are_measured_beside_plain_pytorch() -> None:
    rows = kernels.rows(batch=1, maps=((4, 2),), repeats=1)
    assert len(rows) == 7
    assert rows[0].name == "kernel.norm.4x2"
    assert all(min(row.value, row.baseline) > 0 for row in rows)
