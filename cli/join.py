"""`diastole join`: the device agent."""

import os
import re
import socket
from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.sizes import parse_bytes
from diastole.client import agent, data
from diastole.client.connection import Connection
from diastole.client.profile import profile
from diastole.client.tls import credentials


def join(
    address: Annotated[str, typer.Argument(help="The coordinator, host:port.")],
    data_path: Annotated[Path, typer.Option("--data", help="This device's examples: an .npz with x and y.")],
    name: Annotated[str, typer.Option(help="This device's name; by default host and process.")] = "",
    tier: Annotated[str, typer.Option(help="A label for people.")] = "device",
    memory: Annotated[str, typer.Option(help="Training memory, such as 1.5MB; by default what is free.")] = "",
    patience: Annotated[float, typer.Option(min=0, help="Seconds to keep trying when nobody answers.")] = 30.0,
    tls_ca: Annotated[Path | None, typer.Option(help="Certificate authority of the coordinator, PEM.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="This device's certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="This device's key, PEM.")] = None,
    insecure: Annotated[bool, typer.Option(help="Speak plain text to another machine.")] = False,
) -> None:
    """Join a coordinator and train whatever it sends, until the run is over.

    Example: `diastole join 127.0.0.1:7700 --data shards/device-00.npz --name device-00 --tier large`
    """
    if not re.fullmatch(r".+:[0-9]{1,5}", address):
        raise typer.BadParameter(f"address {address!r} is not host:port, such as 127.0.0.1:7700")
    examples = data.load(data_path)
    connection = Connection(
        address,
        name or f"{socket.gethostname()}-{os.getpid()}",
        profile(tier, len(examples), parse_bytes(memory) if memory else None),
        patience=patience,
        credentials=credentials(address, tls_ca, tls_cert, tls_key, insecure=insecure),
    )
    typer.echo(f"joining {address} with {len(examples)} examples")
    summary = agent.run(connection, examples, _tell)
    typer.echo(f"the run is over: {summary.delivered} updates delivered, {summary.seconds:.1f} s of training")


def _tell(progress: agent.Progress) -> None:
    if progress.outcome:
        typer.echo(
            f"round {progress.round}: {progress.spec} trained in {progress.seconds:.2f} s, "
            f"loss {progress.loss:.3f}, {progress.outcome}"
        )
