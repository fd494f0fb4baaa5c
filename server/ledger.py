"""What each device has brought and spent."""

from collections.abc import Mapping
from dataclasses import dataclass

from diastole.models.spec import SubModelSpec
from diastole.server.link import Traffic


@dataclass(slots=True)
class Account:
    """One device's totals over the run; bytes are payload bytes, seconds are of training."""

    spec: SubModelSpec | None = None
    accepted: int = 0
    quarantined: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    macs: int = 0


class Ledger(dict[str, Account]):
    """Accounts by device name."""

    def accept(self, device: str, spec: SubModelSpec, seconds: float, macs: int) -> None:
        """Book an update that was folded in."""
        account = self.setdefault(device, Account())
        account.spec = spec
        account.accepted += 1
        account.seconds += seconds
        account.macs += macs

    def quarantine(self, device: str) -> None:
        """Book something that was sent and refused."""
        self.setdefault(device, Account()).quarantined += 1

    def move(self, before: Mapping[str, Traffic], after: Mapping[str, Traffic]) -> tuple[int, int]:
        """Book the bytes moved between two readings of a link's traffic; return them, down and up."""
        down = up = 0
        for device, moved in after.items():
            account, earlier = self.setdefault(device, Account()), before.get(device, Traffic())
            account.bytes_down += moved.down - earlier.down
            account.bytes_up += moved.up - earlier.up
            down += moved.down - earlier.down
            up += moved.up - earlier.up
        return down, up
