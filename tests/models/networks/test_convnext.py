"""The ConvNeXt family and its mixers, against networks that are written out by hand."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from diastole.experiments.data.digits import load
from diastole.experiments.data.reading import Reading
from diastole.models.errors import ModelError, SpecError
from diastole.models.methods.registry import make_method
from diastole.models.moment import Moment
from diastole.models.networks.config import Mixer, ModelConfig
from diastole.models.networks.convnext import split
from diastole.models.networks.family import layout, narrowed, network, parts
from diastole.models.scoring import evaluate
from diastole.models.seeds import generator
from diastole.models.state import state_of
from diastole.models.training import TrainConfig, fit

MIXERS = get_args(Mixer)
MODEL = ModelConfig("convnext", (3, 16, 12), 5, (32, 48), (2, 2), group=4, kernel=5, expand=2.0)


def of(mixer: str, **changes: Any) -> ModelConfig:
    return replace(MODEL, mixer=mixer, **changes)


def by_hand(model: ModelConfig, w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return the logits of a network with these weights, layer by layer."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, x.shape[1] // model.group, w[f"{name}.weight"], w[f"{name}.bias"])

    def mix(x: Tensor, name: str) -> Tensor:
        sizes = split(model.mixer, x.shape[1], model.group)
        if model.mixer == "depthwise":
            return F.conv2d(x, w[f"{name}.all.weight"], padding=model.kernel // 2, groups=x.shape[1])
        if model.mixer == "partial":
            first = F.conv2d(x[:, : sizes[0]], w[f"{name}.first.weight"], padding=1)
            return torch.cat([first, x[:, sizes[0] :]], 1)
        a, b, c, _ = sizes
        square = F.conv2d(x[:, :a], w[f"{name}.square.weight"], padding=1, groups=a)
        row = F.conv2d(x[:, a : a + b], w[f"{name}.row.weight"], padding=(0, 5), groups=b)
        column = F.conv2d(x[:, a + b : a + b + c], w[f"{name}.column.weight"], padding=(5, 0), groups=c)
        return torch.cat([square, row, column, x[:, a + b + c :]], 1)

    x = norm(F.conv2d(x, w["stem.weight"], padding=1), "norm")
    for stage, blocks in enumerate(model.blocks):
        for block in range(blocks):
            at = f"stages.{stage}.{block}"
            if stage and not block:
                x = F.conv2d(x, w[f"{at}.shrink.weight"], w[f"{at}.shrink.bias"], 2)
            y = norm(mix(x, f"{at}.mix"), f"{at}.norm")
            y = F.gelu(F.conv2d(y, w[f"{at}.widen.weight"], w[f"{at}.widen.bias"]))
            x = x + F.conv2d(y, w[f"{at}.narrow.weight"], w[f"{at}.narrow.bias"])
    return norm(x, "last").mean((2, 3)) @ w["classifier.weight"].T + w["classifier.bias"]


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_network_of_any_width_is_what_its_layers_are(mixer: str) -> None:
    x = torch.randn(2, *MODEL.input_shape, generator=generator("convnext"))
    for ratio in (1.0, 0.5):
        model = of(mixer)
        module = network(model, narrowed(model, ratio))
        torch.testing.assert_close(module(x), by_hand(model, state_of(module), x))


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_narrower_network_takes_some_of_each_part_of_a_mixed_stream(mixer: str) -> None:
    model = of(mixer)
    method = make_method("width", model, (1.0, 0.5), TrainConfig())
    state = method.initial(0)
    small = next(size.spec for size in method.offers())
    method.prepare(state, None, Moment())
    kept, size, full = list[int](), split(mixer, 16, 4), split(mixer, 32, 4)
    for part, (few, many) in enumerate(zip(size, full, strict=True)):
        kept += range(sum(full[:part]), sum(full[:part]) + few)
        assert few <= many
    torch.testing.assert_close(method.compress(small)["stem.weight"], state["stem.weight"][kept])


@given(st.sampled_from(MIXERS), st.integers(4, 300), st.sampled_from([1, 2, 4, 8]))
def test_a_wider_stream_has_no_fewer_channels_in_any_part(mixer: str, groups: int, size: int) -> None:
    narrow, wide = split(mixer, groups * size, size), split(mixer, (groups + 1) * size, size)
    assert sum(narrow) == groups * size
    assert all(part % size == 0 and 0 <= part <= more for part, more in zip(narrow, wide, strict=True))
    if mixer == "inception":
        assert min(narrow) > 0
        assert abs(sum(narrow[:3]) - 3 * groups * size / 8) <= 2 * size


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_layout_names_every_parameter_and_stages_halve_the_map(mixer: str) -> None:
    module = network(of(mixer))
    assert layout(of(mixer)).keys() == dict(module.named_parameters()).keys()
    y, sizes = parts(module).enter(torch.randn(2, 3, 16, 12)), []
    for stage in parts(module).stages:
        y = stage(y)
        sizes.append(tuple(y.shape[1:]))
    assert sizes == [(32, 16, 12), (48, 8, 6)]


def test_what_cannot_be_built_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"5 stages halve a map of \[16, 12\] to nothing; at most 4"):
        network(of("partial", widths=(32,) * 5, blocks=(1,) * 5))
    with pytest.raises(SpecError, match="mixer inception needs at least 16 channels in every stage"):
        network(of("inception"), narrowed(of("inception"), 0.25))
    with pytest.raises(ModelError, match=r"mixer.*'dense'"):
        ModelConfig.of(name="convnext", input_shape=(3, 8, 8), classes=2, mixer="dense")


def test_a_configuration_names_its_mixer_only_if_it_is_not_the_default() -> None:
    for mixer in MIXERS:
        text = of(mixer).to_json()
        assert ("mixer" in text) == (mixer != "depthwise")
        assert ModelConfig.from_json(text) == of(mixer)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_each_mixer_learns_digits(mixer: str) -> None:
    digits = load(None, Reading(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = network(ModelConfig("convnext", (1, 8, 8), 10, (16, 32), (1, 1), expand=2.0, kernel=3, mixer=mixer))
    fit(module, digits.train, TrainConfig(epochs=4, learning_rate=0.02), generator("convnext"))
    assert evaluate(module, digits.test).accuracy > 0.8
