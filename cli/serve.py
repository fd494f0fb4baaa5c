"""`diastole serve`: a coordinator for agents on other machines."""

import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diastole.cli.logs import FileOption, FormatOption, LevelOption, LogFormat, LogLevel, logging_to
from diastole.cli.options import (
    DataPath,
    Figures,
    Json,
    Track,
    beside,
    consoles,
    data_overrides,
    make_folder,
    print_json,
    warn,
)
from diastole.experiments.errors import NothingLearnedError
from diastole.proto.about import about
from diastole.proto.address import Address
from diastole.server.errors import RoundError

if TYPE_CHECKING:
    from diastole.experiments.serving import Serving
    from diastole.experiments.web import Dashboard

LOG = logging.getLogger(__name__)
GRACE_SECONDS = 5.0
"""That the server's own work may go on after a signal; a process that ends in it costs no more than a kill does."""


def serve(
    experiments: Annotated[list[Path], typer.Argument(help="The experiment, a TOML file; or several, in their order.")],
    listen: Annotated[str, typer.Option(help="Where devices call, host:port; port 0 for any.")] = "127.0.0.1:7700",
    admin: Annotated[
        str, typer.Option(help="Where operators call, host:port; off loopback they show certificates.")
    ] = "127.0.0.1:7701",
    state: Annotated[Path, typer.Option(help="The coordinator's folder: its database, a folder for each run.")] = Path(
        "state"
    ),
    database: Annotated[str, typer.Option(help="Its URL, as SQLAlchemy takes it; by default SQLite in --state.")] = "",
    data: DataPath = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key: table.key=value.")] = None,
    lease: Annotated[float, typer.Option(min=0.5, help="Seconds of silence after which a device is lost.")] = 30.0,
    tls_cert: Annotated[Path | None, typer.Option(help="The coordinator's certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The coordinator's key, PEM.")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="Take only devices it has certified, PEM.")] = None,
    enroll: Annotated[
        str,
        typer.Option(help="Where devices enroll, host:port; off loopback, by default, two ports on from --listen."),
    ] = "",
    insecure: Annotated[bool, typer.Option(help="Serve other machines in plain text.")] = False,
    reflection: Annotated[
        bool,
        typer.Option("--reflection", help="Let the admin service describe itself, to tools such as grpcurl."),
    ] = False,
    web: Annotated[
        str,
        typer.Option(help="Where browsers find the dashboard, host:port; by default nowhere."),
    ] = "",
    web_name: Annotated[
        list[str] | None, typer.Option(help="A further name under which browsers may call the dashboard.")
    ] = None,
    track: Track = None,
    figures: Figures = "png",
    fresh: Annotated[bool, typer.Option(help="Start anew even if an unfinished run could go on.")] = False,
    side_by_side: Annotated[
        int,
        typer.Option(min=1, help="Of several experiments, so many run at a time; a device does one task at a time."),
    ] = 1,
    keep: Annotated[
        bool,
        typer.Option(help="Wait for more experiments (diastole admin runs submit) when all are over; agents wait too."),
    ] = False,
    log_format: FormatOption = LogFormat.TEXT,
    log_level: LevelOption = LogLevel.INFO,
    log_file: FileOption = None,
    keep_checkpoints: Annotated[
        int, typer.Option(min=0, help="Of so many rounds of each run, the last ones, a checkpoint is kept.")
    ] = 5,
    json: Json = False,
) -> None:
    """Coordinate real agents: wait for the experiment's devices, run its rounds, write its report.

    The first round starts when as many devices have joined as the experiment's tiers have. The server uses the
    data set for its proxy examples and its test only. A run that was stopped (SIGTERM, Ctrl-C) or killed goes on with
    the same round when the same command is given again, and its agents wait for that.

    Off loopback the coordinator certifies its devices itself: `diastole admin enroll NAME` makes the token that one
    joins with for the first time. Certificates of another authority (`--tls-cert`, `--tls-key`, `--tls-client-ca`) take
    its place, and so does `--insecure` on a network that is trusted.

    Example: `diastole serve simulations/examples/digits.toml --listen 127.0.0.1:7700 --state state`
    """
    # Here, because they import torch, which takes seconds: the help and a wrong option do without.
    from diastole.cli import tables
    from diastole.cli.console import Watch
    from diastole.experiments.entry import LONGEST_ROUND, Entry
    from diastole.experiments.experiment import Experiment
    from diastole.experiments.report.figures import kinds_of
    from diastole.experiments.run import make_run
    from diastole.experiments.serving import Serving
    from diastole.server.web.config import WebConfig
    from diastole.server.wire.many import hold_many
    from diastole.server.wire.tls import protection

    overrides = data_overrides(data) + (change or [])
    for path in experiments:
        beside(path)
    asked = [Experiment.load(path, overrides) for path in experiments]
    shield = protection(
        listen, certificate=tls_cert, key=tls_key, client_ca=tls_client_ca, enroll=enroll, insecure=insecure
    )
    devices_at, operators_at = (Address.parse(text, listening=True) for text in (listen, admin))
    if insecure and not devices_at.loopback:
        warn(f"{listen} is served in plain text: whoever can reach it can join, and read and change what is sent")
    console, kinds, many = consoles(json), kinds_of(figures), keep or len(asked) > 1
    with logging_to(console, log_format, log_level, log_file):
        unused = dict.fromkeys(key for settings in asked for key in settings.unused if key != "partition")
        if unused:
            LOG.info("serve does not use: %s", ", ".join(unused))
        runs = [make_run(settings) for settings in asked]
        one = Watch(console, {}, moving=not many and log_format is LogFormat.TEXT, lines=False)
        folder = make_folder("--state", state)
        came_to = list[dict[str, Any]]()

        def announce(serving: Serving) -> None:
            for entry in serving.entries:
                settings = entry.run.experiment
                behind = f", going on behind round {entry.closed}" if entry.closed else ""
                if many and entry.listed.over:
                    behind = ", over already"
                which = f"run {entry.berth.run_id}: {settings.name}" if many else f"run {entry.berth.run_id}"
                waiting = f"waits for {settings.devices} devices" if many else f"waiting for {settings.devices} devices"
                calls = "" if many else f": {_where(serving, devices_at, operators_at)}"
                with about(entry.berth.run_id):
                    LOG.info("%s%s; %s%s", which, calls, waiting, behind)
                    if settings.rounds.deadline is None:
                        LOG.info("a round ends after %g s, because there is no rounds.deadline", LONGEST_ROUND)
            if many:
                LOG.info(_where(serving, devices_at, operators_at))
            if serving.enroll_port is not None:
                text = "devices enroll at port %s, each with a token of `diastole admin enroll NAME`"
                LOG.info(text, serving.enroll_port)
            if serving.web is not None and serving.web_port is not None:
                LOG.info(_dashboard(serving.web, serving.web_port))

        def ended(entry: Entry) -> None:
            if not many:
                return
            if entry.error is not None:
                with about(entry.berth.run_id):
                    LOG.error("run %s: %s", entry.berth.run_id, entry.error)
            if entry.result is not None and json:
                came_to.append(entry.result.as_dict())
            elif entry.result is not None and log_format is LogFormat.TEXT:
                console.print(f"\nrun {entry.berth.run_id}: {entry.run.experiment.name}", soft_wrap=True)
                tables.finish(console, entry.result, entry.written, json=False)

        hold_many()
        serving = Serving(
            runs,
            listen,
            folder,
            admin=admin,
            track=track or (),
            lease=lease,
            credentials=shield.credentials,
            fresh=fresh,
            figures=kinds,
            database=database,
            enroll=shield.enroll,
            reflection=reflection,
            announce=announce,
            side_by_side=side_by_side,
            keep=keep,
            kept=keep_checkpoints,
            watch=lambda _: () if many else (one,),
            ended=ended,
            web=WebConfig(web, tuple(web_name or ()), shield.pair) if web else None,
        )

        stopping = threading.Event()

        def suspend(code: int) -> None:
            LOG.info("told to stop: what is unfinished goes on at the next start")
            if not serving.suspend(GRACE_SECONDS):
                os._exit(code)

        def stop(number: int, frame: FrameType | None) -> None:
            if stopping.is_set():
                os._exit(128 + number)
            stopping.set()
            threading.Thread(target=suspend, args=(128 + number,), daemon=True).start()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        failed: RoundError | NothingLearnedError | None = None
        with serving, one:
            try:
                serving.wait()
            except (RoundError, NothingLearnedError) as error:
                failed = error
        if many and json:
            print_json(came_to)
        elif serving.result is not None and not many and (json or log_format is LogFormat.TEXT):
            tables.finish(console, serving.result, serving.written, json=json)
        if failed is not None:
            raise failed


def _dashboard(web: "Dashboard", port: int) -> str:
    """Say where the dashboard is, and how to log in."""
    return f"dashboard {web.url(port)}: log in with what is in {web.token}, or to look only {web.reader}"


def _where(serving: "Serving", devices: Address, operators: Address) -> str:
    """Say where devices and operators call."""
    token = f"with what is in {serving.admin_token}"
    return f"devices call {devices.at(serving.port)}, operators {operators.at(serving.admin_port or 0)} {token}"
