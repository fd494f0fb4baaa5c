"""Data sets and partitions that a user's own function returns."""

from pathlib import Path

import pytest
import torch

from diastole.client.errors import DataError
from diastole.client.sources.mapped import Mapped
from diastole.experiments.data.partitions import partition
from diastole.experiments.data.reading import Reading
from diastole.experiments.data.sets import load
from diastole.simulations.devices import make_federation
from diastole.simulations.simulation import Simulation

SOURCE = """
import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset

import diastole

X, Y = torch.arange(60.0).view(20, 3), torch.arange(20) % 4

def one():
    return TensorDataset(X, Y)

def two():
    return TensorDataset(X, Y), TensorDataset(X[:5] + 1, Y[:5])

def values():
    return [(x, np.float64(x[0] / 2)) for x in X]

def maps(path):
    return TensorDataset(torch.full((9, 2, 2), 200, dtype=torch.uint8), torch.arange(36).view(9, 2, 2) % 3)

def whole():
    examples = diastole.experiments.data.dataset.Examples(X, Y)
    return diastole.Dataset("mine", examples, examples, 4, torch.arange(20))

def uneven():
    return [(X[0], 0), (X[0, :2], 0)]

def wrong():
    raise RuntimeError("on the\\nrocks")

def halves(it):
    order = it.draws.permutation(len(it.labels))
    return [order[k::it.devices] for k in range(it.devices)]

def twice(it):
    return [[0, 1], [1, 2]]

def few(it):
    return [[0]]

def empty(it):
    return [[0, 1], []]

def beyond(it):
    return [[0], [99]]

def words(it):
    return [["a"], [1]]
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Return the name of a module with `SOURCE`, another one in each test."""
    found = f"bringing_{abs(hash(request.node.name))}"
    (tmp_path / f"{found}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return found


def refusal(name: str) -> str:
    with pytest.raises(DataError, match=r"^[^\n]*$") as refused:
        load(name, None, Reading())
    return str(refused.value)


def test_torch_data_sets_are_read_item_by_item(name: str) -> None:
    x, y = torch.arange(60.0).view(20, 3), torch.arange(20) % 4
    two = load(f"{name}:two", None, Reading())
    assert (two.classes, two.input_shape) == (4, (3,))
    assert torch.equal(two.train.x, x)
    assert torch.equal(two.train.y, y)
    assert torch.equal(two.test.x, x[:5] + 1)
    one = load(f"{name}:one", None, Reading(test=0.2))
    assert one.test.y.bincount().tolist() == [1] * 4
    assert sorted(torch.cat([one.train.x, one.test.x])[:, 0].tolist()) == x[:, 0].tolist()
    whole = load(f"{name}:whole", None, Reading())
    assert (whole.name, whole.users is None) == ("mine", False)


def test_targets_may_be_values_or_maps_and_inputs_may_go_to_files(name: str, tmp_path: Path) -> None:
    values = load(f"{name}:values", None, Reading())
    assert values.train.y.dtype == torch.float32
    assert torch.equal(values.train.y, values.train.x[:, 0] / 2)
    maps = load(f"{name}:maps", tmp_path, Reading(spool=tmp_path))
    assert isinstance(maps.train, Mapped)
    assert (maps.input_shape, maps.train.y.shape[1:], maps.classes) == ((1, 2, 2), (2, 2), 3)
    assert torch.allclose(maps.train.part(0, 1).x, torch.tensor(200 / 127.5 - 1))


def test_what_a_function_does_wrong_is_one_line(name: str) -> None:
    assert f"data set {name}:wrong: RuntimeError: on the" in refusal(f"{name}:wrong")
    assert "item 1 of x is [2], []; items of one shape are accepted" in refusal(f"{name}:uneven")
    assert f"data set {name}:gone cannot be imported: AttributeError" in refusal(f"{name}:gone")
    assert "cannot be imported: ModuleNotFoundError" in refusal("no_such_package:data")


def test_a_function_deals_and_is_checked(name: str) -> None:
    description = {"partition": {"kind": f"{name}:halves"}, "tiers": {"all": {"devices": 3, "width": 1.0}}}
    devices = make_federation(Simulation.parse(description, "the test")).devices
    counts = [device.profile.examples for device in devices.values()]
    assert max(counts) - min(counts) <= 1
    assert len(torch.cat([device.places for device in devices.values()]).unique()) == sum(counts)
    labels = torch.arange(12) % 4
    assert [len(part) for part in partition(f"{name}:empty", labels, 2, 0, minimum=0)] == [2, 0]
    for function, line in {
        "twice": "deals an example to two devices; each to one at most is accepted",
        "few": "deals to 1 devices; 2 are accepted",
        "empty": "leaves a device 0 examples; at least 1, partition.minimum, is accepted",
        "beyond": "deals example 99; 0 to 11 are accepted",
        "words": "gives a device what is no list of whole numbers",
        "gone": "cannot be imported",
    }.items():
        with pytest.raises(DataError, match=r"^[^\n]*$") as refused:
            partition(f"{name}:{function}", labels, 2, 0)
        assert line in str(refused.value)
