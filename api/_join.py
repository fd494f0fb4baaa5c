"""A device agent from Python."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from diastole._experiment import as_examples
from diastole.client import agent
from diastole.client.budget import Budget
from diastole.client.choices import ExecutionPlan, Personal, PlaceName
from diastole.client.connection import Connection
from diastole.client.enrolling import enrolled
from diastole.client.errors import LinkError
from diastole.client.pace import Pace
from diastole.client.place import place_of
from diastole.client.profile import free_memory, profile
from diastole.client.scoring import divided
from diastole.client.sources.opening import PLAIN, opened
from diastole.client.sources.settings import Settings
from diastole.client.sources.source import DataSource, Fixed
from diastole.client.sources.windows import Windows
from diastole.client.statefolder import StateFolder
from diastole.client.supply import class_counts
from diastole.client.terms import Progress, Summary, Terms
from diastole.client.tls import credentials
from diastole.models.networks.custom import own as custom


def join(
    address: str,
    data: Path | str | tuple[object, object] | DataSource,
    name: str = "",
    *,
    tier: str = "",
    memory: int | None = None,
    patience: float = math.inf,
    state: Path | None = None,
    budget: Budget = Budget(),  # noqa: B008 (frozen)
    settings: Settings = PLAIN,
    test_share: float = 0.0,
    share_scores: bool = False,
    share_classes: bool = False,
    personal: Personal = "none",
    plan: ExecutionPlan = "fast",
    device: PlaceName = "auto",
    factories: Sequence[str] = (),
    watch: Callable[[Progress], None] = lambda progress: None,
    tls_ca: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    enroll: str = "",
    insecure: bool = False,
) -> Summary:
    """Join a coordinator and train whatever it sends, until the run is over; return what was done.

    Args:
        address: the coordinator, `host:port`.
        data: what `diastole join --data` takes, such as an archive (.npz) with x and y; or `(x, y)`; or a source of
            your own, which is asked anew for each task.
        name: this device's; by default its file's.
        tier: one of the coordinator's; by default the smallest that this device may be in.
        memory: bytes for training; by default what is free.
        patience: seconds after which it ends if nobody answers.
        state: folder where the agent keeps what a restart needs; None to keep nothing, which an enrolled device cannot.
        budget: when it may work, and how much of the processor it may take (`client/budget.py`).
        settings: how files are read (`client/sources/settings.py`).
        test_share: share of the examples to keep for a test, and not to train on, in [0, 1).
        share_scores: tell the coordinator how sub-models do on that test, before and after training.
        share_classes: tell it how many examples there are of each class.
        personal: "head" or "finetune" trains that, or all, further for this device alone when the run is over; the
            model is kept in `state` (docs/inference.md).
        plan: "fast", the fastest way of computing, which a search of seconds finds; or "reference", the same bits
            everywhere.
        device: to train on: "cpu", "cuda", "mps"; "auto" is an accelerator if there is one.
        factories: "package.module:function" of custom models, losses and training loops that may be imported here, and
            no others.
        watch: is told of every task.
        tls_ca: certificate authority of the coordinator, PEM.
        tls_cert: this device's certificate, PEM.
        tls_key: its key, PEM.
        enroll: the token of the coordinator's operator, which is needed once: this device's certificate is kept in
            `state` and renewed in time. The name is then the token's.
        insecure: speak plain text to another machine.

    Raises `DiastoleError` in one line.

    """
    for factory in factories:
        custom.allow(factory)
    given = insecure or any(path is not None for path in (tls_ca, tls_cert, tls_key))
    if enroll and (given or state is None):
        raise LinkError("enroll makes this device's certificate, in state; it goes with no tls_* or insecure")
    with ExitStack() as held:
        own, source = "device", data if isinstance(data, DataSource) else None
        if isinstance(data, Path | str):
            own, source = held.enter_context(opened(str(data), replace(settings, test_share=test_share)))
        folder = held.enter_context(closing(StateFolder(state))) if state else None
        who = enrolled(folder.place, address, enroll) if folder and not given else None
        if who and name not in ("", who.identity.name):
            raise LinkError(f"name {name!r}: this device is enrolled as {who.identity.name!r}")
        secrets = None if who else credentials(address, tls_ca, tls_cert, tls_key, insecure=insecure)
        name = who.identity.name if who else name or own
        if source is None:
            source = Fixed(as_examples("data", data))
        source, kept = divided(source, test_share, name)
        if isinstance(source, Windows):
            source.wait()
        place = place_of(device)
        me = profile(tier, len(source), memory, plan, place.type, budget.most_threads)
        if share_classes:
            # A stream may have grown since.
            counts = class_counts(source.examples())
            me = replace(me, examples=sum(counts), class_counts=counts)
        key = folder.key if folder else ""
        connection = Connection(
            address, name, me, patience=patience, credentials=secrets, key=key, enrolled=who, pace=Pace(folder)
        )
        terms = Terms(
            folder,
            budget,
            memory=free_memory if memory is None else None,
            kept=kept,
            personal=personal,
            share_scores=share_scores,
            share_classes=share_classes,
            measures=True,
        )
        return agent.run(connection, source, watch, plan, place, terms)
