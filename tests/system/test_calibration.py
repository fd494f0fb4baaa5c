"""The virtual clock against real agents: three tiers on loopback, with less and less of a CPU.

`pytest -m slow --log-cli-level INFO` on this file prints the figures.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median

import pytest
import torch

from diastole.experiments.data.dataset import Dataset
from diastole.models.task import Task
from diastole.models.training import Examples
from diastole.proto.profile import Profile
from diastole.server.coordinator import Coordinator
from diastole.server.events import Event, RoundClosed, RunStarted, UpdateAccepted
from diastole.simulations.demo import run_real
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.field.clock import field_task
from diastole.simulations.field.populations import DeviceClass, FieldDevice
from diastole.simulations.simulation import Simulation

LOG = logging.getLogger(__name__)
ROUNDS = 9
LOOPBACK = 200e6
PERIOD = 0.1
# Of the second core; the first tier has the first core, which the coordinator leaves alone while devices train.
SHARES = {"medium": 0.5, "small": 0.3}
# A process of its own, or it would wait for the coordinator's interpreter. It ends with its standard input.
THROTTLE = """
import os, select, signal, sys, time
ended = lambda seconds: select.select([sys.stdin], [], [], seconds)[0]
period, turns = float(sys.argv[1]), [pair.split(":") for pair in sys.argv[2:]]
try:
    while not ended(0):
        began = time.monotonic()
        for pid, share in turns:
            os.kill(int(pid), signal.SIGCONT)
            ended(period * float(share))
            os.kill(int(pid), signal.SIGSTOP)
        ended(max(0.0, period - (time.monotonic() - began)))
except ProcessLookupError:
    pass
for pid, share in turns:
    try:
        os.kill(int(pid), signal.SIGCONT)
    except ProcessLookupError:
        pass
"""


def synthetic(count: int) -> Dataset:
    draws = torch.Generator().manual_seed(0)

    def examples(number: int) -> Examples:
        return Examples(
            torch.randn(number, 3, 32, 32, generator=draws), torch.randint(0, 10, (number,), generator=draws)
        )

    return Dataset("noise", examples(count), examples(10), 10, None)


# The first is akin to the step that agents time themselves by, the second is not.
NETWORKS: dict[str, tuple[dict[str, object], int]] = {
    "cnn": ({"widths": [32, 64, 128]}, 3600),
    "resnet": ({"name": "resnet", "widths": [32, 64], "blocks": [1, 1]}, 1440),
}


def federation(network: dict[str, object], examples: int) -> Federation:
    """Return one device a tier, with enough to do that a round is more than a second of training."""
    experiment = Simulation.parse(
        {
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


def first_in_line(process: int, rank: int) -> None:
    """Let a process go before the machine's other work, if we may: what neighbours take cannot be predicted."""
    with suppress(PermissionError):
        os.sched_setscheduler(process, os.SCHED_RR, os.sched_param(rank))


@contextmanager
def limited(processes: Mapping[str, subprocess.Popen[bytes]], tiers: Mapping[str, str]) -> Iterator[None]:
    """Give every agent its share of a core: two take turns on the second one, stopped and continued by signals."""
    cores = sorted(os.sched_getaffinity(0))
    turns = {process.pid: SHARES[tiers[name]] for name, process in processes.items() if tiers[name] in SHARES}
    for process in processes.values():
        os.sched_setaffinity(process.pid, {cores[process.pid in turns]})
        first_in_line(process.pid, 1)
    command = [sys.executable, "-c", THROTTLE, str(PERIOD), *(f"{pid}:{share}" for pid, share in turns.items())]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as throttle:
        first_in_line(throttle.pid, 2)
        yield


def predicted(made: Federation, profiles: Mapping[str, Profile]) -> dict[str, float]:
    """Return the seconds from dispatch to arrival that the virtual clock gives each device, from what it announced."""
    sizes, seconds = made.run.method().offers(), {}
    for name, profile in profiles.items():
        size = next(each for each in reversed(sizes) if each.cost.memory <= (profile.memory or 0))
        task = Task(f"r1-{name}", 1, name, size.spec, made.simulation.training, 0)
        speed = profile.macs_per_second or 0.0
        kind = DeviceClass(profile.tier, 1.0, speed, 1.0, LOOPBACK, LOOPBACK, watts=0.0, radio_watts=0.0)
        device = FieldDevice(kind, 0, speed, LOOPBACK, LOOPBACK, speeds=profile.speeds)
        seconds[name] = field_task(task, device, size.cost, profile.examples).ends
    return seconds


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores to share out"
)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_clock_predicts_the_round_time_of_real_agents(network: str, tmp_path: Path) -> None:
    made = federation(*NETWORKS[network])
    tiers = {name: device.profile.tier for name, device in made.devices.items()}
    profiles: dict[str, Profile] = {}
    rounds: list[float] = []
    training: dict[str, list[float]] = {name: [] for name in made.devices}
    held: list[Coordinator] = []

    def watch(event: Event) -> None:
        if isinstance(event, RunStarted):
            profiles.update(held[0]._link.devices())
        elif isinstance(event, UpdateAccepted):
            training[event.device].append(event.seconds)
        elif isinstance(event, RoundClosed) and event.accuracy is None:
            rounds.append(event.seconds)

    def started(coordinator: Coordinator, processes: Mapping[str, subprocess.Popen[bytes]]) -> None:
        held.append(coordinator)
        limits.enter_context(limited(processes, tiers))

    with ExitStack() as limits:
        run_real(made, tmp_path, (watch,), started=started)
    times = predicted(made, profiles)
    told = {f"{tiers[name]} trains": (seconds, median(training[name][1:])) for name, seconds in times.items()}
    told["round"] = (max(times.values()), median(rounds[1:]))
    for what, (expected, measured) in told.items():
        LOG.info("%s: predicted %.2f s, measured %.2f s", what, expected, measured)
    assert told["round"][1] == pytest.approx(told["round"][0], rel=0.25), told
    # Shorter than the round, and at the mercy of how the signals fall.
    assert all(measured == pytest.approx(expected, rel=0.5) for expected, measured in told.values()), told
