"""A run goes on from its own checkpoint only."""

from pathlib import Path

import pytest
import safetensors.torch

from diastole.experiments.checkpoint import Checkpoint
from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.server.snapshot import Snapshot, SnapshotError


def test_a_checkpoint_of_an_earlier_form_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "run.checkpoint"
    texts = {"label": "of an earlier version", "closed": '[{"round": 1, "accuracy": 0.5}]'}
    path.write_bytes(safetensors.torch.save({}, texts))
    with pytest.raises(ExperimentError, match=r"the unfinished run there .*; start afresh \(--fresh\)"):
        Checkpoint(path, Experiment(), "data").check()


@pytest.mark.parametrize("texts", [{}, {"trust": '{"alarms": 0}'}])
def test_a_snapshot_without_what_was_learned_of_trust_is_one_line(texts: dict[str, str], tmp_path: Path) -> None:
    empty = {"label": "", "closed": "[]", "accounts": "{}", "planner": "{}", "extra": "{}"}
    path = tmp_path / "run.checkpoint"
    path.write_bytes(safetensors.torch.save({}, empty | texts))
    with pytest.raises(SnapshotError, match=r"older version, without what is trusted \(.*norms\); start afresh"):
        Snapshot.read(path, lambda label: None)
