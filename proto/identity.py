"""Who a device or an operator is to a coordinator that is its own authority."""

import json
import ssl
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from hashlib import sha256

import grpc

from diastole.proto.jsontext import from_json

OPERATOR = "operator:"
"""In front of operators' names, in certificates and tokens; no device's name has a colon."""

RENEWED_AFTER, RENEWED_SHARE = timedelta(days=30), 0.75
"""Age at which a certificate is renewed, but sooner if it is that share of its time."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A name, and what proves it.

    Attributes:
        name: the device's; or an operator's, behind `OPERATOR`.
        ca: certificate of the coordinator's authority, PEM.
        certificate: its own, PEM.
        key: its own, PEM; it never leaves the machine.

    """

    name: str
    ca: str
    certificate: str
    key: str

    @classmethod
    def parse(cls, text: str) -> "Identity":
        """Read what `text` has written. Raises `ValueError`, `KeyError` or `TypeError` for anything else."""
        found = from_json(text)
        return cls(*(str(found[key]) for key in ("name", "ca", "certificate", "key")))

    def text(self) -> str:
        """Return it as a JSON document."""
        return json.dumps(asdict(self))

    def life(self) -> tuple[datetime, datetime, datetime]:
        """Return from when to when its certificate counts, and in between when it is to be renewed.

        Raises `ValueError` for a certificate that is none, and `ImportError` without `cryptography`.
        """
        from cryptography import x509

        certificate = x509.load_pem_x509_certificate(self.certificate.encode())
        begin, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return begin, until, begin + min(RENEWED_AFTER, RENEWED_SHARE * (until - begin))

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what a channel to the coordinator is opened with."""
        return grpc.ssl_channel_credentials(self.ca.encode(), self.key.encode(), self.certificate.encode())


def fingerprint(pem: str) -> str:
    """Return the SHA-256 of a certificate, of its DER, in hexadecimal digits. Raises `ValueError` if it is none."""
    return sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
