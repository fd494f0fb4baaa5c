"""An agent that is killed at any moment, again and again, brings what an undisturbed one brings."""

import sys
from pathlib import Path

import pytest
import torch
from killing import PHASES, killed, undisturbed


def check(rounds: int, phases: list[str], seed: int, folder: Path) -> set[str]:
    """Compare, and return what the agent was doing when it was killed."""
    state, hit = killed(rounds, phases, seed, folder / "state")
    expected = undisturbed(rounds)
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert len(hit) == len(phases)
    # To be seen with -s.
    sys.stdout.write(
        f"{len(hit)} kills: " + ", ".join(f"{hit.count(word)} in {word}" for word in sorted(set(hit))) + "\n"
    )
    return set(hit)


@pytest.mark.slow
def test_an_agent_killed_in_download_training_and_upload_brings_the_same_bits(tmp_path: Path) -> None:
    check(2, [*PHASES], 0, tmp_path)


@pytest.mark.slow
def test_an_agent_killed_a_hundred_times_brings_the_same_bits(tmp_path: Path) -> None:
    # A single kill may come when its phase, or even its round, is just over; of so many, some come in each.
    assert check(50, [*PHASES] * 34, 1, tmp_path) >= set(PHASES)
    left = {path.name.partition("-")[0] for path in (tmp_path / "state").iterdir()}
    assert "step" not in left
