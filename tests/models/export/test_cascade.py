"""Networks that leave by the first exit that is sure enough."""

from itertools import product

import pytest
import torch
from torch import Tensor

from diastole.models.errors import ModelError
from diastole.models.export.cascade import (
    NEVER,
    Cascade,
    calibrated,
    leaving,
    section_macs,
    sections_of,
    shares,
)
from diastole.models.loading import fill
from diastole.models.methods.registry import make_method
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network
from diastole.models.training import TrainConfig

CNN = ModelConfig.of(name="cnn", input_shape=(1, 8, 8), classes=3, widths=(4, 8, 8))


def trained(name: str) -> torch.nn.Module:
    method = make_method(name, CNN, [1.0], TrainConfig(batch_size=8))
    draws = torch.Generator().manual_seed(0)
    method.prepare({n: t + torch.randn(t.shape, generator=draws) for n, t in method.initial(0).items()}, None, Moment())
    return fill(method.module(method.whole), method.compress(method.whole)).eval()


@pytest.mark.parametrize("name", ["depthfl", "scalefl"])
@torch.no_grad()
def test_the_last_exit_answers_as_the_network(name: str) -> None:
    module, x = trained(name), torch.randn(5, 1, 8, 8)
    sections = sections_of(module)
    answers = Cascade(sections, (NEVER, NEVER), 3).answers(x)
    assert torch.allclose(answers[-1], module(x), atol=1e-6)
    assert torch.equal(Cascade(sections, (NEVER, NEVER), 3)(x), answers[-1])
    assert torch.equal(Cascade(sections, (0.0, NEVER), 3)(x), answers[0])
    macs = section_macs(sections, x[:1], 3)
    assert macs == sorted(macs)
    assert len(macs) == 3


def test_a_network_without_exits_is_refused() -> None:
    with pytest.raises(ModelError, match="the model has no exits that give classes"):
        sections_of(network(CNN))


def test_an_example_leaves_by_the_first_sure_exit() -> None:
    answers = [torch.tensor([[9.0, 0.0], [0.1, 0.0], [0.1, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 9.0], [0.0, 0.1]])]
    answers.append(torch.zeros(3, 2))
    exits = leaving(answers, (0.9, 0.9))
    assert exits.tolist() == [0, 1, 2]
    assert shares(exits, 3) == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_save_the_most_work_that_a_slow_search_can(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (12,), generator=draws)
    answers = [torch.randn(12, 3, generator=draws) + gain * torch.eye(3)[y] for gain in (1.0, 2.0, 4.0)]
    macs, drop = [10, 25, 70], 0.1
    found = calibrated(answers, y, macs, drop)
    right = [(answer.argmax(1) == y).tolist() for answer in answers]
    sure = [answer.softmax(1).amax(1).tolist() for answer in answers]

    def judged(thresholds: tuple[float, ...]) -> tuple[float, float]:
        """Return the accuracy and the mean work, one example after another."""
        hits = work = 0
        for k in range(12):
            at = next((e for e, t in enumerate(thresholds) if sure[e][k] >= t), 2)
            hits, work = hits + right[at][k], work + macs[at]
        return hits / 12, work / 12

    least = sum(right[2]) / 12 - drop - 1e-9
    # Only how sure the examples are can make a difference.
    every = [each for each in product([*sure[0], NEVER], [*sure[1], NEVER]) if judged(each)[0] >= least]
    assert judged(found)[0] >= least
    assert judged(found)[1] == pytest.approx(min(judged(each)[1] for each in every))


def test_one_exit_needs_no_threshold() -> None:
    only: list[Tensor] = [torch.zeros(2, 3)]
    assert calibrated(only, torch.zeros(2, dtype=torch.int64), [5], 0.1) == ()
    assert leaving(only, ()).tolist() == [0, 0]
