"""How gRPC servers are set up."""

import grpc

from diastole.server.errors import AddressError
from diastole.server.wire.bounds import AGE_SECONDS, HANDSHAKE_SECONDS, MESSAGE_BYTES, SILENT_SECONDS, STREAMS

OPTIONS = (
    # Two coordinators on one port would share its devices between them.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)
DEVICE_OPTIONS = (
    *OPTIONS,
    ("grpc.max_concurrent_streams", STREAMS),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_connection_idle_ms", 1000 * SILENT_SECONDS),
    ("grpc.max_connection_age_ms", 1000 * AGE_SECONDS),
    ("grpc.max_connection_age_grace_ms", 1000 * SILENT_SECONDS),
    ("grpc.server_handshake_timeout_ms", 1000 * HANDSHAKE_SECONDS),
)


def listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    """Return the port on which a server, once it is started, listens at an address. Raises `AddressError`."""
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        if credentials is not None:
            raise AddressError(
                f"cannot serve {address} with TLS: it is in use, or the certificate or its key is not usable PEM"
            ) from None
        raise AddressError.taken(address) from None
