"""The demo: a whole federation of real processes on this machine, and the baselines it is held against."""

import shutil
import subprocess
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from diastole.experiments.experiment import Experiment, parse
from diastole.models.networks.family import initial_state
from diastole.server.coordinator import Coordinator
from diastole.server.errors import RoundError
from diastole.server.events import Observer
from diastole.server.wire.link import GrpcLink
from diastole.simulations.agents import agents
from diastole.simulations.devices import Federation
from diastole.simulations.simulate import Outcome, outcome_of, simulate

LEASE_SECONDS = 10.0


def demo_experiment(seed: int, method: str = "diastole") -> Experiment:
    """Return the demo: handwritten digits over eight devices of three tiers. Raises `ExperimentError`."""
    return parse(
        {
            "name": "digits",
            "seed": seed,
            "method": method,
            "partition": {"kind": "dirichlet", "alpha": 0.3},
            "training": {"epochs": 2},
            "rounds": {"count": 10},
            "proxy": {"epochs": 2},
        },
        "the demo",
    )


def run_real(
    federation: Federation,
    folder: Path,
    observers: tuple[Observer, ...] = (),
    *,
    lease: float = LEASE_SECONDS,
    started: Callable[[Coordinator, Mapping[str, subprocess.Popen[bytes]]], None] = lambda coordinator, processes: None,
) -> Outcome:
    """Run a federation over gRPC on loopback, with one agent process a device.

    The devices' shards and logs go below `folder`; an earlier run's are removed. `lease` is in seconds. `started`
    is told the coordinator and the agents before the first round. Raises what `Coordinator.run` raises.
    """
    for name in ("shards", "agents"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    state, run_id = initial_state(federation.model, 0), uuid.uuid4().hex[:12]
    link = GrpcLink("127.0.0.1:0", run_id, federation.model, state, lease=lease)
    with closing(link), agents(federation, f"127.0.0.1:{link.port}", folder) as processes:
        coordinator = federation.coordinator(link, observers, run_id=run_id)
        started(coordinator, processes)
        try:
            coordinator.run()
        except RoundError as error:
            ended = [name for name, process in processes.items() if process.poll() is not None]
            hint = f"; ended early: {', '.join(ended)}, see {folder / 'agents'}" if ended else ""
            raise RoundError(f"{error}{hint}") from None
        link.close()
        return outcome_of(coordinator)


def run_baseline(federation: Federation, method: str, observers: tuple[Observer, ...] = ()) -> Outcome:
    """Run a baseline on the same devices, data, proxy set, rounds and seed, simulated."""
    return simulate(replace(federation, experiment=federation.experiment.changed(method=method)), observers)
