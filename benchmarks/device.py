"""Training steps of a device under its plan, beside those of PyTorch as it is installed.

Run as `python -m diastole.benchmarks.device MODEL [PLAN]`: training in a process of its own, without a plan by plain
PyTorch, in an environment and with an allocator that nobody has changed.
"""

import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from diastole.benchmarks.bare import Helper, helpers
from diastole.benchmarks.errors import BenchmarkError
from diastole.benchmarks.row import Row
from diastole.client.plans.apply import apply, arrange, running
from diastole.client.plans.plan import Plan
from diastole.client.plans.planned import searched
from diastole.client.plans.search import why
from diastole.models.methods.registry import build
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.training import Examples, TrainConfig, fit

BATCH, TURN = 32, 0.1
"""Examples in a step, and about how many seconds a process trains before the other one has its turn."""
SEARCH_SECONDS = 3.0
TRAINING = TrainConfig(batch_size=BATCH, learning_rate=0.01)


def _resnet(share: float, size: int = 32) -> ModelConfig:
    widths = tuple(int(share * width) for width in (64, 128, 256, 512))
    return ModelConfig("resnet", (3, size, size), 10, widths, blocks=(2, 2, 2, 2))


NETWORKS = {
    "cnn28": ModelConfig("cnn", (1, 28, 28), 10, (32, 64)),
    "cnn32_quarter": ModelConfig("cnn", (3, 32, 32), 10, (8, 16)),
    "resnet18_quarter": _resnet(0.25),
    "resnet18_half": _resnet(0.5),
    "depthwise7": ModelConfig("convnext", (3, 32, 32), 10, (32, 64, 128), blocks=(2, 2, 2), expand=4),
    "mobilenet7": ModelConfig("mobilenet", (3, 32, 32), 10, (16, 32, 64), blocks=(2, 2, 2)),
    "resnet18_eighth_64px": _resnet(0.125, 64),
}


def rows(networks: dict[str, ModelConfig] = NETWORKS, repeats: int = 5) -> list[Row]:
    """Measure each network: steps a second of one thread, batches of 32, SGD with momentum.

    * `device.NETWORK`: under the plan that a search finds now. Baseline: PyTorch as installed. Both count the time of
      their own thread, and take turns of as many steps as take a tenth of a second; the least of all turns is reported.
    * `device.search`: seconds of the longest search. Baseline: the three seconds that one may take.

    The notes say what was measured and chosen. Raises `BenchmarkError` if a process ends.
    """
    measured, longest = [], 0.0
    for name, model in networks.items():
        found = searched(model, spec_of(1.0), TRAINING)
        longest = max(longest, found.seconds)
        with (
            helpers(1, ["-m", "diastole.benchmarks.device", model.to_json(), found.plan.to_json()]) as planned,
            helpers(1, ["-m", "diastole.benchmarks.device", model.to_json()]) as stock,
        ):
            steps = 1 + int(TURN / _seconds(stock[0], 1))
            pairs = [[_seconds(helper, steps) for helper in (*planned, *stock)] for _ in range(repeats)]
        ours, theirs = (min(column) for column in zip(*pairs, strict=True))
        notes = [f"{found.plan}; found in {found.seconds:.1f} s", *why(found)]
        measured.append(Row.of(f"device.{name}", 1 / ours, 1 / theirs, "steps/s", "higher", notes))
    return [*measured, Row.of("device.search", longest, SEARCH_SECONDS, "s", "lower")]


def _seconds(helper: Helper, steps: int) -> float:
    """Return the seconds of one of so many steps."""
    helper.ask(steps)
    answer = helper.wait()
    try:
        return float(answer)
    except ValueError:
        raise BenchmarkError(f"a process that trains said {answer!r}") from None


def main(arguments: Sequence[str]) -> None:
    """For each number read, take that many steps and answer with the seconds of one."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = ModelConfig.from_json(arguments[0])
    batch = Examples(torch.randn(BATCH, *model.input_shape), torch.arange(BATCH) % model.classes)
    take = _planned(model, batch, Plan.from_json(arguments[1])) if arguments[1:] else _stock(model, batch)
    take(1)
    for line in sys.stdin:
        began = time.thread_time()
        take(int(line))
        sys.stdout.write(f"done {(time.thread_time() - began) / int(line)}\n")
        sys.stdout.flush()


def _planned(model: ModelConfig, batch: Examples, plan: Plan) -> Callable[[int], None]:
    module = build(model)
    apply(module, plan)
    arrange(module)

    def take(steps: int) -> None:
        # As a device has it, so that every step has a batch of its own.
        every = batch.subset(torch.arange(BATCH * steps) % BATCH)
        with running(plan):
            fit(module, every, TRAINING, torch.Generator())

    return take


def _stock(model: ModelConfig, batch: Examples) -> Callable[[int], None]:
    module = build(model)
    optimiser = torch.optim.SGD(module.parameters(), lr=TRAINING.learning_rate, momentum=TRAINING.momentum)

    def take(steps: int) -> None:
        for _ in range(steps):
            index = torch.randperm(BATCH)
            optimiser.zero_grad()
            F.cross_entropy(module(batch.x[index]), batch.y[index]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    return take


if __name__ == "__main__":
    main(sys.argv[1:])
