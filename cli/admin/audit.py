"""`diastole admin audit`: who has asked for what."""

from typing import Annotated

import typer

from diastole.cli.admin.rounds import when
from diastole.cli.admin.verb import Call, group, table, verb
from diastole.v1 import admin_pb2 as pb

app = group("")


@verb(app, gives=[pb.AuditLine])
def audit(
    call: Call, most: Annotated[int, typer.Option(min=1, max=1000, help="The last so many lines.")] = 100
) -> None:
    """Show who has called, for what, and how it ended: operators, and devices that were enrolled, renewed or refused.

    Example: `diastole admin audit --most 20`
    """
    lines = call.ask("ListAudit", pb.ListAuditRequest(most=most)).lines
    rows = [(when(line.at), line.who, line.call, line.detail, line.outcome) for line in lines]
    call.answer(lines, table(("time", "who", "call", "asked for", "outcome"), rows))
