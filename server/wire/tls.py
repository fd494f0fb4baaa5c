"""Credentials for a coordinator that serves other machines."""

from pathlib import Path

import grpc

from diastole.proto.address import is_loopback
from diastole.server.errors import AddressError


def credentials(
    address: str, certificate: Path | None, key: Path | None, client_ca: Path | None, *, insecure: bool
) -> grpc.ServerCredentials | None:
    """Return the credentials to serve `address` with, or None for plain text.

    With `client_ca`, devices must show a certificate that it has signed and that has their name in it. Raises
    `AddressError` for an address off loopback without a certificate (unless `insecure` is set), for a certificate, a
    key or a `client_ca` alone, for any of them if `insecure` is set, or for a file that cannot be read.
    """
    loopback = is_loopback(address)
    if (certificate is None) != (key is None):
        raise AddressError("a certificate and its key go together; give both or neither")
    if insecure and (certificate or client_ca):
        raise AddressError(
            "insecure means plain text, in which no certificate is shown or asked for; give one or other"
        )
    if certificate is None or key is None:
        if client_ca is not None:
            raise AddressError(
                f"{client_ca}: only over TLS are devices asked for certificates; give a certificate, too"
            )
        if not insecure and not loopback:
            raise AddressError(
                f"{address} can be reached from other machines; give a TLS certificate and key, "
                "or say insecure if the network is trusted"
            )
        return None
    try:
        pair = (key.read_bytes(), certificate.read_bytes())
        root = client_ca.read_bytes() if client_ca else None
    except OSError as error:
        raise AddressError(f"cannot read {error.filename}: {error.strerror}") from None
    return grpc.ssl_server_credentials([pair], root, require_client_auth=root is not None)
