"""Choosing a convolver for each convolution and direction, by what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from diastole.client.apart import can_fork
from diastole.client.kernels.convolver import ConvShape
from diastole.client.plans.convolvers import STOCK, candidates, macs
from diastole.client.plans.gate import Job, probe
from diastole.client.plans.plan import Layer
from diastole.client.plans.prober import tried
from diastole.client.plans.trace import Use

MARGIN = 0.95
"""What is not PyTorch's own must take at most this share of its time."""

Times = Mapping[str, Mapping[str, float]]
"""Seconds by direction and convolver; one that is not there was not right, one of infinity was not timed."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a convolution is to be computed, and what was measured."""

    layer: Layer
    shape: ConvShape
    times: Times


def choose(uses: Sequence[Use], dtype: torch.dtype, seconds: float) -> list[Choice] | None:
    """Return a choice for every convolution, or None if one of them cannot be computed in channels-last memory.

    Every way is checked first, those of the costliest shape before others; then ways are timed where there are several,
    as far as `seconds` for everything go.
    """
    if not can_fork():
        return None if uses else []
    asked = {use: (replace(use.shape, dtype=dtype), _directions(use)) for use in uses}
    shapes = sorted(set(asked.values()), key=lambda each: (-macs(each[0]), str(each)))
    names = {each: candidates(each[0]) for each in shapes}
    jobs = [Job(name, *each, timed=False) for each in shapes for name in names[each]]
    # PyTorch's own last: where it is slow, once is enough.
    jobs += [Job(name, *each, check=False) for each in shapes if len(names[each]) > 1 for name in reversed(names[each])]
    times: dict[tuple[ConvShape, tuple[str, ...]], dict[str, dict[str, float]]] = {each: {} for each in shapes}
    for job, found in zip(jobs, tried(probe, jobs, seconds), strict=True):
        known = times[job.shape, job.directions]
        for direction, taken in found.items():
            if job.check or job.convolver in known.get(direction, {}):
                known.setdefault(direction, {})[job.convolver] = taken
    choices = []
    for use, (shape, directions) in asked.items():
        measured = times[shape, directions]
        if len(measured) < len(directions):
            return None
        choices.append(Choice(Layer(use.path, **{name: best(measured[name]) for name in directions}), shape, measured))
    return choices


def best(times: Mapping[str, float]) -> str:
    """Return the convolver that takes the least time; PyTorch's own if none is clearly faster."""
    fastest = min(times, key=times.__getitem__)
    return STOCK if STOCK in times and not times[fastest] <= MARGIN * times[STOCK] < float("inf") else fastest


def _directions(use: Use) -> tuple[str, ...]:
    return ("forward", *(["grad_input"] if use.grad_input else []), *(["grad_weight"] if use.grad_weight else []))
