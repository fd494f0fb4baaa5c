"""What a device agent costs before it trains anything: the seconds until it is ready, and the memory it then holds."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import getpagesize
from statistics import median

from diastole.benchmarks.models import TINY_CNN
from diastole.benchmarks.peers import HOST, joined, one_example
from diastole.benchmarks.row import Row
from diastole.client import data
from diastole.models.networks.family import initial_state
from diastole.models.state import schema_hash
from diastole.server.wire.link import GrpcLink

IDLE_SECONDS = 1.0
TORCH = "import torch; print(open('/proc/self/statm').read().split()[1], flush=True)"


def rows(repeats: int = 3) -> list[Row]:
    """Measure `diastole join` on one example, against a process that imports torch and does nothing.

    * `agent.start`: seconds from the start of the process until the coordinator could give it a task. The difference to
      the baseline is what the agent takes once torch has loaded; the measuring of its speed is in it.
    * `agent.memory`: megabytes (10^6 bytes) resident while it waits for work. The difference is the agent's own.

    Linux only. Raises `BenchmarkError` if the agent does not join.
    """
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "device.npz"
        data.save(shard, one_example(TINY_CNN))
        for _ in range(repeats):
            measured.append((*_agent(shard), *_torch()))
    seconds, memory, imports, torch = (median(column) for column in zip(*measured, strict=True))
    return [
        Row.of("agent.start", seconds, imports, "s", "lower"),
        Row.of("agent.memory", memory, torch, "MB", "lower"),
    ]


def _agent(shard: Path) -> tuple[float, float]:
    """Return the seconds until an agent is ready, and the megabytes it holds when it has been for a while."""
    link = GrpcLink(f"{HOST}:0", "benchmark", TINY_CNN, schema_hash(initial_state(TINY_CNN, 0)))
    command = [sys.executable, "-m", "diastole.cli.main", "join", f"{HOST}:{link.port}", "--data", str(shard)]
    began = time.perf_counter()
    with joined(link, 1, command) as process:
        seconds = time.perf_counter() - began
        time.sleep(IDLE_SECONDS)
        return seconds, _megabytes(Path(f"/proc/{process.pid}/statm").read_text().split()[1])


def _torch() -> tuple[float, float]:
    """Return the seconds until a process has imported torch, and the megabytes that it then holds."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", TORCH], stdout=subprocess.PIPE, text=True) as process:
        told = process.stdout.readline() if process.stdout else ""
        return time.perf_counter() - began, _megabytes(told)


def _megabytes(pages: str) -> float:
    return int(pages) * getpagesize() / 1e6
