"""Every method on a card: the same federation as on the CPU, and nothing crosses but numbers for the report.

The stand-in card of `tests/helpers/card.py` computes as the CPU does, so the loop engine's bits are those of the CPU.
"""

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import card
import pytest
import torch
from torch import Tensor

from diastole.experiments.data.dataset import Dataset
from diastole.experiments.result import Result
from diastole.models.accumulator import Accumulator
from diastole.models.coordinates import Contribution, Patch, Region, Scalars
from diastole.models.crossing import CPU, fetch, send, send_all
from diastole.models.methods.registry import METHODS
from diastole.models.seeds import generator
from diastole.models.training import Examples
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate, simulate_in
from diastole.simulations.simulation import Simulation

NAMES = [
    pytest.param(name, marks=() if name == "conv" else pytest.mark.slow)
    for name, row in METHODS.items()
    if not row.each_width
]
KINDS = ("diastole", "width", "conv", "depthfl", "splitmix", "ofa", "fiarse")
"""Nested widths, widths, learned maps, depths with exits, ensembles, a supernet, scattered coordinates."""
OPTIONS: dict[str, dict[str, Any]] = {"conv": {"epochs": 1, "weight_epochs": 1}}


@cache
def data() -> Dataset:
    draws = generator("cards")

    def examples(count: int) -> Examples:
        return Examples(torch.randn(count, 1, 8, 8, generator=draws), torch.randint(4, (count,), generator=draws))

    return Dataset("cards", examples(46), examples(12), 4)


def ran(method: str, engine: str, device: str, folder: Path | None = None, **tables: Any) -> Result:
    """Run two rounds of three devices, the server's own training included; go on with what `folder` has."""
    document: dict[str, Any] = {
        "method": method,
        "engine": engine,
        "device": device,
        "data": {"proxy": 16},
        "model": {"name": "cnn", "widths": [4, 8], "group": 2},
        "partition": {"kind": "quantity", "alpha": 1.0, "minimum": 2},
        "training": {"batch_size": 8, "learning_rate": 0.02, "momentum": 0.5},
        "rounds": {"count": 2},
        "proxy": {"epochs": 1},
        "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 2, "width": 0.5}},
        "limits": (),
        "metrics": ("accuracy", "f1"),
    } | tables
    if method in OPTIONS:
        document["methods"] = {method: OPTIONS[method] | document.get("methods", {}).get(method, {})}
    federation = make_federation(Simulation.parse(document, method), data())
    return simulate(federation) if folder is None else simulate_in(folder, federation)[0]


def flat(result: Result) -> Tensor:
    return torch.cat([tensor.flatten().double() for _, tensor in sorted(result.state.items())])


def near(one: Result, other: Result) -> bool:
    return torch.allclose(flat(one), flat(other), rtol=1e-4, atol=1e-5)


@cache
def usual(method: str) -> Result:
    return ran(method, "loop", "cpu")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name == KINDS[0] else pytest.mark.slow) for name in KINDS]
)
def test_one_word_of_an_experiment_says_where_it_runs_and_not_what_it_comes_to(method: str) -> None:
    expected = usual(method)
    found = {("processes", "cpu"): ran(method, "processes", "cpu", workers=1)}
    found["batched", "cpu"] = ran(method, "batched", "cpu")
    for engine, where in product(("loop", "batched"), card.cards()):
        with card.watched(where):
            found[engine, where] = ran(method, engine, where)
    for (engine, where), result in found.items():
        assert near(result, expected), (engine, where)
        assert [(each.updates, each.bytes_down, each.bytes_up) for each in result.rounds] == [
            (each.updates, each.bytes_down, each.bytes_up) for each in expected.rounds
        ]
        if engine == "processes" or (engine, where) == ("loop", card.NAME):
            assert torch.equal(flat(result), flat(expected))
            assert [(each.scores, each.tier_scores) for each in result.rounds] == [
                (each.scores, each.tier_scores) for each in expected.rounds
            ]


@pytest.mark.parametrize("where", card.cards())
@pytest.mark.parametrize("method", NAMES)
def test_every_method_on_a_card_comes_to_what_it_does_on_the_cpu(method: str, where: str) -> None:
    expected = usual(method)
    with card.watched(where):
        found = ran(method, "loop", where)
    assert near(found, expected)
    if where == card.NAME:
        assert torch.equal(flat(found), flat(expected))
        assert [(each.scores, each.tier_scores) for each in found.rounds] == [
            (each.scores, each.tier_scores) for each in expected.rounds
        ]


@pytest.mark.slow
@pytest.mark.parametrize("where", card.cards())
def test_a_model_that_draws_trains_on_the_card(where: str) -> None:
    model = {"name": "simple-cnn", "widths": [4, 8, 8], "group": 2}
    expected = ran("fedavg", "batched", "cpu", model=model, proxy={"epochs": 0})
    with card.watched(where):
        found = ran("fedavg", "batched", where, model=model, proxy={"epochs": 0})
    # Its dropout draws other masks on a card.
    assert 0 < (flat(found) - flat(expected)).abs().max() < 0.1


@pytest.mark.parametrize("where", card.cards())
@pytest.mark.parametrize(
    "changes",
    [
        {"class_weights": (1.0, 2.0, 0.5, 1.0), "augment": ("flip", "cutout")},
        pytest.param({"augment": ("mixup",)}, marks=pytest.mark.slow),
    ],
)
def test_steps_of_devices_that_train_together_read_and_send_nothing(changes: dict[str, Any], where: str) -> None:
    training = {"batch_size": 8, "learning_rate": 0.02} | changes
    expected = ran("width", "loop", "cpu", training=training)
    for engine in ("loop", "batched"):
        with card.watched(where):
            found = ran("width", engine, where, training=training)
        assert near(found, expected)


BESIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "channels by importance": ("width", {"methods": {"width": {"sort": True, "every": 1}}}),
    "a proxy set without labels": ("diastole", {"data": {"proxy": 16, "proxy_labels": False}}),
    "maps fitted to a teacher": (
        "conv",
        {"data": {"proxy": 16, "proxy_labels": False}, "proxy": {"epochs": 0}, "methods": {"conv": {"labels": False}}},
    ),
    "stitches from devices": ("snnet", {"methods": {"snnet": {"initialise": "devices", "warmup": 0.0}}}),
    "masks of classes": ("width", {"methods": {"width": {"masked": True}}}),
    "codecs": ("width", {"codec": "int8"}),
    "a trimmed mean of scattered coordinates": ("fiarse", {"admission": {"fold": "trimmed-mean"}}),
    "Multi-Krum of rolling windows": ("fedrolex", {"admission": {"fold": "multi-krum"}}),
    "an attacker": ("width", {"attack": {"kind": "sign-flip", "tiers": {"small": 1}}}),
    "scores of each device": ("width", {"data": {"proxy": 16, "personal": 0.3}}),
    "examples that are changed": ("width", {"training": {"batch_size": 8, "augment": ["flip", "crop", "mixup"]}}),
    "an adaptive server": ("width", {"server": {"name": "fedyogi"}}),
    "an end by validation": ("width", {"data": {"proxy": 16}, "stopping": {"rounds": 1, "least": 1.0}}),
}


@pytest.mark.parametrize("where", card.cards())
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in BESIDE])
def test_what_a_run_has_beside_its_method_stays_on_the_card(name: str, where: str) -> None:
    method, tables = BESIDE[name]
    expected = ran(method, "loop", "cpu", **tables)
    with card.watched(where):
        found = ran(method, "loop", where, **tables)
    assert near(found, expected)
    if where == card.NAME:
        assert torch.equal(flat(found), flat(expected))
        assert found.personal == expected.personal


@pytest.mark.slow
@pytest.mark.parametrize("where", card.cards())
@pytest.mark.parametrize("method", ["conv", "width"])
def test_a_run_on_a_card_goes_on_from_its_checkpoint(method: str, where: str, tmp_path: Path) -> None:
    training = {"batch_size": 8, "learning_rate": 0.02, "momentum": 0.5, "schedule": "constant"}
    adaptive = {"server": {"name": "fedadam"}, "data": {"proxy": 16}, "training": training}
    expected = ran(method, "loop", "cpu", **adaptive)
    with card.watched(where):
        ran(method, "loop", where, tmp_path, **adaptive, rounds={"count": 1})
        found = ran(method, "loop", where, tmp_path, **adaptive)
    assert near(found, expected)


def test_the_stand_in_card_notes_what_nobody_asked_for() -> None:
    card.install()
    x = torch.arange(4.0).to("card")
    faults = {
        "mixes": lambda: x + torch.ones(4),
        "reads a number": lambda: float(x.sum()),
        "reads how many are not zero": lambda: x.nonzero(),
        "reads whether": lambda: torch.equal(x, x),
        "index.Tensor mixes": lambda: x[torch.tensor([0, 1])],
        "crosses": x.cpu,
    }
    for what, fault in faults.items():
        with pytest.raises(AssertionError, match=what), card.watched():
            fault()
    with card.watched():
        assert fetch([x.sum(), x])[0].item() == 6
        assert (x * 2.0 + torch.tensor(1.0))[send(torch.tensor([0]), x.device)].device == x.device


@pytest.mark.parametrize("where", card.cards())
def test_the_same_updates_fold_to_the_same_bits_on_a_card(where: str) -> None:
    draws = torch.Generator().manual_seed(3)
    state = {"a": torch.randn(6, 5, generator=draws), "b": torch.randn(7, generator=draws)}
    rows, columns, some = torch.tensor([4, 0, 1]), torch.tensor([3, 1]), torch.tensor([5, 2])

    def contribution() -> Contribution:
        return {
            "a": Patch(Region((rows, columns)), torch.randn(3, 2, generator=draws)),
            "b": Patch(Scalars(some), torch.randn(2, generator=draws)),
        }

    def block() -> Contribution:
        return {"a": Patch(Region.prefix((2, 5)), 1e3 * torch.randn(2, 5, generator=draws))}

    updates = [(make(), 1.5 + k) for k, make in enumerate([contribution, block] * 3)]
    there = torch.device(where, 0)
    here, moved = Accumulator(state), Accumulator(send_all(state, there))
    for each, weight in updates:
        here.fold(each, weight)
        with card.watched(where):
            moved.fold({n: Patch(patch.region, send(patch.values, there)) for n, patch in each.items()}, weight)
    for expected, found in zip(here.mean(), moved.mean(), strict=True):
        assert all(torch.equal(send(found[name], CPU), tensor) for name, tensor in expected.items())
