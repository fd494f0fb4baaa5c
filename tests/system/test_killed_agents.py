"""An agent that is killed at any moment, again and again, brings what an undisturbed one brings."""

from pathlib import Path

import pytest
import torch
from killing import PHASES, killed, undisturbed


def check(rounds: int, phases: list[str], seed: int, folder: Path) -> None:
    state, hit = killed(rounds, phases, seed, folder / "state")
    expected = undisturbed(rounds)
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    # A round may have been over before the moment that was drawn; but then the kill came between two rounds.
    assert len(hit) == len(phases)
    assert set(PHASES) & set(hit)
    assert not list((folder / "state").glob("step*"))
    print(f"{len(hit)} kills: " + ", ".join(f"{hit.count(word)} in {word}" for word in sorted(set(hit))))


def test_an_agent_killed_in_download_training_and_upload_brings_the_same_bits(tmp_path: Path) -> None:
    check(1, [*PHASES], 0, tmp_path)


@pytest.mark.slow
def test_an_agent_killed_a_hundred_times_brings_the_same_bits(tmp_path: Path) -> None:
    check(34, [*PHASES] * 34, 1, tmp_path)
