"""The read-only server of `lit-rlvr watch`."""

from __future__ import annotations

import secrets
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.resources import files

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from lit_rlvr.commands.watch import pages
from lit_rlvr.commands.watch.follow import FollowedFolders
from lit_rlvr.errors import UserError

REFRESH_SECONDS = 1.0
"""Seconds between two refreshes of the folders."""
LOCAL = ["127.0.0.1", "localhost", "[::1]"]
COOKIE = "lit-rlvr"
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""Headers of every answer: pages run our script only, contact this server only, and no other page can frame them."""


def application(folders: FollowedFolders, token: str | None = None) -> Starlette:
    """Build the ASGI application, which follows the folders while it runs.

    Args:
        folders: what to show.
        token: the token that a browser must give once as `?token=`; None = answer any browser of this machine.
    """
    script = files("lit_rlvr.commands").joinpath("templates", "watch.js").read_text(encoding="utf-8")

    def page(make: Callable[[Request], str]) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            try:
                with folders.lock:
                    return HTMLResponse(make(request))
            except pages.NotFound as error:
                return PlainTextResponse(f"{error}\n", status_code=404)

        return answer

    def now(request: Request) -> Response:
        return JSONResponse(folders.versions | {"html": pages.now(folders)})

    async def guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Add `HEADERS` to every answer, and require the token: in the address once, then in a cookie."""
        response = _refusal(request, token) or await call_next(request)
        response.headers.update(HEADERS)
        return response

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        stop = threading.Event()
        threading.Thread(target=follow, args=(folders, stop), name="lit-rlvr-watch", daemon=True).start()
        try:
            yield
        finally:
            stop.set()

    return Starlette(
        routes=[
            Route("/", page(lambda request: pages.overview(folders, "more" in request.query_params))),
            Route("/now", now),
            Route("/prompts", page(lambda request: pages.prompts(folders, request.query_params))),
            Route("/prompt", page(lambda request: pages.prompt(folders, request.query_params))),
            Route("/watch.js", lambda request: Response(script, media_type="text/javascript")),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)]
        + ([Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL)] if token is None else []),
        lifespan=lifespan,
    )


def _refusal(request: Request, token: str | None) -> Response | None:
    """Return the answer for a browser without the token; None for any other."""
    if token is None or _same(request.cookies.get(COOKIE, ""), token):
        return None
    if not _same(request.query_params.get("token", ""), token):
        return PlainTextResponse(
            "This page needs the address with ?token=, which lit-rlvr watch printed.\n", status_code=403
        )
    response = RedirectResponse(str(request.url.remove_query_params("token")), status_code=303)
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
    return response


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


def follow(folders: FollowedFolders, stop: threading.Event) -> None:
    """Refresh the folders until `stop` is set."""
    while not stop.is_set():
        with suppress(UserError, OSError):  # the last state stays while a new run replaces a folder
            folders.refresh()
        folders.read_completions()
        stop.wait(REFRESH_SECONDS)
