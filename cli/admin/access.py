"""`diastole admin enroll` and `operators`: tokens for devices and operators, and whose count no more."""

from typing import Annotated

import typer

from diastole.cli.admin.verb import Call, Yes, group, verb
from diastole.client.errors import RefusedError
from diastole.v1 import admin_pb2 as pb

app = group("")
operators = group("The operators of other machines.")


@verb(app, gives=pb.InviteReply)
def enroll(
    call: Call,
    name: Annotated[str, typer.Argument(help="The device's name, or the operator's.")],
    hours: Annotated[float, typer.Option(min=0.01, max=720, help="For which the token counts.")] = 1.0,
    operator: Annotated[bool, typer.Option("--operator", help="The name is an operator's, not a device's.")] = False,
) -> None:
    """Make the token with which a device enrolls, once: `diastole join ADDRESS --enroll TOKEN`.

    An operator of another machine enrolls with `diastole admin login TOKEN`.

    Example: `diastole admin enroll pi-7 --hours 24`
    """
    reply = call.ask("Invite", pb.InviteRequest(name=name, seconds=hours * 3600, operator=operator))
    call.answer(reply, reply.token)


@verb(operators, gives=pb.RevokeReply)
def revoke(call: Call, name: Annotated[str, typer.Argument(help="The operator's name.")], yes: Yes = False) -> None:
    """Shut an operator of another machine out, at once, who can come back with a new token only.

    Example: `diastole admin operators revoke alice --yes`
    """
    call.sure(yes, f"Shut operator {name} out, until a new token?")
    reply = call.ask("Revoke", pb.RevokeRequest(name=name, operator=True))
    if not reply.known:
        raise RefusedError(f"{call.address}: no operator {name!r} is enrolled or has a token")
    call.answer(reply, f"{name} is shut out")
