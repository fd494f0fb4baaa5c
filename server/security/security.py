"""A coordinator that is its own authority: what its parts need for that."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from diastole.server.errors import FolderError
from diastole.server.security.audit import Audit
from diastole.server.security.enroll_service import EnrollServer
from diastole.server.security.enrollment import Enrollment
from diastole.server.store.folder import StateFolder
from diastole.server.store.store import Store
from diastole.server.wire.identity import Gate

AUTHORITY = "ca"


class Security:
    """The authority and the enrolled devices of one state folder.

    Attributes:
        enrollment: the devices.
        credentials: for the address at which enrolled devices call.
        gate: lets enrolled devices through.

    """

    def __init__(self, folder: StateFolder, store: Store) -> None:
        """Take what is in the folder, or make it. Raises `FolderError`."""
        self.enrollment = Enrollment(folder.path / AUTHORITY)
        self.credentials = self.enrollment.authority.credentials(mutual=True)
        self.gate = Gate(self.enrollment.listed, self.enrollment.renew)
        self._audit = Audit(folder.place, store)

    def invite(self, name: str, seconds: float) -> str:
        """Return a token for a device. Raises `FolderError` if it cannot be kept."""
        try:
            token = self.enrollment.invite(name, seconds)
        except OSError as error:
            raise FolderError(f"{error.filename}: {error.strerror}; no token can be kept there") from None
        self._audit("here", "Invite", name, "token made")
        return token

    @contextmanager
    def serve(self, address: str) -> Iterator[int]:
        """Let devices enroll at `address`, and yield the port. Raises `AddressError`."""
        with closing(EnrollServer(address, self.enrollment, self._audit)) as server:
            yield server.port
