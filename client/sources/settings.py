"""How a device's data are read, where that is not plain."""

import tomllib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass as validated

from diastole.client.errors import DataError
from diastole.client.sources.layout import Layout
from diastole.models.spec import STRICT, one_line

NEWEST = 10_000
Whole = Annotated[int, Field(ge=0)]


@validated(frozen=True, slots=True, config=STRICT)
class Settings:
    """What the device's owner says of its data.

    Attributes:
        size: height and width, in pixels, that the images of a folder are scaled to; 0 leaves them as they are.
        layout: where the channels of arrays in a folder are, if they could be read in two ways.
        label: the column of a table that holds the targets; several are separated by commas.
        input: the columns of a table that hold the inputs, separated by commas; by default all others.
        values: whether the targets of a table are values, and not classes.
        classes: the names of the model's classes, in its order; without it, labels are the numbers of classes.
        path: what a function of one's own is given.
        window: rows of a table in one example; 0 makes an example of each row.
        hop: rows from the beginning of a window to that of the next.
        newest: windows that are kept, the newest.
        test_share: share of the windows of a signal that are kept for a test; how other examples are divided is not
            settled where they are read.

    """

    size: Whole = 0
    layout: Layout = ""
    label: str = "label"
    input: str = ""
    values: bool = False
    classes: tuple[str, ...] = ()
    path: Path | None = None
    window: Whole = 0
    hop: Annotated[int, Field(ge=1)] = 1
    newest: Annotated[int, Field(ge=1)] = NEWEST
    test_share: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        if self.window and self.hop > self.window:
            raise ValueError(f"hop {self.hop} is more than the window, {self.window}; windows that touch are accepted")

    def only(self, what: str, *accepted: str) -> None:
        """Raise `DataError` if anything is set that says nothing of such data, `what`, as only `accepted` does."""
        for each in fields(Settings):
            if each.name not in (*accepted, "hop", "test_share") and getattr(self, each.name) != each.default:
                known = ", ".join(accepted) or "nothing"
                raise DataError(f"{what}: {each.name} {getattr(self, each.name)!r} says nothing of it; {known} does")

    def columns(self, found: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the columns of inputs and those of targets, among those that are `found` in a table."""
        labels = [self.label] if self.label in found else _named(self.label)
        return _named(self.input) or [name for name in found if name not in labels], labels


def settings_of(texts: Sequence[str], window: int = 0, hop: int = 0, test_share: float = 0.0) -> Settings:
    """Return the settings that `data.KEY=VALUE` say; a value is TOML, or else plain text. Raises `DataError`.

    Without a `hop`, windows overlap by half.
    """
    known = [each.name for each in fields(Settings) if each.name not in ("window", "hop", "test_share")]
    given: dict[str, object] = {"window": window, "hop": hop or max(1, window // 2), "test_share": test_share}
    for text in texts:
        key, sign, value = text.partition("=")
        key = key.strip().removeprefix("data.")
        if not sign or key not in known:
            raise DataError(f"--set {text[:100]!r}: data.KEY=VALUE is accepted, with KEY one of {', '.join(known)}")
        try:
            given[key] = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):
            given[key] = value
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        raise DataError(f"data: {one_line(error)}") from None


def _named(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
