"""A coordinator that is its own authority: what its parts need for that."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from diastole.proto.errors import DiastoleError
from diastole.proto.identity import OPERATOR
from diastole.server.errors import FolderError
from diastole.server.security.audit import Audit
from diastole.server.security.enroll_service import EnrollServer
from diastole.server.security.enrollment import Enrollment
from diastole.server.security.operators import Operators, admin_identity, by_certificate
from diastole.server.store.folder import StateFolder
from diastole.server.wire.identity import Gate

AUTHORITY = "ca"
HERE = OPERATOR + "local"
"""The operator on the coordinator's own machine."""


class Security:
    """The authority and the enrolled devices of one state folder.

    Attributes:
        enrollment: the devices.
        credentials: for the address at which enrolled devices call.
        gate: lets enrolled devices through.

    """

    def __init__(self, folder: StateFolder, audit: Audit) -> None:
        """Take what is in the folder, or make it. Raises `FolderError`."""
        self.enrollment = Enrollment(folder.path / AUTHORITY)
        self.credentials = self.enrollment.authority.credentials(mutual=True)
        self.gate = Gate(self.enrollment.listed, self._renew)
        self._audit = audit

    def invite(self, name: str, seconds: float) -> str:
        """Return a token for a device. Raises `FolderError` if it cannot be kept."""
        try:
            token = self.enrollment.invite(name, seconds)
        except OSError as error:
            raise FolderError(f"{error.filename}: {error.strerror}; no token can be kept there") from None
        self._audit("here", "Invite", name, "token made")
        return token

    def operators(self, path: Path) -> Operators:
        """Let operators through that show a certificate; that of the operator on this machine is kept in `path`.

        Raises `FolderError`.
        """
        try:
            identity = self.enrollment.issue(HERE)
        except OSError as error:
            raise FolderError(f"{error.filename}: {error.strerror}; no certificate can be kept there") from None
        admin_identity(path, identity)
        return Operators(by_certificate(self.gate), self._audit)

    def _renew(self, name: str, request: bytes, shown: str) -> bytes:
        try:
            certificate = self.enrollment.renew(name, request, shown)
        except (DiastoleError, OSError) as error:
            self._audit(name, "Renew", "", str(error), stranger=True)
            raise
        self._audit(name, "Renew", "", "done")
        return certificate

    @contextmanager
    def serve(self, address: str) -> Iterator[int]:
        """Let devices enroll at `address`, and yield the port. Raises `AddressError`."""
        with closing(EnrollServer(address, self.enrollment, self._audit)) as server:
            yield server.port
