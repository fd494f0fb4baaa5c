"""DepthFL and the exits that it shares with ScaleFL."""

import math

import pytest
import torch
from torch.nn import functional as F

from diastole.models.accumulator import Accumulator
from diastole.models.errors import SpecError
from diastole.models.losses import divergence
from diastole.models.methods.depths import depthfl
from diastole.models.methods.depths.depthfl import DepthFLConfig, DepthFLMethod, spec_of
from diastole.models.methods.depths.exits import Exited, Stages, shape_of
from diastole.models.methods.registry import read_spec
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network
from diastole.models.training import Step, TrainConfig

MODELS = {
    "cnn-2d": ModelConfig("cnn", (1, 16, 16), classes=3, widths=(4, 8, 12), group=2),
    "cnn-1d": ModelConfig("cnn", (2, 16), classes=3, widths=(4, 8, 12), group=2),
    "resnet": ModelConfig("resnet", (3, 8, 8), classes=3, widths=(4, 4, 8), blocks=(1, 2, 1), group=2),
}
TRAINING = TrainConfig(batch_size=4)


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request: pytest.FixtureRequest) -> ModelConfig:
    return request.param


def batch(model: ModelConfig, count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(count, *model.input_shape, generator=draws), torch.arange(count) % model.classes


def test_a_size_holds_its_stages_and_an_exit_for_each(model: ModelConfig) -> None:
    method = DepthFLMethod(model, (1.0, 0.5), TRAINING)
    held = [set(method.slots(size.spec)) for size in method.offers()]
    assert len(held) == 3
    for depth, names in enumerate(held, 1):
        assert {int(name.split(".")[2]) for name in names if name.startswith("trunk.stages.")} == set(range(depth))
        assert {int(name.split(".")[1]) for name in names if name.startswith("exits.")} == set(range(min(depth, 2)))
        assert ("trunk.classifier.weight" in names) == (depth == 3)
        assert ("trunk.stem.weight" in names) == (model.name == "resnet")
    assert held[0] < held[1] < held[2] == set(method.initial(0))


def test_logits_are_those_of_each_stage_in_turn_and_the_networks_own_last(model: ModelConfig) -> None:
    module, plain, (x, _) = depthfl.build(model, spec_of(1.0, 3)), network(model), batch(model)
    names = {name.removeprefix("trunk."): p for name, p in module.named_parameters() if name.startswith("trunk.")}
    plain.load_state_dict(names)
    found = module.logits(x)
    assert torch.equal(found[-1], plain(x))
    assert torch.equal(module.last(x), plain(x))
    for depth in (1, 2):
        shallow = depthfl.build(model, spec_of(1.0, depth))
        prefix = {name: module.state_dict()[name] for name in shallow.state_dict()}
        shallow.load_state_dict(prefix)
        assert all(torch.equal(a, b) for a, b in zip(shallow.logits(x), found[:depth], strict=True))
        assert torch.equal(shallow.last(x), found[depth - 1])


def test_inference_is_the_mean_of_the_exits_held(model: ModelConfig) -> None:
    for depth in (1, 2, 3):
        module, (x, _) = depthfl.build(model, spec_of(1.0, depth)), batch(model)
        logits = module.logits(x)
        expected = [[sum(z[n, c].item() for z in logits) / depth for c in range(3)] for n in range(len(x))]
        assert torch.allclose(module(x), torch.tensor(expected), atol=1e-6)


def slow_kl(student: list[float], teacher: list[float], temperature: float = 1.0) -> float:
    def softmax(z: list[float]) -> list[float]:
        total = sum(math.exp(value / temperature) for value in z)
        return [math.exp(value / temperature) / total for value in z]

    return sum(q * math.log(q / p) for p, q in zip(softmax(student), softmax(teacher), strict=True))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergence_is_that_of_the_teacher_from_the_student(temperature: float) -> None:
    student, teacher = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = sum(slow_kl(student[n].tolist(), teacher[n].tolist(), temperature) for n in range(6)) / 6
    assert divergence(student, teacher, TRAINING.criterion, temperature).item() == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_that_of_the_paper(model: ModelConfig) -> None:
    for depth in (1, 2, 3):
        for distillation, ramp, progress in ((1.0, 0.3, 0.1), (0.5, 0.3, 0.8), (2.0, 0.0, 0.0), (0.0, 0.3, 0.5)):
            spec = spec_of(1.0, depth, DepthFLConfig(distillation, ramp))
            module, (x, y) = depthfl.build(model, spec), batch(model)
            logits = [z.tolist() for z in module.logits(x)]
            weight = distillation * math.exp(-5 * (1 - min(progress, ramp) / ramp) ** 2 if ramp else 0.0)
            expected = 0.0
            for i in range(depth):
                for n in range(len(x)):
                    expected += -math.log(F.softmax(torch.tensor(logits[i][n]), 0)[y[n]].item()) / len(x)
                    for j in range(depth):
                        if j != i:
                            expected += weight / (depth - 1) * slow_kl(logits[i][n], logits[j][n]) / len(x)
            loss = module.loss(x, y, Step(torch.Generator(), progress))
            assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_no_exit_learns_from_being_a_teacher() -> None:
    model = MODELS["cnn-2d"]
    x, y = batch(model)
    module = depthfl.build(model, spec_of(1.0, 2, DepthFLConfig(1.0, 0.0)))

    def gradient(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(module.exits[0].parameters())))

    first, second = module.logits(x)
    taught = divergence(first, second, TRAINING.criterion)
    expected = gradient(F.cross_entropy(first, y) + F.cross_entropy(second, y) + taught)
    found = gradient(module.loss(x, y, Step(torch.Generator(), 1.0)))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, math.exp(-5)), (0.15, math.exp(-1.25)), (0.3, 1.0), (0.31, 1.0), (1.0, 1.0)],
)
def test_the_ramp_is_that_of_the_paper(progress: float, expected: float) -> None:
    assert DepthFLConfig().weight(progress) == pytest.approx(expected)


def test_options_reach_the_devices_in_every_spec() -> None:
    method = DepthFLMethod(MODELS["cnn-2d"], (1.0,), TRAINING, DepthFLConfig(distillation=0.0, ramp=0.5))
    for number, size in enumerate(method.offers(), 1):
        spec = read_spec(size.spec.to_json())
        assert depthfl.build(MODELS["cnn-2d"], spec).config == DepthFLConfig(distillation=0.0, ramp=0.5)
        assert spec.label.endswith(f"stages {number}")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('{"distillation":-1}', "config.distillation: .*not -1"),
        ('{"ramp":2}', "config.ramp: .*not 2"),
        ('{"slope":1}', "config.slope: no such key"),
    ],
)
def test_settings_that_cannot_be_are_named(config: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read_spec(f'{{"method":"depthfl","label":"any","options":{{"config":{config}}}}}')


def test_stages_that_are_not_there_are_named() -> None:
    with pytest.raises(SpecError, match="stages 4: model cnn has 3"):
        shape_of(MODELS["cnn-2d"], Stages(stages=4))


def test_an_exit_is_averaged_over_those_who_hold_it() -> None:
    model = MODELS["resnet"]
    method = DepthFLMethod(model, (1.0,), TRAINING)
    state = method.initial(0)
    method.prepare(state, None, Moment())
    first, second, whole = (size.spec for size in method.offers())
    accumulator = Accumulator(state)
    for spec, change, examples in ((first, 1.0, 10), (second, 4.0, 30), (second, 8.0, 10)):
        trained = {name: tensor + change for name, tensor in method.compress(spec).items()}
        accumulator.fold(method.dilate(trained, spec), examples)
    deltas, masks = accumulator.mean()
    for name, delta in deltas.items():
        expected = (10 * 1 + 30 * 4 + 10 * 8) / 50 if name in method.slots(first) else (30 * 4 + 10 * 8) / 40
        covered = name in method.slots(second)
        assert masks[name].all() if covered else not masks[name].any()
        assert torch.allclose(delta, torch.tensor(expected if covered else 0.0, dtype=torch.float64), atol=1e-5)
    assert whole == method.whole


def test_an_exit_of_a_narrow_trunk_is_a_prefix_of_that_of_a_wide_one(model: ModelConfig) -> None:
    wide, narrow = (Exited(model, shape_of(model, Stages(width))) for width in (1.0, 0.5))
    shapes = dict(wide.named_parameters())
    assert all(
        len(p.shape) == len(shapes[name].shape)
        and all(a <= b for a, b in zip(p.shape, shapes[name].shape, strict=True))
        for name, p in narrow.named_parameters()
    )
