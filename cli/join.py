"""`diastole join`: the device agent."""

import logging
import math
import os
import signal
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.logs import FileOption, FormatOption, LevelOption, LogFormat, LogLevel, logging_to
from diastole.cli.options import warn
from diastole.cli.sizes import parse_bytes
from diastole.client.budget import Budget, Hours
from diastole.client.choices import ExecutionPlan, Personal, PlaceName
from diastole.client.errors import LinkError
from diastole.proto.about import about
from diastole.proto.address import Address
from diastole.proto.invitation import Token

LOG = logging.getLogger(__name__)
NICE = 10


def join(
    address: Annotated[str, typer.Argument(help="The coordinator, host:port.")],
    data: Annotated[
        str,
        typer.Option(
            help="An .npz with x and y, or a folder of them: the first that is free; or a folder of images or NumPy "
            "files, a table, a FIFO, or package.module:function."
        ),
    ],
    name: Annotated[str, typer.Option(help="This device's name; by default its file's.")] = "",
    tier: Annotated[
        str, typer.Option(help="A tier of the coordinator's; by default the smallest that this device may be in.")
    ] = "",
    memory: Annotated[str, typer.Option(help="Training memory, such as 1.5MB; by default what is free.")] = "",
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds after which it ends if nobody answers; by default never.")
    ] = math.inf,
    state: Annotated[
        Path | None, typer.Option(help="Where it keeps what a restart needs; by default a folder of this user's.")
    ] = None,
    cpu: Annotated[float, typer.Option(help="Share of the time to train in; it rests for the others.")] = 1.0,
    threads: Annotated[
        int, typer.Option(min=0, help="The most threads to train with; by default one for each core it may use.")
    ] = 0,
    hours: Annotated[str, typer.Option(help="Work in these hours only, such as 22:00-06:00.")] = "",
    charging: Annotated[bool, typer.Option(help="Work only while the device is on mains.")] = False,
    metered: Annotated[bool, typer.Option(help="Stay away while NetworkManager calls a link metered.")] = False,
    pause_file: Annotated[Path | None, typer.Option(help="Do nothing while this file exists.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="How the data are read: data.size=32, data.label=activity.")
    ] = None,
    window: Annotated[
        int, typer.Option(min=0, help="Rows of a table in one example; a .csv, or a FIFO, is read on as it grows.")
    ] = 0,
    hop: Annotated[
        int, typer.Option(min=0, help="Rows from one window's beginning to the next one's; by default half a window.")
    ] = 0,
    test_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the examples to keep for a test, and not to train on.")
    ] = 0.0,
    share_scores: Annotated[
        bool, typer.Option(help="Tell the coordinator how sub-models do on that test, before and after training.")
    ] = False,
    share_classes: Annotated[
        bool, typer.Option(help="Tell the coordinator how many examples there are of each class.")
    ] = False,
    personal: Annotated[
        Personal, typer.Option(help="When the run is over, train the head, or all, further for this device alone.")
    ] = "none",
    plan: Annotated[
        ExecutionPlan,
        typer.Option(
            help="fast: the fastest way of computing, found by a search of seconds; reference: the same bits."
        ),
    ] = "fast",
    device: Annotated[PlaceName, typer.Option(help="Where to train; auto: an accelerator if there is one.")] = "auto",
    explain: Annotated[
        bool, typer.Option("--explain", help="Say in plain words what would be sent, send nothing, and end.")
    ] = False,
    enroll: Annotated[
        str, typer.Option(help="The token of the coordinator's operator; needed once, for this device's certificate.")
    ] = "",
    enroll_file: Annotated[
        Path | None,
        typer.Option(help="A file with that token, which is read while this device has no certificate."),
    ] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Certificate authority of the coordinator, PEM.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="This device's certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="This device's key, PEM.")] = None,
    insecure: Annotated[bool, typer.Option(help="Speak plain text to another machine.")] = False,
    allow_factory: Annotated[
        list[str] | None,
        typer.Option(
            help="package.module:function of a custom model, loss, training loop or data to be imported here, and no "
            "other."
        ),
    ] = None,
    log_format: FormatOption = LogFormat.TEXT,
    log_level: LevelOption = LogLevel.INFO,
    log_file: FileOption = None,
) -> None:
    """Join a coordinator and train whatever it sends, until the run is over.

    Example: `diastole join 127.0.0.1:7700 --data shards/large --tier large --memory 640kB`
    """
    where = Address.parse(address)
    if insecure and not where.loopback:
        warn(f"{address} is called in plain text: whoever is on the way can read and change what is sent and received")
    # Told to stop, an agent leaves, so that nobody waits for its lease to lapse.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Here, because all of them import torch, which takes seconds: the help and a wrong option do without.
    from diastole.client import agent
    from diastole.client.connection import Connection
    from diastole.client.enrolling import enrolled
    from diastole.client.explain import explain as in_words
    from diastole.client.pace import Pace
    from diastole.client.place import place_of
    from diastole.client.profile import free_memory, profile
    from diastole.client.scoring import divided
    from diastole.client.sources.opening import opened
    from diastole.client.sources.settings import settings_of
    from diastole.client.sources.windows import Windows
    from diastole.client.statefolder import StateFolder, default_folder
    from diastole.client.supply import class_counts
    from diastole.client.terms import Terms
    from diastole.client.tls import credentials
    from diastole.models.networks.custom import own as custom

    place = place_of(device)
    most = parse_bytes(memory) if memory else None
    budget = _budget(cpu, hours, charging, metered, pause_file, threads)
    for factory in allow_factory or []:
        custom.allow(factory)
    if enroll and enroll_file:
        raise LinkError("--enroll and --enroll-file both give a token; one is accepted")
    token = Token.parse(enroll) if enroll else None
    given = insecure or tls_ca is not None or tls_cert is not None or tls_key is not None
    if (token or enroll_file) and (given or explain):
        raise LinkError("--enroll makes this device's certificate; it goes with no --tls-*, --insecure or --explain")
    if token and name not in ("", token.name):
        raise LinkError(f"--name {name!r}: the token is for {token.name!r}")
    with ExitStack() as held:
        held.enter_context(logging_to(None, log_format, log_level, log_file))
        own, source = held.enter_context(opened(data, settings_of(change or [], window, hop, test_share)))
        name = name or (token.name if token else own)
        folder = held.enter_context(closing(StateFolder(state or default_folder(name))))
        who = None if given else enrolled(folder.place, address, enroll, ask=not explain)
        if enroll_file and who is None:
            token = Token.parse(_token_in(enroll_file))
            who = enrolled(folder.place, address, token.text())
        if token and who:
            LOG.info("enrolled as %s; the certificate is kept in %s", who.identity.name, folder.place)
        name = who.identity.name if who else name
        secrets = None if who else credentials(address, tls_ca, tls_cert, tls_key, insecure=insecure)
        source, kept = divided(source, test_share, name)
        if isinstance(source, Windows) and not explain and not len(source):
            LOG.info("waiting for the first window of %s", data)
            source.wait()
        me = profile(tier, len(source), most, plan, place.type, budget.most_threads)
        if share_classes:
            # A stream may have grown since.
            counts = class_counts(source.examples())
            me = replace(me, examples=sum(counts), class_counts=counts)
        terms = Terms(
            folder,
            budget,
            memory=None if memory else free_memory,
            kept=kept,
            personal=personal,
            share_scores=share_scores,
            share_classes=share_classes,
            measures=True,
        )
        connection = Connection(
            address,
            name,
            me,
            patience=patience,
            credentials=secrets,
            key=folder.key,
            enrolled=who,
            pace=Pace(folder),
        )
        if explain:
            typer.echo("\n".join(in_words(address, name, connection.announced, terms, encrypted=bool(who or secrets))))
            return
        held.enter_context(about(device=name))
        LOG.info("joining %s as %s with %d examples", address, name, len(source))
        summary = agent.run(connection, source, plan=plan, place=place, terms=terms)
        LOG.info("the run is over: %d updates delivered, %.1f s of training", summary.delivered, summary.seconds)


def _token_in(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise LinkError(f"--enroll-file {path}: no token can be read ({error})") from None


def _budget(cpu: float, hours: str, charging: bool, metered: bool, pause_file: Path | None, threads: int) -> Budget:
    try:
        budget = Budget(cpu, Hours.parse(hours) if hours else None, charging, metered, pause_file, threads or None)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if cpu < 1:
        # Others go first even while it does not rest.
        os.nice(NICE)
    return budget
