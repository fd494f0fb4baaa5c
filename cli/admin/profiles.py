"""`diastole admin profiles`: coordinators by name, so that commands need no addresses."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from diastole.cli.admin.verb import group, prints, table
from diastole.cli.options import Json, consoles, print_json
from diastole.cli.profiles import NAME, Profile, ProfileError, Profiles
from diastole.proto.address import Address

app = group("Coordinators by name, in a file of yours: `--at NAME` means one, and the default is meant without it.")
Name = Annotated[str, typer.Argument(help="The coordinator's name.")]


SHAPE = {"name": str, "default": bool, "address": str, "token_file": str}


@app.command("list")
@prints([SHAPE])
def list_(json: Json = False) -> None:
    """List the coordinators that you have named.

    Example: `diastole admin profiles list`
    """
    found = Profiles.load()
    if json:
        print_json([_row(found, name) for name in sorted(found.coordinators)])
        return
    rows = [
        (name, each.address, each.token_file, "default" * (name == found.default))
        for name, each in sorted(found.coordinators.items())
    ]
    shown = table(("name", "address", "token file", "which"), rows)
    consoles(json).print(shown if found.coordinators else f"no coordinator is named in {found.path}", soft_wrap=True)


@app.command()
@prints(SHAPE)
def add(
    name: Name,
    address: Annotated[str, typer.Argument(help="Its admin address, host:port.")],
    token_file: Annotated[Path | None, typer.Option(help="The file that shows who calls.")] = None,
    default: Annotated[bool, typer.Option("--default", help="It is meant where none is named.")] = False,
    json: Json = False,
) -> None:
    """Name a coordinator, or name another by the same name; the first one is the default.

    Example: `diastole admin profiles add lab coordinator.example:7701`
    """
    if not re.fullmatch(NAME, name):
        raise ProfileError(f"{name!r}: 1 to 64 characters of A-Z a-z 0-9 . _ - are accepted")
    Address.parse(address)
    profiles = Profiles.load()
    profiles.coordinators[name] = Profile(address=address, token_file=str(token_file.absolute()) if token_file else "")
    profiles.default = name if default or len(profiles.coordinators) == 1 else profiles.default
    profiles.save()
    if json:
        print_json(_row(profiles, name))
    else:
        consoles(json).print(f"{name} is {address}{', the default' * (profiles.default == name)}", soft_wrap=True)


@app.command()
@prints(SHAPE)
def remove(name: Name, json: Json = False) -> None:
    """Forget a coordinator; operators' certificates stay.

    Example: `diastole admin profiles remove lab`
    """
    profiles = Profiles.load()
    profiles.find(name)
    row = _row(profiles, name)
    del profiles.coordinators[name]
    profiles.default = profiles.default if profiles.default != name else ""
    profiles.save()
    if json:
        print_json(row)
    else:
        consoles(json).print(f"{name} is forgotten", soft_wrap=True)


def _row(profiles: Profiles, name: str) -> dict[str, Any]:
    return {"name": name, "default": name == profiles.default, **profiles.coordinators[name].model_dump()}
