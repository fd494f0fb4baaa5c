"""Which digit is each pixel of: scikit-learn's handwritten digits on larger canvases with clutter.

Writes segmentation.npz: canvases uint8 `[n, 20, 20]`, and for each pixel 0 for the background and the clutter, or
the digit plus 1. Clutter is pieces of other digits. A user has two of the digits 0 to 4 and a brightness of its own.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

SIZE, DIGIT, PIECE, DIGITS = 20, 8, 3, 5


def canvas(
    draws: np.random.Generator, images: NDArray[np.float64], labels: NDArray[np.int64], bright: float
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return a canvas with two of these digits, and the class of each pixel."""
    seen, answer = draws.uniform(0, 0.15, (SIZE, SIZE)), np.zeros((SIZE, SIZE), np.int64)
    for _ in range(6):
        at, cut = draws.integers(0, SIZE - PIECE, 2), draws.integers(0, DIGIT - PIECE, 2)
        piece = images[draws.integers(len(images))][cut[0] : cut[0] + PIECE, cut[1] : cut[1] + PIECE] / 16
        here = seen[at[0] : at[0] + PIECE, at[1] : at[1] + PIECE]
        np.maximum(here, piece, out=here)
    # One in the left half and one in the right, so that they do not overlap.
    for half in (0, SIZE // 2):
        k = draws.integers(len(images))
        row, column = draws.integers(0, SIZE - DIGIT + 1), half + draws.integers(0, SIZE // 2 - DIGIT + 1)
        place = slice(row, row + DIGIT), slice(column, column + DIGIT)
        seen[place] = np.maximum(images[k] / 16, draws.uniform(0, 0.15, (DIGIT, DIGIT)))
        answer[place] = np.where(images[k] > 4, labels[k] + 1, 0)
    return np.uint8(255 * seen * bright), answer


def make(path: Path, users: int = 16, canvases: int = 60, test: int = 300) -> None:
    """Write the archive; digits of the test canvases are not among those of the training."""
    draws, digits = np.random.default_rng(0), load_digits()
    few = digits.target < DIGITS
    images, labels = digits.images[few], digits.target[few].astype(np.int64)
    order = draws.permutation(len(images))
    kept, tested = order[:650], order[650:]
    found: dict[str, list[tuple[NDArray[np.uint8], NDArray[np.int64]]]] = {"train": [], "test": []}
    for _ in range(users):
        mine = kept[np.isin(labels[kept], draws.choice(DIGITS, 2, replace=False))]
        bright = draws.uniform(0.6, 1)
        found["train"] += [canvas(draws, images[mine], labels[mine], bright) for _ in range(canvases)]
    found["test"] = [canvas(draws, images[tested], labels[tested], draws.uniform(0.6, 1)) for _ in range(test)]
    arrays = {
        f"{key}_{part}": np.stack([each[k] for each in of]) for part, of in found.items() for k, key in enumerate("xy")
    }
    np.savez_compressed(path, **arrays, user_train=np.repeat(np.arange(users), canvases))


if __name__ == "__main__":
    make(Path("segmentation.npz"))
