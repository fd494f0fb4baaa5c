"""Things by name, of our own and of packages that somebody else has installed."""

import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from distributions import install

from diastole.proto.errors import DiastoleError
from diastole.proto.registry import Registry

OWN = "from fractions import Fraction\nHALF, THIRD = Fraction(1, 2), Fraction(1, 3)\n"
MODULES = ("registry_own", "registry_guest", "registry_broken")


class GadgetError(DiastoleError):
    """No such gadget."""


@pytest.fixture
def gadgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Registry[Fraction]]]:
    """Return a maker of a registry of fractions, beside packages that bring the entry points it is given."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "registry_own.py").write_text(OWN)

    def make(points: dict[str, str] | None = None, text: str = "", broken: str = "") -> Registry[Fraction]:
        if points:
            modules = {"registry_guest": text, "registry_broken": broken}
            install(tmp_path, "registry_guest", "diastole.odd_gadgets", points, modules)
        own = {"half": "registry_own:HALF", "third": "registry_own:THIRD"}
        return Registry("odd gadget", own, Fraction, GadgetError, {"0.5": "half"})

    yield make
    for name in MODULES:
        sys.modules.pop(name, None)


Make = Callable[..., Registry[Fraction]]


def fault(registry: Registry[Fraction], name: str) -> str:
    with pytest.raises(GadgetError) as caught:
        registry[name]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_our_own_are_found_by_name_and_alias_and_listed_by_name(gadgets: Make) -> None:
    registry = gadgets()
    assert registry["half"] is registry["0.5"] == Fraction(1, 2)
    assert (registry.name("0.5"), registry.name("third"), registry.name("x")) == ("half", "third", "x")
    assert list(registry) == ["half", "third"]
    assert len(registry) == 2
    assert "half" in registry
    assert "0.5" in registry
    assert "x" not in registry
    assert 5 not in registry


def test_nothing_is_imported_before_it_is_asked_for(gadgets: Make) -> None:
    registry = gadgets({"fifth": "registry_guest:FIFTH"}, "FIFTH = 5")
    assert list(registry) == ["half", "third", "fifth"]
    assert "fifth" in registry
    assert not any(name in sys.modules for name in MODULES)


def test_an_unknown_name_is_one_line_that_says_what_is_known(gadgets: Make) -> None:
    registry = gadgets({"fifth": "registry_guest:FIFTH"})
    assert fault(registry, "sixth") == "unknown odd gadget 'sixth'; known: half, third, fifth"
    # `get` falls back on nothing here: a name that is asked for is meant.
    with pytest.raises(GadgetError):
        registry.get("sixth")


def test_another_package_adds_to_them_by_an_entry_point(gadgets: Make) -> None:
    text = "from fractions import Fraction\nFIFTH, NINTH = Fraction(1, 5), Fraction(1, 9)\n"
    registry = gadgets({"ninth": "registry_guest:NINTH", "fifth": "registry_guest:FIFTH"}, text)
    assert registry["fifth"] == Fraction(1, 5)
    assert registry["ninth"] is registry["ninth"]
    assert list(registry) == ["half", "third", "fifth", "ninth"]
    assert len(registry) == 4


def test_our_own_names_and_aliases_cannot_be_taken(gadgets: Make) -> None:
    points = {"half": "registry_guest:OTHER", "0.5": "registry_guest:OTHER", "fifth": "registry_guest:OTHER"}
    registry = gadgets(points, "from fractions import Fraction\nOTHER = Fraction(1, 5)\n")
    assert registry["half"] == registry["0.5"] == Fraction(1, 2)
    assert list(registry) == ["half", "third", "fifth"]
    assert len(registry) == 3


@pytest.mark.parametrize(
    ("text", "brief"),
    [
        ("raise RuntimeError('first line\\nsecond line')", "RuntimeError: first line"),
        ("import a_module_that_nobody_has", "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
        ("X = 1", "AttributeError: module 'registry_broken' has no attribute 'THING'"),
        ("raise ValueError", "ValueError: "),
        ("raise ValueError('x' * 5000)", "ValueError: " + "x" * 200),
    ],
)
def test_one_that_cannot_be_imported_is_one_line_and_the_others_work(gadgets: Make, text: str, brief: str) -> None:
    registry = gadgets({"bad": "registry_broken:THING"}, broken=text)
    assert fault(registry, "bad") == f"odd gadget 'bad': registry_broken:THING cannot be imported: {brief}"
    assert registry["half"] == Fraction(1, 2)


def test_one_of_another_class_is_one_line(gadgets: Make) -> None:
    registry = gadgets({"bad": "registry_guest:BAD"}, "BAD = 'a text'")
    assert fault(registry, "bad") == "odd gadget 'bad' is a str; expected a Fraction"


def test_groups_of_entry_points_are_in_the_plural() -> None:
    groups = [Registry(what, {}, int, GadgetError).group for what in ("odd gadget", "method", "loss")]
    assert groups == ["diastole.odd_gadgets", "diastole.methods", "diastole.losses"]
