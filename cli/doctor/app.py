"""`diastole doctor`: what is wrong with a deployment."""

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diastole.cli.calling import TOKEN_FILE
from diastole.cli.options import Json, consoles, print_json
from diastole.proto.address import Address
from diastole.proto.errors import DiastoleError

if TYPE_CHECKING:
    from diastole.cli.doctor.finding import Finding


class SickError(DiastoleError):
    """A deployment in which something is wrong."""

    exit_code = 6


def doctor(
    coordinator: Annotated[
        str,
        typer.Option(help="On a device: the coordinator that it calls, host:port."),
    ] = "",
    state: Annotated[
        Path | None, typer.Option(help="The state folder: the coordinator's, by default state; or the device's.")
    ] = None,
    listen: Annotated[str, typer.Option(help="Where devices call the coordinator.")] = "127.0.0.1:7700",
    admin: Annotated[str, typer.Option(help="Where operators call it.")] = "127.0.0.1:7701",
    enroll: Annotated[
        str, typer.Option(help="Where devices enroll, host:port; on a device: the token that it would enroll with.")
    ] = "",
    web: Annotated[str, typer.Option(help="Where the dashboard is.")] = "",
    database: Annotated[str, typer.Option(help="The coordinator's database, a URL.")] = "",
    token_file: Annotated[Path, typer.Option(help="The file that shows the coordinator who asks.")] = TOKEN_FILE,
    tls_ca: Annotated[Path | None, typer.Option(help="On a device: the coordinator's authority, PEM.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="A certificate of this side's own, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    insecure: Annotated[bool, typer.Option(help="On a device: it speaks plain text.")] = False,
    json: Json = False,
) -> None:
    """Find what is wrong with a deployment, why, and what to do; the exit code is 6 if something is.

    On the coordinator's machine, whether it runs or not: its folder, database, certificates and ports, and what it
    answers. On a device, with --coordinator: the name, the port, encryption, certificates, clocks and versions.

    Example: `diastole doctor --coordinator coordinator.example:7700`
    """
    from diastole.cli.doctor import field, home, machine

    if coordinator:
        Address.parse(coordinator)
        certificate, key = tls_cert, tls_key
        device = field.Device(coordinator, state, tls_ca, certificate, key, enroll, insecure)
        found = [*machine.check(), *field.check(device)]
    else:
        served = home.Coordinator(
            state or Path("state"), listen, admin, enroll, web, database, tls_cert, tls_key, token_file
        )
        found = [*machine.check(), *home.check(served)]
    if json:
        print_json([asdict(each) for each in found])
    else:
        show(found)
    faults = sum(each.level == "fault" for each in found)
    if faults:
        raise SickError(f"{faults} {'faults' if faults > 1 else 'fault'} found; each says what to do")


def show(found: "Iterable[Finding]") -> None:
    """Print findings for people: what is wrong last, so that it is seen."""
    console = consoles(json=False)
    ranks = {"ok": 0, "warning": 1, "fault": 2}
    for each in sorted(found, key=lambda each: ranks[each.level]):
        mark = {"ok": "ok     ", "warning": "warning", "fault": "FAULT  "}[each.level]
        console.print(f"{mark} {each.check}: {each.what}", soft_wrap=True)
        for text in (each.why and f"because {each.why}", each.todo and f"to do: {each.todo}"):
            if text:
                console.print(f"        {text}", soft_wrap=True)
    sys.stdout.flush()
