from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.models.errors import ModelError, SpecError
from diastole.models.methods.registry import build, make_method
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state, network
from diastole.models.networks.registry import NETWORKS
from diastole.models.networks.shape import Shape, scaled
from diastole.models.training import TrainConfig

CNN = ModelConfig("cnn", (3, 16, 16), classes=5, widths=(8, 16, 24))
RESNET = ModelConfig("resnet", (3, 16, 16), classes=5, widths=(8, 16), blocks=(2, 1))
SIMPLE = ModelConfig("simple-cnn", (3, 16, 16), classes=5, widths=(8, 16, 24))
MODELS = {
    "cnn": CNN,
    "cnn-1d": ModelConfig("cnn", (2, 32), classes=5, widths=(8, 16)),
    "simple-cnn": SIMPLE,
    "resnet": RESNET,
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("width", [1.0, 0.75, 0.5])
def test_every_width_takes_examples_and_gives_logits(model: ModelConfig, width: float) -> None:
    logits = build(model, spec_of(width))(torch.randn(7, *model.input_shape))
    assert logits.shape == (7, 5)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_width_scales_hidden_channels_and_nothing_else(model: ModelConfig) -> None:
    whole = {name: tuple(weight.shape) for name, weight in build(model).named_parameters()}
    half = {name: tuple(weight.shape) for name, weight in build(model, spec_of(0.5)).named_parameters()}
    assert whole.keys() == half.keys()
    assert half == {
        name: tuple(
            # The first layer keeps the input's channels, the classifier its classes, and kernels their size.
            size if (axis == 1 and size == model.input_shape[0]) or axis > 1 or size == 5 else size // 2
            for axis, size in enumerate(shape)
        )
        for name, shape in whole.items()
    }


def test_resnet18_for_cifar_has_its_well_known_size() -> None:
    model = ModelConfig("resnet", (3, 32, 32), classes=10, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2))
    with torch.device("meta"):
        assert sum(weight.numel() for weight in build(model).parameters()) == 11_173_962


def test_the_simple_cnn_has_the_size_that_pfl_research_trains() -> None:
    model = ModelConfig("simple-cnn", (3, 32, 32), classes=10, widths=(32, 64, 128))
    with torch.device("meta"):
        sizes = [weight.numel() for weight in build(model).parameters()]
    assert sum(sizes) == 32 * 28 + 64 * 289 + 128 * (64 * 14 * 14 + 1) + 10 * 129


@pytest.mark.parametrize(("shape", "widths"), [((3, 5, 6), (4, 4, 4)), ((3, 8, 8), (4, 4)), ((3, 8), (4, 4, 4))])
def test_simple_cnns_that_cannot_be(shape: tuple[int, ...], widths: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"^model simple-cnn: "):
        build(ModelConfig("simple-cnn", shape, 10, widths))


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_the_first_channels_are_normalised_as_inside_the_whole_network(name: str) -> None:
    model = MODELS[name]
    whole, part = build(model), build(model, spec_of(0.5))
    weights = whole.state_dict()
    part.load_state_dict({n: weights[n][tuple(slice(0, size) for size in w.shape)] for n, w in part.named_parameters()})
    x = torch.randn(3, *model.input_shape)
    if name == "cnn":
        large, small = whole.stages[0](x), part.stages[0](x)
    else:
        large, small = whole.norm(whole.stem(x)), part.norm(part.stem(x))
    torch.testing.assert_close(small, large[:, : small.shape[1]], rtol=1e-5, atol=1e-6)


@given(st.integers(1, 16), st.integers(1, 64), st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=100)
def test_scaled_is_the_nearest_multiple_of_the_group_and_at_least_one(group: int, count: int, ratio: float) -> None:
    width = count * group
    channels = scaled(width, ratio, group)
    assert channels % group == 0
    assert group <= channels <= width
    others = [k * group for k in range(1, count + 1)]
    assert abs(channels - width * ratio) <= min(abs(other - width * ratio) for other in others) + 1e-9


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ModelConfig("cnn", (3,), 5), r"input_shape \[3\]"),
        (ModelConfig("cnn", (), 5), r"input_shape \[\]"),
        (ModelConfig("cnn", (3, 8, 8, 8), 5), r"input_shape \[3, 8, 8, 8\]"),
        (ModelConfig("cnn", (0, 8, 8), 5), r"input_shape \[0, 8, 8\]"),
        (ModelConfig("resnet", (3, 8), 5, blocks=(1, 1)), r"input_shape \[3, 8\]"),
        (ModelConfig("cnn", (3, 8, 8), 5, widths=(6,)), r"widths \[6\].*group 4"),
        (ModelConfig("cnn", (3, 8, 8), 5, widths=(8, 0)), r"widths \[8, 0\]"),
        (ModelConfig("cnn", (3, 8, 8), 5, widths=(-4,)), r"widths \[-4\]"),
        (ModelConfig("cnn", (3, 8, 8), 5, widths=()), r"widths \[\]"),
        (ModelConfig("cnn", (3, 3, 8), 5, widths=(8, 8)), r"2 blocks.*\[3, 8\]"),
        (ModelConfig("resnet", (3, 8, 8), 5), r"blocks \[\].*2 widths"),
        (ModelConfig("resnet", (3, 8, 8), 5, blocks=(1, 0)), r"blocks \[1, 0\]"),
    ],
)
def test_a_model_that_cannot_be_built_says_what_is_wrong(model: ModelConfig, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build(model)


def test_a_width_that_leaves_no_group_says_what_would_do() -> None:
    # Half a group of 4 in 8 channels is a quarter.
    with pytest.raises(SpecError, match=r"width 0.2 .*at least 0.25"):
        build(CNN, spec_of(0.2))
    assert build(CNN, spec_of(0.25)).stages[0][0].weight.shape[0] == 4


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (Shape((), ()), r"widths \[\]"),
        (Shape((8, 32), ((0, 1), (0,))), r"widths \[8, 32\]: .*at most \[8, 16\]"),
        (Shape((6, 16), ((0, 1), (0,))), r"widths \[6, 16\]: expected multiples of 4"),
        (Shape((8, 16, 16), ((0,), (0,), (0,))), r"widths \[8, 16, 16\]"),
        (Shape((8, 16)), r"blocks \[\]: there are \[\[0, 1\], \[0\]\]"),
        (Shape((8, 16), ((0, 2), (0,))), r"blocks \[\[0, 2\]"),
        (Shape((8, 16), ((1, 0), (0,))), r"blocks \[\[1, 0\]"),
        (Shape((8, 16), ((1,), (0,))), r"blocks .*the first block of a stage cannot be skipped"),
    ],
)
def test_a_shape_that_the_model_does_not_have_says_what_would_do(shape: Shape, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        network(RESNET, shape)


def test_the_initial_state_depends_on_the_seed_alone_and_disturbs_no_other_draw() -> None:
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    one = initial_state(CNN, 3)
    assert torch.equal(torch.randn(3), expected)
    again, other = initial_state(CNN, 3), initial_state(CNN, 4)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])
    assert not any(tensor.requires_grad for tensor in one.values())


def test_a_network_that_there_is_not_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ModelError, match="unknown network 'vgg'; known: cnn, simple-cnn, resnet, mobilenet, "):
        build(ModelConfig("vgg", (1, 8, 8), 2))


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of others that brings a network is installed."""
    (tmp_path / "mine-1.dist-info").mkdir()
    (tmp_path / "mine-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (tmp_path / "mine-1.dist-info" / "entry_points.txt").write_text("[diastole.networks]\nlinear = mine:ROW\n")
    (tmp_path / "mine.py").write_text(BROUGHT)
    monkeypatch.syspath_prepend(tmp_path)
    # What is installed is read once a process.
    vars(NETWORKS).pop("_others", None)
    yield
    vars(NETWORKS).pop("_others", None)


@pytest.mark.usefixtures("brought")
def test_another_package_brings_a_network_by_an_entry_point() -> None:
    model = ModelConfig("linear", (6,), 3, (8,), options=(("scale", 2.0),))
    assert ModelConfig.from_json(model.to_json()) == model
    method = make_method("width", model, (1.0, 0.5), TrainConfig())
    assert [size.cost.parameters for size in method.offers()] == [6 * 4 + 4 * 3 + 3, 6 * 8 + 8 * 3 + 3]
    assert method.initial(0)["stages.0.weight"].abs().max() > 1


BROUGHT = """
from torch import nn
from diastole.models.channels import Axis
from diastole.models.networks.registry import NetworkRow
from diastole.models.networks.staged import Network


class Linear(Network):
    def __init__(self, inside, width, classes, scale):
        super().__init__()
        self.stages = nn.ModuleList([nn.Linear(inside, width, bias=False)])
        self.classifier = nn.Linear(width, classes)
        nn.init.uniform_(self.stages[0].weight, -scale, scale)


def make(model, shape):
    return Linear(model.input_shape[0], shape.widths[0], model.classes, dict(model.options)["scale"])


def layout(model):
    here = Axis("hidden")
    return {"stages.0.weight": (here, None), "classifier.weight": (None, here), "classifier.bias": (None,)}


ROW = NetworkRow(lambda model: None, make, layout)
"""


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_model_survives_json(model: ModelConfig) -> None:
    assert ModelConfig.from_json(model.to_json()) == model


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"name":"a cnn","input_shape":[1,8,8],"classes":2}', "name: .*, not 'a cnn'"),
        ('{"name":"cnn","input_shape":[1,8,8],"classes":0}', "classes: .*not 0"),
        ('{"name":"cnn","input_shape":[1,8,8]}', "classes: is missing"),
        ('{"name":"cnn","input_shape":[1,8.5],"classes":2}', "input_shape.1: .*not 8.5"),
        ('{"name":"cnn","input_shape":[1,8],"classes":2,"depth":3}', "depth: no such key"),
        ('{"classes":1,\n"depth":3}', "name: is missing.*depth: no such key"),
        ("[]", "value: .*object"),
        ("{", "Invalid JSON"),
        ("", "Invalid JSON"),
    ],
)
def test_wrong_json_is_told_on_one_line(text: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        ModelConfig.from_json(text)
    assert len(str(caught.value).splitlines()) == 1
