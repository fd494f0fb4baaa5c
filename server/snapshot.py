"""A run between two rounds, as one file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open

from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.proto.errors import DiastoleError
from diastole.server.checkpoints import write_bytes
from diastole.server.events import RoundClosed
from diastole.server.ledger import Account


class SnapshotError(DiastoleError):
    """A snapshot that cannot be read."""

    reason = "SNAPSHOT"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a coordinator knows behind a closed round.

    Attributes:
        state: the global model.
        compressor: what the method has learned.
        optimiser: moments of the server's optimiser.
        planner: what was learned of each device's speed.
        closed: what each round came to.
        accounts: what each device brought and spent.
        extra: what else must not be lost, JSON; the coordinator leaves it alone.

    """

    state: State
    compressor: State
    optimiser: State
    planner: Mapping[str, float]
    closed: Sequence[RoundClosed]
    accounts: Mapping[str, Account]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path, label: str) -> None:
        """Write the snapshot as a safetensors file, whole or not at all; `label` says what run it is of."""
        parts = {"state": self.state, "compressor": self.compressor, "optimiser": self.optimiser}
        tensors = {f"{part}:{name}": t.contiguous() for part, state in parts.items() for name, t in state.items()}
        document = {
            "planner": dict(self.planner),
            "closed": [asdict(closed) for closed in self.closed],
            "accounts": {name: asdict(account) for name, account in self.accounts.items()},
            "extra": dict(self.extra),
        }
        write_bytes(path, safetensors.torch.save(tensors, {"label": label, "run": json.dumps(document)}))

    @staticmethod
    def read(path: Path) -> tuple["Snapshot", str]:
        """Return the snapshot in a file and its label. Raises `SnapshotError`."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            document = json.loads(metadata["run"])
            parts: dict[str, State] = {"state": {}, "compressor": {}, "optimiser": {}}
            for key, tensor in tensors.items():
                part, _, name = key.partition(":")
                parts[part][name] = tensor
            return Snapshot(
                **parts,
                planner=document["planner"],
                closed=[RoundClosed(**closed) for closed in document["closed"]],
                accounts={name: _account(fields) for name, fields in document["accounts"].items()},
                extra=document["extra"],
            ), metadata["label"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise SnapshotError(f"{path}: not a snapshot of a run ({error})") from None


def _account(fields: dict[str, Any]) -> Account:
    spec = fields.pop("spec")
    return Account(spec=SubModelSpec(**spec) if spec else None, **fields)
