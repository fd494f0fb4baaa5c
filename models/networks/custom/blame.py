"""Whose fault it is if a module that a user brings raises: one line that names it, never a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

from diastole.models.errors import ModelError, brief
from diastole.models.networks.config import ModelConfig
from diastole.proto.errors import DiastoleError


@contextmanager
def blamed(model: ModelConfig, where: str = "") -> Iterator[None]:
    """Run what runs a user's own code: if it raises, raise a `ModelError` that names the code and the first line.

    What goes wrong in a network that ships with diastole is raised as it is, and so is what diastole raises on purpose.

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
