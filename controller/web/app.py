"""The ASGI application of one replica: the routes of the table, and the background tasks."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller.availability.readiness import Readiness
from controller.tasks import end
from controller.web.errors import http_exception
from controller.web.routes.table import FALLBACK, ROUTES
from controller.web.services import Services

logger = logging.getLogger("controller")

_RESTART_PAUSE: Final = 5.0


def build_app(
    services: Services, background: Sequence[Callable[[], Awaitable[None]]], close: Callable[[], Awaitable[None]]
) -> ASGIApp:
    """Return the ASGI application of a replica.

    background: functions that run until they return or the application ends. If one fails, it is started again.
    close: called at the end, after the background tasks.
    """
    endpoints = [route.build(services) for route in ROUTES]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        tasks = [asyncio.create_task(_restart(run)) for run in background]
        try:
            yield {"refusals": services.metrics.refusals}  # for the HTTP protocol
        finally:
            await end(tasks)
            await close()

    app = Starlette(
        routes=[
            StarletteRoute(route.path, endpoint, methods=[route.method])
            for route, endpoint in zip(ROUTES, endpoints, strict=True)
        ],
        exception_handlers={HTTPException: http_exception},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # the target of a redirect would come from the header Host
    forwarding = FALLBACK.build(services)
    app.router.default = _posts(forwarding, app.router.default)
    hot = {route.path: endpoint for route, endpoint in zip(ROUTES, endpoints, strict=True) if route.hot}
    others = {route.path for route in ROUTES}
    hot |= {path: forwarding for path in services.forward_paths.exact if path not in others}
    return HotPath(hot, app, services.readiness)


def _posts(endpoint: ASGIApp, others: ASGIApp) -> ASGIApp:
    """Return an application that passes POST requests to `endpoint` and all other requests to `others`."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        await (endpoint if is_post else others)(scope, receive, send)

    return application


async def _restart(run: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            return await run()
        except Exception:  # a bug in one task must not stop the replica
            logger.exception("A background task failed because of a bug. Restarting it in %g s.", _RESTART_PAUSE)
        await asyncio.sleep(_RESTART_PAUSE)


class HotPath:
    """Passes POST requests for hot routes directly to their endpoints, and all other requests to Starlette's router.

    Forwarded paths are such routes, too. benchmarks/dispatch.py measures how much time this saves. During shutdown,
    each response closes its connection, so that clients without a load balancer reconnect to other replicas.
    """

    def __init__(self, endpoints: Mapping[str, ASGIApp], app: ASGIApp, readiness: Readiness) -> None:
        self._endpoints = endpoints
        self._app = app
        self._readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route one request."""
        if self._readiness.shutting_down:
            send = _closing(send)
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self._endpoints.get(scope["path"])
            if endpoint is not None:
                return await endpoint(scope, receive, send)
        await self._app(scope, receive, send)
        return None


def _closing(send: Send) -> Send:
    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return send_and_close
