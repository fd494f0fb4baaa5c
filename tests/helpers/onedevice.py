"""A coordinator of the smallest run there is: one device, one round."""

from pathlib import Path
from typing import Any

from diastole.experiments.experiment import Experiment
from diastole.experiments.run import make_run
from diastole.experiments.serving import Serving

HERE = "127.0.0.1:0"
DOCUMENT: dict[str, Any] = {
    "data": {"proxy": 40},
    "rounds": {"count": 1, "patience": 60},
    "tiers": {"small": {"devices": 1, "width": 0.25}},
}


def serve(state: Path, listen: str = HERE, **settings: Any) -> Serving:
    """Start it in a folder, on any free port."""
    return Serving(make_run(Experiment.parse(DOCUMENT, "test")), listen, state, figures=(), **settings)
