"""The rules of the house: which way imports point, and what is not used."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "proto": {"proto", "v1"},
    # What everything stands on: the root of the error tree, and tables of things by name.
    "models": {"models", "proto.errors", "proto.registry"},
    "server": {"server", "models", "proto", "v1"},
    "client": {"client", "models", "proto", "v1"},
    "experiments": {"experiments", "server", "client", "models", "proto", "v1"},
    "simulations": {"simulations", "experiments", "server", "client", "models", "proto", "v1"},
    "benchmarks": {"benchmarks", "simulations", "experiments", "server", "client", "models", "proto", "v1"},
    # The package `diastole` itself, whose own modules begin with an underscore.
    "api": {
        "_bar",
        "_compare",
        "_experiment",
        "_join",
        "_run",
        "simulations",
        "experiments",
        "server",
        "client",
        "models",
        "proto",
    },
    "cli": {"cli", "benchmarks", "simulations", "experiments", "server", "client", "models", "proto", "v1"},
}
FORBIDDEN = ("pickle", "cloudpickle", "dill", "marshal", "shelve")


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, those inside functions included."""
    return {name for node in nodes(path) for name in imported(node)}


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    return {f"{node.module}.{alias.name}" for alias in node.names} if isinstance(node, ast.ImportFrom) else set()


def sources(folder: str) -> list[Path]:
    return [path for path in (ROOT / folder).rglob("*.py") if "_pb2" not in path.name]


@pytest.mark.parametrize("folder", ALLOWED)
def test_arrows_point_one_way(folder: str) -> None:
    assert sources(folder)
    for path in sources(folder):
        for name in imports(path):
            if name.startswith("diastole."):
                inside = name.removeprefix("diastole.")
                allowed = any(inside == rule or inside.startswith(f"{rule}.") for rule in ALLOWED[folder])
                assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_no_module_imports_itself_through_others() -> None:
    paths = {path: module_of(path) for folder in ALLOWED for path in sources(folder)}
    names = set(paths.values())
    needs = dict[str, set[str]]()
    for path, name in paths.items():
        # Not what a function imports when it is called, nor what type checkers alone do.
        (module, *_) = nodes(path)
        found = {each for node in module.body for each in imported(node)}  # type: ignore[attr-defined]
        needs[name] = ({*found, *(each.rpartition(".")[0] for each in found)} & names) - {name}
    assert len(list(TopologicalSorter(needs).static_order())) == len(names)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "api" else parts
    return ".".join(("diastole", *(part for part in parts if part != "__init__")))


def test_nothing_is_pickled() -> None:
    for folder in ALLOWED:
        for path in sources(folder):
            assert not {name.split(".")[0] for name in imports(path)} & set(FORBIDDEN), path
            calls = {ast.unparse(node.func) for node in nodes(path) if isinstance(node, ast.Call)}
            assert not calls & {"torch.load", "eval", "exec"}, path


def test_every_folder_is_installed() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {str(path.parent.relative_to(ROOT)) for name in ALLOWED for path in (ROOT / name).rglob("__init__.py")}
    assert set(settings["package-dir"].values()) == folders
    assert set(settings["packages"]) == set(settings["package-dir"])
    assert all((ROOT / folder / "py.typed").exists() for folder in folders)


def test_modules_hold_one_idea() -> None:
    long = {path: len(path.read_text().splitlines()) for folder in ALLOWED for path in sources(folder)}
    assert not {str(path.relative_to(ROOT)): lines for path, lines in long.items() if lines > 400}
