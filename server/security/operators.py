"""Whose calls an operator's are: those that carry the admin token, which is in a file for the operator alone."""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from diastole.proto.files import write_bytes
from diastole.proto.words import REASON_KEY, Reason
from diastole.server.errors import FolderError

ADMIN_TOKEN = "admin.token"  # noqa: S105 (a file's name)
HEADER = "authorization"


def admin_token(path: Path) -> str:
    """Return the admin token in a file; it is made if there is none. Raises `FolderError`."""
    try:
        if path.exists() and (found := path.read_text().strip()):
            return found
        drawn = secrets.token_urlsafe(32)
        write_bytes(path, f"{drawn}\n".encode(), 0o600)
    except (OSError, ValueError) as error:
        raise FolderError(f"{path}: the admin token cannot be kept there ({error})") from None
    return drawn


class Operators(grpc.ServerInterceptor):  # type: ignore[type-arg]  # no generic at run time
    """Refuses every call that does not carry the token."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()
        text = "this call carries no admin token, or not this coordinator's; diastole admin --token-file takes its file"

        def refuse(request: Any, context: grpc.ServicerContext) -> None:
            context.set_trailing_metadata(((REASON_KEY, Reason.ADMIN_TOKEN),))
            context.abort(grpc.StatusCode.UNAUTHENTICATED, text)

        self._refused = grpc.unary_unary_rpc_method_handler(refuse)

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Let a call through, or refuse it."""
        found = next((value for key, value in details.invocation_metadata if key == HEADER), "")
        given = found if isinstance(found, bytes) else found.encode()
        return continuation(details) if secrets.compare_digest(given, self._expected) else self._refused
