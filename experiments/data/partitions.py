"""Partitions: which device holds which training examples.

Indices are positions in the labels given, so a partition of a part of a data set is an index into that part.
"""

import heapq
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diastole.client.errors import DataError
from diastole.experiments.data.dealing import Dealing, Index, PartitionRow, checked, own
from diastole.models.losses import is_own
from diastole.models.seeds import derive_seed
from diastole.proto.registry import Registry

MAX_ALPHA = 1e6

_HERE = "diastole.experiments.data"
PARTITIONS: Registry[PartitionRow] = Registry(
    "partition",
    {
        "iid": f"{_HERE}.partitions:IID",
        "dirichlet": f"{_HERE}.partitions:DIRICHLET",
        "inner-dirichlet": f"{_HERE}.partitions:INNER_DIRICHLET",
        "shards": f"{_HERE}.partitions:SHARDS",
        "quantity": f"{_HERE}.partitions:QUANTITY",
        "users": f"{_HERE}.partitions:USERS",
        "flwr": f"{_HERE}.flwr_partitioners:ROW",
    },
    PartitionRow,
    DataError,
)
"""Partitions by name; a package of one's own adds to them by an entry point."""


def partition(
    kind: str,
    labels: Tensor,
    devices: int,
    seed: int,
    *,
    alpha: float = 0.3,
    shards_per_device: int = 2,
    users: Tensor | None = None,
    minimum: int = 1,
    balanced: bool = False,
    partitioner: str = "",
    options: Mapping[str, Any] | None = None,
) -> list[Tensor]:
    """Deal examples to devices.

    Args:
        kind: how.
            "iid": at random; sizes differ by at most one.
            "dirichlet": the share of a class that each device gets is drawn from Dir(alpha), so labels and
            sizes are skewed (Hsu et al., Measuring the Effects of Non-Identical Data Distribution, 2019; in
            the form of Li et al., Federated Learning on Non-IID Data Silos, 2022, label skew by
            distribution).
            "inner-dirichlet": all devices hold equally many examples, and each draws its own mixture of labels
            from Dir(alpha), until a label has run out (Acar et al., Federated Learning Based on Dynamic
            Regularization, 2021, section 4).
            "quantity": labels are dealt at random, sizes are drawn from Dir(alpha) (Li et al. 2022, quantity skew).
            "shards": examples sorted by label are cut into equal shards and each device gets a few at random,
            hence few classes (McMahan et al., Communication-Efficient Learning, 2017, section 3).
            "users": natural clients. With as many devices as users, device k is the k-th user; with fewer, a
            device holds several whole users, so that sizes are balanced. Devices stay in random order.
            "package.module:function": by a function of the user's own, which is given a `Dealing`; it, and those of
            other packages, may leave examples out.
            "flwr": by a partitioner of flwr-datasets (`flwr_partitioners.py` beside this), which may leave examples
            out and devices without any.
        labels: int64 `[n]`.
        devices: 1 to `n`; for "users" at most the number of users.
        seed: of the run; the same arguments give the same partition on every machine.
        alpha: of the Dirichlet draws: near 0 each class (or everything) sits on one device, far above 1 all devices
            look alike.
        shards_per_device: of "shards".
        users: of "users" and "flwr": int64 `[n]`, the natural client of each example.
        minimum: of "dirichlet" and "quantity": examples each device has at least; those short of it get some from
            the largest. Of a function or of other packages: what is refused if a device has less.
        balanced: of "dirichlet": a device that has its equal share gets no part of the classes dealt after that (Li
            et al. 2022, reference code), so sizes differ less.
        partitioner: of "flwr": the name of its class.
        options: of "flwr": arguments for that class, besides the number of partitions.

    Returns:
        One sorted int64 index a device, disjoint; together every example once, save with "flwr".

    Raises:
        DataError: an unknown kind, a number that the examples do not allow, or flwr-datasets is not installed.

    """
    count = len(labels)
    row = own(kind) if is_own(kind) else PARTITIONS[kind]
    if not 1 <= devices <= count:
        raise DataError(f"partition {kind!r}: devices is {devices}; 1 to {count}, the examples, is accepted")
    dealing = Dealing(
        labels.numpy(),
        devices,
        seed,
        alpha,
        shards_per_device,
        None if users is None else users.numpy(),
        minimum,
        balanced,
        partitioner,
        options or {},
        np.random.default_rng(derive_seed(seed, "partition", kind)),
    )
    parts = row.deal(dealing)
    if not PARTITIONS.ships(kind):
        parts = checked(kind, parts, dealing)
    return [torch.from_numpy(np.sort(part)) for part in parts]


def _equal(index: Index, parts: int) -> list[Index]:
    return list(np.array_split(index, parts))


def check_alpha(kind: str, alpha: float) -> None:
    """Raise `DataError` for a concentration that numpy cannot draw from."""
    # Beyond some 1e300 numpy's draws are NaN; long before, devices are alike.
    if not 0 < alpha <= MAX_ALPHA:
        raise DataError(f"partition {kind!r}: alpha is {alpha}; above 0 and up to {MAX_ALPHA:g} is accepted")


def _check_minimum(kind: str, minimum: int, count: int, devices: int) -> None:
    if not 0 <= minimum <= count // devices:
        raise DataError(
            f"partition {kind!r}: minimum is {minimum}; 0 to {count // devices}, the examples for "
            f"each of {devices} devices, is accepted"
        )


def _dirichlet(
    labels: Index, devices: int, alpha: float, minimum: int, balanced: bool, draws: np.random.Generator
) -> list[Index]:
    check_alpha("dirichlet", alpha)
    _check_minimum("dirichlet", minimum, len(labels), devices)
    pieces: list[list[Index]] = [[] for _ in range(devices)]
    for label in np.unique(labels):
        examples = draws.permutation(np.flatnonzero(labels == label))
        shares = draws.dirichlet(np.full(devices, alpha))
        if balanced:
            room = np.array([sum(map(len, mine)) * devices < len(labels) for mine in pieces])
            # Where every device with room drew nothing at all, they share alike.
            shares = np.where(room, shares, 0.0) if (shares * room).sum() > 0 else room / room.sum()
            shares /= shares.sum()
        cuts = (np.cumsum(shares)[:-1] * len(examples)).astype(np.int64)
        for mine, piece in zip(pieces, np.split(examples, cuts), strict=True):
            mine.append(piece)
    # Shuffled, so that what a large device gives away below is a fair sample of what it has.
    held = [draws.permutation(np.concatenate(mine)).tolist() for mine in pieces]
    _level(held, minimum)
    return [np.array(index, np.int64) for index in held]


def _inner_dirichlet(labels: Index, devices: int, alpha: float, draws: np.random.Generator) -> list[Index]:
    check_alpha("inner-dirichlet", alpha)
    classes, rest = np.unique(labels, return_counts=True)
    queues = [draws.permutation(np.flatnonzero(labels == label)).tolist() for label in classes]
    sizes = [len(part) for part in _equal(np.arange(len(labels)), devices)]
    mixtures = draws.dirichlet(np.full(len(classes), alpha), size=devices)
    held: list[list[int]] = [[] for _ in range(devices)]
    # In turns, so that it is not always the last devices that get what is left.
    for turn in range(max(sizes)):
        for device in draws.permutation(devices):
            if turn < sizes[device]:
                open_shares = mixtures[device] * (rest > 0)
                if open_shares.sum() <= 0:
                    open_shares = rest.astype(np.float64)
                label = draws.choice(len(classes), p=open_shares / open_shares.sum())
                held[device].append(queues[label].pop())
                rest[label] -= 1
    return [np.array(index, np.int64) for index in held]


def _quantity(count: int, devices: int, alpha: float, minimum: int, draws: np.random.Generator) -> list[Index]:
    check_alpha("quantity", alpha)
    _check_minimum("quantity", minimum, count, devices)
    cuts = (np.cumsum(draws.dirichlet(np.full(devices, alpha)))[:-1] * count).astype(np.int64)
    held = [part.tolist() for part in np.split(draws.permutation(count), cuts)]
    _level(held, minimum)
    return [np.array(index, np.int64) for index in held]


def _level(held: list[list[int]], minimum: int) -> None:
    """Move examples from the largest device, one at a time, until every device has `minimum`.

    A device is short only while another has more than the mean, so no donor falls short itself and at most
    `len(held) * minimum` examples move.
    """
    sizes = np.array([len(index) for index in held])
    for device in np.flatnonzero(sizes < minimum):
        while sizes[device] < minimum:
            largest = int(sizes.argmax())
            held[device].append(held[largest].pop())
            sizes[device] += 1
            sizes[largest] -= 1


def _shards(labels: Index, devices: int, each: int, draws: np.random.Generator) -> list[Index]:
    if not 1 <= each <= len(labels) // devices:
        raise DataError(
            f"partition 'shards': shards_per_device is {each}; 1 to {len(labels) // devices}, the examples "
            f"for each of {devices} devices, is accepted"
        )
    shuffled = draws.permutation(len(labels))
    shards = _equal(shuffled[np.argsort(labels[shuffled], kind="stable")], devices * each)
    deal = draws.permutation(devices * each).reshape(devices, each)
    return [np.concatenate([shards[i] for i in mine]) for mine in deal]


def _users(users: Index | None, count: int, devices: int, draws: np.random.Generator) -> list[Index]:
    if users is None:
        raise DataError("partition 'users': users is None; the natural client of each example is accepted")
    if users.shape != (count,):
        raise DataError(f"partition 'users': users is {list(users.shape)}; [{count}], as labels, is accepted")
    names, sizes = np.unique(users, return_counts=True)
    if devices > len(names):
        raise DataError(f"partition 'users': devices is {devices}; 1 to {len(names)}, the natural clients, is accepted")
    owner = np.arange(len(names))
    if devices < len(names):
        # Devices are numbered at random, or the first would always hold the largest users.
        smallest = [(0, int(device)) for device in draws.permutation(devices)]
        order = draws.permutation(len(names))
        for user in order[np.argsort(-sizes[order], kind="stable")]:
            held, device = heapq.heappop(smallest)
            owner[user] = device
            heapq.heappush(smallest, (held + int(sizes[user]), device))
    place = owner[np.searchsorted(names, users)]
    return [np.flatnonzero(place == device) for device in range(devices)]


IID = PartitionRow(lambda it: _equal(it.draws.permutation(len(it.labels)), it.devices))
DIRICHLET = PartitionRow(lambda it: _dirichlet(it.labels, it.devices, it.alpha, it.minimum, it.balanced, it.draws))
INNER_DIRICHLET = PartitionRow(lambda it: _inner_dirichlet(it.labels, it.devices, it.alpha, it.draws))
SHARDS = PartitionRow(lambda it: _shards(it.labels, it.devices, it.shards_per_device, it.draws))
QUANTITY = PartitionRow(lambda it: _quantity(len(it.labels), it.devices, it.alpha, it.minimum, it.draws))
USERS = PartitionRow(lambda it: _users(it.users, len(it.labels), it.devices, it.draws))
