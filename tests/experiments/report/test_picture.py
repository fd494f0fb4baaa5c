"""The pictures of a run."""

from dataclasses import replace

from diastole.experiments.report.figures import rendered
from diastole.experiments.report.picture import partition_figure
from diastole.experiments.result import Dealt, Result
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation


def test_the_picture_of_a_partition_has_a_bound() -> None:
    document = {"rounds": {"count": 0}, "tiers": {"all": {"devices": 3, "width": 1.0}}}
    made = make_federation(Simulation.parse(document, "test"))
    result = simulate(made)

    def height(result: Result, classes: int) -> int:
        run = replace(made.run, dataset=replace(made.run.dataset, classes=classes))
        dealt: Dealt = replace(made, run=run).dealt
        return int.from_bytes(rendered(partition_figure(result, dealt))[20:24], "big")

    few, many, thousands = (height(result, classes) for classes in (10, 40, 2000))
    assert few < many == thousands < 2000
