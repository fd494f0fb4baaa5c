"""What the documentation tells people to type is what the commands take, and the tutorial does what it says."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest
import typer
from ports import free_port

from diastole.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
TUTORIAL = [ROOT / "docs" / "tutorial" / f"{name}.md" for name in ("simulate", "deploy", "operate", "export")]
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^( *)```sh\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
BEGINS = {"&", "&&", ";", "|", "||", "do", "then", "if", "!"}
ASSIGNED = re.compile(r"[A-Z_]+=")
ENDS = {"&", "&&", ";", "|", ">", ">>", "2>", "||"}


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Return the shell blocks of a page, each behind the comment that it is not run."""
    for comment, indent, text in BLOCK.findall(page.read_text()):
        yield comment, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """Return what each `diastole` in a block is given."""
    for line in text.replace("\\\n", "").splitlines():
        words, begins = shlex.split(line, comments=True), True
        for place, word in enumerate(words):
            if word == "diastole" and begins:
                given = words[place + 1 :]
                end = next((place for place, word in enumerate(given) if word in ENDS), len(given))
                # What a loop's variable holds is several words, or none.
                yield [word for word in given[:end] if not word.startswith("$")]
            begins = word in BEGINS or (ASSIGNED.match(word) is not None and begins)


def parse(words: list[str]) -> None:
    """Find the command and hold its arguments against it, without running it. Raises click's `UsageError`."""
    command, name = typer.main.get_command(app), "diastole"
    context = click.Context(command, info_name=name)
    while isinstance(command, click.Group):
        if not words or words[0].startswith("-"):
            if words[:1] in (["--version"], ["--help"], ["--install-completion"]):
                return
            raise click.UsageError(f"{name}: a command is missing")
        name, inner, words = command.resolve_command(context, words)
        assert inner is not None
        command, context = inner, click.Context(inner, parent=context, info_name=name)
    if words != ["--help"]:
        command.parse_args(context, list(words))


def test_every_command_is_one_that_the_command_line_takes() -> None:
    found, wrong = 0, []
    for page in PAGES:
        for _, text in blocks(page):
            for words in commands(text):
                found += 1
                try:
                    parse(words)
                except click.UsageError as error:
                    wrong.append(f"{page.relative_to(ROOT)}: diastole {shlex.join(words)}: {error}")
    assert wrong == []
    assert found > 50


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the tutorial is written for a POSIX shell")
def test_the_tutorial_from_its_first_command_to_its_last(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    tool = tmp_path / "bin" / "diastole"
    tool.parent.mkdir()
    here = os.environ.get("PYTHONPATH", "")
    tool.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{here}" exec "{sys.executable}" -m diastole.cli.main "$@"\n')
    tool.chmod(0o755)
    lines = [text for page in TUTORIAL for comment, text in blocks(page) if not comment]
    script = "set -eux\n" + "\n".join(lines)
    # The ports of the pages may be taken on this machine.
    script = script.replace("127.0.0.1:7700", f"127.0.0.1:{ports[0]}").replace(
        "127.0.0.1:7780", f"127.0.0.1:{ports[2]}"
    )
    for command in ("serve experiment.toml", "doctor", "support-bundle"):
        places = f"--listen 127.0.0.1:{ports[0]} --admin 127.0.0.1:{ports[1]}"
        script = script.replace(f"diastole {command}", f"diastole {command} {places}")
    # A reader takes longer from page to page than a shell does.
    script = script.replace("diastole admin runs list", UNTIL_IT_RUNS + "\ndiastole admin runs list", 1)
    before = f"diastole admin profiles add here 127.0.0.1:{ports[1]} --token-file heart/state/admin.token --default\n"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "DIASTOLE_"))}
    own = {
        "PYTHONPATH": "",
        "HOME": str(tmp_path),
        "PATH": f"{tool.parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }
    log = tmp_path / "log"
    with log.open("w") as file:
        shell = ["bash", "-c", before + script]
        process = subprocess.Popen(
            shell, cwd=tmp_path, env=kept | own, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(timeout=900)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    said = log.read_text()
    assert process.returncode == 0, said[-4000:]
    project = tmp_path / "heart"
    for name in (
        "report",
        "comparison",
        "bundle.zip",
        "small.onnx",
        "small.onnx.md",
        "fits.safetensors",
        "state/latest",
    ):
        assert (project / name).exists(), name
    assert "room=kitchen" in said


UNTIL_IT_RUNS = """
for _ in $(seq 200); do
    if diastole admin rounds list --json | grep -Eq '"number": *1'; then break; fi
    sleep 0.5
done
"""
