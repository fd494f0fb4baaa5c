"""A small federation, and the tasks of its first round."""

from diastole.models.moment import Moment
from diastole.models.seeds import derive_seed
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.simulation import Simulation


def federation(**changes: object) -> Federation:
    """Two large and four small devices."""
    document = {
        "seed": 4,
        "data": {"proxy": 60},
        "rounds": {"count": 2},
        "methods": {"conv": {"epochs": 1, "weight_epochs": 1}},
        "tiers": {"large": {"devices": 2, "width": 1.0}, "small": {"devices": 4, "width": 0.25}},
    }
    return make_federation(Simulation.parse(document | changes, "test"))


def tasks(made: Federation) -> tuple[list[Task], dict[SubModelSpec, State]]:
    """Every device has the smallest size; beside the tasks, what each size is sent as."""
    method = made.run.method()
    method.prepare(method.initial(derive_seed(made.simulation.seed, "model")), None, Moment())
    spec = method.offers()[0].spec
    found = [Task(f"r1-{name}", 1, name, spec, made.simulation.training, k) for k, name in enumerate(made.devices)]
    return found, {spec: method.compress(spec)}
