"""`diastole admin health`: whether the coordinator serves."""

import sys

from diastole.cli.admin.verb import SECONDS, Call, group, verb
from diastole.cli.options import print_json
from diastole.client.errors import RefusedError

app = group("")


@verb(app, shape={"serving": bool})
def health(call: Call) -> None:
    """Ask whether the coordinator serves, as Docker and Kubernetes do: the exit code is 0 if so, without a token.

    Example: `diastole admin health`
    """
    with call.open() as stub:
        if not stub.serves(SECONDS):
            raise RefusedError(f"{call.address}: the coordinator does not serve now")
    if call.json:
        print_json({"serving": True})
    else:
        sys.stdout.write("serving\n")
