"""What any method can be trained with comes to the same on every engine."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from federations import federation

from diastole.client.training import train
from diastole.models.methods.registry import make_method
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.task import Task, Update
from diastole.models.training import Examples, TrainConfig
from diastole.proto.profile import Profile
from diastole.simulations.devices import Device
from diastole.simulations.engines.batched import BatchedLink
from diastole.simulations.simulate import simulate

IMAGES = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=5, widths=(8, 8), group=2)
COUNTS = (27, 16, 5, 1, 0)
TRICKS = {"balance": 0.7, "clip": 0.5, "schedule": "step:0.5,0.75/4"}


def skewed(counts: Sequence[int] = COUNTS) -> Mapping[str, Device]:
    """Devices that lack classes, each others."""
    draws, devices = torch.Generator().manual_seed(7), {}
    for k, count in enumerate(counts):
        x = torch.randn(count, *IMAGES.input_shape, generator=draws)
        y = (torch.rand(count, generator=draws).square() * 4 + k).long() % 5
        devices[f"device-{k}"] = Device(Profile("any", count), Examples(x, y))
    return devices


@pytest.mark.parametrize("like_card", [False, True], ids=["cpu", "card"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("method", ["width", "diastole", pytest.param("depthfl", marks=pytest.mark.slow)])
def test_devices_trained_together_come_to_what_each_comes_to_alone(
    method: str, optimiser: str, like_card: bool
) -> None:
    rate = 0.1 if optimiser == "sgd" else 1e-3
    training = TrainConfig(epochs=2, batch_size=8, learning_rate=rate, optimiser=optimiser, **TRICKS)  # type: ignore[arg-type]
    made = make_method(method, IMAGES, (0.5, 1.0), training)
    made.prepare(made.initial(0), None, Moment(1, 2, 0))
    spec, devices = made.offers()[0].spec, skewed()
    state = made.compress(spec)
    work = [Task(f"r1-{name}", 1, name, spec, training, 100 + k, 0.6) for k, name in enumerate(devices)]
    link = BatchedLink(IMAGES, devices, workers=1, like_card=like_card)
    found = {each.device: each for each in link.dispatch(work, {spec: state}, None)}
    together = link.cards[0].programs((spec, training, "")) if like_card else link.program(spec, training)
    assert together or (method != "width" and not like_card)
    for task in work:
        expected, update = train(IMAGES, task, state, devices[task.device].examples), found[task.device]
        assert isinstance(update, Update)
        assert update.report.loss == pytest.approx(expected.report.loss, rel=1e-3, abs=1e-5)
        for name, tensor in expected.state.items():
            torch.testing.assert_close(update.state[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trick", list(TRICKS))
def test_each_trick_changes_what_devices_learn(trick: str) -> None:
    devices = skewed((16,))
    plain, tricked = (
        TrainConfig(batch_size=8, learning_rate=0.1),
        TrainConfig(batch_size=8, learning_rate=0.1, **{trick: TRICKS[trick]}),
    )  # type: ignore[arg-type]
    made = make_method("width", IMAGES, (0.5, 1.0), plain)
    made.prepare(made.initial(0), None, Moment(1, 2, 0))
    spec = made.offers()[0].spec
    one, other = (
        train(IMAGES, Task("t", 1, "device-0", spec, each, 1, 0.6), made.compress(spec), devices["device-0"].examples)
        for each in (plain, tricked)
    )
    assert any(not torch.allclose(one.state[name], other.state[name], rtol=1e-3) for name in one.state)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "flower"])
def test_other_processes_give_the_bits_of_the_loop(engine: str) -> None:
    if engine == "flower":
        pytest.importorskip("ray")
    changes = {"training": {"batch_size": 16, **TRICKS}, "rounds": {"count": 3}}
    expected = simulate(federation(**changes))
    found = simulate(federation(engine=engine, workers=1, **changes))
    assert all(torch.equal(found.state[name], tensor) for name, tensor in expected.state.items())
