"""What answering one example takes: multiply-accumulates, counted; seconds, measured."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diastole.models.cost import forward_pass
from diastole.models.seeds import reference_plan

LEAST, MOST = 15, 400
"""Calls of a measurement."""


def forward_macs(module: nn.Module, x: Tensor) -> int:
    """Return the multiply-accumulates of answering `x`: of convolutions and matrix products alone."""
    return forward_pass(module, x)[0] // 2


def latency(call: Callable[[Tensor], Any], x: Tensor, seconds: float = 0.15) -> float:
    """Return the median seconds of a call with one thread, over about `seconds` of calls.

    They are seconds of the processor: what the call takes where nothing else runs. On a busy machine a clock on the
    wall would count the turns of other programs.
    """
    with reference_plan(), torch.inference_mode():
        for _ in range(3):
            call(x)
        found, start = list[float](), time.process_time()
        while len(found) < LEAST or (len(found) < MOST and time.process_time() - start < seconds):
            began = time.process_time()
            call(x)
            found.append(time.process_time() - began)
    return statistics.median(found)
