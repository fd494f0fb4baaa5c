"""The dashboard in a browser, over a federation of processes of its own."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from waiting import until

pytestmark = pytest.mark.slow

TEXT = """
name = "<b>three</b> tiers"
seed = 3
method = "width"
[data]
name = "digits"
proxy = 40
[rounds]
count = 2000
[tiers]
large = {devices = 1, width = 1.0}
small = {devices = 2, width = 0.25}
"""
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECONDS = 120_000.0


def command(*arguments: object, log: Path, stack: ExitStack) -> subprocess.Popen[bytes]:
    file = stack.enter_context(log.open("wb"))
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    text = [sys.executable, "-m", "diastole.cli.main", *map(str, arguments)]
    process = subprocess.Popen(text, stdout=file, stderr=subprocess.STDOUT, env=settings)

    def end() -> None:
        process.kill()
        process.wait()

    stack.callback(end)
    return process


class Field:
    """A coordinator and three agents; `url` is where the dashboard is."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        experiment, log = folder / "experiment.toml", folder / "serve.log"
        experiment.write_text(TEXT)
        self.state = folder / "state"
        shards = command("shards", experiment, "--out", folder / "shards", log=folder / "shards.log", stack=stack)
        shards.wait(300)
        at = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--web", "127.0.0.1:0", "--state", self.state)
        self.serve = command("serve", experiment, *at, log=log, stack=stack)
        until(lambda: "dashboard http" in log.read_text(), self.serve)
        found = log.read_text()
        self.url = re.search(r"dashboard (http://\S+/)", found)[1]  # type: ignore[index]
        devices = re.search(r"devices call (\S+?),", found)[1]  # type: ignore[index]
        self.admin = re.search(r"operators (\S+) with", found)[1]  # type: ignore[index]
        for number, tier in enumerate(("large", "small", "small")):
            data = folder / "shards" / tier / f"device-{number:02d}.npz"
            options = ("--data", data, "--tier", tier, "--state", folder / f"agent-{number}")
            command("join", devices, *options, log=folder / f"{number}.log", stack=stack)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with ExitStack() as stack:
        yield Field(tmp_path_factory.mktemp("field"), stack)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'diastole[browser]'")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, field: Field) -> Iterator[Any]:
    """A page of a browser of its own, in which nothing may be wrong and nobody else called."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, reduced_motion="reduce")
    context.set_default_timeout(SECONDS)
    opened, wrong = context.new_page(), list[str]()
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on(
        "console", lambda told: wrong.append(told.text) if told.type == "error" and "40" not in told.text else None
    )
    opened.on("request", lambda asked: None if asked.url.startswith(field.url) else wrong.append(asked.url))
    opened.goto(field.url)
    yield opened
    context.close()
    assert wrong == []


def log_in(page: Any, token: Path) -> None:
    page.fill("#token", token.read_text())
    page.press("#token", "Enter")
    page.wait_for_selector("#figures div")


def go(page: Any, view: str) -> None:
    page.click(f"#tabs a[href='#/{view}']")
    page.wait_for_selector(f"#tabs a[href='#/{view}'][aria-current='page']")


def test_a_round_is_seen_as_it_happens(page: Any, field: Field) -> None:
    page.fill("#token", "a guess")
    page.press("#token", "Enter")
    page.wait_for_selector("#login-error:has-text('no token of this coordinator')")
    log_in(page, field.state / "view.token")
    until(lambda: page.evaluate("document.querySelectorAll('#page tbody .part').length === 3"), field.serve)
    # Text is text, whatever an operator calls an experiment.
    assert "<b>three</b> tiers" in page.inner_text("#run")
    shown = int(page.inner_text("#figures dd span").split()[0])
    until(
        lambda: page.evaluate(f"parseInt(document.querySelector('#figures dd span').textContent) > {shown + 1}"),
        field.serve,
    )
    assert page.locator(".bars .tier .name").all_inner_texts() == ["large", "small"]
    assert page.locator("#verbs button").count() == 0
    page.wait_for_selector(".chart polyline")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_each_view_shows_what_it_is_for(page: Any, field: Field) -> None:
    log_in(page, field.state / "view.token")
    go(page, "learning")
    until(lambda: page.evaluate("document.querySelectorAll('#page polyline').length >= 5"), field.serve)
    page.click("text=by bytes")
    page.wait_for_selector("#page .title:has-text('bytes')")
    go(page, "fleet")
    # On a phone there is no room for it.
    page.wait_for_selector("td:has-text('MAC/s')", state="attached")
    page.fill("input[type=search]", "device-01")
    until(lambda: page.evaluate("[...document.querySelectorAll('#page tbody tr .badge')].length === 1"), field.serve)
    go(page, "family")
    page.wait_for_selector("tr.global rect.held")
    assert page.locator("tbody tr").count() == 3
    go(page, "quarantine")
    page.wait_for_selector("text=No update has been quarantined.")
    go(page, "runs")
    page.wait_for_selector("td:has-text('coordinator.sqlite')")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_keyboard_is_enough_and_a_theme_is_kept(page: Any, field: Field) -> None:
    log_in(page, field.state / "view.token")
    page.reload()
    page.wait_for_selector("#figures div")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "page"
    page.focus("#theme")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    page.wait_for_selector("#figures div")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.wait_for_selector(".chart polyline")
    page.focus(".chart svg")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(".tip:not([hidden]) strong:has-text('round')")
    page.click("#logout")
    page.wait_for_selector("#token:visible")


def test_rounds_that_are_taken_back_leave_the_page(page: Any, field: Field, tmp_path: Path) -> None:
    latest = "parseInt(document.querySelector('#page tbody td')?.textContent)"
    log_in(page, field.state / "admin.token")
    go(page, "learning")
    until(lambda: page.evaluate(f"{latest} > 3"), field.serve)
    page.click("#verbs button:has-text('Pause')")
    page.click("#ask-yes")
    page.wait_for_selector("#state:has-text('paused')")
    # The page may not know of the last one yet.
    closed = page.evaluate(latest)
    back = ("checkpoints", "rollback", page.input_value("#run"), "--round", closed - 2, "--yes")
    token = ("--address", field.admin, "--token-file", field.state / "admin.token")
    with ExitStack() as stack:
        admin = command("admin", *back, *token, log=tmp_path / "admin.log", stack=stack)
        assert admin.wait(60) == 0, (tmp_path / "admin.log").read_text()
    until(lambda: page.evaluate(f"{latest} === {closed - 2}"), field.serve)
    page.click("#verbs button:has-text('Resume')")
    page.click("#ask-yes")
    until(lambda: page.evaluate(f"{latest} > {closed}"), field.serve)


def test_an_operator_pauses_and_stops_the_run(page: Any, field: Field) -> None:
    log_in(page, field.state / "admin.token")
    for verb, state in (("Pause", "paused"), ("Resume", "running")):
        page.click(f"#verbs button:has-text('{verb}')")
        page.click("#ask-yes")
        page.wait_for_selector(f"#state:has-text('{state}')")
    page.click("#verbs button:has-text('Stop') >> nth=0")
    page.click("#ask button:has-text('Cancel')")
    page.wait_for_selector("#ask:not([open])", state="attached")
    assert field.serve.poll() is None
    page.click("#verbs button:has-text('Stop') >> nth=0")
    page.click("#ask-yes")
    assert field.serve.wait(120) == 0
