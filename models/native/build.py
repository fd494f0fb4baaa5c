"""Building the native kernels: `python -m diastole.models.native.build [--isa NAME] [--out DIR]`.

Sources are `cpp/*.cpp`, C++17 with the vector extensions of GCC and Clang behind a plain C interface, so a library
depends on no version of torch or Python. Every instruction set is built from the same sources. Each source becomes a
library of its own, a *part*, so that nobody waits for kernels that are not needed: "winograd" is that of winograd.cpp;
"groupnorm-bf16" has the kernels of groupnorm.cpp for tensors in bfloat16, and "groupnorm" those for float32.
"""

import argparse
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from diastole.models.errors import KernelError
from diastole.proto.errors import DiastoleError

NATIVE = Path(__file__).parent / "cpp"
COMPILERS = ("g++", "clang++", "c++")
# Never -ffast-math: linked with it, a library turns denormal numbers to zero in the whole process that loads it.
FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-exceptions",
    "-fno-rtti",
)
TIME_OUT = 60.0
HALF = "-bf16"
"""At the end of the names of parts for tensors in bfloat16."""

_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})


@dataclass(frozen=True, slots=True)
class Isa:
    """An instruction set that libraries are built for.

    Attributes:
        name: in names of files.
        machine: processors that have it, as `platform.machine()` says.
        flags: of the compiler.
        needs: words that Linux must say of the processor in `/proc/cpuinfo`.

    """

    name: str
    machine: str
    flags: tuple[str, ...]
    needs: frozenset[str]


ISAS = {
    isa.name: isa
    for isa in (
        Isa(
            "avx512",
            "x86_64",
            ("-march=x86-64-v4", "-mprefer-vector-width=512"),
            _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
        ),
        Isa("avx2", "x86_64", ("-march=x86-64-v3",), _V3),
        Isa("neon", "aarch64", (), frozenset({"asimd"})),
    )
}
"""By name, the widest first."""


def native_isas() -> list[Isa]:
    """Return what this processor has, the widest first; empty where nothing fits."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    said = {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()}
    return [isa for isa in ISAS.values() if isa.machine == platform.machine() and isa.needs <= said]


def find_compiler() -> list[str]:
    """Return the command of a C++ compiler: that of `CXX`, or the first one that is installed.

    Raises:
        KernelError: there is none.

    """
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    wanted = f"{named[0]} (CXX)" if named else " or ".join(COMPILERS)
    raise KernelError(f"no C++ compiler: {wanted} is not installed")


def compiler_version(compiler: list[str]) -> str:
    """Return what the compiler says of itself; it is asked once a process."""
    return _version(tuple(compiler))


@cache
def _version(compiler: tuple[str, ...]) -> str:
    return _run([*compiler, "--version"])


def parts() -> list[str]:
    """Return the names of all parts."""
    found = []
    for path in sorted(NATIVE.glob("*.cpp")):
        found += [path.stem, f"{path.stem}{HALF}"] if "DIASTOLE_KERNELS(" in path.read_text() else [path.stem]
    return found


def source(part: str) -> tuple[Path, list[str]]:
    """Return the file of a part, and the flags that make the part of it."""
    stem = part.removesuffix(HALF)
    return NATIVE / f"{stem}.cpp", ["-DDIASTOLE_BF16"] if part != stem else []


def digest(*words: str, part: str | None = None) -> str:
    """Return 16 hexadecimal digits that change with the sources, those of one part or all, the flags and the words."""
    hashed = sha256()
    for path in sorted([*NATIVE.glob("*.h"), *([source(part)[0]] if part else NATIVE.glob("*.cpp"))]):
        hashed.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    hashed.update("\0".join([*FLAGS, *words]).encode())
    return hashed.hexdigest()[:16]


def packaged_name(isa: Isa, part: str) -> str:
    """Return the name of a library that was built at installation; others are for other sources."""
    return f"kernels-{isa.name}-{part}-{digest(*isa.flags, part=part)}.so"


def compile_library(path: Path, isa: Isa, part: str, compiler: list[str], more: Iterable[str] = ()) -> None:
    """Compile a part into a library, which appears whole at `path` or not at all; `more` are further flags.

    Raises:
        KernelError: the compiler fails, takes more than `TIME_OUT` seconds, or `path` cannot be written.

    """
    file, flags = source(part)
    try:
        # Not a TemporaryDirectory: at the end of a process that one is removed while a thread may still compile there.
        folder = tempfile.mkdtemp(prefix=building(path), dir=path.parent)
        try:
            whole = Path(folder, path.name)
            _run([*compiler, *FLAGS, *isa.flags, *flags, *more, "-shared", str(file), "-o", str(whole)])
            os.replace(whole, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise KernelError(f"the kernels cannot be written to {path}: {error.strerror or error}") from None


def building(path: Path) -> str:
    """Return how the names of folders begin in which the library at `path` is compiled."""
    return f".building-{path.stem}-"


def _run(command: list[str]) -> str:
    """Return the output of a command; it and what it started are killed if it takes too long."""
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise KernelError(f"{command[0]} cannot be started: {error.strerror or error}") from None
    with process:
        try:
            output, _ = process.communicate(timeout=TIME_OUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise KernelError(f"{command[0]} took more than {TIME_OUT:g} s") from None
    if process.returncode:
        lines = output.splitlines() or ["it says nothing"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise KernelError(f"{command[0]} failed with status {process.returncode}: {first}")
    return output


def main(arguments: list[str] | None = None) -> int:
    """Build the libraries that this machine, or the one named, would use; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m diastole.models.native.build", description="Build the kernels.")
    parser.add_argument("--isa", choices=list(ISAS), help="instruction set (default: the widest of this processor)")
    parser.add_argument("--out", type=Path, default=NATIVE, help="folder (default: that of the installed package)")
    options = parser.parse_args(arguments)
    try:
        chosen = [ISAS[options.isa]] if options.isa else native_isas()[:1]
        if not chosen:
            raise KernelError(f"no kernels for this processor ({platform.machine()}); known: {', '.join(ISAS)}")
        compiler, made = find_compiler(), [options.out / packaged_name(chosen[0], part) for part in parts()]
        options.out.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as cores:
            list(cores.map(lambda path, part: compile_library(path, chosen[0], part, compiler), made, parts()))
    except (DiastoleError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.writelines(f"{path}\n" for path in made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
