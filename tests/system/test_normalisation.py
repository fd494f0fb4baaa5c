"""Ordinary modules, with BatchNorm as people write it, through whole federations."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import diastole
from diastole.models.errors import ModelError
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.networks.custom.mixing import check_mixing
from diastole.models.networks.family import network
from diastole.models.recalibrate import mixes_examples, ready
from diastole.models.scoring import evaluate
from diastole.models.training import Examples
from diastole.server.events import Event, UpdateQuarantined
from diastole.simulations.devices import make_federation

CLASSES, SHAPE = 3, (2, 6, 6)


class Ordinary(nn.Module):
    """Convolutions, each with a BatchNorm that keeps running statistics, or has none."""

    def __init__(self, width: int = 8, tracks: bool = True) -> None:
        super().__init__()
        self.bn1, self.bn2 = (nn.BatchNorm2d(width, track_running_stats=tracks) for _ in range(2))
        self.conv1 = nn.Conv2d(2, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.fc = nn.Linear(36 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(F.relu(x + self.bn2(self.conv2(x))).flatten(1))


class Hidden(nn.Module):
    """Cannot be trained on one example, because its BatchNorm is on vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.outer = nn.Linear(72, 16), nn.BatchNorm1d(16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.relu(self.norm(self.inner(x.flatten(1)))))


class ByHand(nn.Module):
    """Looks at other examples without any layer that says so, only in training unless it does `always`."""

    def __init__(self, always: bool = False, how: str = "mean") -> None:
        super().__init__()
        self.inner, self.outer, self.always, self.how = nn.Linear(72, 16), nn.Linear(16, CLASSES), always, how

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x.flatten(1))
        if self.training or self.always:
            if self.how == "attention":
                x = x + torch.softmax(x @ x.T / 4, 1) @ x
            elif self.how in ("before", "after"):
                # As a recurrent layer without batch_first looks at what comes before.
                x = x.cumsum(0) if self.how == "before" else x.flip(0).cumsum(0).flip(0)
            elif self.how == "functional":
                x = F.batch_norm(x, None, None, training=True)
            else:
                x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
        return self.outer(F.relu(x))


class Scaled(nn.Module):
    """Has a parameter without axes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


@pytest.fixture(scope="module")
def data() -> tuple[Examples, Examples]:
    draws = torch.Generator().manual_seed(0)
    patterns, y = torch.randn(CLASSES, *SHAPE, generator=draws), torch.arange(220) % CLASSES
    x = 3 + 2 * patterns[y] + torch.randn(len(y), *SHAPE, generator=draws)
    return Examples(x[:160], y[:160]), Examples(x[160:], y[160:])


def experiment(module: nn.Module, train: Examples, test: Examples, **settings: object) -> diastole.Experiment:
    torch.manual_seed(0)
    made = {"method": "width", "rounds": 2, "tiers": {"large": 1.0, "small": 0.5}, "devices": 6, "data__proxy": 20}
    return diastole.Experiment(model=module, train=train, test=test, **made | settings)


def test_an_ordinary_module_is_trained_evaluated_and_given_back(
    data: tuple[Examples, Examples], tmp_path: Path
) -> None:
    train, test = data
    result = diastole.simulate(experiment(Ordinary(), train, test, training__epochs=3))
    assert result.accuracy is not None
    assert result.accuracy > 0.8
    by_label = test.subset(test.y.argsort(stable=True))
    again = diastole.simulate(experiment(Ordinary(), train, by_label, training__epochs=3))
    # What is trained and what is said of it do not depend on the order of the test set.
    assert all(torch.equal(tensor, again.state[name]) for name, tensor in result.state.items())
    assert [(r.accuracy, r.tier_accuracy) for r in result.rounds] == [
        (r.accuracy, r.tier_accuracy) for r in again.rounds
    ]
    result.file.write(tmp_path / "model.safetensors")
    for tier, width in (("large", 8), ("small", 4)):
        own = Ordinary(width)
        own.load_state_dict(diastole.load_model(tmp_path / "model.safetensors", tier=tier).state_dict())
        assert own.bn1.num_batches_tracked == 1
        assert evaluate(own, test).accuracy == result.rounds[-1].tier_accuracy[result.file.tiers[tier]]
        one_by_one = [evaluate(own, Examples(test.x[k : k + 1], test.y[k : k + 1])).accuracy for k in range(len(test))]
        assert sum(one_by_one) / len(test) == pytest.approx(evaluate(own, by_label).accuracy)


@pytest.mark.parametrize("method", [pytest.param("width", marks=pytest.mark.slow), "diastole"])
def test_without_statistics_of_its_own_it_is_evaluated_by_those_of_the_proxy_set(
    method: str, data: tuple[Examples, Examples], tmp_path: Path
) -> None:
    train, test = data
    # Noise, so that not everything is right.
    noise = torch.randn(test.x.shape, generator=torch.Generator().manual_seed(1))
    hard = Examples(test.x + 6 * noise, test.y)
    sorted_ = hard.subset(hard.y.argsort(stable=True))
    made = experiment(Ordinary(tracks=False), train, hard, method=method, rounds=1)
    result = diastole.simulate(made)
    again = diastole.simulate(experiment(Ordinary(tracks=False), train, sorted_, method=method, rounds=1))
    assert [(r.accuracy, r.tier_accuracy) for r in result.rounds] == [
        (r.accuracy, r.tier_accuracy) for r in again.rounds
    ]
    result.file.write(tmp_path / "model.safetensors")
    model = diastole.load_model(tmp_path / "model.safetensors")
    one_by_one = [evaluate(model, Examples(hard.x[k : k + 1], hard.y[k : k + 1])).accuracy for k in range(len(hard))]
    assert sum(one_by_one) / len(hard) == pytest.approx(evaluate(model, sorted_).accuracy)
    assert evaluate(model, sorted_).accuracy == result.accuracy
    assert result.accuracy < 1


def test_without_a_proxy_set_it_is_refused_before_anything_is_trained(data: tuple[Examples, Examples]) -> None:
    events: list[Event] = []
    message = "^a model with BatchNorm2d is evaluated .* has 0 training examples; set data.proxy to keep at least 2, or"
    with pytest.raises(diastole.DiastoleError, match=message):
        diastole.simulate(experiment(Ordinary(), *data, data__proxy=0), observers=[events.append])
    assert not events
    # Labels are not needed.
    settings = {"data__proxy": 4, "data__proxy_labels": False, "rounds": 1}
    assert diastole.simulate(experiment(Ordinary(), *data, **settings)).accuracy is not None


@pytest.mark.parametrize("module", [Hidden(), ByHand()], ids=["layer", "by hand"])
def test_unequal_devices_come_to_the_same_on_every_engine(module: nn.Module, data: tuple[Examples, Examples]) -> None:
    found, told = [], []
    for engine in ("loop", "batched"):
        events: list[Event] = []
        settings = {"engine": engine, "partition": {"kind": "quantity", "alpha": 0.3, "minimum": 1}, "devices": 10}
        found.append(diastole.simulate(experiment(module, *data, **settings), observers=[events.append]))
        told.append({(e.round, e.device, e.reason) for e in events if isinstance(e, UpdateQuarantined)})
    for name, tensor in found[0].state.items():
        # What mixes examples by hand is trained one by one.
        near = torch.allclose(found[1].state[name], tensor, rtol=1e-4, atol=1e-5)
        assert near if isinstance(module, Hidden) else torch.equal(found[1].state[name], tensor)
    assert told[0] == told[1]
    alone = {row.device for row in found[0].devices if row.examples == 1}
    assert alone
    if isinstance(module, Hidden):
        assert {device for _, device, _ in told[0]} == alone
        assert all("cannot be trained on a batch of one example; have at least 2" in reason for *_, reason in told[0])


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("conv", {"methods": {"conv": {"labels": False, "epochs": 1, "weight_epochs": 1}}}),
        ("diastole", {"proxy__epochs": 1}),
    ],
)
def test_what_methods_do_on_the_proxy_set_never_sees_one_example_alone(
    method: str, settings: dict[str, object], data: tuple[Examples, Examples]
) -> None:
    train, test = data
    many = Examples(train.x.repeat(12, 1, 1, 1), train.y.repeat(12))
    # 513 inputs for training on and for asking about are a slice of 512 and one more.
    proxy = {"data__proxy": 684, "data__proxy_labels": False, "rounds": 1, "training__batch_size": 256}
    assert diastole.simulate(experiment(Hidden(), many, test, method=method, **proxy, **settings)).accuracy is not None


@pytest.mark.parametrize("how", ["mean", "attention", "functional", "before", "after"])
def test_examples_that_see_each_other_are_found_by_trial(how: str) -> None:
    model = ModelConfig("custom", SHAPE, CLASSES, factory=custom.register(ByHand(how=how)))
    assert check_mixing(model, lambda: ByHand(how=how))
    assert mixes_examples(network(model))
    with pytest.raises(ModelError, match="gives another result for an example if other examples of the batch change"):
        check_mixing(model, lambda: ByHand(True, how))


def test_modules_that_treat_each_example_by_itself_are_left_as_they_are() -> None:
    model = ModelConfig("custom", SHAPE, CLASSES, factory=custom.register(plain()))
    assert not check_mixing(model, lambda: network(model))
    assert not mixes_examples(network(model))


def test_a_devices_own_scores_may_have_its_own_statistics(data: tuple[Examples, Examples]) -> None:
    shift = {"kind": "quantity", "alpha": 1.0, "minimum": 4, "noise": 1.0}
    made = experiment(Ordinary(), *data, partition=shift, data__personal=0.3, rounds=1)
    shared, own = diastole.simulate(made), diastole.simulate(made.changed(model__statistics="device"))
    assert all(torch.equal(tensor, own.state[name]) for name, tensor in shared.state.items())
    devices = make_federation(made.settings, made.given).devices
    for name, scores in own.personal.items():
        device, sizes = devices[name], own.file
        module = ready(sizes.module(size=scores.spec), device.examples.x)
        assert scores.before["loss"] == pytest.approx(evaluate(module, device.kept_examples).loss, rel=1e-5)
        assert scores.before != shared.personal[name].before


def test_a_module_that_is_cut_says_where_its_statistics_lie_in_the_users_own() -> None:
    model = ModelConfig(
        "custom", SHAPE, CLASSES, factory=custom.register(nn.Sequential(*chain())), stages=(("0",), ("3",))
    )
    module = ready(network(model), torch.randn(4, *SHAPE))
    paths = custom.paths(model) | custom.statistics_paths(model)
    own = nn.Sequential(*chain())
    own.load_state_dict({paths[name]: tensor for name, tensor in module.state_dict().items()})
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(own.eval()(x), module(x))


def chain() -> list[nn.Module]:
    def convolution(before: int) -> list[nn.Module]:
        return [nn.Conv2d(before, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]

    return [*convolution(2), *convolution(8), nn.Flatten(), nn.Linear(288, CLASSES)]


def plain() -> nn.Module:
    inner = nn.Linear(288, 16), nn.LayerNorm(16), nn.Dropout(0.1), nn.Linear(16, CLASSES)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.GroupNorm(4, 8),
        nn.InstanceNorm2d(8, affine=True),
        nn.Flatten(),
        *inner,
        Scaled(),
    )
