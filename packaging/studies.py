"""`make studies`: every study of the documentation, with its command, its cost and how far it is.

`simulations/studies/studies.toml` says what they are. Runs are counted where the commands leave them, below `studies/`.
"""

import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "simulations" / "studies" / "studies.toml"

PARTIAL = ("exclusive", "depthfl", "inclusivefl", "fiarse")
"""Methods that may have no size for a tier; the last three need about the same memory for each size."""


@dataclass(frozen=True, slots=True)
class Study:
    """What is asked, and how; see the file.

    Attributes:
        rates: learning rates of which each method gets the one that is best on a fifth of the training examples, which
            it has not trained on; empty for the file's.
        tried: runs of each of them, by seed.
        short: rounds of these runs; 0 for those of the file.

    """

    name: str
    asks: str
    file: str
    methods: tuple[str, ...]
    seeds: int
    data: str = ""
    set: tuple[str, ...] = ()
    each: dict[str, list[Any]] = field(default_factory=dict)
    equal: bool = False
    rates: tuple[float, ...] = ()
    tried: int = 1
    short: int = 0
    cost: str = ""
    page: str = ""

    def commands(self) -> Iterator[tuple[str, Path]]:
        """Yield each command of it, and the folder of its runs if it has some."""
        shared = [f"simulations/{self.file}", *(["--data", self.data] if self.data else [])]
        for values in product(*self.each.values()):
            changed = [f"{key}={value}" for key, value in zip(self.each, values, strict=True)]
            folder = Path("studies", "-".join([self.name, *map(str, values)]))
            sets = [word for change in (*self.set, *changed) for word in ("--set", change)]
            methods = ",".join(self.methods)
            if self.rates:
                grid = f"training.learning_rate={','.join(map(str, self.rates))}"
                tune = ["--grid", grid, "--validation", "0.2", "--seeds", str(self.tried), "--out", f"{folder}-tuned"]
                for key in ("count", "evaluate_every"):
                    tune += ["--set", f"rounds.{key}={self.short}"] if self.short else []
                # Who may have nothing for a tier has no mean of them all, so its global model is looked at.
                whole = [method for method in self.methods if method not in {"proxy", *PARTIAL}]
                part = [method for method in self.methods if method in PARTIAL]
                each = [[",".join(whole), "--metric", "mean_tier_accuracy"], *([[",".join(part)]] if part else [])]
                for tuned in each:
                    words = ["diastole", "tune", *shared, *sets, "--method", *tuned, *tune]
                    yield shlex.join(words), folder.with_name(f"{folder.name}-tuned")
            how = ["--methods", methods, "--seeds", str(self.seeds)]
            how += ["--equal", "bytes,macs", "--anchor", "width"] if self.equal else []
            how += ["--tuned", f"{folder}-tuned"] if self.rates else []
            yield shlex.join(["diastole", "compare", *shared, *sets, *how, "--out", str(folder)]), folder


def studies() -> list[Study]:
    """Return every study, in the order of the file."""
    table = tomllib.loads(INDEX.read_text())
    return [
        Study(name, **{key: tuple(v) if isinstance(v, list) else v for key, v in row.items()})
        for name, row in table.items()
    ]


def state(study: Study) -> str:
    """Return how far a study is, by the files that are there, and where its result is."""
    folders = list(dict.fromkeys(ROOT / folder for _, folder in study.commands()))
    done = sum(1 for folder in folders for _ in folder.glob("**/*.finished"))
    ended = all((folder / "comparison.json").exists() for folder in folders if not folder.name.endswith("-tuned"))
    here = "all runs are here" if ended else f"{done} runs are here" if done else "no run is here"
    return f"{here}; {study.page or 'in no table yet'}"


def main() -> None:
    """Print all of them."""
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for study in studies():
        console.print(study.name, style="bold")
        console.print(f"  {study.asks}")
        console.print(f"  cost: {study.cost or 'not measured'}; state: {state(study)}")
        for command, _ in study.commands():
            console.print(f"  {command}", style="cyan")


if __name__ == "__main__":
    main()
