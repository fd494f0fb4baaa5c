import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from brought import Perceptron
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.batches import batches, slices
from diastole.models.cost import measure
from diastole.models.errors import ModelError, StoppedError
from diastole.models.scoring import Score, evaluate
from diastole.models.training import Examples, Objective, Step, TrainConfig, fit


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int) -> Examples:
    return Examples(torch.arange(count).float().reshape(count, 1), torch.arange(count) % 3)


def module(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))


def random_examples(count: int) -> Examples:
    draws = generator(1)
    return Examples(torch.randn(count, 4, generator=draws), torch.randint(3, (count,), generator=draws))


@given(st.integers(0, 40), st.integers(1, 50))
@settings(deadline=None, max_examples=50)
def test_an_epoch_has_each_example_once_with_its_label(count: int, size: int) -> None:
    parts = list(batches(numbered(count), size, generator(count)))
    assert len(parts) == math.ceil(count / size)
    assert all(len(part) == size for part in parts[:-1])
    values = [int(value) for part in parts for value in part.x]
    assert sorted(values) == list(range(count))
    assert [label for part in parts for label in part.y.tolist()] == [value % 3 for value in values]


def test_batches_are_shuffled_by_the_generator() -> None:
    def order(draws: torch.Generator) -> list[int]:
        return [int(value) for part in batches(numbered(50), 8, draws) for value in part.x]

    assert order(generator(1)) == order(generator(1))
    assert order(generator(1)) != order(generator(2))
    draws = generator(1)
    assert order(draws) != order(draws) != list(range(50))


@given(st.integers(0, 40), st.integers(1, 50))
@settings(deadline=None, max_examples=50)
def test_slices_are_the_examples_in_order_without_a_copy(count: int, size: int) -> None:
    examples = numbered(count)
    parts = list(slices(examples, size))
    assert [int(value) for part in parts for value in part.x] == list(range(count))
    assert all(1 <= len(part) <= size for part in parts)
    assert all(part.x.untyped_storage().data_ptr() == examples.x.untyped_storage().data_ptr() for part in parts)


def test_a_subset_keeps_examples_and_labels_together() -> None:
    chosen = numbered(9).subset(torch.tensor([7, 2]))
    assert chosen.x.flatten().tolist() == [7.0, 2.0]
    assert chosen.y.tolist() == [1, 2]
    assert len(Examples.empty()) == 0


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_training_gives_the_same_bits_for_the_same_generator(optimiser: str) -> None:
    config = TrainConfig(epochs=2, batch_size=4, optimiser=optimiser)
    results = []
    for seed in (3, 3, 4):
        net = nn.Linear(4, 3)
        net.load_state_dict({"weight": torch.ones(3, 4), "bias": torch.zeros(3)})
        loss = fit(net, random_examples(10), config, generator(seed))
        results.append((loss, net.weight.detach().clone()))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][1], results[2][1])


def test_sgd_is_plain_descent_with_momentum_and_decay_over_the_shuffled_batches() -> None:
    config = TrainConfig(epochs=3, batch_size=4, learning_rate=0.1, momentum=0.5, weight_decay=0.01)
    examples, net = random_examples(10), nn.Linear(4, 3)
    weight, bias = net.weight.detach().clone(), net.bias.detach().clone()
    reported = fit(net, examples, config, generator(5))

    draws = generator(5)
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for _ in range(3):
        total = 0.0
        order = torch.randperm(10, generator=draws)
        for chosen in (order[:4], order[4:8], order[8:]):
            leaves = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
            loss = F.cross_entropy(examples.x[chosen] @ leaves[0].T + leaves[1], examples.y[chosen])
            for k, gradient in enumerate(torch.autograd.grad(loss, leaves)):
                speed[k] = 0.5 * speed[k] + gradient + 0.01 * leaves[k].detach()
            weight, bias = weight - 0.1 * speed[0], bias - 0.1 * speed[1]
            total += loss.item() * len(chosen)
    torch.testing.assert_close(net.weight.detach(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net.bias.detach(), bias, rtol=1e-5, atol=1e-6)
    assert reported == pytest.approx(total / 10, rel=1e-6)


def test_training_gives_the_bits_of_torch_optim_and_leaves_no_gradients() -> None:
    examples, ours, theirs = random_examples(10), nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    fit(ours, examples, TrainConfig(epochs=3, batch_size=4, optimiser="adam", learning_rate=0.01), generator(5))
    optimiser, draws = torch.optim.Adam(theirs.parameters(), lr=0.01), generator(5)
    for _ in range(3):
        for batch in batches(examples, 4, draws):
            optimiser.zero_grad()
            F.cross_entropy(theirs(batch.x), batch.y).backward()
            optimiser.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert ours.weight.grad is None


def test_training_stops_before_the_next_step_when_it_is_told_to() -> None:
    config, asked = TrainConfig(epochs=1 << 30, batch_size=4), []

    def stopped() -> bool:
        asked.append(True)
        return len(asked) > 3

    stopping = nn.Linear(4, 3)
    plain = deepcopy(stopping)
    with pytest.raises(StoppedError, match="after 3 steps"):
        fit(stopping, random_examples(12), config, generator(), stopped=stopped)
    fit(plain, random_examples(12), TrainConfig(batch_size=4), generator())
    assert all(torch.equal(one, two) for one, two in zip(stopping.parameters(), plain.parameters(), strict=True))


def test_training_on_nothing_changes_nothing() -> None:
    net = module()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert fit(net, Examples(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)), TrainConfig(), generator()) == 0.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_neither_changes_the_module_nor_leaves_gradients(training: bool) -> None:
    net = module().train(training)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    # With dropout on, two evaluations would differ.
    assert evaluate(net, random_examples(30)) == evaluate(net, random_examples(30))
    assert net.training is training
    assert all(child.training is training for child in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("count", [1, 30, 513, 1025])
def test_a_score_is_the_mean_over_examples(count: int) -> None:
    net, examples = module().eval(), random_examples(count)
    right, total = 0, 0.0
    for x, y in zip(examples.x, examples.y.tolist(), strict=True):
        logits = net(x[None])[0].double().tolist()
        right += max(range(3), key=logits.__getitem__) == y
        total += math.log(sum(math.exp(value) for value in logits)) - logits[y]
    score = evaluate(net, examples)
    assert score.accuracy == right / count
    assert score.loss == pytest.approx(total / count, rel=1e-6)


def test_a_score_of_nothing() -> None:
    assert evaluate(module(), Examples.empty()) == Score(0.0, {"accuracy": 0.0})


def test_a_configuration_survives_json() -> None:
    config = TrainConfig(3, 7, 0.1, 0.25, 1e-4, "adam")
    assert TrainConfig.from_json(config.to_json()) == config
    assert TrainConfig.from_json("{}") == TrainConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"epochs":0}', "epochs: .*not 0"),
        ('{"batch_size":-3}', "batch_size: .*not -3"),
        ('{"learning_rate":0}', "learning_rate: .*not 0"),
        ('{"learning_rate":NaN}', "learning_rate: .*not nan"),
        ('{"learning_rate":Infinity}', "learning_rate: .*not inf"),
        ('{"learning_rate":1e300}', "learning_rate: .*not 1e\\+300"),
        ('{"epochs":1000000000000}', "epochs: .*not 1000000000000"),
        ('{"batch_size":1000000000000}', "batch_size: .*not 1000000000000"),
        ('{"weight_decay":1e39}', "weight_decay: .*not 1e\\+39"),
        (" " * (1 << 22), "training of 4194304 characters; at most"),
        ('{"momentum":1}', "momentum: .*not 1"),
        ('{"weight_decay":-0.5}', "weight_decay: .*not -0.5"),
        ('{"optimiser":"lion"}', "optimiser: .*'sgd' or 'adam', not 'lion'"),
        ('{"epochs":1.5}', "epochs: .*not 1.5"),
        ('{"epoch":1}', "epoch: no such key"),
        ('{"epochs":0,"batch_size":0}', "epochs: .*; batch_size: "),
        ('"epochs"', "object"),
        ("{\n", "Invalid JSON"),
    ],
)
def test_wrong_json_is_told_on_one_line(text: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        TrainConfig.from_json(text)
    assert len(str(caught.value).splitlines()) == 1


class Told(Objective):
    """Learns one number, and notes what it is told at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.idle = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
        self.steps: list[Step] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.flatten(1)

    def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        self.steps.append(step)
        return (self.weight - 3.0).square()


def test_a_module_may_say_itself_what_it_is_trained_for() -> None:
    told, labels = Told(), torch.tensor([2, 0, 2, 1, 2])
    draws = torch.Generator().manual_seed(4)
    training = TrainConfig(epochs=2, batch_size=2, learning_rate=0.1, momentum=0.5, weight_decay=0.1)
    loss = fit(told, Examples(torch.zeros(5, 3), labels), training, draws, progress=0.25)
    assert len(told.steps) == 6
    assert all(step.progress == 0.25 and step.draws is draws for step in told.steps)
    assert all(torch.equal(step.labels, labels) for step in told.steps)
    weight, speed, losses = 1.0, 0.0, []
    for _ in range(6):
        losses.append((weight - 3) ** 2)
        speed = 0.5 * speed + 2 * (weight - 3) + 0.1 * weight
        weight -= 0.1 * speed
    assert told.weight.item() == pytest.approx(weight, rel=1e-5)
    # Two batches of two and one of one.
    assert loss == pytest.approx((2 * losses[3] + 2 * losses[4] + losses[5]) / 5, rel=1e-5)
    # No gradient reaches it, so that not even the weight decay moves it.
    assert told.idle.item() == 1.0


class WithMethod(Perceptron):
    """Has a `loss` of its own signature."""

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        raise AssertionError("nobody asked for it")


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss", nn.CrossEntropyLoss()), ("loss", None), ("loss", 0.0), ("loss", ...), ("draws", nn.Identity())],
    ids=["criterion", "none", "number", "method", "draws"],
)
def test_an_attribute_that_has_the_name_of_ours_is_the_users_own(name: str, value: object) -> None:
    examples = Examples(torch.randn(12, 3, 8, 8, generator=generator(0)), torch.arange(12) % 4)
    training, plain = TrainConfig(batch_size=4), Perceptron()
    named: nn.Module = WithMethod() if value is ... else Perceptron()
    if value is not ...:
        setattr(named, name, value)
    assert measure(named, (3, 8, 8), training) == measure(plain, (3, 8, 8), training)
    named.load_state_dict(plain.state_dict())
    assert fit(named, examples, training, generator(1)) == fit(plain, examples, training, generator(1))
    for tensor, expected in zip(named.parameters(), plain.parameters(), strict=True):
        assert torch.equal(tensor, expected)


def hidden_norm() -> nn.Module:
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), norm, nn.ReLU(), nn.Linear(6, 3))


class Squeezed(nn.Module):
    """Squeezes away the examples' axis as well if there is one example."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.inner(x)).squeeze())


@pytest.mark.parametrize(("count", "sizes"), [(9, [4, 5]), (10, [4, 4, 2]), (5, [5]), (2, [2])])
def test_one_example_that_is_left_over_joins_the_batch_before_it(count: int, sizes: list[int]) -> None:
    examples = Examples(torch.randn(count, 4), torch.arange(count) % 3)
    found = list(batches(examples, 4, generator(), 2))
    assert [len(batch) for batch in found] == sizes
    plain = torch.cat([batch.x for batch in batches(examples, 4, generator())])
    assert torch.equal(torch.cat([batch.x for batch in found]), plain)


def test_a_batch_norm_trains_though_one_example_is_left_over() -> None:
    module, examples = hidden_norm(), Examples(torch.randn(9, 4), torch.arange(9) % 3)
    before = module[1].weight.detach().clone()
    assert math.isfinite(fit(module, examples, TrainConfig(batch_size=4), generator()))
    assert not torch.equal(module[1].weight, before)


def test_a_device_with_one_example_is_told_so_in_one_line() -> None:
    with pytest.raises(
        ModelError, match=r"Sequential cannot be trained on a batch of one example; .* \(ValueError: "
    ) as caught:
        fit(hidden_norm(), Examples(torch.randn(1, 4), torch.zeros(1, dtype=torch.int64)), TrainConfig(), generator())
    assert len(str(caught.value).splitlines()) == 1


def test_a_module_that_squeezes_its_batch_away_is_trained_and_evaluated_as_one_that_does_not() -> None:
    squeezed, examples = Squeezed(), Examples(torch.randn(65, 4), torch.arange(65) % 3)
    plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    plain.load_state_dict(dict(zip(plain.state_dict(), squeezed.state_dict().values(), strict=True)))
    training = TrainConfig(batch_size=8)
    assert fit(squeezed, examples, training, generator()) == fit(plain, examples, training, generator())
    assert evaluate(squeezed, examples) == evaluate(plain, examples)
    assert measure(squeezed, (4,), training) == replace(
        measure(plain, (4,), training), header=measure(squeezed, (4,), training).header
    )


@pytest.mark.parametrize("name", ["loss", "draws", "learns"])
@pytest.mark.parametrize("kept", [nn.CrossEntropyLoss(), None, 0.0, nn.Identity(), lambda logits, target: logits])
def test_attributes_of_a_module_may_have_any_name(name: str, kept: object) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    plain, named = Holder(), Holder()
    named.load_state_dict(plain.state_dict())
    setattr(named, name, kept)
    for each in (plain, named):
        fit(each, random_examples(10), TrainConfig(batch_size=4), generator(2))
    assert torch.equal(named.net.weight, plain.net.weight)
    assert measure(named, (4,), TrainConfig()) == measure(plain, (4,), TrainConfig())
