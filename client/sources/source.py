"""What an agent asks for examples."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from diastole.models.training import Examples


@runtime_checkable
class DataSource(Protocol):
    """Where a device's examples come from; they may be others at each task.

    How many there are of each class a source is not asked: the agent counts its examples if the owner allows to tell.
    """

    def __len__(self) -> int:
        """Return how many examples a task would have now. Raises `DataError`."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example. Raises `DataError`."""
        ...

    def examples(self) -> Examples:
        """Return the examples that there are now, in the order in which they came. Raises `DataError`."""
        ...


@runtime_checkable
class Divided(Protocol):
    """Of a source that keeps some examples for a test itself, as a signal does, whose windows overlap."""

    def kept(self) -> Examples:
        """Return the examples that are kept now, perhaps none; `examples` never has one of them."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Examples that stay the same."""

    given: Examples

    def __len__(self) -> int:
        return len(self.given)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.given.x.shape[1:])

    def examples(self) -> Examples:
        """Return the examples."""
        return self.given


@dataclass(frozen=True, slots=True)
class Cut(Fixed):
    """Windows of a signal that is over, divided when they were cut."""

    held: Examples

    def kept(self) -> Examples:
        """Return the windows that are kept for a test."""
        return self.held
