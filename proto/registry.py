"""Things by name: those that ship with diastole, and those that other installed packages bring by entry points."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from diastole.proto.errors import DiastoleError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A table of things that are imported when they are asked for.

    Another package adds to it by an entry point, in its `pyproject.toml`:

        [project.entry-points."diastole.methods"]
        mine = "mypackage.methods:MINE"

    Other packages cannot take the names that ship with diastole.
    """

    def __init__(
        self,
        what: str,
        own: Mapping[str, str],
        kind: type[Any],
        error: type[DiastoleError],
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        """Make a table.

        Args:
            what: a word for one of the things, such as "method"; the entry points are those of "diastole.methods".
            own: for each name, where the thing is: "package.module:attribute".
            kind: the class of the things.
            error: raised for an unknown name, or a thing that cannot be imported.
            aliases: other names for some of them, which are understood but not listed.

        """
        self.what, self.group = what, f"diastole.{what.replace(' ', '_')}{'es' if what.endswith('s') else 's'}"
        self._own, self._kind, self._error = own, kind, error
        self._aliases = dict(aliases or {})
        self._loaded: dict[str, T] = {}

    def name(self, name: str) -> str:
        """Return the name that an alias stands for, or the name itself."""
        return self._aliases.get(name, name)

    def known(self, name: str) -> str:
        """Return the name, or what an alias stands for. Raises `ValueError`, for pydantic, with the names that are."""
        if name not in self:
            raise ValueError(f"must be one of {', '.join(self)}, not {name[:100]!r}")
        return self.name(name)

    def ships(self, name: str) -> bool:
        """Return whether a thing comes with diastole, and not from another package."""
        return self.name(name) in self._own

    def __getitem__(self, name: str) -> T:
        """Return the thing of that name or alias. Raises the error that the table was made with."""
        name = self.name(name)
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        """Return whether there is a thing of that name or alias."""
        return isinstance(name, str) and (self.name(name) in self._own or self.name(name) in self._others)

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._others

    def __len__(self) -> int:
        return len(self._own) + len(self._others)

    @cached_property
    def _others(self) -> dict[str, EntryPoint]:
        found = sorted(entry_points(group=self.group), key=lambda point: point.name)
        return {point.name: point for point in found if self.name(point.name) not in self._own}

    def _load(self, name: str) -> T:
        found: Any
        if name in self._own:
            module, _, attribute = self._own[name].partition(":")
            found = getattr(import_module(module), attribute)
        elif name in self._others:
            try:
                found = self._others[name].load()
            except Exception as error:  # noqa: BLE001 (another package's code may raise anything)
                where = self._others[name].value
                brief = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
                raise self._error(f"{self.what} {name!r}: {where} cannot be imported: {brief}") from None
        else:
            raise self._error(f"unknown {self.what} {name!r}; known: {', '.join(self)}")
        if not isinstance(found, self._kind):
            raise self._error(f"{self.what} {name!r} is a {type(found).__name__}; expected a {self._kind.__name__}")
        loaded: T = found
        return loaded
