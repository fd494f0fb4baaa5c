"""Simulated accelerometers on rotating machines: the speed and the unbalance of the rotor are to be told.

Nothing here is measured. A rotor with an unbalance turns on an elastic mount; the mount answers as a damped oscillator,
and the sensor reads its acceleration on three axes. Machines differ in mass and stiffness, and sensors in how they are
mounted, in gain and in offset. A machine is a user. Writes sensors.npz: windows float32 `[n, 3, 64]` of 0.32 s, and
values float32 `[n, 2]`: speed in tens of hertz, and unbalance in millimetres.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE, LENGTH = 200.0, 64
NOISE = 0.15


def machine(draws: np.random.Generator, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return `count` windows of one machine, and their values."""
    # Across, upright and along the shaft, which hardly moves; resonances in Hz.
    resonance, damping = draws.uniform(18, 40, 3), draws.uniform(0.08, 0.2, 3)
    strength = np.array([1.0, 0.8, 0.1]) * draws.uniform(0.7, 1.3, 3)
    second = draws.uniform(0.05, 0.3)
    mounting, _ = np.linalg.qr(np.eye(3) + draws.normal(0, 0.3, (3, 3)))
    gain, offset = draws.normal(1, 0.1, (3, 1)), draws.normal(0, 0.3, (3, 1))
    # Each machine has a range of speeds of its own.
    slowest = draws.uniform(8, 20)
    speed, unbalance = draws.uniform(slowest, slowest + 15, count), draws.uniform(0.2, 1.5, count)
    time = np.arange(LENGTH) / RATE
    windows = []
    for hertz, millimetres in zip(speed, unbalance, strict=True):
        phase, acceleration = draws.uniform(0, 2 * np.pi), np.zeros((3, LENGTH))
        # The unbalance pushes once a turn; a coupling that is out of line pushes twice.
        for harmonic, share in ((1, 1.0), (2, second)):
            ratio = harmonic * hertz / resonance
            answer = ratio**2 / (1 - ratio**2 + 2j * damping * ratio)
            push = share * millimetres * (hertz / 20) ** 2 * strength * answer
            quarter = np.array([0, np.pi / 2, 0])
            turning = 2 * np.pi * harmonic * hertz * time + harmonic * phase
            acceleration += np.abs(push)[:, None] * np.cos(turning + (np.angle(push) + quarter)[:, None])
        read = gain * (mounting @ acceleration) + offset + draws.normal(0, NOISE, (3, LENGTH))
        windows.append(np.arcsinh(read))
    return np.float32(windows), np.float32(np.stack([speed / 10, unbalance], 1))


def make(path: Path, machines: int = 40, others: int = 10, windows: int = 60) -> None:
    """Write the archive; the machines of the test are others than those of the training."""
    draws = np.random.default_rng(0)
    parts = {
        part: [machine(draws, windows) for _ in range(count)] for part, count in (("train", machines), ("test", others))
    }
    arrays = {
        f"{key}_{part}": np.concatenate([each[k] for each in of])
        for part, of in parts.items()
        for k, key in enumerate("xy")
    }
    np.savez_compressed(path, **arrays, user_train=np.repeat(np.arange(machines), windows))


if __name__ == "__main__":
    make(Path("sensors.npz"))
