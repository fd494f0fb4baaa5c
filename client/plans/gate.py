"""Whether a convolver is right at a shape, and how long it takes there."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from diastole.client.kernels.convolver import Convolver, ConvShape
from diastole.client.plans.convolvers import Stock, convolver, macs
from diastole.client.plans.taps import Taps

DIRECTIONS = ("forward", "grad_input", "grad_weight")
CHECKED = 2
"""Images in a comparison with float64: enough to mix them up, few enough for a small device."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Of the largest value; what rounding costs is a hundredth of it."""

REPEATS, MOST_REPEATS = 5, 40
SHORT, LONGEST = 0.002, 0.01
"""Seconds until which a direction is repeated more than `REPEATS` times, and after which not any more."""

BEHIND = 3.0
"""Times as long as the fastest convolver so far that one may take to be repeated: first calls find pages of the process
that forked, and may take twice as long as later ones."""

TIMED_MACS = 1.5e7
"""Multiply-accumulates above which fewer images are timed."""


@dataclass(frozen=True, slots=True)
class Job:
    """A convolver that is to be tried.

    Attributes:
        convolver: its name.
        shape: at which it is tried.
        directions: that are needed.
        check: whether to compare them with float64.
        timed: whether to time them.

    """

    convolver: str
    shape: ConvShape
    directions: tuple[str, ...] = DIRECTIONS
    check: bool = True
    timed: bool = True


def probe(job: Job) -> dict[str, float]:
    """Return the seconds of each direction in which the convolver is right; infinity if they are not timed."""
    way, most = convolver(job.convolver), TOLERANCE[job.shape.dtype]
    right = [name for name in job.directions if not job.check or error(way, job.shape, name) <= most]
    if not job.timed:
        return dict.fromkeys(right, float("inf"))
    timed = replace(job.shape, batch=_images(job.shape))
    calls = _calls(way, timed, _drawn(timed))
    found = {}
    for name in right:
        least = _LEAST.get((job.shape, name), float("inf"))
        found[name] = _seconds(calls[name], BEHIND * least)
        _LEAST[job.shape, name] = min(least, found[name])
    return found


_LEAST: dict[tuple[ConvShape, str], float] = {}
"""Seconds of the fastest convolver so far, by shape and direction, in the process that tries them."""


def error(way: Convolver, shape: ConvShape, direction: str) -> float:
    """Return the largest error of a direction, as a share of the largest value, against float64; inf for not finite."""
    few = replace(shape, batch=min(shape.batch, CHECKED))
    expected, found = _exact(few, direction), _calls(way, few, _drawn(few))[direction]()
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return float("inf")
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@lru_cache(len(DIRECTIONS))
def _exact(shape: ConvShape, direction: str) -> Tensor:
    """Return a direction at a shape in float64."""
    exact = replace(shape, dtype=torch.float64, channels_last=False)
    way = Taps() if shape.depthwise else Stock()
    return _calls(way, exact, [tensor.double().contiguous() for tensor in _drawn(shape)])[direction]()


def _calls(way: Convolver, shape: ConvShape, tensors: Sequence[Tensor]) -> dict[str, Callable[[], Tensor]]:
    x, weight, gradient = tensors
    return {
        "forward": lambda: way.forward(x, weight, shape),
        "grad_input": lambda: way.grad_input(gradient, weight, shape),
        "grad_weight": lambda: way.grad_weight(gradient, x, shape),
    }


@lru_cache(1)
def _drawn(shape: ConvShape) -> list[Tensor]:
    """Return an input, a weight and the gradient of an output; later images repeat the first ones."""
    draws = torch.Generator().manual_seed(0)
    few = min(shape.batch, CHECKED)
    memory = torch.channels_last if shape.channels_last else torch.contiguous_format

    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, generator=draws).to(shape.dtype)

    def images(*size: int) -> Tensor:
        each = drawn(few, *size).contiguous(memory_format=memory)
        return each if few == shape.batch else each[torch.arange(shape.batch) % few].contiguous(memory_format=memory)

    x = images(shape.channels[0], *shape.size)
    weight = drawn(shape.channels[1], shape.channels[0] // shape.groups, *shape.kernel)
    return [x, weight.contiguous(memory_format=memory), images(shape.channels[1], *shape.out_size)]


def _images(shape: ConvShape) -> int:
    return max(1, min(shape.batch, int(TIMED_MACS / max(1, macs(shape)))))


def _seconds(call: Callable[[], Tensor], enough: float) -> float:
    """Return the least time of some calls, after one that warms up; of this thread, whatever others do meanwhile.

    What takes longer than `enough` is not repeated.
    """
    call()
    best, spent = float("inf"), 0.0
    for number in range(1, 1 + MOST_REPEATS):
        began = time.thread_time()
        call()
        taken = time.thread_time() - began
        best, spent = min(best, taken), spent + taken
        if spent > LONGEST or best > enough or (number >= REPEATS and spent > SHORT):
            break
    return best
