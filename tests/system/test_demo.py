"""What the demo claims. Simulated, which gives the bits of real agents (test_federation.py)."""

from pathlib import Path

import pytest

from diastole.models.methods.registry import METHODS
from diastole.simulations.demo import demo_experiment, run_baseline
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation


@pytest.mark.slow
def test_the_demo_beats_doing_without_weak_devices_on_at_least_four_of_five_seeds() -> None:
    wins = 0
    for seed in range(5):
        federation = make_federation(demo_experiment(seed))
        ours = simulate(federation).accuracy
        baselines = [name for name, row in METHODS.items() if row.baseline and not row.each_width]
        scores = {name: run_baseline(federation, name).accuracy for name in baselines}
        assert ours is not None
        wins += all(score is not None and ours > score for name, score in scores.items() if name != "fedavg")
    assert wins >= 4


def test_the_demo_is_the_digits_example() -> None:
    example = Simulation.load(Path(__file__).resolve().parents[2] / "simulations" / "examples" / "digits.toml")
    assert example == demo_experiment(0)
