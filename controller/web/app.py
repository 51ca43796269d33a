"""Builds the objects of a replica from the settings, and the ASGI application with its routes and background tasks."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller.cancellation import end
from controller.metrics import Metrics
from controller.service import Controller
from controller.settings import Settings
from controller.store.connection import connect
from controller.store.registry import Registry
from controller.store_url import StoreUrl
from controller.upstream.client import WorkerClient
from controller.web.admin_plane import AdminPlane
from controller.web.client_plane import ClientPlane
from controller.web.endpoint import Endpoint, ForwardEndpoint, HeartbeatEndpoint, WayEndpoint
from controller.web.errors import http_exception
from controller.web.forward_plane import WORKER_ROUTES, ForwardPlane
from controller.web.worker_plane import WorkerPlane

logger = logging.getLogger("controller")

_CHORE_PAUSE: Final = 5.0


def create_registry(settings: Settings, store: StoreUrl) -> Registry:
    """The registry in the Redis that `store` names."""
    client = connect(store, settings.redis_timeout)
    return Registry(
        client,
        settings.namespace,
        settings.heartbeat_expiration,
        settings.redis_timeout,
        booking_decay=settings.booking_decay == "on",
        # FastChat's arithmetic, exactly: a report is all there is.
        booking_delay=settings.booking_delay if settings.booking_decay == "on" else 0.0,
    )


def create_controller(settings: Settings, store: StoreUrl, metrics: Metrics) -> Controller:
    """One replica without its routes. Call it in a running event loop."""
    registry = create_registry(settings, store)
    workers = WorkerClient(settings.probe_timeout, settings.worker_timeout)
    return Controller(settings, registry, workers, metrics)


def build_app(controller: Controller, metrics: Metrics, *chores: Callable[[], Awaitable[None]]) -> ASGIApp:
    """The routes of a replica, and its chores: the controller's, and `chores`."""
    worker, client, admin = WorkerPlane(controller), ClientPlane(controller), AdminPlane(controller, metrics)
    forward = ForwardPlane(controller)
    posts = {
        "/remove_worker": worker.remove_worker,
        "/drain_worker": worker.drain_worker,
        "/resume_worker": worker.resume_worker,
        "/get_worker_address": client.get_worker_address,
        "/release_worker": client.release_worker,
        "/renew_lease": client.renew_lease,
        "/report_failure": client.report_failure,
        "/list_models": client.list_models,
        "/list_multimodal_models": client.list_multimodal_models,
        "/list_language_models": client.list_language_models,
        "/refresh_all_workers": client.refresh_all_workers,
    }
    ways = {"/register_worker": worker.register_worker, "/worker_get_status": admin.worker_get_status}
    gets = {
        "/workers": admin.workers,
        "/test_connection": admin.test_connection,
        "/healthz": admin.healthz,
        "/readyz": admin.readyz,
    }
    endpoints: dict[str, ASGIApp] = {path: Endpoint(handle) for path, handle in posts.items()}
    endpoints["/receive_heart_beat"] = HeartbeatEndpoint(worker.receive_heart_beat)
    routes = [
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()),
        *(Route(path, WayEndpoint(handle), methods=["POST"]) for path, handle in ways.items()),
        *(Route(path, Endpoint(handle), methods=["GET"]) for path, handle in gets.items()),
        Route("/metrics", admin.metrics, methods=["GET"]),
        Route("/worker_generate_stream", ForwardEndpoint(forward.worker_generate_stream), methods=["POST"]),
        *(Route(path, ForwardEndpoint(forward.worker_call), methods=["POST"]) for path in WORKER_ROUTES),
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(_never_give_up(chore))
            for chore in (
                controller.sweep_forever,
                controller.keep_snapshot_forever,
                controller.poll_forever,
                controller.join_parents_forever,
                *chores,
            )
        ]
        try:
            yield
        finally:
            await end(tasks)
            await controller.close()

    app = Starlette(routes=routes, exception_handlers={HTTPException: http_exception}, lifespan=lifespan)
    app.router.default = _posts(ForwardEndpoint(forward.unknown_call), app.router.default)
    return HotPath({path: endpoints[path] for path in HOT_ROUTES}, app, controller)


def _posts(endpoint: ASGIApp, others: ASGIApp) -> ASGIApp:
    """An application that gives POSTs to the one, and all else to the other."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        await (endpoint if is_post else others)(scope, receive, send)

    return application


async def _never_give_up(chore: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await chore()
        except Exception:  # a bug; but the next time it may go well
            logger.exception("A chore failed and is begun anew in %g s; this is a bug.", _CHORE_PAUSE)
        await asyncio.sleep(_CHORE_PAUSE)


HOT_ROUTES: Final = ("/get_worker_address", "/release_worker", "/receive_heart_beat")


class HotPath:
    """Sends POSTs to the hot routes straight to their endpoints, and everything else through Starlette's router.

    What it saves is measured by benchmarks/dispatch.py. While the replica is leaving, each answer is its connection's
    last, so that clients without a load balancer that knows of requests go to other replicas.
    """

    def __init__(self, endpoints: Mapping[str, ASGIApp], app: ASGIApp, controller: Controller) -> None:
        self._endpoints = endpoints
        self._app = app
        self._controller = controller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route one request."""
        if self._controller.leaving:
            send = _last_answer(send)
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self._endpoints.get(scope["path"])
            if endpoint is not None:
                return await endpoint(scope, receive, send)
        await self._app(scope, receive, send)
        return None


def _last_answer(send: Send) -> Send:
    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return send_and_close
