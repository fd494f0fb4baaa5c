"""Kinds of work: what operators are counted as."""

from dataclasses import replace

import pytest
from torch import Tensor, nn

from diastole.models.cost import Cost, measure
from diastole.models.kinds import KINDS, PER_CALL, of_batch, optimiser_work
from diastole.models.methods.widths.width import width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.training import TrainConfig

PLAIN = TrainConfig(batch_size=8, momentum=0.0)


class Convolved(nn.Module):
    """One convolution of images of 6x6, without a bias, and the mean of its map."""

    def __init__(self, inside: int, outside: int, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.inside = inside
        self.layer = nn.Conv2d(inside, outside, kernel, padding=kernel // 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((2, 3))


def cost(module: Convolved) -> Cost:
    return measure(module, (module.inside, 6, 6), PLAIN)


# Examples need no gradient: the convolution itself and the gradient of its weights are two of it.
PASSES = 2 * 8 * 36


@pytest.mark.parametrize(
    ("inside", "outside", "dense", "ragged"),
    [
        (16, 32, 16 * 32, 0),
        (17, 16, 24 * 16, 8 * 16),
        (16, 9, 16 * 16, 0),
        (4, 8, 8 * 8, 16 * 16 - 8 * 8),
        (3, 16, 3 * 16, 0),
        (1, 5, 8, 8),
    ],
)
def test_channels_are_rounded_up_to_vectors(inside: int, outside: int, dense: int, ragged: int) -> None:
    work = cost(Convolved(inside, outside, 3)).work
    assert work["dense"] == pytest.approx(PASSES * 9 * dense)
    assert work["ragged"] == pytest.approx(PASSES * 9 * ragged)


@pytest.mark.parametrize(("kernel", "kind"), [(3, "depthwise3"), (5, "depthwise5"), (7, "depthwise7")])
def test_depthwise_convolutions_are_kinds_of_their_own(kernel: int, kind: str) -> None:
    work = cost(Convolved(12, 12, kernel, 12)).work
    assert work[kind] == pytest.approx(PASSES * 12 * kernel**2)
    assert work["convolutions"] == 2
    assert "dense" not in work


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig("cnn", (3, 8, 8), 10, (8, 16)),
        ModelConfig("mobilenet", (3, 8, 8), 10, (8, 16), (1, 1)),
    ],
)
def test_arithmetic_is_that_of_the_cost_and_work_grows_as_batches_do(model: ModelConfig) -> None:
    small, large = (width_cost(model, 1.0, replace(PLAIN, batch_size=size)) for size in (8, 16))
    assert set(small.work) == set(large.work) <= set(KINDS)
    # Rounded up to multiples of 8 channels, so that there is more of it than the cost says.
    dense = sum(small.work.get(kind, 0.0) for kind in ("dense", "pointwise", "sequence"))
    others = sum(amount for kind, amount in small.work.items() if kind.startswith(("depthwise", "matrix")))
    assert others <= 8 * small.training_macs * 1.001 <= (dense + others) * 1.002
    for kind in small.work:
        assert small.work[kind] <= large.work[kind] <= 2 * small.work[kind], kind
        assert kind not in PER_CALL or small.work[kind] == large.work[kind]


def test_a_step_on_one_example_that_is_run_otherwise_tells_no_growth_beyond_proportion() -> None:
    found = of_batch({"memory": 1.0, "calls": 3.0}, {"memory": 100.0, "calls": 9.0}, 1, 10, {"memory": 5.0})
    assert found == {"memory": 100.0 + 8 * 50.0 + 5.0, "calls": 9.0}


def test_an_optimiser_that_holds_more_moves_more() -> None:
    plain, momentum, adam = (
        optimiser_work(training, 1000)["memory"] for training in (PLAIN, TrainConfig(), TrainConfig(optimiser="adam"))
    )
    assert plain < momentum < adam
