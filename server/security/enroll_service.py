"""The gRPC service at which devices enroll; proto/diastole/v1/enroll.proto is its contract."""

from concurrent.futures import ThreadPoolExecutor

import grpc

from diastole.proto.words import REASON_KEY, Reason
from diastole.server.errors import AddressError
from diastole.server.security.audit import Note
from diastole.server.security.authority import RequestError
from diastole.server.security.enrollment import Enrollment, SecretError
from diastole.server.wire.bounds import HANDSHAKE_SECONDS
from diastole.v1 import enroll_pb2 as pb
from diastole.v1 import enroll_pb2_grpc

WORKERS, CONNECTIONS, MESSAGE_BYTES = 2, 64, 16_384
IDLE_MS = 20_000
OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_connection_idle_ms", IDLE_MS),
    ("grpc.max_connection_age_ms", IDLE_MS),
    ("grpc.max_connection_age_grace_ms", IDLE_MS),
    ("grpc.max_allowed_incoming_connections", CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", 1000 * HANDSHAKE_SECONDS),
)


class EnrollService(enroll_pb2_grpc.EnrollServiceServicer):
    """Exchanges tokens' secrets for certificates."""

    def __init__(self, enrollment: Enrollment, note: Note) -> None:
        self._enrollment, self._note = enrollment, note

    def Enroll(self, request: pb.EnrollRequest, context: grpc.ServicerContext) -> pb.EnrollReply:  # noqa: N802
        """Certify a device."""
        try:
            name, certificate = self._enrollment.enroll(request.secret, request.signing_request)
        except (SecretError, RequestError) as error:
            denied = isinstance(error, SecretError)
            self._note(context.peer(), "Enroll", "", str(error), stranger=True)
            context.set_trailing_metadata(((REASON_KEY, Reason.TOKEN if denied else Reason.SIGNING_REQUEST),))
            code = grpc.StatusCode.PERMISSION_DENIED if denied else grpc.StatusCode.INVALID_ARGUMENT
            context.abort(code, str(error))
        except OSError as error:
            context.set_trailing_metadata(((REASON_KEY, Reason.STORAGE),))
            context.abort(grpc.StatusCode.UNAVAILABLE, f"nobody can be enrolled now: {error.strerror}")
        self._note(context.peer(), "Enroll", name, "enrolled")
        return pb.EnrollReply(certificate=certificate)


class EnrollServer:
    """Serves an `EnrollService` on an address of its own, over TLS."""

    def __init__(self, address: str, enrollment: Enrollment, note: Note) -> None:
        """Start serving, and put the port into the tokens of `enrollment`. Raises `AddressError`."""
        self._server = grpc.server(ThreadPoolExecutor(WORKERS, "diastole-enroll"), options=OPTIONS)
        service = EnrollService(enrollment, note)
        enroll_pb2_grpc.add_EnrollServiceServicer_to_server(service, self._server)  # type: ignore[no-untyped-call]
        try:
            self.port = self._server.add_secure_port(address, enrollment.authority.credentials(mutual=False))
        except RuntimeError:
            raise AddressError.taken(address) from None
        enrollment.port = self.port
        self._server.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.stop(grace=0.5).wait()
