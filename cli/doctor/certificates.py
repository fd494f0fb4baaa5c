"""Whether certificates count, and for how long."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from diastole.cli.doctor.finding import Finding, fault, ok, warning

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

SOON = timedelta(days=30)
NEEDED = "pip install 'diastole[enroll]'"


def read(pem: str | bytes) -> "Certificate | None":
    """Return a certificate; None for a text that is none. Raises `ImportError` without `cryptography`."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(pem if isinstance(pem, bytes) else pem.encode())
    except ValueError:
        return None


def life(check: str, pem: str | bytes, renew: str) -> Finding:
    """Say whether a certificate counts now; `renew` says what replaces it."""
    try:
        found = read(pem)
    except ImportError:
        return warning(check, "cannot be read here", "the library cryptography is not installed", NEEDED)
    if found is None:
        return fault(check, "is no certificate", "PEM with a certificate is accepted", renew)
    now, begin, until = datetime.now(UTC), found.not_valid_before_utc, found.not_valid_after_utc
    if now < begin:
        why = f"it begins to count at {begin:%Y-%m-%d %H:%M} UTC; here it is {now:%Y-%m-%d %H:%M}"
        return fault(
            check, "does not count yet", why, "set this machine's clock; if it is right, make a new certificate"
        )
    if now > until:
        return fault(check, f"has ended at {until:%Y-%m-%d %H:%M} UTC", f"here it is {now:%Y-%m-%d %H:%M}", renew)
    if until - now < SOON:
        return warning(check, f"ends at {until:%Y-%m-%d %H:%M} UTC", "nobody is let in with it after that", renew)
    return ok(check, f"counts until {until:%Y-%m-%d}")


def pair(certificate: Path, key: Path) -> Finding:
    """Say whether a certificate and a key in files belong together."""
    check = "certificate's key"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        why = error.reason or str(error)
        return fault(check, f"{key} does not go with {certificate}", why, "give the key that the certificate is for")
    except OSError as error:
        why = f"{error.filename or key}: {error.strerror}"
        return fault(check, f"{key} or {certificate} cannot be read", why, "mend the path, or the file's rights")
    return ok(check, f"{key} goes with {certificate}")


def signed(pem: str, authority: str) -> bool:
    """Return whether an authority has signed a certificate. Raises `ImportError` without `cryptography`."""
    from cryptography.exceptions import InvalidSignature

    certificate, signer = read(pem), read(authority)
    if certificate is None or signer is None:
        return False
    try:
        certificate.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def names(pem: str | bytes) -> list[str]:
    """Return the alternative names in a certificate. Raises `ImportError` without `cryptography`."""
    from cryptography import x509

    certificate = read(pem)
    if certificate is None:
        return []
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]


def owner(pem: str | bytes) -> str:
    """Return the common name in a certificate, empty if there is none. Raises `ImportError` likewise."""
    from cryptography.x509.oid import NameOID

    certificate = read(pem)
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME) if certificate else []
    return str(found[0].value) if found else ""
