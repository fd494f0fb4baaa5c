"""Levers give what plain training gives, in less memory."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from diastole.models.dropout import Dropout
from diastole.models.errors import ModelError
from diastole.models.levers import LEVERS, NO_LEVERS, Levers
from diastole.models.method import Size
from diastole.models.methods.registry import build, cost_of, make_method
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.networks.family import network
from diastole.models.recompute import blocks
from diastole.models.seeds import generator
from diastole.models.spec import SubModelSpec
from diastole.models.training import Examples, Objective, TrainConfig, fit
from diastole.models.ways import cost_by, ways_of

MODELS = {
    "cnn": ModelConfig("cnn", (3, 8, 8), 4, (8, 16)),
    "simple-cnn": ModelConfig("simple-cnn", (1, 8, 8), 4, (8, 8, 16)),
    "resnet": ModelConfig("resnet", (3, 8, 8), 4, (8, 16), (2, 1)),
    "mobilenet": ModelConfig("mobilenet", (3, 8, 8), 4, (8, 16), (1, 2)),
    "vit": ModelConfig("vit", (3, 8, 8), 4, (8, 8), (1, 1)),
    "transformer": ModelConfig("transformer", (3, 8), 4, (8, 8), (1, 2)),
}
OTHERS = ("simple-cnn", "vit", "mobilenet")
SOME = [pytest.param(name, marks=pytest.mark.slow) if name in OTHERS else name for name in MODELS]
TRAINING = TrainConfig(epochs=2, batch_size=4, learning_rate=0.1)


def trained(module: nn.Module, levers: Levers, config: TrainConfig = TRAINING) -> tuple[float, dict[str, Tensor]]:
    """Return the loss and the weights after training a copy of a module on ten examples."""
    mine, draws = copy.deepcopy(module), torch.Generator().manual_seed(1)
    kind, shape = next(mine.parameters()).dtype, mine.input_shape
    examples = Examples(torch.randn(10, *shape, generator=draws, dtype=kind), torch.arange(10) % 4)
    loss = fit(mine, examples, config, generator(7), levers=levers)
    return loss, {name: weight.detach() for name, weight in mine.named_parameters()}


def made(model: ModelConfig, spec: SubModelSpec | None = None) -> nn.Module:
    torch.manual_seed(0)
    module = build(model, spec)
    module.input_shape = model.input_shape  # type: ignore[assignment]
    return module


@pytest.mark.parametrize("name", SOME)
def test_what_is_recomputed_has_the_same_bits(name: str) -> None:
    module = made(MODELS[name])
    loss, weights = trained(module, NO_LEVERS)
    again, same = trained(module, Levers(recompute=True))
    assert again == loss
    assert all(torch.equal(same[key], weight) for key, weight in weights.items())
    assert not any("forward" in vars(layer) for layer in module.modules())


@pytest.mark.parametrize("name", SOME)
def test_parts_of_a_batch_come_to_the_whole(name: str) -> None:
    # In float64, where rounding is far below what a wrong share would change.
    module = made(MODELS[name]).double()
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.p = 0.0  # Parts draw other numbers than the whole.
    loss, weights = trained(module, NO_LEVERS)
    for levers in (Levers(micro_batch=3), Levers(recompute=True, micro_batch=1)):
        again, same = trained(module, levers)
        assert again == pytest.approx(loss, rel=1e-9)
        assert all(torch.allclose(same[key], weight, 1e-7, 1e-9) for key, weight in weights.items())


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_state_in_bfloat16_trains_nearly_alike(optimiser: str) -> None:
    config = TrainConfig(epochs=4, batch_size=4, learning_rate=0.002, optimiser=optimiser)
    module = made(MODELS["cnn"])
    _, weights = trained(module, NO_LEVERS, config)
    _, close = trained(module, Levers(half_state=True), config)
    for key, weight in weights.items():
        start = module.get_parameter(key).detach()
        assert 0 < (close[key] - weight).norm() < 0.02 * (weight - start).norm()


class Dropping(nn.Sequential):
    input_shape = (3, 8, 8)

    def __init__(self) -> None:
        conv = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), Dropout(0.5)) for _ in range(3)]
        super().__init__(nn.Sequential(*conv), nn.Flatten(), nn.Linear(192, 4))


def test_dropout_draws_the_same_numbers_the_second_time() -> None:
    torch.manual_seed(0)
    module = Dropping()
    assert len(blocks(module)) == 3
    loss, weights = trained(module, NO_LEVERS)
    again, same = trained(module, Levers(recompute=True))
    assert again == loss
    assert all(torch.equal(same[key], weight) for key, weight in weights.items())


def test_a_block_is_an_item_of_a_list_of_modules() -> None:
    assert blocks(network(MODELS["cnn"])) != []
    for name, count in {"cnn": 2, "resnet": 3, "mobilenet": 3, "vit": 2, "transformer": 3}.items():
        found = blocks(network(MODELS[name]))
        assert len(found) == count, name
        assert not any(inner in found for block in found for inner in list(block.modules())[1:])


# Methods with objectives of their own


METHODS = ["splitmix", "depthfl", "inclusivefl", "fiarse"]
HEAVIER = ["diastole", "fjord", "scalefl", "nefl", "deps"]


@pytest.mark.parametrize("name", [*METHODS, *(pytest.param(name, marks=pytest.mark.slow) for name in HEAVIER)])
def test_methods_are_right_or_not_offered(name: str) -> None:
    model = MODELS["mobilenet"] if name == "deps" else MODELS["resnet"]
    config = TrainConfig(epochs=1, batch_size=4, levers=LEVERS)
    size = _middle(make_method(name, model, [1.0, 0.5], config).offers())
    ways = ways_of(model, size.spec, config)
    assert ways[0].levers == NO_LEVERS
    assert ways[0].cost == size.cost
    assert any(way.levers.recompute for way in ways)
    module = made(model, size.spec)
    loss, weights = trained(module, NO_LEVERS, config)
    again, same = trained(module, Levers(recompute=True), config)
    assert again == pytest.approx(loss, rel=1e-5)
    assert all(torch.allclose(same[key], weight, 1e-3, 1e-5) for key, weight in weights.items())
    if not any(way.levers.micro_batch for way in ways):
        # It picks one of several things a step, which parts of a step would each pick anew.
        assert isinstance(module, Objective)
        assert module.draws > 1
        return
    again, same = trained(module, Levers(micro_batch=2), config)
    assert again == pytest.approx(loss, rel=1e-4)
    assert all(torch.allclose(same[key], weight, 1e-2, 1e-4) for key, weight in weights.items())


def _middle(sizes: "tuple[Size, ...] | list[Size]") -> Size:
    return sizes[len(sizes) // 2]


# Ways and their costs


def test_parts_take_the_memory_of_a_smaller_batch() -> None:
    model, large = MODELS["resnet"], TrainConfig(batch_size=16)
    example = 4 * 3 * 8 * 8
    for part in (1, 4, 8):
        for recompute in (False, True):
            small = cost_of(model, spec_of(1.0), TrainConfig(batch_size=part), recompute)
            cost = cost_by(model, spec_of(1.0), large, Levers(recompute, part))
            assert cost.memory == small.memory + (16 - part) * example


def test_recomputing_keeps_what_enters_blocks_and_one_block_at_a_time() -> None:
    config, model = TrainConfig(batch_size=4), ModelConfig("resnet", (8, 8, 8), 4, (8,), (6,))
    plain, again = (cost_by(model, spec_of(1.0), config, Levers(recompute=each)) for each in (False, True))
    few = ModelConfig("resnet", (8, 8, 8), 4, (8,), (5,))
    less, fewer = (cost_by(few, spec_of(1.0), config, Levers(recompute=each)) for each in (False, True))
    place, weights = 4 * 4 * 8 * 8 * 8, 3 * (plain.bytes_down - less.bytes_down)
    # One more block adds no more than its weights, their gradients and momenta, and the map that enters it.
    assert again.memory - fewer.memory == weights + place
    assert plain.memory - less.memory > weights + 4 * place
    assert again.training_macs - plain.training_macs == 6 * 2 * 9 * 8 * 8 * 64


def test_every_way_is_the_best_for_some_device_and_those_that_change_results_come_last() -> None:
    ways = ways_of(MODELS["resnet"], spec_of(1.0), TrainConfig(batch_size=16, levers=LEVERS))
    assert ways[0].levers == NO_LEVERS
    assert len(ways) > 4
    plain = ways[0].cost
    assert all(way.cost.memory < plain.memory for way in ways[1:])
    # Of two with no more work of any kind, the other needs less memory.
    for one, other in itertools.permutations((way.cost for way in ways if not way.levers.half_state), 2):
        if one.calls <= other.calls and all(amount <= other.work[kind] for kind, amount in one.work.items()):
            assert other.memory < one.memory
    halves = [way.levers.half_state for way in ways]
    assert halves == sorted(halves)
    assert halves[-1]


def test_only_levers_that_a_run_allows_are_used() -> None:
    for name in LEVERS:
        ways = ways_of(MODELS["resnet"], spec_of(1.0), TrainConfig(batch_size=16, levers=(name,)))
        assert {each for way in ways for each in way.levers.used} == {name}
    assert len(ways_of(MODELS["resnet"], spec_of(1.0), TrainConfig(batch_size=16))) == 1


def test_examples_that_see_each_other_are_not_taken_in_parts() -> None:
    custom.allow("brought:BatchNormed")
    model = ModelConfig("custom", (3, 8, 8), 4, factory="brought:BatchNormed")
    ways = ways_of(model, spec_of(1.0), TrainConfig(batch_size=4, levers=LEVERS))
    assert not any(way.levers.micro_batch for way in ways)


# What is read


@pytest.mark.parametrize("levers", [NO_LEVERS, Levers(recompute=True), Levers(True, 3, True)])
def test_levers_travel_as_json(levers: Levers) -> None:
    assert Levers.from_json(levers.to_json()) == levers
    assert bool(levers.to_json()) == bool(levers.used)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"recompute": "both"}', '{"micro_batch": -1}', '{"other": true}', " " * 2000]
)
def test_levers_that_make_no_sense_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(ModelError, match="levers") as error:
        Levers.from_json(text)
    assert "\n" not in str(error.value)


def test_an_unknown_lever_is_named() -> None:
    with pytest.raises(ValueError, match="'recomputed' is not known; accepted: recompute, micro-batch, half-state"):
        TrainConfig(levers=("recomputed",))
