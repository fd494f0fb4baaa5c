"""Every example experiment ends with the model that it ended with before the folders of the project were made anew."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
BEFORE = "fea8a3b"
EXAMPLES = sorted(path.stem for path in (ROOT / "simulations/examples").glob("*.toml"))
# The examples whose model may differ from that of BEFORE, and why.
EXPLAINED: dict[str, str] = {}
# What the examples read: shape of an input, classes, users that the training examples are of, and their type.
DATA: dict[str, tuple[tuple[int, ...], int, int, type]] = {
    "mnist": ((28, 28), 10, 0, np.uint8),
    "cifar10": ((32, 32, 3), 10, 0, np.uint8),
    "har": ((9, 128), 6, 30, np.float16),
}
READS = {
    "mnist": "mnist",
    "cifar10": "cifar10",
    "pfl-cifar10": "cifar10",
    "compare-cifar10": "cifar10",
    "compare-vit": "cifar10",
    "compare-har": "har",
}
SMALLER = {"pfl-cifar10": ["tiers.user.devices=100", "rounds.cohort=10"]}


def make_data(path: Path, shape: tuple[int, ...], classes: int, users: int, kind: type, count: int = 1500) -> None:
    """Write classes that lie around centres of their own, four fifths of the examples for training."""
    draws = np.random.default_rng(0)
    centres, cut = draws.normal(size=(classes, *shape)), count * 4 // 5
    y = draws.permutation(np.arange(count) % classes)
    x = centres[y] + draws.normal(size=(count, *shape))
    x = np.clip(x * 40 + 128, 0, 255).astype(kind) if kind is np.uint8 else x.astype(kind)
    more = {"user_train": np.arange(cut) % users} if users else {}
    labels = y.astype(np.uint8)
    np.savez(path, x_train=x[:cut], y_train=labels[:cut], x_test=x[cut:], y_test=labels[cut:], **more)


def link_tree(checkout: Path, tree: Path) -> Path:
    """Link the checkout's packages together, as an editable installation does, and return the folder to import from."""
    packages = tomllib.loads((checkout / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    for package, folder in packages.items():
        target = tree / package.replace(".", "/")
        target.mkdir(parents=True, exist_ok=True)
        for path in (checkout / folder).iterdir():
            # Folders of data too, such as the kernels' sources.
            if path.is_file() or path.name in ("cpp", "assets"):
                (target / path.name).symlink_to(path)
    # A package in its own right, before which the installed one does not come.
    (tree / "diastole/__init__.py").touch()
    return tree


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the project's sources before and now."""
    packed = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True)
    if packed.returncode:
        pytest.skip(f"this clone does not have commit {BEFORE}: {packed.stderr.decode().strip()}")
    before = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(before, filter="data")
    return {"before": before, "now": ROOT}


@pytest.fixture(scope="module")
def trees(checkouts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trees")
    return {name: link_tree(path, folder / name) for name, path in checkouts.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, made in DATA.items():
        make_data(folder / f"{name}.npz", *made)
    return folder


def digest(model: Path) -> str:
    """Return the SHA-256 of the global tensors, names and bytes; a name with a colon is not of the global model."""
    state, sha = load_file(model), hashlib.sha256()
    for name in sorted(name for name in state if ":" not in name):
        sha.update(name.encode())
        sha.update(state[name].tobytes())
    return sha.hexdigest()


def simulate(example: Path, tree: Path, data: Path, out: Path) -> str:
    """Run two rounds of the example with the sources of `tree` and return the final model's digest."""
    # The fastest way of computing has other bits, and differs from machine to machine.
    settings = ["rounds.count=2", "plan=reference", *SMALLER.get(example.stem, [])]
    command = [sys.executable, "-m", "diastole.cli.main", "simulate", str(example), "--out", str(out), "--json"]
    command += [word for setting in settings for word in ("--set", setting)]
    if example.stem in READS:
        command += ["--data", str(data / f"{READS[example.stem]}.npz")]
    env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=data, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{tree.name}: {done.stderr}"
    assert len(json.loads(done.stdout)["rounds"]) == 2
    return digest(out / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_gives_the_model_that_it_gave(
    example: str, checkouts: dict[str, Path], trees: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    files = {name: path / f"simulations/examples/{example}.toml" for name, path in checkouts.items()}
    if not files["before"].exists():
        pytest.skip(f"{example} is newer than {BEFORE}")
    before, now = (simulate(files[name], trees[name], data, tmp_path / name) for name in ("before", "now"))
    assert (before == now) == (example not in EXPLAINED), EXPLAINED.get(example, f"{example}: {before} is now {now}")


def test_what_is_explained_is_an_example() -> None:
    assert set(EXPLAINED) <= set(EXAMPLES)
    assert set(READS) | set(SMALLER) <= set(EXAMPLES)
