"""Run an experiment in this process."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from diastole.experiments.checkpoint import Checkpoint
from diastole.models.compressor import Offer, Proxy
from diastole.models.methods.registry import build
from diastole.models.moment import Moment
from diastole.models.seeds import derive_seed, reference_plan
from diastole.models.state import State
from diastole.models.training import Examples, evaluate
from diastole.server.coordinator import Coordinator
from diastole.server.events import Observer, RoundClosed, RunFinished, RunStarted
from diastole.server.ledger import Account
from diastole.simulations.devices import Federation
from diastole.simulations.engines.engines import engine
from diastole.simulations.field.clock import FieldCost, FieldLink, VirtualClock


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        state: the final global model.
        rounds: what each round came to, in order.
        accounts: what each device brought and spent, by name.
        offers: the sizes on offer, smallest first.
        field: what it cost in the field, if the experiment has a population; the rounds' seconds are then virtual.

    """

    state: State
    rounds: Sequence[RoundClosed]
    accounts: Mapping[str, Account]
    offers: Sequence[Offer]
    field: FieldCost | None = None

    @property
    def accuracy(self) -> float | None:
        """The final global model's accuracy on the test set, in [0, 1]; None if no round was run."""
        return self.rounds[-1].accuracy if self.rounds else None


def outcome_of(coordinator: Coordinator) -> Outcome:
    """Return what a coordinator's finished run came to."""
    return Outcome(coordinator.state, tuple(coordinator.closed), dict(coordinator.ledger), coordinator.offers)


def simulate(
    federation: Federation, observers: tuple[Observer, ...] = (), checkpoint: Checkpoint | None = None
) -> Outcome:
    """Run the federation's experiment with its engine. Raises what `Coordinator.run` raises.

    With a checkpoint, an unfinished run goes on where it stopped; a baseline without devices starts anew. The file is
    there after the last round too, so that nothing is lost before the outcome is written: whoever has done that
    removes it.
    """
    if federation.experiment.method == "proxy":
        return proxy_alone(federation, observers)
    field, clock = None, None
    with engine(federation) as link:
        if federation.field is not None:
            clock, pause = VirtualClock(), federation.experiment.population.pause
            link = field = FieldLink(link, federation.field, clock, federation.model, pause=pause)
        coordinator = federation.coordinator(link, observers, clock)
        if checkpoint is not None:
            checkpoint.attach(coordinator, field)
        coordinator.run()
        return replace(outcome_of(coordinator), field=field.cost() if field else None)


def proxy_alone(federation: Federation, observers: tuple[Observer, ...] = ()) -> Outcome:
    """Train the global model on the proxy set, round by round as every method does, without any device."""
    experiment, compressor, rounds = federation.experiment, federation.compressor(), list[RoundClosed]()
    proxy = federation.proxy or Proxy(Examples.empty(), Examples.empty())
    state, module = federation.initial_state(compressor), build(federation.model)

    def tell(event: RunStarted | RoundClosed | RunFinished) -> None:
        for observer in observers:
            observer(event)

    tell(RunStarted("proxy", experiment.rounds.count, ()))
    for number in range(1, experiment.rounds.count + 1):
        began = time.monotonic()
        moment = Moment(number, experiment.rounds.count, derive_seed(experiment.seed, number, "proxy"))
        with reference_plan():
            state = compressor.learn(state, proxy, experiment.proxy.training, moment)
            module.load_state_dict(state)
            accuracy = evaluate(module, federation.test).accuracy
        seconds = time.monotonic() - began
        rounds.append(RoundClosed(number, 0, "", accuracy, {}, 0, 0, seconds, 0, seconds, seconds))
        tell(rounds[-1])
    tell(RunFinished(len(rounds), stopped=False))
    return Outcome(state, rounds, {}, ())
