"""What the documentation tells people to type and to write is what the commands take."""

import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator

import click
import typer
from pages import PAGES, ROOT, blocks

from diastole.cli.comparing import settings_of
from diastole.cli.main import COMMANDS, app
from diastole.proto.errors import DiastoleError
from diastole.simulations.compared import known
from diastole.simulations.simulation import Simulation

BEGINS = {"&", "&&", ";", "|", "||", "do", "then", "if", "!"}
ASSIGNED = re.compile(r"[A-Z_]+=")
HOMES = ("docs", "packaging", "proto", "tests")
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
            raise click.BadParameter(f"{name}: a command is missing")
        name, inner, words = command.resolve_command(context, words)
        assert inner is not None
        command, context = inner, click.Context(inner, parent=context, info_name=name)
    if words != ["--help"]:
        command.parse_args(context, list(words))


def test_every_command_is_one_that_the_command_line_takes() -> None:
    found, wrong = 0, []
    for page in [*PAGES, ROOT / "cli" / "assets" / "README.txt"]:
        for block in blocks(page, "sh"):
            for words in commands(block.text):
                found += 1
                try:
                    parse(words)
                except click.UsageError as error:
                    wrong.append(f"{page.relative_to(ROOT)}: diastole {shlex.join(words)}: {error}")
    assert wrong == []
    assert found > 50


def test_what_sentences_call_a_command_or_an_option_is_one() -> None:
    found, wrong = 0, []
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        # Not the syntax of a command, as tables have it.
        for span in re.findall(r"`(?:\.venv/bin/)?(diastole [a-z][^`\n\[|]*)`", prose):
            found += 1
            try:
                parse([word for word in shlex.split(span)[1:] if word != "..."])
            except click.UsageError as error:
                # A sentence need not give all arguments, and may give N for a number.
                if not isinstance(error, click.BadParameter | click.BadOptionUsage):
                    wrong.append(f"{page.relative_to(ROOT)}: {span}: {error.format_message()}")
    assert wrong == []
    assert found > 50


def test_the_table_of_commands_names_options_that_there_are() -> None:
    rows = re.findall(r"^\| `diastole ([a-z][^`]*)` \|", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)
    assert {row.split()[0] for row in rows} == {*COMMANDS}
    for row in rows:
        command = typer.main.get_command(app)
        for word in row.split():
            if not isinstance(command, click.Group) or not re.fullmatch("[a-z-]+", word):
                break
            _, inner, _ = command.resolve_command(click.Context(command), [word])
            assert inner is not None
            command = inner
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert set(re.findall(r"--[a-z0-9][a-z0-9-]*", row)) <= known, row


def test_every_file_of_the_project_that_a_page_names_is_there() -> None:
    folders = "|".join(path.name for path in ROOT.iterdir() if (path / "__init__.py").exists() or path.name in HOMES)
    found = re.compile(rf"(?<![\w/.-])((?:{folders})/[\w/.-]+\.(?:py|toml|md|proto|service|env|json|sh|yaml))\b")
    theirs = {"benchmarks/dataset/cifar10/download_preprocess.py", "docs/methods/NAME.md"}
    named = {name for page in PAGES for name in found.findall(page.read_text())} - theirs
    assert len(named) > 50
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_study_is_a_command_over_methods_and_an_experiment_that_there_are() -> None:
    listed = runpy.run_path(str(ROOT / "packaging" / "studies.py"))["studies"]()
    files = {study.file for study in listed}
    there = {f"studies/{path.name}" for path in (ROOT / "simulations" / "studies").glob("*.toml")}
    assert there - {"studies/studies.toml"} < files
    for study in listed:
        for command, _ in study.commands():
            parse(shlex.split(command)[1:])
        overrides = [f'data.path="{study.data}"'] if study.data else []
        settings = settings_of(ROOT / "simulations" / study.file, [*overrides, *study.set], list(study.methods), [])
        assert len(known(study.methods)) == len(study.methods)
        assert settings.tiers
        assert not study.page or (ROOT / study.page).is_file()


def test_every_experiment_on_a_page_is_one() -> None:
    found, wrong = 0, []
    for page in PAGES:
        for block in blocks(page, "toml"):
            document = tomllib.loads(block.text)
            # Packages, coordinators by name, and a sampler that the page itself brings.
            if {"project", "coordinators"} & {*document} or page.name == "your-own-sampler.md":
                continue
            found += 1
            try:
                Simulation.parse(document, "test")
            except DiastoleError as error:
                wrong.append(f"{page.relative_to(ROOT)}: {error}")
    assert wrong == []
    assert found > 20
