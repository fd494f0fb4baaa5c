import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diastole.client.errors import DataError
from diastole.experiments.data.partitions import PARTITIONS, partition

OURS = [kind for kind in tuple(PARTITIONS) if kind != "flwr"]
SEEDS = st.integers(0, 2**63 - 1)


def balanced(count: int, classes: int = 10) -> Tensor:
    return torch.arange(count) % classes


def entropy(labels: Tensor, parts: list[Tensor]) -> float:
    """The mean over devices, weighted by size, of the entropy of their labels, in nats."""
    total = 0.0
    for part in parts:
        shares = labels[part].bincount() / max(len(part), 1)
        total += len(part) * float(torch.special.entr(shares).sum())
    return total / len(labels)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, Tensor, int, int, Tensor]:
    kind = draw(st.sampled_from(OURS))
    labels = draw(st.lists(st.integers(0, 5), min_size=1, max_size=60))
    users = draw(st.lists(st.integers(3, 9), min_size=len(labels), max_size=len(labels)))
    most = {"users": len(set(users)), "shards": max(len(labels) // 2, 1)}.get(kind, len(labels))
    devices = draw(st.integers(1, most))
    return kind, torch.tensor(labels), devices, draw(SEEDS), torch.tensor(users)


@given(cases(), st.floats(1e-9, 1e3))
@settings(deadline=None)
def test_every_example_is_on_exactly_one_device(case: tuple[str, Tensor, int, int, Tensor], alpha: float) -> None:
    kind, labels, devices, seed, users = case
    each = min(2, len(labels) // devices)
    parts = partition(kind, labels, devices, seed, alpha=alpha, shards_per_device=each, users=users)
    assert len(parts) == devices
    assert all(part.dtype == torch.int64 and torch.equal(part, part.sort().values) for part in parts)
    assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))
    assert all(len(part) >= 1 for part in parts)


@pytest.mark.parametrize("kind", OURS)
def test_the_seed_and_nothing_else_decides(kind: str) -> None:
    labels, users = balanced(400), torch.arange(400) // 10
    first, again, other = (partition(kind, labels, 8, seed, users=users) for seed in (3, 3, 4))
    torch.manual_seed(1)
    np.random.seed(1)
    later = partition(kind, labels, 8, 3, users=users)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, again, later, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@given(st.integers(1, 80), st.integers(1, 80), SEEDS)
@settings(deadline=None)
def test_iid_sizes_differ_by_at_most_one(count: int, devices: int, seed: int) -> None:
    devices = min(devices, count)
    sizes = [len(part) for part in partition("iid", balanced(count), devices, seed)]
    assert max(sizes) - min(sizes) <= 1


@given(SEEDS)
@settings(deadline=None, max_examples=25)
def test_small_alpha_skews_the_labels_more_than_large_alpha(seed: int) -> None:
    labels = balanced(1000)
    skewed, mild, even = (
        entropy(labels, partition("dirichlet", labels, 10, seed, alpha=alpha)) for alpha in (0.05, 1.0, 1000.0)
    )
    assert skewed < mild < even
    assert skewed < even - 0.5
    assert even > 0.99 * np.log(10)


@given(st.integers(0, 10), st.floats(1e-12, 0.1), SEEDS)
@settings(deadline=None)
def test_dirichlet_leaves_no_device_below_the_minimum(minimum: int, alpha: float, seed: int) -> None:
    labels = balanced(100)
    parts = partition("dirichlet", labels, 10, seed, alpha=alpha, minimum=minimum)
    assert min(len(part) for part in parts) >= minimum
    assert torch.cat(parts).sort().values.tolist() == list(range(100))


def test_dirichlet_moves_only_what_the_short_devices_lack() -> None:
    labels = balanced(1000)
    free, filled = (partition("dirichlet", labels, 20, 0, alpha=0.02, minimum=m) for m in (0, 5))
    lacking = sum(max(5 - len(part), 0) for part in free)
    moved = sum(len(set(b.tolist()) - set(a.tolist())) for a, b in zip(free, filled, strict=True))
    assert moved == lacking > 0


@given(SEEDS)
@settings(deadline=None, max_examples=25)
def test_balanced_dirichlet_evens_the_sizes_and_not_the_labels(seed: int) -> None:
    labels = balanced(1000)
    even = partition("dirichlet", labels, 10, seed, alpha=0.1, balanced=True)
    # Whoever has its hundredth gets no further class, so at most one class comes on top of it.
    assert max(len(part) for part in even) < 100 + 100
    assert entropy(labels, even) < 1.6
    assert torch.cat(even).sort().values.tolist() == list(range(1000))


@given(SEEDS)
@settings(deadline=None, max_examples=15)
def test_inner_dirichlet_has_equal_sizes_and_skewed_labels(seed: int) -> None:
    labels = balanced(500)
    skewed, even = (partition("inner-dirichlet", labels, 7, seed, alpha=alpha) for alpha in (0.05, 1000.0))
    assert {len(part) for part in skewed} == {71, 72}
    # Labels run out, so even the most skewed draw must mix in the end.
    assert entropy(labels, skewed) + 0.4 < entropy(labels, even)


@given(SEEDS)
@settings(deadline=None, max_examples=25)
def test_quantity_skews_the_sizes_and_not_the_labels(seed: int) -> None:
    labels = balanced(2000)
    skewed, even = (partition("quantity", labels, 10, seed, alpha=alpha) for alpha in (0.2, 1000.0))
    spread = [torch.tensor([float(len(part)) for part in parts]).std() for parts in (skewed, even)]
    assert spread[1] < 20 < spread[0]
    assert entropy(labels, skewed) > 2.1


def test_dirichlet_shares_differ_between_classes() -> None:
    labels = balanced(1000, 2)
    parts = partition("dirichlet", labels, 5, 0, alpha=0.3)
    counts = torch.stack([labels[part].bincount(minlength=2) for part in parts])
    assert not torch.equal(counts[:, 0], counts[:, 1])


@pytest.mark.parametrize("each", [1, 2, 5])
def test_shards_bound_the_classes_of_a_device(each: int) -> None:
    labels = balanced(1000)
    parts = partition("shards", labels, 20, 0, shards_per_device=each)
    assert all(len(set(labels[part].tolist())) <= each for part in parts)
    assert {len(part) for part in parts} == {50}


def test_shards_are_dealt_at_random() -> None:
    labels = balanced(1000)
    pairs = {tuple(labels[part].tolist()) for part in partition("shards", labels, 20, 0)}
    assert any(max(pair) - min(pair) > 1 for pair in pairs)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=80), st.integers(1, 13), SEEDS)
@settings(deadline=None)
def test_users_stay_whole(users: list[int], devices: int, seed: int) -> None:
    natural = torch.tensor(users)
    parts = partition("users", natural * 0, min(devices, len(set(users))), seed, users=natural)
    held = [set(natural[part].tolist()) for part in parts]
    assert all(not a & b for a, b in itertools.combinations(held, 2))
    sizes = [len(part) for part in parts]
    # Greedy never puts a user onto a device while a smaller one is there.
    assert max(sizes) - min(sizes) <= int(natural.bincount().max())


def test_as_many_devices_as_users_gives_each_its_own() -> None:
    users = torch.tensor([9, 4, 4, 7, 9, 9])
    parts = partition("users", torch.zeros(6).long(), 3, 0, users=users)
    assert [part.tolist() for part in parts] == [[1, 2], [3], [0, 4, 5]]


def test_fewer_devices_than_users_are_filled_evenly() -> None:
    users = torch.arange(10).repeat_interleave(torch.tensor([90, 10, 10, 10, 10, 10, 10, 10, 10, 10]))
    firsts = set()
    for seed in range(20):
        parts = partition("users", users * 0, 2, seed, users=users)
        assert [len(part) for part in parts] == [90, 90]
        firsts.add(0 in parts[0])
    assert firsts == {True, False}, "the largest user is not always on device 0"


@pytest.mark.parametrize(
    ("kind", "devices", "options", "says"),
    [
        ("zipf", 2, {}, "unknown partition 'zipf'; known: iid, dirichlet, inner-dirichlet, shards, quantity, users"),
        ("iid", 0, {}, "devices is 0; 1 to 20"),
        ("iid", -1, {}, "devices is -1; 1 to 20"),
        ("shards", 21, {}, "devices is 21; 1 to 20"),
        ("dirichlet", 2, {"alpha": 0.0}, "alpha is 0.0; above 0"),
        ("dirichlet", 2, {"alpha": -1.0}, "alpha is -1.0"),
        ("dirichlet", 2, {"alpha": float("nan")}, "alpha is nan"),
        ("dirichlet", 2, {"alpha": float("inf")}, "alpha is inf"),
        ("dirichlet", 3, {"minimum": 7}, "minimum is 7; 0 to 6"),
        ("dirichlet", 3, {"minimum": -1}, "minimum is -1; 0 to 6"),
        ("shards", 2, {"shards_per_device": 0}, "shards_per_device is 0; 1 to 10"),
        ("shards", 2, {"shards_per_device": 11}, "shards_per_device is 11; 1 to 10"),
        ("users", 2, {}, "users is None"),
        ("users", 2, {"users": torch.zeros(3).long()}, r"users is \[3\]; \[20\]"),
        ("users", 3, {"users": torch.arange(20) % 2}, "devices is 3; 1 to 2, the natural clients"),
    ],
)
def test_refusals_name_the_value_and_what_is_accepted(
    kind: str, devices: int, options: dict[str, float], says: str
) -> None:
    with pytest.raises(DataError, match=says) as refused:
        partition(kind, balanced(20), devices, 0, **options)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_without_flwr_datasets_its_partitioners_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"flwr-datasets is not installed; pip install 'diastole\[flwr-datasets\]'$"):
        partition("flwr", balanced(20), 2, 0, partitioner="IidPartitioner")
