"""Rounds alone, without a link: what they make of updates, against means that are worked out one value at a time."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from scripted import MODEL, TRAINING, examples

from diastole.client.training import train
from diastole.models.method import Method, Size, Weight
from diastole.models.methods.registry import build, make_method
from diastole.models.methods.widths.width import WidthMethod
from diastole.models.moment import Moment
from diastole.models.proxy import Proxy
from diastole.models.seeds import derive_seed, generator
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, state_of
from diastole.models.task import Task, Update
from diastole.models.training import TrainConfig, fit
from diastole.proto.profile import Profile
from diastole.server.link import Failure
from diastole.server.opened import Closed, Opened, named
from diastole.server.optimisers import ServerOptimiserConfig
from diastole.server.planner import Limits
from diastole.server.proxy import ProxyConfig
from diastole.server.round import Rounds
from diastole.server.sampler import About
from diastole.server.settings import RoundConfig, Settings

WIDTHS = (1.0, 0.5)
PROXY = Proxy(examples(20, 1), examples(10, 2))
SEED = 3


@dataclass
class Field:
    """Rounds, and devices that train what they are given; every other one can only afford the smallest size."""

    rounds: Rounds
    profiles: dict[str, Profile]
    diary: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def train(self, opened: Opened, tasks: Sequence[Task] | None = None) -> Iterator[Update | Failure]:
        for task in opened.tasks if tasks is None else tasks:
            self.diary.append(f"trained {task.device}")
            shard = examples(self.profiles[task.device].examples, seed=ord(task.device[0]))
            yield train(MODEL, task, opened.states[task.spec], shard)

    def close(self, opened: Opened, outcomes: Iterable[Update | Failure], **more: Any) -> Closed:
        admitted = self.rounds.admit(opened, outcomes, self.failures.append)
        return self.rounds.close(
            opened,
            admitted,
            lambda update: self.diary.append(f"folded {update.device}"),
            self.failures.append,
            **more,
        )

    def play(self, number: int) -> tuple[Closed, list[Update]]:
        opened = self.rounds.open(number, self.profiles)
        updates = list(self.train(opened))
        return self.close(opened, updates), [update for update in updates if isinstance(update, Update)]


def make(method: Method, start: State | None = None, count: int = 3, devices: int = 4, **more: Any) -> Field:
    settings = {key: more.pop(key) for key in ("limits", "optimiser", "proxy_training") if key in more}
    config = RoundConfig(count=count, quorum=more.pop("quorum", 0.5))
    rounds = Rounds(
        Settings(MODEL, TRAINING, config, SEED, **settings), method, start or method.initial(0), PROXY, **more
    )
    sizes = method.offers()
    small = sizes[0].cost.memory if sizes else None
    profiles = {
        name: Profile("test", 8 + 4 * number, memory=small if number % 2 else None)
        for number, name in enumerate("abcdefgh"[:devices])
    }
    rounds.prepare(1)
    return Field(rounds, profiles)


def mean_by_hand(state: State, weighed: Sequence[tuple[Update, Weight]], method: Method) -> State:
    """Return the global state after FedAvg over the devices that cover each value, one value after another."""
    sums: dict[tuple[str, int], float] = defaultdict(float)
    weights: dict[tuple[str, int], float] = defaultdict(float)
    for update, weight in weighed:
        for name, patch in method.dilate(update.state, update.spec).items():
            places = patch.region.take(torch.arange(state[name].numel()).view(state[name].shape)).flatten().tolist()
            share = weight if isinstance(weight, float | int) else weight[name]
            for place, value in zip(places, patch.values.flatten().tolist(), strict=True):
                sums[name, place] += share * (value - state[name].flatten()[place].item())
                weights[name, place] += share
    moved = {name: tensor.double().flatten() for name, tensor in state.items()}
    for (name, place), total in sums.items():
        moved[name][place] += total / weights[name, place]
    return {name: values.view(state[name].shape).float() for name, values in moved.items()}


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


OPTIONS: dict[str, dict[str, Any]] = {"conv": {"epochs": 1, "weight_epochs": 1}}


@pytest.mark.parametrize("name", ["width", "fedrolex", "fjord", "diastole", "conv", "fiarse"])
def test_a_round_moves_every_value_to_the_mean_of_those_that_cover_it(name: str) -> None:
    method, again = (make_method(name, MODEL, WIDTHS, TRAINING, OPTIONS.get(name)) for _ in range(2))
    made = make(method)
    start = made.rounds.state
    again.prepare(start, PROXY, made.rounds.moment(1, "prepare"))
    closed, updates = made.play(1)
    assert closed == Closed(4, "")
    assert {update.spec for update in updates} == {size.spec for size in again.offers()}
    expected = mean_by_hand(start, list(again.weigh(updates, made.rounds.moment(1, "reconcile"))), again)
    for tensor, values in expected.items():
        torch.testing.assert_close(made.rounds.state[tensor], values, rtol=1e-6, atol=1e-7)
    assert not same(made.rounds.state, start)


class Everyone(WidthMethod):
    """Weighs nobody before everybody has come."""

    def needs_all(self, moment: Moment) -> bool:
        return True

    def weigh(self, updates: Iterable[Update], moment: Moment) -> Iterator[tuple[Update, Weight]]:
        self.seen = [update.device for update in updates]
        self.seed = moment.seed
        return super().weigh(updates, moment)


def test_a_method_that_needs_all_sees_every_update_in_the_order_of_names() -> None:
    method = Everyone(MODEL, WIDTHS, TRAINING)
    made = make(method)
    opened = made.rounds.open(1, made.profiles)
    made.close(opened, made.train(opened, list(reversed(opened.tasks))))
    assert method.seen == ["a", "b", "c", "d"]
    assert method.seed == derive_seed(SEED, 1, "reconcile")
    assert made.diary == [f"trained {d}" for d in "dcba"] + [f"folded {d}" for d in "abcd"]


def test_a_method_that_does_not_need_all_has_each_folded_before_the_next_is_asked_for() -> None:
    made = make(WidthMethod(MODEL, WIDTHS, TRAINING), devices=2)
    opened = made.rounds.open(1, made.profiles)
    made.close(opened, made.train(opened))
    assert made.diary == ["trained a", "folded a", "trained b", "folded b"]


def test_both_ways_give_the_same_bits() -> None:
    states = []
    for method in (WidthMethod(MODEL, WIDTHS, TRAINING), Everyone(MODEL, WIDTHS, TRAINING)):
        made = make(method)
        opened = made.rounds.open(1, made.profiles)
        made.close(opened, made.train(opened, list(reversed(opened.tasks))))
        states.append(made.rounds.state)
    assert same(*states)


@pytest.mark.parametrize("name", ["width", "conv"])
@pytest.mark.parametrize("why", ["quorum", "stopped"])
def test_an_abandoned_round_leaves_state_optimiser_and_method_as_they_were(name: str, why: str) -> None:
    method = make_method(name, MODEL, WIDTHS, TRAINING, OPTIONS.get(name))
    made = make(method, optimiser=ServerOptimiserConfig("fedadam", learning_rate=0.01), quorum=0.75)
    made.play(1)
    rounds = made.rounds
    state, sent = rounds.state, {size.spec: method.compress(size.spec) for size in method.offers()}
    kept = {key: tensor.clone() for key, tensor in (method.memory() | rounds.optimiser.memory()).items()}
    opened = rounds.open(2, made.profiles)
    outcomes = list(made.train(opened))
    if why == "quorum":
        closed = made.close(opened, outcomes[:2])
        assert closed.abandoned == "2 of 4 devices delivered; the quorum is 3"
    else:
        closed = made.close(opened, outcomes, stopped=lambda: True)
        assert closed.abandoned == "stopped by the operator"
    assert rounds.state is state
    assert same(method.memory() | rounds.optimiser.memory(), kept)
    assert all(same(method.compress(spec), tensors) for spec, tensors in sent.items())


def test_a_method_that_needs_all_is_not_asked_for_weights_in_an_abandoned_round() -> None:
    method = Everyone(MODEL, WIDTHS, TRAINING)
    made = make(method)
    opened = made.rounds.open(1, made.profiles)
    assert made.close(opened, []) == Closed(0, "0 of 4 devices delivered; the quorum is 2")
    assert not hasattr(method, "seen")


@pytest.mark.parametrize(("quorum", "needed"), [(0.01, 1), (0.5, 2), (0.51, 3), (0.75, 3), (1.0, 4)])
def test_a_quorum_is_a_share_of_the_cohort_and_at_least_one(quorum: float, needed: int) -> None:
    assert needed == max(1, math.ceil(quorum * 4))
    for delivered in range(5):
        made = make(WidthMethod(MODEL, WIDTHS, TRAINING), quorum=quorum)
        opened = made.rounds.open(1, made.profiles)
        closed = made.close(opened, made.train(opened, opened.tasks[:delivered]))
        assert bool(closed.abandoned) == (delivered < needed)


def test_failures_and_what_is_refused_are_told_and_the_rest_counts() -> None:
    made = make(WidthMethod(MODEL, WIDTHS, TRAINING), quorum=0.25)
    opened = made.rounds.open(1, made.profiles)
    honest = list(made.train(opened))
    spoilt = {name: torch.full_like(tensor, torch.nan) for name, tensor in honest[1].state.items()}
    outcomes = [Failure("a", "gone", False), Update(honest[1].task, spoilt, honest[1].report), honest[2]]
    assert made.close(opened, outcomes) == Closed(1, "")
    assert [(failure.device, failure.faulty) for failure in made.failures] == [("a", False), ("b", True)]
    assert made.diary[-1] == "folded c"


def test_devices_of_one_size_share_one_state() -> None:
    made = make(WidthMethod(MODEL, WIDTHS, TRAINING))
    opened = made.rounds.open(1, made.profiles)
    assert len(opened.states) == 2
    assert set(opened.states) == {task.spec for task in opened.tasks}
    assert [task.seed for task in opened.tasks] == [derive_seed(SEED, 1, device, "train") for device in "abcd"]
    assert [task.progress for task in made.rounds.open(2, made.profiles).tasks] == [1 / 3] * 4


def test_tasks_of_a_named_run_are_told_from_those_of_others() -> None:
    made = make(WidthMethod(MODEL, WIDTHS, TRAINING))
    tasks = made.rounds.open(1, made.profiles).tasks
    assert named(tasks, "") == list(tasks)
    assert [task.task_id for task in named(tasks, "x7")] == [f"x7-r1-{device}" for device in "abcd"]


def altered(update: Update, name: str) -> Update:
    tensor = update.state[name]
    return replace(update, state=update.state | {name: tensor + torch.ones((), dtype=tensor.dtype)})


def test_what_is_not_trained_comes_back_as_it_was_sent_or_not_at_all() -> None:
    # FIARSE's devices are sent a mask and a threshold.
    made = make(make_method("fiarse", MODEL, WIDTHS, TRAINING))
    opened = made.rounds.open(1, made.profiles)
    fixed = [name for name in opened.states[opened.tasks[1].spec] if name in ("mask", "threshold")]
    assert len(fixed) == 2
    honest = []
    for task in opened.tasks:
        update = train(MODEL, task, opened.states[task.spec], examples(made.profiles[task.device].examples))
        assert not set(fixed) & set(update.state)
        honest.append(update)
    # Others may send back all of it, as a Flower client does.
    sent = opened.states[honest[1].spec]
    generous = replace(honest[1], state={**sent, **honest[1].state})
    whole = [*made.rounds.admit(opened, [honest[0], generous, *honest[2:]], made.failures.append)]
    for update in (*made.rounds.admit(opened, honest, made.failures.append), *whole):
        assert list(update.state) == list(opened.states[update.spec])
    assert made.failures == []
    spoilt = [altered(generous, name) for name in fixed]
    assert list(made.rounds.admit(opened, spoilt, made.failures.append)) == []
    assert [failure.reason for failure in made.failures] == [
        f"tensor {name!r} is not trained, but it came back changed" for name in fixed
    ]


class Turns:
    """One device a round, in turn: a sampler of somebody's own."""

    def sample(self, able: Sequence[str], moment: Moment, about: About) -> Sequence[str]:
        return [able[(moment.round - 1) % len(able)]]


def test_a_sampler_of_ones_own_draws_the_cohort() -> None:
    made = make(WidthMethod(MODEL, WIDTHS, TRAINING), sampler=Turns())
    drawn = [[task.device for task in made.rounds.open(number, made.profiles).tasks] for number in range(1, 6)]
    assert drawn == [["a"], ["b"], ["c"], ["d"], ["a"]]
    closed, updates = made.play(2)
    assert (closed, [update.device for update in updates]) == (Closed(1, ""), ["b"])


def test_only_rounds_that_count_are_remembered_for_samplers() -> None:
    made = make(WidthMethod(MODEL, WIDTHS, TRAINING), quorum=0.75, devices=3)
    made.play(1)
    kept = made.rounds.memory()["history"]
    assert {name: past[:2] for name, past in kept["past"].items()} == {"a": (1, 1), "b": (1, 1), "c": (1, 1)}
    opened = made.rounds.open(2, made.profiles)
    assert made.close(opened, list(made.train(opened))[:1]).abandoned
    assert made.rounds.memory()["history"] == kept
    # Most of a round's updates are faulty: the round before is taken back, and what samplers know of it.
    opened = made.rounds.open(3, made.profiles)
    poisoned = [replace(u, state={n: t * math.nan for n, t in u.state.items()}) for u in made.train(opened)]
    assert "back to the model" in made.close(opened, poisoned).abandoned
    assert made.rounds.memory()["history"] == {"past": {}, "before": {}}


def test_a_method_that_offers_nothing_is_trained_by_the_server_alone_to_the_bit() -> None:
    method = make_method("proxy", MODEL, WIDTHS, TRAINING)
    config = ProxyConfig(epochs=2, batch_size=8)
    made = make(method, proxy_training=config)
    module = build(MODEL)
    module.load_state_dict(made.rounds.state)
    for number in (1, 2):
        opened = made.rounds.open(number, made.profiles)
        assert (opened.tasks, opened.states) == ([], {})
        assert made.close(opened, []) == Closed(0, "")
        progress = made.rounds.moment(number).progress
        draws = generator(derive_seed(SEED, number, "proxy"))
        fit(module, PROXY.training, config.training(TrainConfig()), draws, progress)
        assert same(made.rounds.state, state_of(module))


class Restarting(WidthMethod):
    """Changes the state that a round starts from."""

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> State:
        changed = {name: tensor + moment.round for name, tensor in state.items()}
        return super().prepare(changed, proxy, moment)


def test_a_round_starts_from_what_prepare_returns() -> None:
    start = WidthMethod(MODEL, [1.0], TRAINING).initial(0)
    made = make(Restarting(MODEL, [1.0], TRAINING), start, devices=1)
    (spec,) = (size.spec for size in made.rounds.sizes)
    assert all(torch.equal(made.rounds.state[name], start[name] + 1) for name in start)
    _, (update,) = made.play(1)
    # With one device the mean is what it brought; then the next round is prepared.
    for name in start:
        torch.testing.assert_close(made.rounds.state[name], update.state[name] + 2, rtol=0, atol=1e-6)
        assert torch.equal(made.rounds.open(2, made.profiles).states[spec][name], made.rounds.state[name])


def test_the_cost_of_an_update_is_that_of_its_size_for_every_example_and_epoch() -> None:
    made = make(WidthMethod(MODEL, WIDTHS, TRAINING))
    costs: dict[SubModelSpec, Size] = {size.spec: size for size in made.rounds.sizes}
    _, updates = made.play(1)
    for update in updates:
        assert made.rounds.cost(update) == costs[update.spec].cost.training_macs * update.examples * TRAINING.epochs


@pytest.mark.parametrize(("limits", "threads"), [({}, 0), ({"test": Limits()}, 0), ({"test": Limits(threads=2)}, 2)])
def test_a_tier_says_how_many_threads_its_devices_may_have(limits: dict[str, Limits], threads: int) -> None:
    field = make(WidthMethod(MODEL, WIDTHS, TRAINING), limits=limits)
    opened = field.rounds.open(1, field.profiles)
    assert [task.threads for task in opened.tasks] == [threads] * 4
