"""Who a caller is: the certificate that it shows, checked at every call."""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from diastole.proto.errors import DiastoleError
from diastole.proto.identity import fingerprint
from diastole.proto.words import Reason

NAMES = ("x509_common_name", "x509_subject_alternative_name")
MOST_KNOWN = 4096
"""Certificates whose digest is remembered."""

Shown = Mapping[str, Iterable[bytes]]
"""What gRPC tells of a caller (`ServicerContext.auth_context`)."""


class StrangerError(DiastoleError):
    """A caller that is not who it says; `reason` is the word of the wire for it."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Gate:
    """Holds a caller's certificate against the name under which it calls."""

    def __init__(
        self,
        listed: Callable[[str, str], bool] | None = None,
        renew: Callable[[str, bytes, str], bytes] | None = None,
    ) -> None:
        """Take every certificate that TLS has let in, or those for which `listed(name, digest)` is true.

        `renew(name, signing request, digest)` returns a further certificate of a device, by the one it shows; None
        for a gate that has none to give.
        """
        self._listed, self.renew = listed, renew

    def check(self, name: str, shown: Shown) -> bool:
        """Return whether a caller has proved that it is `name`: False if certificates are not asked for.

        Raises `StrangerError` if it shows another's certificate, or one that does not count any more.
        """
        pem = next(iter(shown.get("x509_pem_cert", ())), None)
        if pem is None:
            return False
        names = {value.decode(errors="replace") for kind in NAMES for value in shown.get(kind, ())}
        if name not in names:
            raise StrangerError(Reason.DEVICE_CERTIFICATE, f"device {name!r} shows a certificate for {sorted(names)}")
        if self._listed is not None and not self._listed(name, digest(pem)):
            raise StrangerError(
                Reason.DEVICE_REVOKED, f"the certificate of device {name!r} does not count any more; enrol it again"
            )
        return True


@lru_cache(MOST_KNOWN)
def digest(pem: bytes) -> str:
    """Return the SHA-256 of a certificate, of its DER, in hexadecimal digits."""
    return fingerprint(pem.decode())
