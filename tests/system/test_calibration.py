"""The virtual clock against real agents: how long three tiers train, by what each has told of itself.

`pytest -m slow --log-cli-level INFO` on this file prints the figures.

Both are the processor's seconds: what others on the machine take cannot be predicted. But they take its caches too,
more or less from minute to minute, so steps that are timed between rounds say how fast it is meanwhile.
"""

import logging
import os
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
import torch

from diastole.client import adapting, speeds
from diastole.client.measured import TURNS, Measured
from diastole.client.plans.planned import plan_for
from diastole.client.timing import Timing
from diastole.experiments.data.dataset import Dataset
from diastole.models.task import Task
from diastole.models.training import Examples
from diastole.proto.profile import Profile
from diastole.server.coordinator import Coordinator
from diastole.server.events import Event, RunStarted, UpdateAccepted
from diastole.simulations.demo import run_real
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.field.clock import field_task
from diastole.simulations.field.populations import DeviceClass, FieldDevice
from diastole.simulations.simulation import Simulation

LOG = logging.getLogger(__name__)
ROUNDS = 4
LOOPBACK = 200e6
TICK = 1 / os.sysconf("SC_CLK_TCK")


def synthetic(count: int) -> Dataset:
    draws = torch.Generator().manual_seed(0)

    def examples(number: int) -> Examples:
        return Examples(
            torch.randn(number, 3, 32, 32, generator=draws), torch.randint(0, 10, (number,), generator=draws)
        )

    return Dataset("noise", examples(count), examples(10), 10, None)


NETWORKS: dict[str, tuple[dict[str, object], int]] = {
    "cnn": ({"widths": [32, 64, 128]}, 10800),
    "resnet": ({"name": "resnet", "widths": [32, 64], "blocks": [1, 1]}, 4320),
}


def federation(network: dict[str, object], examples: int) -> Federation:
    """Return one device a tier, with enough to do that training is nearly all of a round."""
    experiment = Simulation.parse(
        {
            "plan": "fast",
            "data": {"proxy": 0},
            "partition": {"kind": "iid"},
            "model": network,
            "rounds": {"count": ROUNDS, "evaluate_every": 99},
            "tiers": {
                name: {"devices": 1, "width": w} for name, w in (("large", 1.0), ("medium", 0.5), ("small", 0.25))
            },
        },
        "test",
    )
    return make_federation(experiment, synthetic(examples))


@pytest.fixture
def one_core() -> Iterator[None]:
    """Let this process, and what it starts, have one core: their plans have one thread."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


def busy(process: int) -> float:
    """Return the processor's seconds that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


def predicted(made: Federation, profiles: Mapping[str, Profile]) -> dict[str, float]:
    """Return the seconds of training that the virtual clock gives each device, from what it announced."""
    sizes, seconds = made.run.method().offers(), {}
    for name, profile in profiles.items():
        size = next(each for each in reversed(sizes) if each.cost.memory <= (profile.memory or 0))
        task = Task(f"r1-{name}", 1, name, size.spec, made.simulation.training, 0)
        speed = profile.macs_per_second or 0.0
        kind = DeviceClass(profile.tier, 1.0, speed, 1.0, LOOPBACK, LOOPBACK, watts=0.0, radio_watts=0.0)
        device = FieldDevice(kind, 0, speed, LOOPBACK, LOOPBACK, speeds=profile.speeds)
        seconds[name] = field_task(task, device, size.cost, profile.examples).training
    return seconds


def prepared(made: Federation) -> tuple[Timing, Measured]:
    """Find all sizes' plans, and measure speeds; keep both where agents look, who have less memory."""
    for size in made.run.method().offers():
        plan_for("fast", made.run.model, size.spec, made.simulation.training)
    others = speeds.measured("fast")
    speeds._keep(speeds._name("fast", 1, "cpu"), others)
    timing = Timing(adapting.of_models([made.run.model], "fast"))
    for _ in range(TURNS):
        timing.turn()
    found = adapting.adjusted(others, timing)
    speeds._keep(speeds._name("fast", 1, "cpu", [made.run.model]), found)
    return timing, found


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
@pytest.mark.parametrize("network", NETWORKS)
def test_the_clock_predicts_how_long_real_agents_train(network: str, one_core: None, tmp_path: Path) -> None:
    made = federation(*NETWORKS[network])
    timing, found = prepared(made)
    alone = sum(timing.best)
    for each in timing._timed:
        each.busy.clear()
    profiles: dict[str, Profile] = {}
    taken: dict[str, list[float]] = defaultdict(list)
    held: list[tuple[Coordinator, Mapping[str, subprocess.Popen[bytes]]]] = []

    def watch(event: Event) -> None:
        coordinator, processes = held[0]
        if isinstance(event, RunStarted):
            profiles.update(coordinator._link.devices())
        elif isinstance(event, UpdateAccepted):
            taken[event.device].append(busy(processes[event.device].pid))
            timing.turn()

    run_real(made, tmp_path, (watch,), started=lambda *both: held.append(both))
    # The first round loads kernels.
    measured = {name: fmean(b - a for a, b in pairwise(sums)) for name, sums in taken.items()}
    slower = sum(fmean(each.busy) for each in timing._timed) / alone
    LOG.info("steps took %.2f times as long as before", slower)
    expected = {name: seconds * found.pace * slower for name, seconds in predicted(made, profiles).items()}
    for name, profile in profiles.items():
        LOG.info("%s trains: predicted %.2f s, measured %.2f s", profile.tier, expected[name], measured[name])
    assert measured == pytest.approx(expected, rel=0.25)
