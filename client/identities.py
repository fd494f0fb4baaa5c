"""Who this machine is to each coordinator that it has enrolled with; kept by coordinator, wherever that is called."""

import json
import ssl
from dataclasses import asdict, dataclass
from pathlib import Path

from diastole.client.errors import FolderError
from diastole.proto.address import Address
from diastole.proto.files import write_bytes
from diastole.proto.identity import Identity, fingerprint
from diastole.proto.jsontext import from_json

FOLDER = "identity"
ASK_SECONDS = 5.0
ADDRESSES = 8
"""At which a coordinator was called that are remembered, the latest."""


@dataclass(frozen=True, slots=True)
class _Kept:
    path: Path
    identity: Identity
    addresses: tuple[str, ...]


class Identities:
    """Identities in a folder: a file for each coordinator's authority, named by the fingerprint of its certificate."""

    def __init__(self, state: Path) -> None:
        """Take those below the state folder `state`."""
        self._folder = state / FOLDER

    def at(self, address: str, *, ask: bool = True) -> Identity | None:
        """Return who this machine is to the coordinator at `address`; None if it has not enrolled there.

        An address that is new is asked for the coordinator's certificate: a coordinator may have moved, or have several
        names. If nobody answers there, or must be asked, and it is off loopback, the only identity is taken.
        Raises `FolderError` for a file that is damaged.
        """
        kept, address = self._all(), str(Address.parse(address))
        found = next((each for each in kept if address in each.addresses), None)
        if found is not None:
            return found.identity
        shown = _shown(address) if kept and ask else None
        if shown is None:
            return kept[0].identity if len(kept) == 1 and not Address.parse(address).loopback else None
        found = next((each for each in kept if _signed(shown, each.identity.ca)), None)
        if found is None:
            return None
        self.keep(found.identity, address)
        return found.identity

    def keep(self, identity: Identity, address: str) -> None:
        """Keep an identity, in the place of one of the same authority; `address` leads to it from now on.

        Raises `FolderError` if it cannot be kept, and `ValueError` if its authority's certificate is none.
        """
        path, address = self._folder / f"{fingerprint(identity.ca)}.json", str(Address.parse(address))
        before = {each.path: each for each in self._all()}
        others = {each.path: tuple(known for known in each.addresses if known != address) for each in before.values()}
        self._write(path, identity, (*others.pop(path, ()), address))
        for other, addresses in others.items():
            if addresses != before[other].addresses:
                self._write(other, before[other].identity, addresses)

    def check(self) -> None:
        """Raise `FolderError` if nothing could be kept: a token counts once."""
        self._put(self._folder / "tried", b"")

    def _all(self) -> list[_Kept]:
        return [_read(path) for path in sorted(self._folder.glob("*.json"))]

    def _write(self, path: Path, identity: Identity, addresses: tuple[str, ...]) -> None:
        document = asdict(identity) | {"addresses": addresses[-ADDRESSES:]}
        self._put(path, json.dumps(document).encode())

    def _put(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_bytes(path, data, 0o600)
        except OSError as error:
            raise FolderError(f"{path}: {error.strerror}; who this machine is must be kept there") from None


def _read(path: Path) -> _Kept:
    try:
        text = path.read_text()
        addresses = from_json(text).get("addresses", ())
        return _Kept(path, Identity.parse(text), tuple(map(str, addresses)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise FolderError(f"{path}: no identity can be read; remove it, and enroll anew with --enroll") from None


def _shown(address: str) -> str | None:
    """Return the certificate, PEM, that is shown at `address`; None if nobody there speaks TLS."""
    where = Address.parse(address)
    try:
        return ssl.get_server_certificate((where.host, where.port), timeout=ASK_SECONDS)
    except (OSError, ValueError):
        return None


def _signed(certificate: str, ca: str) -> bool:
    """Return whether an authority has signed a certificate."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        authority = x509.load_pem_x509_certificate(ca.encode())
        x509.load_pem_x509_certificate(certificate.encode()).verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
