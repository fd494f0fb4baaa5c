"""`diastole admin logs`: what a coordinator has logged."""

import json
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from diastole.cli.admin.verb import SECONDS, Call, OfRun, group, plain, verb
from diastole.cli.logs import LevelOption, LogLevel
from diastole.v1 import admin_pb2 as pb

app = group("")


@verb(app, gives=pb.LogLine)
def logs(
    call: Call,
    run_id: OfRun = "",
    device: Annotated[str, typer.Option(help="Only lines about this device.")] = "",
    level: LevelOption = LogLevel.INFO,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with the lines that come.")] = False,
) -> None:
    """Show the latest lines of a coordinator's log, 5,000 at most; with --json one document a line.

    Example: `diastole admin logs --level warning --follow`
    """
    request = pb.LogsRequest(run_id=run_id, device=device, level=level.value, follow=follow)
    with call.open() as stub:
        for line in stub.Logs(request, timeout=None if follow else SECONDS):
            sys.stdout.write((json.dumps(plain(line)) if call.json else _text(line)) + "\n")
            sys.stdout.flush()


def _text(line: pb.LogLine) -> str:
    at = datetime.fromtimestamp(line.at, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    parts = ("run", line.run_id), ("round", line.round), ("device", line.device)
    told = " ".join(f"{name}={value}" for name, value in parts if value)
    return f"{at}Z {line.level.upper():<7} {line.message}" + (f"  ({told})" if told else "")
