"""Whose calls an operator's are: those that carry the admin token, or show an operator's certificate."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from diastole.proto.files import write_bytes
from diastole.proto.identity import OPERATOR, Identity
from diastole.proto.words import REASON_KEY, Reason
from diastole.server.errors import FolderError
from diastole.server.security.audit import Note
from diastole.server.wire.identity import NAMES, Gate, Shown, StrangerError

ADMIN_TOKEN = "admin.token"  # noqa: S105 (a file's name)
HEADER = "authorization"
HEALTH = "/grpc.health.v1.Health/"
"""Whose calls anybody may make."""

Check: TypeAlias = Callable[[grpc.ServicerContext], str]
"""Returns who calls. Raises `StrangerError` if it is no operator."""


def admin_token(path: Path) -> str:
    """Return the admin token in a file; it is made if there is none. Raises `FolderError`."""
    try:
        # An operator's certificate is there if operators of other machines called before.
        if path.exists() and (found := path.read_text().strip()) and not found.startswith("{"):
            return found
        drawn = secrets.token_urlsafe(32)
        write_bytes(path, f"{drawn}\n".encode(), 0o600)
    except (OSError, ValueError) as error:
        raise FolderError(f"{path}: the admin token cannot be kept there ({error})") from None
    return drawn


def admin_identity(path: Path, identity: Identity) -> None:
    """Keep an operator's identity where the admin token is otherwise. Raises `FolderError`."""
    try:
        write_bytes(path, f"{identity.text()}\n".encode(), 0o600)
    except OSError as error:
        raise FolderError(f"{path}: the operator's certificate cannot be kept there ({error})") from None


def by_token(token: str) -> Check:
    """Take calls that carry the token; who calls is an address."""
    expected = f"Bearer {token}".encode()
    text = "this call carries no admin token, or not this coordinator's; diastole admin --token-file takes its file"

    def check(context: grpc.ServicerContext) -> str:
        found = next((value for key, value in context.invocation_metadata() if key == HEADER), "")
        given = found if isinstance(found, bytes) else found.encode()
        if not secrets.compare_digest(given, expected):
            raise StrangerError(Reason.ADMIN_TOKEN, text)
        return str(context.peer())

    return check


def by_certificate(gate: Gate) -> Check:
    """Take calls that show a certificate of an operator, whose name is returned."""

    def check(context: grpc.ServicerContext) -> str:
        shown: Any = context.auth_context()
        name = operator_of(shown)
        try:
            if gate.check(name, shown):
                return name
        except StrangerError:
            pass
        text = "this certificate is no operator's, or does not count any more; diastole admin login takes a new token"
        raise StrangerError(Reason.OPERATOR_CERTIFICATE, text)

    return check


def operator_of(shown: Shown) -> str:
    """Return the operator whom a certificate names, if it names one."""
    names = (value.decode(errors="replace") for kind in NAMES for value in shown.get(kind, ()))
    return next((name for name in names if name.startswith(OPERATOR)), OPERATOR)


class Operators(grpc.ServerInterceptor):  # type: ignore[type-arg]  # no generic at run time
    """Refuses the calls of all others, and writes each call down."""

    def __init__(self, check: Check, note: Note) -> None:
        self._check, self._note = check, note

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Return what answers a call."""
        handler = continuation(details)
        if handler is None or details.method.startswith(HEALTH):
            return handler
        call = details.method.rpartition("/")[2]
        form = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(self._following(call, handler.stream_stream), **form)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._following(call, handler.unary_stream), **form)
        return grpc.unary_unary_rpc_method_handler(self._answering(call, handler.unary_unary), **form)

    def _answering(self, call: str, inner: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            who, detail = self._who(call, request, context), _brief(request)
            try:
                reply = inner(request, context)
            except BaseException:
                self._note(who, call, detail, _said(context))
                raise
            self._note(who, call, detail, "done")
            return reply

        return answer

    def _following(self, call: str, inner: Callable[[Any, Any], Iterator[Any]]) -> Callable[[Any, Any], Iterator[Any]]:
        def follow(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            self._note(self._who(call, request, context), call, _brief(request), "begun")
            for each in inner(request, context):
                # Whoever is shut out hears nothing more.
                self._who(call, request, context)
                yield each

        return follow

    def _who(self, call: str, request: Any, context: grpc.ServicerContext) -> str:
        try:
            return self._check(context)
        except StrangerError as error:
            self._note(str(context.peer()), call, _brief(request), str(error), stranger=True)
            context.set_trailing_metadata(((REASON_KEY, error.reason),))
            denied = error.reason == Reason.OPERATOR_CERTIFICATE
            code = grpc.StatusCode.PERMISSION_DENIED if denied else grpc.StatusCode.UNAUTHENTICATED
            context.abort(code, str(error))
            raise AssertionError("abort returned") from None


def _brief(request: Any) -> str:
    if not isinstance(request, Message):
        return ""
    fields = ((field.name, value) for field, value in request.ListFields() if not isinstance(value, bytes))
    return ", ".join(f"{name}={value}" for name, value in fields)


def _said(context: Any) -> str:
    """Return what a call was refused with."""
    text = context.details() or b"it failed"
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
