import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from diastole.models.errors import KernelError
from diastole.models.native import build, library

ISA = next(iter(build.native_isas()), None)
PART = "about"
needs_isa = pytest.mark.skipif(ISA is None, reason="no kernels for this processor")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of its own, and one source alone, which compiles at once; return the folder of libraries."""
    native = tmp_path / "native"
    native.mkdir()
    for path in (build.NATIVE / "about.cpp", *build.NATIVE.glob("*.h")):
        (native / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build, "NATIVE", native)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DIASTOLE_KERNELS", raising=False)
    return tmp_path / "cache" / "diastole" / "kernels"


def scripted(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


@needs_isa
@pytest.mark.usefixtures("tiny")
def test_what_is_compiled_is_used_again() -> None:
    assert ISA is not None
    first = library.open_library(ISA, PART)
    made = first.path.stat().st_mtime_ns
    again = library.open_library(ISA, PART)
    assert again.path == first.path
    assert again.path.stat().st_mtime_ns == made
    assert first.handle.diastole_lanes() == {"avx512": 16, "avx2": 8, "neon": 4}[ISA.name]
    assert first.path.parent.stat().st_mode & 0o077 == 0
    assert first.handle.diastole_threaded() == 1, "torch's OpenMP runtime is not found"


@needs_isa
def test_processes_that_start_at_once_compile_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ISA is not None
    isa = ISA
    log = tiny.parent.parent.parent / "log"
    compiler = build.find_compiler()[0]
    monkeypatch.setenv("CXX", scripted(log.parent, "logged", f'echo "$@" >> {log}\nexec {compiler} "$@"'))
    with ThreadPoolExecutor(4) as several:
        paths = set(several.map(lambda _: library.cached(isa, PART), range(4)))
    assert len(paths) == 1
    assert log.read_text().count(" -shared ") == 1
    assert {path.suffix for path in tiny.iterdir()} == {".so", ".lock"}


@needs_isa
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'x.cpp: error: broken'; exit 1", "error: broken"),
        ("exit 1", "says nothing"),
        ("sleep 30", "took more than"),
    ],
)
def test_a_compiler_that_fails_leaves_nothing(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    assert ISA is not None
    fails = f'case "$1" in --version) echo 1;; *) {script};; esac'
    monkeypatch.setenv("CXX", scripted(tiny.parent.parent.parent, "failing", fails))
    monkeypatch.setattr(build, "TIME_OUT", 0.5)
    with pytest.raises(KernelError, match=message):
        library.cached(ISA, PART)
    assert {path.suffix for path in tiny.iterdir()} == {".lock"}


ENDS_EARLY = """
import sys, threading, time
from pathlib import Path
from diastole.models.native import build
path, compiler, begun, build.NATIVE = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
isa = next(iter(build.native_isas()))
threading.Thread(target=build.compile_library, args=(path, isa, "about", [compiler]), daemon=True).start()
while not begun.exists():
    time.sleep(0.01)
"""

OUTLIVES = """
import fcntl, os, sys, time
from pathlib import Path
if "-shared" in sys.argv:
    with open(sys.argv[1], "w") as begun:
        fcntl.flock(begun, fcntl.LOCK_EX)
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(0.01)
        begun.write(f"there: {Path(sys.argv[-1]).parent.exists()}")
"""


@needs_isa
def test_a_process_that_ends_while_a_thread_compiles(tiny: Path, tmp_path: Path) -> None:
    """Nothing is removed where a compiler still writes; the next process that compiles does that."""
    assert ISA is not None
    path, begun = library.cached_path(ISA, PART), tmp_path / "begun"
    (tmp_path / "linker.py").write_text(OUTLIVES)
    linker = scripted(tmp_path, "linker", f'exec {sys.executable} {tmp_path}/linker.py {begun} "$@"')
    command = [sys.executable, "-c", ENDS_EARLY, str(path), linker, str(begun), str(build.NATIVE)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    with open(begun) as linking:
        fcntl.flock(linking, fcntl.LOCK_EX)
        assert linking.read() == "there: True"
    assert library.cached(ISA, PART) == path
    assert {each.suffix for each in tiny.iterdir()} == {".so", ".lock"}


def test_without_a_compiler_or_by_wish_there_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelError, match="no-such-compiler"):
        build.find_compiler()
    monkeypatch.setenv("DIASTOLE_KERNELS", "off")
    with pytest.raises(KernelError, match="DIASTOLE_KERNELS"):
        library.choose_isa()


def test_a_folder_that_others_may_write_to_is_not_trusted(tiny: Path) -> None:
    library.cache_folder()
    tiny.chmod(0o777)
    with pytest.raises(KernelError, match="alone may write"):
        library.cache_folder()
    tiny.rmdir()
    (elsewhere := tiny.parent / "elsewhere").mkdir()
    tiny.symlink_to(elsewhere)
    with pytest.raises(KernelError, match="alone may write"):
        library.cache_folder()


@needs_isa
@pytest.mark.usefixtures("tiny")
def test_a_file_that_is_no_library_is_an_error_in_a_line() -> None:
    assert ISA is not None
    (build.NATIVE / build.packaged_name(ISA, PART)).write_bytes(b"nothing")
    with pytest.raises(KernelError, match="cannot be loaded"):
        library.open_library(ISA, PART)


@needs_isa
@pytest.mark.usefixtures("tiny")
def test_what_was_built_at_installation_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert ISA is not None
    assert build.main([]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert library.open_library(ISA, PART).path == path
    assert list(library.cache_folder().iterdir()) == []


def test_building_for_a_folder_that_cannot_be_made_is_an_error_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert build.main(["--isa", "avx2", "--out", str(tmp_path / "file" / "inside")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_denormal_numbers_stay_what_they_are() -> None:
    library.library(PART)
    tiny = torch.tensor([1e-40])
    assert float(tiny * 1) > 0
    assert float(torch.full((64,), 1e-40).mul(0.5).sum()) > 0


@needs_isa
@pytest.mark.slow
@pytest.mark.parametrize("width", [16, 32, 64])
def test_kernels_pass_the_address_sanitizer(width: int, tmp_path: Path) -> None:
    """The driver runs every kernel on random shapes between guarded pages of memory.

    Vectors of 16 bytes are NEON's. Those of 64 are AVX-512's: where the processor has none, they are only compiled.
    """
    assert ISA is not None
    isa = build.ISAS["avx512"] if width == 64 else ISA
    if width == 64 and isa.machine != ISA.machine:
        pytest.skip("vectors of 64 bytes are AVX-512's")
    driver = Path(__file__).parents[2] / "helpers" / "kernels_driver.cpp"
    flags = [flag for flag in build.FLAGS if flag not in ("-O2", "-fvisibility=hidden")]
    command = [*build.find_compiler(), *flags, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
    command += [*isa.flags, f"-DDIASTOLE_VECTOR_BYTES={width}", f"-I{build.NATIVE}"]

    def compiled(part: str) -> str:
        source, more = build.source(part)
        subprocess.run([*command, *more, "-c", str(source), "-o", str(tmp_path / f"{part}.o")], check=True)
        return str(tmp_path / f"{part}.o")

    with ThreadPoolExecutor(os.cpu_count()) as cores:
        objects = list(cores.map(compiled, build.parts()))
    program = str(tmp_path / "driver")
    subprocess.run([*command, str(driver), *objects, "-o", program], check=True)
    if width != 64 or isa in build.native_isas():
        subprocess.run([program], check=True, stdout=sys.stdout)
