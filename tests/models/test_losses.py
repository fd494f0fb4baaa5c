"""Losses against loops over single targets, and what they refuse."""

from dataclasses import replace
from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.allowed import allow, give
from diastole.models.errors import ModelError
from diastole.models.losses import IGNORED, check_targets, outputs_for
from diastole.models.training import Examples, Objective, Step, TrainConfig, fit, loss_of

SEEDS = st.integers(0, 10_000)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(seed: int, many: int, *shape: int) -> Tensor:
    return torch.randint(many, shape, generator=torch.Generator().manual_seed(seed))


def softmax_loss(logits: list[float], label: int, weights: list[float], smoothing: float) -> float:
    """Cross-entropy of one target, by the definition: a smoothed target has a share of every class."""
    total = log(sum(map(exp, logits)))
    each = [weights[c] * (total - z) for c, z in enumerate(logits)]
    return (1 - smoothing) * each[label] + smoothing * sum(each) / len(each)


@given(SEEDS, st.sampled_from([0.0, 0.1]), st.booleans(), st.sampled_from([(), (3,), (2, 3)]), st.booleans())
def test_cross_entropy_is_the_mean_of_each_example_s_counted_targets(
    seed: int, smoothing: float, weighted: bool, places: tuple[int, ...], last: bool
) -> None:
    many, count = 4, 3
    outputs, y = drawn(seed, count, many, *places), classes(seed, many, count, *places)
    if places:
        y.view(-1)[classes(seed + 1, y.numel(), 2)] = IGNORED
    weights = [0.5, 1.0, 2.0, 0.0] if weighted else []
    name = "next-token" if last and len(places) == 1 else "cross-entropy"
    training = TrainConfig(loss=name, smoothing=smoothing, class_weights=weights)
    given_outputs = outputs.movedim(1, -1) if name == "next-token" else outputs
    found = training.criterion.each(given_outputs, y)
    for k in range(count):
        rows, labels = outputs[k].reshape(many, -1).T.tolist(), y[k].reshape(-1).tolist()
        losses = [
            softmax_loss(row, label, weights or [1.0] * many, smoothing)
            for row, label in zip(rows, labels, strict=True)
            if label != IGNORED
        ]
        assert found[k].item() == pytest.approx(sum(losses) / max(1, len(losses)), abs=1e-9)
    assert training.criterion.mean(given_outputs, y).item() == pytest.approx(found.mean().item(), abs=1e-9)


@given(SEEDS, st.sampled_from(["mse", "mae", "huber", "multi-label"]), st.sampled_from([(), (1,), (3,), (2, 3)]))
def test_losses_of_values_and_labels_are_means_over_each_example(seed: int, name: str, places: tuple[int, ...]) -> None:
    outputs, y = drawn(seed, 4, *(places or (1,))), drawn(seed + 1, 4, *places)
    if name == "multi-label":
        y = (y > 0).double()
        outputs = outputs.reshape(y.shape)
    training = TrainConfig(loss=name, delta=0.7) if name == "huber" else TrainConfig(loss=name)

    def one(z: float, t: float) -> float:
        away = abs(z - t)
        if name == "multi-label":
            share = 1 / (1 + exp(-z))
            return -log(share if t else 1 - share)
        if name == "huber":
            return away**2 / 2 if away <= 0.7 else 0.7 * (away - 0.35)
        return away if name == "mae" else away**2

    found = training.criterion.each(outputs, y)
    for k in range(4):
        pairs = list(zip(outputs[k].flatten().tolist(), y[k].flatten().tolist(), strict=True))
        assert found[k].item() == pytest.approx(sum(one(*pair) for pair in pairs) / len(pairs), abs=1e-9)


@given(SEEDS)
def test_what_learns_from_another_model_is_nearest_when_it_says_the_same(seed: int) -> None:
    for name, shape in (
        ("cross-entropy", (3, 4)),
        ("cross-entropy", (3, 4, 2)),
        ("multi-label", (3, 4)),
        ("mse", (3, 2)),
    ):
        criterion = TrainConfig(loss=name).criterion
        teacher, other = drawn(seed, *shape), drawn(seed + 1, *shape)
        said = criterion.predict(teacher)
        assert criterion.towards(teacher, said).item() == pytest.approx(0, abs=1e-9)
        assert criterion.towards(other, said) > 1e-6
    total = TrainConfig(loss="cross-entropy").criterion
    by_hand = (said := drawn(seed, 3, 4).softmax(1)) * (said.log() - drawn(seed + 1, 3, 4).log_softmax(1))
    assert total.towards(drawn(seed + 1, 3, 4), said).item() == pytest.approx(by_hand.sum().item() / 3, abs=1e-9)


def absolute(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs[:, 0] - y).abs()


def test_a_function_of_one_s_own_trains_as_the_loss_it_computes() -> None:
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    examples = Examples(x, x.sum(1))

    def trained(loss: str) -> list[Tensor]:
        torch.manual_seed(1)
        module = nn.Linear(3, 1)
        fit(module, examples, TrainConfig(batch_size=5, epochs=3, loss=loss), torch.Generator().manual_seed(2))
        return list(module.parameters())

    mine = trained(give(absolute))
    assert all(torch.allclose(a, b) for a, b in zip(mine, trained("mae"), strict=True))
    of_the_batch = trained(give(lambda outputs, y: (outputs[:, 0] - y).abs().mean()))
    assert all(torch.allclose(a, b) for a, b in zip(of_the_batch, mine, strict=True))


def test_a_function_of_one_s_own_runs_once_a_batch() -> None:
    calls = []

    def counted(outputs: Tensor, y: Tensor) -> Tensor:
        calls.append(len(y))
        return absolute(outputs, y)

    assert TrainConfig(loss=give(counted)).criterion.mean(torch.zeros(4, 1), torch.ones(4)) == 1
    assert calls == [4]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda outputs, y: 3, "gives int; expected a tensor"),
        (lambda outputs, y: outputs, r"gives \[4, 1\]; expected a tensor"),
        (lambda outputs, y: outputs[:2, 0], r"gives \[2\] for 4 examples"),
        (lambda outputs, y: 1 / 0, r"outputs \[4, 1\], targets float32 \[4\]: ZeroDivisionError"),
    ],
)
def test_a_function_that_is_no_loss_is_one_line(function: object, says: str) -> None:
    criterion = TrainConfig(loss=give(function)).criterion
    with pytest.raises(ModelError, match=says):
        criterion.mean(torch.zeros(4, 1), torch.zeros(4))


def test_nothing_is_imported_that_nobody_has_allowed() -> None:
    criterion = TrainConfig(loss="nowhere.at.all:loss").criterion
    with pytest.raises(ModelError, match=r"loss nowhere.at.all:loss would be imported, which nobody"):
        criterion.mean(torch.zeros(4, 1), torch.zeros(4))
    allow("nowhere.at.all:loss")
    with pytest.raises(ModelError, match=r"loss nowhere.at.all:loss cannot be imported: ModuleNotFoundError"):
        criterion.mean(torch.zeros(4, 1), torch.zeros(4))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loss": "hinge"}, "must be one of cross-entropy, multi-label"),
        ({"loss": "mse", "smoothing": 0.1}, "smoothing: loss mse does not read it; cross-entropy, next-token do"),
        ({"delta": 2.0}, "delta: loss cross-entropy does not read it; huber do"),
        ({"fit": "no name"}, "fit"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TrainConfig(**settings)


def test_the_shape_of_outputs_follows_from_targets() -> None:
    def shape(loss: str, y: Tensor, many: int = 5) -> tuple[int, ...]:
        return outputs_for(TrainConfig(loss=loss).criterion, y, many)

    labels, maps, tokens, values = (
        torch.zeros(2).long(),
        torch.zeros(2, 4, 3).long(),
        torch.zeros(2, 7).long(),
        torch.zeros(2),
    )
    assert shape("cross-entropy", labels) == (5,)
    assert shape("cross-entropy", maps) == (5, 4, 3)
    assert shape("next-token", tokens) == (7, 5)
    assert shape("mse", values) == (1,)
    assert shape("multi-label", tokens) == (7,)
    assert shape(give(absolute), values) == (1,)


@pytest.mark.parametrize(
    ("loss", "y", "gives", "says"),
    [
        (
            "cross-entropy",
            torch.zeros(3),
            (4,),
            'targets are float32 [3]; training.loss "cross-entropy" takes whole numbers',
        ),
        ("cross-entropy", torch.tensor([0, 4]), (4,), "a label is 4; the model knows whole numbers from 0 to 3"),
        ("multi-label", torch.tensor([[0.0, 2.0]]), (2,), "takes 0 and 1"),
        ("mse", torch.zeros(3, 2), (4,), 'which loss "mse" answers by outputs [3, 2]; the model gives [3, 4]'),
    ],
)
def test_targets_that_no_output_answers_are_one_line(loss: str, y: Tensor, gives: tuple[int, ...], says: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_targets("train", TrainConfig(loss=loss).criterion, y, gives, 4)
    assert says in str(caught.value)


class Named(nn.Linear):
    """A module with attributes that other projects keep their criterion in."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.loss, self.draws = nn.MSELoss(), nn.Identity()


class Own(nn.Linear, Objective):
    """A module with a loss of its own."""

    def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        return step.criterion.mean(self(x), y) * 3


def test_only_an_objective_brings_its_own_loss() -> None:
    x, y, step = torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), Step(torch.Generator())
    named, own = Named(), Own(3, 2)
    own.load_state_dict(named.state_dict())
    plain = F.cross_entropy(named(x), y)
    assert torch.equal(loss_of(named, Examples(x, y), step), plain)
    assert torch.equal(loss_of(own, Examples(x, y), step), plain * 3)


def test_a_configuration_without_the_later_settings_is_written_as_before() -> None:
    assert TrainConfig().to_json() == (
        '{"epochs":1,"batch_size":32,"learning_rate":0.05,"momentum":0.9,"weight_decay":0.0,"optimiser":"sgd"}'
    )
    wanted = replace(TrainConfig(), loss="huber", delta=0.5, fit="a.b:c")
    assert TrainConfig.from_json(wanted.to_json()) == wanted
