"""Twelve networks as people write them: what is found in them, and that they are trained, counted and given back."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import zoo
from torch import Tensor, nn

from diastole.client.training import train
from diastole.models.channels import Axis, Joined
from diastole.models.cost import measure
from diastole.models.dropout import draw_from
from diastole.models.errors import ModelError
from diastole.models.methods.registry import build, make_method
from diastole.models.methods.widths.width import spec_of
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.networks.custom.follow.marks import Book
from diastole.models.networks.custom.made import give_back, tied
from diastole.models.networks.custom.traced import trace
from diastole.models.networks.family import layout, narrowed, network
from diastole.models.recalibrate import ready
from diastole.models.seeds import generator
from diastole.models.task import Task
from diastole.models.training import Examples, TrainConfig
from diastole.simulations.engines.stacked import program

CPU, TRAINING = torch.device("cpu"), TrainConfig(batch_size=4)


def training(name: str) -> TrainConfig:
    return TrainConfig(batch_size=4, learning_rate=0.02, loss=zoo.LOSSES.get(name, "cross-entropy"))


def examples(name: str, count: int = 6) -> Examples:
    model, draws = zoo.CONFIGS[name], torch.Generator().manual_seed(1)
    x = model.drawn(count, draws)
    if name == "gru":
        return Examples(x, torch.randn(count, 2, generator=draws))
    places = {"unet": (8, 8), "language": (8,)}.get(name, ())
    return Examples(x, torch.randint(model.classes, (count, *places), generator=draws))


@pytest.fixture(autouse=True)
def allowed() -> None:
    for model in zoo.CONFIGS.values():
        custom.allow(model.factory)


def axes_of(module: nn.Module, x: Tensor, group: int = 2) -> dict[str, tuple[Axis | Joined | None, ...]]:
    return dict(trace(module.eval(), x, group).layout)


# What is found


def test_the_gates_of_an_lstm_are_four_times_one_set() -> None:
    axes, lstm = layout(zoo.CONFIGS["lstm"]), Axis("lstm")
    gates = Joined(((lstm, 16),) * 4)
    assert axes["embedding.weight"] == (None, Axis("embedding", swapped=True))
    assert axes["lstm.weight_ih_l0"] == (gates, Axis("embedding"))
    assert axes["lstm.weight_hh_l1_reverse"] == (gates, lstm)
    assert axes["lstm.weight_ih_l1"] == (gates, Joined(((lstm, 16),) * 2))
    assert axes["fc.weight"] == (None, Joined(((lstm, 16),) * 2))
    small = network(zoo.CONFIGS["lstm"], narrowed(zoo.CONFIGS["lstm"], 0.5)).lstm
    assert (small.input_size, small.hidden_size) == (4, 8)


def test_heads_are_left_out_whole_or_all_narrowed_whichever_the_group_allows() -> None:
    model, vit = zoo.CONFIGS["vit"], Axis("cls_token")
    assert layout(model)["blocks.0.attn.qkv.weight"] == (Joined(((vit, 16),) * 3), vit)
    assert layout(model)["pos_embed"][2] == Axis("cls_token", swapped=True)
    assert network(model, narrowed(model, 0.5)).blocks[0].attn.num_heads == 1
    # Two heads of eight channels: with four channels at a time, both heads lose four.
    four = ModelConfig("custom", (3, 8, 8), classes=4, group=4, factory=model.factory)
    small = network(four, narrowed(four, 0.5)).blocks[0].attn
    assert (small.num_heads, small.head_dim, len(small.proj.weight)) == (2, 4, 8)
    assert layout(four)["blocks.0.attn.proj.weight"][1] == Joined(((vit, 8),) * 2)


def test_heads_of_torchs_attention_too() -> None:
    for group, heads in ((8, 1), (4, 2)):
        model = ModelConfig("custom", (3, 8, 8), classes=4, group=group, factory="zoo:Hybrid")
        small = network(model, narrowed(model, 0.5))
        assert (small.attention.embed_dim, small.attention.num_heads) == (8, heads)
        assert small.local.groups == 2
        assert small(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize(
    ("layer", "axes"),
    [
        (nn.ConvTranspose2d(8, 8, 2, groups=8), (Axis("first"), None, None, None)),
        (nn.Conv2d(8, 16, 1, groups=8), (Axis("first", 2), None, None, None)),
        # Two groups of four channels, of which two are left out together: both lose two.
        (
            nn.Conv2d(8, 16, 1, groups=2),
            (Joined(((Axis("layer"), 8),) * 2), Axis("first"), None, None),
        ),
        (
            nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 1, bias=False)),
            None,
        ),
    ],
    ids=["depthwise transposed", "multiplier", "groups", "weight norm"],
)
def test_convolutions_of_all_kinds(layer: nn.Module, axes: object) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer, self.last = nn.Conv2d(3, 8, 1), layer, nn.LazyConv2d(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.layer(self.first(x))).mean((2, 3))

    x = torch.zeros(2, 3, 4, 4)
    net = Net()
    net(x)
    found = axes_of(net, x)
    if axes is None:
        length, direction = (f"layer.parametrizations.weight.original{k}" for k in (0, 1))
        assert found[length] == (Axis(length), None, None, None)
        assert found[direction] == (Axis(length), Axis("first"), None, None)
    else:
        assert found["layer.weight"] == axes


class Styles(nn.Module):
    """Takes steps by hand, by cells whose states are made on the spot, and the older weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.lstm, self.gru = 16, nn.LSTMCell(8, 16), nn.GRUCell(16, 16)
        self.norm, self.out = nn.utils.weight_norm(nn.Linear(16, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        state, cell, last = x.new_zeros(len(x), self.hidden), torch.zeros(len(x), self.hidden), None
        for step in x.unbind(1):
            state, cell = self.lstm(step, (state, cell))
            last = self.gru(state, last)
        return self.out(torch.relu(self.norm(last)))


class Heads(nn.Module):
    """Attention that has its number of heads written down: with two heads of four, they all stay and become smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.qkv, self.out = nn.Linear(8, 16), nn.Linear(16, 3 * 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(self.enter(x)).view(n, length, 3, 8, -1).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).flatten(2).mean(1))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_cells_and_the_older_weight_norm_are_sliced() -> None:
    zoo.Styles = Styles
    custom.allow("zoo:Styles")
    model = ModelConfig("custom", (3, 8), classes=4, group=4, factory="zoo:Styles")
    module = network(model, narrowed(model, 0.5))
    assert (module.hidden, module.lstm.hidden_size, module.norm.weight_v.shape) == (8, 8, (4, 8))
    assert module(torch.randn(2, 3, 8)).shape == (2, 4)


def test_a_number_of_heads_that_is_written_down_stays() -> None:
    zoo.Heads = Heads
    custom.allow("zoo:Heads")
    model = ModelConfig("custom", (3, 8), classes=4, group=2, factory="zoo:Heads")
    assert layout(model)["qkv.weight"] == (None, Axis("enter"))
    assert network(model, narrowed(model, 0.5))(torch.randn(2, 3, 8)).shape == (2, 4)


def test_constants_are_sliced_and_are_no_part_of_the_state() -> None:
    model = zoo.CONFIGS["transformer"]
    whole, small = (build(model, spec_of(width)) for width in (1.0, 0.5))
    assert "positions" not in whole.state_dict()
    assert torch.equal(small.positions, whole.positions[:, :8])


def test_sub_models_load_into_the_users_own_class() -> None:
    model = zoo.CONFIGS["gru"]
    zoo.SensorGRU(8).load_state_dict(build(model, spec_of(0.5)).state_dict())
    whole = build(zoo.CONFIGS["transformer"], spec_of(1.0))
    give_back(whole)
    zoo.Transformer().load_state_dict(whole.state_dict())
    # A network that has others inside has the constants too.
    nested = build(
        zoo.CONFIGS["transformer"], make_method("fjord", zoo.CONFIGS["transformer"], (1.0, 0.5), TRAINING).whole
    )
    give_back(nested)
    zoo.Transformer().load_state_dict(nested.state_dict())


def test_a_tied_weight_is_one_parameter_at_every_width() -> None:
    model = zoo.CONFIGS["language"]
    axes = layout(model)
    assert "output.weight" not in axes
    assert axes["embed.weight"][0] is None
    for width in (1.0, 0.5):
        module = build(model, spec_of(width))
        module.load_state_dict({name: torch.ones_like(p) for name, p in module.named_parameters()}, assign=True)
        assert module.output.weight is module.embed.weight
        assert tied(module) == {"output.weight": "embed.weight"}


def test_channels_are_united_as_one_by_one() -> None:
    draws = torch.Generator().manual_seed(0)
    for _ in range(20):
        book, expected = Book(), list(range(31))
        (mark,) = book.fresh([30])
        assert mark.flatten().tolist() == expected[1:]
        for _ in range(6):
            pairs = torch.randint(31, (3, 2), generator=draws)
            book.same(pairs[:, 0], pairs[:, 1])
            for one, other in pairs.tolist():
                least, most = sorted((expected[one], expected[other]))
                expected = [least if each == most else each for each in expected]
        assert book.root.tolist() == expected


# Training


QUICK = {"lstm", "vit", "unet", "language"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in zoo.CONFIGS]
)
def test_half_of_each_is_trained_alone_and_the_tasks_seed_decides(name: str) -> None:
    model, config = zoo.CONFIGS[name], training(name)
    method = make_method("width", model, (1.0, 0.5), config)
    state = method.initial(0)
    method.prepare(state, None, Moment())
    small, large = method.offers()
    assert small.cost.parameters < 0.5 * large.cost.parameters
    assert 0 < small.cost.forward_macs < 0.5 * large.cost.forward_macs
    assert large.cost.training_macs > 2 * large.cost.forward_macs
    sent, found = method.compress(small.spec), []
    for elsewhere in (1, 2):
        torch.manual_seed(elsewhere)
        task = Task("task", 1, "device", small.spec, config, 3)
        found.append(train(model, task, sent, examples(name)).state)
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())
    assert all(tensor.isfinite().all() for tensor in found[0].values())
    assert any(not torch.equal(tensor, sent[key]) for key, tensor in found[0].items())
    for key, patch in method.dilate(found[0], small.spec).items():
        assert torch.equal(patch.region.take(state[key]), sent[key])


@pytest.mark.parametrize("name", ["lstm", "transformer", pytest.param("mobilenet", marks=pytest.mark.slow)])
def test_what_forward_draws_comes_from_the_given_generator(name: str) -> None:
    module, x = build(zoo.CONFIGS[name], spec_of(1.0)).train(), examples(name).x

    def outputs(seed: int) -> Tensor:
        draw_from(module, generator(seed))
        return module(x)

    before = torch.get_rng_state()
    assert torch.equal(outputs(1), outputs(1))
    assert not torch.equal(outputs(1), outputs(2))
    assert torch.equal(before, torch.get_rng_state())
    assert program(zoo.CONFIGS[name], spec_of(1.0), CPU, training(name)) is None
    module = ready(module, x).eval()
    assert torch.equal(outputs(1), outputs(2))


@pytest.mark.parametrize("name", ["gru", "vit", pytest.param("tcn", marks=pytest.mark.slow)])
def test_the_batched_program_agrees_with_devices_one_by_one(name: str) -> None:
    # `program` compares itself with autograd, and gives nothing if they differ.
    assert program(zoo.CONFIGS[name], spec_of(0.5), CPU, training(name)) is not None


# Depth

STAGES = {
    "resnet": (("layer1.0",), ("layer2.0", "layer2.1")),
    "transformer": (("encoder.layers.0", "encoder.layers.1"),),
    "vit": (("blocks.0", "blocks.1"),),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_blocks_of_each_are_left_out(name: str) -> None:
    model = replace(zoo.CONFIGS[name], stages=STAGES[name])
    method = make_method("scalefl", model, (1.0, 0.5), training(name))
    method.prepare(method.initial(0), None, Moment())
    small, large = method.offers()
    assert small.cost.parameters < large.cost.parameters
    for size in (small, large):
        sent, found = method.compress(size.spec), []
        for elsewhere in (1, 2):
            torch.manual_seed(elsewhere)
            task = Task("task", 1, "device", size.spec, training(name), 3)
            found.append(train(model, task, sent, examples(name)).state)
        assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())


def test_a_shared_parameter_cannot_be_cut_apart() -> None:
    with pytest.raises(ModelError, match=r"stages: 'embed.weight' and 'output.weight' are one parameter"):
        network(replace(zoo.CONFIGS["language"], stages=(("block",),)))


# Costs


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layers, self.head = getattr(nn, kind)(6, 10, 2, batch_first=True), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0][:, -1])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize(
    ("make", "shape", "macs"),
    [
        (lambda: Recurrent("LSTM"), (7, 6), 7 * 4 * 10 * (6 + 10 + 10 + 10) + 30),
        (lambda: Recurrent("GRU"), (7, 6), 7 * 3 * 10 * (6 + 10 + 10 + 10) + 30),
        (Attending, (5, 8), 5 * 8 * 24 + 2 * 5 * 5 * 8 + 5 * 8 * 8 + 24),
    ],
    ids=["lstm", "gru", "attention"],
)
def test_costs_are_those_counted_by_hand(make: Callable[[], nn.Module], shape: tuple[int, ...], macs: int) -> None:
    cost = measure(make(), shape, TrainConfig(batch_size=4))
    assert cost.forward_macs == macs
    assert 2 * macs < cost.training_macs <= 3.5 * macs


# What cannot be


def test_a_sub_model_too_narrow_for_its_heads_says_so() -> None:
    with pytest.raises(ModelError, match=r"ViT has no layer that can be narrowed by 32 channels"):
        network(ModelConfig("custom", (3, 8, 8), classes=4, group=32, factory="zoo:ViT"))
