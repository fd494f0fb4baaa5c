"""The dashboard over HTTP: who may do what, the headers of every answer, bounds, and the stream of events."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx
import pytest

from diastole.proto.address import Address
from diastole.server import events
from diastole.server.progress import Moving
from diastole.server.web import app as apps
from diastole.server.web.app import App
from diastole.server.web.family import Family, Layer
from diastole.server.web.guard import MOST_BODY
from diastole.server.web.rights import MOST_SESSIONS, Rights
from diastole.server.web.server import WebServer, listener
from diastole.server.web.source import Seen, ShownRun, Stored, VerbError
from diastole.server.web.watching import Watching

OWN = {"x-diastole": "1"}


class Runs:
    """One run, of a source."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.broken = False

    def runs(self) -> Sequence[ShownRun]:
        if self.broken:
            raise RuntimeError("the run has just ended")
        return [ShownRun("one", "a run", "width", "running", 3, ("stop",))]

    def moving(self, run_id: str) -> Mapping[str, Moving]:
        return {}

    def seen(self, run_id: str, names: Sequence[str]) -> Mapping[str, Seen]:
        return {name: Seen(idle=1.0) for name in names}

    def family(self, run_id: str) -> Family | None:
        return Family("width 1", (Layer("conv", "Conv2d", 4, 40),), 40, ())

    def stored(self) -> Stored | None:
        return Stored("state", {"runs": 5}, 1, 2)

    def do(self, run_id: str, verb: str) -> None:
        if verb != "stop":
            raise VerbError(f"run {run_id}: {verb} is not possible now")
        self.done.append(run_id)


class Page:
    """A dashboard on a real socket."""

    def __init__(self) -> None:
        self.runs, self.noted = Runs(), list[tuple[str, ...]]()
        self.watching = Watching(self.runs)
        self.tell = self.watching.feed("one")
        self.rights = Rights("operators", "readers", note=lambda *said, stranger=False: self.noted.append(said))
        found = listener(Address("127.0.0.1", 0))
        app = App(self.watching, self.rights, names=["dash.example"], port=1, scrape=lambda: (b"up 1\n", "text/plain"))
        self.server = WebServer(found, app)
        self.url = f"http://127.0.0.1:{self.server.port}"

    def client(self, token: str = "") -> httpx.Client:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, verify=False, timeout=60)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    made = Page()
    made.tell(events.RunStarted("width", 3, ("a",)))
    yield made
    made.server.close()


def told(client: httpx.Client, enough: Callable[[dict[str, Any]], object], **query: str) -> dict[str, Any]:
    """Follow the stream until it has told enough, and return all of it in one."""
    found = dict[str, Any]()
    with client.stream("GET", "/api/stream", params=query) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                new = json.loads(line.removeprefix("data: "))
                lists = {key: found.get(key, []) + new.get(key, []) for key in ("points", "notes", "refused")}
                found |= new | lists
            if enough(found):
                return found
    raise AssertionError("the stream has ended")


PRIVATE = ("/api/stream", "/api/scores", "/api/storage", "/metrics", "/api/runs/one/cohort")


@pytest.mark.parametrize("path", PRIVATE)
def test_strangers_see_nothing(page: Page, path: str) -> None:
    for token in ("", "wrong", "operators2"):
        with page.client(token) as client:
            assert client.get(path).status_code == 401
            assert client.get("/api/session").json() == {"name": "", "role": ""}


def test_every_answer_has_the_safe_headers(page: Page) -> None:
    with page.client() as client:
        for answer in (client.get("/"), client.get("/assets/main.js"), client.get("/nothing"), client.put("/")):
            policy = answer.headers["content-security-policy"]
            assert "default-src 'self'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
        assert client.get("/api/session").headers["cache-control"] == "no-store"
        assert client.get("/assets/../app.py").status_code == 404


def test_the_page_has_no_inline_script_or_style(page: Page) -> None:
    with page.client() as client:
        html = client.get("/").text
        assert "<style" not in html
        assert "style=" not in html
        assert html.count("<script") == html.count('<script type="module" src="/assets/main.js">') == 1
        assert "http://" not in html
        assert "https://" not in html


def test_a_token_begins_a_session_that_scripts_cannot_read(page: Page) -> None:
    with page.client() as client:
        answer = client.post("/api/login", json={"token": " operators\n"}, headers=OWN)
        assert answer.json()["role"] == "operator"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "operators" not in cookie
        assert client.get("/api/session").json()["role"] == "operator"
        client.post("/api/logout", headers=OWN)
        assert client.get("/api/session").json()["role"] == ""
        refused = client.post("/api/login", json={"token": "guess"}, headers=OWN)
        assert refused.status_code == 401
    assert page.noted[-1][1:3] == ("Login", "dashboard")
    assert "guess" not in str(page.noted)


def test_sessions_are_few_and_end() -> None:
    now = [0.0]
    rights = Rights("operators", clock=lambda: now[0])
    secrets = [rights.login("operators", "here")[0] for _ in range(MOST_SESSIONS + 1)]
    assert rights.who(secrets[0], "", {}, "here") is None
    assert rights.who(secrets[-1], "", {}, "here") is not None
    now[0] = 13 * 3600.0
    assert rights.who(secrets[-1], "", {}, "here") is None


def test_only_an_operator_acts_and_only_from_the_page_itself(page: Page) -> None:
    stop = "/api/runs/one/stop"
    with page.client("readers") as client:
        assert client.post(stop, headers=OWN).status_code == 403
    with page.client("operators") as client:
        assert client.post(stop).status_code == 403
        assert client.post(stop, headers={**OWN, "sec-fetch-site": "cross-site"}).status_code == 403
        assert client.get(stop).status_code == 405
        assert not page.runs.done
        assert client.post(stop, headers=OWN).status_code == 200
        answer = client.post("/api/runs/one/pause", headers=OWN)
        assert (answer.status_code, answer.json()["error"]) == (409, "run one: pause is not possible now")
    assert page.runs.done == ["one"]
    assert page.noted[-1][1:] == ("stop", "run_id=one", "done")


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:7780", 200), ("[::1]:80", 200), ("localhost", 200), ("DASH.example.", 200), ("evil.example", 421)],
)
def test_the_server_answers_to_its_own_names_alone(page: Page, host: str, status: int) -> None:
    with page.client() as client:
        assert client.get("/", headers={"host": host}).status_code == status


def test_requests_are_small(page: Page) -> None:
    with page.client() as client:
        assert client.post("/api/login", content=b"x" * (MOST_BODY + 1), headers=OWN).status_code == 413
        chunks = (b"x" * 1024 for _ in range(8))
        assert client.post("/api/login", content=chunks, headers=OWN).status_code == 413
        assert client.post("/api/login", content=b"[1]", headers=OWN).status_code == 400
        assert client.get("/", headers={"x-long": "x" * 70_000}).status_code == 431
    with page.client("readers") as client:
        for query in ({"limit": "100000"}, {"offset": "-1"}, {"limit": "many"}):
            assert client.get("/api/runs/one/devices", params=query).status_code == 400


def test_the_stream_tells_what_happens(page: Page) -> None:
    with page.client("readers") as client:
        first = told(client, lambda found: found.get("run", {}).get("rounds"))
        assert first["runs"][0]["title"] == "a run"

        def happen() -> None:
            page.tell(events.RoundStarted(1, {"a": "width 1"}))
            page.tell(events.UpdateQuarantined(1, "a", "<script>alert(1)</script>"))
            page.tell(events.RoundClosed(1, 0, "", {"accuracy": 0.5}, {}, 8, 4, 1.0))

        threading.Timer(0.1, happen).start()
        found = told(client, lambda found: found.get("points"), run="one")
        assert found["points"][0]["scores"] == {"accuracy": 0.5}
        assert found["refused"][0]["text"] == "<script>alert(1)</script>"
        rows = client.get("/api/runs/one/cohort").json()["rows"]
        assert [(row["name"], row["state"]) for row in rows] == [("a", "quarantined")]
        assert client.get("/api/runs/one/devices").json()["rows"][0]["idle"] == 1.0
        assert client.get("/api/runs/one/family").json()["family"]["layers"][0]["outputs"] == 4
        assert client.get("/api/scores").json()["runs"][0]["points"] == [[1, 0.5]]
        assert client.get("/api/storage").json()["stored"]["parts"] == {"runs": 5}
        assert client.get("/api/runs/two/cohort").status_code == 404
        assert client.get("/metrics").text == "up 1\n"


def test_events_go_on_whatever_the_source_does(page: Page) -> None:
    page.runs.broken = True
    with page.client("readers") as client:
        for number in (2, 3, 4):
            page.tell(events.RoundStarted(number, {"a": "width 1"}))
            assert told(client, lambda found, number=number: found.get("run", {}).get("round") == number, run="one")
    page.runs.broken = False


def test_streams_and_connections_are_few(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps, "MOST_STREAMS", 1)
    with page.client("readers") as one, page.client("readers") as two, one.stream("GET", "/api/stream") as answer:
        lines = answer.iter_lines()
        next(lines)
        assert two.get("/api/stream").status_code == 503
    monkeypatch.setattr("diastole.server.web.server.MOST_CONNECTIONS", 2)
    held = [socket.create_connection(("127.0.0.1", page.server.port)) for _ in range(3)]
    try:
        held[-1].settimeout(10)
        assert held[-1].recv(1) == b""
    except ConnectionResetError:
        pass
    finally:
        for each in held:
            each.close()


def test_a_connection_that_asks_for_nothing_is_closed(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diastole.server.web.server.FIRST_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", page.server.port)) as silent:
        silent.settimeout(10)
        silent.sendall(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(1) == b""
