"""The native kernels: found or built at first use, or absent, and then everything works without them.

Each part of them (`build.py`) is a library of its own. One that was built at installation is used first
(`python -m diastole.models.native.build`). Otherwise the first process that needs it compiles it, in a second or two,
into `$XDG_CACHE_HOME/diastole/kernels`, for all later ones. `DIASTOLE_KERNELS=off` turns them off. ctypes releases the
interpreter's lock while a kernel runs.
"""

import ctypes
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from diastole.models.errors import KernelError
from diastole.models.native import build
from diastole.models.native.build import Isa

POINTER, INT64, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float


@dataclass(frozen=True, slots=True)
class Library:
    """The library of a part, loaded.

    Attributes:
        handle: where its functions are.
        isa: the instruction set that it was built for.
        path: its file.

    """

    handle: ctypes.CDLL
    isa: str
    path: Path


def library(part: str) -> Library | None:
    """Return the library of a part, built if need be; None where there is none."""
    found = _outcome(part)
    return found if isinstance(found, Library) else None


def absence(part: str) -> str | None:
    """Return, in a line, why there is no library; None where there is one."""
    found = _outcome(part)
    return None if isinstance(found, Library) else found


def prepare(parts: Iterable[str]) -> None:
    """Have the libraries of several parts, each core compiling another one."""
    with ThreadPoolExecutor(os.cpu_count()) as cores:
        list(cores.map(library, parts))


def function(part: str, name: str, *arguments: type) -> Callable[..., int] | None:
    """Return a function of a part that takes C values and returns an int; None without the part.

    Kernels return 0, or 1 where memory ran out: `check` makes an error of it.
    """
    found = library(part)
    if found is None:
        return None
    # A name that the library lacks is a mistake in a kernel's module, and an AttributeError.
    entry: Callable[..., int] = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)((name, found.handle))
    return entry


def check(status: int) -> None:
    """Raise a MemoryError where a kernel says that memory ran out."""
    if status:
        raise MemoryError("a kernel found no memory for its scratch space")


def loaded(part: str) -> Library | None:
    """Return the library of a part if this process has it already; None otherwise."""
    return library(part) if part in _FOUND else None


def ready(part: str) -> Library | None:
    """Return the library of a part if that takes no compiling; None otherwise."""
    if part in _FOUND:
        return library(part)
    try:
        isa = choose_isa()
        there = (build.NATIVE / build.packaged_name(isa, part)).exists() or cached_path(isa, part).exists()
    except KernelError:
        return None
    return library(part) if there else None


_FOUND: dict[str, Library | str] = {}


def _outcome(part: str) -> Library | str:
    """Return the library of a part, or why there is none; found once a process."""
    found = _FOUND.get(part)
    if found is None:
        try:
            found = open_library(choose_isa(), part)
        except KernelError as error:
            found = str(error)
        _FOUND[part] = found
    return found


def choose_isa() -> Isa:
    """Return the widest instruction set that this processor has and torch uses.

    Raises:
        KernelError: kernels are turned off, or there are none for this processor.

    """
    if os.environ.get("DIASTOLE_KERNELS", "").lower() in ("off", "0", "no", "false"):
        raise KernelError("kernels are turned off (DIASTOLE_KERNELS)")
    # Somebody who keeps torch from AVX-512 (ATEN_CPU_CAPABILITY) keeps these kernels from it too.
    capability = torch.backends.cpu.get_cpu_capability()
    narrow = {"avx512"} if capability == "AVX2" else set()
    if isas := [isa for isa in build.native_isas() if isa.name not in narrow]:
        return isas[0]
    raise KernelError(f"no kernels for this processor; known are {', '.join(build.ISAS)} on Linux")


def open_library(isa: Isa, part: str) -> Library:
    """Load the library of a part: the packaged one, the cached one, or one that is compiled now.

    Raises:
        KernelError: it can neither be found nor built.

    """
    packaged = build.NATIVE / build.packaged_name(isa, part)
    path = packaged if packaged.exists() else cached(isa, part)
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"the kernels in {path} cannot be loaded: {error}") from None
    return Library(handle, isa.name, path)


def cached_path(isa: Isa, part: str) -> Path:
    """Return where in the user's cache the library of a part is, or would be.

    Raises:
        KernelError: there is no compiler, or the folder is not this user's alone.

    """
    compiler = build.find_compiler()
    words = [*compiler, build.compiler_version(compiler), *isa.flags]
    return cache_folder() / f"{isa.name}-{part}-{build.digest(*words, part=part)}.so"


def cached(isa: Isa, part: str) -> Path:
    """Return the library of a part in the user's cache, compiled if it is not there yet.

    Its name says from which sources, by which compiler and with which flags it was made. One process compiles, others
    wait for it; where it fails, those that waited give up too.

    Raises:
        KernelError: there is no compiler, it fails, or the folder is not this user's alone.

    """
    compiler, path = build.find_compiler(), cached_path(isa, part)
    if not path.exists():
        waiting_since = time.time()
        with open(path.with_suffix(".lock"), "a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            failed_at, _, reason = lock.read().partition(" ")
            if not path.exists():
                if reason and float(failed_at) > waiting_since:
                    raise KernelError(reason)
                lock.truncate(0)
                for left in path.parent.glob(f"{build.building(path)}*"):
                    # Of a process that ended while it compiled.
                    shutil.rmtree(left, ignore_errors=True)
                try:
                    build.compile_library(path, isa, part, compiler)
                except KernelError as error:
                    lock.write(f"{time.time()} {error}")
                    raise
    if path.stat().st_uid != os.geteuid():
        raise KernelError(f"{path} belongs to another user")
    return path


def cache_folder() -> Path:
    """Return the folder of compiled libraries, made if need be: code is loaded from it, so it is its owner's alone.

    Raises:
        KernelError: it cannot be made, or others may write to it.

    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
        folder = root / "diastole" / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.lstat()
    except (OSError, RuntimeError) as error:
        raise KernelError(f"no folder for compiled kernels: {error}") from None
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022:
        raise KernelError(f"{folder} must be a folder that its owner, you, alone may write to (chmod 700)")
    return folder
