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
TIERS = ["large", "medium", "small"]
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


def agents(tier: str) -> dict[str, dict[str, Any]]:
    """Return the services of a tier's agents, by the devices' names."""
    services = compose()["services"]
    return {name.removeprefix("agent-"): services[name] for name in services if name.startswith(f"agent-{tier}-")}


def option(service: dict[str, Any], name: str) -> str:
    """Return what an option of a service's command is."""
    return str(service["command"][service["command"].index(name) + 1])


def megabytes(text: str) -> int:
    """Return the MiB of a limit of compose's."""
    return int(text[:-1]) * {"m": 1, "g": 1024}[text[-1]]


def test_compose_file_is_valid() -> None:
    # COMPOSE's schema comes with check-jsonschema, so this needs neither a network nor Docker.
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")


def test_compose_runs_nine_agents_in_three_tiers_of_strictly_smaller_devices() -> None:
    services = [list(agents(tier).values()) for tier in TIERS]
    assert [len(each) for each in services] == [2, 3, 4]
    federation = tomllib.loads(compose()["configs"]["federation"]["content"])
    assert {tier: each["devices"] for tier, each in federation["tiers"].items()} == {
        "large": 2,
        "medium": 3,
        "small": 4,
    }
    for tier in TIERS:
        for service in agents(tier).values():
            assert service["command"][:2] == ["join", "coordinator:7700"]
            assert option(service, "--tier") == tier
            assert service["memswap_limit"] == service["mem_limit"]
    cores = [{each["cpus"] for each in tier} for tier in services]
    memory = [{megabytes(each["mem_limit"]) for each in tier} for tier in services]
    for limits in (cores, memory):
        assert [len(each) for each in limits] == [1, 1, 1]
        assert limits == sorted(limits, key=max, reverse=True)
        assert len(set.union(*limits)) == 3


def test_compose_uses_only_flags_that_the_command_has() -> None:
    for service in compose()["services"].values():
        if "entrypoint" not in service and "command" in service:
            name, *words = service["command"]
            load(name).make_context(name, list(words), resilient_parsing=True)
            known = {option for parameter in load(name).params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known


def test_every_agent_of_compose_enrolls_with_a_token_of_its_own_over_tls() -> None:
    services = compose()["services"]
    (script,) = services["tokens"]["command"]
    names = re.search(r"for name in (.*); do", script)[1].split()  # type: ignore[index]
    assert services["tokens"]["network_mode"] == "service:coordinator"
    assert set(names) == {name for tier in TIERS for name in agents(tier)}
    for tier in TIERS:
        for name, service in agents(tier).items():
            assert option(service, "--enroll-file") == f"/tokens/{name}"
            assert service["depends_on"]["tokens"]["condition"] == "service_completed_successfully"
    assert not any("--insecure" in service.get("command", ()) for service in services.values())
    words = shlex.split(re.search(r"diastole (admin enroll .*) >", script)[1].replace("$$name", "small-1"))  # type: ignore[index]
    command = load("admin").commands["enroll"]  # type: ignore[attr-defined]
    assert command.make_context("enroll", words[2:]).params["name"] == "small-1"


def test_services_of_compose_may_do_little_and_come_back() -> None:
    file = compose()
    for name, service in file["services"].items():
        assert service["read_only"], name
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
        assert service["restart"] == "on-failure"
        assert re.search(r"^diastole-|:v?[0-9.]+$", service["image"]), name
        # Nothing is open to other machines, and agents reach nothing but the federation's network.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert not name.startswith("agent-") or service["networks"] == ["federation"]
        assert not name.startswith(("agent-", "coordinator")) or "healthcheck" in service
    assert file["networks"]["federation"] == {"internal": True}
    profiles = {name for name, service in file["services"].items() if "profiles" in service}
    assert profiles == {"prometheus", "grafana"}
    for config in file["configs"].values():
        assert "content" in config or (ROOT / config["file"]).is_file()


def test_prometheus_of_compose_finds_the_coordinator_under_a_name_that_it_answers_to() -> None:
    file = compose()
    scrape = YAML(typ="safe", pure=True).load(file["configs"]["prometheus"]["content"])
    (job,) = scrape["scrape_configs"]
    host, port = job["static_configs"][0]["targets"][0].split(":")
    coordinator = file["services"]["coordinator"]
    assert host == option(coordinator, "--web-name")
    assert port == option(coordinator, "--web").partition(":")[2]
    copied = re.search(r"install -m 644 (.*) /metrics", file["services"]["tokens"]["command"][0])[1]  # type: ignore[index]
    wanted = job["tls_config"]["ca_file"], job["authorization"]["credentials_file"]
    assert {Path(path).name for path in copied.split()} == {Path(path).name for path in wanted}
    # The job's name is the same as in the file for other machines, whose alerts are these.
    own = YAML(typ="safe", pure=True).load(ROOT / "packaging/prometheus/prometheus.yml")
    assert job["job_name"] == own["scrape_configs"][0]["job_name"]


def test_compose_and_the_makefile_ask_only_for_extras_that_there_are() -> None:
    extras = set(PYPROJECT["project"]["optional-dependencies"])
    for service in compose()["services"].values():
        assert set(filter(None, service.get("build", {}).get("args", {}).get("EXTRAS", "").split(","))) <= extras
    text = (ROOT / "Makefile").read_text()
    asked = re.findall(r"^(?:RUN|DEV)_EXTRAS := (.*)$", text, re.MULTILINE)
    assert {name for line in asked for name in line.split(",")} - {"$(RUN_EXTRAS)"} <= extras


def test_the_image_is_built_from_every_folder_of_the_wheel() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} >= {path.split("/")[0] for path in FOLDERS.values()}


def test_agents_of_compose_keep_their_state_in_a_volume_of_their_own() -> None:
    volumes = compose()["volumes"]
    for tier in TIERS:
        for name, service in agents(tier).items():
            assert f"agent-{name}:/state" in service["volumes"]
            assert f"agent-{name}" in volumes
            assert option(service, "--state") == "/state/agent"


# --- the image


def test_the_dockerfile_keeps_the_rules_that_matter() -> None:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith(("#", " "))]
    bases = [words.split()[0] for step, words in steps if step == "FROM"]
    assert len(bases) > 1
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base) for base in bases)
    last = [step for step, _ in steps]
    last = last[len(last) - last[::-1].index("FROM") :]
    assert last.index("USER") > max(place for place, step in enumerate(last) if step == "RUN")
    assert [words for step, words in steps if step == "USER"] == ["diastole"]
    # Forms of a list: a shell would be process 1, and signals would end there.
    assert all(words.startswith("[") for step, words in steps if step in ("ENTRYPOINT", "CMD"))
    assert all("--no-cache-dir" in words for step, words in steps if step == "RUN" and "pip" in words)
    assert not {"ADD", "MAINTAINER"} & {step for step, _ in steps}
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
    mounted = {volume.split(":")[1] for each in compose()["services"].values() for volume in each.get("volumes", ())}
    owned = re.search(r"install -d -o diastole -g diastole (.*)", text)[1].split()  # type: ignore[index]
    assert mounted - {"/prometheus", "/var/lib/grafana"} <= set(owned)


def test_the_agents_image_has_no_packages_of_a_server() -> None:
    asked = re.search(r"^ARG EXTRAS=(\w*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]  # type: ignore[index]
    project = PYPROJECT["project"]
    agent = {Requirement(line).name for line in (*project["dependencies"], *project["optional-dependencies"][asked])}
    extras = project["optional-dependencies"]
    server = {
        canonicalize_name(Requirement(line).name) for name in ("coordinator", "simulation") for line in extras[name]
    }
    assert not set(closure(agent)) & (server - set(map(canonicalize_name, agent)))


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


@pytest.mark.slow
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
