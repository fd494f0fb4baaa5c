"""What a card does, on a CPU: chunks in steps to replay, objectives, dropout, convolutions, precision."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from diastole.client.training import train
from diastole.models.dropout import Dropout
from diastole.models.methods.registry import build, make_method
from diastole.models.methods.widths.width import spec_of
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.own import register
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.models.training import Examples, TrainConfig
from diastole.proto.profile import Profile
from diastole.server.coordinator import Coordinator
from diastole.server.link import Failure
from diastole.server.settings import RoundConfig, Settings
from diastole.simulations.devices import Device
from diastole.simulations.engines.agreement import Beside
from diastole.simulations.engines.batched import BatchedLink
from diastole.simulations.engines.card import Card, Pool
from diastole.simulations.engines.grouped import group
from diastole.simulations.engines.loop import LoopLink
from diastole.simulations.engines.masks import Mask, hashed
from diastole.simulations.engines.stacked import grouped, programs, vmapped
from diastole.simulations.engines.together import Together

CPU = torch.device("cpu")
IMAGES = ModelConfig(name="cnn", input_shape=(1, 10, 10), classes=4, widths=(8, 16))
RESNET = ModelConfig(name="resnet", input_shape=(3, 8, 8), classes=4, widths=(8, 16), blocks=(1, 1))
DROPPING = ModelConfig("simple-cnn", (1, 10, 10), 4, (8, 8, 16))
# With batches of 8: partial ones, whole ones, fewer than a batch, a single example, none.
COUNTS = (27, 16, 5, 1, 0)
SGD = TrainConfig(epochs=2, batch_size=8, momentum=0.0)
HEAVY = TrainConfig(epochs=2, batch_size=8, momentum=0.9, weight_decay=1e-2)
ADAM = TrainConfig(epochs=2, batch_size=8, optimiser="adam", learning_rate=1e-3, weight_decay=1e-2)


def examples(model: ModelConfig, counts: Sequence[int] = COUNTS) -> Mapping[str, Examples]:
    draws = torch.Generator().manual_seed(7)
    return {
        f"device-{k}": Examples(
            torch.randn(count, *model.input_shape, generator=draws),
            torch.randint(model.classes, (count,), generator=draws),
        )
        for k, count in enumerate(counts)
    }


def card(model: ModelConfig, held: Mapping[str, Examples]) -> Card:
    return Card(model, CPU, Pool.of(held, CPU))


def largest(model: ModelConfig, method: str, training: TrainConfig) -> tuple[SubModelSpec, State]:
    made = make_method(method, model, (0.5, 1.0), training)
    made.prepare(made.initial(0), None, Moment(1, 2, 0))
    spec = made.offers()[-1].spec
    return spec, made.compress(spec)


def tasks(spec: SubModelSpec, training: TrainConfig, devices: int = len(COUNTS)) -> list[Task]:
    return [Task(f"r1-{k}", 1, f"device-{k}", spec, training, 100 + k, 0.5) for k in range(devices)]


@pytest.mark.parametrize(
    ("method", "model", "training"),
    [
        pytest.param("width", IMAGES, ADAM, marks=pytest.mark.slow),
        pytest.param("width", RESNET, HEAVY, marks=pytest.mark.slow),
        ("diastole", IMAGES, SGD),
        pytest.param("diastole", RESNET, HEAVY, marks=pytest.mark.slow),
        pytest.param("depthfl", RESNET, SGD, marks=pytest.mark.slow),
        pytest.param("scalefl", IMAGES, SGD, marks=pytest.mark.slow),
        pytest.param("splitmix", IMAGES, HEAVY, marks=pytest.mark.slow),
    ],
)
def test_chunks_are_trained_as_in_the_loop(method: str, model: ModelConfig, training: TrainConfig) -> None:
    held, (spec, state) = examples(model), largest(model, method, training)
    work, there = tasks(spec, training), card(model, held)
    assert there.programs((spec, training, ""))
    # What was captured for five devices is used for four too, and nothing is left of the chunk before.
    expected = {task.device: train(model, task, state, held[task.device]) for task in work}
    for few in (work, work[:-1], work[1:4]):
        found = there.train(few, state, lambda: False)
        assert found is not None
        for k, task in enumerate(few):
            update = expected[task.device]
            assert float(found.losses[k]) == pytest.approx(update.report.loss, rel=1e-3, abs=1e-5)
            for name, tensor in update.state.items():
                torch.testing.assert_close(found.stack[name][k], tensor, rtol=1e-4, atol=1e-5)


class Normed(nn.Module):
    """BatchNorm on maps and on vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.maps = nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.hidden, self.vectors, self.classifier = nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = nn.functional.adaptive_avg_pool2d(self.maps(self.conv(x)).relu(), 2)
        return self.classifier(self.vectors(self.hidden(maps.flatten(1))).relu())


@pytest.mark.parametrize(
    ("method", "augment", "normalised"),
    [
        ("width", (), True),
        ("diastole", ("flip", "crop:0.25", "cutout"), True),
        pytest.param("width", ("flip", "cutout"), False, marks=pytest.mark.slow),
        pytest.param("diastole", (), True, marks=pytest.mark.slow),
        pytest.param("depthfl", ("crop",), False, marks=pytest.mark.slow),
    ],
)
def test_batch_norm_and_changed_examples_are_trained_together(
    method: str, augment: tuple[str, ...], normalised: bool
) -> None:
    model = RESNET
    if normalised:
        model = ModelConfig("custom", (1, 10, 10), classes=4, factory=register(Normed()))
    training = TrainConfig(epochs=2, batch_size=8, augment=augment)
    held, (spec, state) = examples(model, (17, 25, 16, 8, 5, 1, 0)), largest(model, method, training)
    devices = {name: Device(Profile("any", len(mine)), mine) for name, mine in held.items()}
    work = tasks(spec, training, len(held))
    expected = {each.device: each for each in LoopLink(model, devices).dispatch(work, {spec: state}, None)}
    # One example has one value a channel, of which a BatchNorm of vectors leaves nothing.
    assert [name for name, each in expected.items() if isinstance(each, Failure)] == ["device-5"] * normalised
    for like_card in (True, False):
        link = BatchedLink(model, devices, workers=1, like_card=like_card)
        found = {each.device: each for each in link.dispatch(work, {spec: state}, None)}
        assert found.keys() == expected.keys()
        if like_card:
            assert link.cards[0].captured
        for name, update in expected.items():
            mine = found[name]
            if isinstance(update, Failure) or isinstance(mine, Failure):
                assert mine == update
                continue
            assert mine.report.loss == pytest.approx(update.report.loss, rel=1e-3, abs=1e-5)
            for key, tensor in update.state.items():
                torch.testing.assert_close(mine.state[key], tensor, rtol=1e-4, atol=1e-5)


def test_what_mixes_examples_otherwise_is_trained_one_by_one() -> None:
    assert not programs(IMAGES, spec_of(0.5), CPU, replace(SGD, augment=("flip", "mixup")))
    assert programs(IMAGES, spec_of(0.5), CPU, replace(SGD, augment=("flip",)))


def test_steps_are_captured_once_for_chunks_of_about_a_size() -> None:
    held, (spec, state) = examples(IMAGES), largest(IMAGES, "width", SGD)
    there, work = card(IMAGES, held), tasks(spec, SGD)
    first = there.train(work, state, lambda: False)
    second = there.train(work, state, lambda: False)
    assert [each.devices for each in there.captured[spec, SGD, ""]] == [5]
    assert first is not None
    assert second is not None
    assert all(torch.equal(first.stack[name], second.stack[name]) for name in first.stack)
    there.train(work[:2], state, lambda: False)
    assert [each.devices for each in there.captured[spec, SGD, ""]] == [5, 2]
    assert there.train(work, state, lambda: True) is None
    assert there.forget()
    assert not there.forget()


def test_masks_are_functions_of_seed_step_and_layer() -> None:
    layer, x = Mask(Dropout(0.25), 0), torch.ones(40, 8, 6)
    layer.key = torch.tensor(12)
    once, again = layer(x), layer(x)
    assert torch.equal(once, again)
    assert set(once.unique().tolist()) == {0.0, float(torch.tensor(256 / 192))}
    assert float((once > 0).float().mean()) == pytest.approx(0.75, abs=0.04)
    other = Mask(Dropout(0.25), 1)
    other.key = layer.key
    assert 0.25 < float((other(x) != once).float().mean()) < 0.5
    whole = Mask(Dropout(0.5, maps=True), 0)
    whole.key = layer.key
    assert (whole(x).amin(-1) == whole(x).amax(-1)).all()
    # SplitMix64's own first numbers from the seed 0 are hashes of multiples of its constant.
    golden = 0x9E3779B97F4A7C15 - (1 << 64)
    first = hashed(torch.tensor([1, 2]) * golden)
    assert [int(each) % (1 << 64) for each in first] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_programs_drop_the_same_and_a_device_has_its_masks_in_every_chunk() -> None:
    held, (spec, state) = examples(DROPPING), largest(DROPPING, "width", SGD)
    found = programs(DROPPING, spec, CPU, SGD)
    assert list(found) == ["vmapped", "grouped"]
    there, work = card(DROPPING, held), tasks(spec, SGD)
    together, alone = there.train(work, state, lambda: False), there.train(work[1:2], state, lambda: False)
    assert together is not None
    assert alone is not None
    still = there.train([Task("r1", 1, "device-1", spec, SGD, 7, 0.5)], state, lambda: False)
    assert still is not None
    for name, tensor in alone.stack.items():
        torch.testing.assert_close(together.stack[name][1], tensor[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(still.stack["classifier.weight"], alone.stack["classifier.weight"], atol=1e-3)


class Strided(nn.Module):
    """Every setting of a convolution that an unfolded one must mind."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
        self.second = nn.Conv2d(4, 6, 3, groups=2, bias=False)
        self.classifier = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.second(self.first(x).relu())
        return self.classifier(nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1))


@pytest.mark.parametrize("kind", [Strided, lambda: build(RESNET)])
def test_unfolded_convolutions_are_those_of_each_device(kind: type[nn.Module]) -> None:
    module, unfolding = kind(), group(kind(), "unfolded")
    assert unfolding is not None
    draws = torch.Generator().manual_seed(3)
    channels = module(torch.zeros(1, 2, 9, 9)).shape[0] * 2 if kind is Strided else 3
    stack = {name: 0.2 * torch.randn(3, *p.shape, generator=draws) for name, p in module.named_parameters()}
    x, y = torch.randn(5, 3, channels, 9, 9, generator=draws), torch.randint(4, (5, 3), generator=draws)
    weight, criterion = torch.rand(5, 3, generator=draws), TrainConfig().criterion
    found, losses = grouped(unfolding, criterion)(stack, x, y, weight)
    expected, others = vmapped(module, criterion)(stack, x, y, weight, Beside.none(3, CPU))
    torch.testing.assert_close(losses, others, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_with_bfloat16_weights_stay_float32_and_come_out_nearly_the_same() -> None:
    held, (spec, state) = examples(IMAGES), largest(IMAGES, "width", SGD)
    exact = card(IMAGES, held).train(tasks(spec, SGD), state, lambda: False)
    coarse = Card(IMAGES, CPU, Pool.of(held, CPU), "bf16").train(tasks(spec, SGD), state, lambda: False)
    assert exact is not None
    assert coarse is not None
    far = max(float((coarse.stack[name] - tensor).abs().max()) for name, tensor in exact.stack.items())
    assert 1e-5 < far < 0.05
    assert all(tensor.dtype == torch.float32 for tensor in coarse.stack.values())


def test_several_cards_share_the_chunks_and_one_that_is_too_small_takes_them_in_halves() -> None:
    held, (spec, state) = examples(IMAGES), largest(IMAGES, "width", SGD)
    devices = {name: Device(Profile("any", len(mine)), mine) for name, mine in held.items()}
    work, few = tasks(spec, SGD), 2
    expected = {update.device: update for update in LoopLink(IMAGES, devices).dispatch(work, {spec: state}, None)}

    class Small(Card):
        """A card that has no memory for more than a few devices."""

        def train(self, chunk: Sequence[Task], state: State, stopped: Callable[[], bool]) -> Together | None:
            if len(chunk) > few:
                raise torch.OutOfMemoryError("too many")
            return super().train(chunk, state, stopped)

    for cards in (1, 2):
        link = BatchedLink(IMAGES, devices)
        link.cards = [Small(IMAGES, CPU, Pool.of(held, CPU)) for _ in range(cards)]
        link._threads = cards
        assert link.chunk(spec, SGD, 5) == (5 if cards == 1 else 3)
        found = list(link.dispatch(work, {spec: state}, None))
        assert len(found) == len(work)
        for update in found:
            assert isinstance(update, Update)
            for name, tensor in expected[update.device].state.items():
                torch.testing.assert_close(update.state[name], tensor, rtol=1e-4, atol=1e-5)
        # What did not fit once is not tried again.
        assert all(len(chunk) <= few for chunk in link._chunks(work, state))


def test_a_federation_whose_rows_are_folded_together_is_that_of_the_loop() -> None:
    held = {name: mine for name, mine in examples(IMAGES).items() if len(mine)}
    devices = {name: Device(Profile("any", len(mine)), mine) for name, mine in held.items()}
    settings = Settings(IMAGES, SGD, RoundConfig(count=3, cohort=3), seed=0)
    found = []
    for link in (LoopLink(IMAGES, devices), BatchedLink(IMAGES, devices, like_card=True)):
        method = make_method("diastole", IMAGES, (0.5, 1.0), SGD)
        coordinator = Coordinator(settings, method, link, method.initial(0))
        found.append((coordinator.run(), [closed.updates for closed in coordinator.closed]))
    (ours, mine), (theirs, others) = found
    assert mine == others == [3, 3, 3]
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)
