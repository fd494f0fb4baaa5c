"""The pictures of a run."""

from dataclasses import replace

from diastole.experiments.experiment import parse
from diastole.experiments.report.picture import draw_partition
from diastole.simulations.devices import make_federation


def test_the_picture_of_a_partition_has_a_bound() -> None:
    made = make_federation(parse({"tiers": {"all": {"devices": 3, "width": 1.0}}}, "test"))
    few, many, thousands = (
        int.from_bytes(draw_partition(replace(made, model=replace(made.model, classes=classes)))[20:24], "big")
        for classes in (10, 40, 2000)
    )
    assert few < many == thousands < 2000
