"""What a sweep tries, as it is written in a file and on the command line."""

from typing import Any

import pytest

from diastole.experiments.errors import ExperimentError
from diastole.experiments.sweep.space import Range, Sweep, combinations, grid
from diastole.simulations.simulation import Simulation

SPACE: dict[str, Any] = {
    "training.learning_rate": {"low": 0.001, "high": 0.1, "log": True},
    "training": {"epochs": {"low": 1, "high": 4}, "batch_size": [16, 32]},
    "methods.conv.epochs": [1, 2],
}


def swept(**changes: Any) -> Simulation:
    return Simulation.parse({"sweep": {"parameters": SPACE, "trials": 3} | changes}, "it")


def test_keys_may_be_dotted_or_tables() -> None:
    plan = swept().sweep
    assert plan is not None
    assert plan.parameters["training.learning_rate"] == Range(low=0.001, high=0.1, log=True)
    assert plan.parameters["training.batch_size"] == (16, 32)
    ranges = [values for values in plan.parameters.values() if isinstance(values, Range)]
    assert [values.whole for values in ranges] == [False, True]
    assert list(plan.of("conv")) == list(plan.parameters)
    assert list(plan.of("width")) == [key for key in plan.parameters if key != "methods.conv.epochs"]


def test_a_sweep_is_no_part_of_what_is_run() -> None:
    assert "sweep" not in swept().model_dump()
    assert swept().model_dump_json() == Simulation.parse({}, "it").model_dump_json()
    # It stays with an experiment that is changed otherwise.
    assert swept().changed(seed=3).sweep == swept().sweep
    assert swept().changed(sweep=None).sweep is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": None}, "trials: needed, because training.learning_rate is a range"),
        ({"parameters": {"training.epochs": {"low": 4, "high": 4}}}, "low 4: must be below high 4"),
        ({"parameters": {"training.epochs": {"low": 0, "high": 4, "log": True}}}, "log: needs low above 0, not 0"),
        ({"parameters": {"partition.alpha": [0.1, 1.0]}}, "partition.alpha says what the task is"),
        ({"parameters": {"seed": [0, 1]}}, "seed says what the task is"),
        ({"parameters": {"training.epochs": []}}, "training.epochs"),
        ({"validation": "test"}, "sweep.validation"),
        ({"validation": 1.0}, "sweep.validation"),
        ({"trails": 3}, "sweep.trails: no such key"),
    ],
)
def test_what_cannot_be_swept_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        swept(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_grid_on_the_command_line() -> None:
    texts = ["training.learning_rate=0.01,0.05", "training.optimiser=sgd,adam", "model.widths=[8,8],[16,16]"]
    found = grid(texts)
    assert found == {
        "training.learning_rate": [0.01, 0.05],
        "training.optimiser": ["sgd", "adam"],
        "model.widths": [[8, 8], [16, 16]],
    }
    assert len(combinations(Sweep(parameters=found).of("width"))) == 8
    for text in ("training.epochs", "training.epochs=", "=1,2"):
        with pytest.raises(ExperimentError, match=r"reads table\.key=value"):
            grid([text])
