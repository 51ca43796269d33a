"""The bare reverse proxy of benchmarks/forwarding.py, with several HTTP clients."""

import importlib
from collections.abc import AsyncIterator, Callable
from functools import partial

PATH = "/worker_generate_stream"
Post = Callable[[bytes], AsyncIterator[bytes]]


def with_aiohttp(url: str) -> Post:
    import aiohttp

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def post_body(body: bytes) -> AsyncIterator[bytes]:
        async with session.post(url, data=body) as response:
            async for piece in response.content.iter_any():
                yield piece

    return post_body


def with_httpx(library: str, url: str) -> Post:
    httpx = importlib.import_module(library)
    client = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=None, trust_env=False)

    async def post_body(body: bytes) -> AsyncIterator[bytes]:
        async with client.stream("POST", url, content=body) as response:
            async for piece in response.aiter_raw():
                yield piece

    return post_body


def with_niquests(url: str) -> Post:
    import niquests

    session = niquests.AsyncSession(pool_maxsize=1000)

    async def post_body(body: bytes) -> AsyncIterator[bytes]:
        response = await session.post(url, data=body, stream=True)
        async for piece in await response.iter_raw(-1):
            yield piece
        await response.close()

    return post_body


LIBRARIES: dict[str, Callable[[str], Post]] = {
    "aiohttp": with_aiohttp,
    "httpx": partial(with_httpx, "httpx"),
    "httpx2": partial(with_httpx, "httpx2"),
    "niquests": with_niquests,
}


def proxy(port: int, target: str, library: str) -> None:
    """Run a minimal proxy, which forwards each piece as it arrives."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import StreamingResponse

    client: list[Post] = []  # filled by the first request, because a client needs the running event loop

    async def forward(request: Request) -> StreamingResponse:
        if not client:
            client.append(LIBRARIES[library](target + PATH))
        return StreamingResponse(client[0](await request.body()))

    app = Starlette()
    app.add_route(PATH, forward, ["POST"])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", backlog=2000, timeout_graceful_shutdown=1)
