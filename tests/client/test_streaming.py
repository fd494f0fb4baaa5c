"""Streams of overlapping windows, against the plain model on every window."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diastole.client.streaming import Stream
from diastole.models.dropout import Dropout
from diastole.models.errors import ModelError
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network
from diastole.models.seeds import generator

CHAIN = nn.Sequential(
    nn.Conv1d(3, 8, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten()
)


def windows(signal: Tensor, length: int, hop: int) -> list[Tensor]:
    return [signal[None, :, at : at + length] for at in range(0, signal.shape[-1] - length + 1, hop)]


@st.composite
def chains(draw: st.DrawFn) -> tuple[nn.Sequential, int]:
    """Return a chain of layers on three channels, and the product of its strides."""
    layers, channels, strides = list[nn.Module](), 3, 1
    for _ in range(draw(st.integers(1, 4))):
        stride = draw(st.sampled_from([1, 1, 2]))
        kind = draw(st.sampled_from(["conv", "depthwise", "max", "average", "norm", "relu", "dropout"]))
        if kind in ("conv", "depthwise") or not layers:
            kernel, dilation = draw(st.sampled_from([1, 3, 4, 5])), draw(st.sampled_from([1, 2]))
            padding, wide = draw(st.integers(0, 3)), 4 if kind == "conv" else channels
            groups = channels if kind == "depthwise" else 1
            layers.append(nn.Conv1d(channels, wide, kernel, stride, padding, dilation, groups))
            channels, strides = wide, strides * stride
        elif kind == "max":
            layers.append(nn.MaxPool1d(draw(st.integers(2, 3)), stride, draw(st.integers(0, 1))))
            strides *= stride
        elif kind == "average":
            layers.append(nn.AvgPool1d(draw(st.integers(2, 3)), stride, draw(st.integers(0, 1))))
            strides *= stride
        elif kind == "norm":
            norm = nn.BatchNorm1d(channels)
            torch.nn.init.uniform_(norm.running_mean)
            layers.append(draw(st.sampled_from([norm, nn.GroupNorm(1, channels)])))
        else:
            layers.append(nn.ReLU() if kind == "relu" else Dropout(0.5))
    return nn.Sequential(nn.Conv1d(3, 3, 3, padding=1), *layers), strides


@settings(max_examples=10, deadline=None)
@given(chains(), st.integers(1, 3), st.integers(0, 1 << 30))
def test_every_window_has_the_plain_models_output(chain: tuple[nn.Sequential, int], hops: int, seed: int) -> None:
    module, strides = chain
    hop, length = hops * strides, 64
    signal = torch.randn(3, length + 6 * hop + 1, generator=generator(seed))
    stream, found = Stream(module, length, hop), list[Tensor]()
    # However the samples come in.
    for part in signal.split(17, -1):
        found += stream.push(part)
    expected = [module(window) for window in windows(signal, length, hop)]
    assert len(found) == len(expected)
    for mine, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)
    assert stream.deviation() < 1e-4


@pytest.mark.parametrize(("hop", "share"), [(2, 0.125), (16, 0.344), (64, 1)])
def test_the_share_that_is_computed_falls_with_the_hop(hop: int, share: float) -> None:
    stream = Stream(CHAIN, 64, hop)
    stream.push(torch.randn(3, 64))
    kept = [layer.held for layer in stream._layers]
    assert stream.share == pytest.approx(share, abs=0.001)
    # What is said to be kept is not looked at again: other values there stay, moved.
    moved = hop
    for layer, (_, first, last) in zip(stream._layers, stream._plan, strict=True):
        moved //= layer.reach.stride
        if layer.held is not None:
            layer.held = layer.held.clone()
            layer.held[..., first + moved : last + moved] = 100.0
    stream.push(torch.randn(3, hop))
    marked = sum(int((layer.held[0, 0] == 100).sum()) for layer in stream._layers if layer.held is not None)
    assert marked / sum(each.shape[-1] for each in kept if each is not None) == pytest.approx(1 - stream.share)


def test_group_norm_is_exact_by_computing_all_behind_it_or_approximate_and_measured() -> None:
    model = ModelConfig("cnn", (3, 64), 4, (8, 16), group=4)
    module = network(model)
    signal = torch.randn(3, 200, generator=generator("stream"))
    exact, near = Stream(module, 64, 8), Stream(module, 64, 8, approximate=True)
    assert near.share < 0.5 < exact.share
    expected = [module(window) for window in windows(signal, 64, 8)]
    for mine, plain in zip(exact.push(signal), expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)
    last, plain = near.push(signal)[-1], expected[-1]
    assert near.deviation() == pytest.approx(((last - plain).norm() / plain.norm()).item(), rel=1e-3)
    assert 0 < near.deviation() < 0.5


def test_what_cannot_be_streamed_is_one_line() -> None:
    with pytest.raises(ModelError, match="a LSTM does not begin with one-dimensional convolutions"):
        Stream(nn.LSTM(3, 4), 64, 8)
    with pytest.raises(ModelError, match=r"hop 3: .* strides by 2 in all; a multiple is accepted"):
        Stream(CHAIN, 64, 3)
    with pytest.raises(ModelError, match="hop 65: a whole number from 1 to the window's length, 64"):
        Stream(CHAIN, 64, 65)
    with pytest.raises(ModelError, match="has not had a whole window"):
        Stream(CHAIN, 64, 2).deviation()
