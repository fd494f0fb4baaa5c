"""How a coordinator that serves other machines is protected."""

from dataclasses import dataclass
from pathlib import Path

import grpc

from diastole.proto.address import Address
from diastole.server.errors import AddressError

ENROLL_BESIDE = 2
"""Ports from that where devices call to that where they enroll, by default."""


@dataclass(frozen=True, slots=True)
class Protection:
    """How the calls of devices are protected.

    Attributes:
        credentials: of an authority of the operator's; None for plain text, and with `enroll`.
        enroll: where devices enroll with the coordinator, which is then its own authority; None if it is not.
        pair: the operator's certificate and its key, PEM; None without.

    """

    credentials: grpc.ServerCredentials | None = None
    enroll: str | None = None
    pair: tuple[bytes, bytes] | None = None


def protection(
    address: str,
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    client_ca: Path | None = None,
    enroll: str = "",
    insecure: bool = False,
) -> Protection:
    """Return how `address` is served, as it is asked for.

    Without anything asked for it is plain text on loopback; elsewhere the coordinator is its own authority, and devices
    enroll two ports on. With `client_ca`, devices must show a certificate that it has signed and that has their name
    in it. Raises `NoAddressError`, and `AddressError` for a certificate, a key or a `client_ca` alone, for any of them
    beside `insecure` or `enroll`, or for a file that cannot be read.
    """
    if (certificate is None) != (key is None):
        raise AddressError("a certificate and its key go together; give both or neither")
    if insecure and (certificate or client_ca):
        raise AddressError(
            "insecure means plain text, in which no certificate is shown or asked for; give one or other"
        )
    if enroll and (insecure or certificate or client_ca):
        raise AddressError("enroll makes the coordinator its own authority; it goes with no certificate or insecure")
    if client_ca is not None and certificate is None:
        raise AddressError(f"{client_ca}: only over TLS are devices asked for certificates; give a certificate, too")
    if certificate is not None and key is not None:
        return _protection(certificate, key, client_ca)
    where = Address.parse(address, listening=True)
    if insecure or (where.loopback and not enroll):
        return Protection()
    return Protection(enroll=enroll or str(_beside(where)))


def _protection(certificate: Path, key: Path, client_ca: Path | None) -> Protection:
    try:
        shown, secret = certificate.read_bytes(), key.read_bytes()
        root = client_ca.read_bytes() if client_ca else None
    except OSError as error:
        raise AddressError(f"cannot read {error.filename}: {error.strerror}") from None
    credentials = grpc.ssl_server_credentials([(secret, shown)], root, require_client_auth=root is not None)
    return Protection(credentials, pair=(shown, secret))


def _beside(where: Address) -> Address:
    port = where.port and where.port + ENROLL_BESIDE
    if port > 65_535:
        raise AddressError(f"{where}: there is no port {port} at which devices could enroll; say where they do")
    return where.at(port)
