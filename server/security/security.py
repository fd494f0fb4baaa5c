"""A coordinator that is its own authority: what its parts need for that."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from diastole.server.security.audit import Audit
from diastole.server.security.enroll_service import EnrollServer
from diastole.server.security.enrollment import Enrollment
from diastole.server.security.operators import FILE, admin_token
from diastole.server.store.folder import StateFolder
from diastole.server.store.store import Store
from diastole.server.wire.identity import Gate

AUTHORITY = "ca"


class Security:
    """The authority, the enrolled devices and the operator's token of one state folder.

    Attributes:
        enrollment: the devices.
        credentials: for the address at which enrolled devices call.
        gate: lets enrolled devices through.
        admin_token: that operators' calls must carry.
        admin_file: where it is.

    """

    def __init__(self, folder: StateFolder, store: Store) -> None:
        """Take what is in the folder, or make it. Raises `FolderError`."""
        self.enrollment = Enrollment(folder.path / AUTHORITY)
        self.credentials = self.enrollment.authority.credentials(mutual=True)
        self.gate = Gate(self.enrollment.listed)
        self.admin_token, self.admin_file = admin_token(folder.path), folder.path / FILE
        self._audit = Audit(folder.place, store)

    @contextmanager
    def serve(self, address: str) -> Iterator[int]:
        """Let devices enroll at `address`, and yield the port. Raises `AddressError`."""
        with closing(EnrollServer(address, self.enrollment, self._audit)) as server:
            yield server.port
