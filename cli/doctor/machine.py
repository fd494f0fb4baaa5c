"""The machine itself: versions, memory, clock, compiler."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from diastole.cli.doctor.finding import Finding, fault, ok, warning
from diastole.cli.sizes import megabytes
from diastole.client.groups import groups, quota, read
from diastole.proto.words import PROTOCOL_VERSION

PARTS = ("torch", "grpcio", "protobuf", "safetensors", "numpy")
LEAST_MEMORY = 300e6
"""Bytes that an agent needs before it trains anything; most of them are torch's."""
BUILT = 1767225600
"""A time in seconds since 1970 that is over: 2026-01-01."""
PRESSED = 10.0
"""Per cent of the last minute in which somebody waited for memory that are too many."""


def check() -> Iterator[Finding]:
    """Look at this machine."""
    yield from _versions()
    yield _memory()
    yield from _pressure()
    yield _cores()
    yield _clock()
    yield _compiler()


def _versions() -> Iterator[Finding]:
    found = dict[str, str]()
    for name in PARTS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            yield fault("versions", f"{name} is not installed", "diastole needs it", "pip install diastole")
    others = ", ".join(f"{name} {number}" for name, number in found.items())
    yield ok("versions", f"diastole {version('diastole')}, protocol {PROTOCOL_VERSION}, {others}")


def _memory() -> Finding:
    limits = [int(text) for folder in groups() if (text := read(folder / "memory.max").strip()).isdecimal()]
    there = re.search(r"^MemTotal:\s+(\d+) kB", read(Path("/proc/meminfo")), re.MULTILINE)
    known = [*limits, *([int(there[1]) * 1024] if there else [])]
    if not known:
        return ok("memory", "unknown: this system does not say")
    most = min(known)
    where = "the control group's limit" if limits and most == min(limits) else "of this machine"
    if most < LEAST_MEMORY:
        why = f"{megabytes(most)} is {where}; an agent takes {megabytes(LEAST_MEMORY)} before it trains anything"
        return fault("memory", "too little", why, "give the container or the unit more (mem_limit, MemoryMax)")
    return ok("memory", f"{megabytes(most)}, {where}")


def _pressure() -> Iterator[Finding]:
    """Tell of waits for memory in this process's control group (Linux's PSI)."""
    own = next(iter(groups()), Path("/nowhere"))
    if found := re.search(r"^some .*avg60=([\d.]+)", read(own / "memory.pressure"), re.MULTILINE):
        share = float(found[1])
        if share > PRESSED:
            why = f"programs waited for memory in {share:g} % of the last minute"
            yield warning("memory", "short", why, "give it more memory, or join with a smaller --memory")


def _cores() -> Finding:
    share, there = quota(), os.cpu_count() or 1
    if share is not None and share < 0.5:
        why = f"the control group leaves {share:g} cores of {there}"
        return warning("cores", "few", why, "rounds are slow for this device; give it more, or the smallest tier")
    return ok("cores", f"{there}" if share is None else f"{share:g} of {there}, by the control group")


def _clock() -> Finding:
    if time.time() < BUILT:
        why = f"this machine says that it is {time.strftime('%Y-%m-%d', time.gmtime())}; certificates do not count yet"
        return fault("clock", "is wrong", why, "set it, and let a time service keep it (systemd-timesyncd, chrony)")
    return ok("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


def _compiler() -> Finding:
    if os.environ.get("DIASTOLE_KERNELS", "").lower() in ("off", "0", "no", "false"):
        return ok("kernels", "turned off by DIASTOLE_KERNELS; everything works, slower")
    words = os.environ.get("CXX", "").split() or ["c++"]
    found = next((path for name in (words[0], "g++", "clang++") if (path := shutil.which(name))), None)
    if found is None:
        why = "convolutions and folding of our own are compiled at first use; without them all is slower"
        return warning(
            "kernels", "no C++ compiler", why, "install g++ or clang++, or install a wheel with them built in"
        )
    return ok("kernels", f"compiled by {found}")
