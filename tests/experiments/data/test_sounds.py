"""Folders of sounds, real files."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from diastole.client.errors import DataError
from diastole.experiments.data import sets
from diastole.experiments.data.reading import Reading


def sound(path: Path, samples: int, rate: int = 100, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Write noise to a file and return it, `[samples, channels]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(-(1 << 15), 1 << 15, (samples, channels), np.int16)
    soundfile.write(path, values, rate)
    return values / np.float32(1 << 15)


def refusal(path: Path, **reading: object) -> str:
    with pytest.raises(DataError, match=r"^[^\n]*$") as refused:
        sets.load("sounds", path, Reading(**reading))  # type: ignore[arg-type]
    return str(refused.value)


def test_sounds_are_mixed_to_one_channel_and_cut_or_filled(tmp_path: Path) -> None:
    long = sound(tmp_path / "train" / "yes" / "b.wav", 40, seed=1)
    short = sound(tmp_path / "train" / "no" / "a.flac", 20, channels=2, seed=2)
    exact = sound(tmp_path / "test" / "yes" / "c.WAV", 30, seed=3)
    assert sets.kind_of(tmp_path) == "sounds"
    found = sets.load("sounds", tmp_path, Reading(seconds=0.3))
    assert (found.input_shape, found.classes) == ((1, 30), 2)
    assert (found.train.y.tolist(), found.test.y.tolist()) == ([0, 1], [1])
    filled = np.concatenate([short.mean(1), np.zeros(10, np.float32)])
    for x, expected in zip(found.train.x, (filled, long[:30, 0]), strict=True):
        torch.testing.assert_close(x[0], torch.from_numpy(expected))
    assert torch.equal(found.test.x[0, 0], torch.from_numpy(exact[:, 0]))


def test_sounds_of_other_lengths_or_rates_and_other_files_are_one_line(tmp_path: Path) -> None:
    sound(tmp_path / "yes" / "a.wav", 30)
    sound(tmp_path / "yes" / "b.wav", 31)
    assert "b.wav: has 31 samples, and a.wav 30; set data.seconds" in refusal(tmp_path)
    sound(tmp_path / "yes" / "b.wav", 30, rate=200)
    assert "b.wav: has 200 samples a second, and a.wav 100; one rate is accepted" in refusal(tmp_path, seconds=0.1)
    (tmp_path / "yes" / "b.wav").write_bytes(b"RIFF")
    assert "b.wav: cannot be read; sounds (.wav, .flac) are accepted" in refusal(tmp_path)
    (tmp_path / "yes" / "b.wav").unlink()
    assert "0 samples a sound" in refusal(tmp_path, seconds=0.001)
    (tmp_path / "no").mkdir()
    assert "no: holds none of .wav, .flac; a folder for each class, with sounds" in refusal(tmp_path)
