"""What the demo claims. Simulated, which gives the bits of real agents (test_federation.py)."""

from inspect import signature
from pathlib import Path
from statistics import fmean

import pytest

from diastole.cli.demo import demo
from diastole.simulations.demo import METHOD, demo_experiment
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

ALONE = ("exclusive", "smallest", "proxy")


@pytest.mark.slow
def test_the_demo_beats_doing_without_weak_devices_and_ours_heterofl_at_the_small_size() -> None:
    wins, small = 0, dict[str, list[float]]()
    for seed in range(5):
        names = (METHOD, *ALONE, "diastole", "width")
        found = {name: simulate(make_federation(demo_experiment(seed, name))) for name in names}
        scores = {name: result.accuracy or 0.0 for name, result in found.items()}
        wins += all(scores[METHOD] > scores[name] for name in ALONE)
        for name in ("diastole", "width"):
            small.setdefault(name, []).append(found[name].tiers[-1].scores["accuracy"])
    assert wins >= 4
    assert fmean(small["diastole"]) > fmean(small["width"]) + 0.02


def test_the_demo_is_the_digits_example() -> None:
    example = Simulation.load(Path(__file__).resolve().parents[2] / "simulations" / "examples" / "digits.toml")
    assert example == demo_experiment(0)
    # The command's default is written there, because what it names takes seconds to import.
    assert signature(demo).parameters["method"].default == METHOD
