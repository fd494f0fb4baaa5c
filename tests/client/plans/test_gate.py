"""No convolver is used that is wrong, crashes or hangs."""

import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diastole.client.kernels.convolver import ConvShape
from diastole.client.plans.convolvers import ChannelsFirst, Slice, Stock, broken, candidates
from diastole.client.plans.gate import DIRECTIONS, Job, error, probe
from diastole.client.plans.prober import tried
from diastole.client.plans.taps import Taps

SHAPE = ConvShape(4, (5, 6), (8, 7), (3, 3), (1, 1), (1, 1), channels_last=True)


@dataclass(frozen=True, slots=True)
class Wrong(Stock):
    """Gives a weight gradient that forgets the last image."""

    name: str = "wrong"

    def grad_weight(self, gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
        fewer = replace(shape, batch=len(x) - 1)
        return Stock.grad_weight(self, gradient[:-1], x[:-1], fewer)


@dataclass(frozen=True, slots=True)
class Crashing(Stock):
    """Ends as a write outside a buffer does."""

    name: str = "crashing"

    def forward(self, x: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        os.kill(os.getpid(), signal.SIGSEGV)
        return torch.empty(())


@dataclass(frozen=True, slots=True)
class Hanging(Stock):
    """Never comes back."""

    name: str = "hanging"

    def grad_input(self, gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        threading.Event().wait()
        return gradient


@dataclass(frozen=True, slots=True)
class Raising(Stock):
    """Says that it cannot."""

    name: str = "raising"

    def forward(self, x: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        raise RuntimeError("no")


@dataclass(frozen=True, slots=True)
class Doubled(Stock):
    """Right for what it is asked first, and for nothing else: leaves not-a-number behind."""

    name: str = "not finite"

    def forward(self, x: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        return Stock.forward(self, x, weight, shape) * float("nan")


def jobs(*kinds: type[Stock]) -> list[Job]:
    return [Job(kind().name, SHAPE) for kind in kinds]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let convolvers of these tests be found by name."""
    ways = {kind().name: kind() for kind in (Stock, Wrong, Crashing, Hanging, Raising, Doubled)}
    monkeypatch.setattr("diastole.client.plans.gate.convolver", ways.__getitem__)


def children() -> set[str]:
    """Return the processes that this one has started, and that have not been waited for."""
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


@pytest.mark.usefixtures("known")
def test_a_process_tries_what_may_be_broken() -> None:
    order = (Crashing, Stock, Wrong, Raising, Doubled, Stock)
    crashing, stock, wrong, raising, spoilt, last = tried(probe, jobs(*order), 600.0, patience=60.0)
    assert crashing == raising == {}
    assert set(stock) == set(last) == set(DIRECTIONS)
    assert set(wrong) == {"forward", "grad_input"}
    assert set(spoilt) == {"grad_input", "grad_weight"}
    assert all(seconds > 0 for seconds in stock.values())


@pytest.mark.usefixtures("known")
def test_a_process_that_hangs_is_waited_for_no_longer_than_one_trial_may_take() -> None:
    before, began = children(), time.monotonic()
    assert tried(probe, jobs(Hanging), 600.0, patience=0.2) == [{}]
    assert time.monotonic() - began < 60
    assert children() == before


@pytest.mark.usefixtures("known")
def test_what_there_is_no_time_for_is_not_used() -> None:
    before = children()
    assert tried(probe, jobs(Stock, Stock), 0.0) == [{}, {}]
    assert children() == before


SHAPES = st.builds(
    lambda n, into, out, size, kernel, stride, padding, first: ConvShape(
        n, (into, out), size, kernel, stride, (min(padding, kernel[0] - 1), min(padding, kernel[1] - 1)), 1,
        channels_last=not first,
    ),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 5),
    st.tuples(st.integers(3, 8), st.integers(3, 8)),
    st.sampled_from([(1, 1), (3, 3), (3, 2)]),
    st.sampled_from([(1, 1), (2, 2), (2, 1)]),
    st.integers(0, 1),
    st.booleans(),
)  # fmt: skip


@settings(max_examples=25)
@given(SHAPES)
def test_ways_that_need_no_compiler_are_right(shape: ConvShape) -> None:
    for way in (Stock(), ChannelsFirst(), Slice()):
        if way.takes(shape):
            assert max(error(way, shape, direction) for direction in DIRECTIONS) < 1e-5


@settings(max_examples=8)
@given(st.integers(2, 5), st.integers(3, 7), st.sampled_from([1, 3, 5]), st.integers(1, 2))
def test_taps_are_a_convolution(channels: int, size: int, kernel: int, stride: int) -> None:
    shape = ConvShape(
        2, (channels,) * 2, (size, size + 1), (kernel,) * 2, (stride,) * 2, (kernel // 2,) * 2, channels, torch.float64
    )
    x, weight = torch.randn(2, channels, size, size + 1).double(), torch.randn(channels, 1, kernel, kernel).double()
    expected = Stock().forward(x, weight, shape)
    torch.testing.assert_close(Taps().forward(x, weight, shape), expected)
    torch.testing.assert_close(Taps().grad_input(expected, weight, shape), Stock().grad_input(expected, weight, shape))
    torch.testing.assert_close(Taps().grad_weight(expected, x, shape), Stock().grad_weight(expected, x, shape))


@pytest.mark.parametrize(
    ("kernel", "stride", "channels", "last", "denied"),
    [(1, 2, 8, True, True), (1, 2, 16, True, False), (1, 1, 8, True, False), (3, 2, 8, True, False), (1, 2, 8, 0, 0)],
)  # fmt: skip
def test_what_upstream_knows_to_be_broken_is_never_tried(
    kernel: int, stride: int, channels: int, last: bool, denied: bool
) -> None:
    shape = ConvShape(2, (channels, 8), (8, 8), (kernel,) * 2, (stride,) * 2, (0, 0), channels_last=last)
    assert broken(shape) == denied
    assert ("stock" in candidates(shape)) == (not denied)
    assert candidates(shape)
