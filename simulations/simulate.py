"""Run an experiment with simulated devices, in this process."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

from diastole.client.own_fit import find_fit
from diastole.experiments.checkpoint import Checkpoint
from diastole.experiments.errors import ExperimentError
from diastole.experiments.report.trackers import track as tracking
from diastole.experiments.result import Result, result_of
from diastole.models.allowed import is_given
from diastole.models.method import Size
from diastole.server.coordinator import Coordinator
from diastole.server.events import Observer
from diastole.server.link import Link
from diastole.simulations.cards import home
from diastole.simulations.devices import Federation
from diastole.simulations.engines.arithmetic import exactness
from diastole.simulations.engines.attacked import AttackedLink
from diastole.simulations.engines.base import SimulatedLink
from diastole.simulations.engines.coded import CodedLink
from diastole.simulations.engines.goal import GoalLink
from diastole.simulations.engines.loop import ROW as LOOP
from diastole.simulations.engines.registry import ENGINES
from diastole.simulations.field.clock import FieldLink, VirtualClock
from diastole.simulations.personal import score_devices


def simulate(
    federation: Federation,
    observers: Sequence[Observer] = (),
    checkpoint: Checkpoint | None = None,
    begun: Callable[[Coordinator], None] = lambda _: None,
) -> Result:
    """Run the federation's experiment with its engine. Raises what `Coordinator.run` raises.

    With a checkpoint, an unfinished run goes on where it stopped. The file is there after the last round too, so that
    nothing is lost before the result is written: whoever has done that calls the checkpoint's `finish`. `begun` is
    given the coordinator before its first round.
    """
    simulation = federation.simulation
    run = replace(federation.run, home=home(simulation.device))
    method = run.method()
    keep = checkpoint.keep if checkpoint else None
    with ExitStack() as stack:
        stack.enter_context(exactness(simulation.precision, home(simulation.device)))
        trains = stack.enter_context(engine(federation, method.offers()))
        coding = simulation.coding
        sends, attack = trains, simulation.attack
        if attack is not None and method.offers():
            sends = AttackedLink(trains, run.model, attack, federation.attackers)
        coded = None if coding.plain else CodedLink(sends, run.model, coding, simulation.seed)
        link, field, goal = coded or sends, None, simulation.rounds.goal
        if federation.field is None or not method.offers():
            if goal is not None and method.offers():
                link = GoalLink(link, run.model, goal, simulation.seed)
            coordinator = run.coordinator(link, observers, method=method, devices=1, keep=keep)
        else:
            clock, pause = VirtualClock(), simulation.population.pause
            field = FieldLink(link, federation.field, clock, run.model, coded, pause=pause, goal=goal)
            # In the field there is hardly a moment at which every device is online; the rounds wait for those they
            # need, and all virtual time belongs to one, whether it is run now or after a kill.
            rounds = federation.virtual_rounds()
            coordinator = run.coordinator(
                field, observers, method=method, rounds=rounds, devices=0, clock=clock, keep=keep
            )
        if checkpoint is not None:
            lasting = field or (link if isinstance(link, SimulatedLink) else None)
            if lasting is not None:
                checkpoint.extra = lasting.memory
            snapshot = checkpoint.check()
            if snapshot is not None:
                coordinator.resume(snapshot)
                if lasting is not None:
                    lasting.resume(snapshot.extra, snapshot.tensors)
        begun(coordinator)
        coordinator.run()
        if checkpoint is not None and coordinator.closed:
            checkpoint.flush(coordinator.snapshot())
        personal = score_devices(federation, coordinator, trains) if coordinator.closed else {}
        return result_of(
            run,
            coordinator,
            groups=simulation.groups,
            deadline=federation.virtual_rounds().deadline if field else None,
            field=field.cost() if field else None,
            dealt=federation.dealt,
            personal=personal,
        )


def simulate_in(
    folder: Path,
    federation: Federation,
    observers: Sequence[Observer] = (),
    track: Sequence[str] = (),
    *,
    fresh: bool = False,
    figures: Sequence[str] = ("png",),
    begun: Callable[[Coordinator], None] = lambda _: None,
) -> tuple[Result, list[Path]]:
    """Run the federation's experiment, going on with what `folder` has of it; return the result and its files there.

    Args:
        folder: is there; keeps the checkpoint, curves and the result.
        federation: what is run.
        observers: are told of everything.
        track: names of trackers (`experiments/report/trackers.py`).
        fresh: forget what the folder has of the run.
        figures: kinds of pictures.
        begun: is given the coordinator before its first round.

    Raises what `simulate` raises, and `ExperimentError` if the folder has an unfinished run of another experiment.

    """
    settings = federation.simulation
    checkpoint = Checkpoint(folder / "run.checkpoint", settings, federation.run.dataset.digest, sparing=True)
    if fresh:
        checkpoint.remove()
    found = checkpoint.check()
    with tracking(list(track), settings, folder, found.closed if found else ()) as trackers:
        result = simulate(federation, (*observers, *trackers), checkpoint, begun)
    paths = result.save(folder, figures)
    checkpoint.finish()
    return result, paths


def engine(federation: Federation, sizes: Sequence[Size]) -> AbstractContextManager[Link]:
    """Return the federation's engine for a method that offers these sizes; whoever offers none needs no engine."""
    name = federation.simulation.engine
    row = ENGINES[name] if sizes else LOOP
    if row.separate and any(map(is_given, (federation.model.factory, *federation.simulation.training.functions))):
        raise ExperimentError(
            f"engine {name}: its processes cannot see a module or a function that was given in Python; take engine "
            "loop or batched, or name them in the experiment, as [model] factory is"
        )
    if fit := federation.simulation.training.fit:
        # One line now, in the place of one from every device.
        find_fit(fit)
    return row.open(federation, sizes)
