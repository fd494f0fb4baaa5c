"""What a device agent costs before it trains anything: the seconds until it is ready, and the memory it then holds."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from diastole.benchmarks.models import TINY_CNN
from diastole.benchmarks.peers import FULL, HOST, finish, joined, one_example
from diastole.benchmarks.row import Row
from diastole.client import data
from diastole.models.networks.family import initial_state
from diastole.models.state import schema_hash
from diastole.models.task import Task
from diastole.models.training import TrainConfig
from diastole.server.wire.link import GrpcLink

IDLE_SECONDS = 1.0
TORCH = """
import sys, torch
from torch import nn
print(flush=True)
sys.stdin.readline()
layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU()]
net = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 10))
nn.functional.cross_entropy(net(torch.ones(1, 1, 8, 8)), torch.zeros(1, dtype=torch.int64)).backward()
with torch.no_grad():
    for parameter in net.parameters():
        parameter.sub_(0.1 * parameter.grad)
print(flush=True)
sys.stdin.readline()
"""
"""Imports torch; and when it is told to, takes a step of a network like `TINY_CNN`."""

LIBRARIES = str(Path(torch.__file__).resolve().parent / "lib")


def rows(repeats: int = 3) -> list[Row]:
    """Measure `diastole join` on one example, against a process that imports torch and does nothing else.

    * `agent.start`: seconds from the start of the process until the coordinator could give it a task. The difference to
      the baseline is what the agent takes once torch has loaded; the measuring of its speed is in it.
    * `agent.memory`: megabytes (10^6 bytes) resident while it waits for work.
    * `agent.memory_own`: the same without the pages of torch's libraries, of which more are read once anything is
      computed. The difference is the agent's own.
    * `agent.memory_trained`: megabytes resident while it waits again behind its first task. The process it is compared
      with has taken one step of a network like that.

    Linux only. Raises `BenchmarkError` if the agent does not join.
    """
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "device.npz"
        data.save(shard, one_example(TINY_CNN))
        for _ in range(repeats):
            measured.append((*_agent(shard), *_torch()))
    seconds, memory, own, trained, *baselines = (median(column) for column in zip(*measured, strict=True))
    return [
        Row.of("agent.start", seconds, baselines[0], "s", "lower"),
        Row.of("agent.memory", memory, baselines[1], "MB", "lower"),
        Row.of("agent.memory_own", own, baselines[2], "MB", "lower"),
        Row.of("agent.memory_trained", trained, baselines[3], "MB", "lower"),
    ]


def _agent(shard: Path) -> tuple[float, float, float, float]:
    """Return the seconds until an agent is ready, and the megabytes it then holds: all, its own, behind a task."""
    state = initial_state(TINY_CNN, 0)
    link = GrpcLink(f"{HOST}:0", "benchmark", TINY_CNN, schema_hash(state))
    words = ["join", f"{HOST}:{link.port}", "--data", str(shard), "--state", str(shard.parent / "state")]
    command = [sys.executable, "-m", "diastole.cli.main", *words]
    began = time.perf_counter()
    with joined(link, 1, command) as process:
        seconds = time.perf_counter() - began
        time.sleep(IDLE_SECONDS)
        before = _memory(process.pid)
        finish(link, [Task("r1-device", 1, "device", FULL, TrainConfig(), 0)], state)
        time.sleep(IDLE_SECONDS)
        return seconds, *before, _memory(process.pid)[0]


def _torch() -> tuple[float, float, float, float]:
    """Return the seconds until a process has imported torch, and the megabytes it then holds, as `_agent` does."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", TORCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        told, ordered = process.stdout, process.stdin
        if told is None or ordered is None:
            raise AssertionError("pipes were asked for")
        told.readline()
        seconds, before = time.perf_counter() - began, _memory(process.pid)
        ordered.write(b"\n")
        ordered.flush()
        told.readline()
        return seconds, *before, _memory(process.pid)[0]


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
