"""Thousands of connections that send nothing: they are limited, probes are served, and all is released again."""

import asyncio
import contextlib
import os
import resource

import pytest

from tests.conftest import Figure
from tests.security.connections import DISPATCH, MIB, POST, Connection, Serve, clients, connect, peak_memory, refusals
from tests.support.waiting import wait_until
from tests.system.processes import ControllerProcess
from tests.system.test_serve import A

pytestmark = pytest.mark.system

# `SLOW_CONNECTIONS=10000 make test ARGS="tests/security/test_connections.py"` opens as many.
SLOW_CONNECTIONS = int(os.environ.get("SLOW_CONNECTIONS", "1000"))
_AT_ONCE = 100


async def open_many(
    controller: ControllerProcess, number: int, sent: bytes, opened: contextlib.AsyncExitStack
) -> list[Connection]:
    connections: list[Connection] = []
    while len(connections) < number:
        wanted = min(_AT_ONCE, number - len(connections))
        connections += await asyncio.gather(*(opened.enter_async_context(connect(controller)) for _ in range(wanted)))
    for connection in connections:
        connection.send(sent)
    return connections


async def test_connections_beyond_the_limit_get_a_503_and_probes_are_served(serve: Serve) -> None:
    controller = serve("--max-connections", "20", "--head-timeout", "60")
    controller.register(A)
    async with contextlib.AsyncExitStack() as opened:
        await wait_until(lambda: clients(controller) == 0, "the connection of the registration is closed")
        await open_many(controller, 20, b"", opened)
        await wait_until(lambda: clients(controller) == 20, "the connections are accepted")
        async with connect(controller) as connection:
            connection.send(DISPATCH)
            status, headers, _ = await connection.response()
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
            assert await connection.rest() == b""
        for path in (b"/healthz", b"/readyz"):
            async with connect(controller) as connection:
                connection.send(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
                assert (await connection.response())[0] == 200
        further = await open_many(controller, 400, b"", opened)
        ended = await asyncio.gather(*(each.rest(1.0) for each in further), return_exceptions=True)
        assert ended.count(b"") == 400 - 256, "only some of these connections are kept for a response"
    await wait_until(lambda: clients(controller) == 0, "all connections are closed")
    assert controller.dispatch() == A
    assert refusals(controller)["connections"] >= 403
    assert "Traceback" not in controller.log


async def test_thousands_of_slow_connections_do_not_harm_a_replica(serve: Serve, figure: Figure) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = SLOW_CONNECTIONS + 1000
    if needed > hard:
        pytest.skip(f"this machine allows {hard} open files, and the test needs {needed}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    try:
        # The replica must raise its own soft limit.
        start = ["bash", "-c", 'ulimit -Sn 1024; exec "$@"', "bash"]
        limits = ("--head-timeout", "20", "--max-connections", str(SLOW_CONNECTIONS + 500), "--max-forwards", "100")
        controller = serve(*limits, wrap=start)
        controller.register(A)
        controller.dispatch()
        memory = peak_memory(controller)
        async with contextlib.AsyncExitStack() as opened:
            await wait_until(lambda: clients(controller) == 0, "the connections of earlier requests are closed")
            connections = await open_many(controller, SLOW_CONNECTIONS, POST, opened)
            await wait_until(lambda: clients(controller) == SLOW_CONNECTIONS, "all are accepted")
            assert controller.dispatch() == A
            grown = peak_memory(controller) - memory
            figure(f"memory of a replica with {SLOW_CONNECTIONS} slow connections", f"{grown / MIB:.0f} MiB more")
            assert grown < SLOW_CONNECTIONS * 32 * 1024
            results = await asyncio.gather(*(each.error() for each in connections), return_exceptions=True)
            assert results.count((408, "head_timeout")) == SLOW_CONNECTIONS
        await wait_until(lambda: clients(controller) == 0, "all connections are closed")
        assert controller.dispatch() == A
        assert "Traceback" not in controller.log
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
