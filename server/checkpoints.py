"""Writing models to files that are either whole or not there."""

from pathlib import Path

from diastole.models.state import State
from diastole.proto.files import write_bytes
from diastole.proto.payload import encode


def write_state(path: Path, state: State) -> None:
    """Write the parameters as safetensors: flushed to disk under another name, then renamed into place."""
    write_bytes(path, encode(state))
