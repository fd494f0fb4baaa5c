"""What a method's paper trains with beside the method: who sets it, and where."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.experiments.run import make_run
from diastole.models.methods.registry import METHODS, TRICKS
from diastole.models.training import TrainConfig
from diastole.server.optimisers import ServerOptimiserConfig
from diastole.simulations.compared import planned_runs
from diastole.simulations.devices import make_federation
from diastole.simulations.simulation import Simulation

MOMENTUM = ServerOptimiserConfig("fedavgm", beta1=0.5)
LABELS = torch.zeros(3, dtype=torch.int64)


def experiment(**changes: Any) -> Experiment:
    return Experiment.parse({"method": "diastole", **changes}, "test")


def balance(found: Experiment, y: torch.Tensor = LABELS) -> float | None:
    return found.resolved(y).training.balance


def test_a_run_has_its_methods_recipe_where_the_file_leaves_it_out() -> None:
    plain = experiment()
    assert plain.added == {"training.balance": 0.5, "server.name": "fedavgm", "server.beta1": 0.5}
    assert (balance(plain), plain.optimiser) == (0.5, MOMENTUM)
    assert (balance(experiment(recipe="paper")), experiment(recipe="paper").optimiser) == (0.5, MOMENTUM)
    bare = experiment(recipe="none")
    assert (bare.added, balance(bare), bare.optimiser) == ({}, None, ServerOptimiserConfig())


def test_the_default_method_has_no_recipe_unless_it_is_named() -> None:
    plain, named = Experiment.parse({}, "test"), Experiment.parse({"method": "width"}, "test")
    assert (plain.method, plain.added, plain.scheduled) == ("width", {}, False)
    assert named.added == {"training.clip": 1.0, "training.schedule": "step:0.375,0.625"}
    assert (named.scheduled, named.changed(recipe="none").scheduled) == (True, False)
    # It stays so in a changed copy, and over real devices.
    assert plain.changed(seed=3).added == {}
    assert Simulation.parse({}, "test").served.added == {}
    assert (
        plain.changed(method="width").added == Simulation.parse({"method": "width"}, "test").served.added == named.added
    )
    assert plain.changed(recipe="paper").added == named.added


def test_what_the_file_says_holds() -> None:
    found = experiment(training={"balance": 0.0}, server={"name": "fedadam"})
    assert (found.added, balance(found), found.optimiser.name) == ({}, 0.0, "fedadam")
    found = experiment(recipe="none", training={"balance": 1.5})
    assert (balance(found), found.optimiser.name) == (1.5, "fedavg")
    # Another method has the same trick.
    assert balance(experiment(method="splitmix", training={"balance": 1.5})) == 1.5


def test_what_is_resolved_stays_when_it_is_resolved_or_changed_again() -> None:
    found = experiment().resolved(LABELS)
    assert found.added == {}
    assert found.resolved(LABELS) == found
    assert found.changed(rounds__count=3).optimiser == MOMENTUM
    assert experiment().changed(rounds__count=3).added == experiment().added


@pytest.mark.parametrize("loss", ["mse", "multi-label", "next-token"])
def test_a_recipe_leaves_out_what_the_loss_would_not_read(loss: str) -> None:
    found = experiment(training={"loss": loss})
    assert (balance(found, torch.zeros(3)), found.optimiser) == (None, MOMENTUM)
    # Classes of places: known with the data alone.
    assert balance(experiment(), torch.zeros(3, 8, 8, dtype=torch.int64)) is None


def test_the_run_and_its_devices_have_what_is_resolved() -> None:
    made = make_federation(Simulation.parse({"method": "diastole", "data": {"proxy": 20}}, "test"))
    assert made.simulation is made.run.experiment
    assert made.simulation.training == TrainConfig(balance=0.5)
    assert make_run(experiment(recipe="none")).experiment.training == TrainConfig()


@pytest.mark.parametrize(("recipe", "expected"), [(None, {}), ("none", {}), ("paper", {"training.balance": 0.5})])
def test_a_comparison_gives_every_method_the_files_own_values(recipe: str | None, expected: dict[str, float]) -> None:
    simulation = Simulation.parse({"recipe": recipe} if recipe else {}, "test")
    runs = planned_runs(simulation, ["diastole", "width"], [0])
    assert {key: value for key, value in runs[0].home.added.items() if key == "training.balance"} == expected
    assert runs[1].home.scheduled == (recipe == "paper")
    tuned = planned_runs(simulation, ["diastole"], [0], {"diastole": {"training.balance": 1.0}})
    assert tuned[0].home.training.balance == 1.0


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ((), "tricks: training.balance = 0.5 (recipe), server.name = fedavgm (recipe), server.beta1 = 0.5 (recipe)"),
        (("recipe=none",), "tricks: none"),
        (
            ("method=width", "training.clip=3"),
            "tricks: training.clip = 3.0, training.schedule = step:0.375,0.625 (recipe)",
        ),
        (("recipe=none", "training.balance=1", "server.name=fedadam"), "training.balance = 1.0, server.name = fedadam"),
    ],
)
def test_the_command_says_what_a_run_will_use(changes: tuple[str, ...], line: str, run: Any, tmp_path: Path) -> None:
    (tmp_path / "it.toml").write_text('method = "diastole"\n')
    code, text, _ = run(
        "config", "check", tmp_path / "it.toml", *(word for change in changes for word in ("--set", change))
    )
    assert code == 0
    assert line in text.splitlines()[4]


def test_recipes_name_keys_that_there_are() -> None:
    for name, row in METHODS.items():
        for key, value in row.recipe.items():
            table, _, short = key.partition(".")
            assert table == "server" or (table == "training" and short in TRICKS), (name, key)
            changed = Experiment.parse({"method": "exclusive"}, "test").changed(**{key.replace(".", "__"): value})
            assert getattr(getattr(changed, table), short) == value


def test_a_trick_among_a_methods_options_says_where_it_is_now(tmp_path: Path) -> None:
    for method in ("diastole", "width", "fedrolex"):
        with pytest.raises(ExperimentError, match=rf"options of method {method}: balance: is for every method, as tra"):
            Experiment.parse({"methods": {method: {"balance": 0.5}}}, "test")
