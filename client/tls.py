"""Credentials for a coordinator on another machine."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

import grpc

from diastole.client.errors import LinkError
from diastole.proto.address import is_loopback


def credentials(
    address: str, ca: Path | None, certificate: Path | None, key: Path | None, *, insecure: bool
) -> grpc.ChannelCredentials | None:
    """Return the credentials to call `address` with, or None for plain text, the default on loopback.

    `ca` replaces the system's authorities; `certificate` and `key` prove who the device is. Raises `LinkError` for
    half a pair, a file that cannot be read, a `ca` without a certificate, a `certificate` that has expired, and for
    files if `insecure` is set.
    """
    if (certificate is None) != (key is None):
        raise LinkError("a certificate and its key go together; give both or neither")
    loopback = is_loopback(address)
    if insecure and (ca or certificate):
        raise LinkError("insecure means plain text, in which no certificate is checked or shown; give one or the other")
    if insecure or (loopback and ca is None and certificate is None):
        return None
    try:
        parts = [None if path is None else path.read_bytes() for path in (ca, key, certificate)]
    except OSError as error:
        raise LinkError(f"cannot read {error.filename}: {error.strerror}") from None
    if ca is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
        except ssl.SSLError:
            raise LinkError(f"{ca}: no certificate of an authority; a PEM file with one is accepted") from None
    if certificate is not None:
        _check_time(certificate)
    return grpc.ssl_channel_credentials(*parts)


def shown(certificate: Path | None, key: Path | None) -> grpc.ServerCredentials | None:
    """Return the credentials to answer with, or None for plain text.

    Raises `LinkError` for half a pair, or a file that cannot be read.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise LinkError("a certificate and its key go together; give both or neither")
    try:
        return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    except OSError as error:
        raise LinkError(f"cannot read {error.filename}: {error.strerror}") from None


def _check_time(path: Path) -> None:
    """Raise `LinkError` for a certificate that has expired: a coordinator would only hang up."""
    try:
        from cryptography import x509

        until = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (ImportError, ValueError):
        # Without the library, or for what it cannot read, the call tells.
        return
    if until < datetime.now(UTC):
        raise LinkError(f"{path}: this certificate has expired ({until:%Y-%m-%d %H:%M} UTC)")
