"""Modules that a user brings: what is found in them, how they are narrowed, what is refused, and what is imported."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from brought import Mobile
from typer.testing import CliRunner

from diastole.cli.main import app
from diastole.client.training import train
from diastole.models import allowed
from diastole.models.channels import Axis, Joined, counts, nested, select, to_front
from diastole.models.coordinates import Region, covered
from diastole.models.dropout import draw_from, is_random
from diastole.models.errors import ModelError, SpecError
from diastole.models.methods.fedconv.conv import ConvConfig, ConvMethod
from diastole.models.methods.fedconv.conv import spec_of as conv_spec_of
from diastole.models.methods.registry import build, cost_of, make_method
from diastole.models.methods.widths.width import WidthMethod, spec_of
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.networks.custom.blame import blamed
from diastole.models.networks.custom.traced import trace
from diastole.models.networks.family import initial_state, layout, narrowed, network, parts, whole
from diastole.models.proxy import Proxy
from diastole.models.seeds import generator
from diastole.models.task import Task
from diastole.models.training import TrainConfig
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.engines.stacked import program
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

TRAINING = TrainConfig(batch_size=8)
HELPERS = Path(__file__).parents[3] / "helpers"


def brought(name: str, group: int = 4) -> ModelConfig:
    return ModelConfig("custom", (3, 8, 8), classes=4, group=group, factory=f"brought:{name}")


DENSE, MOBILE, UNET, INCEPTION = brought("Dense", 2), brought("Mobile"), brought("UNet", 2), brought("Inception")
MODELS = {model.factory.partition(":")[2]: model for model in (DENSE, MOBILE, UNET, INCEPTION)}


def shapes(model: ModelConfig, width: float) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in network(model, narrowed(model, width)).named_parameters()}


# What is found


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig("cnn", (3, 16, 16), classes=6, widths=(8, 16, 24), group=2),
        ModelConfig("cnn", (2, 32), classes=6, widths=(8, 16), group=2),
        ModelConfig("resnet", (4, 8, 8), classes=6, widths=(8, 16, 24), blocks=(2, 1, 2), group=2),
    ],
    ids=["cnn", "cnn-1d", "resnet"],
)
def test_our_own_networks_axes_are_partitioned_as_by_hand(model: ModelConfig) -> None:
    found = trace(network(model), torch.zeros(2, *model.input_shape), model.group)
    names: dict[str, str] = {}
    expected = layout(model)
    assert found.layout.keys() == expected.keys()
    for name, axes in expected.items():
        for axis, ours in zip(axes, found.layout[name], strict=True):
            if axis is None:
                assert ours is None
                continue
            assert isinstance(ours, Axis)
            assert ours.repeat == axis.repeat
            assert names.setdefault(axis.channels, ours.channels) == ours.channels
    assert len(set(names.values())) == len(names) == len(found.sets)


def test_a_concatenation_runs_over_one_set_after_another() -> None:
    axes = layout(DENSE)
    stem, one, two = Axis("stem"), Axis("conv1"), Axis("conv2")
    assert axes["conv1.weight"] == (one, stem, None, None)
    assert axes["conv2.weight"] == (two, Joined(((stem, 8), (one, 4))), None, None)
    assert axes["norm3.bias"] == (Joined(((stem, 8), (one, 4), (two, 8))),)
    assert axes["classifier.weight"] == (None, Axis("transition", 16))
    full = {name: parameter.shape for name, parameter in network(DENSE).named_parameters()}
    region = select(axes, full, {"stem": slice(0, 4), "conv1": slice(0, 2)})
    assert region["conv2.weight"].axes[1].tolist() == [0, 1, 2, 3, 8, 9]
    rolled = select(axes, full, {"stem": torch.tensor([6, 1]), "conv1": torch.tensor([3])})
    assert rolled["norm2.weight"].axes[0].tolist() == [6, 1, 11]


def test_gates_residuals_and_examples_are_followed() -> None:
    axes = layout(INCEPTION)
    gate = Axis("gate")
    assert axes["gate.bias"] == (Joined(((gate, 12), (gate, 12))),)
    assert axes["grouped.weight"] == (gate, None, None, None)
    # A branch of four channels is one unit, which cannot be narrowed.
    branches = Joined(((Axis("branches.0"), 8), (None, 4), (Axis("branches.2"), 8)))
    assert axes["shortcut.weight"] == (branches, Axis("stem"), None, None)
    assert layout(UNET)["up0.weight"][1] == Joined(((None, 3), (Axis("up1"), 8)))
    assert layout(UNET)["up.weight"] == (Axis("down2", swapped=True), Axis("up", swapped=True), None, None)
    back = layout(brought("OnInput"))
    assert back["back.weight"] == (None, Axis("there"), None, None)
    assert back["classifier.weight"] == (None, None)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("width", [0.75, 0.5, 0.3])
def test_channels_are_counted_from_the_shapes_alone(model: ModelConfig, width: float) -> None:
    small = {name: torch.Size(shape) for name, shape in shapes(model, width).items()}
    found = counts(layout(model), small)
    assert tuple(found[name] for name in custom._checked(model).traced.sets) == narrowed(model, width).widths


def test_channels_that_no_shape_tells_are_refused() -> None:
    both = {"w": (Joined(((Axis("a"), 2), (Axis("b"), 2))),)}
    with pytest.raises(ModelError, match="cannot be told"):
        counts(both, {"w": torch.Size([3])})
    assert counts(both | {"v": (Axis("a", 3),)}, {"w": torch.Size([3]), "v": torch.Size([6])}) == {"a": 2, "b": 1}


# Narrow networks


def test_a_narrow_dense_network_has_these_shapes() -> None:
    assert shapes(DENSE, 0.5) == {
        "stem.weight": (4, 3, 3, 3),
        "stem.bias": (4,),
        "norm1.weight": (4,),
        "norm1.bias": (4,),
        "conv1.weight": (2, 4, 3, 3),
        "conv1.bias": (2,),
        "norm2.weight": (6,),
        "norm2.bias": (6,),
        "conv2.weight": (4, 6, 3, 3),
        "norm3.weight": (10,),
        "norm3.bias": (10,),
        "transition.weight": (6, 10, 1, 1),
        "transition.bias": (6,),
        "classifier.weight": (4, 96),
        "classifier.bias": (4,),
    }


def test_a_narrow_mobile_network_has_these_shapes() -> None:
    found = shapes(MOBILE, 0.5)
    assert found["stem.weight"] == (4, 3, 3, 3)
    assert found["blocks.0.expand.weight"] == (8, 4, 1, 1)
    assert found["blocks.0.depth.weight"] == (8, 1, 3, 3)
    assert found["blocks.0.excite.down.weight"] == (4, 8)
    assert found["blocks.0.excite.up.weight"] == (8, 4)
    assert found["blocks.0.project.weight"] == (4, 8, 1, 1)
    assert found["blocks.1.expand.weight"] == (12, 4, 1, 1)
    assert found["blocks.1.project.weight"] == (8, 12, 1, 1)
    assert found["blocks.2.depth.weight"] == (16, 1, 3, 3)
    assert found["blocks.2.norm3.weight"] == (8,)
    assert found["classifier.weight"] == (4, 8)
    module = network(MOBILE, narrowed(MOBILE, 0.5))
    assert module.blocks[1].depth.groups == 12
    assert module.blocks[1].norm1.num_groups == 3


def test_narrow_u_and_inception_networks_have_these_shapes() -> None:
    found = shapes(UNET, 0.5)
    assert found["up.weight"] == (8, 2, 2, 2)
    assert found["prelu.weight"] == (6,)
    assert found["up1.weight"] == (4, 6, 3, 3)
    assert found["up0.weight"] == (4, 7, 3, 3)
    found = shapes(INCEPTION, 0.5)
    assert [found[f"branches.{k}.weight"][0] for k in range(3)] == [4, 4, 4]
    assert found["shortcut.weight"] == (12, 4, 1, 1)
    assert found["gate.weight"] == (16, 12, 1, 1)
    assert found["grouped.weight"] == (8, 4, 3, 3)
    assert network(INCEPTION, narrowed(INCEPTION, 0.5)).grouped.groups == 2


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("width", [0.75, 0.5, 0.25])
def test_a_narrow_network_is_the_whole_one_without_the_dropped_channels(
    model: ModelConfig, width: float, random_state
) -> None:
    state = random_state(model)
    made = WidthMethod(model, (1.0, width), TRAINING)
    made.prepare(state, None, Moment())
    spec = spec_of(width)
    sent = made.compress(spec)
    part, full = build(model, spec), build(model)
    part.load_state_dict(sent)
    contribution = made.dilate(sent, spec)
    masks = covered(contribution, state)
    full.load_state_dict({name: tensor * masks[name] for name, tensor in state.items()})
    x = torch.randn(3, *model.input_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(part(x), full(x), rtol=1e-4, atol=1e-5)
    # And there and back again.
    for name, patch in contribution.items():
        assert torch.equal(patch.region.take(state[name]), patch.values)
        assert int(masks[name].sum()) == patch.values.numel()
    assert sum(int(mask.sum()) for mask in masks.values()) < sum(tensor.numel() for tensor in state.values())


def test_the_whole_network_is_the_users_own() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = Mobile().state_dict()
    found = initial_state(MOBILE, 3)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert type(network(MOBILE)) is Mobile
    assert network(MOBILE, whole(MOBILE)).stem.out_channels == 8


def test_layer_norm_is_sliced_though_it_mixes_channels() -> None:
    model = brought("Perceptron")
    assert shapes(model, 0.5)["norm.weight"] == (8,)
    assert shapes(model, 0.5)["residual.weight"] == (8, 8)
    assert network(model, narrowed(model, 0.5))(torch.randn(2, 3, 8, 8)).shape == (2, 4)


def test_widths_are_limited_by_the_narrowest_set() -> None:
    with pytest.raises(SpecError, match=r"width 0.2 .* \(8\); it must be at least 0.25"):
        narrowed(MOBILE, 0.2)


def test_a_custom_network_has_no_depth() -> None:
    with pytest.raises(SpecError, match="it can only be narrowed"):
        network(MOBILE, whole(MOBILE).first(2))
    with pytest.raises(ModelError, match="Mobile has no stages"):
        parts(network(MOBILE))
    resnet = network(ModelConfig("resnet", (3, 8, 8), 4, (8, 16), (1, 1)))
    assert len(parts(resnet).stages) == 2


def test_fedconv_starts_from_the_first_channels_of_every_layer(random_state, separable) -> None:
    state = random_state(DENSE)
    conv = ConvMethod(DENSE, (1.0, 0.5), TRAINING, ConvConfig(epochs=0, weight_epochs=0))

    conv.prepare(state, Proxy(separable(DENSE, 8), separable(DENSE, 8)), Moment())
    width = WidthMethod(DENSE, (1.0, 0.5), TRAINING)
    width.prepare(state, None, Moment())
    sent, sliced = conv.compress(conv_spec_of(0.5)), width.compress(spec_of(0.5))
    for name, tensor in sliced.items():
        torch.testing.assert_close(sent[name], tensor, rtol=0, atol=1e-6)
    back = {name: tensor + 1 for name, tensor in sent.items()}
    places = width.dilate(sliced, spec_of(0.5))
    for name, patch in conv.dilate(back, conv_spec_of(0.5)).items():
        expected = state[name].clone()
        places[name].region.add_(expected, torch.tensor(1.0))
        torch.testing.assert_close(patch.values, expected, rtol=0, atol=1e-6)


def test_an_order_brings_a_region_to_the_front_and_back() -> None:
    shape, region = torch.Size([5, 3]), Region((torch.tensor([0, 3, 1]), torch.arange(3)))
    tensor = torch.arange(15.0).reshape(shape)
    there, back = to_front(region, shape) or pytest.fail("an order is needed")
    assert torch.equal(there.take(tensor)[:3], region.take(tensor))
    assert torch.equal(back.take(there.take(tensor)), tensor)
    assert to_front(Region((torch.arange(2), torch.arange(3))), shape) is None
    assert to_front(Region.prefix((2, 3)), shape) is None


def test_nested_regions_are_prefixes_where_nothing_is_joined() -> None:
    model = ModelConfig("resnet", (3, 8, 8), 4, (8, 16), (1, 1))
    large, small = ({n: torch.Size(s) for n, s in shapes(model, w).items()} for w in (1.0, 0.5))
    found = nested(layout(model), large, small | {"exit.weight": torch.Size([4, 2])})
    assert found == {n: Region.prefix(s) for n, s in (small | {"exit.weight": torch.Size([4, 2])}).items()}


def test_nested_regions_are_those_within_a_narrower_whole() -> None:
    wide, large, small = ({n: torch.Size(s) for n, s in shapes(DENSE, w).items()} for w in (1.0, 0.75, 0.5))
    values = {n: torch.arange(torch.Size(s).numel(), dtype=torch.float32).reshape(s) for n, s in wide.items()}
    axes = layout(DENSE)
    middle = {n: region.take(values[n]) for n, region in nested(axes, wide, large).items()}
    direct = {n: region.take(values[n]) for n, region in nested(axes, wide, small).items()}
    for name, region in nested(axes, large, small).items():
        assert torch.equal(region.take(middle[name]), direct[name])


# What cannot be sliced


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("odd_norm", r"layer 'norm' \(GroupNorm\) has 8 channels in a group, and 4 are kept.*multiple of 8"),
        ("joined_norm", r"layer 'norm' \(GroupNorm\) has 6 channels in a group, but the 8 channels of 'other'"),
        ("plain_norm", r"layer 'norm' \(GroupNorm\) has no weights; give it affine=True"),
        ("idle", r"layer 'norm' \(Conv2d\) is not called in forward"),
        ("counting", r"changes the tensor 'seen' in training, which is no parameter"),
        ("sorted", r"Faulty has no layer that can be narrowed by 4 .*; all channels go through _fft_r2c"),
        ("number", r"cannot be narrowed: behind layer 'stem': RuntimeError: shape.*read from tensors"),
        ("rare_everything", r"layer 'drop.0' \(Dropout\) drops 0.999; expected at most 0.996"),
        ("crash", r"brought:crash on \[2, 3, 8, 8\]: RuntimeError: on the$"),
        ("two", r"brought:two gives \[2, 2\]; expected \[2, 4\]"),
        ("no_module", r"brought:no_module returns a str; expected a torch.nn.Module"),
        ("__nothing", r"brought:__nothing: AttributeError"),
    ],
)
def test_what_cannot_be_sliced_is_one_line_that_names_it(kind: str, message: str) -> None:
    model = brought(kind)
    custom.allow(model.factory)
    with pytest.raises(ModelError, match=message) as caught:
        network(model)
    assert "\n" not in str(caught.value)


def test_what_one_norm_spans_is_kept_whole() -> None:
    model = brought("wide_groups")
    custom.allow(model.factory)
    assert shapes(model, 0.5)["stem.weight"] == (8, 3, 1, 1)
    assert shapes(model, 0.5)["last.weight"] == (4, 8, 1, 1)


def test_a_network_too_narrow_for_its_group_is_named() -> None:
    with pytest.raises(ModelError, match=r"UNet has no layer .* by 16 channels at a time; .* have down1 8, down2 16"):
        network(replace(UNET, group=16))


# Dropout

DROPPING = brought("rare_dropout", 2)
STAGED = replace(DROPPING, stages=(("stem",), ("maps",)))


def test_dropout_does_nothing_in_evaluation_and_keeps_the_mean_in_training() -> None:
    custom.allow(DROPPING.factory)
    module = network(DROPPING)
    assert is_random(module)
    assert (module.drop.p, module.drop.inplace) == (0.1, False)
    draw_from(module, generator(1))
    x = torch.rand(64, 8, 4, 4)
    assert torch.equal(module.eval().maps(module.drop(x)), x)
    module.train()
    assert module.drop(torch.ones(400, 400)).mean().item() == pytest.approx(1, abs=0.01)
    seen = module.maps(torch.ones(200, 100, 2, 2)).flatten(2)
    assert torch.equal(seen.amin(2), seen.amax(2))
    torch.testing.assert_close(seen.unique(), torch.tensor([0.0, 256 / 179]))
    assert (seen == 0).float().mean().item() == pytest.approx(77 / 256, abs=0.02)


@pytest.mark.parametrize("method", ["width", "fjord", "diastole", "fiarse", "depthfl", "nefl"])
def test_the_tasks_seed_alone_decides_what_a_custom_model_drops(method: str, separable) -> None:
    model = STAGED if method in ("depthfl", "nefl") else DROPPING
    custom.allow(model.factory)
    made = make_method(method, model, (1.0, 0.5), TRAINING)
    state = made.initial(0)
    made.prepare(state, None, Moment())
    examples = separable(model, 24)
    for size in made.offers():

        def trained(seed: int, elsewhere: int, size=size) -> torch.Tensor:
            torch.manual_seed(elsewhere)
            sent, task = made.compress(size.spec), Task("task", 1, "device", size.spec, TRAINING, seed)
            return torch.cat([t.flatten() for t in train(model, task, sent, examples).state.values()])

        assert torch.equal(trained(3, elsewhere=0), trained(3, elsewhere=1))
        assert not torch.equal(trained(3, elsewhere=0), trained(4, elsewhere=0))


def test_the_batched_engine_leaves_a_model_that_drops_to_the_loop() -> None:
    custom.allow(DROPPING.factory)
    assert program(DROPPING, spec_of(0.5), torch.device("cpu")) is None


def test_every_nested_width_of_a_custom_model_drops() -> None:
    custom.allow(DROPPING.factory)
    made = make_method("fjord", DROPPING, (1.0, 0.5), TRAINING)
    module = build(DROPPING, made.whole).train()
    draw_from(module, generator(1))
    x = torch.randn(8, 3, 8, 8)
    for width in (1.0, 0.5):
        assert not torch.equal(module.at(x, width), module.at(x, width))
    module.eval()
    for width in (1.0, 0.5):
        assert torch.equal(module.at(x, width), module.at(x, width))


# What raises


RAISES = """
import torch
from torch import nn
class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, gradient):
        raise KeyError("in the backward pass")
class Net(nn.Module):
    def __init__(self, where):
        super().__init__()
        self.where, self.stem, self.out = where, nn.Linear(192, 8), nn.Linear(8, 4)
    def forward(self, x):
        x = self.stem(x.flatten(1))
        if self.where == "odd" and len(x) == 3:
            raise ZeroDivisionError("three\\nis a crowd")
        return self.out(Backward.apply(x) if self.where == "backward" and x.requires_grad else x)
def backward():
    return Net("backward")
def odd():
    return Net("odd")
"""


@pytest.fixture
def raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules that raise, the one going backward and the other where a batch has three examples."""
    (tmp_path / "raises.py").write_text(RAISES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(allowed, "_ALLOWED", {"raises:backward", "raises:odd"})
    yield
    sys.modules.pop("raises", None)


@pytest.mark.usefixtures("raises")
def test_what_a_users_module_raises_is_one_line_that_names_it(separable) -> None:
    backward, odd = (ModelConfig("custom", (3, 8, 8), 4, factory=f"raises:{name}") for name in ("backward", "odd"))
    message = "^model custom: raises:backward in a step that measures its costs: KeyError: 'in the backward pass'$"
    with pytest.raises(ModelError, match=message):
        cost_of(backward, spec_of(1.0), TRAINING)
    sent, examples = initial_state(odd, 0), separable(odd, 7)
    task = Task("task", 1, "device", spec_of(1.0), TrainConfig(batch_size=4), 0)
    with pytest.raises(ModelError, match=r"^model custom: raises:odd in training: ZeroDivisionError: three$") as caught:
        train(odd, task, sent, examples)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError), blamed(ModelConfig("cnn", (1, 8, 8), 4)):
        # What goes wrong in a network of ours is our fault.
        raise ZeroDivisionError
    with pytest.raises(SpecError, match=r"^on purpose$"), blamed(odd):
        raise SpecError("on purpose")


def test_the_batched_engine_has_programs_of_what_users_bring() -> None:
    model = brought("BatchNormed")
    custom.allow(model.factory)
    assert program(model, spec_of(0.5), torch.device("cpu")) is not None
    assert make_method("width", model, (1.0, 0.5), TRAINING).offers()[0].cost.training_macs > 0
    assert program(brought("UNet", 2), spec_of(0.5), torch.device("cpu")) is not None


# What is imported


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a mark when it is imported."""
    (tmp_path / "trap.py").write_text(
        f"from pathlib import Path\nfrom brought import UNet as make\nPath({str(tmp_path / 'mark')!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "mark"
    sys.modules.pop("trap", None)


def test_nothing_is_imported_that_nobody_here_has_allowed(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowed, "_ALLOWED", {"brought:UNet", "trap:other", "trap"})
    model = ModelConfig.from_json(replace(UNET, factory="trap:make").to_json())
    attempts = (build, layout, lambda model: make_method("width", model, (1.0,), TRAINING))
    for attempt in attempts:
        with pytest.raises(ModelError, match="trap:make would be imported, which nobody on this machine has allowed"):
            attempt(model)
    assert not trap.exists()
    assert "trap" not in sys.modules
    monkeypatch.setenv(custom.VARIABLE, "other:one, trap:make")
    build(model)
    assert trap.exists()


def test_join_allows_what_its_operator_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(allowed, "_ALLOWED", set())
    arguments = ["join", "127.0.0.1:1", "--data", str(tmp_path / "none.npz")]
    CliRunner().invoke(app, arguments)
    assert not allowed._ALLOWED
    CliRunner().invoke(app, [*arguments, "--allow-factory", "one:two", "--allow-factory", "three:four"])
    assert {"one:two", "three:four"} == allowed._ALLOWED


@pytest.mark.parametrize("factory", ["brought", "brought.Dense", "a b:c", "brought:", ":x", "x:y:z", "../x:y", "x:y()"])
def test_a_factory_that_is_no_name_is_refused(factory: str) -> None:
    with pytest.raises(ModelError, match="factory"):
        ModelConfig.from_json(replace(UNET, factory="x:y").to_json().replace("x:y", factory))


def test_a_custom_model_needs_a_factory() -> None:
    with pytest.raises(ModelError, match=r'factory is missing; expected "package.module:function"'):
        network(ModelConfig("custom", (3, 8, 8), 4))
    custom.allow("nowhere.at.all:net")
    with pytest.raises(ModelError, match=r"nowhere.at.all:net: ModuleNotFoundError"):
        network(replace(UNET, factory="nowhere.at.all:net"))


# A whole run


def federation(**changes: object) -> Federation:
    document = {
        "seed": 4,
        "model": {"name": "custom", "factory": "brought:Digits", "group": 4},
        "rounds": {"count": 1},
        "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 2, "width": 0.5}},
    }
    return make_federation(Simulation.parse(document | changes, "test"))


@pytest.mark.parametrize("engine", [pytest.param("processes", marks=pytest.mark.slow), "batched"])
def test_engines_train_a_custom_model_as_the_loop_does(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    expected = simulate(federation())
    found = simulate(federation(engine=engine, workers=1))
    assert expected.rounds[0].updates == 3
    for name, tensor in expected.state.items():
        torch.testing.assert_close(found.state[name], tensor, rtol=1e-4, atol=1e-5)
