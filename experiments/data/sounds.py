"""Folders of sounds: a folder for each class."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diastole.client.errors import DataError
from diastole.client.sources.classes import Folder
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.held import filled, room, whole
from diastole.experiments.data.reading import Reading
from diastole.proto.missing import needed

KINDS = (".wav", ".flac")
ACCEPTED = f"a folder for each class, with sounds ({', '.join(KINDS)}) in it; or such folders in train/ and test/"
MOST_SAMPLES = 1 << 26


def load(path: Path, reading: Reading) -> Dataset:
    """Return the sounds in `path/CLASS/`, or in `path/train/CLASS/` and `path/test/CLASS/`.

    Labels and the test part are those of `images.load`. Sounds are float32 in [-1, 1], `[n, 1, samples]`, the mean of
    their channels; all have one sample rate. They are of one length, or cut or filled with silence at their end to
    `reading.seconds`. Raises `DataError` naming the file, or without soundfile.
    """
    folder = Folder.read(path, KINDS, ACCEPTED)
    frames = _frames([file for part in folder.parts.values() for file in part], reading.seconds)
    parts = []
    for (name, files), y in zip(folder.parts.items(), folder.labels, strict=True):
        x = room(reading, name, (len(files), 1, frames), np.float32)
        for number, file in enumerate(files):
            with _named(file):
                found = _library(file).read(file, frames=frames, dtype="float32", always_2d=True, fill_value=0.0)[0]
            x[number, 0] = found.mean(1)
        parts.append(filled(reading, path, name, x, y))
    return whole("sounds", parts, folder.classes, None, reading)


def _frames(files: Sequence[Path], seconds: float) -> int:
    """Return the samples that each sound is to have."""
    first, rate, frames = files[0].name, 0, 0
    for file in files:
        with _named(file):
            found = _library(file).info(file)
        if not rate:
            rate, frames = found.samplerate, round(seconds * found.samplerate) if seconds else found.frames
        if found.samplerate != rate:
            raise DataError(
                f"{file}: has {found.samplerate} samples a second, and {first} {rate}; one rate is accepted"
            )
        if not seconds and found.frames != frames:
            raise DataError(
                f"{file}: has {found.frames} samples, and {first} {frames}; set data.seconds to cut or fill all sounds"
            )
    if not 0 < frames <= MOST_SAMPLES:
        raise DataError(f"{files[0]}: {frames} samples a sound; 1 to {MOST_SAMPLES} are accepted")
    return frames


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Raise `DataError` naming the file for what the library raises."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read; sounds ({', '.join(KINDS)}) are accepted") from error


def _library(file: Path) -> Any:
    with needed(DataError, str(file), "soundfile", "diastole[sounds]"):
        import soundfile
    return soundfile
