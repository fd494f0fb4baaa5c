"""FjORD: its objective and its aggregation, against plain networks and loops."""

from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from diastole.models.accumulator import Accumulator
from diastole.models.method import Size
from diastole.models.methods.registry import build
from diastole.models.methods.widths.fjord import FjordConfig, FjordMethod
from diastole.models.methods.widths.fjord import spec_of as nested_of
from diastole.models.methods.widths.width import spec_of, width_cost
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.proxy import Proxy
from diastole.models.scoring import evaluate
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.training import Examples, Step, TrainConfig

MODEL = ModelConfig("resnet", (3, 8, 8), classes=4, widths=(8, 16), blocks=(1, 1), group=2)
TRAINING = TrainConfig(batch_size=8)
WIDTHS = (0.25, 0.5, 1.0)


@cache
def made(distil: bool = False) -> FjordMethod:
    return FjordMethod(MODEL, WIDTHS, TRAINING, FjordConfig(distil=distil))


def offers(distil: bool = False) -> Sequence[Size]:
    return made(distil).offers()


def sizes(distil: bool = False) -> list[SubModelSpec]:
    return [size.spec for size in offers(distil)]


def at(state: State, width: float, x: Tensor) -> Tensor:
    """Return the logits of the plain network of a width with copies of the first channels."""
    module = build(MODEL, spec_of(width))
    module.load_state_dict({n: state[n][tuple(map(slice, p.shape))] for n, p in module.named_parameters()})
    return module(x)


def test_a_device_trains_the_offered_widths_up_to_its_own() -> None:
    assert [(spec.options.width, spec.options.nested) for spec in sizes()] == [
        (0.25, (0.25,)),
        (0.5, (0.25, 0.5)),
        (1.0, (0.25, 0.5, 1.0)),
    ]
    method = FjordMethod(MODEL, (0.25, 0.5), TRAINING)
    assert method.whole == nested_of(1.0, WIDTHS)
    assert [size.spec.options.width for size in method.offers()] == [0.25, 0.5]


@pytest.mark.parametrize("distil", [False, True])
def test_the_loss_is_that_of_the_width_that_is_drawn(random_state, separable, distil: bool) -> None:
    state, batch = random_state(MODEL), separable(MODEL, 8)
    module = build(MODEL, sizes(distil)[-1])
    module.load_state_dict(state)
    ours, theirs, seen = Step(torch.Generator().manual_seed(4)), torch.Generator().manual_seed(4), set()
    for _ in range(12):
        width = WIDTHS[int(torch.randint(3, (), generator=theirs))]
        expected = F.cross_entropy(at(state, width, batch.x), batch.y)
        if distil:
            teacher = at(state, 1.0, batch.x)
            expected = F.cross_entropy(teacher, batch.y)
            if width < 1:
                logs = at(state, width, batch.x).log_softmax(1)
                expected = expected - (teacher.softmax(1) * logs).sum(1).mean()
        torch.testing.assert_close(module.loss(batch.x, batch.y, ours), expected, rtol=1e-5, atol=1e-6)
        seen.add(width)
    assert seen == set(WIDTHS)


def test_the_widest_does_not_learn_from_a_narrower_one(random_state, separable) -> None:
    batch = separable(MODEL, 8)
    module = build(MODEL, nested_of(1.0, (0.25,), distil=1.0))
    module.load_state_dict(random_state(MODEL))
    module.loss(batch.x, batch.y, Step(torch.Generator())).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad()
    F.cross_entropy(module(batch.x), batch.y).backward()
    for name, parameter in module.named_parameters():
        # What lies outside the narrow part has the gradient of the widest's own loss, and only what is inside more.
        outside = torch.ones_like(parameter, dtype=torch.bool)
        narrow = dict(build(MODEL, spec_of(0.25)).named_parameters())[name].shape
        outside[tuple(map(slice, narrow))] = False
        torch.testing.assert_close(gradients[name][outside], parameter.grad[outside], rtol=1e-5, atol=1e-7)
        assert (gradients[name][~outside] - parameter.grad[~outside]).abs().max() > 1e-6


def test_widths_are_drawn_uniformly(monkeypatch: pytest.MonkeyPatch) -> None:
    module, step = build(MODEL, sizes()[-1]), Step(torch.Generator().manual_seed(0))
    drawn: Counter[float] = Counter()

    def record(x: Tensor, width: float) -> Tensor:
        drawn[width] += 1
        return x

    monkeypatch.setattr(module, "at", record)
    for _ in range(3000):
        module.loss(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), step)
    # Each has a chance of a third; the standard deviation is about 26.
    assert set(drawn) == set(WIDTHS)
    assert all(abs(times - 1000) < 4 * 26 for times in drawn.values())


@pytest.mark.parametrize("distil", [False, True])
def test_the_cost_is_the_mean_over_the_widths_and_the_memory_of_the_largest_step(distil: bool) -> None:
    plain = {width: width_cost(MODEL, width, TRAINING) for width in WIDTHS}
    for spec, cost in ((size.spec, size.cost) for size in offers(distil)):
        own, nested = plain[spec.options.width], spec.options.nested
        each = [plain[width].training_macs for width in nested]
        if distil:
            each = [
                own.training_macs + (macs if width < nested[-1] else 0)
                for width, macs in zip(nested, each, strict=True)
            ]
        assert cost.training_macs == sum(each) // len(each)
        if not distil:
            assert cost.memory == own.memory
        elif len(nested) > 1:
            assert cost.memory > own.memory
        assert cost.bytes_down == own.bytes_down


@given(
    cohort=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 500), st.integers(0, 2**32)), min_size=1, max_size=6)
)
@settings(max_examples=25)
def test_the_mean_over_holders_is_the_papers_nested_overwrite(random_state, cohort) -> None:
    state, method = random_state(MODEL), made()
    method.prepare(state, None, Moment())
    accumulator, specs, trained = Accumulator(state), [size.spec for size in method.offers()], []
    for size, examples, seed in cohort:
        draws = torch.Generator().manual_seed(seed)
        sent = method.compress(specs[size])
        trained.append({name: t + 0.1 * torch.randn(t.shape, generator=draws) for name, t in sent.items()})
        accumulator.fold(method.dilate(trained[-1], specs[size]), examples)
    deltas, _ = accumulator.mean()
    shapes = {size: {n: t.shape for n, t in method.compress(specs[size]).items()} for size in range(3)}
    for name, before in state.items():
        after = before.double().numpy().copy()
        for size in (2, 1, 0):
            block = tuple(map(slice, shapes[size][name]))
            holders = [k for k, device in enumerate(cohort) if device[0] >= size]
            if holders:
                weights = [cohort[k][1] for k in holders]
                values = [trained[k][name][block].double().numpy() for k in holders]
                after[block] = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        np.testing.assert_allclose((before.double() + deltas[name]).numpy(), after, rtol=0, atol=1e-12)


def test_the_server_trains_every_width_on_its_proxy_set(separable) -> None:
    examples = separable(MODEL, 48, 1)
    method = FjordMethod(MODEL, WIDTHS, TRAINING)
    state = method.initial(0)
    proxy = Proxy(examples, Examples.empty())
    method.prepare(state, proxy, Moment())
    after = method.learn(state, proxy, TrainConfig(epochs=3, batch_size=8, learning_rate=0.05), Moment(seed=1))

    def losses(state: State) -> list[float]:
        method.prepare(state, proxy, Moment())
        found = []
        for size in method.offers():
            module = build(MODEL, size.spec)
            module.load_state_dict(method.compress(size.spec))
            found.append(evaluate(module, examples).loss)
        return found

    assert all(new < old for new, old in zip(losses(after), losses(state), strict=True))
