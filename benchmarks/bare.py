"""A bare training loop in a process of its own: what the simulation's engines are measured against.

Run as `python -m diastole.benchmarks.bare MODEL EXAMPLES BATCH RATE`.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import environ

import torch
from torch.nn import functional as F

from diastole.benchmarks.errors import BenchmarkError
from diastole.client.environment import SPINS
from diastole.models.dropout import draw_from
from diastole.models.methods.registry import build
from diastole.models.networks.config import ModelConfig
from diastole.models.state import state_of


class Helper:
    """A process that does as many units of work as it is asked for and answers with a line."""

    def __init__(self, command: Sequence[str]) -> None:
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in environ.items() if name not in SPINS} | threads | quiet,
            text=True,
            bufsize=1,
        )

    def ask(self, units: int) -> None:
        """Start `units` of work."""
        if self._process.stdin is not None:
            self._process.stdin.write(f"{units}\n")

    def wait(self) -> str:
        """Wait until the work is done, and return what is said about it.

        Raises `BenchmarkError` if the process has ended instead.
        """
        for line in self._process.stdout or ():
            # Whatever else it says is none of our business.
            if line.startswith("done"):
                return line.removeprefix("done").strip()
        raise BenchmarkError(f"a process of the baseline ended with code {self._process.wait()}")

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextmanager
def helpers(count: int, command: Sequence[str]) -> Iterator[list[Helper]]:
    """Start `count` processes of a Python command; leaving the block ends them."""
    started: list[Helper] = []
    try:
        started.extend(Helper(command) for _ in range(count))
        yield started
    finally:
        for helper in started:
            helper.close()


def side_by_side(running: Sequence[Helper], units: int) -> None:
    """Let each of the processes do its share of `units` at the same time, and wait for all."""
    for number, helper in enumerate(running):
        helper.ask(units * (number + 1) // len(running) - units * number // len(running))
    for helper in running:
        helper.wait()


def main(arguments: Sequence[str]) -> None:
    """For each number read, train that many times from the same weights, and answer with a line."""
    text, examples, batch, rate = arguments
    torch.set_num_threads(1)
    model = ModelConfig.from_json(text)
    module = build(model)
    draw_from(module, torch.Generator())
    first = state_of(module)
    x, y = torch.randn(int(examples), *model.input_shape), torch.randint(model.classes, (int(examples),))
    for line in sys.stdin:
        for _ in range(int(line)):
            module.load_state_dict(first)
            optimiser = torch.optim.SGD(module.parameters(), lr=float(rate))
            order = torch.randperm(len(y))
            for start in range(0, len(y), int(batch)):
                index = order[start : start + int(batch)]
                optimiser.zero_grad()
                F.cross_entropy(module(x[index]), y[index]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
