"""The page that shows runs on this machine, for as long as a command goes on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rich.console import Console

from diastole.proto.address import Address

if TYPE_CHECKING:
    from diastole.simulations.dashboard import LocalDashboard


@contextmanager
def dashboard(console: Console, wanted: bool, web: str) -> Iterator["LocalDashboard | None"]:
    """Serve the page in this block if it is `wanted`, or if `web` says where, and on a terminal until Ctrl-C.

    Raises `NoAddressError` or `AddressError`.
    """
    if not wanted and not web:
        yield None
        return
    from diastole.simulations.dashboard import LocalDashboard

    with LocalDashboard(Address.parse(web, listening=True) if web else None) as board:
        console.print(f"dashboard {board.url}", soft_wrap=True)
        yield board
        if console.is_terminal:
            console.print("The dashboard stays until Ctrl-C.")
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
