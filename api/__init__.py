"""Federated and edge training for devices of every size.

    tiers = {"large": 1.0, "medium": 0.5, "small": 0.25}
    experiment = diastole.Experiment(model=net, train=(x, y), test=(x, y), tiers=tiers, devices=8)
    result = diastole.simulate(experiment)
    small = result.model(tier="small")

Everything here is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diastole.client import environment

if TYPE_CHECKING:
    from diastole._compare import Sweep, Table, compare, sweep
    from diastole._experiment import Experiment
    from diastole._join import join
    from diastole._run import serve, simulate
    from diastole.client.model_file import load_model
    from diastole.client.own_fit import LocalTask
    from diastole.experiments.data.dataset import Dataset
    from diastole.experiments.export.source import load
    from diastole.experiments.result import Result
    from diastole.models.training import Examples, Objective, Step
    from diastole.proto.errors import DiastoleError

    __version__: str

_WHERE = {
    "Dataset": "diastole.experiments.data.dataset",
    "DiastoleError": "diastole.proto.errors",
    "Examples": "diastole.models.training",
    "Experiment": "diastole._experiment",
    "LocalTask": "diastole.client.own_fit",
    "Objective": "diastole.models.training",
    "Result": "diastole.experiments.result",
    "Step": "diastole.models.training",
    "Sweep": "diastole._compare",
    "Table": "diastole._compare",
    "compare": "diastole._compare",
    "join": "diastole._join",
    "load": "diastole.experiments.export.source",
    "load_model": "diastole.client.model_file",
    "serve": "diastole._run",
    "simulate": "diastole._run",
    "sweep": "diastole._compare",
}

__all__ = [
    "Dataset",
    "DiastoleError",
    "Examples",
    "Experiment",
    "LocalTask",
    "Objective",
    "Result",
    "Step",
    "Sweep",
    "Table",
    "__version__",
    "compare",
    "join",
    "load",
    "load_model",
    "serve",
    "simulate",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("diastole")
    if name not in _WHERE:
        raise AttributeError(f"module 'diastole' has no attribute {name!r}; there are {', '.join(__all__)}")
    # Before what is imported imports torch and gRPC.
    environment.prepare()
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
