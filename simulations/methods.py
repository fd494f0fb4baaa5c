"""What each method's sizes cost the devices of each tier."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diastole.models.method import Size
from diastole.models.methods.registry import METHODS, parse_options
from diastole.proto.errors import DiastoleError
from diastole.simulations.compared import NEUTRAL
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.simulation import Simulation


@dataclass(frozen=True, slots=True)
class Fit:
    """The largest exported size that fits a tier's devices.

    Attributes:
        label: the sub-model's.
        parameters: scalars.
        training_macs: multiply-accumulates of training on one example.
        bytes: to download, and likewise to upload, a round; the larger of the two.
        memory: peak bytes of training.

    """

    label: str
    parameters: int
    training_macs: int
    bytes: int
    memory: int


@dataclass(frozen=True, slots=True)
class Line:
    """One method.

    Attributes:
        method: its name.
        source: the paper.
        idea: what a sub-model is.
        needs: of the server's proxy set: "", "proxy set" or "labelled proxy set".
        recipe: what the paper trains with beside the method, by keys of an experiment.
        sizes: by tier, None where nothing fits; empty if the method cannot be used here.
        note: why it cannot.

    """

    method: str
    source: str
    idea: str
    needs: str
    recipe: Mapping[str, Any]
    sizes: dict[str, Fit | None]
    note: str = ""


def method_lines(simulation: Simulation) -> Iterator[Line]:
    """Yield a line for every method of the registry but baselines, for the simulation's model, tiers and training.

    Raises what `make_federation` raises.
    """
    federation = make_federation(simulation.changed(method=NEUTRAL, proxy__epochs=0))
    for name, row in METHODS.items():
        if row.baseline:
            continue
        needs = ("proxy set" if row.unlabelled(parse_options(name, {})) else "labelled proxy set") if row.proxy else ""
        line = Line(name, row.source, row.idea, needs, row.recipe, {})
        try:
            own = federation.with_method(name)
            sizes = own.run.method().offers()
        except DiastoleError as error:
            yield replace(line, note=str(error))
            continue
        yield replace(line, sizes=fits(own, sizes))


def fits(federation: Federation, sizes: Sequence[Size]) -> dict[str, Fit | None]:
    """Return the largest of a method's sizes that fits the devices of each tier; None where none does."""
    profiles, groups = federation.profiles, dict.fromkeys(federation.simulation.groups)
    members = {group: {name: each for name, each in profiles.items() if each.tier == group} for group in groups}
    return {group: _fit(federation.run.fitting(sizes, own, None)) for group, own in members.items() if own}


def _fit(size: Size | None) -> Fit | None:
    if size is None:
        return None
    cost = size.cost
    return Fit(size.spec.label, cost.parameters, cost.training_macs, max(cost.bytes_down, cost.bytes_up), cost.memory)
