"""FIARSE: which scalars are kept, how they travel, and how a device trains them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from updates import update

from diastole.models.coordinates import covered
from diastole.models.errors import SpecError, StateError
from diastole.models.methods.importance.fiarse import (
    MASK,
    THRESHOLD,
    VALUES,
    FiarseMethod,
    Masked,
    _Unpack,
    largest,
    masked,
    pack,
    spec_of,
)
from diastole.models.methods.registry import build
from diastole.models.methods.widths.width import width_cost
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, tensor_bytes
from diastole.models.training import Examples, Step, TrainConfig, fit, loss_of
from diastole.proto.payload import decode, encode
from diastole.server.admission import check, expected_state

MODEL = ModelConfig("resnet", (3, 8, 8), classes=4, widths=(8, 16), blocks=(1, 1), group=2)
TRAINING = TrainConfig(epochs=2, batch_size=16, learning_rate=0.05)
WIDTHS = (1.0, 0.5, 0.25)

magnitudes = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=20)


@pytest.fixture
def state(random_state) -> State:
    return random_state(MODEL)


def prepared(state: State, widths: tuple[float, ...] = WIDTHS) -> FiarseMethod:
    method = FiarseMethod(MODEL, widths, TRAINING)
    method.prepare(state, None, Moment())
    return method


def sparse(method: FiarseMethod) -> list[SubModelSpec]:
    return [size.spec for size in method.offers() if size.spec.options.density < 1]


def weight_names(network: nn.Module) -> list[str]:
    return [name for name, parameter in network.named_parameters() if parameter.dim() > 1]


# Which scalars


@given(magnitudes, st.data())
@settings(max_examples=200)
def test_the_largest_are_those_that_a_stable_sort_puts_first(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    ranked = sorted(range(len(values)), key=lambda k: (-abs(values[k]), k))[:count]
    index, threshold = largest(torch.tensor(values), count)
    assert index.tolist() == sorted(ranked)
    assert threshold == min(abs(values[k]) for k in ranked)


@given(st.sets(st.integers(0, 40)), st.integers(0, 9))
def test_a_packed_mask_is_unpacked_by_plain_loops_and_by_the_device(places: set[int], extra: int) -> None:
    size = max(places, default=0) + 1 + extra
    index = torch.tensor(sorted(places), dtype=torch.int64)
    mask = pack(index, size)
    assert mask.dtype == torch.uint8
    assert len(mask) == -(-size // 8)
    assert [k for k in range(len(mask) * 8) if int(mask[k // 8]) >> (k % 8) & 1] == sorted(places)
    values = torch.arange(1.0, len(places) + 1)
    dense = _Unpack.apply(values, mask, torch.tensor(0.0), size)
    expected = [0.0] * size
    for value, place in zip(values.tolist(), sorted(places), strict=True):
        expected[place] = value
    assert dense.tolist() == expected


def test_one_threshold_over_every_convolution_and_linear_weight_and_no_other_tensor(state: State) -> None:
    method = prepared(state)
    names = weight_names(build(MODEL))
    assert masked(build(MODEL)) == names
    scalars = [(name, place) for name in names for place in range(state[name].numel())]
    size = [abs(state[name].flatten()[place].item()) for name, place in scalars]
    for spec in sparse(method):
        count = round(spec.options.density * len(scalars))
        kept = sorted(sorted(range(len(scalars)), key=lambda k: -size[k])[:count])
        sent = method.compress(spec)
        assert sent[VALUES].tolist() == [state[scalars[k][0]].flatten()[scalars[k][1]].item() for k in kept]
        assert sent[THRESHOLD].item() == min(size[k] for k in kept)
        masks = covered(method.dilate(sent, spec), state)
        for name, mask in masks.items():
            if name in names:
                assert mask.flatten().nonzero().flatten().tolist() == [
                    scalars[k][1] for k in kept if scalars[k][0] == name
                ]
            else:
                assert mask.all()
                assert torch.equal(sent[f"network.{name}"], state[name])


def test_a_mask_follows_the_global_state(state: State) -> None:
    method = prepared(state)
    spec = sparse(method)[0]
    before = method.compress(spec)[MASK]
    shuffled = {name: t.flatten().flip(0).reshape(t.shape) if t.dim() > 1 else t for name, t in state.items()}
    method.prepare(shuffled, None, Moment(2, 2))
    assert not torch.equal(method.compress(spec)[MASK], before)
    method.resume(state, None, Moment(), {})
    assert torch.equal(method.compress(spec)[MASK], before)


# What a device computes


def dense_network(state: State, method: FiarseMethod, spec: SubModelSpec) -> nn.Module:
    """Return the plain network with every scalar that is not covered set to zero."""
    masks = covered(method.dilate(method.compress(spec), spec), state)
    module = build(MODEL)
    module.load_state_dict({name: tensor * masks[name] for name, tensor in state.items()})
    return module


def test_a_device_runs_the_network_with_zeros_for_what_it_lacks(state: State) -> None:
    method, x = prepared(state), torch.randn(5, *MODEL.input_shape)
    for spec in sparse(method):
        module = build(MODEL, spec)
        module.load_state_dict(method.compress(spec))
        torch.testing.assert_close(module(x), dense_network(state, method, spec)(x))


def test_the_gradient_is_that_of_the_dense_weight_times_the_slope_of_the_masked_one(state: State, separable) -> None:
    method, examples = prepared(state), separable(MODEL, 12)
    for spec in sparse(method):
        module, plain = build(MODEL, spec), dense_network(state, method, spec)
        sent = method.compress(spec)
        module.load_state_dict(sent)
        step = Step(torch.Generator())
        loss_of(module, examples, step).backward()
        loss_of(plain, examples, step).backward()
        theta = sent[THRESHOLD].item()
        dense = torch.cat([plain.get_parameter(name).grad.flatten() for name in masked(plain)]).tolist()
        bits = [int(byte) >> k & 1 for byte in sent[MASK] for k in range(8)]
        places = [place for place, bit in enumerate(bits) if bit]
        for gradient, weight, place in zip(module.values.grad.tolist(), sent[VALUES].tolist(), places, strict=True):
            slope = 1 + abs(weight) * 2 * theta / (abs(weight) + theta) ** 2
            assert gradient == pytest.approx(dense[place] * slope, rel=1e-3, abs=1e-7)
        for name, parameter in plain.named_parameters():
            if name not in masked(plain):
                torch.testing.assert_close(module.get_parameter(f"network.{name}").grad, parameter.grad)


@given(st.lists(st.integers(-99, 99).map(lambda k: k / 64), min_size=1, max_size=8), st.sampled_from([0.0, 0.5, 0.7]))
def test_the_slope_is_what_autograd_finds_for_the_soft_mask(values: list[float], theta: float) -> None:
    """Let autograd differentiate `w * hard * (1 + (soft - constant))`: hard mask forwards, soft one backwards."""
    size = len(values)
    mask, threshold = pack(torch.arange(size), size), torch.tensor(theta)
    ours, theirs = (torch.tensor(values, requires_grad=True) for _ in range(2))
    weight = torch.arange(1.0, size + 1)
    dense = _Unpack.apply(ours, mask, threshold, size)
    (dense * weight).sum().backward()

    magnitude = theirs.abs()
    hard = (magnitude >= threshold).float()
    soft = 2 * magnitude / (magnitude + threshold).clamp(min=1e-19)
    expected = theirs * hard * (1 + (soft - soft.detach()))
    (expected * weight).sum().backward()
    assert torch.equal(dense, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_weight_below_the_threshold_is_left_out_and_stays(state: State, separable) -> None:
    method, examples = prepared(state), separable(MODEL, 32)
    spec = sparse(method)[-1]
    module = build(MODEL, spec)
    sent = method.compress(spec)
    sent[VALUES][:10] = sent[THRESHOLD] * torch.linspace(-0.9, 0.9, 10)
    module.load_state_dict(sent)
    logits = module(examples.x)
    fit(module, examples, TRAINING, torch.Generator().manual_seed(0))
    assert torch.equal(module.values[:10], sent[VALUES][:10])
    assert not torch.equal(module.values[10:], sent[VALUES][10:])
    assert torch.equal(module.mask, sent[MASK])
    assert torch.equal(module.threshold, sent[THRESHOLD])
    module.load_state_dict({**sent, VALUES: torch.cat([torch.zeros(10), sent[VALUES][10:]])})
    assert torch.equal(module(examples.x), logits)


def test_no_weights_at_all_give_no_nan() -> None:
    module = build(MODEL, spec_of(0.3))
    assert isinstance(module, Masked)
    with torch.no_grad():
        module.values.zero_()
        module.threshold.zero_()
    F.cross_entropy(module(torch.randn(2, 3, 8, 8)), torch.tensor([0, 1])).backward()
    assert torch.isfinite(module.values.grad).all()


def test_a_fresh_module_holds_the_largest_scalars_of_its_draw() -> None:
    module = build(MODEL, spec_of(0.3))
    assert isinstance(module, Masked)
    assert module.values.abs().min() == module.threshold > 0
    assert torch.isfinite(module(torch.randn(2, 3, 8, 8))).all()


# What travels


def test_each_width_gets_the_largest_density_that_its_bytes_carry(state: State) -> None:
    for width in (1.0, 0.75, 0.5, 0.25):
        method = prepared(state, (width,))
        (size,) = method.offers()
        budget = width_cost(MODEL, width, TRAINING).bytes_down
        sent = method.compress(size.spec)
        assert tensor_bytes(sent) == size.cost.bytes_down <= budget
        # A device does not send the mask back.
        back = {name: tensor for name, tensor in sent.items() if name not in (MASK, THRESHOLD)}
        assert tensor_bytes(back) == size.cost.bytes_up
        if width == 1:
            assert size.spec == method.whole
            continue
        more = spec_of(size.spec.options.density + 2e-4)
        with torch.device("meta"):
            assert sum(p.nbytes for p in build(MODEL, more).parameters()) > budget


def test_a_mask_saves_bytes_but_no_arithmetic(state: State) -> None:
    method = prepared(state)
    small, whole = method.offers()[0].cost, max(o.cost for o in method.offers() if o.spec.options.density == 1)
    assert small.bytes_down < whole.bytes_down / 4
    assert (small.forward_macs, small.training_macs) == (whole.forward_macs, whole.training_macs)
    assert small.memory > width_cost(MODEL, 0.25, TRAINING).memory


def test_devices_get_the_largest_density_that_fits_whatever_it_costs(state: State) -> None:
    method = prepared(state, (1.0, 0.9, 0.8))
    sizes = method.offers()
    for fits in (sizes, sizes[:2], sizes[1:]):
        given_ = method.assign({"a": fits}, Moment())["a"]
        assert given_.spec.options.density == max(size.spec.options.density for size in fits)


def test_widths_that_cannot_pay_for_a_mask_are_left_out_or_named() -> None:
    wide = ModelConfig("cnn", (1, 8, 8), classes=4, widths=(64, 128), group=2)
    assert len(FiarseMethod(wide, (1.0, 0.1), TRAINING).offers()) == 1
    with pytest.raises(SpecError, match=r"widths \[0.1\].*mask"):
        FiarseMethod(wide, (0.1,), TRAINING)
    with pytest.raises(SpecError, match="density 1e-05 keeps none"):
        build(MODEL, spec_of(1e-5))


def test_masks_survive_the_wire(state: State) -> None:
    method = prepared(state)
    for size in method.offers():
        sent = method.compress(size.spec)
        back = decode(encode(sent))
        assert back.keys() == sent.keys()
        assert all(torch.equal(back[name], sent[name]) and back[name].dtype == sent[name].dtype for name in sent)


@pytest.mark.parametrize("name", [MASK, THRESHOLD])
def test_a_device_that_returns_another_mask_is_refused(state: State, name: str) -> None:
    method = prepared(state)
    spec = sparse(method)[0]
    sent = method.compress(spec)
    expected = expected_state(method, spec)
    trained = {n: t + 0.1 if n == VALUES else t.clone() for n, t in sent.items()}
    check(update(spec, trained, 5), sent, expected, 5, 1)
    changed = dict(trained)
    changed[name] = trained[name] ^ 1 if name == MASK else trained[name] * 2
    with pytest.raises(StateError, match=f"'{name}' is not trained"):
        check(update(spec, changed, 5), sent, expected, 5, 1)
    # And even if it got that far, the server goes by its own.
    one, other = method.dilate(trained, spec), method.dilate(changed, spec)
    assert all(torch.equal(one[n].values, other[n].values) for n in one)
    assert all(
        torch.equal(a, b) for a, b in zip(covered(one, state).values(), covered(other, state).values(), strict=True)
    )


def test_training_on_the_device_is_what_the_server_folds(state: State, separable) -> None:
    examples: Examples = separable(MODEL, 32)
    method = prepared(state)
    for spec in sparse(method):
        module = build(MODEL, spec)
        module.load_state_dict(method.compress(spec))
        fit(module, examples, TRAINING, torch.Generator().manual_seed(0))
        contribution = method.dilate({n: p.detach() for n, p in module.named_parameters()}, spec)
        flat = torch.cat([contribution[name].values for name in masked(build(MODEL)) if name in contribution])
        assert torch.equal(flat, module.values)
