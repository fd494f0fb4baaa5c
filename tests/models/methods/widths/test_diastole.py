"""diastole's triangular networks and what they are trained for, each against plain loops."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.client.training import train
from diastole.models.accumulator import Accumulator
from diastole.models.balance import LEAST
from diastole.models.methods.registry import build, make_method
from diastole.models.methods.widths.diastole import Diastole, DiastoleConfig, _tell, spec_of
from diastole.models.methods.widths.width import width_cost
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.networks.family import narrowed, network
from diastole.models.proxy import Proxy
from diastole.models.state import State
from diastole.models.task import Report, Task, Update
from diastole.models.training import Examples, Step, TrainConfig, fit
from diastole.server.robust.fold import folding

TRAINING = TrainConfig(epochs=2, batch_size=8, learning_rate=0.05)
WIDTHS = (0.25, 0.5, 1.0)
MODELS = {
    "cnn": ModelConfig("cnn", (3, 8, 8), classes=4, widths=(8, 16), group=2),
    "cnn-1d": ModelConfig("cnn", (3, 16), classes=3, widths=(8, 16), group=2),
    "simple-cnn": ModelConfig("simple-cnn", (1, 8, 8), classes=4, widths=(8, 8, 16), group=2),
    "resnet": ModelConfig("resnet", (3, 8, 8), classes=4, widths=(8, 16), blocks=(1, 1), group=2),
    "custom": ModelConfig("custom", (3, 8, 8), classes=4, group=2, factory="brought:Dense"),
}
VIT = ModelConfig("vit", (1, 8, 8), classes=4, widths=(16,), blocks=(1,), group=4)
# A sequence takes the same ways through the code as an image.
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name == "cnn-1d" else []) for name in MODELS]


PLAIN = DiastoleConfig()


def module_of(model: ModelConfig, config: DiastoleConfig = PLAIN) -> Diastole:
    module = build(model, spec_of(1.0, WIDTHS, config))
    assert isinstance(module, Diastole)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draws)
    return module.eval()


def whole_of(module: Diastole) -> State:
    """Return the whole tensors of a module, as its state dict has them."""
    return dict(module.state_dict())


def inputs(model: ModelConfig, count: int = 6) -> Tensor:
    return torch.randn(count, *model.input_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_one_pass_gives_what_each_narrower_network_computes_alone(name: str) -> None:
    model = MODELS[name]
    module, x = module_of(model), inputs(model)
    method = make_method("diastole", model, WIDTHS, TRAINING)
    method.prepare(whole_of(module), None, Moment())
    for width, logits in zip(WIDTHS, module.logits(x), strict=True):
        alone = network(model, narrowed(model, width)).eval()
        part = build(model, spec_of(width, WIDTHS))
        part.load_state_dict(method.compress(spec_of(width, WIDTHS)))
        alone.load_state_dict(part.state_dict())
        torch.testing.assert_close(logits, alone(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_reads_a_share_of_the_channels_starts_larger_by_the_fourth_root_of_its_inverse(name: str) -> None:
    model = MODELS[name]
    plain = make_method("width", model, WIDTHS, TRAINING).initial(3)
    started = make_method("diastole", model, WIDTHS, TRAINING).initial(3)
    changed = 0
    for key, weight in plain.items():
        if weight.dim() < 2:
            assert torch.equal(started[key], weight)
            continue
        expected = []
        for row, before in zip(started[key], weight, strict=True):
            there = row != 0
            share = int(there.sum()) / row.numel()
            changed += share < 1
            expected.append(torch.where(there, before * share**-0.25, 0.0))
        torch.testing.assert_close(started[key], torch.stack(expected))
    assert changed


@pytest.mark.parametrize("name", NAMES)
def test_what_later_channels_compute_does_not_reach_earlier_ones(name: str) -> None:
    model = MODELS[name]
    module, x = module_of(model), inputs(model)
    before = module.logits(x)
    method = make_method("diastole", model, WIDTHS, TRAINING)
    half = next(size.spec for size in method.offers() if size.spec.options.width == 0.5)
    draws = torch.Generator().manual_seed(2)
    changed = {n: tensor + torch.randn(tensor.shape, generator=draws) for n, tensor in whole_of(module).items()}
    for slot in method.slots(half).values():
        slot.region.put_(changed[slot.source], slot.region.take(whole_of(module)[slot.source]))
    module.load_state_dict(module.zeroed(changed))
    after = module.logits(x)
    assert torch.allclose(before[0], after[0], rtol=1e-4, atol=1e-5)
    assert torch.allclose(before[1], after[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before[2], after[2], rtol=1e-2, atol=1e-2)


def test_blocks_are_zero_where_plain_loops_say_so_and_stay_zero() -> None:
    model = MODELS["cnn"]
    module = module_of(model, DiastoleConfig(distil=1.0))
    y = torch.arange(6) % 4
    fit(module, Examples(inputs(model), y), replace(TRAINING, balance=1.0), torch.Generator().manual_seed(3))
    weight = whole_of(module)["stages.1.0.weight"]
    for row in range(16):
        for column in range(8):
            # Widths of 2, 4 and 8 channels that are read, of 4, 8 and 16 that are written.
            written, read = (row >= 4) + (row >= 8), (column >= 2) + (column >= 4)
            assert bool((weight[row, column] == 0).all()) == (read > written), (row, column)


def test_a_network_with_layer_norm_is_run_once_for_each_width() -> None:
    module, x = module_of(VIT), inputs(VIT)
    assert not module.bands
    for width, logits in zip(WIDTHS, module.logits(x), strict=True):
        torch.testing.assert_close(logits, module.at(x, width))


ONE_PASS = {"hidden", "fc", "inside", "transposed", "chunk"}
A_PASS_EACH = {"log_softmax", "in_place", "normalised", "gate", "bottleneck"}


def odd(kind: str) -> ModelConfig:
    custom.allow(f"brought:rare_{kind}")
    return ModelConfig("custom", (3, 8, 8), classes=4, group=2, factory=f"brought:rare_{kind}")


@pytest.mark.parametrize("kind", sorted(ONE_PASS | A_PASS_EACH))
def test_any_custom_network_computes_what_the_users_does_at_every_width(kind: str) -> None:
    model = odd(kind)
    state, x = torch.get_rng_state(), inputs(model)
    with torch.device("meta"):
        build(model, spec_of(1.0, WIDTHS))
    assert torch.equal(state, torch.get_rng_state())
    module, plain = module_of(model), network(model).eval()
    assert bool(module.bands) == module.exact == (kind in ONE_PASS)
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x), plain(x))
    for width, logits in zip(WIDTHS, module.logits(x), strict=True):
        torch.testing.assert_close(logits, module.at(x, width), rtol=1e-4, atol=1e-5)
    fit(module, Examples(x, torch.arange(6) % 4), TRAINING, torch.Generator().manual_seed(3))
    trained = whole_of(module)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in module.zeroed(trained).items())
    for width, logits in zip(WIDTHS, module.eval().logits(x), strict=True):
        torch.testing.assert_close(logits, module.at(x, width), rtol=1e-4, atol=1e-5)


class Half(nn.Module):
    """Computes in bfloat16, which it comes to in one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)),
            *(nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU()),
        )
        self.fc, self.how = nn.Linear(16, 4), how
        if how != "autocast":
            self.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        x = x.bfloat16() if self.how == "named" else x.to(self.fc.weight.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.how == "autocast"):
            return self.fc(self.layers(x).mean((2, 3)))


@pytest.mark.parametrize("how", ["named", "weights", "autocast"])
def test_a_network_in_16_bits_is_as_triangular_as_in_32(how: str) -> None:
    torch.manual_seed(0)
    model = ModelConfig("custom", (3, 8, 8), classes=4, group=4, factory=custom.register(Half(how)))
    module = build(model, spec_of(1.0, WIDTHS))
    assert isinstance(module, Diastole)
    assert module.exact
    assert {p.dtype for p in module.parameters()} == {torch.float32 if how == "autocast" else torch.bfloat16}


@pytest.mark.parametrize(("model", "told"), [(VIT, True), (MODELS["cnn"], False)], ids=["vit", "cnn"])
def test_who_has_a_network_without_a_triangular_form_is_told_once(
    model: ModelConfig, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    _tell.cache_clear()
    for _ in range(2):
        make_method("diastole", model, WIDTHS, TRAINING)
    lines = [record.getMessage() for record in caplog.records if "triangular" in record.getMessage()]
    assert len(lines) == told
    assert all("model vit: no triangular form" in line and "\n" not in line for line in lines)


@pytest.mark.parametrize("kind", ["fc", "chunk"])
def test_a_custom_network_whose_widths_need_one_pass_costs_what_plain_training_costs(kind: str) -> None:
    model = odd(kind)
    for size in make_method("diastole", model, WIDTHS, TRAINING).offers():
        assert size.cost.training_macs == width_cost(model, size.spec.options.width, TRAINING).training_macs


@pytest.mark.parametrize(("kind", "name"), [("transposed", "last.weight"), ("chunk", "last.weight")])
def test_blocks_of_odd_layers_are_zero_where_plain_loops_say_so(kind: str, name: str) -> None:
    weight = whole_of(module_of(odd(kind)))[name]
    reads, writes = (0, 1) if kind == "transposed" else (1, 0)
    for row in range(16):
        for column in range(8):
            # Behind a transposed layer 16 channels are of one set; a chunk's halves are 8 each of the same set.
            channel, size = (row, 16) if kind == "transposed" else (row % 8, 8)
            written = (channel >= size // 4) + (channel >= size // 2)
            read = (column >= 2) + (column >= 4)
            entry = weight.movedim((writes, reads), (0, 1))[row, column]
            assert bool((entry == 0).all()) == (read > written), (row, column)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_it_costs_no_more_than_plain_training(name: str) -> None:
    model = MODELS[name]
    for size in make_method("diastole", model, WIDTHS, TRAINING).offers():
        plain = width_cost(model, size.spec.options.width, TRAINING)
        assert size.cost.training_macs == plain.training_macs
        assert size.cost.memory <= plain.memory


@pytest.mark.parametrize("name", ["cnn", "custom"])
def test_bands_that_lie_in_their_weights_train_to_the_same_bits_as_bands_apart(name: str) -> None:
    model = MODELS[name]
    module, y = module_of(model), torch.arange(6) % 4
    module.load_state_dict(module.state_dict(), assign=True)
    apart = deepcopy(module)
    # Of a concatenation bands cannot be views; the first layers have none.
    key = next(iter(module.bands))
    there, again = module.tensors()[key], module.tensors()[key]
    assert again.data_ptr() == there.data_ptr()
    assert module.spare > 0
    there, again = apart.tensors()[key], apart.tensors()[key]
    assert again.data_ptr() != there.data_ptr()
    for each in (module, apart):
        fit(each, Examples(inputs(model), y), TRAINING, torch.Generator().manual_seed(3))
    for own, other in zip(module.parameters(), apart.parameters(), strict=True):
        assert torch.equal(own, other)
    for width, mine, theirs in zip(
        WIDTHS, module.eval().logits(inputs(model)), apart.eval().logits(inputs(model)), strict=True
    ):
        assert torch.equal(mine, theirs), width


def test_what_a_device_sends_keeps_no_more_in_memory_than_it_is() -> None:
    model = MODELS["resnet"]
    method = make_method("diastole", model, WIDTHS, TRAINING)
    method.prepare(method.initial(0), None, Moment())
    examples = Examples(inputs(model), torch.arange(6) % 4)
    tasks = [Task(f"t{k}", 1, "a", method.whole, TRAINING, k) for k in range(2)]
    first = train(model, tasks[0], method.compress(method.whole), examples)
    before = {name: tensor.clone() for name, tensor in first.state.items()}
    train(model, tasks[1], method.compress(method.whole), examples)
    for name, tensor in first.state.items():
        assert torch.equal(tensor, before[name])
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_has_what_is_not_always_zero_and_nothing_else(name: str) -> None:
    model = MODELS[name]
    method = make_method("diastole", model, WIDTHS, TRAINING)
    for size in method.offers():
        there = 0
        module = build(model, size.spec)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(1.0)
        for tensor in module.state_dict().values():
            there += int((tensor != 0).sum())
        assert size.cost.parameters == there
        assert size.cost.bytes_down == size.cost.bytes_up == 4 * there
        plain_bytes = width_cost(model, size.spec.options.width, TRAINING).bytes_down
        assert size.cost.bytes_down <= plain_bytes
    assert size.cost.bytes_down < 0.85 * plain_bytes


def loss_of_loops(logits: list[Tensor], y: Tensor, labels: list[int], balance: float, distil: float) -> float:
    classes = logits[0].shape[1]
    share = [(labels.count(c) + LEAST) / len(labels) for c in range(classes)]
    total = 0.0
    for z in logits:
        for row, label in zip(z.tolist(), y.tolist(), strict=True):
            shifted = [value + balance * math.log(share[c]) for c, value in enumerate(row)]
            total -= shifted[label] - math.log(sum(map(math.exp, shifted)))
    total /= len(y) * len(logits)
    taught = 0.0
    for z in logits[:-1]:
        for row, target in zip(z.log_softmax(1).tolist(), logits[-1].softmax(1).tolist(), strict=True):
            taught += sum(t * (math.log(t) - s) for t, s in zip(target, row, strict=True)) / len(y)
    return (total + distil * taught / len(logits)) / (1 + distil * (len(logits) - 1) / len(logits))


@pytest.mark.parametrize(("balance", "distil"), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.7), (0.0, 2.0)])
def test_the_loss_is_that_of_plain_loops(balance: float, distil: float) -> None:
    model = MODELS["cnn"]
    module, x = module_of(model, DiastoleConfig(distil=distil)), inputs(model)
    y, labels = torch.tensor([0, 1, 1, 0, 2, 1]), [0] * 5 + [1] * 9 + [2] * 2
    criterion = TrainConfig(balance=balance).criterion
    found = module.loss(x, y, Step(torch.Generator(), labels=torch.tensor(labels), criterion=criterion))
    expected = loss_of_loops([z.detach() for z in module.logits(x)], y, labels, balance, distil)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_without_nested_training_only_the_own_width_counts() -> None:
    model = MODELS["cnn"]
    module, x, y = module_of(model, DiastoleConfig(nested=False)), inputs(model), torch.arange(6) % 4
    found = module.loss(x, y, Step(torch.Generator(), labels=y))
    torch.testing.assert_close(found, F.cross_entropy(module(x), y))


def test_a_transformer_is_trained_at_one_width_a_step_for_no_more_than_plain_training_takes() -> None:
    method = make_method("diastole", VIT, WIDTHS, TRAINING)
    plain = [width_cost(VIT, size.spec.options.width, TRAINING) for size in method.offers()]
    for size, cost in zip(method.offers(), plain, strict=True):
        assert size.cost.training_macs <= cost.training_macs
        assert size.cost.memory <= 1.02 * cost.memory
        assert size.cost.bytes_down == cost.bytes_down
    assert method.offers()[-1].cost.training_macs == sum(cost.training_macs for cost in plain) // len(plain)
    module, x, y = build(VIT, method.whole), inputs(VIT), torch.arange(6) % 4
    shift = 0.5 * ((torch.bincount(y, minlength=4) + 0.01) / 6).log()
    seen = set()
    for seed in range(12):
        pick = int(torch.randint(len(WIDTHS), (), generator=torch.Generator().manual_seed(seed)))
        expected = F.cross_entropy(module.at(x, WIDTHS[pick]) + shift, y)
        step = Step(torch.Generator().manual_seed(seed), labels=y, criterion=TrainConfig(balance=0.5).criterion)
        torch.testing.assert_close(module.loss(x, y, step), expected)
        seen.add(pick)
    assert len(seen) == len(WIDTHS)


@pytest.mark.parametrize("model", [VIT, MODELS["cnn"]], ids=["vit", "cnn"])
def test_without_nested_training_a_width_costs_what_plain_training_costs(model: ModelConfig) -> None:
    for size in make_method("diastole", model, WIDTHS, TRAINING, {"nested": False}).offers():
        assert size.cost.training_macs == width_cost(model, size.spec.options.width, TRAINING).training_macs


def test_an_unlabelled_proxy_set_teaches_what_the_returned_sub_models_say(separable) -> None:
    model = MODELS["cnn"]
    method = make_method("diastole", model, WIDTHS, TRAINING)
    examples: Examples = separable(model, 24, 1)
    proxy = Proxy(examples, separable(model, 8, 2)).without_labels()
    state = method.initial(0)
    method.prepare(state, proxy, Moment())
    assert method.needs_all(Moment())
    updates, said, weights = [], torch.zeros(24, 4), (3, 9)
    for size, count in zip(method.offers(), weights, strict=False):
        module = build(model, size.spec)
        module.load_state_dict(method.compress(size.spec))
        fit(module, examples, TRAINING, torch.Generator().manual_seed(count))
        trained: State = {name: p.detach() for name, p in module.named_parameters()}
        task = Task(f"task-{count}", 1, f"device-{count}", size.spec, TRAINING, 0)
        updates.append(Update(task, trained, Report(count, 0.0, 0.0)))
        said += count / 12 * module.eval()(examples.x).softmax(1).detach()
    assert list(method.weigh(updates, Moment())) == [(updates[0], 3.0), (updates[1], 9.0)]

    training = TrainConfig(epochs=2, batch_size=24, learning_rate=0.02)
    learned = method.learn(state, proxy, training, Moment())
    followed = build(model, method.whole)
    followed.load_state_dict(state)
    followed.train()
    optimiser = torch.optim.SGD(followed.parameters(), lr=0.02, momentum=training.momentum)
    for _ in range(2):
        far = [F.kl_div(z.log_softmax(1), said, reduction="batchmean") for z in followed.logits(examples.x)]
        optimiser.zero_grad()
        torch.stack(far).mean().backward()
        optimiser.step()
    for name, tensor in followed.state_dict().items():
        expected = 0.75 * state[name] + 0.25 * tensor
        torch.testing.assert_close(learned[name], expected, rtol=1e-4, atol=1e-6)


def test_updates_are_kept_only_for_a_proxy_set_without_labels(separable) -> None:
    model = MODELS["cnn"]
    method = make_method("diastole", model, WIDTHS, TRAINING)
    state, proxy = method.initial(0), Proxy(separable(model, 24, 1), separable(model, 8, 2))
    for given, needs in ((None, False), (proxy.without_labels(), True), (proxy, False)):
        assert method.prepare(state, given, Moment()) is state
        assert method.needs_all(Moment()) == needs
    method.resume(state, proxy.without_labels(), Moment(), {})
    assert method.needs_all(Moment())


@pytest.mark.parametrize(
    ("name", "fold"), [*((name, "mean") for name in ("cnn", "resnet", "chunk", "transposed")), ("cnn", "trimmed-mean")]
)
def test_no_device_can_reach_what_is_always_zero(name: str, fold: str) -> None:
    model = MODELS.get(name) or odd(name)
    method = make_method("diastole", model, WIDTHS, TRAINING)
    state, draws = method.initial(0), torch.Generator().manual_seed(0)
    method.prepare(state, None, Moment())
    sums = folding(fold, state, 0.2)
    for number, size in enumerate([*method.offers(), *method.offers()]):
        sent = method.compress(size.spec)
        evil = {n: tensor + 100 * torch.randn(tensor.shape, generator=draws) for n, tensor in sent.items()}
        sums.add(f"device-{number}", method.dilate(evil, size.spec), 1.0 + number)
    delta, covered = sums.mean()
    module = build(model, method.whole)
    assert isinstance(module, Diastole)
    ones = module.zeroed({name: torch.ones_like(tensor) for name, tensor in state.items()})
    for key in state:
        assert torch.equal(covered[key], ones[key] == 1), key
        assert bool((delta[key][ones[key] == 0] == 0).all()), key
    after = {key: (tensor + delta[key]).float() for key, tensor in state.items()}
    method.prepare(after, None, Moment())
    module.load_state_dict(method.compress(method.whole))
    x = inputs(model)
    for width, logits in zip(WIDTHS, module.eval().logits(x), strict=True):
        small = build(model, spec_of(width, WIDTHS))
        small.load_state_dict(method.compress(spec_of(width, WIDTHS)))
        scale = float(logits.detach().abs().max())
        torch.testing.assert_close(logits, small.eval()(x), rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["cnn", "resnet", "chunk"])
def test_a_state_dict_is_that_of_the_plain_network(name: str) -> None:
    model = MODELS.get(name) or odd(name)
    for width in WIDTHS:
        spec = spec_of(width, WIDTHS)
        small, alone = build(model, spec), network(model, narrowed(model, width))
        assert isinstance(small, Diastole)
        small.load_state_dict({key: tensor.clone() for key, tensor in small.state_dict().items()})
        assert {n: t.shape for n, t in small.state_dict().items()} == {n: t.shape for n, t in alone.named_parameters()}
        x = inputs(model)
        alone.load_state_dict(small.state_dict())
        torch.testing.assert_close(small.eval()(x), alone.eval()(x))
        torch.testing.assert_close(small.plain_form().eval()(x), alone(x))


def test_a_round_leaves_the_zero_blocks_of_the_global_model_zero(separable) -> None:
    model = MODELS["resnet"]
    method = make_method("diastole", model, WIDTHS, TRAINING)
    state = method.initial(0)
    method.prepare(state, None, Moment())
    accumulator = Accumulator(state)
    for number, size in enumerate(method.offers()):
        module = build(model, size.spec)
        module.load_state_dict(method.compress(size.spec))
        fit(module, separable(model, 16, number), TRAINING, torch.Generator().manual_seed(number))
        trained = {name: p.detach() for name, p in module.named_parameters()}
        accumulator.fold(method.dilate(trained, size.spec), 16.0)
    delta, _ = accumulator.mean()
    whole = build(model, method.whole)
    assert isinstance(whole, Diastole)
    after = {name: (tensor + delta[name]).float() for name, tensor in state.items()}
    assert all(torch.equal(after[name], whole.zeroed(after)[name]) for name in after)
    assert any(delta[name].abs().max() > 0 for name in whole.bands)
