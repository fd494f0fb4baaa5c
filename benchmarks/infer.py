"""How fast a stream of overlapping windows is answered."""

from itertools import count

import torch
from torch import Tensor, nn

from diastole.benchmarks.errors import BenchmarkError
from diastole.benchmarks.row import Row, compare
from diastole.client.streaming import Stream
from diastole.models.seeds import generator, reference_plan

CHANNELS, LENGTH, OVERLAPS = 12, 2048, (0.5, 0.75, 0.875, 0.9375)
"""About ten seconds of a twelve-lead electrocardiogram."""


def rows(length: int = LENGTH, repeats: int = 20) -> list[Row]:
    """Measure `infer.stream.OVERLAP`: windows a second, of which each shares that percentage with the last.

    The model has three blocks of a 7-wide convolution with 64, 128 and 128 channels, batch normalisation, ReLU and
    pooling. Baseline: the plain model on every window. One thread. Raises `BenchmarkError` if outputs differ.
    """
    return [_row(overlap, length, repeats) for overlap in OVERLAPS]


def _row(overlap: float, length: int, repeats: int) -> Row:
    hop = round(length * (1 - overlap))
    module = _model(length)
    stream = Stream(module, length, hop)
    signal = torch.randn(CHANNELS, length + (repeats + 2) * hop, generator=generator("stream"))
    outputs, plain = list[Tensor](), list[Tensor]()
    mine, its = count(), count()

    def streamed() -> None:
        at = length + next(mine) * hop
        outputs.extend(stream.push(signal[:, at : at + hop]))

    def whole() -> None:
        at = (next(its) + 1) * hop
        with torch.inference_mode():
            plain.append(module(signal[None, :, at : at + length]))

    with reference_plan():
        stream.push(signal[:, :length])
        value, baseline = compare(streamed, whole, repeats)
    if not torch.allclose(torch.cat(outputs), torch.cat(plain), rtol=1e-3, atol=1e-4):
        raise BenchmarkError("a stream's outputs are not those of the plain model")
    return Row.of(f"infer.stream.{100 * overlap:g}", 1 / value, 1 / baseline, "windows/s", "higher")


def _model(length: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers, inside = list[nn.Module](), CHANNELS
        for width in (64, 128, 128):
            layers += [nn.Conv1d(inside, width, 7, padding=3), nn.BatchNorm1d(width), nn.ReLU(), nn.MaxPool1d(2)]
            inside = width
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inside * (length >> 3), 5)).eval()
