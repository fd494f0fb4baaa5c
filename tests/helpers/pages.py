"""The pages of the documentation, their blocks of code, and somebody who types what they say."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
BLOCK = re.compile(r"(?:^ *<!-- not run: ([^>]+) -->\n)?^( *)```([a-z]*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# ([\w/]+\.(?:py|toml))\b")

UNTIL = """until_round() {
    for _ in $(seq 400); do
        if diastole admin rounds list --json | grep -Eq "\\"number\\": *$1,"; then return; fi
        sleep 0.2
    done
    return 1
}
"""
"""Waits until a round with this number has begun: a reader takes longer from block to block than a shell does."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code on a page.

    Attributes:
        language: as behind its fence.
        text: of the block.
        reason: why nobody runs it, as a comment before it says; empty for one that is run.
        file: the file whose content it is, as its first line says; empty for none.

    """

    language: str
    text: str
    reason: str
    file: str


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    """Return the blocks of a page in one of these languages."""
    for reason, indent, language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language in languages:
            text = re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
            named = FILE.match(text)
            yield Block(language, text, reason, named[1] if named else "")


class Reader:
    """Types what pages say: in a folder of its own, as a user with a home of its own, at ports that are free."""

    def __init__(self, folder: Path, state: Path) -> None:
        """Put the commands into `folder`; operators call the coordinator whose folder is `state`."""
        self._folder, self._state = folder, state
        self._ports = {7700: free_port(), 7701: free_port(), 7780: free_port()}
        here, tools = os.environ.get("PYTHONPATH", ""), folder / ".bin"
        tools.mkdir()
        python = f'PYTHONPATH="$PYTHONPATH:{here}" exec "{sys.executable}"'
        listening = f"--listen 127.0.0.1:{self._ports[7700]} --admin 127.0.0.1:{self._ports[7701]}"
        # The usual ports may be taken on this machine.
        places = f'case "$*" in *--coordinator*) ;; serve*|doctor*|support-bundle*) set -- "$@" {listening};; esac'
        for name, what in {
            "python": f'{python} "$@"',
            "diastole": f'{places}\n{python} -m diastole.cli.main "$@"',
        }.items():
            (tools / name).write_text(f"#!/bin/sh\n{what}\n")
            (tools / name).chmod(0o755)

    def types(self, script: str, seconds: float = 900) -> str:
        """Run a script with bash, and return what it prints; it ends at its first command that fails."""
        for usual, port in self._ports.items():
            script = re.sub(rf"(?:127\.0\.0\.1|coordinator\.example):{usual}\b", f"127.0.0.1:{port}", script)
        token = f"--token-file {self._state / 'admin.token'}"
        profile = f"diastole admin profiles add here 127.0.0.1:{self._ports[7701]} {token} --default\n"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "DIASTOLE_"))}
        own = {
            "PYTHONPATH": "",
            "HOME": str(self._folder),
            "PATH": f"{self._folder / '.bin'}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
        }
        log = self._folder / ".log"
        with log.open("w") as file:
            process = subprocess.Popen(
                ["bash", "-euxc", UNTIL + profile + script],
                cwd=self._folder,
                env=kept | own,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(timeout=seconds)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        said = log.read_text()
        assert process.returncode == 0, said[-6000:]
        return said
