"""The dashboard's web application: its page, its data, its stream of events, and its verbs."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from diastole.proto.errors import DiastoleError
from diastole.server.errors import ExtraError
from diastole.server.web.guard import MOST_BODY, Guard
from diastole.server.web.rights import LoginError, Rights, Role, Who
from diastole.server.web.shown import LONGEST_PAGE, Query, cohort_page, fleet_page
from diastole.server.web.stream import Stream
from diastole.server.web.view import RunView
from diastole.server.web.watching import Watching

MOST_STREAMS = 32
"""Clients that follow events at a time."""
HEADER = "x-diastole"
"""A request that changes something carries it: a form of another site cannot."""
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

Scrape = Callable[[], tuple[bytes, str]]
"""Returns metrics as text, and its content type."""


class App:
    """Answers the page's requests.

    Attributes:
        asgi: the application.

    """

    def __init__(
        self,
        watching: Watching,
        rights: Rights,
        *,
        names: Collection[str] = (),
        secure: bool = False,
        port: int = 0,
        scrape: Scrape | None = None,
    ) -> None:
        """Show what `watching` has to those that `rights` knows.

        Args:
            watching: the runs.
            rights: who may look, and who may act.
            names: under which this server may be called, beside its addresses.
            secure: whether it is called over TLS alone.
            port: it is in the cookie's name, since browsers give cookies to every port of a host.
            scrape: returns what is at /metrics; None for nothing there.

        """
        self._watching, self._rights, self._scrape = watching, rights, scrape
        self._secure, self._cookie = secure, "__Host-diastole" if secure else f"diastole-{port}"
        self._streams = 0
        self._closing = False
        self._assets = dict(_assets())
        run = "/api/runs/{run_id}"
        self.asgi = Starlette(
            routes=[
                Route("/", self._page),
                Route("/assets/{name}", self._asset),
                Route("/metrics", self._metrics),
                Route("/api/session", self._session),
                Route("/api/login", self._login, methods=["POST"]),
                Route("/api/logout", self._logout, methods=["POST"]),
                Route("/api/stream", self._stream),
                Route("/api/scores", self._scores),
                Route("/api/storage", self._storage),
                Route(run + "/cohort", self._cohort),
                Route(run + "/devices", self._devices),
                Route(run + "/family", self._family),
                Route(run + "/{verb}", self._do, methods=["POST"]),
            ],
            middleware=[Middleware(Guard, names=names)],
            exception_handlers={HTTPException: _refused},
            lifespan=self._lifespan,
        )

    def close(self) -> None:
        """Let no stream go on. To be called in the server's loop."""
        self._closing = True
        self._watching.pulse()

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        beating = asyncio.create_task(self._watching.run())
        try:
            yield
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating

    async def _page(self, request: Request) -> Response:
        return self._sent("index.html")

    async def _asset(self, request: Request) -> Response:
        return self._sent(request.path_params["name"])

    def _sent(self, name: str) -> Response:
        if name not in self._assets:
            raise HTTPException(404, "there is nothing here")
        kind = KINDS[name.rpartition(".")[2]]
        return Response(self._assets[name], media_type=kind, headers={"cache-control": "no-cache"})

    async def _metrics(self, request: Request) -> Response:
        self._who(request)
        if self._scrape is None:
            raise HTTPException(404, "this server has no metrics")
        try:
            body, kind = await run_in_threadpool(self._scrape)
        except ExtraError as error:
            raise HTTPException(501, str(error)) from None
        return Response(body, headers={"content-type": kind})

    async def _session(self, request: Request) -> Response:
        who = self._known(request)
        return JSONResponse({"name": who.name, "role": who.role} if who else {"name": "", "role": ""})

    async def _login(self, request: Request) -> Response:
        self._own(request)
        try:
            document = json.loads(await _body(request))
            token = document["token"].strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise HTTPException(400, 'a body {"token": "..."} is accepted') from None
        try:
            secret, who = await run_in_threadpool(self._rights.login, token, _peer(request))
        except LoginError as error:
            raise HTTPException(401, str(error)) from None
        answer = JSONResponse({"name": who.name, "role": who.role})
        answer.set_cookie(self._cookie, secret, path="/", httponly=True, samesite="strict", secure=self._secure)
        return answer

    async def _logout(self, request: Request) -> Response:
        self._own(request)
        self._rights.logout(request.cookies.get(self._cookie, ""))
        answer = JSONResponse({})
        answer.delete_cookie(self._cookie, path="/", httponly=True, samesite="strict", secure=self._secure)
        return answer

    async def _stream(self, request: Request) -> Response:
        self._who(request)
        if self._streams >= MOST_STREAMS:
            raise HTTPException(503, f"{MOST_STREAMS} others are watching already")
        stream = Stream(self._watching, request.query_params.get("run", "")[:64])

        async def events() -> AsyncIterator[str]:
            self._streams += 1
            try:
                async for text in stream.texts():
                    yield text
                    if self._closing or self._known(request) is None:
                        return
            finally:
                self._streams -= 1

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _scores(self, request: Request) -> Response:
        self._who(request)
        return JSONResponse({"runs": [_curve(view) for view in self._watching.views()]})

    async def _storage(self, request: Request) -> Response:
        self._who(request)
        stored = await run_in_threadpool(self._watching.source.stored)
        return JSONResponse({"stored": asdict(stored) if stored else None})

    async def _cohort(self, request: Request) -> Response:
        view = self._view(request)
        summary = self._watching.summary(view.run_id)
        return JSONResponse(cohort_page(view, summary.moving if summary else {}, _query(request)))

    async def _devices(self, request: Request) -> Response:
        view = self._view(request)
        source = self._watching.source
        return JSONResponse(fleet_page(view, lambda names: source.seen(view.run_id, names), _query(request)))

    async def _family(self, request: Request) -> Response:
        view = self._view(request)
        family = await run_in_threadpool(self._watching.source.family, view.run_id)
        return JSONResponse({"family": asdict(family) if family else None})

    async def _do(self, request: Request) -> Response:
        self._own(request)
        who, run_id, verb = self._who(request), request.path_params["run_id"][:64], request.path_params["verb"][:16]
        if who.role is not Role.OPERATOR:
            raise HTTPException(403, "this token lets you look, and not act; log in with the operator's")
        try:
            await run_in_threadpool(self._watching.source.do, run_id, verb)
        except DiastoleError as error:
            raise HTTPException(409, str(error)) from None
        await run_in_threadpool(self._rights.note, who.name, verb, f"run_id={run_id}", "done")
        return JSONResponse({})

    def _known(self, request: Request) -> Who | None:
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        shown: Mapping[str, list[bytes]] = request.scope.get("shown", {})
        token = bearer.strip() if kind.lower() == "bearer" else ""
        return self._rights.who(request.cookies.get(self._cookie, ""), token, shown, _peer(request))

    def _who(self, request: Request) -> Who:
        who = self._known(request)
        if who is None:
            raise HTTPException(401, "log in first", {"www-authenticate": "Bearer"})
        return who

    def _view(self, request: Request) -> RunView:
        self._who(request)
        view = self._watching.view(request.path_params["run_id"])
        if view is None:
            raise HTTPException(404, "there is no such run, or it has not begun")
        return view

    def _own(self, request: Request) -> None:
        """Refuse what a page of another site could have sent."""
        site = request.headers.get("sec-fetch-site", "same-origin")
        if HEADER not in request.headers or site != "same-origin":
            raise HTTPException(403, "only the dashboard's own page may ask for that")


def _assets() -> list[tuple[str, bytes]]:
    folder = files("diastole.server.web").joinpath("assets")
    return [(each.name, each.read_bytes()) for each in folder.iterdir() if each.name.rpartition(".")[2] in KINDS]


def _curve(view: RunView) -> dict[str, Any]:
    points = [(each["round"], (each["scores"] or {}).get(view.metric)) for each in view.points]
    step = max(1, len(points) // 200)
    found = [point for point in points if point[1] is not None]
    return {"id": view.run_id, "metric": view.metric, "points": found[:-1:step] + found[-1:]}


def _query(request: Request) -> Query:
    asked = request.query_params
    try:
        offset, limit = int(asked.get("offset", "0")), int(asked.get("limit", "50"))
    except ValueError:
        raise HTTPException(400, "offset and limit are whole numbers") from None
    if offset < 0 or not 0 < limit <= LONGEST_PAGE:
        raise HTTPException(400, f"offset from 0 on, and limit from 1 to {LONGEST_PAGE} are accepted")
    sort, tier, state, text = (asked.get(key, "")[:64] for key in ("sort", "tier", "state", "text"))
    return Query(offset, limit, sort, tier, state, text)


async def _body(request: Request) -> bytes:
    found = b""
    with suppress(ClientDisconnect):
        async for part in request.stream():
            found += part
            if len(found) > MOST_BODY:
                raise HTTPException(413, f"a body of {MOST_BODY} bytes at most is accepted")
    return found


def _peer(request: Request) -> str:
    return request.client.host if request.client else "unknown"


async def _refused(request: Request, error: Exception) -> Response:
    status, text, headers = 500, "it failed", None
    if isinstance(error, HTTPException):
        status, text, headers = error.status_code, error.detail, error.headers
    return JSONResponse({"error": text}, status, headers)
