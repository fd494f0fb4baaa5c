"""`on_cards.py` in a process of its own: torch has to learn of a kind of device before its first backward pass."""

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("on_cards.py")


@pytest.mark.parametrize("marks", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_every_method_on_a_card(marks: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-m", marks, CASES]
    done = subprocess.run(command, cwd=CASES.parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
