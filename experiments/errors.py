"""What can be wrong with an experiment."""

from diastole.proto.errors import DiastoleError


class ExperimentError(DiastoleError):
    """An experiment file that is missing, malformed or contradicts itself."""

    exit_code = 2


class NothingLearnedError(DiastoleError):
    """A run that ended before a single round counted."""

    exit_code = 5


class ExportError(DiastoleError):
    """A model that cannot be exported in the way that is asked for."""

    exit_code = 2
