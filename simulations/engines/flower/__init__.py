"""Flower, met as an engine (`link.py`) and as an ecosystem (`strategy.py`); the only folder that imports flwr."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diastole.models.method import Size
from diastole.server.link import Link
from diastole.simulations.devices import Federation
from diastole.simulations.engines.flower.errors import require
from diastole.simulations.engines.registry import EngineRow


@contextmanager
def _open(federation: Federation, sizes: Sequence[Size]) -> Iterator[Link]:
    require()
    from diastole.simulations.engines.flower.engine import running

    with running(federation) as link:
        yield link


ROW = EngineRow(_open, alone=True, separate=True)
