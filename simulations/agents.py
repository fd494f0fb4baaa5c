"""A federation of real agent processes on this machine."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diastole.client import data
from diastole.simulations.cards import is_card
from diastole.simulations.devices import Federation

FAREWELL_SECONDS = 10.0
PATIENCE = 30
"""Seconds after which agents end whose coordinator was killed."""


def write_shards(federation: Federation, folder: Path) -> dict[str, Path]:
    """Write every device's private examples to `folder/TIER/DEVICE.npz` and return the paths by device name."""
    paths = {name: folder / device.profile.tier / f"{name}.npz" for name, device in federation.devices.items()}
    for name, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        data.save(path, federation.devices[name].examples)
    return paths


def agent_command(federation: Federation, device: str, shard: Path, address: str, state: Path) -> list[str]:
    """Return the command line of a device's agent, which keeps its state in a folder below `state`.

    It trains by the federation's plan, and on the CPU unless the federation names a card, as the same device does in a
    simulation.
    """
    profile, simulation = federation.devices[device].profile, federation.simulation
    return [
        *(sys.executable, "-m", "diastole.cli.main", "join", address),
        *("--name", device, "--tier", profile.tier, "--patience", str(PATIENCE)),
        *(("--memory", str(profile.memory)) if profile.memory is not None else ()),
        *("--data", str(shard), "--state", str(state / device)),
        *("--plan", simulation.plan, "--device", "auto" if is_card(simulation.device) else "cpu"),
        *(("--allow-factory", federation.model.factory) if federation.model.factory else ()),
    ]


@contextmanager
def agents(federation: Federation, address: str, folder: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Run one agent process a device, joined to the coordinator at `address`; yield them by device name.

    Shards and logs go below `folder`. On leaving, agents get a moment to end by themselves, and are then killed.
    """
    processes: dict[str, subprocess.Popen[bytes]] = {}
    logs = folder / "agents"
    logs.mkdir(parents=True, exist_ok=True)
    try:
        for name, shard in write_shards(federation, folder / "shards").items():
            with (logs / f"{name}.log").open("wb") as log:
                processes[name] = subprocess.Popen(
                    agent_command(federation, name, shard, address, logs), stdout=log, stderr=subprocess.STDOUT
                )
        yield processes
        for process in processes.values():
            try:
                process.wait(FAREWELL_SECONDS)
            except subprocess.TimeoutExpired:
                break
    finally:
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.wait()
