"""`make gpu`: all that has to be run on a GPU, in one command, from a source tree that is not installed.

It needs torch and the base dependencies, and pytest for the tests; nothing is installed, and no network is used. A
folder of links to the sources takes the place of an installation. It runs the tests of the engines on every card that
is there, counts transfers, and measures the rows of `diastole bench gpu`, whose table it prints. Without a GPU it says
so in one line and exits with 2; with `--cpu` it runs everything in a shrunken form on the CPU.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = [["test_card.py", "test_batched.py"], ["on_cards.py"]]
"""Tests that use a card if there is one. The stand-in of the last has to be there before anything is computed."""

SHRUNKEN = """
from dataclasses import replace
from diastole.benchmarks import gpu
from diastole.models.networks.config import ModelConfig

small = ModelConfig("cnn", (1, 8, 8), 10, (4, 8))
pfl = replace(gpu.PFL, model=small, tiers={1.0: 6}, cohort=4, examples=20, rounds=2)
tiers = replace(gpu.TIERS, model=small, tiers={1.0: 2, 0.5: 2}, cohort=4, examples=20, rounds=2)
for row in gpu.rows("cpu", pfl, tiers, whole=False, precision="float32"):
    print(f"{row.name} {row.value:.4g} {row.unit}, baseline {row.baseline:.4g}, ratio {row.ratio:.3g}")
"""


def links(root: Path, tree: Path) -> None:
    """Make a folder of links that Python imports the packages of a source tree from."""
    table = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    for package, folder in table.items():
        target = tree / package.replace(".", "/")
        target.mkdir(parents=True, exist_ok=True)
        packages = {root / other for other in table.values()}
        for entry in (root / folder).iterdir():
            if entry not in packages and entry.name != "__pycache__" and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry)


def main(arguments: list[str]) -> int:
    """Run all steps; return 0 if every one went well."""
    import torch

    small = arguments == ["--cpu"]
    if arguments and not small:
        sys.stderr.write(f"make gpu: {' '.join(arguments)}: only --cpu is accepted\n")
        return 2
    if not small and not torch.cuda.is_available():
        sys.stderr.write("make gpu: this machine, or this build of torch, has no GPU; GPU=--cpu tries a small form\n")
        return 2
    with tempfile.TemporaryDirectory() as tree:
        links(ROOT, Path(tree))
        ways = os.pathsep.join([tree, *filter(None, [os.environ.get("PYTHONPATH")])])
        # Compiled files are for the links alone.
        around = os.environ | {"PYTHONPATH": ways, "PYTHONDONTWRITEBYTECODE": "1"}
        steps = [["-c", SHRUNKEN]] if small else [["-m", "diastole.cli.main", "bench", "gpu"]]
        if not small and find_spec("pytest"):
            some = [[f"tests/simulations/engines/{name}" for name in names] for names in TESTS]
            steps = [*(["-m", "pytest", "-q", "-m", "", *files] for files in some), *steps]
        elif not small:
            sys.stderr.write("make gpu: without pytest, so without tests\n")
        codes = [
            subprocess.run([sys.executable, *step], cwd=ROOT, env=around, check=False).returncode for step in steps
        ]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
