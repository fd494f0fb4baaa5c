"""Flower's Ray-backed simulation, kept running for as long as a run needs it."""

import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from diastole.simulations.devices import Federation
from diastole.simulations.engines.examples import SharedExamples
from diastole.simulations.engines.flower.client import simulated_app
from diastole.simulations.engines.flower.errors import FlowerError
from diastole.simulations.engines.flower.link import FlowerLink
from diastole.simulations.engines.flower.partitions import Partitions
from diastole.simulations.engines.shared import shared_folder
from diastole.simulations.simulation import Simulation

START_SECONDS = 60.0
POLL_SECONDS = 0.05

# Whichever of two simulations ended first would end the Ray of both.
_only_one = threading.Lock()


@contextmanager
def running(federation: Federation) -> Iterator[FlowerLink]:
    """Start Flower's simulation and yield a link to it; leaving the block ends it.

    Flower runs a `ServerApp` in a thread of its own and blocks the thread that started it. Here the app hands its
    grid to the caller and waits, and the caller's thread stays the coordinator's, so that interrupts and errors of a
    run arrive where they do with every other engine. A coordinator inside a `ServerApp` works too: `FlowerLink`
    needs nothing but the app's grid.

    Ray starts on this machine, or joins the cluster that the environment's `RAY_ADDRESS` names. Raises `FlowerError`
    if it does not start or ends, or if another runs in this process, and `SpaceError` if there is no room for the
    examples.
    """
    if not _only_one.acquire(blocking=False):
        raise FlowerError("another simulation of engine flower is running in this process, which has room for one")
    try:
        with _running(federation) as link:
            yield link
    finally:
        _only_one.release()


@contextmanager
def _running(federation: Federation) -> Iterator[FlowerLink]:
    # Ray starts clients whenever it likes, so the files keep their names until the end.
    sizes = SharedExamples.sizes(federation.devices)
    wanted, spool, simulation = federation.simulation, shared_folder(sizes), _FlowerRun()
    try:
        nodes = min(wanted.rounds.cohort or len(federation.devices), len(federation.devices))
        partitions = Partitions.share(spool.path, federation)
        device = "cuda" if wanted.flower.gpus else "cpu"
        app = simulated_app(partitions, wanted.plan, device, (wanted.model.factory, *wanted.training.functions))
        with _quiet():
            grid = simulation.start(app, nodes, _backend(wanted))
            yield FlowerLink(grid, federation.model, federation.devices, simulation.check)
            simulation.close()
    finally:
        simulation.close()
        spool.close()


class _FlowerRun:
    """One call of `run_simulation` in a thread of its own."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._grid: Grid | None = None
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def start(self, app: Any, nodes: int, backend: dict[str, Any]) -> Grid:
        """Start and return the grid once its nodes are there. Raises `FlowerError`."""
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            self._grid = grid
            self._done.wait()

        def run() -> None:
            try:
                run_simulation(server, app, nodes, backend_config=backend)
            except (RuntimeError, ImportError) as error:
                self._error = error
            finally:
                self._done.set()

        self._thread = threading.Thread(target=run, name="flower")
        self._thread.start()
        until = time.monotonic() + START_SECONDS
        while self._grid is None or len(list(self._grid.get_node_ids())) < nodes:
            self.check()
            if time.monotonic() > until:
                raise FlowerError(f"Flower's simulation had not {nodes} nodes after {START_SECONDS:g} s")
            time.sleep(POLL_SECONDS)
        return self._grid

    def check(self) -> None:
        """Raise `FlowerError` if the simulation has ended."""
        if self._done.is_set():
            cause: BaseException | None = self._error
            while cause is not None and cause.__cause__ is not None:
                cause = cause.__cause__
            raise FlowerError(f"Flower's simulation ended: {' '.join(str(cause).split())}")

    def close(self) -> None:
        """End the simulation after the tasks that are being trained, and wait until it has ended."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()


def _backend(experiment: Simulation) -> dict[str, Any]:
    flower = experiment.flower
    initial: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if experiment.workers is not None:
        initial["num_cpus"] = math.ceil(experiment.workers * flower.cpus)
    return {"init_args": initial, "client_resources": {"num_cpus": flower.cpus, "num_gpus": flower.gpus}}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Flower from logging what the link reports, and from leaving its mark on this process's environment."""
    logger, path = logging.getLogger("flwr"), os.environ.get("PYTHONPATH")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        # Ray is given this process's whole import path that way; nobody else whom this process starts need be.
        if path is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = path
