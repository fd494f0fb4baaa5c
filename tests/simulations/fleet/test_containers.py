"""A fleet of containers, against an engine that gives the replies of a file, and refuses everything else.

No engine runs where the tests do: the replies were written by hand, after the reference of the Engine API 1.47.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

import pytest

from diastole.simulations.fleet.chaos import Act, disturb
from diastole.simulations.fleet.fleet import Fleet, Plan, Tier
from diastole.simulations.fleet.member import FleetError, Size

pytest.importorskip("docker")
Run = Callable[..., tuple[int, str, str]]
RECORDED = Path(__file__).with_name("engine.json")


class Engine(ThreadingMixIn, UnixStreamServer):
    """The engine's replies by method and path; containers that were made are listed, each in its state."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.replies: list[dict[str, Any]] = json.loads(RECORDED.read_text())
        self.asked: list[tuple[str, str, Any]] = []
        self.made: dict[str, dict[str, Any]] = {}

    def answer(self, method: str, path: str, query: str, body: Any) -> tuple[int, Any]:
        for reply in self.replies:
            found = re.fullmatch(reply["path"], path)
            if found and reply["method"] == method:
                break
        else:
            return 501, {"message": f"not recorded: {method} {path}"}
        self.asked.append((method, path, body))
        status, document = reply["status"], reply["reply"]
        act, name = reply["act"], found.groupdict().get("id", "")
        if act == "create":
            name = re.search(r"name=([\w-]+)", query)[1]  # type: ignore[index]
            if body["Image"] != "diastole-agent":
                return 404, {"message": f"No such image: {body['Image']}:latest"}
            self.made[name] = {"Id": name, "State": "created", "Labels": body["Labels"], "Names": [f"/{name}"]}
            return status, document | {"Id": name}
        if act == "list":
            return status, [document | each for each in self.made.values()]
        if act == "inspect":
            return status, document | {"Id": name}
        if name and name not in self.made:
            return 404, {"message": f"No such container: {name}"}
        if act == "remove":
            del self.made[name]
        elif act in ("running", "paused", "exited"):
            self.made[name]["State"] = act
        return status, document


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Engine

    def reply(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        path, _, query = self.path.partition("?")
        status, document = self.server.answer(self.command, path, query, body)
        data = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = reply  # noqa: N815

    def address_string(self) -> str:
        return "client"

    def log_request(self, *args: object) -> None:
        pass


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    with Engine(tmp_path / "engine.sock") as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'engine.sock'}")
        yield made
        made.shutdown()
        thread.join()


def plan(tmp_path: Path, **more: Any) -> Plan:
    for number in range(3):
        (tmp_path / f"shards/small/device-{number}.npz").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"shards/small/device-{number}.npz").touch()
    tiers = {"small": Tier(2, Size(0.5, 768 << 20, "160kB"))}
    return Plan("coordinator:7700", str(tmp_path / "shards"), tiers, **{"image": "diastole-agent"} | more)


def test_containers_have_their_limits_and_see_little(engine: Engine, tmp_path: Path) -> None:
    fleet = Fleet.begin(tmp_path / "fleet", plan(tmp_path, admin="127.0.0.1:7701", network="federation"))
    assert fleet.start(lambda name: f"token of {name}") == ["small-1", "small-2"]
    bodies = [body for method, path, body in engine.asked if path.endswith("/create")]
    first, limits = bodies[0], bodies[0]["HostConfig"]
    assert (limits["CpuPeriod"], limits["CpuQuota"]) == (100_000, 50_000)
    assert limits["Memory"] == limits["MemorySwap"] == 768 << 20
    assert (limits["ReadonlyRootfs"], limits["CapDrop"], limits["PidsLimit"]) == (True, ["ALL"], 256)
    assert limits["SecurityOpt"] == ["no-new-privileges:true"]
    assert limits["NetworkMode"] == "federation"
    seen = {each["Target"]: (each.get("Source"), each["Type"], each["ReadOnly"]) for each in limits["Mounts"]}
    assert seen["/data.npz"] == (str(tmp_path / "shards/small/device-0.npz"), "bind", True)
    assert seen["/state"] == (None, "volume", False)
    token = fleet.agents / "small-1/token"
    assert (seen["/token"], token.read_text()) == ((str(token), "bind", True), "token of small-1\n")
    assert first["Cmd"][:4] == ["join", "coordinator:7700", "--data", "/data.npz"]
    assert first["Cmd"][-2:] == ["--enroll-file", "/token"]
    assert first["Image"] == "diastole-agent"
    assert fleet.back.states() == {"small-1": "running", "small-2": "running"}


def test_chaos_and_the_end_ask_the_engine_for_what_they_mean(engine: Engine, tmp_path: Path) -> None:
    fleet = Fleet.begin(tmp_path / "fleet", plan(tmp_path))
    fleet.start(str)
    name = f"diastole-{fleet.plan.name}-small-1"
    engine.asked.clear()
    acts = [Act("kill", ("small-1",)), Act("pause", ("small-1",)), Act("throttle", ("small-1",))]
    disturb(fleet, iter(acts), 0, 0, lambda act: None)
    changes = [
        (path.rpartition("/")[2], body and body.get("CpuQuota"))
        for method, path, body in engine.asked
        if method != "GET"
    ]
    assert changes == [
        ("kill", None),
        ("start", None),
        ("pause", None),
        ("unpause", None),
        ("update", 12_500),
        ("update", 50_000),
    ]
    fleet.back.pause("small-2")
    assert Fleet.open(fleet.folder).back.states() == {"small-1": "running", "small-2": "paused"}
    assert Fleet.open(fleet.folder).down() == ["small-1", "small-2"]
    assert engine.made == {}
    assert ("DELETE", name) in [(method, path.rpartition("/")[2]) for method, path, _ in engine.asked]
    assert not (fleet.folder / "fleet.json").exists()


def test_a_killed_container_is_started_again_by_scale(engine: Engine, tmp_path: Path) -> None:
    fleet = Fleet.begin(tmp_path / "fleet", plan(tmp_path))
    fleet.start(str)
    fleet.back.kill("small-2")
    assert fleet.back.states() == {"small-1": "running"}
    fleet.scale({"small": 3})
    assert fleet.start(str) == ["small-2", "small-3"]
    assert len([path for _, path, _ in engine.asked if path.endswith("/create")]) == 3


def test_an_image_that_is_not_there_is_named(engine: Engine, tmp_path: Path) -> None:
    fleet = Fleet.begin(tmp_path / "fleet", plan(tmp_path, image="other"))
    with pytest.raises(FleetError, match=r"^other: the engine has no such image; docker build"):
        fleet.start(str)


def test_without_an_engine_a_line_says_so(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'nobody.sock'}")
    plan(tmp_path)
    words = "--data", tmp_path / "shards", "--tier", "small=1", "--folder", tmp_path / "fleet"
    code, _, err = run("fleet", "up", "coordinator:7700", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: no container engine answers (")
    assert "--local runs processes without one" in err
    assert not (tmp_path / "fleet").exists()
