"""What the commands of operators share: whom they call, and how they answer."""

import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.box import SIMPLE_HEAD
from rich.table import Table

from diastole.cli.calling import TOKEN_FILE, calling
from diastole.cli.grid import DASH
from diastole.cli.options import Json, consoles, print_json
from diastole.cli.profiles import ProfileError, Profiles
from diastole.proto.errors import DiastoleError

P = ParamSpec("P")
SECONDS = 10.0
"""That a call may take."""
HERE = "127.0.0.1:7701"
WIDE_INTEGERS = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
REALS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)

At = Annotated[
    str,
    typer.Option(
        "--at",
        help="A coordinator by its name (`admin profiles`).",
        envvar="DIASTOLE_AT",
        autocompletion=lambda: sorted(Profiles.load().coordinators),
        show_default=False,
    ),
]
Address = Annotated[
    str,
    typer.Option(
        help=f"Its admin address, host:port; by default that of your default profile, or {HERE}.", show_default=False
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        help=f"The file that shows who calls, on the coordinator's machine; by default {TOKEN_FILE}.",
        show_default=False,
    ),
]
RunId = Annotated[str, typer.Argument(help="Of several runs, the one that is meant, by its name.", show_default=False)]
OfRun = Annotated[str, typer.Option("--run", help="Of several runs, the one that is meant, by its name.")]
DeviceName = Annotated[str, typer.Argument(help="The device's name.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]
Gives = type[Message] | list[type[Message]] | None
Shape = Mapping[str, type] | list[Mapping[str, type]]
F = TypeVar("F", bound=Callable[..., None])


class UnsureError(DiastoleError):
    """A command that asks before it does something, where nobody can be asked."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Call:
    """An operator's command, about to call a coordinator.

    Attributes:
        address: of the coordinator, host:port.
        token_file: shows who calls.
        json: whether a program reads the answer.

    """

    address: str
    token_file: Path
    json: bool

    @staticmethod
    def to(at: str, address: str, token_file: Path | None, json: bool) -> "Call":
        """Return a call of the coordinator that is meant: by its address, by its name, or the default one.

        Raises `ProfileError`.
        """
        profile = Profiles.load().find(at) if at or not address else None
        if at and address:
            raise ProfileError(
                f"--at {at} and --address {address} both say which coordinator is meant; one is accepted"
            )
        if profile is None:
            return Call(address or HERE, token_file or TOKEN_FILE, json)
        kept = Path(profile.token_file) if profile.token_file else TOKEN_FILE
        return Call(profile.address, token_file or kept, json)

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Yield a stub for several calls; whatever goes wrong in the block is one line."""
        with calling(self.address, self.token_file) as stub:
            yield stub

    def ask(self, rpc: str, request: Message, seconds: float = SECONDS) -> Any:
        """Return what the coordinator answers."""
        with self.open() as stub:
            return getattr(stub, rpc)(request, timeout=seconds)

    def answer(self, found: Message | Sequence[Message], *text: str | Table) -> None:
        """Say what came of it: in words and tables, or as JSON."""
        if self.json:
            print_json(plain(found) if isinstance(found, Message) else [plain(each) for each in found])
            return
        for part in text:
            consoles(self.json).print(part, soft_wrap=isinstance(part, str))

    def sure(self, yes: bool, question: str) -> None:
        """Ask whether something is to be done that cannot be taken back; end the command if it is not."""
        if yes:
            return
        if self.json or not sys.stdin.isatty():
            raise UnsureError(f"{question} Nobody can be asked here; --yes does it without asking")
        typer.confirm(question, abort=True)


def verb(
    app: typer.Typer, name: str | None = None, gives: Gives = None, shape: Shape | None = None
) -> Callable[[Callable[Concatenate[Call, P], None]], Callable[Concatenate[Call, P], None]]:
    """Make a function a command of `app`: it is given a `Call`, and its options behind that are the command's.

    `gives` is the message that the command prints with `--json`, or a list of it; or `shape` has the keys of what it
    prints, and the types of their values.
    """

    def made(function: Callable[Concatenate[Call, P], None]) -> Callable[Concatenate[Call, P], None]:
        def command(
            *, at: At = "", address: Address = "", token_file: TokenFile = None, json: Json = False, **own: Any
        ) -> None:
            function(Call.to(at, address, token_file, json), **own)  # type: ignore[call-arg]

        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        *shared, _ = inspect.signature(command).parameters.values()
        both = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *shared)]
        command.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in both}
        command.__doc__, command.__name__ = function.__doc__, function.__name__
        command.gives, command.shape = gives, shape  # type: ignore[attr-defined]
        app.command(name)(command)
        return function

    return made


def prints(shape: Shape) -> Callable[[F], F]:
    """Say which keys a command that is no `verb` prints with `--json`, or that it prints a list of such."""

    def made(function: F) -> F:
        function.gives, function.shape = None, shape  # type: ignore[attr-defined]
        return function

    return made


def group(help_: str) -> typer.Typer:
    """Return a command that has commands of its own."""
    return typer.Typer(help=help_, no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> Table:
    """Return a table that is read at 80 columns: what is empty everywhere is left out, and the first column is whole.

    Columns named in `numbers` stand to the right.
    """
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    kept = [place for place in range(len(columns)) if any(row[place] not in ("", DASH) for row in rows)]
    for place in kept:
        name = columns[place]
        made.add_column(name, justify="right" if name in numbers else "left", no_wrap=place == 0, overflow="fold")
    for row in rows:
        made.add_row(*(row[place] for place in kept))
    return made


def pairs(rows: Sequence[tuple[str, str]]) -> Table:
    """Return a table of names and values; values that are empty are left out."""
    made = Table(show_header=False, box=None, pad_edge=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        if value:
            made.add_row(name, value)
    return made


def plain(message: Message) -> dict[str, Any]:
    """Return a message for JSON.

    64-bit integers are numbers there, not the strings that `MessageToDict` makes, and what is not finite is null.
    """
    document = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.name not in document:
            continue
        if field.message_type and field.message_type.GetOptions().map_entry:
            document[field.name] = {key: _number(each) for key, each in value.items()}
        elif field.cpp_type in WIDE_INTEGERS:
            document[field.name] = list(value) if field.is_repeated else value
        elif field.cpp_type in REALS:
            document[field.name] = [_number(each) for each in value] if field.is_repeated else _number(value)
        elif field.message_type is not None:
            document[field.name] = [plain(part) for part in value] if field.is_repeated else plain(value)
    return document


def word(state: str) -> str:
    """Return a state's name as people read it."""
    return state.removeprefix("STATE_").lower()


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
