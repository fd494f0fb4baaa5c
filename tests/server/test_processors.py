"""What is done to each contribution and to their mean, by processors that do something."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from scripted import MODEL, TRAINING, examples
from torch import Tensor

from diastole.client.training import train
from diastole.models.coordinates import Contribution, Patch, covered
from diastole.models.errors import StateError
from diastole.models.method import Weight
from diastole.models.methods.registry import make_method
from diastole.models.moment import Moment
from diastole.models.seeds import derive_seed
from diastole.models.state import State
from diastole.models.task import Update
from diastole.proto.profile import Profile
from diastole.server.link import Failure
from diastole.server.opened import Closed
from diastole.server.processors import Processor
from diastole.server.round import Rounds
from diastole.server.settings import RoundConfig, Settings


def changes(contribution: Contribution, state: State) -> dict[str, Tensor]:
    return {name: patch.values - patch.region.view(state[name]) for name, patch in contribution.items()}


def moved(contribution: Contribution, state: State, change: dict[str, Tensor]) -> Contribution:
    return {
        name: Patch(patch.region, patch.region.view(state[name]) + change[name]) for name, patch in contribution.items()
    }


def norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in tensors))


@dataclass
class Clip:
    """Shortens what a device says to a norm, as for differential privacy (McMahan et al., ICLR 2018)."""

    most: float

    def contribution(self, contribution: Contribution, weight: Weight, state: State, moment: Moment) -> Contribution:
        change = changes(contribution, state)
        share = self.most / norm(change.values())
        if share >= 1:
            return contribution
        return moved(contribution, state, {name: share * tensor for name, tensor in change.items()})

    def mean(self, delta: State, covered: dict[str, Tensor], moment: Moment) -> State:
        return delta


@dataclass
class Affine:
    """Encodes every change as `factor * change + offset`, and the mean back again."""

    factor: float = 1.0
    offset: float = 0.0

    def contribution(self, contribution: Contribution, weight: Weight, state: State, moment: Moment) -> Contribution:
        change = changes(contribution, state)
        return moved(contribution, state, {name: self.factor * t + self.offset for name, t in change.items()})

    def mean(self, delta: State, covered: dict[str, Tensor], moment: Moment) -> State:
        return {name: torch.where(covered[name], (t - self.offset) / self.factor, t) for name, t in delta.items()}


@dataclass
class Noise:
    """Adds noise to the mean from the seed it is given, and notes the seeds."""

    scale: float
    seeds: list[int] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)

    def contribution(self, contribution: Contribution, weight: Weight, state: State, moment: Moment) -> Contribution:
        self.seeds.append(moment.seed)
        self.weights.append(weight)
        return contribution

    def mean(self, delta: State, covered: dict[str, Tensor], moment: Moment) -> State:
        self.seeds.append(moment.seed)
        draws = torch.Generator().manual_seed(moment.seed)
        return {
            name: t + self.scale * torch.randn(t.shape, generator=draws, dtype=t.dtype) for name, t in delta.items()
        }


def play(
    processors: Sequence[Processor], widths: Sequence[float] = (1.0,), devices: str = "ab", name: str = "width"
) -> tuple[State, Rounds, list[Update], list[Failure]]:
    """Return the global state before a round, the rounds behind it, the updates and what was refused."""
    method = make_method(name, MODEL, widths, TRAINING)
    start = method.initial(0)
    rounds = Rounds(Settings(MODEL, TRAINING, RoundConfig(count=2), 3), method, start, processors=processors)
    rounds.prepare(1)
    memory = rounds.sizes[0].cost.memory
    profiles = {device: Profile("test", 12, memory if device == "b" else None) for device in devices}
    opened = rounds.open(1, profiles)
    updates = [train(MODEL, task, opened.states[task.spec], examples()) for task in opened.tasks]
    refused: list[Failure] = []
    admitted = rounds.admit(opened, updates, refused.append)
    assert rounds.close(opened, admitted, lambda update: None, refused.append) == Closed(
        len(updates) - len(refused), ""
    )
    return start, rounds, updates, refused


def test_what_is_within_the_norm_is_folded_as_it_is() -> None:
    free, clipped = play([])[1].state, play([Clip(1e9)])[1].state
    assert all(torch.equal(free[name], tensor) for name, tensor in clipped.items())


def test_a_clipped_round_moves_no_further_than_the_norm_and_in_the_same_direction() -> None:
    start, free, _, _ = play([], devices="a")
    _, clipped, _, _ = play([Clip(0.01)], devices="a")
    change = {name: free.state[name] - start[name] for name in start}
    share = 0.01 / norm(change.values())
    assert share < 0.5
    for name in start:
        torch.testing.assert_close(clipped.state[name] - start[name], share * change[name], rtol=1e-3, atol=1e-7)


def test_every_device_is_clipped_by_itself() -> None:
    start, rounds, updates, _ = play([Clip(0.01)])
    expected = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in start.items()}
    for update in updates:
        change = {name: (update.state[name] - start[name]).double() for name in start}
        for name, tensor in change.items():
            expected[name] += 0.01 / norm(change.values()) * tensor / len(updates)
    for name in start:
        torch.testing.assert_close((rounds.state[name] - start[name]).double(), expected[name], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", ["width", "fedrolex", "diastole"])
def test_contributions_go_forward_and_the_mean_back(name: str) -> None:
    # (2 c + 1 - 1) / 2 = c; in any other order something is left over.
    _, plain, _, _ = play([], (1.0, 0.5), name=name)
    _, coded, _, _ = play([Affine(factor=2.0), Affine(offset=1.0)], (1.0, 0.5), name=name)
    for tensor, values in plain.state.items():
        torch.testing.assert_close(coded.state[tensor], values, rtol=0, atol=1e-6)


def test_noise_is_drawn_from_named_seeds_and_moves_only_what_is_covered() -> None:
    states = []
    for _ in range(2):
        noise = Noise(0.1)
        start, rounds, updates, _ = play([noise], (0.5, 1.0), devices="b")
        states.append(rounds.state)
        assert noise.seeds == [derive_seed(3, 1, "b", "process"), derive_seed(3, 1, "process")]
        assert noise.weights == [12.0]
        # The small device covers a part of the hidden tensors; what it does not cover stays.
        (update,) = updates
        spoken = covered(rounds.method.dilate(update.state, update.spec), start)
        assert not all(mask.all() for mask in spoken.values())
        for name, mask in spoken.items():
            assert torch.equal(rounds.state[name] != start[name], mask)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class Refuse(Clip):
    def contribution(self, contribution: Contribution, weight: Weight, state: State, moment: Moment) -> Contribution:
        if norm(changes(contribution, state).values()) > self.most:
            raise StateError("change is longer than is accepted")
        return contribution


def test_what_a_processor_refuses_is_told_and_counts_for_nothing() -> None:
    start, _, updates, _ = play([], (0.5, 1.0))
    (large,) = [update for update in updates if update.device == "a"]
    length = norm(large.state[name] - start[name] for name in start)
    _, rounds, _, refused = play([Refuse(0.999 * length)], (0.5, 1.0))
    assert refused == [Failure("a", "change is longer than is accepted", faulty=True)]
    _, alone, _, _ = play([], (0.5, 1.0), devices="b")
    assert all(torch.equal(rounds.state[name], tensor) for name, tensor in alone.state.items())
