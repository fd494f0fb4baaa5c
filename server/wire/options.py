"""How gRPC servers are set up."""

import grpc

from diastole.proto.framing import read_part
from diastole.server.errors import AddressError
from diastole.server.wire.bounds import (
    AGE_SECONDS,
    HANDSHAKE_SECONDS,
    LOOKAHEAD_BYTES,
    MESSAGE_BYTES,
    SILENT_SECONDS,
    STREAMS,
)
from diastole.server.wire.health import add_health
from diastole.v1 import device_pb2 as pb
from diastole.v1 import device_pb2_grpc

DEVICES = pb.DESCRIPTOR.services_by_name["DeviceService"].full_name
OPTIONS = (
    # Two coordinators on one port would share its devices between them.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.max_frame_size", 1 << 20),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)
OPERATOR_CONNECTIONS = 256
OPERATOR_OPTIONS = (
    *OPTIONS,
    # Strangers' connections must leave descriptors to the devices.
    ("grpc.max_allowed_incoming_connections", OPERATOR_CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", 1000 * HANDSHAKE_SECONDS),
)
DEVICE_OPTIONS = (
    *OPTIONS,
    # Else what has come and nobody has read yet grows with the speed of the connection, to megabytes for each call.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", LOOKAHEAD_BYTES),
    ("grpc.max_concurrent_streams", STREAMS),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_connection_idle_ms", 1000 * SILENT_SECONDS),
    ("grpc.max_connection_age_ms", 1000 * AGE_SECONDS),
    ("grpc.max_connection_age_grace_ms", 1000 * SILENT_SECONDS),
    ("grpc.server_handshake_timeout_ms", 1000 * HANDSHAKE_SECONDS),
)


def add_devices(server: grpc.aio.Server, service: device_pb2_grpc.DeviceServiceServicer) -> None:
    """Let a server answer devices; pieces of objects, framed already, pass by protobuf (`proto/framing.py`)."""
    device_pb2_grpc.add_DeviceServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    moving = {
        "Download": grpc.unary_stream_rpc_method_handler(
            service.Download, request_deserializer=pb.DownloadRequest.FromString
        ),
        "Upload": grpc.stream_unary_rpc_method_handler(
            service.Upload, request_deserializer=read_part, response_serializer=pb.UploadReply.SerializeToString
        ),
    }
    server.add_registered_method_handlers(DEVICES, moving)  # type: ignore[attr-defined]
    add_health(server, DEVICES)


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
