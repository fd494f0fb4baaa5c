"""How operators' commands call a coordinator, and what they show it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from diastole.client.errors import LinkError, RefusedError
from diastole.client.identities import Identities
from diastole.client.statefolder import state_home
from diastole.proto.address import Address, cause, channel_options
from diastole.proto.identity import Identity
from diastole.proto.invitation import SERVER_NAME
from diastole.v1 import admin_pb2_grpc

TOKEN_FILE = Path("state/admin.token")
OPERATORS = ".operators"
"""Folder of this user's certificates; no device's folder has a name like that."""


class Stub:
    """Stubs whose calls carry an operator's token, if there is one."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        self._stubs: list[Any] = [
            admin_pb2_grpc.AdminServiceStub(channel),  # type: ignore[no-untyped-call]
            admin_pb2_grpc.AccessServiceStub(channel),  # type: ignore[no-untyped-call]
            admin_pb2_grpc.RoundServiceStub(channel),  # type: ignore[no-untyped-call]
            admin_pb2_grpc.LogServiceStub(channel),  # type: ignore[no-untyped-call]
        ]
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

        self._health: Any = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)

    def serves(self, seconds: float) -> bool:
        """Return whether the coordinator says that it serves. Raises `grpc.RpcError` after so many seconds."""
        # The empty request, and SERVING: two messages are not worth a library.
        return bool(self._health(b"", timeout=seconds) == b"\x08\x01")

    def __getattr__(self, call: str) -> Any:
        stub = next(stub for stub in self._stubs if hasattr(stub, call))
        return partial(getattr(stub, call), metadata=self._metadata)


@contextmanager
def calling(address: str, token_file: Path) -> Iterator[Any]:
    """Yield a stub; whatever goes wrong in the block is one line."""
    loopback = Address.parse(address).loopback
    shown, kept = _shown(address, token_file)
    if not loopback and not isinstance(shown, Identity):
        raise RefusedError(f"{address}: operators of other machines enroll first; diastole admin login TOKEN does it")
    with _channel(address, shown) as channel:
        try:
            stub = Stub(channel, "" if isinstance(shown, Identity) else shown)
            if isinstance(shown, Identity) and kept:
                renewed(address, shown, stub)
            yield stub
        except grpc.RpcError as error:
            why = cause(address, error.details())
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise LinkError(f"no coordinator's admin service at {address} ({why})") from None
            raise RefusedError(f"{address}: {why}") from None


def operators_folder() -> Path:
    """Return where this user's certificates of coordinators' operators are kept. Raises `FolderError`."""
    return state_home() / OPERATORS


def _channel(address: str, shown: Identity | str) -> grpc.Channel:
    options: tuple[tuple[str, Any], ...] = channel_options(address)
    if isinstance(shown, str):
        return grpc.insecure_channel(address, options=options)
    options = (*options, ("grpc.ssl_target_name_override", SERVER_NAME))
    return grpc.secure_channel(address, shown.credentials(), options=options)


def renewed(address: str, identity: Identity, stub: Any) -> None:
    """Let a certificate that this user keeps be followed by another in time.

    Raises `LinkError` if it has ended, and `RefusedError` if it cannot be read.
    """
    try:
        if datetime.now(UTC) < identity.life()[-1]:
            return
    except ImportError:
        return
    except ValueError:
        text = f"{address}: the certificate of {identity.name!r} cannot be read; diastole admin login takes a new token"
        raise RefusedError(text) from None
    # Imports torch, which takes seconds.
    from diastole.client.enrolling import Enrolled

    Enrolled(operators_folder(), address, identity).renew(stub)


def _shown(address: str, path: Path) -> tuple[Identity | str, bool]:
    """Return a certificate or a token, an empty one if there is neither; and whether this user keeps it."""
    if path == TOKEN_FILE and (found := Identities(operators_folder()).at(address)):
        return found, True
    return _in_file(path), False


def _in_file(path: Path) -> Identity | str:
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        if path == TOKEN_FILE:
            return ""
        raise RefusedError(f"{path}: no such file; the coordinator says where its admin token is") from None
    except (OSError, ValueError) as error:
        raise RefusedError(f"{path}: no admin token can be read ({error})") from None
    if not text.startswith("{"):
        return text
    try:
        return Identity.parse(text)
    except (ValueError, KeyError, TypeError):
        raise RefusedError(f"{path}: no operator's certificate can be read") from None
