"""The ways of simulating devices, by name; one line of an experiment chooses."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from diastole.client.plan import keep_pages
from diastole.server.link import Link
from diastole.simulations.devices import Federation
from diastole.simulations.engines.loop import LoopLink


@contextmanager
def engine(federation: Federation) -> Iterator[Link]:
    """Yield the experiment's engine as a link to its devices; leaving the block releases what it took."""
    experiment = federation.experiment
    if experiment.plan == "fast":
        keep_pages()  # of this process, which folds and evaluates
    if experiment.engine == "loop":
        yield LoopLink(federation.model, federation.devices, experiment.plan)
        return
    if experiment.engine == "flower":
        from diastole.simulations.engines.flower.errors import require

        require()
        from diastole.simulations.engines.flower.engine import running

        with running(federation) as flower:
            yield flower
        return
    if experiment.engine == "batched":
        from diastole.simulations.engines.batched import BatchedLink

        yield BatchedLink(federation.model, federation.devices, device=experiment.device, workers=experiment.workers)
        return
    if experiment.engine == "auto":
        from diastole.simulations.engines.auto import AutoLink

        with closing(AutoLink(federation)) as auto:
            yield auto
        return
    from diastole.simulations.engines.processes import ProcessLink

    with closing(
        ProcessLink(
            federation.model,
            federation.devices,
            federation.compressor().specs(),
            experiment.training,
            workers=experiment.workers,
            plan=experiment.plan,
        )
    ) as link:
        yield link
