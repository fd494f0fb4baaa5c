"""How a device enrolls with a coordinator, and the identity that it has from then on."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc

from diastole.client.bounds import CALL_SECONDS
from diastole.client.channel import open_channel, reason_of, why
from diastole.client.errors import FolderError, LinkError, MessageError, RefusedError
from diastole.client.identities import Identities
from diastole.proto.address import Address
from diastole.proto.identity import Identity
from diastole.proto.invitation import Token
from diastole.proto.words import plain
from diastole.v1 import device_pb2, device_pb2_grpc, enroll_pb2_grpc
from diastole.v1 import enroll_pb2 as pb

RENEWED_AFTER = timedelta(days=30)
"""Age at which a certificate is renewed, at an agent's start."""


def enroll(state: Path, address: str, token: Token) -> Identity:
    """Enroll at the coordinator whose devices call `address`, and keep the identity below `state`.

    Raises `LinkError` if the coordinator cannot be reached, or is not the token's; `RefusedError` if it refuses the
    token; `MessageError` for a reply that is no certificate; `FolderError` if nothing can be kept in the folder.
    """
    kept = Identities(state)
    # The token counts once: whether the identity can be kept is tried before.
    kept.check()
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
    identity = _checked(at, Identity(token.name, token.ca, _text(reply.certificate), key))
    kept.keep(identity, address)
    return identity


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
    fresh = _checked(address, replace(identity, certificate=_text(reply.certificate), key=key))
    Identities(state).keep(fresh, address)
    return fresh


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


def _checked(at: str, identity: Identity) -> Identity:
    """Return an identity whose certificate is one of its key. Raises `MessageError`."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificate = x509.load_pem_x509_certificate(identity.certificate.encode())
    except ValueError:
        raise MessageError(f"{at} answers with no certificate") from None
    if certificate.public_key() != load_pem_private_key(identity.key.encode(), None).public_key():
        raise MessageError(f"{at} answers with a certificate of another key")
    return identity
