"""How a device enrolls with a coordinator, and the identity that it has from then on."""

import json
import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc

from diastole.client.bounds import CALL_SECONDS
from diastole.client.channel import open_channel, reason_of, why
from diastole.client.errors import FolderError, LinkError, MessageError, RefusedError
from diastole.proto.address import Address
from diastole.proto.files import write_bytes
from diastole.proto.invitation import Token
from diastole.proto.words import plain
from diastole.v1 import device_pb2, device_pb2_grpc, enroll_pb2_grpc
from diastole.v1 import enroll_pb2 as pb

FOLDER = "identity"
RENEWED_AFTER = timedelta(days=30)
"""Age at which a certificate is renewed, at an agent's start."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a device is to one coordinator.

    Attributes:
        name: the device's.
        ca: certificate of the coordinator's authority, PEM.
        certificate: the device's own, PEM.
        key: the device's own, PEM; it never leaves the device.

    """

    name: str
    ca: str
    certificate: str
    key: str

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what a channel to the coordinator is opened with."""
        return grpc.ssl_channel_credentials(self.ca.encode(), self.key.encode(), self.certificate.encode())


def identity_of(state: Path, address: str) -> Identity | None:
    """Return who the device with the state folder `state` is to the coordinator at `address`; None if not enrolled.

    Raises `FolderError` for a file that is damaged.
    """
    path = _path(state, address)
    try:
        found = json.loads(path.read_text())
        return Identity(*(str(found[key]) for key in ("name", "ca", "certificate", "key")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise FolderError(f"{path}: no identity can be read; remove it, and enroll anew with --enroll") from None


def enroll(state: Path, address: str, token: Token) -> Identity:
    """Enroll at the coordinator whose devices call `address`, and keep the identity below `state`.

    Raises `LinkError` if the coordinator cannot be reached, or is not the token's; `RefusedError` if it refuses the
    token; `MessageError` for a reply that is no certificate; `FolderError` if nothing can be kept in the folder.
    """
    path = _path(state, address)
    # The token counts once: whether the identity can be kept is tried before.
    _keep(path.with_name("tried"), b"")
    key, request = _request()
    at = str(Address.parse(address).at(token.port))
    with open_channel(at, grpc.ssl_channel_credentials(token.ca.encode()), enrolled=True) as channel:
        stub: Any = enroll_pb2_grpc.EnrollServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            reply = stub.Enroll(pb.EnrollRequest(secret=token.secret, signing_request=request), timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            if reason_of(error):
                text = plain(error.details() or "it says no more")
                raise RefusedError(f"{at}: {text}", reason_of(error)) from None
            raise LinkError(f"cannot enroll at {at}: {why(at, error, secure=True)}") from None
    return _kept(path, at, Identity(token.name, token.ca, _text(reply.certificate), key))


def renewed(state: Path, address: str, identity: Identity, after: timedelta = RENEWED_AFTER) -> Identity:
    """Return a device's identity with a new key and certificate if the certificate is older than `after`.

    If the coordinator gives none now, the old one is returned, which still counts. Raises `MessageError` for a reply
    that is no certificate, and `FolderError` if nothing can be kept in the folder, or without `cryptography`.
    """
    key, request = _request()
    from cryptography import x509

    if datetime.now(UTC) - x509.load_pem_x509_certificate(identity.certificate.encode()).not_valid_before_utc < after:
        return identity
    with open_channel(address, identity.credentials(), enrolled=True) as channel:
        stub: Any = device_pb2_grpc.DeviceServiceStub(channel)  # type: ignore[no-untyped-call]
        message = device_pb2.RenewRequest(name=identity.name, signing_request=request)
        try:
            reply = stub.Renew(message, timeout=CALL_SECONDS)
        except grpc.RpcError:
            return identity
    fresh = replace(identity, certificate=_text(reply.certificate), key=key)
    return _kept(_path(state, address), address, fresh)


def _request() -> tuple[str, bytes]:
    """Return a new key, PEM, and a signing request for it."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise FolderError("to enroll, install diastole[enroll]: cryptography is missing") from None
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    kind, form, none = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(kind, form, none).decode(), request.public_bytes(serialization.Encoding.DER)


def _text(certificate: bytes) -> str:
    return certificate.decode("ascii", errors="replace")


def _kept(path: Path, address: str, identity: Identity) -> Identity:
    """Keep an identity, and return it, if its certificate is one of its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificate = x509.load_pem_x509_certificate(identity.certificate.encode())
    except ValueError:
        raise MessageError(f"{address} answers with no certificate") from None
    if certificate.public_key() != load_pem_private_key(identity.key.encode(), None).public_key():
        raise MessageError(f"{address} answers with a certificate of another key")
    _keep(path, json.dumps(asdict(identity)).encode())
    return identity


def _path(state: Path, address: str) -> Path:
    return state / FOLDER / (re.sub(r"[^A-Za-z0-9._-]", "_", str(Address.parse(address))) + ".json")


def _keep(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_bytes(path, data, 0o600)
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror}; who this device is must be kept there") from None
