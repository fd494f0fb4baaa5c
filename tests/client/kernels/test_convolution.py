import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diastole.client.kernels import depthwise, operators, window, winograd
from diastole.client.kernels.convolver import Convolver, ConvShape
from diastole.client.kernels.lying import there
from diastole.client.kernels.reference import REFERENCE
from diastole.client.plans.convolvers import macs

EVERY = (depthwise.CONVOLVER, window.CONVOLVER, winograd.CONVOLVER)
DIRECTIONS = ("forward", "grad_input", "grad_weight")
needs_library = pytest.mark.skipif(not there("window"), reason="no compiler, or no kernels for this processor")
few = settings(max_examples=20)
many = settings(max_examples=400)


@st.composite
def shapes(draw: st.DrawFn, dense: bool, square: bool = False) -> ConvShape:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    if square:
        kernel, stride, padding, channels = (3, 3), (1, 1), pair(0, 2), pair(8, 37)
    elif dense:
        kernel, stride, padding, channels = pair(1, 5), pair(1, 4), pair(0, 4), pair(1, 37)
    else:
        side, step, count = draw(st.sampled_from((3, 5, 7))), draw(st.sampled_from((1, 2))), draw(st.integers(2, 37))
        kernel, stride, padding, channels = (side, side), (step, step), pair(0, side - 1), (count, count)
    extra = pair(0, 11)
    height, width = (max(1, k - 2 * p) + more for k, p, more in zip(kernel, padding, extra, strict=True))
    groups = 1 if dense else channels[0]
    batch = draw(st.integers(1, 4))
    return ConvShape(batch, channels, (height, width), kernel, stride, padding, groups, channels_last=True)


def drawn(shape: ConvShape) -> tuple[Tensor, Tensor, Tensor]:
    """Return an input, a weight and a gradient, each between values that are not numbers."""
    draws = torch.Generator().manual_seed(0)
    ins, outs = shape.channels
    sizes = (
        (shape.batch, ins, *shape.size),
        (outs, ins // shape.groups, *shape.kernel),
        (shape.batch, outs, *shape.out_size),
    )
    x, weight, gradient = (torch.randn(size, generator=draws).to(shape.dtype) for size in sizes)
    return guarded(x), weight, guarded(gradient)


def guarded(x: Tensor) -> Tensor:
    """Return the same, channels last, in memory where a value too far before or behind spoils what is read."""
    n, channels, height, width = x.shape
    memory = torch.full((x.numel() + 128,), float("nan"), dtype=x.dtype)
    inside = memory[64:-64].view(n, height, width, channels)
    inside.copy_(x.permute(0, 2, 3, 1))
    return inside.permute(0, 3, 1, 2)


def computed(way: Convolver, shape: ConvShape, tensors: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    x, weight, gradient = tensors
    return {
        "forward": way.forward(x, weight, shape),
        "grad_input": way.grad_input(gradient, weight, shape),
        "grad_weight": way.grad_weight(gradient, x, shape),
    }


def taken(way: Convolver, batch: int, channels: int) -> ConvShape:
    """Return a shape that a convolver knows."""
    groups, stride = channels if way.name == "depthwise" else 1, 1 if way.name == "winograd" else 2
    return ConvShape(batch, (channels, channels), (9, 8), (3, 3), (stride, stride), (1, 1), groups, channels_last=True)


def errors(way: Convolver, shape: ConvShape) -> dict[str, float]:
    """Return, by direction, the largest error as a share of the largest value, against plain PyTorch in float64."""
    tensors = drawn(shape)
    exact = replace(shape, dtype=torch.float64, channels_last=False)
    x, weight, gradient = (tensor.double() for tensor in tensors)
    expected = computed(REFERENCE, exact, (x, weight, gradient))
    found = computed(way, shape, tensors)
    for name in DIRECTIONS:
        assert found[name].shape == expected[name].shape
        assert found[name].dtype == shape.dtype
    return {
        name: float((found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-9))
        for name in DIRECTIONS
    }


@needs_library
@few
@given(shapes(dense=False))
def test_depthwise_is_right(shape: ConvShape) -> None:
    assert depthwise.CONVOLVER.takes(shape)
    assert max(errors(depthwise.CONVOLVER, shape).values()) < 3e-6


@needs_library
@few
@given(shapes(dense=True))
def test_window_is_right(shape: ConvShape) -> None:
    assert window.CONVOLVER.takes(shape)
    assert max(errors(window.CONVOLVER, shape).values()) < 3e-6


@needs_library
@few
@given(shapes(dense=True, square=True))
def test_winograd_is_right(shape: ConvShape) -> None:
    assert winograd.CONVOLVER.takes(shape)
    assert max(errors(winograd.CONVOLVER, shape).values()) < 3e-6


@pytest.mark.slow
@needs_library
@many
@given(shapes(dense=False), st.sampled_from((torch.float32, torch.bfloat16)))
def test_depthwise_is_right_at_many_shapes(shape: ConvShape, dtype: torch.dtype) -> None:
    bound = 3e-6 if dtype == torch.float32 else 1 / 256
    assert max(errors(depthwise.CONVOLVER, replace(shape, dtype=dtype)).values()) < bound


@pytest.mark.slow
@needs_library
@many
@given(shapes(dense=True))
def test_window_is_right_at_many_shapes(shape: ConvShape) -> None:
    assert max(errors(window.CONVOLVER, shape).values()) < 3e-6


@pytest.mark.slow
@needs_library
@many
@given(shapes(dense=True, square=True))
def test_winograd_is_right_at_many_shapes(shape: ConvShape) -> None:
    assert max(errors(winograd.CONVOLVER, shape).values()) < 3e-6


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize(("channels", "side", "batch"), [((130, 64), 4, 33), ((16, 16), 32, 9), ((64, 72), 15, 8)])
def test_winograd_is_right_where_tiles_are_taken_in_several_goes(
    channels: tuple[int, int], side: int, batch: int
) -> None:
    shape = ConvShape(batch, channels, (side, side), (3, 3), (1, 1), (1, 1), 1, channels_last=True)
    assert max(errors(winograd.CONVOLVER, shape).values()) < 3e-6


@needs_library
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 2), (7, 1)])
def test_depthwise_in_bfloat16_rounds_once(kernel: int, stride: int) -> None:
    shape = ConvShape(2, (19, 19), (9, 12), (kernel,) * 2, (stride,) * 2, (kernel // 2,) * 2, 19, torch.bfloat16, True)
    assert max(errors(depthwise.CONVOLVER, shape).values()) < 1 / 256


@needs_library
def test_nothing_is_written_outside_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = 64
    kept: list[Tensor] = []
    plain = torch.empty

    def empty(size: tuple[int, ...], **options: object) -> Tensor:
        """Return memory in the middle of a larger one that is full of a mark."""
        laid = options.pop("memory_format", torch.contiguous_format)
        like = plain(size, **options)  # type: ignore[call-overload]
        memory = like.new_full((like.numel() + 2 * guard,), 77.0)
        kept.append(memory)
        inside = memory[guard:-guard]
        if laid != torch.channels_last:
            return inside.view(size)
        n, channels, height, width = size
        return inside.view(n, height, width, channels).permute(0, 3, 1, 2)

    monkeypatch.setattr(operators.torch, "empty", empty)
    for channels in (8, 13, 19):
        square = ConvShape(2, (channels, 8), (7, 8), (3, 3), (1, 1), (1, 0), channels_last=True)
        computed(winograd.CONVOLVER, square, drawn(square))
        for kernel, stride in ((3, 1), (5, 2), (7, 1)):
            for groups, way in ((channels, depthwise.CONVOLVER), (1, window.CONVOLVER)):
                sides: tuple[tuple[int, int], ...] = ((7, 9), (kernel, kernel), (stride, stride), (kernel // 2, 1))
                shape = ConvShape(2, (channels, channels), *sides, groups, channels_last=True)
                computed(way, shape, drawn(shape))
    assert len(kept) == 3 * (1 + 3 * 2) * 3
    for memory in kept:
        assert bool((memory[:guard] == 77).all())
        assert bool((memory[-guard:] == 77).all())
        assert bool(memory.isfinite().all())


@needs_library
@pytest.mark.parametrize("way", EVERY, ids=lambda way: str(way.name))
def test_the_number_of_threads_changes_no_bit(way: Convolver) -> None:
    shape = taken(way, 5, 24)
    tensors, before = drawn(shape), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = computed(way, shape, tensors)
        torch.set_num_threads(3)
        together = computed(way, shape, tensors)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(alone[name], together[name]) for name in DIRECTIONS)


@pytest.mark.parametrize("way", EVERY, ids=lambda way: str(way.name))
def test_without_the_library_plain_torch_computes(way: Convolver, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (depthwise, window, winograd):
        monkeypatch.setattr(module, "native", lambda name, dtype: None)
    shape = taken(way, 2, 9)
    assert not way.takes(shape)
    assert max(errors(way, shape).values()) < 3e-6


@needs_library
def test_other_shapes_are_not_taken() -> None:
    shape = ConvShape(2, (8, 8), (9, 9), (3, 3), (1, 1), (1, 1), 8, channels_last=True)
    assert depthwise.CONVOLVER.takes(shape)
    changes: list[dict[str, object]] = [
        {"kernel": (4, 4)},
        {"kernel": (3, 5)},
        {"stride": (3, 3)},
        {"stride": (1, 2)},
        {"padding": (3, 0)},
        {"channels_last": False},
        {"dtype": torch.float64},
        {"groups": 4},
        {"size": (1, 0)},
    ]
    for change in changes:
        assert not depthwise.CONVOLVER.takes(replace(shape, **change)), change  # type: ignore[arg-type]
    dense = replace(shape, groups=1)
    assert window.CONVOLVER.takes(dense)
    assert not window.CONVOLVER.takes(shape)
    assert not window.CONVOLVER.takes(replace(dense, stride=(9, 1)))
    assert not window.CONVOLVER.takes(replace(dense, dtype=torch.bfloat16))
    assert winograd.CONVOLVER.takes(dense)
    for change in ({"stride": (2, 1)}, {"padding": (3, 0)}, {"kernel": (3, 1)}, {"channels": (4, 8)}, {"groups": 8}):
        assert not winograd.CONVOLVER.takes(replace(dense, **change)), change


@needs_library
def test_meta_tensors_have_the_shapes_of_real_ones() -> None:
    for way in EVERY:
        shape = taken(way, 2, 9)
        tensors = drawn(shape)
        real = computed(way, shape, tensors)
        meta = computed(way, shape, (tensors[0].to("meta"), tensors[1].to("meta"), tensors[2].to("meta")))
        for name in DIRECTIONS:
            assert meta[name].is_meta
            assert meta[name].shape == real[name].shape
            assert meta[name].stride() == real[name].stride()


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize(
    ("way", "channels", "kernel", "share"),
    [(winograd.CONVOLVER, 64, 3, 0.6), (window.CONVOLVER, 64, 3, 0.3), (depthwise.CONVOLVER, 64, 7, 0.2)],
    ids=lambda each: getattr(each, "name", None),
)
def test_sums_stay_in_registers(way: Convolver, channels: int, kernel: int, share: float) -> None:
    """A kernel whose sums are spilled to memory takes five times as long, or more; matrix products say how fast."""
    groups = channels if way.name == "depthwise" else 1
    sides = ((16, 16), (kernel, kernel), (1, 1), (kernel // 2, kernel // 2))
    shape = ConvShape(8, (channels, channels), *sides, groups, channels_last=True)
    x, weight, gradient = drawn(shape)
    square = torch.randn(512, 512)
    calls: list[Callable[[], Tensor]] = [
        lambda: square @ square,
        lambda: way.forward(x, weight, shape),
        lambda: way.grad_input(gradient, weight, shape),
        lambda: way.grad_weight(gradient, x, shape),
    ]
    least = [float("inf")] * len(calls)
    for _ in range(9):
        for number, call in enumerate(calls):
            began = time.thread_time()
            call()
            least[number] = min(least[number], time.thread_time() - began)
    product = 512**3 / least[0]
    assert min(8 * macs(shape) / seconds for seconds in least[1:]) > share * product
