"""Engines of OpenAI's protocol on real sockets, which a test controls, and their registration."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from controller.domain.engine import Engine
from controller.domain.worker import Registration, WorkerStatus

Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class OpenAiEngine:
    """An HTTP server. A test may change its behaviour.

    requests: each with its body, after it was read.
    running: number of requests that are being handled.
    cancelled: number of requests whose clients left before the response was complete.
    """

    behaviour: Behaviour
    address: str = ""
    requests: list[tuple[web.BaseRequest, bytes]] = field(default_factory=list)
    running: int = 0
    cancelled: int = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.running += 1
        try:
            self.requests.append((request, await request.read()))
            return await self.behaviour(request)
        except BaseException:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, body in self.requests]


@contextlib.asynccontextmanager
async def openai_engine(behaviour: Behaviour) -> AsyncIterator[OpenAiEngine]:
    engine = OpenAiEngine(behaviour)
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", engine.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=2048)
        await site.start()
        host, port = runner.addresses[0][:2]
        engine.address = f"http://{host}:{port}"
        yield engine
    finally:
        await runner.cleanup()


def answers(body: bytes = b'{"ok": true}', status: int = 200, headers: Mapping[str, str] | None = None) -> Behaviour:
    """Send a response at once."""

    async def behaviour(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, status=status, headers={"Content-Type": "application/json", **(headers or {})})

    return behaviour


def engine_worker(
    name: str,
    *models: str,
    aliases: Mapping[str, str] | None = None,
    key: str = "",
    queue_length: int = 0,
    max_lengths: Mapping[str, int] | None = None,
) -> Registration:
    """Return the registration of an engine."""
    engine = Engine("generic", aliases or {}, key, max_lengths=max_lengths or {})
    return Registration(name, WorkerStatus(models or ("m",), 1, queue_length), True, False, engine=engine)
