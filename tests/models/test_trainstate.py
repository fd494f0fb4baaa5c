"""Training that goes on behind any of its steps ends with the bits of training that was never cut short."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from diastole.models.dropout import replace_dropout
from diastole.models.errors import StateError
from diastole.models.training import Examples, Objective, Step, TrainConfig, fit
from diastole.models.trainstate import TrainState
from diastole.proto.payload import decode, encode


class Counting(nn.Module):
    """Has a buffer that each forward pass changes and each result depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 5)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.layer(x.flatten(1)) * self.seen


class Picking(Objective):
    """Draws for itself, and leaves a weight out of some of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(192, 5), nn.Linear(192, 5)])

    def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        return step.criterion.mean(self.layers[step.pick(2)](x.flatten(1)), y)


def dropping() -> nn.Module:
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.Dropout(0.5), nn.Flatten()
    module = nn.Sequential(*layers, nn.Linear(288, 5))
    replace_dropout(module)
    module[0].bias.requires_grad_(False)
    return module.to(memory_format=torch.channels_last)


MODULES: list[Callable[[], nn.Module]] = [dropping, Counting, Picking]
CONFIGS = [
    TrainConfig(epochs=3, batch_size=4, augment=("flip", "mixup:1")),
    TrainConfig(epochs=2, batch_size=5, optimiser="adam", learning_rate=0.01),
]


def run(
    module: nn.Module, config: TrainConfig, between: Callable[[TrainState], None], saved: dict[str, Tensor] | None
) -> float:
    draws = torch.Generator().manual_seed(1)
    examples = Examples(torch.randn(14, 3, 8, 8, generator=draws), torch.arange(14) % 5)
    return fit(module, examples, config, draws, 0.5, torch.Generator().manual_seed(2), between=between, saved=saved)


@pytest.mark.parametrize("config", CONFIGS, ids=["sgd", "adam"])
@pytest.mark.parametrize("made", MODULES)
def test_training_that_goes_on_behind_any_step_has_the_bits_of_an_undisturbed_one(
    made: Callable[[], nn.Module], config: TrainConfig
) -> None:
    if made is Picking:
        config = TrainConfig(epochs=3, batch_size=4)
    fresh, saved = made(), list[bytes]()
    module = deepcopy(fresh)
    loss = run(module, config, lambda state: saved.append(encode(state.tensors())), None)
    assert len(saved) == config.epochs * -(-14 // config.batch_size)
    for number, data in enumerate(saved, 1):
        again, steps = deepcopy(fresh), list[int]()
        assert run(again, config, lambda state, steps=steps: steps.append(state.steps), decode(data)) == loss
        assert steps == list(range(number + 1, len(saved) + 1))
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_step_of_another_task_is_refused_and_changes_nothing() -> None:
    saved = list[dict[str, Tensor]]()
    run(Counting(), TrainConfig(momentum=0.0), lambda state: saved.append(decode(encode(state.tensors()))), None)
    module = Counting()
    before = deepcopy(module.state_dict())
    with pytest.raises(StateError, match=r"a saved step has another 'memory\.0\.\d'"):
        run(module, TrainConfig(), lambda state: None, saved[0])
    with pytest.raises(StateError, match="a saved step has another 'order'"):
        run(module, TrainConfig(momentum=0.0), lambda state: None, saved[0] | {"order": torch.arange(3)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
