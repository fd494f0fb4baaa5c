"""What each device has brought and spent."""

from collections.abc import Mapping
from dataclasses import dataclass

from diastole.models.spec import SubModelSpec
from diastole.models.task import Report, Scores
from diastole.proto.profile import Profile
from diastole.server.link import Traffic


@dataclass(slots=True)
class Account:
    """One device's totals over the run.

    Attributes:
        profile: what the device said of itself when it last joined.
        spec: the label of the sub-model of its last accepted update; empty if there was none.
        accepted: updates that were folded in.
        quarantined: updates that were refused.
        bytes_down: payload bytes that it downloaded.
        bytes_up: payload bytes that it uploaded.
        seconds: of training.
        macs: multiply-accumulates of training.
        processor: seconds of the processor that training took; None as soon as they are not known of an update.
        scores: what its last accepted update was worth to the device itself, if its owner shares that.

    """

    profile: Profile | None = None
    spec: str = ""
    accepted: int = 0
    quarantined: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    macs: int = 0
    processor: float | None = 0.0
    scores: Scores | None = None


class Ledger(dict[str, Account]):
    """Accounts by device name."""

    def meet(self, devices: Mapping[str, Profile]) -> None:
        """Open an account for every device, or note its new profile; drop who is gone and has brought nothing."""
        for device in [name for name in self if name not in devices]:
            if not (self[device].accepted or self[device].quarantined):
                del self[device]
        for device, profile in devices.items():
            (self.get(device) or self.setdefault(device, Account())).profile = profile

    def accept(self, device: str, spec: SubModelSpec, report: Report, macs: int) -> None:
        """Book an update that was folded in."""
        account = self.setdefault(device, Account())
        account.spec = spec.label
        account.accepted += 1
        account.seconds += report.seconds
        account.macs += macs
        told = report.processor
        account.processor = None if account.processor is None or told is None else account.processor + told
        account.scores = report.scores

    def quarantine(self, device: str) -> None:
        """Book something that was sent and refused."""
        self.setdefault(device, Account()).quarantined += 1

    def move(self, before: Mapping[str, Traffic], after: Mapping[str, Traffic]) -> tuple[int, int]:
        """Book the bytes moved between two readings of a link's traffic; return them, down and up."""
        down = up = 0
        for device, moved in after.items():
            earlier = before.get(device)
            if moved is earlier and device in self:
                continue
            account, earlier = self.setdefault(device, Account()), earlier or Traffic()
            account.bytes_down += moved.bytes_down - earlier.bytes_down
            account.bytes_up += moved.bytes_up - earlier.bytes_up
            down += moved.bytes_down - earlier.bytes_down
            up += moved.bytes_up - earlier.bytes_up
        return down, up
