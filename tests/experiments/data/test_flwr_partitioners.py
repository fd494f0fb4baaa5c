"""The partitioners of flwr-datasets deal out our examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("flwr_datasets")

from diastole.client.errors import DataError
from diastole.experiments.data.partitions import partition
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

# The library warns of examples that it leaves out; pyarrow of what the library asks of it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*will NOT be used"),
    pytest.mark.filterwarnings("ignore:.*smaller than the size of the dataset"),
    pytest.mark.filterwarnings("ignore:Specifying null_placement"),
]

# Sorted by label and not numbered without gaps: both must not matter.
LABELS = 3 * (torch.arange(600) // 60)
USERS = 5 + torch.arange(600) % 10
WHOLE: dict[str, dict[str, Any]] = {
    "ContinuousPartitioner": {"strictness": 0.9},
    "DirichletPartitioner": {"alpha": 0.5, "min_partition_size": 1},
    "DistributionPartitioner": {
        "distribution_array": [[1, 3]] * 10,
        "num_unique_labels_per_partition": 2,
        "preassigned_num_samples_per_label": 1,
    },
    "GroupedNaturalIdPartitioner": {"group_size": 1},
    "IidPartitioner": {},
    "InnerDirichletPartitioner": {"alpha": 0.5},
    "LinearPartitioner": {},
    "NaturalIdPartitioner": {},
    "ShardPartitioner": {"num_shards_per_partition": 2},
    "SizePartitioner": {},
    "SquarePartitioner": {},
}
PARTLY: dict[str, dict[str, Any]] = {
    "PathologicalPartitioner": {"num_classes_per_partition": 1},
    "SizePartitioner": {"partition_sizes": [7] * 10},
}


def deal(name: str, options: Mapping[str, Any], devices: int = 10, seed: int = 3) -> list[Tensor]:
    return partition("flwr", LABELS, devices, seed, users=USERS, partitioner=name, options=options)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("name", "options"), [*WHOLE.items(), *PARTLY.items()])
def test_every_device_has_its_own_examples_and_the_seed_decides(name: str, options: dict[str, Any]) -> None:
    parts = deal(name, options)
    dealt = torch.cat(parts)
    assert len(parts) == 10
    assert all(part.dtype == torch.int64 and torch.equal(part, part.sort().values) for part in parts)
    assert len(dealt.unique()) == len(dealt) <= 600
    if options is not PARTLY.get(name):
        assert len(dealt) == 600
    np.random.seed(1)
    assert same(parts, deal(name, options))
    if name != "NaturalIdPartitioner":
        assert not same(parts, deal(name, options, seed=4))


def test_examples_are_shuffled_before_a_partitioner_cuts_them_into_pieces() -> None:
    assert all(len(LABELS[part].unique()) >= 8 for part in deal("IidPartitioner", {}))


def test_options_reach_the_partitioner() -> None:
    sizes = [len(part) for part in deal("LinearPartitioner", {})]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 8 * sizes[0]
    sizes = [len(part) for part in deal("ExponentialPartitioner", {}, 4)]
    assert sizes[3] > 2 * sizes[2] > 4 * sizes[1]
    for classes in (1, 2):
        options = {"num_classes_per_partition": classes, "class_assignment_mode": "deterministic"}
        assert {len(LABELS[part].unique()) for part in deal("PathologicalPartitioner", options)} == {classes}
    assert {len(part) for part in deal("InnerDirichletPartitioner", {"alpha": 0.1})} == {60}
    one, other = (
        deal("DirichletPartitioner", {"alpha": 0.5, "seed": seed, "min_partition_size": 0}) for seed in (1, 2)
    )
    assert not same(one, other)


def test_natural_clients_stay_whole() -> None:
    assert [USERS[part].unique().tolist() for part in deal("NaturalIdPartitioner", {})] == [[k] for k in range(5, 15)]
    pairs = [USERS[part].unique().tolist() for part in deal("GroupedNaturalIdPartitioner", {"group_size": 2}, 5)]
    assert sorted(torch.tensor(pairs).flatten().tolist()) == list(range(5, 15))
    # Another column may be named.
    labels = [LABELS[part].unique().tolist() for part in deal("NaturalIdPartitioner", {"partition_by": "label"})]
    assert labels == [[3 * k] for k in range(10)]


@pytest.mark.parametrize(
    ("name", "devices", "options", "says"),
    [
        ("", 4, {}, "partitioner is ''; accepted: ContinuousPartitioner, DirichletPartitioner, .*SquarePartitioner$"),
        ("VerticalEvenPartitioner", 4, {}, "partitioner is 'VerticalEvenPartitioner'; accepted: Cont"),
        ("Partitioner", 4, {}, "partitioner is 'Partitioner'; accepted: Cont"),
        ("DirichletPartitioner", 4, {}, "DirichletPartitioner needs options: alpha$"),
        ("DirichletPartitioner", 4, {"beta": 1}, "takes no option 'beta' here; accepted: partition_by, alpha, min_"),
        ("DirichletPartitioner", 4, {"alpha": 1.0, "num_partitions": 3}, "takes no option 'num_partitions' here"),
        ("IidPartitioner", 4, {"seed": 3}, "IidPartitioner takes no option 'seed' here; accepted: none$"),
        ("DirichletPartitioner", 4, {"alpha": 1.0, "partition_by": "image"}, "is 'image'; accepted here: label, user$"),
        ("DirichletPartitioner", 4, {"alpha": float("inf")}, "alpha is inf; above 0 and up to 1e"),
        ("DirichletPartitioner", 4, {"alpha": "much"}, "DirichletPartitioner: The given alpha format is not supported"),
        ("DirichletPartitioner", 4, {"alpha": 1.0, "seed": "x"}, "DirichletPartitioner: "),
        ("PathologicalPartitioner", 4, {"num_classes_per_partition": 11}, "greater than the number of unique classes"),
        ("ShardPartitioner", 4, {"num_shards_per_partition": 9999}, "ShardPartitioner: division by zero"),
        ("NaturalIdPartitioner", 4, {}, "devices is 4; 10, the partitions of NaturalIdPartitioner, is accepted"),
        ("NaturalIdPartitioner", 11, {}, "devices is 11; 10, the partitions of NaturalIdPartitioner, is accepted"),
        ("SizePartitioner", 4, {"partition_sizes": [1, 2]}, "devices is 4; 2, the partitions of SizePartitioner"),
        ("IidPartitioner", 601, {}, "devices is 601; 1 to 600"),
    ],
)
def test_refusals_are_one_line(name: str, devices: int, options: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says) as refused:
        deal(name, options, devices)
    assert "\n" not in str(refused.value)


def test_natural_ids_need_natural_clients() -> None:
    with pytest.raises(DataError, match=r"partition_by of NaturalIdPartitioner is 'user'; accepted here: label$"):
        partition("flwr", LABELS, 4, 0, partitioner="NaturalIdPartitioner")


def experiment() -> Simulation:
    document = {
        "partition": {"kind": "flwr", "partitioner": "PathologicalPartitioner", "options": {}},
        "rounds": {"count": 1},
        "tiers": {"large": {"devices": 2, "width": 1.0}, "small": {"devices": 8, "width": 0.5}},
    }
    return Simulation.parse(document, "test")


def test_an_experiment_names_its_partitioner() -> None:
    with pytest.raises(DataError, match="needs options: num_classes_per_partition"):
        make_federation(experiment())
    for classes in (1, 3):
        made = make_federation(experiment().changed(partition__options__num_classes_per_partition=classes))
        assert {len(device.examples.y.unique()) for device in made.devices.values()} == {classes}


def test_a_device_that_was_dealt_nothing_takes_no_part() -> None:
    changes = {"partitioner": "DirichletPartitioner", "options": {"alpha": 1e-3, "min_partition_size": 0}}
    made = make_federation(experiment().changed(**{f"partition__{key}": value for key, value in changes.items()}))
    without = [name for name, device in made.devices.items() if not len(device.examples)]
    assert without
    outcome = simulate(made)
    assert outcome.rounds[0].updates == 10 - len(without)
