"""Checkpoints of the last few closed rounds of a run, each in a file of its own."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

EARLIER = "checkpoints"
"""The folder of them in that of a run."""
NAME = re.compile(r"round-(\d{5,})\.checkpoint")


@dataclass(frozen=True, slots=True)
class Earlier:
    """A folder of checkpoints.

    Attributes:
        folder: where they are; it is made when there is something to keep.
        most: of how many rounds, the last ones, a checkpoint is kept.

    """

    folder: Path
    most: int = 0

    def path(self, number: int) -> Path:
        """Return the file of a round, whether it is there or not."""
        return self.folder / f"round-{number:05d}.checkpoint"

    def numbers(self) -> list[int]:
        """Return the rounds that have a checkpoint, in order."""
        names = (NAME.fullmatch(path.name) for path in self.folder.glob("round-*.checkpoint"))
        return sorted(int(found[1]) for found in names if found)

    def keep(self, path: Path, number: int) -> None:
        """Keep the file at `path`, which is only ever replaced as a whole, as that of a round; forget the oldest.

        Those of later rounds are of before a rollback, and are forgotten too.
        """
        for old in self.numbers():
            if old >= number or old <= number - self.most:
                self.path(old).unlink(missing_ok=True)
        if self.most > 0:
            self.folder.mkdir(exist_ok=True)
            try:
                os.link(path, self.path(number))
            except OSError:
                # Not every file system has links.
                part = self.path(number).with_suffix(".part")
                shutil.copyfile(path, part)
                part.replace(self.path(number))

    def forget(self, number: int) -> None:
        """Forget the checkpoints of rounds behind `number`."""
        for later in self.numbers():
            if later > number:
                self.path(later).unlink(missing_ok=True)
