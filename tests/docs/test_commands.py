"""What the documentation tells people to type is what the commands take."""

import re
import shlex
from collections.abc import Iterator

import click
import typer
from pages import PAGES, ROOT, blocks

from diastole.cli.main import app

BEGINS = {"&", "&&", ";", "|", "||", "do", "then", "if", "!"}
ASSIGNED = re.compile(r"[A-Z_]+=")
ENDS = {"&", "&&", ";", "|", ">", ">>", "2>", "||"}


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
        for block in blocks(page, "sh"):
            for words in commands(block.text):
                found += 1
                try:
                    parse(words)
                except click.UsageError as error:
                    wrong.append(f"{page.relative_to(ROOT)}: diastole {shlex.join(words)}: {error}")
    assert wrong == []
    assert found > 50
