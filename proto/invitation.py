"""What an operator gives to the owner of a device, so that it enrolls: one line of text."""

import base64
import json
import ssl
from dataclasses import dataclass

from diastole.proto.errors import DiastoleError
from diastole.proto.jsontext import from_json

SERVER_NAME = "a-coordinator-that-enrolls-its-devices-by-itself.the-name-in-its-certificate.diastole.invalid"
"""In the certificate of every coordinator that has an authority of its own, whatever its host is called.

Longer than a device's name may be, so that no device's certificate can ever have it.
"""
LONGEST = 4096
MARK = "diastole-"


class TokenError(DiastoleError):
    """A text that is no token."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Token:
    """An invitation to one device.

    Attributes:
        name: of the device.
        secret: counts once.
        port: where the coordinator enrolls devices.
        ca: certificate of the coordinator's authority, PEM; by it a device knows the coordinator at once.

    """

    name: str
    secret: str
    port: int
    ca: str

    def text(self) -> str:
        """Return it as one word."""
        ca = base64.b64encode(ssl.PEM_cert_to_DER_cert(self.ca)).decode()
        document = {"name": self.name, "secret": self.secret, "port": self.port, "ca": ca}
        return MARK + base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "Token":
        """Read what `text` has written. Raises `TokenError`."""
        wrong = TokenError("this is not a token; `diastole admin enroll NAME` prints one")
        if not text.startswith(MARK) or len(text) > LONGEST:
            raise wrong
        try:
            data = text.removeprefix(MARK).encode()
            found = from_json(base64.urlsafe_b64decode(data + b"=" * (-len(data) % 4)))
            ca = ssl.DER_cert_to_PEM_cert(base64.b64decode(found["ca"]))
            token = cls(found["name"], found["secret"], found["port"], ca)
        except (ValueError, KeyError, TypeError):
            raise wrong from None
        kinds = (token.name, str), (token.secret, str), (token.port, int)
        if not all(isinstance(value, kind) for value, kind in kinds) or not 1 <= token.port <= 65_535:
            raise wrong
        return token
