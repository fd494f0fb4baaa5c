"""A small federation, and the tasks of its first round."""

from diastole.experiments.experiment import parse
from diastole.models.moment import Moment
from diastole.server.link import Task
from diastole.simulations.devices import Federation, make_federation


def federation(**changes: object) -> Federation:
    """Two large and four small devices."""
    document = {
        "seed": 4,
        "data": {"proxy": 60},
        "rounds": {"count": 2},
        "methods": {"conv": {"epochs": 1, "weight_epochs": 1}},
        "tiers": {"large": {"devices": 2, "width": 1.0}, "small": {"devices": 4, "width": 0.25}},
    }
    return make_federation(parse(document | changes, "test"))


def tasks(made: Federation) -> list[Task]:
    """Every device has the smallest size."""
    compressor = made.compressor()
    compressor.prepare(made.initial_state(compressor), None, Moment())
    spec = compressor.specs()[0].spec
    state = compressor.compress(spec)
    return [
        Task(f"r1-{name}", 1, name, spec, state, made.experiment.training, k) for k, name in enumerate(made.devices)
    ]
