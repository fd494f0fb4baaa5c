"""HeteroFL's scaler, its masked cross-entropy and the averaging that goes with it, against plain networks and loops."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diastole.client.training import train
from diastole.models.accumulator import Accumulator
from diastole.models.errors import SpecError
from diastole.models.method import Method
from diastole.models.methods.registry import METHODS, Conditions, build, make_method, parse_options, read_spec
from diastole.models.methods.widths.width import spec_of
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.networks.family import classifier
from diastole.models.proxy import Proxy
from diastole.models.scoring import evaluate
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task
from diastole.models.training import Examples, Step, TrainConfig

MODELS = {
    "cnn": ModelConfig("cnn", (1, 8, 8), classes=5, widths=(8, 16), group=2),
    "transformer": ModelConfig("transformer", (3, 8), classes=5, widths=(16,), blocks=(1,), group=4),
    "custom": ModelConfig("custom", (3, 8, 8), classes=4, group=2, factory="brought:Perceptrons"),
}
HEADS = {"cnn": "classifier", "transformer": "classifier", "custom": "head"}
CNN = MODELS["cnn"]
WIDTHS = (0.5, 1.0)
TRAINING = TrainConfig(epochs=2, batch_size=8, learning_rate=0.05)
KINDS = {"width": {}, "sorted": {"sort": True}, "fedrolex": {}}
# Every model with one kind, and every kind with one model; the rest is slow.
CASES = [
    pytest.param(
        model, kind, id=f"{model}-{kind}", marks=[pytest.mark.slow] if model != "cnn" and kind != "width" else []
    )
    for model in MODELS
    for kind in KINDS
]


def chosen(kind: str, masked: bool) -> tuple[str, dict[str, bool]]:
    return ("width" if kind == "sorted" else kind), {"masked": masked, **KINDS[kind]}


def make(kind: str, model: ModelConfig = CNN, masked: bool = True) -> Method:
    name, options = chosen(kind, masked)
    return make_method(name, model, WIDTHS, TRAINING, options)


def conditions(training: TrainConfig) -> Conditions:
    return Conditions(training, proxy=0, labels=True, server_epochs=0, optimiser="fedavg")


def prepared(kind: str, state: State, model: ModelConfig = CNN, masked: bool = True) -> Method:
    method = make(kind, model, masked)
    # Behind the first sort, and with windows that have moved.
    for number in (1, 2):
        method.prepare(state, None, Moment(number, 5))
    return method


def only(examples: Examples, classes: Iterable[int]) -> Examples:
    """Return the examples of some classes."""
    return examples.subset(torch.isin(examples.y, torch.tensor(list(classes))).nonzero().flatten())


def rows(state: State, model: str) -> Tensor:
    """Return the classifier's rows, weights and bias."""
    head = HEADS[model]
    return torch.cat([state[f"{head}.weight"], state[f"{head}.bias"].unsqueeze(1)], 1)


# On a device


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_loss_is_that_of_zeroed_logits(model: ModelConfig, random_state, separable) -> None:
    method = prepared("width", random_state(model), model)
    spec = method.offers()[0].spec
    plain, masked = build(model, spec_of(spec.options.width)), build(model, spec)
    for module in (plain, masked):
        module.load_state_dict(method.compress(spec))
    examples = only(separable(model, 40), (1, 3))
    batch, total = examples.subset(torch.arange(7)), 0.0
    for x, y in zip(batch.x, batch.y.tolist(), strict=True):
        logits = [z if k in (1, 3) else 0.0 for k, z in enumerate(plain(x.unsqueeze(0))[0].tolist())]
        total += math.log(sum(math.exp(z) for z in logits)) - logits[y]
    found = masked.loss(batch.x, batch.y, Step(torch.Generator(), labels=examples.y))
    assert math.isclose(found.item(), total / 7, rel_tol=1e-5)
    assert torch.equal(masked(batch.x), plain(batch.x))
    # What a batch lacks is not what a device lacks.
    single = only(examples, (1,))
    assert masked.loss(single.x, single.y, Step(torch.Generator(), labels=examples.y)) != masked.loss(
        single.x, single.y, Step(torch.Generator(), labels=single.y)
    )


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_device_with_every_class_trains_by_plain_cross_entropy(model: ModelConfig, random_state, separable) -> None:
    method, examples = prepared("width", random_state(model), model), separable(model, 40)
    assert len(set(examples.y.tolist())) == model.classes
    for size in method.offers():
        module = build(model, size.spec)
        module.load_state_dict(method.compress(size.spec))
        loss = module.loss(examples.x, examples.y, Step(torch.Generator(), labels=examples.y))
        assert torch.equal(loss, F.cross_entropy(module(examples.x), examples.y))


def after(
    model: ModelConfig, spec: SubModelSpec, state: State, training: TrainConfig, seed: int, examples: Examples
) -> State:
    return train(model, Task("r1-one", 1, "one", spec, training, seed), state, examples).state


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("model", MODELS)
def test_rows_without_examples_come_back_as_they_were_sent(model: str, optimiser: Any, random_state, separable) -> None:
    method = prepared("width", random_state(MODELS[model]), MODELS[model])
    training = TrainConfig(epochs=1, batch_size=4, learning_rate=0.01, optimiser=optimiser)
    for size in method.offers():
        sent, examples = method.compress(size.spec), only(separable(MODELS[model], 40), (0, 2))
        back = after(MODELS[model], size.spec, sent, training, 1, examples)
        moved = [not torch.equal(one, other) for one, other in zip(rows(sent, model), rows(back, model), strict=True)]
        assert moved == [k in (0, 2) for k in range(MODELS[model].classes)]


def test_a_size_costs_what_the_plain_one_does() -> None:
    for kind in KINDS:
        for plain, masked in zip(make(kind, masked=False).offers(), make(kind).offers(), strict=True):
            assert masked.spec.label == plain.spec.label
            assert read_spec(masked.spec.to_json()) == masked.spec != plain.spec
            assert (masked.cost.training_macs, masked.cost.up) == (plain.cost.training_macs, plain.cost.up)
            # The mask itself, a byte a class.
            assert 0 <= masked.cost.memory - plain.cost.memory <= CNN.classes


@pytest.mark.parametrize("kind", ["width", "fedrolex"])
def test_the_scaler_divides_by_the_share_of_channels_in_training_alone(kind: str, random_state, separable) -> None:
    model = ModelConfig("simple-cnn", (1, 8, 8), classes=5, widths=(8, 16, 24), group=4)
    method = make_method(kind, model, (0.5, 1.0), TRAINING, {"scaler": True})
    method.prepare(random_state(model), None, Moment(1, 5))
    examples = separable(model, 6)
    # Half of 24 channels are 12, half of 8 are 4: whole groups.
    for size, share in zip(method.offers(), (0.5, 1.0), strict=True):
        state, module = method.compress(size.spec), build(model, size.spec)
        plain = build(model, spec_of(size.spec.options.width))
        for network in (plain, module):
            # Nothing is dropped as long as there is nothing to draw from.
            network.load_state_dict(state)
        assert torch.equal(module.eval()(examples.x), plain.eval()(examples.x))
        y = examples.x
        for stage, flat in (("stages.0.0", False), ("stages.1.0", True)):
            y = F.relu(F.conv2d(y, state[f"{stage}.weight"], state[f"{stage}.bias"]) / share)
            y = F.max_pool2d(y, 2).flatten(1) if flat else y
        y = F.relu(F.linear(y, state["stages.2.1.weight"], state["stages.2.1.bias"]) / share)
        expected = F.linear(y, state["classifier.weight"], state["classifier.bias"])
        torch.testing.assert_close(module.train()(examples.x), expected)
        expected_loss = F.cross_entropy(expected, examples.y)
        found = module.loss(examples.x, examples.y, Step(torch.Generator(), labels=examples.y[:1]))
        torch.testing.assert_close(found, expected_loss)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_scaled_network_trains_and_the_whole_one_as_without(model: ModelConfig, random_state, separable) -> None:
    method = make_method("width", model, WIDTHS, TRAINING, {"scaler": True})
    method.prepare(random_state(model), None, Moment(1, 5))
    examples = separable(model, 16)
    for size in method.offers():
        assert read_spec(size.spec.to_json()) == size.spec
        sent, plain = method.compress(size.spec), spec_of(size.spec.options.width)
        scaled = after(model, size.spec, sent, TRAINING, 1, examples)
        unscaled = after(model, plain, sent, TRAINING, 1, examples)
        assert not all(torch.equal(tensor, sent[name]) for name, tensor in scaled.items())
        same = all(torch.equal(tensor, scaled[name]) for name, tensor in unscaled.items())
        assert same == (size.spec.options.width == 1)
        assert method.dilate(scaled, size.spec).keys() == sent.keys()


def test_a_scaled_size_costs_what_the_plain_one_does() -> None:
    for kind in ("width", "fedrolex"):
        sizes = (make_method(kind, CNN, WIDTHS, TRAINING, {"scaler": on}).offers() for on in (False, True))
        for plain, scaled in zip(*sizes, strict=True):
            assert (scaled.spec.label, replace(scaled.cost, work=plain.cost.work)) == (plain.spec.label, plain.cost)
            # Its products take calls, and move the maps once more, but no multiply-accumulates that are counted.
            more = {name for name, work in scaled.cost.work.items() if work != plain.cost.work[name]}
            assert more <= {"calls", "memory"}


# On the server


def trained(method: Method, size: int, examples: Examples, model: ModelConfig = CNN) -> tuple[SubModelSpec, State]:
    spec = method.offers()[size].spec
    return spec, after(model, spec, method.compress(spec), TRAINING, 3, examples)


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_each_row_is_averaged_over_those_who_have_examples_of_its_class(
    model: str, kind: str, random_state, separable, densify: Callable[..., dict[str, np.ndarray]]
) -> None:
    config = MODELS[model]
    state, examples = random_state(config), separable(config, 60)
    masked, plain = (prepared(kind, state, config, masked) for masked in (True, False))
    # Class 0 has one owner, 1 has two, 2 another, and the last ones have none.
    cohort: Sequence[tuple[int, tuple[int, ...], float]] = [(0, (0, 1), 3.0), (1, (1, 2), 5.0)]
    accumulator, said = Accumulator(state), []
    for size, classes, weight in cohort:
        spec, back = trained(masked, size, only(examples, classes), config)
        accumulator.fold(masked.dilate(back, spec), weight)
        said.append(densify(plain.dilate(back, plain.offers()[size].spec), state))
    deltas, masks = accumulator.mean()
    for name, tensor in state.items():
        for index in np.ndindex(*tensor.shape):
            total = over = 0.0
            for (_, classes, weight), values in zip(cohort, said, strict=True):
                owns = not name.startswith(HEADS[model]) or index[0] in classes
                if owns and not math.isnan(values[name][index]):
                    total, over = total + weight * (values[name][index] - tensor[index].item()), over + weight
            assert bool(masks[name][index]) == (over > 0)
            assert math.isclose(deltas[name][index].item(), total / over if over else 0.0, abs_tol=1e-12)
    ownerless = rows(masks, model)[3:]
    assert len(ownerless)
    assert not ownerless.any()


@pytest.mark.parametrize("kind", KINDS)
def test_where_every_row_has_changed_all_is_covered_as_without_masks(kind: str, random_state, separable) -> None:
    state, examples = random_state(CNN), separable(CNN, 40)
    masked, plain = (prepared(kind, state, CNN, masked) for masked in (True, False))
    for number, size in enumerate(plain.offers()):
        spec, back = trained(masked, number, examples)
        found, expected = masked.dilate(back, spec), plain.dilate(back, size.spec)
        assert found.keys() == expected.keys()
        for name, patch in expected.items():
            assert torch.equal(found[name].values, patch.values)
            assert repr(found[name].region) == repr(patch.region)


def test_a_row_is_one_of_weights_and_bias(random_state) -> None:
    method = prepared("width", random_state(CNN))
    spec = method.offers()[0].spec
    back = method.compress(spec)
    back["classifier.bias"][1] += 1
    back["classifier.weight"][4, 2] += 1
    accumulator = Accumulator(method.compress(method.whole))
    accumulator.fold(method.dilate(back, spec), 1.0)
    masks = accumulator.mean()[1]
    assert masks["classifier.bias"].tolist() == [k in (1, 4) for k in range(CNN.classes)]
    columns = back["classifier.weight"].shape[1]
    assert masks["classifier.weight"][:, :columns].all(1).tolist() == [k in (1, 4) for k in range(CNN.classes)]
    assert not masks["classifier.weight"][:, columns:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_learns_the_classes_of_its_proxy_set(kind: str, random_state, separable) -> None:
    state, examples = random_state(CNN), separable(CNN, 60)
    method = prepared(kind, state)

    def loss(state: State, examples: Examples) -> float:
        method.prepare(state, None, Moment(3, 5))
        module = build(CNN, method.whole)
        module.load_state_dict(method.compress(method.whole))
        return evaluate(module, examples).loss

    for classes in (range(CNN.classes), (1, 4)):
        known = only(examples, classes)
        after = method.learn(state, Proxy(known, Examples.empty()), TRAINING, Moment(seed=1))
        assert loss(after, known) < loss(state, known)
        moved = (rows(after, "cnn") != rows(state, "cnn")).any(1)
        assert moved.tolist() == [k in classes for k in range(CNN.classes)]


# What cannot be


@pytest.mark.parametrize("kind", KINDS)
def test_weight_decay_is_refused(kind: str) -> None:
    name, options = chosen(kind, masked=True)
    row, parsed = METHODS[name], parse_options(name, options)
    row.check(parsed, conditions(TrainConfig()))
    decaying = conditions(TrainConfig(weight_decay=1e-4))
    row.check(parse_options(name, {}), decaying)
    with pytest.raises(SpecError, match="weight_decay = 0"):
        row.check(parsed, decaying)


@pytest.mark.parametrize(("kind", "head"), [("fc", "fc"), ("inside", "fc.1"), ("hidden", "out"), ("log_softmax", "")])
def test_the_classifier_of_a_custom_model_is_found_or_missed(kind: str, head: str) -> None:
    custom.allow(f"brought:rare_{kind}")
    model = ModelConfig("custom", (3, 8, 8), classes=4, group=2, factory=f"brought:rare_{kind}")
    make("width", model, masked=False)
    assert classifier(model) == head
    if head:
        make("width", model)
        return
    with pytest.raises(SpecError, match="the logits of a linear layer"):
        make("width", model)


def test_other_methods_with_sorted_channels_do_not_have_it() -> None:
    with pytest.raises(SpecError, match="options of method fjord: masked: no such key"):
        make_method("fjord", CNN, WIDTHS, TRAINING, {"masked": True})
