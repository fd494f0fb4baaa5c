"""A channel to a coordinator, and how its errors and its model are read."""

import re
from typing import Any

import grpc

from diastole.client.bounds import HEADER_BYTES, LONGEST_RETRY, MESSAGE_BYTES
from diastole.models.errors import ModelError, brief
from diastole.models.hollow import hollow
from diastole.models.methods.registry import build
from diastole.models.networks.config import ModelConfig
from diastole.models.state import schema_hash
from diastole.proto.address import cause, channel_options
from diastole.proto.errors import DiastoleError
from diastole.proto.invitation import SERVER_NAME
from diastole.proto.words import REASON_KEY, RETRY_KEY, plain

OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 20_000),
    # Streams are read by the thread that waits for them, without another one between.
    ("SingleThreadedUnaryStream", 1),
    ("grpc.http2.max_frame_size", 1 << 20),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_metadata_size", HEADER_BYTES),
    ("grpc.absolute_max_metadata_size", HEADER_BYTES),
)
TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
# Certificates and keys that do not match, or no TLS at the other end: waiting does not heal that.
HOPELESS = re.compile(r"SSL_ERROR_SSL|[Vv]erification [Cc]heck failed|Failed to create security handshaker")


def open_channel(
    address: str, credentials: grpc.ChannelCredentials | None, *, enrolled: bool = False, apart: bool = False
) -> grpc.Channel:
    """Return a channel to `address`, `host:port`; in plain text without credentials.

    `enrolled` if the credentials trust the coordinator's own authority alone: whatever its host is called, it shows the
    one name that this authority gives to no device. A channel that is `apart` shares its connection with no other.
    """
    options: tuple[tuple[str, str | int], ...] = (*OPTIONS, *channel_options(address))
    if apart:
        options = (*options, ("grpc.use_local_subchannel_pool", 1))
    if enrolled:
        options = (*options, ("grpc.ssl_target_name_override", SERVER_NAME))
    if credentials is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, credentials, options=options)


def why(address: str, error: grpc.RpcError, secure: bool) -> str:
    """Return in one line why a call did not reach a coordinator."""
    text = plain(cause(address, error.details() or error.code().name))
    if "unable to get local issuer certificate" in text:
        return f"{text}; a device that is not enrolled yet needs a token of the operator's (--enroll)"
    if "Socket closed" not in text:
        return text
    if not secure:
        return f"{text}; if the coordinator speaks TLS, give its authority"
    return f"{text}; if the coordinator asks for certificates, give this device's and its key"


def reason_of(error: grpc.RpcError) -> str:
    """Return the stable reason word beside a status, or an empty string."""
    metadata: Any = error.trailing_metadata() or ()
    return next((plain(str(value)) for key, value in metadata if key == REASON_KEY), "")


def retry_of(error: grpc.RpcError) -> float:
    """Return the seconds after which the call may be made again, as the coordinator says; at most `LONGEST_RETRY`."""
    metadata: Any = error.trailing_metadata() or ()
    found = next((str(value) for key, value in metadata if key == RETRY_KEY), "")
    return min(int(found) / 1000, LONGEST_RETRY) if found.isascii() and found.isdecimal() and len(found) < 10 else 0.0


def schema_of(model: ModelConfig) -> str:
    """Return the hash of a model's parameters. Raises `ModelError` in one line, whatever the configuration."""
    try:
        with hollow():
            return schema_hash(dict(build(model).named_parameters()))
    except DiastoleError:
        raise
    except Exception as error:  # noqa: BLE001 (numbers from outside may break any layer)
        raise ModelError(f"the coordinator's model {model.name} cannot be built: {brief(error)}") from None
