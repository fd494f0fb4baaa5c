"""The group of a GPU, at sizes that take a second on a CPU, and the command that runs all that needs a GPU."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diastole.benchmarks import gpu, groups
from diastole.benchmarks.errors import BenchmarkError
from diastole.models.networks.config import ModelConfig

ROOT = Path(__file__).parents[2]
TINY = replace(
    gpu.PFL, model=ModelConfig("cnn", (1, 8, 8), 10, (4, 8)), tiers={1.0: 3, 0.5: 3}, cohort=3, examples=8, rounds=2
)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_a_round_is_compared_with_its_steps() -> None:
    found = gpu._batched(replace(TINY, tiers={1.0: 6}), "cpu", "float32")
    assert found.seconds > 0
    assert found.share > 0
    # Nothing crosses to the processor that is already there.
    assert found.crossings == 0


@no_gpu
def test_without_a_gpu_the_group_is_refused_and_left_out_of_all() -> None:
    with pytest.raises(BenchmarkError, match="no GPU"):
        groups.run("gpu", lambda text: None)
    assert "gpu" not in groups.GROUPS


@no_gpu
@pytest.mark.slow
def test_make_gpu_says_in_one_line_that_there_is_none() -> None:
    done = subprocess.run([sys.executable, ROOT / "packaging" / "gpu.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "has no GPU" in done.stderr


@pytest.mark.slow
def test_make_gpu_runs_in_a_small_form_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "packaging" / "gpu.py", "--cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "gpu.diastole",
        "gpu.alone",
        "gpu.overhead",
        "gpu.overhead_tiers",
    ]
