"""Lines of the Python standard library without their first word, which is to be told; a file is a user.

Writes text.npz: tokens int64 `[n, 40]` (ASCII codes, 0 behind the end) and one of ten labels for each line.
"""

import sysconfig
from pathlib import Path

import numpy as np

WORDS = ("def", "class", "if", "for", "while", "with", "return", "raise", "assert", "import")
LENGTH, FILES, MOST, TEST = 40, 60, 80, 20


def lines(path: Path) -> list[tuple[list[int], int]]:
    """Return the lines of a file that begin with one of the words: what follows it, and the word's number."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word in WORDS and rest.isascii() and len(rest) > 3:
            codes = [ord(letter) for letter in rest[:LENGTH]]
            found.append((codes + [0] * (LENGTH - len(codes)), WORDS.index(word)))
    return found


def make(path: Path, files: int = FILES, test: int = TEST) -> None:
    """Write the archive: the files with the most such lines, every fourth of which is for the test."""
    library = Path(sysconfig.get_path("stdlib"))
    all_lines = {source: lines(source) for source in sorted(library.glob("*.py"))}
    largest = sorted(all_lines, key=lambda source: -len(all_lines[source]))[: files + test]
    tested = largest[3 :: (files + test) // test][:test]
    parts = {"train": [source for source in largest if source not in tested], "test": tested}
    arrays = {}
    for part, sources in parts.items():
        draws = np.random.default_rng(0)
        some = [[all_lines[source][k] for k in draws.permutation(len(all_lines[source]))[:MOST]] for source in sources]
        arrays[f"x_{part}"] = np.array([codes for each in some for codes, _ in each], np.int64)
        arrays[f"y_{part}"] = np.array([label for each in some for _, label in each], np.int64)
        arrays[f"user_{part}"] = np.repeat(np.arange(len(some)), [len(each) for each in some])
    del arrays["user_test"]
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    make(Path("text.npz"))
