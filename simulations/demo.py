"""The demo: a whole federation of real processes on this machine, and what it is held against."""

import shutil
import subprocess
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from diastole.experiments.entry import tiers_of
from diastole.experiments.result import Result, result_of
from diastole.models.networks.family import initial_state
from diastole.models.state import schema_hash
from diastole.server.coordinator import Coordinator
from diastole.server.errors import RoundError
from diastole.server.events import Observer
from diastole.server.wire.link import GrpcLink
from diastole.simulations.agents import agents
from diastole.simulations.devices import Federation
from diastole.simulations.simulation import Simulation

LEASE_SECONDS = 10.0

METHOD = "splitmix"
"""The demo's method: the best at equal bytes and multiply-accumulates so far (docs/comparisons.md)."""

RIVALS = (METHOD, "diastole", "width", "dedicated", "exclusive", "proxy")
"""What the demo's method is held against: Split-Mix, the method of this project, HeteroFL, a federation of all devices
for each size, the large devices alone, and the server's own examples alone."""


def demo_experiment(seed: int, method: str = METHOD) -> Simulation:
    """Return the demo: handwritten digits over eight devices of three tiers. Raises `ExperimentError`."""
    return Simulation.parse(
        {
            "name": "digits",
            "seed": seed,
            "method": method,
            "recipe": "none",
            "partition": {"kind": "dirichlet", "alpha": 0.3},
            # Tricks that any method can have, for every method alike.
            "training": {"epochs": 2, "balance": 0.5},
            "server": {"name": "fedavgm", "beta1": 0.5},
            "rounds": {"count": 10},
            "proxy": {"epochs": 2},
            "methods": {"width": {"masked": True}},
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
) -> Result:
    """Run a federation over gRPC on loopback, with one agent process a device.

    The devices' shards and logs go below `folder`; an earlier run's are removed. `lease` is in seconds. `started`
    is told the coordinator and the agents before the first round. Raises what `Coordinator.run` raises.
    """
    for name in ("shards", "agents"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    run, run_id = federation.run, uuid.uuid4().hex[:12]
    schema = schema_hash(initial_state(run.model, 0))
    link = GrpcLink("127.0.0.1:0", run_id, run.model, schema, tiers=tiers_of(run), lease=lease)
    with closing(link), agents(federation, f"127.0.0.1:{link.port}", folder) as processes:
        coordinator = run.coordinator(link, observers, run_id=run_id)
        started(coordinator, processes)
        try:
            coordinator.run()
        except RoundError as error:
            ended = [name for name, process in processes.items() if process.poll() is not None]
            hint = f"; ended early: {', '.join(ended)}, see {folder / 'agents'}" if ended else ""
            raise RoundError(f"{error}{hint}") from None
        link.close()
        return result_of(run, coordinator, dealt=federation.dealt)
