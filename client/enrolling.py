"""How a device enrolls with a coordinator, and the identity that it has from then on."""

import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from diastole.client.bounds import CALL_SECONDS
from diastole.client.channel import open_channel, reason_of, why
from diastole.client.errors import FolderError, LinkError, MessageError, RefusedError
from diastole.client.identities import Identities
from diastole.proto.address import Address
from diastole.proto.errors import DiastoleError
from diastole.proto.identity import OPERATOR, Identity
from diastole.proto.invitation import Token, TokenError
from diastole.proto.missing import needed
from diastole.proto.words import plain
from diastole.v1 import device_pb2, enroll_pb2_grpc
from diastole.v1 import enroll_pb2 as pb

LONGEST_PAUSE = 3600.0
NEEDS = "enrollment", "cryptography", "diastole[enroll]"

LOG = logging.getLogger(__name__)


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


class Enrolled:
    """Who a device, or an operator, is to its coordinator, for as long as it likes: its certificate is renewed in time.

    Attributes:
        identity: the latest.

    """

    def __init__(self, state: Path, address: str, identity: Identity) -> None:
        """Begin with an identity that is kept below `state`, for the coordinator at `address`.

        Raises `FolderError` for a certificate that is none, or without `cryptography`, and `LinkError` for one that has
        ended.
        """
        self._state, self._address, self._failed = state, address, False
        self._take(identity)
        if datetime.now(UTC) > self._until:
            raise LinkError(
                f"{address}: the certificate of {identity.name!r} has ended ({self._until:%Y-%m-%d %H:%M} UTC); enroll "
                "anew with a new token"
            )

    def pause(self) -> float:
        """Return the seconds to wait before `renew` is called, an hour at most: clocks are set, and machines sleep.

        A try that has failed is followed by another after a twentieth of the certificate's time, or an hour.
        """
        wait = (self._until - self._begin) / 20 if self._failed else self._due - datetime.now(UTC)
        return min(max(wait.total_seconds(), 0.0), LONGEST_PAUSE)

    def renew(self, stub: Any) -> bool:
        """Get and keep a certificate of a new key if it is time; return whether there is a new one.

        If the coordinator gives none, or it cannot be kept, the one before goes on counting.
        """
        if datetime.now(UTC) < self._due:
            return False
        try:
            key, request = _request()
            message = device_pb2.RenewRequest(name=self.identity.name, signing_request=request)
            reply = stub.Renew(message, timeout=CALL_SECONDS)
            fresh = replace(self.identity, certificate=_text(reply.certificate), key=key)
            Identities(self._state).keep(_checked(self._address, fresh), self._address)
        except (grpc.RpcError, DiastoleError) as error:
            text = plain(error.details() or "") if isinstance(error, grpc.RpcError) else error
            LOG.warning("the certificate of %s is not renewed now: %s", self.identity.name, text)
            self._failed = True
            return False
        self._failed = False
        self._take(fresh)
        return True

    def _take(self, identity: Identity) -> None:
        try:
            with needed(FolderError, *NEEDS):
                self._begin, self._until, self._due = identity.life()
        except ValueError:
            raise FolderError(f"{self._state}: the certificate of {identity.name!r} cannot be read") from None
        self.identity = identity


def enrolled(state: Path, address: str, token: str = "", *, ask: bool = True) -> Enrolled | None:
    """Return who the device with the state folder `state` is to the coordinator at `address`; None if not enrolled.

    With a `token` it enrolls first. Unless it may `ask`, nothing is sent. Raises `TokenError`, and what `enroll`,
    `Identities.at` and `Enrolled` raise.
    """
    if not token:
        found = Identities(state).at(address, ask=ask)
        return Enrolled(state, address, found) if found else None
    given = Token.parse(token)
    if given.name.startswith(OPERATOR):
        raise TokenError("this token is an operator's; diastole admin login takes it")
    return Enrolled(state, address, enroll(state, address, given))


def _request() -> tuple[str, bytes]:
    """Return a new key, PEM, and a signing request for it."""
    with needed(FolderError, *NEEDS):
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
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
