"""`diastole admin login`: a certificate for an operator of another machine."""

from typing import Annotated

import typer

from diastole.cli.admin.verb import Call, group, verb
from diastole.cli.calling import operators_folder
from diastole.cli.options import consoles, print_json
from diastole.proto.identity import OPERATOR
from diastole.proto.invitation import Token, TokenError

app = group("")


@verb(app, shape={"operator": str, "address": str, "folder": str})
def login(
    call: Call, token: Annotated[str, typer.Argument(help="What `diastole admin enroll --operator NAME` has printed.")]
) -> None:
    """Enroll an operator on this machine, once; from then on the other commands call that coordinator over mutual TLS.

    Example: `diastole admin login TOKEN --address coordinator.example:7701`
    """
    # Imports torch, which the other commands do without.
    from diastole.client.enrolling import enroll as enrolling

    given = Token.parse(token)
    if not given.name.startswith(OPERATOR):
        raise TokenError(f"this token is of the device {given.name!r}; diastole join --enroll takes it")
    folder = operators_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    enrolling(folder, call.address, given)
    name = given.name.removeprefix(OPERATOR)
    if call.json:
        print_json({"operator": name, "address": call.address, "folder": str(folder)})
    else:
        text = f"{name} is an operator of {call.address}; the certificate is in {folder}"
        consoles(call.json).print(text, soft_wrap=True)
