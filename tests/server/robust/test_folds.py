"""Robust folds against slow references, one coordinate at a time, over sub-models of several sizes."""

import math
import statistics
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from diastole.models.coordinates import Contribution, Patch, Region, Scalars, Tiles, covered
from diastole.models.state import State
from diastole.server.robust import blocks as blocks_module
from diastole.server.robust.blocks import blocks
from diastole.server.robust.fold import FOLDS, folding
from diastole.server.robust.krum import MultiKrum

REFERENCE: State = {
    "matrix": torch.randn(6, 4, generator=torch.Generator().manual_seed(1)),
    "vector": torch.randn(7, generator=torch.Generator().manual_seed(2)),
    "scalar": torch.tensor(0.5),
}


def contribution(seed: int) -> Contribution:
    """Return values at coordinates of every kind; by turns slices, indices, several regions and scattered ones."""
    draws = torch.Generator().manual_seed(seed)
    rows, columns = int(torch.randint(1, 7, (1,), generator=draws)), int(torch.randint(1, 5, (1,), generator=draws))
    picked = torch.randperm(7, generator=draws)[:3]
    matrix: Region | Scalars | Tiles = Region((slice(0, rows), slice(0, columns)))
    if seed % 3 == 1:
        matrix = Region((torch.randperm(6, generator=draws)[:rows], torch.randperm(4, generator=draws)[:columns]))
    if seed % 4 == 3:
        apart = Region((torch.tensor([5, 3]), torch.tensor([3, 1])))
        matrix = Tiles((Region((slice(0, 2), slice(0, columns))), Region((slice(2, 3), slice(0, 4))), apart))
    elif seed % 3 == 2:
        matrix = Scalars(torch.randperm(24, generator=draws)[:5])
    found = {
        "matrix": Patch(matrix, torch.randn(matrix.view(REFERENCE["matrix"]).shape, generator=draws)),
        "vector": Patch(Region((picked,)), torch.randn(3, generator=draws)),
    }
    if seed % 2:
        found["scalar"] = Patch(Region(()), torch.randn((), generator=draws))
    return found


COHORT = {f"d{seed}": contribution(seed) for seed in range(9)}


def dense(each: Contribution) -> dict[str, Tensor]:
    full = {name: torch.full(tensor.shape, torch.nan) for name, tensor in REFERENCE.items()}
    for name, patch in each.items():
        patch.region.put_(full[name], patch.values)
    return full


def trimmed(values: list[float], share: float) -> float:
    low = math.floor(share * len(values) + 1e-9)
    kept = sorted(values)[low : len(values) - low]
    return sum(kept) / len(kept)


OBVIOUS: Mapping[str, Callable[[list[float]], float]] = {
    "trimmed-mean": lambda values: trimmed(values, 0.25),
    "median": statistics.median,
}


def fold(name: str, devices: list[str], trim: float = 0.25) -> tuple[State, dict[str, Tensor]]:
    made = folding(name, REFERENCE, trim)
    for device in devices:
        made.add(device, COHORT[device], 1.0 + len(device))
    assert made.count == len(devices)
    return made.mean()


@pytest.mark.parametrize("size", [1 << 21, 8], ids=["whole", "by row"])
@pytest.mark.parametrize("name", OBVIOUS)
def test_a_coordinate_is_the_statistic_of_those_that_speak_for_it(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_module, "BLOCK", size)
    delta, mask = fold(name, list(COHORT))
    full = [dense(each) for each in COHORT.values()]
    for key, tensor in REFERENCE.items():
        for place in range(tensor.numel()):
            start = tensor.reshape(-1)[place].item()
            said = [each[key].reshape(-1)[place].item() - start for each in full]
            said = [value for value in said if not math.isnan(value)]
            assert mask[key].reshape(-1)[place] == bool(said)
            expected = OBVIOUS[name](said) if said else 0.0
            assert delta[key].reshape(-1)[place].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", FOLDS)
def test_the_order_of_arrival_does_not_change_a_bit(name: str) -> None:
    forwards, backwards = fold(name, list(COHORT)), fold(name, list(reversed(COHORT)))
    for first, second in zip(forwards, backwards, strict=True):
        assert all(torch.equal(first[key], second[key]) for key in REFERENCE)


@pytest.mark.parametrize("name", FOLDS)
def test_what_nobody_speaks_for_is_not_covered(name: str) -> None:
    delta, mask = fold(name, ["d0"])
    expected = covered(COHORT["d0"], REFERENCE)
    for key in REFERENCE:
        assert torch.equal(mask[key], expected[key])
        assert not delta[key][~mask[key]].any()


def slow_krum(devices: list[str], share: float) -> list[str]:
    full = {device: dense(COHORT[device]) for device in devices}

    def distance(one: str, other: str) -> float:
        pairs = [
            (a, b)
            for key in REFERENCE
            for a, b in zip(full[one][key].reshape(-1).tolist(), full[other][key].reshape(-1).tolist(), strict=True)
            if not math.isnan(a) and not math.isnan(b)
        ]
        return sum((a - b) ** 2 for a, b in pairs) / len(pairs) if pairs else math.inf

    faulty = math.floor(share * len(devices))
    near = max(1, len(devices) - faulty - 2)
    scores = {d: sum(sorted(distance(d, other) for other in devices if other != d)[:near]) for d in devices}
    return sorted(sorted(devices, key=lambda device: (scores[device], device))[: len(devices) - faulty])


@pytest.mark.parametrize("share", [0.0, 0.12, 0.25, 0.4])
@pytest.mark.parametrize("count", [1, 2, 3, 6, 9])
def test_krum_chooses_whoever_is_near_the_others(count: int, share: float) -> None:
    devices = list(COHORT)[:count]
    made = MultiKrum(REFERENCE, share)
    for device in devices:
        made.add(device, COHORT[device], 1.0)
    assert made.chosen() == slow_krum(devices, share)
    mean = folding("mean", REFERENCE, 0.0)
    for device in made.chosen():
        mean.add(device, COHORT[device], 1.0)
    assert all(torch.equal(made.mean()[0][key], mean.mean()[0][key]) for key in REFERENCE)


def test_blocks_hold_every_coordinate_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "BLOCK", 16)
    parts: dict[str, list[Tensor]] = {name: [] for name in REFERENCE}
    for name, _, changes in blocks(REFERENCE, list(COHORT.values())):
        assert changes.numel() <= max(16, len(COHORT) * REFERENCE[name][:1].numel() if REFERENCE[name].ndim else 16)
        parts[name].append(changes)
    for place, each in enumerate(COHORT.values()):
        for name, tensor in REFERENCE.items():
            found = torch.cat(parts[name], 1)[place].reshape(tensor.shape)
            torch.testing.assert_close(found, dense(each)[name].double() - tensor.double(), equal_nan=True)
