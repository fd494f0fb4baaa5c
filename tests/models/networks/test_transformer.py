import pytest
import torch
from torch.nn import functional as F

from diastole.models.channels import Axis, members, select
from diastole.models.errors import ModelError
from diastole.models.methods.registry import build
from diastole.models.methods.widths.width import spec_of, width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import layout, narrowed, network, parts
from diastole.models.networks.shape import Shape
from diastole.models.networks.transformer import Attention, FusedMix, Mix
from diastole.models.training import TrainConfig

VIT = ModelConfig("vit", (3, 8, 12), classes=5, widths=(16, 16), blocks=(2, 1), group=4)
SERIES = ModelConfig("transformer", (6, 10), classes=5, widths=(16,), blocks=(2,), group=8)
TOKENS = ModelConfig("transformer", (7,), classes=5, widths=(16,), blocks=(1,), group=4, vocabulary=11)
CNN = ModelConfig("cnn", (3, 8, 8), classes=5, widths=(8, 12), group=4)
RESNET = ModelConfig("resnet", (3, 8, 8), classes=5, widths=(8, 12), blocks=(2, 1), group=4)
TRANSFORMERS = {"vit": VIT, "series": SERIES, "tokens": TOKENS}
ALL = {**TRANSFORMERS, "cnn": CNN, "resnet": RESNET}

each_transformer = pytest.mark.parametrize("model", TRANSFORMERS.values(), ids=TRANSFORMERS)
each_network = pytest.mark.parametrize("model", ALL.values(), ids=ALL)


def drawn(model: ModelConfig, count: int, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    if model.vocabulary:
        return torch.randint(model.vocabulary, (count, *model.input_shape), generator=draws).float()
    return torch.randn(count, *model.input_shape, generator=draws)


@each_transformer
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_a_transformer_gives_logits_at_every_width(model: ModelConfig, width: float) -> None:
    logits = build(model, spec_of(width))(drawn(model, 6))
    assert logits.shape == (6, 5)
    assert torch.isfinite(logits).all()


@each_transformer
def test_a_width_halves_the_stream_the_heads_and_the_perceptron(model: ModelConfig) -> None:
    half = build(model, spec_of(0.5))
    block = half.stages[0][0]
    assert block.attention.q.weight.shape == block.attention.out.weight.shape == (8, 8)
    assert block.grow.weight.shape == (32, 8)
    assert half.place.position.shape[1] == half.classifier.weight.shape[1] == 8
    assert block.attention.head == model.group


def test_attention_is_that_of_torch_and_of_plain_loops() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 5, 4).unbind()
    torch.testing.assert_close(Mix()(q, k, v), F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(FusedMix()(q, k, v), Mix()(q, k, v))
    attention, x = Attention(8, 4), torch.randn(2, 5, 8)
    mixed = torch.zeros(2, 5, 8)
    for n in range(2):
        for head in range(2):
            rows = slice(4 * head, 4 * head + 4)
            queries, keys, values = (
                x[n] @ part.weight[rows].T + part.bias[rows] for part in (attention.q, attention.k, attention.v)
            )
            for token in range(5):
                scores = torch.stack([queries[token] @ keys[other] / 2 for other in range(5)])
                mixed[n, token, rows] = sum(scores.softmax(0)[other] * values[other] for other in range(5))
    expected = mixed @ attention.out.weight.T + attention.out.bias
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


def test_patches_go_row_by_row() -> None:
    module = build(VIT)
    x = drawn(VIT, 1)
    kernel, bias = module.embed.conv.weight, module.embed.conv.bias
    expected = [
        (x[0, :, row : row + 4, column : column + 4] * kernel).sum((1, 2, 3)) + bias
        for row in (0, 4)
        for column in (0, 4, 8)
    ]
    torch.testing.assert_close(module.embed(x)[0], torch.stack(expected), rtol=1e-4, atol=1e-5)


@each_network
def test_forward_is_enter_the_stages_and_leave(model: ModelConfig) -> None:
    module, x = network(model), drawn(model, 3)
    y = parts(module).enter(x)
    for stage in parts(module).stages:
        y = stage(y)
    assert torch.equal(parts(module).leave(y), module(x))


@each_network
def test_children_before_the_stages_serve_enter_and_those_behind_them_leave(model: ModelConfig) -> None:
    module, x = network(model), drawn(model, 3)
    names = [name for name, _ in module.named_children()]
    at = names.index("stages")
    entered = parts(module).enter(x)
    staged = entered.detach()
    for stage in parts(module).stages:
        staged = stage(staged)
    for output, mine in ((entered, names[:at]), (parts(module).leave(staged.detach()), names[at + 1 :])):
        module.zero_grad(set_to_none=True)
        if output.requires_grad:
            output.square().sum().backward()
        touched = {name.split(".")[0] for name, weight in module.named_parameters() if weight.grad is not None}
        assert touched == set(mine)


@each_network
def test_channels_that_change_places_everywhere_leave_the_function_as_it_is(model: ModelConfig) -> None:
    module, x = network(model), drawn(model, 4)
    weights = dict(module.named_parameters())
    axes = layout(model)
    assert axes.keys() == weights.keys()
    sizes: dict[str, int] = {}
    for name, tensor in weights.items():
        assert len(axes[name]) == tensor.dim()
        for axis, size in zip(axes[name], tensor.shape, strict=True):
            if isinstance(axis, Axis):
                assert sizes.setdefault(axis.channels, size // axis.repeat) == size // axis.repeat
    # What normalises in groups of channels keeps whole groups, as heads are; channels under a LayerNorm are free.
    free = model.name in ("vit", "transformer")
    groups = {channels: 1 if free and not channels.endswith("heads") else model.group for channels in sizes}
    kept = {
        channels: members(torch.arange(size // groups[channels]).roll(1), groups[channels])
        for channels, size in sizes.items()
    }
    regions = select(axes, {name: tensor.shape for name, tensor in weights.items()}, kept)
    moved = network(model)
    moved.load_state_dict({name: region.take(weights[name].detach()) for name, region in regions.items()})
    assert not torch.equal(moved.classifier.weight, module.classifier.weight)
    torch.testing.assert_close(moved(x), module(x), rtol=1e-4, atol=1e-5)


def test_a_prefix_of_the_layout_is_what_width_slicing_takes() -> None:
    for model in TRANSFORMERS.values():
        weights = dict(network(model).named_parameters())
        small = dict(network(model, narrowed(model, 0.5)).named_parameters())
        halves = {"stream": 8} | {
            axis.channels: weights[name].shape[0] // axis.repeat // 2
            for name, (axis, *_) in layout(model).items()
            if axis is not None and axis.channels != "stream"
        }
        kept = {channels: slice(0, size) for channels, size in halves.items()}
        for name, region in select(layout(model), {n: w.shape for n, w in weights.items()}, kept).items():
            assert region.take(weights[name]).shape == small[name].shape


def test_blocks_that_are_skipped_pass_the_stream_on() -> None:
    whole, x = network(VIT), drawn(VIT, 2)
    weights = whole.state_dict()
    part = network(VIT, Shape((16, 16), ((1,), ())))
    part.load_state_dict({name: weights[name] for name, _ in part.named_parameters()})
    assert torch.equal(part(x), whole.leave(whole.stages[0][1](whole.enter(x))))


def test_a_stream_is_cut_or_filled_up_where_stages_differ_in_width() -> None:
    narrow, x = network(VIT, Shape((8, 16), ((0,), (0,)))), drawn(VIT, 2)
    y = narrow.stages[0](narrow.enter(x))
    filled = torch.cat([y, torch.zeros_like(y)], -1)
    assert torch.equal(narrow(x), narrow.leave(narrow.stages[1][0](filled)))
    wide = network(VIT, Shape((16, 8), ((0,), (0,))))
    y = wide.stages[0](wide.enter(x))
    assert torch.equal(wide(x), wide.leave(wide.stages[1][0](y[..., :8])))


def test_macs_of_a_small_transformer_are_those_worked_out_by_hand() -> None:
    cost = width_cost(VIT, 1.0, TrainConfig(batch_size=8, momentum=0.0))
    patches = 6 * 16 * 3 * 16
    # Four square layers, two products of tokens with tokens, and the perceptron's two layers.
    block = 4 * 6 * 16 * 16 + 2 * 6 * 6 * 16 + 2 * 6 * 16 * 64
    assert cost.forward_macs == patches + 3 * block + 5 * 16
    assert cost.training_macs == 2 * patches + 3 * (3 * block + 5 * 16)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ModelConfig("vit", (3, 8), 5, (16,), (1,)), r"input_shape \[3, 8\]; expected \[channels, height, width\]"),
        (ModelConfig("vit", (3, 8, 9), 5, (16,), (1,)), r"patch 4 must divide .*\[8, 9\]"),
        (ModelConfig("vit", (3, 8, 8), 5, (16,), (1,), group=5), r"widths \[16\].*group 5"),
        (ModelConfig("vit", (3, 8, 8), 5, (16, 32), (1, 1)), r"widths \[16, 32\] must all be equal"),
        (ModelConfig("vit", (3, 8, 8), 5, (16, 16), (1,)), r"blocks \[1\].*2 widths"),
        (ModelConfig("vit", (3, 8, 8), 5, (16,), (0,)), r"blocks \[0\]"),
        (ModelConfig("transformer", (3, 8, 8), 5, (16,), (1,)), r"input_shape .*expected \[channels, length\]"),
        (ModelConfig("transformer", (3, 8), 5, (16,), (1,), vocabulary=9), r"input_shape .*expected \[length\]"),
    ],
)
def test_a_transformer_that_cannot_be_built_says_what_is_wrong(model: ModelConfig, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build(model)
