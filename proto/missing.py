"""Optional libraries: one sentence for each that is missing."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from diastole.proto.errors import DiastoleError


def missing(what: str, library: str, package: str, why: str = "") -> str:
    """Return the line that says what to install.

    Args:
        what: needs the library; may be empty.
        library: by the name that people know.
        package: what pip is to install, such as "diastole[tables]".
        why: the library cannot be imported although it is there.

    """
    state = f"cannot be imported ({why})" if why else "is not installed"
    return f"{what}{': ' * bool(what)}{library} {state}; pip install {shlex.quote(package)}"


@contextmanager
def needed(kind: type[DiastoleError], what: str, library: str, package: str) -> Iterator[None]:
    """Raise an error of a `kind` in the place of an import in this block that fails; the rest is as `missing` has it.

    Only imports belong into the block: an `OSError`, as a binary library raises where a part of it is not there, is
    taken for one.
    """
    try:
        yield
    except ModuleNotFoundError:
        raise kind(missing(what, library, package)) from None
    except (ImportError, OSError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise kind(missing(what, library, package, why)) from None
