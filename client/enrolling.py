"""How a device enrolls with a coordinator, and the identity that it has from then on."""

import json
import re
from dataclasses import asdict, dataclass
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
from diastole.v1 import enroll_pb2 as pb
from diastole.v1 import enroll_pb2_grpc

FOLDER = "identity"


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
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise FolderError("to enroll, install diastole[enroll]: cryptography is missing") from None
    path = _path(state, address)
    # The token counts once: whether the identity can be kept is tried before.
    _keep(path.with_name("tried"), b"")
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    at = str(Address.parse(address).at(token.port))
    secrets = grpc.ssl_channel_credentials(token.ca.encode())
    with open_channel(at, secrets, enrolled=True) as channel:
        stub: Any = enroll_pb2_grpc.EnrollServiceStub(channel)  # type: ignore[no-untyped-call]
        message = pb.EnrollRequest(
            secret=token.secret, signing_request=request.public_bytes(serialization.Encoding.DER)
        )
        try:
            reply = stub.Enroll(message, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            if reason_of(error):
                text = plain(error.details() or "it says no more")
                raise RefusedError(f"{at}: {text}", reason_of(error)) from None
            raise LinkError(f"cannot enroll at {at}: {why(at, error, secure=True)}") from None
    try:
        certificate = x509.load_pem_x509_certificate(reply.certificate)
    except ValueError:
        raise MessageError(f"{at} answers with no certificate") from None
    if certificate.public_key() != key.public_key():
        raise MessageError(f"{at} answers with a certificate of another key")
    kind, form, none = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = key.private_bytes(kind, form, none).decode()
    identity = Identity(token.name, token.ca, certificate.public_bytes(kind).decode(), pem)
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
