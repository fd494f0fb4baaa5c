"""ScaleFL: what its contract does not say."""

import pytest
import torch

from diastole.models.methods.bases.budgets import ratios, within
from diastole.models.methods.depths import scalefl
from diastole.models.methods.depths.scalefl import ScaleFLConfig, ScaleFLMethod, spec_of
from diastole.models.methods.registry import cost_of
from diastole.models.methods.widths.width import width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.training import Step, TrainConfig

MODEL = ModelConfig("resnet", (3, 8, 8), classes=3, widths=(8, 8, 16), blocks=(1, 1, 1), group=2)
CNN = ModelConfig("cnn", (1, 16, 16), classes=3, widths=(8, 12, 16), group=2)
TRAINING = TrainConfig(batch_size=4)


@pytest.mark.parametrize(
    "model", [pytest.param(MODEL, id="resnet"), pytest.param(CNN, id="cnn", marks=pytest.mark.slow)]
)
def test_levels_are_the_most_work_within_each_tier(model: ModelConfig) -> None:
    widths = (1.0, 0.75, 0.5, 0.25)
    method = ScaleFLMethod(model, widths, TRAINING)
    offered = {size.spec: size.cost for size in method.offers()}
    wanted = set()
    for width in widths:
        limit, found = width_cost(model, width, TRAINING), []
        for exits in (3,) if width == 1 else (1, 2, 3):
            for ratio in ratios(model):
                cost = cost_of(model, spec_of(ratio, exits), TRAINING)
                if ratio <= method.whole.options.width and within(cost, limit):
                    found.append(cost.training_macs)
        wanted.add(max(found))
    assert wanted == {cost.training_macs for cost in offered.values()}
    assert method.whole.options.stages == 3
    assert len({spec.options.stages for spec in offered}) > 1


def test_a_size_holds_the_first_channels_of_its_stages_and_exits() -> None:
    module = scalefl.build(MODEL, spec_of(0.5, 2))
    shapes = {name: list(p.shape) for name, p in module.named_parameters()}
    assert shapes["trunk.stem.weight"] == [4, 3, 3, 3]
    assert shapes["trunk.stages.1.0.conv1.weight"] == [4, 4, 3, 3]
    assert shapes["exits.1.bottleneck.weight"] == [4, 4, 1, 1]
    assert shapes["exits.1.head.weight"] == [3, 4 * 16]
    assert not any(name.startswith(("trunk.stages.2", "trunk.classifier", "exits.2")) for name in shapes)


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.3, 1.0])
@pytest.mark.parametrize("exits", [1, 2, 3])
def test_the_loss_is_that_of_the_paper(exits: int, progress: float) -> None:
    gamma, temperature, after = 0.7, 2.0, 0.25
    module = scalefl.build(MODEL, spec_of(0.5, exits, ScaleFLConfig(gamma, temperature, after)))
    draws = torch.Generator().manual_seed(1)
    x, y = torch.randn(5, 3, 8, 8, generator=draws), torch.arange(5) % 3
    logits = [z.detach().double() for z in module.logits(x)]
    expected = 0.0
    for j, z in enumerate(logits, 1):
        for n in range(5):
            expected += j * -z[n].log_softmax(0)[y[n]].item() / 5
            if progress > after and j < exits:
                student, teacher = ((v[n] / temperature).softmax(0).tolist() for v in (z, logits[-1]))
                divergence = sum(
                    q * torch.tensor(q / p, dtype=torch.float64).log().item()
                    for p, q in zip(student, teacher, strict=True)
                )
                expected += j * gamma * temperature**2 * divergence / 5
    expected /= exits * (exits + 1) / 2
    assert module.loss(x, y, Step(torch.Generator(), progress)).item() == pytest.approx(expected, rel=1e-5)


def test_the_last_exit_learns_from_labels_alone_and_decides() -> None:
    def gradients(gamma: float, name: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        module = scalefl.build(MODEL, spec_of(1.0, 2, ScaleFLConfig(gamma)))
        x, y = torch.randn(5, 3, 8, 8), torch.arange(5) % 3
        assert torch.equal(module(x), module.logits(x)[-1])
        loss = module.loss(x, y, Step(torch.Generator(), 1.0))
        return list(torch.autograd.grad(loss, list(module.get_submodule(name).parameters())))

    pairs = {
        name: list(zip(gradients(0.0, name), gradients(9.0, name), strict=True)) for name in ("exits.0", "exits.1")
    }
    assert all(torch.equal(a, b) for a, b in pairs["exits.1"])
    assert not any(torch.equal(a, b) for a, b in pairs["exits.0"])


def test_options_reach_the_devices() -> None:
    config = ScaleFLConfig(distillation=0.2, temperature=5.0, after=0.5)
    method = ScaleFLMethod(MODEL, (1.0, 0.5), TRAINING, config)
    assert all(scalefl.build(MODEL, size.spec).config == config for size in method.offers())
