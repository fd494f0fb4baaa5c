"""Split-Mix: independent bases, and how they are dealt out."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diastole.models.batches import batches
from diastole.models.errors import SpecError
from diastole.models.method import Method
from diastole.models.methods.registry import build, make_method
from diastole.models.methods.widths.splitmix import MOST_BASES, spec_of
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import narrowed, network
from diastole.models.state import State
from diastole.models.training import Examples, Step, TrainConfig

MODEL = ModelConfig("cnn", (1, 8, 8), classes=4, widths=(8, 16), group=2)
RESNET = ModelConfig("resnet", (3, 8, 8), classes=4, widths=(8, 16), blocks=(1, 1), group=2)
TRAINING = TrainConfig(epochs=2, batch_size=8, learning_rate=0.05)


def make(model: ModelConfig = MODEL, widths: tuple[float, ...] = (0.25, 0.5, 1.0), **options: object) -> Method:
    return make_method("splitmix", model, widths, TRAINING, options)


def base_of(state: State, base: int) -> State:
    start = f"bases.{base}."
    return {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}


def test_every_rotation_of_every_tiers_bases_is_on_offer_and_one_of_each_is_exported() -> None:
    sizes = make().offers()
    expected = {(start,) for start in range(4)} | {(0, 1), (1, 2), (2, 3), (3, 0), (0, 1, 2, 3)}
    assert {size.spec.options.bases for size in sizes} == expected
    assert [size.spec.options.bases for size in sizes if size.exported] == [(0,), (0, 1), (0, 1, 2, 3)]
    assert {size.spec.options.width for size in sizes} == {0.25}
    for count in (1, 2):
        assert len({size.cost for size in sizes if len(size.spec.options.bases) == count}) == 1


@pytest.mark.parametrize(
    ("widths", "options", "counts"),
    [
        ((1.0,), {}, {1}),
        ((0.5, 1.0), {}, {1, 2}),
        # A base of a third would be more than 0.3 affords.
        ((0.3, 1.0), {}, {1, 4}),
        ((1 / 3, 2 / 3, 1.0), {}, {1, 2, 3}),
        ((0.5, 0.75, 1.0), {"bases": 4}, {2, 3, 4}),
        # Nothing for the smallest tier, whose devices nothing fits then.
        ((0.25, 0.5, 1.0), {"bases": 2}, {1, 2}),
    ],
)
def test_a_tier_gets_as_many_bases_as_its_width_holds(widths, options, counts) -> None:
    method = make(ModelConfig("cnn", (1, 8, 8), classes=4, widths=(12, 24), group=1), widths, **options)
    assert {len(size.spec.options.bases) for size in method.offers()} == counts
    assert len(method.whole.options.bases) == max(counts | {options.get("bases", 0)})


def test_bases_trained_side_by_side_are_bases_trained_alone(separable) -> None:
    examples: Examples = separable(MODEL, 40, 1)
    method = make()
    method.prepare(method.initial(3), None, Moment())
    spec = spec_of(0.25, (3, 0))
    sent = method.compress(spec)

    def train(module: nn.Module, own_loss: bool) -> None:
        settings = {"lr": TRAINING.learning_rate, "momentum": TRAINING.momentum}
        optimiser, draws = torch.optim.SGD(module.parameters(), **settings), torch.Generator().manual_seed(1)
        for batch in batches(examples, 8, draws):
            optimiser.zero_grad()
            loss = module.loss(batch.x, batch.y, Step(draws)) if own_loss else alone_loss(module(batch.x), batch.y)
            loss.backward()
            optimiser.step()

    alone_loss = nn.CrossEntropyLoss()
    together = build(MODEL, spec)
    together.load_state_dict(sent)
    train(together, own_loss=True)
    for base in (3, 0):
        alone = network(MODEL, narrowed(MODEL, 0.25))
        alone.load_state_dict(base_of(sent, base))
        train(alone, own_loss=False)
        for name, parameter in alone.named_parameters():
            assert torch.equal(parameter, together.get_parameter(f"bases.{base}.{name}"))


def test_it_predicts_by_the_mean_of_the_bases_logits(random_state) -> None:
    module, x = build(MODEL, spec_of(0.25, (1, 2, 3))), torch.randn(5, 1, 8, 8)
    total = torch.zeros(5, 4)
    for base in (1, 2, 3):
        total += module.bases[str(base)](x)
    torch.testing.assert_close(module(x), total / 3)


# Dealing out

METHOD = make()


@given(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=20), st.integers(0, 2**32))
def test_a_cohort_covers_every_base_equally_often(counts: list[int], seed: int) -> None:
    sizes = METHOD.offers()
    fits = {
        f"device-{k:02d}": [size for size in sizes if len(size.spec.options.bases) <= count]
        for k, count in enumerate(counts)
    }
    given_out = METHOD.assign(fits, Moment(3, 9, seed))
    assert list(given_out) == list(fits)
    assert [len(size.spec.options.bases) for size in given_out.values()] == counts
    times = Counter(dict.fromkeys(range(4), 0))
    for size in given_out.values():
        times.update(size.spec.options.bases)
    assert max(times.values()) - min(times.values()) <= 1
    assert given_out == METHOD.assign(fits, Moment(3, 9, seed))


def test_a_device_alone_trains_every_base_in_the_long_run() -> None:
    fits = {"only": [size for size in METHOD.offers() if len(size.spec.options.bases) == 1]}
    times = Counter(METHOD.assign(fits, Moment(k, 400, k))["only"].spec.options.bases[0] for k in range(400))
    # A quarter each; the standard deviation is about 9.
    assert all(abs(times[base] - 100) < 36 for base in range(4))


def test_who_gets_which_base_changes_from_round_to_round() -> None:
    fits = {f"device-{k}": METHOD.offers()[:4] for k in range(4)}
    rounds = [METHOD.assign(fits, Moment(k, 40, k)) for k in range(40)]
    assert {round_["device-0"].spec.options.bases for round_ in rounds} == {(0,), (1,), (2,), (3,)}
    # In every round each has another one, and not always in the same order.
    orders = {tuple(round_[name].spec.options.bases[0] for name in fits) for round_ in rounds}
    assert len(orders) > 8
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)


# Initialisation


@pytest.mark.parametrize("model", [MODEL, RESNET], ids=["cnn", "resnet"])
def test_layers_that_read_hidden_channels_start_as_small_as_in_the_full_width(model: ModelConfig) -> None:
    plain, scaled = make(model, rescale=False).initial(2), make(model).initial(2)
    full = dict(network(model).named_parameters())
    for name, tensor in plain.items():
        own = name.split(".", 2)[2]
        hidden = tensor.dim() > 1 and tensor.shape[1] != full[own].shape[1]
        # All of them have a quarter of the inputs; the classifier's bias goes with its weight.
        factor = 0.5 if hidden or own == "classifier.bias" else 1.0
        assert torch.equal(scaled[name], factor * tensor), name


def test_normalisation_undoes_the_scale_of_convolutions(separable) -> None:
    x, maps = separable(MODEL, 8).x, []
    for rescale in (False, True):
        method = make(rescale=rescale)
        method.prepare(method.initial(2), None, Moment())
        module = build(MODEL, method.whole)
        module.load_state_dict(method.compress(method.whole))
        base = module.bases["1"]
        for stage in base.stages:
            stage[1].eps = 1e-12
        y = x
        for stage in base.stages:
            y = stage(y)
        maps.append((y, base(x)))
    (plain, logits), (scaled, others) = maps
    torch.testing.assert_close(plain, scaled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(0.5 * logits, others, rtol=1e-4, atol=1e-5)


# What cannot be


def test_a_base_that_is_too_narrow_says_what_would_do() -> None:
    # Half a group of two among 8 channels is an eighth.
    with pytest.raises(SpecError, match=r"16 bases: width 0.0625 .*at least 0.125"):
        make(widths=(1 / 16, 1.0))


def test_too_few_bases_for_every_tier_are_named() -> None:
    with pytest.raises(SpecError, match=r"2 bases are too few for width 0.25"):
        make(widths=(0.125, 0.25), bases=2)


@pytest.mark.slow
def test_more_bases_than_a_label_can_name_are_refused() -> None:
    wide = ModelConfig("cnn", (1, 8, 8), classes=4, widths=(64,), group=1)
    method = make(wide, (0.1, 1.0), bases=MOST_BASES)
    assert method.whole.label.endswith(f"-{MOST_BASES - 1}")
    with pytest.raises(SpecError, match="61 bases; at most 60 are accepted"):
        make(wide, (1 / 61, 1.0))
    with pytest.raises(SpecError, match=r"bases: .*not 61"):
        make(wide, (0.1, 1.0), bases=61)
