"""What a user's own module raises: one line that names the module, never a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

from diastole.models.errors import ModelError, brief
from diastole.models.networks.config import ModelConfig
from diastole.proto.errors import DiastoleError


@contextmanager
def blamed(model: ModelConfig, where: str = "") -> Iterator[None]:
    """Raise what a user's own code raises in the block as a `ModelError` that names the code and has the first line.

    Errors of a network that ships with diastole, and those that diastole raises on purpose, pass as they are.

    Args:
        model: whose code runs.
        where: what runs, such as "in training".

    """
    try:
        yield
    except DiastoleError:
        raise
    except Exception as error:
        if not model.factory:
            raise
        place = f"{model.factory} {where}".rstrip()
        raise ModelError(f"model {model.name}: {place}: {brief(error)}") from error
