"""Stitched networks that are tested, and slow references for what they do."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diastole.models.methods.registry import make_method
from diastole.models.methods.stitching.routes import Joint, chain
from diastole.models.methods.stitching.snnet import StitchedMethod
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network
from diastole.models.proxy import Proxy
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.training import Examples, TrainConfig

VIT = ModelConfig("vit", (1, 8, 8), classes=4, widths=(8,), blocks=(3,), group=4)
RESNET = ModelConfig("resnet", (1, 8, 8), classes=4, widths=(8, 12), blocks=(2, 1), group=2)
SERIES = ModelConfig("cnn", (3, 16), classes=4, widths=(8, 16), group=2)
# Wide enough for three anchors.
WIDE_VIT = replace(VIT, widths=(16,), blocks=(2,))
DEEP_VIT, DEEP_RESNET = replace(VIT, blocks=(5,)), replace(RESNET, blocks=(3, 2))
WIDTHS = (0.5, 1.0)
TRAINING = TrainConfig(epochs=2, batch_size=8, learning_rate=0.05)
UNPAIRED = {"depths": [[1, 1], [3, 2]]}
FAMILIES = [
    pytest.param(VIT, "snnet", {}, id="vit-snnet"),
    pytest.param(VIT, "snnetv2", {"rank": 2}, id="vit-snnetv2", marks=pytest.mark.slow),
    pytest.param(RESNET, "snnet", {}, id="resnet-snnet", marks=pytest.mark.slow),
    pytest.param(RESNET, "snnetv2", {}, id="resnet-snnetv2"),
    pytest.param(SERIES, "snnet", {}, id="series-snnet"),
    pytest.param(SERIES, "snnetv2", {}, id="series-snnetv2", marks=pytest.mark.slow),
    pytest.param(DEEP_VIT, "snnet", {"depths": [[2], [5]]}, id="vit-unpaired", marks=pytest.mark.slow),
    # Windows in the first stage, one block followed by any but the first in the second.
    pytest.param(DEEP_RESNET, "snnet", {"depths": [[3, 1], [3, 2]]}, id="resnet-half-paired", marks=pytest.mark.slow),
    pytest.param(DEEP_RESNET, "snnet", UNPAIRED, id="resnet-unpaired"),
]


def make(model: ModelConfig, method: str = "snnet", widths: Sequence[float] = WIDTHS, **options: Any) -> StitchedMethod:
    made = make_method(method, model, widths, TRAINING, options)
    assert isinstance(made, StitchedMethod)
    return made


def started(model: ModelConfig = VIT, method: str = "snnet", **options: Any) -> tuple[StitchedMethod, State]:
    """Return a method whose stitches have started, and the state of the round."""
    made = make(model, method, warmup=0, **options)
    draws = torch.Generator().manual_seed(2)
    state = {n: t + 0.1 * torch.randn(t.shape, generator=draws) for n, t in made.initial(1).items()}
    return made, made.prepare(state, proxy(model), Moment(1, 4))


def drawn(model: ModelConfig, count: int, seed: int = 0) -> Examples:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *model.input_shape, generator=draws)
    return Examples(x, torch.randint(model.classes, (count,), generator=draws))


def proxy(model: ModelConfig) -> Proxy:
    return Proxy(drawn(model, 24, 5), drawn(model, 4, 6))


def gathering(method: StitchedMethod, pair: tuple[int, int] = (0, 1)) -> SubModelSpec:
    """Return the spec of what gathers the statistics of two anchors."""
    return next(size.spec for size in method.offers() if size.spec.options.bases == pair)


def anchor(method: StitchedMethod, state: State, number: int) -> nn.Module:
    """Return a whole anchor, loaded."""
    module = network(method.family.model, method.family.shapes[number])
    module.load_state_dict({name: state[f"anchors.{number}.{name}"] for name, _ in module.named_parameters()})
    return module


def activations(method: StitchedMethod, state: State, x: Tensor) -> list[list[Tensor]]:
    """Return, for each anchor, what each block takes, and what the last gives, as rows of channels."""
    model, found = method.family.model, []
    for number in range(len(method.family.widths)):
        module = anchor(method, state, number)
        with torch.no_grad():
            ys = [module.enter(x)]
            for block in chain(model, module):
                ys.append(block(ys[-1]))
        found.append([(y if model.name == "vit" else y.movedim(1, -1)).flatten(0, -2) for y in ys])
    return found


def least_squares(joint: Joint, seen: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a stitch by torch's least squares on all activations at once."""
    inside = torch.cat([seen[joint.front][j + 1] for j, _ in joint.places]).double()
    outside = torch.cat([seen[joint.back][k] for _, k in joint.places]).double()
    wide = torch.cat([inside, torch.ones(len(inside), 1)], 1)
    solution = torch.linalg.lstsq(wide, outside, driver="gelsd").solution.float()
    return solution[:-1].T, solution[-1]


def error(joint: Joint, seen: list[list[Tensor]], weight: Tensor, bias: Tensor) -> float:
    """Return the mean square that a stitch misses by."""
    front, back = seen[joint.front], seen[joint.back]
    missed = [(front[j + 1] @ weight.T + bias - back[k]).square().mean() for j, k in joint.places]
    return float(sum(missed))


def stitch(state: State, name: str) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias of a stitch."""
    return state[f"stitches.{name}.weight"], state[f"stitches.{name}.bias"]
