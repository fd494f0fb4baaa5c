"""What was found of this device earlier, plans above all, in a folder of this user's."""

import fcntl
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import IO

import torch

from diastole.client.errors import PlanError
from diastole.client.plans.plan import Plan
from diastole.models.errors import KernelError, StoppedError
from diastole.models.native import build
from diastole.models.training import never

CPUINFO = Path("/proc/cpuinfo")
KEPT = 1000
LOOK_SECONDS = 0.02
"""Between two looks at a lock."""

VERSION = 2
"""Of what a plan means; plans of another are looked for anew."""


def folder() -> Path:
    """Return where things are kept: `$XDG_CACHE_HOME/diastole/plans`, by default in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "diastole" / "plans"


def key(what: Sequence[str]) -> str:
    """Return the name of what was found for `what` on this device, with these libraries."""
    text = json.dumps([VERSION, *what, *device()])
    return hashlib.sha256(text.encode()).hexdigest()


def device() -> list[str]:
    """Return what the speed of arithmetic depends on: processor, PyTorch with its libraries, our kernels."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    chip = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    limits = [f"{name}={os.environ.get(name, '')}" for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")]
    return [platform.machine(), *chip, *limits, torch.__config__.show(), _kernels()]


def _kernels() -> str:
    """Return which kernels of our own there may be, without building them."""
    try:
        compiler = build.find_compiler()
    except KernelError:
        compiler = []
    return build.digest(*compiler, os.environ.get("DIASTOLE_KERNELS", ""))


@contextmanager
def alone(lock: str = "lock", stopped: Callable[[], bool] = never) -> Iterator[None]:
    """Let nobody else of this user's be in such a block: two searches would disturb each other, and find the same.

    A block inside of another one needs a `lock` of its own. Raises `StoppedError` once `stopped` while others are in.
    """
    try:
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (folder() / lock).open("a")
    except OSError:
        yield
        return
    with file:
        while not _locked(file):
            if stopped():
                raise StoppedError("others hold it")
            time.sleep(LOOK_SECONDS)
        yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read(name: str) -> Plan | None:
    """Return a plan, or None if there is none that can be read."""
    try:
        return Plan.from_json(text(name))
    except (ValueError, PlanError):
        return None


def write(name: str, plan: Plan) -> None:
    """Keep a plan."""
    keep(name, plan.to_json())


def text(name: str, most_seconds: float = inf) -> str:
    """Return what is kept under a name; empty if there is nothing, or it is older than `most_seconds`."""
    path = folder() / f"{name}.json"
    try:
        return path.read_text() if time.time() - path.stat().st_mtime < most_seconds else ""
    except (OSError, ValueError):
        return ""


def keep(name: str, content: str) -> None:
    """Keep a text; where that cannot be done, it is found anew next time. The oldest are removed."""
    with suppress(OSError):
        place = folder()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, path = tempfile.mkstemp(dir=place, suffix=".new")
        with os.fdopen(number, "w") as file:
            file.write(content)
        Path(path).replace(place / f"{name}.json")
        kept = sorted(place.glob("*.json"), key=lambda each: each.stat().st_mtime)
        for each in kept[:-KEPT]:
            each.unlink()
