"""Noticing and changing the operators that run in a block."""

from torch.utils._python_dispatch import TorchDispatchMode


class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode through which every operator in its block goes."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Without this, torch imports its compiler, only to tell it not to compile this class.
        return False
