"""How fast devices are simulated on a GPU."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from diastole.benchmarks.errors import BenchmarkError
from diastole.benchmarks.row import Row
from diastole.models.crossing import crossing, send_all
from diastole.models.methods.registry import make_method
from diastole.models.methods.widths.width import width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.seeds import generator, reference_plan
from diastole.models.training import Examples, TrainConfig
from diastole.proto.profile import Profile
from diastole.server.coordinator import Coordinator
from diastole.server.events import Event, RoundClosed
from diastole.server.settings import RoundConfig, Settings
from diastole.simulations.cards import home
from diastole.simulations.devices import Device
from diastole.simulations.engines.arithmetic import Precision, exactness
from diastole.simulations.engines.base import SimulatedLink
from diastole.simulations.engines.batched import BatchedLink
from diastole.simulations.engines.loop import LoopLink
from diastole.simulations.engines.processes import ProcessLink

CIFAR10 = "DIASTOLE_CIFAR10"
"""The environment variable that says where CIFAR-10 is, as `--data` does."""

EXAMPLE = Path("simulations") / "examples" / "pfl-cifar10.toml"


@dataclass(frozen=True, slots=True)
class Workload:
    """A federation on random images.

    Attributes:
        model: the global model.
        method: makes the sub-models.
        tiers: devices, by the width that just fits their memory.
        cohort: devices a round.
        examples: each device holds.
        training: how devices train.
        rounds: that are measured, behind as many that are not.

    """

    model: ModelConfig
    method: str
    tiers: Mapping[float, int]
    cohort: int
    examples: int
    training: TrainConfig
    rounds: int

    def devices(self) -> dict[str, Device]:
        """Return the devices."""
        draws, found = generator("benchmark"), dict[str, Device]()
        for width, count in self.tiers.items():
            memory = int(1.02 * width_cost(self.model, width, self.training).memory)
            for _ in range(count):
                x = torch.randn(self.examples, *self.model.input_shape, generator=draws)
                y = torch.randint(self.model.classes, (self.examples,), generator=draws)
                found[f"device-{len(found):05d}"] = Device(Profile(f"{width:g}", len(y), memory), Examples(x, y))
        return found


PFL = Workload(
    ModelConfig("simple-cnn", (3, 32, 32), 10, (32, 64, 128)),
    "width",
    {1.0: 1000},
    50,
    50,
    TrainConfig(batch_size=10, learning_rate=0.1, momentum=0.0),
    rounds=20,
)
"""The CIFAR-10 benchmark of pfl-research (Granqvist et al., NeurIPS 2024): its users, cohort, batches and rate."""

TIERS = Workload(
    ModelConfig("resnet", (3, 32, 32), 10, (64, 128, 256, 512), blocks=(2, 2, 2, 2)),
    "diastole",
    {1.0: 20, 0.5: 30, 0.25: 50},
    20,
    500,
    TrainConfig(batch_size=32, learning_rate=0.05),
    rounds=3,
)
"""ResNet-18 with GroupNorm in three tiers."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One round of a workload.

    Attributes:
        seconds: the median.
        share: the seconds of all measured rounds over those of their captured steps; 0 if none are captured.
        crossings: transfers from and to the card.

    """

    seconds: float
    share: float
    crossings: float


def rows(
    device: str = "cuda",
    pfl: Workload = PFL,
    tiers: Workload = TIERS,
    whole: bool = True,
    precision: Precision = "tf32",
) -> list[Row]:
    """Measure simulations on a card.

    * `gpu.pfl`: seconds of the whole CIFAR-10 benchmark of pfl-research, 1,500 rounds with their evaluations, from the
      start of the process to the written report. Baseline: what the training of as many rounds would take one device
      after another on the same card, from two rounds. The images are those that `DIASTOLE_CIFAR10` names, or random.
    * `gpu.diastole`: seconds of a round of `tiers`. Baseline: the processes engine, one worker a core.
    * `gpu.alone`: the same. Baseline: one device after another on the same card.
    * `gpu.overhead`: milliseconds of a round of `pfl`, without evaluation. Baseline: its captured steps alone.
    * `gpu.overhead_tiers`: the same of `tiers`.

    Args:
        device: as `[simulation] device`.
        pfl: the first federation.
        tiers: the second one.
        whole: whether `gpu.pfl` is measured.
        precision: of products and convolutions.

    Raises `BenchmarkError` if the card is not there.

    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BenchmarkError("gpu: this machine, or this build of torch, has no GPU")
    with exactness(precision, home(device)):
        found = [_whole(device, precision, _alone(pfl, device))] if whole else []
        small, large = _batched(pfl, device, precision), _batched(tiers, device, precision)
        alone, cores = _alone(tiers, device), _processes(tiers)
    card = f"{_card(device)}, {precision}"
    return [
        *found,
        Row.of("gpu.diastole", large.seconds, cores, "s", "lower", (card, f"processes: {os.cpu_count()} workers")),
        Row.of("gpu.alone", large.seconds, alone, "s", "lower", (card,)),
        _overhead("gpu.overhead", small, card),
        _overhead("gpu.overhead_tiers", large, card),
    ]


def _overhead(name: str, measured: Measured, card: str) -> Row:
    crossings = f"{measured.crossings:.3g} transfers a round"
    value = 1e3 * measured.seconds
    return Row.of(name, value, value / measured.share, "ms", "lower", (card, crossings))


def _batched(workload: Workload, device: str, precision: Precision) -> Measured:
    devices = workload.devices()
    link = BatchedLink(workload.model, devices, device=device, precision=precision, like_card=True)
    seen = list[tuple[float, dict[int, int]]]()

    def note(event: Event) -> None:
        if isinstance(event, RoundClosed):
            taken = {id(steps): steps.taken for card in link.cards for each in card.captured.values() for steps in each}
            seen.append((event.wall_seconds, taken))

    crossing.fetched = crossing.sent = 0
    with closing(link), reference_plan():
        _run(workload, link, device, 2 * workload.rounds, note)
        every = {id(steps): steps for card in link.cards for each in card.captured.values() for steps in each}
        times = {name: link.cards[0].seconds(steps, 20) for name, steps in every.items()}
    walls, steps = list[float](), list[float]()
    for (_, before), (wall, taken) in zip(seen[workload.rounds - 1 :], seen[workload.rounds :], strict=False):
        # A round in which steps were captured is not like later ones.
        if before.keys() == taken.keys():
            walls.append(wall)
            steps.append(sum((taken[name] - before[name]) * times[name] for name in taken))
    if not walls:
        raise BenchmarkError("gpu: steps were captured in every round; measure more rounds")
    crossings = (crossing.fetched + crossing.sent) / len(seen)
    return Measured(median(walls), sum(walls) / sum(steps), crossings)


def _alone(workload: Workload, device: str) -> float:
    """Return the seconds of a round in which one device is trained after another on the card."""
    with closing(LoopLink(workload.model, workload.devices(), device=device)) as link:
        return _second(workload, link, device)


def _processes(workload: Workload) -> float:
    """Return the seconds of a round of the processes engine."""
    sizes = make_method(workload.method, workload.model, tuple(workload.tiers), workload.training).offers()
    with closing(ProcessLink(workload.model, workload.devices(), sizes, workload.training)) as link:
        return _second(workload, link, "cpu")


def _second(workload: Workload, link: SimulatedLink, device: str) -> float:
    """Return the seconds of a second round: the first one loads libraries, and touches memory for the first time."""
    walls = list[float]()

    def note(event: Event) -> None:
        if isinstance(event, RoundClosed):
            walls.append(event.wall_seconds)

    _run(workload, link, device, 2, note)
    return walls[-1]


def _run(workload: Workload, link: SimulatedLink, device: str, rounds: int, note: Callable[[Event], None]) -> None:
    """Run rounds of a workload. Raises `BenchmarkError` if not every training comes to an update."""
    settings = Settings(workload.model, workload.training, RoundConfig(rounds, workload.cohort), seed=0)
    method = make_method(workload.method, workload.model, tuple(workload.tiers), workload.training)
    state = send_all(method.initial(0), home(device))
    coordinator = Coordinator(settings, method, link, state, observers=[note])
    coordinator.run()
    if any(closed.updates != workload.cohort for closed in coordinator.closed):
        raise BenchmarkError("gpu: not every training came to an update")


def _whole(device: str, precision: Precision, alone: float) -> Row:
    """Measure the whole benchmark, in a process of its own, by the command that a user types."""
    rounds, notes = 1500, [f"{_card(device)}, {precision}"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        data = os.environ.get(CIFAR10, "")
        if not data:
            data = str(_random_images(folder / "images.npz"))
            notes.append(f"random images; set {CIFAR10} to where CIFAR-10 is, as for --data")
        settings = ("engine=batched", f"device={device}", f"precision={precision}", f"rounds.count={rounds}")
        command = [sys.executable, "-m", "diastole.cli.main", "simulate", _example(), "--data", data]
        command += ["--out", str(folder / "report"), *(word for each in settings for word in ("--set", each))]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise BenchmarkError(f"gpu.pfl: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
    notes += [line.strip() for line in done.stdout.splitlines() if "accuracy" in line or "whole" in line][:3]
    return Row.of("gpu.pfl", seconds, alone * rounds, "s", "lower", notes)


def _example() -> str:
    """Return the path of the example, from a checkout or an installation."""
    from diastole import simulations

    return str(Path(simulations.__path__[0]) / "examples" / EXAMPLE.name)


def _random_images(path: Path) -> Path:
    """Write as many images as CIFAR-10 has to an .npz; return its path."""
    draws = np.random.default_rng(0)
    parts: dict[str, Sequence[int]] = {"train": (50_000, 3, 32, 32), "test": (10_000, 3, 32, 32)}
    arrays: dict[str, Any] = {
        f"x_{name}": draws.integers(0, 256, shape, dtype=np.uint8) for name, shape in parts.items()
    }
    arrays |= {f"y_{name}": draws.integers(0, 10, shape[0], dtype=np.int64) for name, shape in parts.items()}
    np.savez(path, **arrays)
    return path


def _card(device: str) -> str:
    return torch.cuda.get_device_name(home(device)) if device.startswith("cuda") else device
