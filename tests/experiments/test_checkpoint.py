"""A run goes on from its own checkpoint only."""

from pathlib import Path

import pytest
import safetensors.torch

from diastole.experiments.checkpoint import Checkpoint
from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment


def test_a_checkpoint_of_an_earlier_form_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "run.checkpoint"
    texts = {"label": "of an earlier version", "closed": '[{"round": 1, "accuracy": 0.5}]'}
    path.write_bytes(safetensors.torch.save({}, texts))
    with pytest.raises(ExperimentError, match=r"the unfinished run there .*; start afresh \(--fresh\)"):
        Checkpoint(path, Experiment(), "data").check()
