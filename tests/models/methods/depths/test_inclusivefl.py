"""InclusiveFL: what its contract does not say."""

import pytest
import torch

from diastole.models.accumulator import Accumulator
from diastole.models.errors import SpecError
from diastole.models.methods.depths import inclusivefl
from diastole.models.methods.depths.inclusivefl import (
    InclusiveFLConfig,
    InclusiveFLMethod,
    InclusiveFLSize,
    depths,
    layers,
    spec_of,
)
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Report, Task, Update
from diastole.models.training import TrainConfig

RESNET = ModelConfig("resnet", (3, 8, 8), classes=3, widths=(4, 8), blocks=(3, 2), group=2)
CNN = ModelConfig("cnn", (1, 16, 16), classes=3, widths=(8, 8, 8), group=2)
TRAINING = TrainConfig(batch_size=4)
BETA = 0.2


class Sizes(InclusiveFLMethod):
    """The method with sizes of the test's choice, whatever they cost."""

    def __init__(self, model: ModelConfig, monkeypatch: pytest.MonkeyPatch, wanted: list[int], beta: float = BETA):
        chosen = iter([depths(model)[count - 1] for count in wanted])
        monkeypatch.setattr(inclusivefl, "best", lambda *arguments: next(chosen))
        super().__init__(model, (*(0.5 + 0.1 * k for k in range(len(wanted))), 1.0), TRAINING, InclusiveFLConfig(beta))


def prepared(model: ModelConfig, monkeypatch: pytest.MonkeyPatch, wanted: list[int], beta: float = BETA) -> Sizes:
    method = Sizes(model, monkeypatch, wanted, beta)
    method.prepare(method.initial(3), None, Moment())
    return method


def returned(method: Sizes, spec: SubModelSpec, seed: int, examples: int) -> Update:
    draws = torch.Generator().manual_seed(seed)
    sent = method.compress(spec)
    task = Task(f"{seed}", 1, f"device {seed}", spec, TRAINING, seed)
    trained = {n: t + torch.randn(t.shape, generator=draws) for n, t in sent.items()}
    return Update(task, trained, Report(examples, 0.0, 0.0))


def test_sizes_are_the_first_layers() -> None:
    assert [layers(spec, RESNET) for spec in depths(RESNET)] == [
        [f"stages.{stage}.{block}." for stage, block in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))[:count]]
        for count in range(1, 6)
    ]
    assert [layers(spec, CNN) for spec in depths(CNN)] == [
        [f"stages.{stage}." for stage in range(count)] for count in (1, 2, 3)
    ]
    for model in (RESNET, CNN):
        for spec in depths(model):
            held = {name for name, _ in inclusivefl.build(model, spec).named_parameters() if name.startswith("stages.")}
            assert {layer for layer in layers(depths(model)[-1], model) if any(n.startswith(layer) for n in held)} == (
                set(layers(spec, model))
            )


def test_the_last_layer_and_the_classifier_are_a_sizes_own_and_the_rest_is_shared(monkeypatch) -> None:
    method = prepared(RESNET, monkeypatch, [2, 3])
    small, middle, whole = method.sizes
    sources = {spec: {slot.source for slot in method.slots(spec).values()} for spec in method.sizes}
    assert {name for name in sources[small] if name.startswith("size")} == {
        "size0.classifier.weight",
        "size0.classifier.bias",
        *(f"size0.stages.0.1.{n}" for n in ("conv1.weight", "conv2.weight", "norm1.weight", "norm1.bias")),
        *(f"size0.stages.0.1.{n}" for n in ("norm2.weight", "norm2.bias")),
    }
    for one, other in ((small, middle), (middle, whole), (small, whole)):
        shared = sources[one] & sources[other]
        assert not any(name.startswith("size") for name in shared)
        assert shared == {name for name in sources[one] if not name.startswith("size")}
    assert method.slots(middle)["stages.0.1.conv1.weight"].source == "stages.0.1.conv1.weight"


@pytest.mark.parametrize(
    ("model", "ends"),
    [
        (ModelConfig("vit", (1, 8, 8), 3, (8,), (3,), group=4), {"norm", "classifier"}),
        (ModelConfig("transformer", (6,), 3, (8,), (3,), group=4, vocabulary=5), {"norm", "classifier"}),
        # Their norm is in front of the first layer.
        (RESNET, {"classifier"}),
        (ModelConfig("mobilenet", (3, 8, 8), 3, (8,), (3,), group=4), {"classifier"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_whatever_is_behind_the_layers_is_a_sizes_own(monkeypatch, model: ModelConfig, ends: set[str]) -> None:
    method = prepared(model, monkeypatch, [1, 2])
    for number, spec in enumerate(method.sizes):
        last = layers(spec, model)[-1]
        for name, slot in method.slots(spec).items():
            own = name.startswith(last) or name.partition(".")[0] in ends
            assert slot.source == (f"size{number}.{name}" if own else name)


def test_every_size_starts_with_the_same_layers(monkeypatch) -> None:
    method = prepared(RESNET, monkeypatch, [2, 3])
    small, middle, whole = (method.compress(spec) for spec in method.sizes)
    assert all(torch.equal(small[name], whole[name]) for name in small if not name.startswith("classifier"))
    assert all(torch.equal(middle[name], whole[name]) for name in middle if not name.startswith("classifier"))


@pytest.mark.parametrize(
    ("model", "wanted", "corresponding"),
    [
        # Behind the first size's last block lie two of its make, behind the second's only others.
        (RESNET, [1, 3], [["stages.0.0.", "stages.0.1.", "stages.0.2."], ["stages.0.2."]]),
        (RESNET, [2, 4], [["stages.0.1.", "stages.0.2."], ["stages.1.0."]]),
        (CNN, [1, 2], [["stages.0."], ["stages.1.", "stages.2."]]),
    ],
    ids=["resnet", "resnet across stages", "cnn"],
)
def test_the_last_layer_learns_from_the_like_layers_of_the_next_size(monkeypatch, model, wanted, corresponding) -> None:
    method = prepared(model, monkeypatch, wanted)
    sizes = method.sizes
    cohort = [(0, 10), (1, 30), (0, 20), (2, 5), (1, 10), (2, 40)]
    updates = [returned(method, sizes[size], k, examples) for k, (size, examples) in enumerate(cohort)]
    assert method.needs_all(Moment())
    accumulator = Accumulator(method._state)
    for k, (update, weight) in enumerate(method.weigh(updates, Moment())):
        assert (update, weight) == (updates[k], float(cohort[k][1]))
        accumulator.fold(method.dilate(update.state, update.spec), weight)
    deltas, _ = accumulator.mean()

    def change(size: int) -> State:
        """Return the mean change of a size, by plain sums."""
        mine = [item for item in updates if item.spec == sizes[size]]
        total, sent = sum(item.examples for item in mine), method.compress(sizes[size])
        return {n: sum(item.examples * (item.state[n] - t).double() for item in mine) / total for n, t in sent.items()}

    for size, like in enumerate(corresponding):
        own, deeper, last = change(size), change(size + 1), layers(sizes[size], model)[-1]
        names = [name.removeprefix(last) for name in own if name.startswith(last)]
        for name in names:
            mean = sum(deeper[layer + name] for layer in like) / len(like)
            expected = (1 - BETA) * own[last + name] + BETA * mean
            assert torch.allclose(deltas[f"size{size}.{last}{name}"], expected, atol=1e-5)
        # Nothing but the last layer is taught.
        assert torch.allclose(deltas[f"size{size}.classifier.weight"], own["classifier.weight"], atol=1e-5)
    last = layers(sizes[2], model)[-1]
    for name, value in change(2).items():
        if name.startswith((last, "classifier.")):
            assert torch.allclose(deltas[f"size2.{name}"], value, atol=1e-5)
    # Shared tensors are a mean over all who hold them.
    for name in ("stages.0.0.conv1.weight", "stages.0.0.weight"):
        if name in deltas:
            holders = [item for item in updates if method.slots(item.spec)[name].source == name]
            total, sent = sum(item.examples for item in holders), method._state[name].double()
            expected = sum(item.examples * (item.state[name].double() - sent) for item in holders) / total
            assert torch.allclose(deltas[name], expected, atol=1e-5)


def test_nothing_is_learned_from_a_size_that_did_not_come_back(monkeypatch) -> None:
    method = prepared(RESNET, monkeypatch, [1, 3])
    small, _, whole = method.sizes
    updates = [returned(method, small, 1, 10), returned(method, whole, 2, 10)]
    assert len(list(method.weigh(updates, Moment()))) == 2
    contribution = method.dilate(updates[0].state, small)
    assert all(
        torch.equal(contribution[slot.source].values, updates[0].state[name])
        for name, slot in method.slots(small).items()
    )


def test_a_lesson_is_forgotten_when_the_round_is_over(monkeypatch) -> None:
    method = prepared(RESNET, monkeypatch, [1, 3])
    small, middle, _ = method.sizes
    item = returned(method, small, 1, 10)
    name = "size0.stages.0.0.conv1.weight"
    next(method.weigh([item, returned(method, middle, 2, 10)], Moment()))
    taught = method.dilate(item.state, small)[name].values
    method.prepare(method._state, None, Moment(2))
    assert not torch.equal(taught, method.dilate(item.state, small)[name].values)
    assert torch.equal(item.state["stages.0.0.conv1.weight"], method.dilate(item.state, small)[name].values)


def test_without_momentum_it_is_a_plain_mean(monkeypatch) -> None:
    method = prepared(RESNET, monkeypatch, [1, 3], beta=0.0)
    small, middle, _ = method.sizes
    item = returned(method, small, 1, 10)
    next(method.weigh([item, returned(method, middle, 2, 10)], Moment()))
    for name, slot in method.slots(small).items():
        assert torch.equal(method.dilate(item.state, small)[slot.source].values, item.state[name])


def test_stages_that_are_not_there_are_named() -> None:
    with pytest.raises(SpecError, match="stages 4: model cnn has 3"):
        inclusivefl.build(CNN, spec_of(InclusiveFLSize(stages=4)))
