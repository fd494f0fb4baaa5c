"""How soon a simulation of thousands of devices begins, and the memory it takes.

Run as `python -m diastole.benchmarks.start SECONDS DEVICES COHORT`: SECONDS is when the process was started.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from statistics import median

from diastole.benchmarks.errors import BenchmarkError
from diastole.benchmarks.row import Row

WORKERS = 2
IMAGES, SIZE = 60_000, 28
SHARES = {"large": (0.2, 1.0), "medium": (0.3, 0.5), "small": (0.5, 0.25)}
"""Tiers: the share of the devices, and the width that each of them can just train."""


def rows(devices: int = 10_000, cohort: int = 500, repeats: int = 3) -> list[Row]:
    """Measure a round of the processes engine, with two workers, over devices of three tiers that share 60,000 images.

    * `start.time`: seconds from the start of the process until the first round has begun. Baseline: a process that
      only imports torch.
    * `start.memory`: gigabytes, the peaks of the coordinator and of the workers added up; what they share, which is
      the images above all, counts for each. Baseline: the images.

    Raises `BenchmarkError` if the simulation fails.
    """
    measured = []
    for _ in range(repeats):
        imports, _ = _run("-c", "import torch")
        _, told = _run("-m", "diastole.benchmarks.start", str(time.time()), str(devices), str(cohort))
        measured.append((*json.loads(told), imports))
    seconds, peak, imports = (median(column) for column in zip(*measured, strict=True))
    return [
        Row.of("start.time", seconds, imports, "s", "lower"),
        Row.of("start.memory", peak / 1e9, 4e-9 * IMAGES * SIZE**2, "GB", "lower"),
    ]


def _run(*arguments: str) -> tuple[float, str]:
    """Run Python and return the seconds it took and what it wrote."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        *_, reason = ("", *done.stderr.splitlines())
        raise BenchmarkError(f"the simulation ended with code {done.returncode}: {reason}")
    return time.perf_counter() - began, done.stdout


def main(arguments: Sequence[str]) -> None:
    """Run the round and write, as JSON, the seconds until it began and the bytes."""
    # Here, because the clock already runs, and the process that measures needs none of it.
    import torch

    from diastole.experiments.data.dataset import Dataset
    from diastole.models.seeds import generator
    from diastole.models.training import Examples
    from diastole.server.events import Event, RoundStarted
    from diastole.simulations.devices import make_federation
    from diastole.simulations.simulate import simulate
    from diastole.simulations.simulation import Simulation

    began, devices, cohort = float(arguments[0]), int(arguments[1]), int(arguments[2])
    begun = []

    def note(event: Event) -> None:
        if isinstance(event, RoundStarted):
            begun.append(time.time() - began)

    draws = generator("benchmark")
    train = Examples(torch.randn(IMAGES, 1, SIZE, SIZE, generator=draws), torch.randint(10, (IMAGES,), generator=draws))
    document = {
        "engine": "processes",
        "plan": "fast",
        "workers": WORKERS,
        "data": {"proxy": 0},
        "partition": {"kind": "iid"},
        "tiers": {name: {"devices": round(share * devices), "width": width} for name, (share, width) in SHARES.items()},
        "rounds": {"count": 1, "cohort": cohort},
    }
    dataset = Dataset("random", train, train.subset(torch.arange(1000)), 10, None)
    simulate(make_federation(Simulation.parse(document, "start"), dataset), (note,))
    kilobytes = getrusage(RUSAGE_SELF).ru_maxrss + WORKERS * getrusage(RUSAGE_CHILDREN).ru_maxrss
    sys.stdout.write(json.dumps([begun[0], 1024 * kilobytes]))


if __name__ == "__main__":
    main(sys.argv[1:])
