"""Coordinators by name, in a file of this user's, so that operators' commands need no addresses."""

import json
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diastole.models.spec import one_line
from diastole.proto.address import Address
from diastole.proto.errors import DiastoleError
from diastole.proto.files import write_bytes

NAME = r"^[A-Za-z0-9._-]{1,64}$"


class ProfileError(DiastoleError):
    """A profile that is not there, or a file of profiles that cannot be read."""

    exit_code = 2


class Profile(BaseModel):
    """Where a coordinator is, and what an operator shows it."""

    model_config = ConfigDict(extra="forbid")

    address: str
    token_file: str = ""


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    default: str = ""
    coordinators: dict[str, Profile] = Field(default_factory=dict)


@dataclass(slots=True)
class Profiles:
    """The coordinators that this user knows.

    Attributes:
        path: the file.
        default: name of the one that is meant if none is named; empty for none.
        coordinators: by name.

    """

    path: Path
    default: str = ""
    coordinators: dict[str, Profile] = field(default_factory=dict)

    @staticmethod
    def load() -> "Profiles":
        """Read this user's file (XDG base directories); none is as good as an empty one. Raises `ProfileError`."""
        home = Path(os.environ.get("XDG_CONFIG_HOME", ""))
        path = (home if home.is_absolute() else Path("~/.config").expanduser()) / "diastole" / "coordinators.toml"
        try:
            found: dict[str, Any] = tomllib.loads(path.read_text())
            document = _Document.model_validate(found)
        except FileNotFoundError:
            return Profiles(path)
        except ValidationError as error:
            raise ProfileError(f"{path}: {one_line(error)}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ProfileError(f"{path}: not TOML that can be read ({error})") from None
        return Profiles(path, document.default, document.coordinators)

    def find(self, name: str = "") -> Profile | None:
        """Return the coordinator of a name, by default the default; None without one. Raises `ProfileError`."""
        name = name or self.default
        if not name:
            return None
        if name not in self.coordinators:
            known = ", ".join(sorted(self.coordinators)) or "none"
            raise ProfileError(f"no coordinator {name!r} in {self.path}; there are: {known}")
        Address.parse(self.coordinators[name].address)
        return self.coordinators[name]

    def save(self) -> None:
        """Write the file, whole or not at all."""
        lines = [f"default = {json.dumps(self.default)}"] if self.default else []
        for name, each in sorted(self.coordinators.items()):
            lines += ["", f"[coordinators.{json.dumps(name)}]", f"address = {json.dumps(each.address)}"]
            lines += [f"token_file = {json.dumps(each.token_file, ensure_ascii=False)}"] if each.token_file else []
        write_bytes(self.path, ("\n".join(lines).lstrip("\n") + "\n").encode(), 0o600)
