"""What a device agent costs before it trains anything: the seconds until it is ready, and the memory it then holds."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from diastole.benchmarks.models import TINY_CNN
from diastole.benchmarks.peers import HOST, joined, one_example
from diastole.benchmarks.row import Row
from diastole.client import data
from diastole.models.networks.family import initial_state
from diastole.models.state import schema_hash
from diastole.server.wire.link import GrpcLink

IDLE_SECONDS = 1.0
TORCH = "import sys, torch; print(flush=True); sys.stdin.read()"
LIBRARIES = str(Path(torch.__file__).resolve().parent / "lib")


def rows(repeats: int = 3) -> list[Row]:
    """Measure `diastole join` on one example, against a process that imports torch and does nothing.

    * `agent.start`: seconds from the start of the process until the coordinator could give it a task. The difference to
      the baseline is what the agent takes once torch has loaded; the measuring of its speed is in it.
    * `agent.memory`: megabytes (10^6 bytes) resident while it waits for work.
    * `agent.memory_own`: the same without the pages of torch's libraries, of which more are read once anything is
      computed. The difference is the agent's own.

    Linux only. Raises `BenchmarkError` if the agent does not join.
    """
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "device.npz"
        data.save(shard, one_example(TINY_CNN))
        for _ in range(repeats):
            measured.append((*_agent(shard), *_torch()))
    seconds, memory, own, *baselines = (median(column) for column in zip(*measured, strict=True))
    return [
        Row.of("agent.start", seconds, baselines[0], "s", "lower"),
        Row.of("agent.memory", memory, baselines[1], "MB", "lower"),
        Row.of("agent.memory_own", own, baselines[2], "MB", "lower"),
    ]


def _agent(shard: Path) -> tuple[float, float, float]:
    """Return the seconds until an agent is ready, and the megabytes it holds when it has been for a while."""
    link = GrpcLink(f"{HOST}:0", "benchmark", TINY_CNN, schema_hash(initial_state(TINY_CNN, 0)))
    command = [sys.executable, "-m", "diastole.cli.main", "join", f"{HOST}:{link.port}", "--data", str(shard)]
    began = time.perf_counter()
    with joined(link, 1, command) as process:
        seconds = time.perf_counter() - began
        time.sleep(IDLE_SECONDS)
        return seconds, *_memory(process.pid)


def _torch() -> tuple[float, float, float]:
    """Return the seconds until a process has imported torch, and the megabytes that it then holds."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", TORCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        if process.stdout:
            process.stdout.readline()
        return time.perf_counter() - began, *_memory(process.pid)


def _memory(process: int) -> tuple[float, float]:
    """Return the megabytes that a process holds, and how many of them are no pages of torch's libraries' files."""
    path, everything, libraries = "", 0, 0
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        name, *words = line.split(maxsplit=5)
        if name == "Rss:":
            everything += int(words[0])
            libraries += int(words[0]) if path.startswith(LIBRARIES) else 0
        elif not name.endswith(":"):
            path = words[4] if len(words) == 5 else ""
    return everything * 1024 / 1e6, (everything - libraries) * 1024 / 1e6
