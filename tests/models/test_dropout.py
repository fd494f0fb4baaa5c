import pytest
import torch

from diastole.client.training import train
from diastole.models.dropout import Dropout, draw_from, is_random, replace_dropout
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.seeds import generator
from diastole.models.task import Task
from diastole.models.training import Examples, TrainConfig


def made(share: float, seed: int = 0) -> Dropout:
    layer = Dropout(share)
    draw_from(layer, generator(seed))
    return layer


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_share_is_dropped_and_the_mean_stays(share: float) -> None:
    dropped = made(share)(torch.ones(300, 331))
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / (1 - share)]))
    # Five standard deviations of a mean of 99,300 draws.
    assert (dropped == 0).float().mean().item() == pytest.approx(share, abs=5 * (share * (1 - share) / 99_300) ** 0.5)


def test_each_of_the_eight_bytes_of_a_draw_drops_its_share() -> None:
    lanes = (made(0.5)(torch.ones(8_000, 8)) == 0).float().mean(0)
    torch.testing.assert_close(lanes, torch.full((8,), 0.5), rtol=0, atol=0.03)


def test_gradients_pass_where_activations_did() -> None:
    x = torch.randn(40, 7, requires_grad=True)
    dropped = made(0.5)(x)
    dropped.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.where(dropped == 0, 0.0, 2.0))


def test_nothing_is_dropped_in_evaluation_or_without_a_generator() -> None:
    x = torch.ones(50)
    assert torch.equal(Dropout(0.5)(x), x)
    assert torch.equal(made(0.5).eval()(x), x)
    assert is_random(torch.nn.Sequential(Dropout(0.5)))
    assert not is_random(torch.nn.Sequential(torch.nn.Dropout(0.5)))


def test_the_seed_of_the_task_decides_what_is_dropped_and_the_global_generator_does_not() -> None:
    model, training = ModelConfig("simple-cnn", (1, 8, 8), 4, (4, 4, 8)), TrainConfig(batch_size=8)
    state, spec = initial_state(model, 0), spec_of(1.0)
    examples = Examples(torch.randn(20, 1, 8, 8, generator=generator(1)), torch.arange(20) % 4)

    def trained(seed: int, elsewhere: int) -> torch.Tensor:
        torch.manual_seed(elsewhere)
        return torch.cat(
            [
                t.flatten()
                for t in train(model, Task("task", 1, "device", spec, training, seed), state, examples).state.values()
            ]
        )

    assert torch.equal(trained(3, elsewhere=0), trained(3, elsewhere=1))
    assert not torch.equal(trained(3, elsewhere=0), trained(4, elsewhere=0))


@pytest.mark.parametrize(("p", "inplace"), [(0.0, False), (0.1, True), (0.5, False)])
def test_what_a_user_reads_of_a_layer_is_what_it_was_made_with(p: float, inplace: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Dropout2d(p, inplace))
    replace_dropout(module)
    assert isinstance(module[0], Dropout)
    assert (module[0].p, module[0].inplace, module[0].maps) == (p, inplace, True)
    assert is_random(module) == bool(p)


def test_a_layer_that_drops_nothing_draws_nothing() -> None:
    layer, draws = made(0.0), generator(0)
    draw_from(layer, draws)
    x, before = torch.ones(30), draws.get_state()
    assert torch.equal(layer(x), x)
    assert torch.equal(draws.get_state(), before)


def test_in_place_the_same_is_dropped_from_what_is_given() -> None:
    x = torch.randn(30, 7)
    expected, layer = made(0.5)(x), Dropout(0.5, inplace=True)
    draw_from(layer, generator(0))
    assert layer(x) is x
    assert torch.equal(x, expected)
