"""A user's own functions: who may import them, by what name, and those that were given in Python.

Importing a function runs its code. A process does so only if the person who started it has allowed it, with `allow` or
the environment variable `DIASTOLE_FACTORIES`, because the name in a configuration may come from another machine.
"""

import hashlib
import importlib
import os
import re
from collections.abc import Callable
from typing import Any

from diastole.models.errors import ModelError, brief
from diastole.proto.registry import Registry

VARIABLE = "DIASTOLE_FACTORIES"
PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
"""Of "package.module:function"."""

FITS: Registry[Callable[..., Any]] = Registry("fit", {}, Callable, ModelError)  # type: ignore[arg-type]
"""Training loops that installed packages bring by entry points, by name."""

GIVEN = "given"
_ALLOWED: set[str] = set()
_GIVEN: dict[str, Callable[..., Any]] = {}


def allow(name: str) -> None:
    """Let this process import and call "package.module:function", if a configuration names it."""
    _ALLOWED.add(name)


def is_allowed(name: str) -> bool:
    """Return whether the person who started this process has allowed a function."""
    return name in {*_ALLOWED, *os.environ.get(VARIABLE, "").replace(",", " ").split()}


def give(function: Callable[..., Any]) -> str:
    """Keep a function for this process; return the name that stands for it in a configuration."""
    code = getattr(function, "__code__", None)
    body = repr((code.co_code, code.co_names, code.co_consts)) if code else repr(function)
    name = getattr(function, "__name__", type(function).__name__)
    plain = "".join(letter if letter.isalnum() else "_" for letter in name).strip("_") or "function"
    found = f"{GIVEN}:f_{plain}_{hashlib.sha256(body.encode()).hexdigest()[:16]}"
    _GIVEN[found] = function
    allow(found)
    return found


def is_given(name: str) -> bool:
    """Return whether a name stands for what was given to this process, so that no other can call it."""
    return name.partition(":")[0] == GIVEN


def function(what: str, name: str) -> Callable[..., Any]:
    """Return a user's function.

    Args:
        what: it is for, such as "loss", for the errors.
        name: "package.module:function", or what `give` has returned.

    Raises `ModelError` if nobody has allowed it, or if it cannot be imported.

    """
    if name in _GIVEN:
        return _GIVEN[name]
    if not is_allowed(name):
        raise ModelError(
            f"{what} {name} would be imported, which nobody on this machine has allowed; if you trust it, say "
            f"--allow-factory {name}, or set {VARIABLE}"
        )
    place, _, own = name.partition(":")
    try:
        found = getattr(importlib.import_module(place), own)
    except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
        raise ModelError(f"{what} {name} cannot be imported: {brief(error)}") from None
    if not callable(found):
        raise ModelError(f"{what} {name} is a {type(found).__name__}; expected a function")
    called: Callable[..., Any] = found
    return called


def check_fit(name: str) -> None:
    """Raise `ValueError` unless a name is empty, or can be that of a training loop of one's own."""
    if name and not re.fullmatch(PATTERN, name) and (":" in name or name not in FITS):
        brought = f"; installed packages bring {', '.join(FITS)}" if FITS else ""
        raise ValueError(f'fit: expected "package.module:function", not {name[:100]!r}{brought}')
