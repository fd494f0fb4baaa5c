"""What the fast plan of today gains over the one that simulations had before plans were measured."""

import time
from collections.abc import Sequence

import torch
from torch import nn

from diastole.benchmarks.row import Row
from diastole.client.plans.apply import apply, arrange, running
from diastole.client.plans.plan import REFERENCE, Plan
from diastole.client.plans.planned import plan_for
from diastole.client.plans.pools import accelerate
from diastole.models.allocator import keep_pages
from diastole.models.methods.registry import build
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.training import Examples, TrainConfig, fit

PFL = ModelConfig("simple-cnn", (3, 32, 32), 10, (32, 64, 128))
CIFAR10, DIGITS = ModelConfig("cnn", (3, 32, 32), 10, (32, 64, 64)), ModelConfig("cnn", (1, 8, 8), 10, (32, 64))
SLOW = TrainConfig(learning_rate=0.02)

Case = tuple[str, ModelConfig, float, int, TrainConfig]
CASES: tuple[Case, ...] = (
    ("pfl-cifar10", PFL, 1.0, 50, TrainConfig(batch_size=10, momentum=0.0)),
    *[("compare-cifar10", CIFAR10, width, 64, SLOW) for width in (1.0, 0.5, 0.25)],
    *[("compare-digits", DIGITS, width, 64, SLOW) for width in (1.0, 0.5, 0.25)],
)
"""Examples (`simulations/examples`): name, network, width of the sub-model, examples of a device, training."""


def rows(cases: Sequence[Case] = CASES, repeats: int = 14) -> list[Row]:
    """Measure `simulation.fast.EXAMPLE.WIDTH`: trainings a second of one thread under the plan that is found.

    Baseline: the same under an allocator that keeps its pages and a channels-first 2x2 pooling that vectorises, which
    was all of `fast` once. Both count the time of their own thread; the least of all turns is reported.
    """
    keep_pages()
    found = []
    for name, model, width, count, training in cases:
        plan = plan_for("fast", model, spec_of(width), training)
        now, before = build(model, spec_of(width)), build(model, spec_of(width))
        apply(now, plan)
        arrange(now)
        accelerate(before)
        examples = Examples(torch.randn(count, *model.input_shape), torch.arange(count) % model.classes)
        pairs = [
            [_seconds(module, how, examples, training) for module, how in ((now, plan), (before, REFERENCE))]
            for _ in range(1 + repeats)
        ][1:]
        ours, theirs = (min(column) for column in zip(*pairs, strict=True))
        row = f"simulation.fast.{name}.{width:g}"
        found.append(Row.of(row, 1 / ours, 1 / theirs, "trainings/s", "higher", [str(plan)]))
    return found


def _seconds(module: nn.Module, plan: Plan, examples: Examples, training: TrainConfig) -> float:
    """Return the seconds of one training."""
    with running(plan):
        began = time.thread_time()
        fit(module, examples, training, torch.Generator())
        return time.thread_time() - began
