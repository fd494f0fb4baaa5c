"""Twelve networks as people write them, through six methods: whole federations that agree on every engine."""

import os
from functools import cache
from pathlib import Path

import pytest
import torch
import zoo
from torch import Tensor

import diastole
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.result import Result
from diastole.models.networks.custom import own as custom
from diastole.models.seeds import generator
from diastole.models.training import Examples
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

METHODS = ("width", "fjord", "splitmix", "fedrolex", "diastole", "fedavg")
USUAL = {("vit", "diastole")}
CLOSE = 2e-5
"""How far the weights of the batched engine may be from the loop's, after two rounds; they are of order 1."""

DRAWN_ON_A_GPU = ("lstm", "transformer")
"""Their dropout is in kernels of the GPU, which take no generator."""

ALL = [
    pytest.param(name, method, marks=() if (name, method) in USUAL else pytest.mark.slow, id=f"{name}-{method}")
    for name in zoo.CONFIGS
    for method in METHODS
]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let worker processes find the networks."""
    helpers = str(Path(zoo.__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([helpers, *filter(None, [os.environ.get("PYTHONPATH")])]))


@cache
def data(name: str) -> Dataset:
    """Examples of which a few are enough to train two rounds on."""
    model, draws = zoo.CONFIGS[name], generator("zoo", name)

    def examples(count: int) -> Examples:
        x = model.drawn(count, draws)
        places = {"unet": (8, 8), "language": (8,)}.get(name, ())
        y = torch.randint(model.classes, (count, *places), generator=draws)
        return Examples(x, torch.randn(count, 2, generator=draws) if name == "gru" else y)

    return Dataset(name, examples(70), examples(12), model.classes)


def ran(name: str, method: str, engine: str, device: str = "cpu") -> Result:
    """Run two rounds on five devices of unequal size; BatchNorm takes its statistics of the proxy set."""
    model = zoo.CONFIGS[name]
    keys = {"name": "custom", "factory": model.factory, "group": model.group, "vocabulary": model.vocabulary}
    document = {
        "method": method,
        "engine": engine,
        "device": device,
        "data": {"proxy": 12},
        "model": keys,
        "partition": {"kind": "quantity", "alpha": 1.0, "minimum": 2},
        "training": {"batch_size": 4, "learning_rate": 0.02, "loss": zoo.LOSSES.get(name, "cross-entropy")},
        "rounds": {"count": 2},
        "tiers": {"large": {"devices": 2, "width": 1.0}, "small": {"devices": 3, "width": 0.5}},
        "limits": (),
    }
    if engine == "processes":
        document["workers"] = 1
    return simulate(make_federation(Simulation.parse(document, name), data(name)))


def flat(result: Result) -> Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(result.state.items())])


@pytest.mark.parametrize(("name", "method"), ALL)
def test_engines_agree_on_any_network(name: str, method: str) -> None:
    loop, batched = (ran(name, method, engine) for engine in ("loop", "batched"))
    assert [closed.updates for closed in loop.rounds] == [5, 5]
    assert flat(loop).isfinite().all()
    assert torch.allclose(flat(batched), flat(loop), atol=CLOSE)
    for size in loop.sizes:
        assert 0 < size.cost.forward_macs < size.cost.training_macs
        assert size.cost.bytes_down == 4 * size.cost.parameters


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [name for name in zoo.CONFIGS if name not in DRAWN_ON_A_GPU])
@pytest.mark.parametrize("method", ["width", "diastole", "splitmix"])
def test_a_gpu_agrees_with_the_loop(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # In TF32, as is the default, they differ by up to 2e-3.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = flat(ran(name, method, "batched", "cuda"))
    assert torch.allclose(found, flat(ran(name, method, "loop")), atol=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), ALL)
def test_worker_processes_give_the_bits_of_the_loop(name: str, method: str) -> None:
    assert torch.equal(flat(ran(name, method, "processes")), flat(ran(name, method, "loop")))


@pytest.mark.parametrize("name", [n if n == "resnet" else pytest.param(n, marks=pytest.mark.slow) for n in zoo.CONFIGS])
def test_what_comes_out_loads_into_the_users_own_class(name: str, tmp_path: Path) -> None:
    result, model = ran(name, "width", "batched"), zoo.CONFIGS[name]
    custom.allow(model.factory)
    mine = getattr(zoo, model.factory.partition(":")[2])
    for part in (result.model(), result.model(tier="small")):
        assert type(part) is mine
        found = part.eval()(data(name).test.x)
        assert found.shape == (12, *model.gives)
        assert found.isfinite().all()
    theirs = mine()
    theirs.load_state_dict(result.model().state_dict(), strict=not any(True for _ in theirs.buffers()))
    assert torch.equal(theirs.eval()(data(name).test.x), result.model().eval()(data(name).test.x))
    paths = result.save(tmp_path)
    again = diastole.load_model(next(path for path in paths if path.suffix == ".safetensors"))
    assert torch.equal(again.eval()(data(name).test.x), result.model().eval()(data(name).test.x))
