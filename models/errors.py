"""What can be wrong with a model, a sub-model or an update."""

from diastole.proto.errors import DiastoleError


class ModelError(DiastoleError):
    """A model configuration that cannot be built."""

    exit_code = 2


class BatchError(ModelError):
    """A model that cannot be trained on a single example, on a device that has no other."""


class StoppedError(DiastoleError):
    """Training that was told to stop before its end."""


class SpecError(DiastoleError):
    """A sub-model spec that the model or the method cannot have."""

    exit_code = 2


class StateError(DiastoleError):
    """A set of tensors whose names, shapes, dtypes or values are not those expected."""


class KernelError(DiastoleError):
    """A native library of kernels that cannot be built or loaded; everything works without it."""


def brief(error: Exception) -> str:
    """Return the kind of an exception and the first line of its message, for errors from a user's own code."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
