"""What a person installs: the pinned versions, the wheel, and the compose file that runs it."""

import configparser
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from diastole.cli.main import load
from diastole.client.inference import as_file
from diastole.models.methods.registry import build
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PYPROJECT["tool"]["setuptools"]["package-dir"]
TIERS = ["agent-large", "agent-medium", "agent-small"]
AGENT = """
import importlib.util, sys
import torch
from diastole.cli.main import main
from diastole.client.training import train
from diastole.models.methods.widths.width import spec_of, width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.task import Task
from diastole.models.training import Examples, TrainConfig

heavy = "flwr flwr_datasets datasets ray matplotlib sklearn sqlalchemy fastapi scipy pandas"
print([name for name in heavy.split() if importlib.util.find_spec(name)])
for model in ModelConfig("cnn", (1, 8, 8), 10), ModelConfig("resnet", (1, 8, 8), 10, (4, 8), (1, 1)):
    width_cost(model, 1.0, TrainConfig())
    examples = Examples(torch.ones(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64))
    for optimiser in ("sgd", "adam"):
        task = Task("r1-device", 1, "device", spec_of(1.0), TrainConfig(optimiser=optimiser), 0)
        train(model, task, initial_state(model, 0), examples)
# torch's compiler takes longer to import than the training of a small network.
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
main()
"""


def clean() -> dict[str, str]:
    """Return an environment in which only what is installed can be imported."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> str:
    """Return the command's output; a failure shows it, which CalledProcessError would hide."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=clean() | env, stdout=-1, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


# --- constraints.txt


def direct_dependencies() -> list[Requirement]:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]


def constraints() -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def test_every_constraint_is_one_version_that_every_platform_has() -> None:
    # A local version such as 2.13.0+cpu exists on one index only.
    assert [str(pin) for pin in constraints() if not re.fullmatch(r"==[\w.]+", str(pin.specifier))] == []
    names = [canonicalize_name(pin.name) for pin in constraints()]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("requirement", direct_dependencies(), ids=str)
def test_a_direct_dependency_is_pinned_to_a_version_it_accepts(requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    pins = [str(pin.specifier).removeprefix("==") for pin in constraints() if canonicalize_name(pin.name) == name]
    assert pins, f"constraints.txt does not pin {name}"
    assert requirement.specifier.contains(pins[0], prereleases=True)


def test_no_extra_is_empty() -> None:
    assert [name for name, lines in PYPROJECT["project"]["optional-dependencies"].items() if not lines] == []


def test_the_package_asks_for_ranges_and_only_the_constraints_pin() -> None:
    exact = [str(need) for need in direct_dependencies() if any(s.operator.startswith("==") for s in need.specifier)]
    assert exact == []


# --- compose.yaml


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe", pure=True).load(ROOT / "compose.yaml")
    return loaded


def limits(service: str) -> tuple[float, int]:
    """Return the service's limits: cores, and bytes of memory."""
    found = compose()["services"][service]["deploy"]["resources"]["limits"]
    number, unit = re.fullmatch(r"(\d+)([kmg])b?", found["memory"]).groups()  # type: ignore[union-attr]
    return float(found["cpus"]), int(number) * 1024 ** ("kmg".index(unit) + 1)


def test_compose_file_is_valid() -> None:
    # COMPOSE's schema comes with check-jsonschema, so this needs neither a network nor Docker.
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")


def test_compose_runs_three_tiers_of_strictly_smaller_devices() -> None:
    services = compose()["services"]
    assert [name for name in services if name.startswith("agent-")] == TIERS

    for name in TIERS:
        command = services[name]["command"]
        assert command[:2] == ["join", "coordinator:7700"]
        assert command[command.index("--tier") + 1] == name.removeprefix("agent-")
        assert services[name]["deploy"]["replicas"] >= 2

    cores, memory = zip(*map(limits, TIERS), strict=True)
    assert list(cores) == sorted(set(cores), reverse=True)
    assert list(memory) == sorted(set(memory), reverse=True)


def test_compose_uses_only_flags_that_the_command_has() -> None:
    for service in compose()["services"].values():
        name, *words = service["command"]
        known = {option for parameter in load(name).params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_compose_keeps_plain_text_on_a_network_without_a_way_out() -> None:
    file = compose()
    assert file["services"].pop("shards")["network_mode"] == "none"
    for service in file["services"].values():
        assert "--insecure" in service["command"]
        assert "ports" not in service
        assert [file["networks"][name] for name in service["networks"]] == [{"internal": True}]


def test_compose_and_the_makefile_ask_only_for_extras_that_there_are() -> None:
    extras = set(PYPROJECT["project"]["optional-dependencies"])
    for service in compose()["services"].values():
        assert set(filter(None, service["build"].get("args", {}).get("EXTRAS", "").split(","))) <= extras
    text = (ROOT / "Makefile").read_text()
    asked = re.findall(r"^(?:RUN|DEV)_EXTRAS := (.*)$", text, re.MULTILINE)
    assert {name for line in asked for name in line.split(",")} - {"$(RUN_EXTRAS)"} <= extras


def test_the_image_is_built_from_every_folder_of_the_wheel() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} >= {path.split("/")[0] for path in FOLDERS.values()}


def test_agents_of_compose_keep_their_state_in_a_volume_of_their_own() -> None:
    for service in (compose()["services"][name] for name in TIERS):
        folder = Path(service["command"][service["command"].index("--state") + 1])
        own = [Path(volume) for volume in service["volumes"] if ":" not in volume]
        assert any(folder.is_relative_to(volume) for volume in own)


# --- the systemd unit


class Unit(configparser.ConfigParser):
    """A unit of systemd; a section that names a setting twice is an error, which systemd would allow."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def unit() -> Unit:
    found = Unit(interpolation=None, delimiters="=", comment_prefixes="#")
    found.read_string((ROOT / "packaging/diastole-agent.service").read_text())
    return found


def environment() -> dict[str, str]:
    """Return what the unit's environment file sets."""
    lines = (ROOT / "packaging/diastole-agent.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_unit_runs_join_as_the_command_would_take_it() -> None:
    service = unit()["Service"]
    given = environment() | {"STATE_DIRECTORY": "/var/lib/agent"}
    words = shlex.split(re.sub(r"\$\{?(\w+)\}?", lambda found: given[found[1]], service["ExecStart"]))
    assert Path(words[0]).name == "diastole"
    command = load(words[1])
    assert command.name == "join"
    context = command.make_context("join", words[2:])
    assert context.params["address"] == given["ADDRESS"]
    assert str(context.params["state"]) == given["STATE_DIRECTORY"]
    assert (context.params["name"], context.params["memory"]) == (given["NAME"], given["MEMORY"])
    assert set(re.findall(r"\$\{?(\w+)", service["ExecStart"])) == set(given)


def test_unit_lets_the_agent_leave_come_back_and_do_nothing_else() -> None:
    service = unit()["Service"]
    assert (service["KillSignal"], service["Restart"]) == ("SIGTERM", "on-failure")
    walls = {"MemoryMax", "CPUQuota", "TasksMax", "StateDirectory", "CacheDirectory", "RestrictAddressFamilies"}
    assert walls <= set(service)
    for name in ("DynamicUser", "NoNewPrivileges", "PrivateTmp", "PrivateDevices"):
        assert service[name] == "yes"
    assert service["ProtectSystem"] == "strict"
    # torch compiles convolutions while it runs.
    assert "MemoryDenyWriteExecute" not in service


# --- NumPy instead of torch


def test_numpy_alone_answers_as_torch_does(tmp_path: Path) -> None:
    model, spec = ModelConfig("cnn", (1, 9, 8), 10, (8, 16)), spec_of(0.5)
    module, x = build(model, spec), torch.rand(5, 1, 9, 8, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "model.safetensors"
    path.write_bytes(as_file(model, spec, 1, module.state_dict(), x))
    runner = runpy.run_path(str(ROOT / "docs/numpy_cnn.py"))
    about, weights = runner["load"](str(path), spec.label)
    with torch.no_grad():
        expected = module(x).numpy()
    np.testing.assert_allclose(runner["forward"](weights, about["group"], x.numpy()), expected, atol=1e-5)
    with pytest.raises(SystemExit, match=r"no 'width 2'; it has width 0\.5"):
        runner["load"](str(path), "width 2")


# --- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build folder left in the checkout would add stale modules to it."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, source)
    for folder in {path.split("/")[0] for path in FOLDERS.values()}:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", dist)
    run(sys.executable, "-m", "pip", *build, source)
    (built,) = dist.glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_has_every_file_that_the_folders_have(wheel: Path) -> None:
    # The deepest folder that matches decides: proto/diastole/v1 is diastole.v1, not a part of diastole.proto.
    folders = sorted(FOLDERS.items(), key=lambda item: item[1].count("/"), reverse=True)
    expected = set()
    for path in (path for top in set(FOLDERS.values()) for path in (ROOT / top).rglob("*")):
        if path.suffix in {".py", ".pyi", ".proto"} or path.name == "py.typed":
            package, folder = next(item for item in folders if path.is_relative_to(ROOT / item[1]))
            expected.add(f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder)}")

    packed = set(zipfile.ZipFile(wheel).namelist())
    assert expected - packed == set()
    assert {name.split("/")[0] for name in packed if ".dist-info/" not in name} == {"diastole"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in packed)


def closure(names: Iterable[str]) -> dict[str, Distribution]:
    """Return the installed distributions of these names, with all that they need, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(canonicalize_name(name), frozenset({""})) for name in names]
    while waiting:
        name, wanted = waiting.pop()
        if name in found:
            continue
        found[name] = distribution(name)
        for need in map(Requirement, found[name].requires or ()):
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in wanted):
                waiting.append((canonicalize_name(need.name), frozenset({"", *need.extras})))
    return found


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and what it declares to need, linked from the running one."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (site,) = folder.glob("lib/python*/site-packages")
    for dist in closure(Requirement(line).name for line in PYPROJECT["project"]["dependencies"]).values():
        for top in {file.parts[0] for file in dist.files or ()} - {"..", "__pycache__"}:
            # Namespaces such as google belong to several.
            if not (site / top).exists():
                (site / top).symlink_to(dist.locate_file(top))
    python = folder / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    return python


def check_agent(python: Path, tmp_path: Path) -> None:
    """An agent trains, and does all that comes before it is let in, without heavy libraries: none is there."""
    np.savez(tmp_path / "shard.npz", x=np.zeros((4, 1, 8, 8), np.float32), y=np.arange(4))
    # Nobody listens on port 1.
    join = ("join", "127.0.0.1:1", "--data", tmp_path / "shard.npz", "--tier", "small", "--patience", "0")
    command = list(map(str, (python, "-c", AGENT, *join)))
    done = subprocess.run(command, cwd=tmp_path, env=clean(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
    assert re.match(r"\[\]\n\[\]\n\S+Z INFO    joining 127\.0\.0\.1:1 .*\(device=shard\)\n", done.stdout), done.stdout
    assert "no coordinator at 127.0.0.1:1" in done.stderr
    assert python.with_name("diastole").exists()


def test_device_agent_starts_with_what_it_declares_alone(bare: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "--python", bare, "check", cwd=tmp_path)
    check_agent(bare, tmp_path)


@pytest.mark.slow
def test_device_agent_installs_and_starts_without_the_heavy_libraries(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    run(python, "-m", "pip", "check", cwd=tmp_path)
    check_agent(python, tmp_path)


# --- small devices


def test_the_wheels_that_were_looked_up_for_arm_are_those_of_everything_an_agent_needs() -> None:
    section = (ROOT / "docs/agent.md").read_text().partition("## On a Raspberry Pi")[2].partition("\n* ")[0]
    looked_up = {
        canonicalize_name(name): v for name, v in re.findall(r"^\| ([\w.-]+)[^|]* \| ([\d.]+) \|", section, re.M)
    }
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pinned.items()}
    assert looked_up == {name: pins[name] for name in looked_up}
    pure = {canonicalize_name(name) for name in re.findall(r"[\w-]+", section.partition("pure Python:")[2])}
    named = set(looked_up) | pure
    project = PYPROJECT["project"]
    for wanted in (*project["dependencies"], *project["optional-dependencies"]["enroll"]):
        assert canonicalize_name(Requirement(wanted).name) in named, wanted
