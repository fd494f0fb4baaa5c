"""What can go wrong in a measurement."""

from diastole.proto.errors import DiastoleError


class GroupError(DiastoleError):
    """A group of benchmarks that does not exist."""

    exit_code = 2


class BenchmarkError(DiastoleError):
    """A measurement that means nothing, because what was measured failed or gave a wrong result."""
