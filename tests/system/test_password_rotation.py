"""A new password in --redis-password-file is used without a restart, on each kind of Redis."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, call, serves
from tests.system.servers import Server, cluster, sentinels, single

A, B = "http://127.0.0.1:9", "http://127.0.0.1:10"
OLD, NEW = "first-secret", "second-secret"
Rotate = Callable[[str], Awaitable[None]]


@contextlib.asynccontextmanager
async def by_requirepass(directory: Path) -> AsyncIterator[tuple[str, Rotate]]:
    """One server with a password for all; the URL, and what changes the password and ends all connections."""
    async with single(directory) as server:
        admin = server.client()  # a connection stays authenticated

        async def rotate(password: str) -> None:
            await admin.config_set("requirepass", password)
            await admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        try:
            yield server.url, rotate
        finally:
            await admin.aclose()


@contextlib.asynccontextmanager
async def by_user(directory: Path, kind: str) -> AsyncIterator[tuple[str, Rotate]]:
    """The same with a user of its own, on any kind of Redis."""

    async def rotate_on(servers: list[Server], password: str) -> None:
        for server in servers:
            rules = ("on", "resetpass", f">{password}", "~*", "&*", "+@all")
            assert await server.ask("ACL", "SETUSER", "someone", *rules)
            await server.ask("CLIENT", "KILL", "USER", "someone")

    async with contextlib.AsyncExitStack() as stack:
        if kind == "single":
            server = await stack.enter_async_context(single(directory))
            url, servers = server.url, [server]
        elif kind == "sentinel":
            watched = await stack.enter_async_context(sentinels(directory))
            url, servers = watched.url, watched.servers
        else:
            nodes = await stack.enter_async_context(cluster(directory))
            url, servers = nodes.url, nodes.nodes
        yield url.replace("://", "://someone@"), lambda password: rotate_on(servers, password)


def degraded(controller: ControllerProcess) -> str:
    return str(call(f"{controller.url}/readyz", method="GET").get("degraded", ""))


async def start(serve: Serve, url: str, file: Path) -> ControllerProcess:
    controller = serve("--redis-url", url, "--redis-password-file", str(file), "--poll-interval", "0")
    controller.register(A)
    await wait_until(lambda: controller.names() == [A], "the worker is registered")
    return controller


async def serves_again(controller: ControllerProcess) -> None:
    await wait_until(lambda: serves(controller.url), "the store serves again")
    controller.register(B)
    assert {controller.dispatch(), controller.dispatch()} == {A, B}
    assert OLD not in controller.log
    assert NEW not in controller.log
    assert "Traceback" not in controller.log


@pytest.mark.parametrize("first", ["file", "server"])
async def test_a_new_password_for_all(serve: Serve, work_dir: Path, first: str) -> None:
    file = work_dir / "password"
    file.write_text(f"{OLD}\n")
    async with by_requirepass(work_dir) as (url, rotate):
        await rotate(OLD)
        controller = await start(serve, url, file)
        if first == "server":
            await rotate(NEW)
            await wait_until(lambda: "invalid username-password" in degraded(controller), "the old one is refused")
        file.write_text(f"{NEW}\n")
        if first == "file":
            await rotate(NEW)
        await serves_again(controller)


@pytest.mark.parametrize("kind", ["single", "sentinel", "cluster"])
async def test_a_new_password_of_a_user(serve: Serve, work_dir: Path, kind: str) -> None:
    file = work_dir / "password"
    file.write_text(OLD)
    async with by_user(work_dir, kind) as (url, rotate):
        await rotate(OLD)
        controller = await start(serve, url, file)
        await rotate(NEW)
        await wait_until(lambda: "invalid username-password" in degraded(controller), "the old one is refused")
        file.write_text(NEW)
        await serves_again(controller)


async def test_a_file_that_cannot_be_used_for_a_moment(serve: Serve, work_dir: Path) -> None:
    file = work_dir / "password"
    file.write_text(OLD)
    async with by_requirepass(work_dir) as (url, rotate):
        await rotate(OLD)
        controller = await start(serve, url, file)
        file.write_text("")
        await rotate(NEW)
        await wait_until(lambda: f"--redis-password-file {file} is empty" in degraded(controller), "it is empty")
        file.unlink()
        await wait_until(lambda: f"{file} cannot be read: No such file" in degraded(controller), "it is missing")
        file.write_bytes(b"\xff" + NEW.encode())
        await wait_until(lambda: f"{file} cannot be read: it is not UTF-8" in degraded(controller), "it is no text")
        file.write_text(NEW)
        await serves_again(controller)
