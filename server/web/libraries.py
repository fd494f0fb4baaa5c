"""Whether the libraries of the dashboard are there."""

from importlib.util import find_spec

from diastole.proto.missing import missing
from diastole.server.errors import AddressError


def check_libraries() -> None:
    """Raise `AddressError` without the libraries of the dashboard."""
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise AddressError(missing("the dashboard", "Starlette or uvicorn", "diastole[dashboard]"))
