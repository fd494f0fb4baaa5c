"""A coordinator's own certificate authority: it certifies the coordinator and the devices that it enrolls."""

import os
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from diastole.proto.errors import DiastoleError
from diastole.proto.files import write_bytes
from diastole.proto.identity import Identity
from diastole.proto.invitation import SERVER_NAME
from diastole.server.errors import FolderError

CERTIFICATE, KEY = "ca.pem", "ca.key"
AUTHORITY_LIFETIME, LIFETIME = timedelta(days=3650), timedelta(days=365)
"""For which the authority counts, and by default the certificates that it makes."""
CLOCKS = timedelta(days=1)
"""By which clocks of devices may be slow."""


class RequestError(DiastoleError):
    """A signing request that is none, or of a key that is not accepted."""


class Authority:
    """An authority whose key is in a folder, for this user alone; P-256 keys throughout.

    Attributes:
        certificate: its own, PEM.

    """

    def __init__(self, folder: Path, lifetime: timedelta = LIFETIME) -> None:
        """Take the authority in `folder`, or make one; devices' certificates count for `lifetime`.

        Raises `FolderError` for a folder that cannot be used.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (folder / CERTIFICATE).exists():
                _make(folder)
            self.certificate = (folder / CERTIFICATE).read_bytes()
            key = serialization.load_pem_private_key((folder / KEY).read_bytes(), None)
            self._certificate = x509.load_pem_x509_certificate(self.certificate)
        except OSError as error:
            raise FolderError(
                f"{error.filename}: {error.strerror}; the coordinator's authority is kept there"
            ) from None
        except (ValueError, TypeError):
            raise FolderError(f"{folder}: no authority of a coordinator can be read") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self._certificate.public_key():
            raise FolderError(f"{folder}: {KEY} is not the key of {CERTIFICATE}")
        self._key, self._lifetime = key, lifetime

    @property
    def expiry(self) -> float:
        """When the authority ends to count, in seconds since 1970."""
        return self._certificate.not_valid_after_utc.timestamp()

    def credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        """Return the coordinator's credentials, of a new key; if `mutual`, callers must show a certificate of ours."""
        certificate, key = self.pair(SERVER_NAME)
        root = self.certificate if mutual else None
        return grpc.ssl_server_credentials([(key, certificate)], root, require_client_auth=mutual)

    def pair(self, *names: str) -> tuple[bytes, bytes]:
        """Return a certificate of a server that is called by these names or IP addresses, and its new key, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        shown = x509.SubjectAlternativeName([_general(name) for name in names])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        # It lives in memory alone, so it may count for as long as the process could run.
        return self._sign("coordinator", key.public_key(), AUTHORITY_LIFETIME, shown, usage), _pem(key)

    def issue(self, name: str) -> Identity:
        """Return an identity under `name`, with a new key, for a user of the coordinator's own machine."""
        key, usage = ec.generate_private_key(ec.SECP256R1()), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = self._sign(name, key.public_key(), AUTHORITY_LIFETIME, usage)
        return Identity(name, self.certificate.decode(), certificate.decode(), _pem(key).decode())

    def certify(self, name: str, request: bytes) -> bytes:
        """Return a device's certificate, PEM, for the key in its signing request. Raises `RequestError`."""
        try:
            found = x509.load_der_x509_csr(request)
            key = found.public_key()
            sound = found.is_signature_valid
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            raise RequestError("the signing request cannot be read; DER of a P-256 key is accepted") from None
        if not sound or not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != ec.SECP256R1.name:
            raise RequestError("the signing request is not signed with a P-256 key")
        return self._sign(name, key, self._lifetime, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]))

    def _sign(
        self, name: str, key: ec.EllipticCurvePublicKey, lifetime: timedelta, *extensions: x509.ExtensionType
    ) -> bytes:
        builder = _builder(name, self._certificate.subject, key, lifetime, self._certificate.not_valid_after_utc)
        for extension in (*_plain(), *extensions):
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _make(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own: a device may know several authorities.
    builder = _builder(f"diastole {os.urandom(8).hex()}", None, key.public_key(), AUTHORITY_LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    write_bytes(folder / KEY, _pem(key), 0o600)
    # Last: with the certificate there, the authority is whole.
    write_bytes(folder / CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM))


def _builder(
    name: str,
    issuer: x509.Name | None,
    key: ec.EllipticCurvePublicKey,
    lifetime: timedelta,
    latest: datetime = datetime.max.replace(tzinfo=UTC),  # noqa: B008 (a constant)
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer or subject).public_key(key)
    now = datetime.now(UTC)
    begin, until = now - min(CLOCKS, lifetime), min(now + lifetime, latest)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(until)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _plain() -> list[x509.ExtensionType]:
    return [x509.BasicConstraints(ca=False, path_length=None)]


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
