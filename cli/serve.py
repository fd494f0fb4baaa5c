"""`diastole serve`: a coordinator for agents on other machines."""

import signal
import threading
import uuid
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from diastole.cli import tables
from diastole.cli.console import Watch
from diastole.cli.options import Json, consoles, data_overrides, make_folder
from diastole.experiments.experiment import load
from diastole.experiments.report.report import Report
from diastole.experiments.report.trackers import remove_curves
from diastole.models.networks.family import initial_state
from diastole.proto.address import is_loopback
from diastole.server.coordinator import Coordinator
from diastole.server.errors import AddressError, RoundError
from diastole.server.wire.admin_service import AdminServer, AdminService, EventLog
from diastole.server.wire.link import GrpcLink
from diastole.server.wire.tls import credentials
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import outcome_of


def serve(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    listen: Annotated[str, typer.Option(help="Where devices call, host:port; port 0 for any.")] = "127.0.0.1:7700",
    admin: Annotated[str, typer.Option(help="Where operators call, host:port.")] = "127.0.0.1:7701",
    state: Annotated[Path, typer.Option(help="Folder for checkpoints, uploads and the report.")] = Path("state"),
    data: Annotated[Path | None, typer.Option(help="Data set instead of the file's: an .npz or a folder.")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key: table.key=value.")] = None,
    lease: Annotated[float, typer.Option(min=0.5, help="Seconds of silence after which a device is lost.")] = 30.0,
    tls_cert: Annotated[Path | None, typer.Option(help="The coordinator's certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The coordinator's key, PEM.")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="Take only devices it has certified, PEM.")] = None,
    insecure: Annotated[bool, typer.Option(help="Serve other machines in plain text.")] = False,
    json: Json = False,
) -> None:
    """Coordinate real agents: wait for the experiment's devices, run its rounds, write its report.

    The first round starts when as many devices have joined as the experiment's tiers have. The server uses the
    data set for its proxy examples and its test only.

    Example: `diastole serve simulations/examples/digits.toml --listen 127.0.0.1:7700 --state state`
    """
    settings = load(experiment, data_overrides(data) + (change or []))
    secrets = credentials(listen, tls_cert, tls_key, tls_client_ca, insecure=insecure)
    if not insecure and not is_loopback(admin):
        raise AddressError(f"{admin} would let other machines stop this run; use a loopback address, or say insecure")
    console = consoles(json)
    federation = make_federation(settings)
    remove_curves(make_folder("--state", state))
    run_id = uuid.uuid4().hex[:12]
    link = GrpcLink(
        listen,
        run_id,
        federation.model,
        initial_state(federation.model, 0),
        lease=lease,
        credentials=secrets,
        spool=state,
    )
    with closing(link):
        log = EventLog()
        coordinator = federation.coordinator(link, (log,), run_id=run_id)
        with closing(AdminServer(admin, AdminService(run_id, coordinator, link, log, state))) as operators:

            def stop(number: int, frame: FrameType | None) -> None:
                # A second signal, or an operator's, finds the run already stopping.
                threading.Thread(target=coordinator.stop, kwargs={"now": True}, daemon=True).start()

            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, stop)
            host, admin_host = listen.rpartition(":")[0], admin.rpartition(":")[0]
            console.print(
                f"run {run_id}: devices call {host}:{link.port}, operators {admin_host}:{operators.port}; "
                f"waiting for {settings.devices} devices",
                highlight=False,
                soft_wrap=True,
            )
            with Watch(console, {}) as watch:
                coordinator.observe(watch)
                failed = _run(coordinator)
            link.close()
    # Devices that went away must not take with them what was learned before.
    if failed is not None and not coordinator.closed:
        raise failed
    tables.finish(console, Report(federation, outcome_of(coordinator), {}), state, json=json)
    if failed is not None:
        raise failed


def _run(coordinator: Coordinator) -> RoundError | None:
    try:
        coordinator.run()
    except RoundError as error:
        return error
    return None
