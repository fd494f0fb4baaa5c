from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from diastole.models.cost import HEAP_GAPS, Cost, first_step, measure
from diastole.models.errors import ModelError
from diastole.models.methods.registry import build
from diastole.models.methods.widths.width import spec_of, width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network
from diastole.models.training import Examples, TrainConfig, loss_of
from diastole.models.watching import Watching

PLAIN = TrainConfig(batch_size=8, momentum=0.0)
CNN = ModelConfig("cnn", (3, 8, 8), classes=10, widths=(4, 8))
RESNET = ModelConfig("resnet", (3, 8, 8), classes=10, widths=(4, 8), blocks=(1, 1))


def test_macs_of_a_small_cnn_are_those_worked_out_by_hand() -> None:
    cost = width_cost(CNN, 1.0, PLAIN)
    first = 8 * 8 * 4 * 3 * 9
    second = 4 * 4 * 8 * 4 * 9
    classifier = 10 * 8 * 2 * 2
    assert cost.forward_macs == first + second + classifier
    # Backwards, each layer takes the forward work for its weights, and again for its input; examples need none.
    assert cost.training_macs == 2 * first + 3 * (second + classifier)
    assert cost.parameters == (4 * 3 * 9 + 8) + (8 * 4 * 9 + 16) + (10 * 32 + 10)


def test_macs_of_a_small_resnet_are_those_worked_out_by_hand() -> None:
    cost = width_cost(RESNET, 1.0, PLAIN)
    stem = 64 * 4 * 3 * 9
    first = 2 * 64 * 4 * 4 * 9
    # Strided: 4 x 4 positions are left; the shortcut is 1 x 1.
    second = 16 * 8 * 4 * 9 + 16 * 8 * 8 * 9 + 16 * 8 * 4
    classifier = 10 * 8
    assert cost.forward_macs == stem + first + second + classifier
    assert cost.training_macs == 2 * stem + 3 * (first + second + classifier)


def test_macs_of_a_one_dimensional_cnn_are_those_worked_out_by_hand() -> None:
    cost = width_cost(ModelConfig("cnn", (2, 12), classes=3, widths=(4,)), 1.0, PLAIN)
    assert cost.forward_macs == 12 * 4 * 2 * 3 + 3 * 4 * 6


@pytest.mark.parametrize("model", [CNN, RESNET])
def test_parameters_and_bytes_are_those_of_the_module(model: ModelConfig) -> None:
    for width in (0.5, 1.0):
        spec = spec_of(width)
        cost = width_cost(model, width, PLAIN)
        assert cost.parameters == sum(weight.numel() for weight in build(model, spec).parameters())
        assert cost.bytes_down == cost.bytes_up == 4 * cost.parameters


@pytest.mark.parametrize("model", [CNN, RESNET])
def test_macs_of_one_example_do_not_depend_on_the_batch(model: ModelConfig) -> None:
    small, large = (width_cost(model, 1.0, replace(PLAIN, batch_size=size)) for size in (3, 64))
    assert (small.forward_macs, small.training_macs) == (large.forward_macs, large.training_macs)


@pytest.mark.parametrize("model", [CNN, RESNET])
def test_memory_is_weights_twice_and_the_optimiser_and_what_grows_with_the_batch(model: ModelConfig) -> None:
    def cost(batch_size: int, training: TrainConfig = PLAIN) -> Cost:
        return width_cost(model, 1.0, replace(training, batch_size=batch_size))

    one, two, three = cost(8).memory, cost(16).memory, cost(24).memory
    assert one < two < three
    weights = 4 * cost(8).parameters
    momentum = cost(8, replace(PLAIN, momentum=0.9)).memory
    adam = cost(8, replace(PLAIN, optimiser="adam")).memory
    assert (momentum - one, adam - one) == (weights, 2 * weights)


@pytest.mark.parametrize("model", [CNN, RESNET])
def test_activations_are_what_autograd_keeps_on_a_real_device(model: ModelConfig) -> None:
    module = build(model)
    x, y = torch.randn(8, *model.input_shape), torch.zeros(8, dtype=torch.int64)
    own = {tensor.data_ptr() for tensor in (*module.parameters(), x)}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        F.cross_entropy(module(x), y).backward()
    activations = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)
    weights = sum(parameter.nbytes for parameter in module.parameters())
    assert width_cost(model, 1.0, PLAIN).memory == 2 * weights + x.nbytes + activations


def test_a_narrower_model_costs_less_in_every_respect() -> None:
    costs = [width_cost(RESNET, width, PLAIN) for width in (0.5, 1.0)]
    other = {"tensors", "header", "spared", "work", "moved", "calls", "whole"}
    for name in set(Cost.__dataclass_fields__) - other:
        assert getattr(costs[0], name) < getattr(costs[1], name)


# Modules that cannot take one example


def small_map(norm: Callable[[int], nn.Module]) -> nn.Module:
    """A network that strides away all of a 4x4 map."""
    layers: list[nn.Module] = []
    for before, width in ((1, 4), (4, 8)):
        layers += [nn.Conv2d(before, width, 3, 2, 1), norm(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3))


def batch_norm(width: int) -> nn.Module:
    return nn.BatchNorm2d(width, track_running_stats=False)


def test_a_module_that_cannot_take_one_example_is_measured_on_two_and_three() -> None:
    module, shape = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), batch_norm_1d(6), nn.Linear(6, 3)), (1, 4, 4)
    cost = measure(module, shape, PLAIN)
    assert cost.forward_macs == 16 * 6 + 6 * 3
    assert cost.training_macs == 2 * 16 * 6 + 3 * 6 * 3
    x, y = torch.randn(8, *shape), torch.zeros(8, dtype=torch.int64)
    own = {tensor.data_ptr() for tensor in (*module.parameters(), x)}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        F.cross_entropy(module.train()(x), y).backward()
    activations = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)
    assert cost.memory == 2 * 4 * cost.parameters + x.nbytes + activations


def batch_norm_1d(width: int) -> nn.Module:
    return nn.BatchNorm1d(width, track_running_stats=False)


def test_a_map_that_strides_have_made_one_value_is_measured_too() -> None:
    shape = (1, 2, 2)
    with_norm = measure(small_map(batch_norm), shape, PLAIN)
    without = measure(small_map(lambda width: nn.Identity()), shape, PLAIN)
    assert (with_norm.forward_macs, with_norm.training_macs) == (without.forward_macs, without.training_macs)


def test_batches_of_one_are_refused_in_one_line_where_nothing_can_be_learned_from_them() -> None:
    with pytest.raises(ModelError, match=r"cannot be trained on one example \(ValueError: .*batch_size to at least 2"):
        measure(small_map(batch_norm), (1, 2, 2), replace(PLAIN, batch_size=1))


def test_a_group_norm_of_one_value_a_group_is_named() -> None:
    message = r"layer '4' \(GroupNorm\) has one value in a group .*more channels a group, or a larger map"
    with pytest.raises(ModelError, match=message):
        measure(small_map(lambda width: nn.GroupNorm(width, width)), (1, 4, 4), PLAIN)
    with pytest.raises(ModelError, match=r"layer '.*norm1' \(GroupNorm\) has one value in a group"):
        width_cost(ModelConfig("resnet", (1, 8, 8), 10, (4, 8, 16, 32), (1, 1, 1, 1), group=1), 1.0, PLAIN)


@pytest.mark.parametrize("model", [RESNET, CNN])
def test_what_passes_is_the_largest_operator_and_gaps_of_the_heap(model: ModelConfig) -> None:
    """The bytes of each operator of a batch, as it really runs."""
    seen = list[float]()

    class Seen(Watching):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            tensors = [each for each in tree_leaves((args, result)) if isinstance(each, Tensor)]
            seen.append(0 if func.is_view else sum(each.numel() * each.element_size() for each in tensors))
            return result

    module, cost = network(model), width_cost(model, 1.0, PLAIN)
    batch = Examples(torch.randn(8, *model.input_shape), torch.zeros(8, dtype=torch.long))
    with Seen():  # type: ignore[no-untyped-call]
        loss_of(module, batch, first_step(batch, PLAIN.criterion)).backward()
    saved = cost.memory - 2 * cost.bytes_up - 4 * batch.x.numel()
    assert cost.passing == pytest.approx(max(seen) + HEAP_GAPS * saved, rel=0.02)
