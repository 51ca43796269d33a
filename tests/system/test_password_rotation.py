"""Replicas use a new password in --redis-password-file without a restart, on each kind of Redis."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, call, serves
from tests.system.servers import Server, cluster, sentinels, single

pytestmark = pytest.mark.system

A, B = "http://127.0.0.1:9", "http://127.0.0.1:10"
OLD, NEW = "first-secret", "second-secret"
Rotate = Callable[[str], Awaitable[None]]


@contextlib.asynccontextmanager
async def by_requirepass(directory: Path) -> AsyncIterator[tuple[str, Rotate]]:
    """Run one server with one password for all users. Yield its URL and a function that changes the password.

    The function also ends all connections of clients.
    """
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
    """Run a kind of Redis with a user for the controller. Yield its URL and a function that changes the password.

    The function also ends all connections of the user.
    """

    async def rotate_on(servers: list[Server], password: str) -> None:
        for server in servers:
            rules = ("on", "resetpass", f">{password}", "~*", "&*", "+@all")
            assert await server.execute("ACL", "SETUSER", "someone", *rules)
            await server.execute("CLIENT", "KILL", "USER", "someone")

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


def degraded_reason(controller: ControllerProcess) -> str:
    return str(call(f"{controller.url}/readyz", method="GET").get("degraded", ""))


async def start(serve: Serve, url: str, file: Path) -> ControllerProcess:
    controller = serve("--redis-url", url, "--redis-password-file", str(file), "--poll-interval", "0")
    controller.register(A)
    await wait_until(lambda: controller.names() == [A], "the worker is registered")
    return controller


async def check_recovery(controller: ControllerProcess) -> None:
    await wait_until(lambda: serves(controller.url), "the controller uses the store again")
    controller.register(B)
    assert {controller.dispatch(), controller.dispatch()} == {A, B}
    assert OLD not in controller.log
    assert NEW not in controller.log
    assert "Traceback" not in controller.log


@pytest.mark.parametrize("changed_first", ["file", "server"])
async def test_a_new_password_for_all_users(serve: Serve, work_dir: Path, changed_first: str) -> None:
    file = work_dir / "password"
    file.write_text(f"{OLD}\n")
    async with by_requirepass(work_dir) as (url, rotate):
        await rotate(OLD)
        controller = await start(serve, url, file)
        if changed_first == "server":
            await rotate(NEW)
            await wait_until(
                lambda: "invalid username-password" in degraded_reason(controller), "the old password is rejected"
            )
        file.write_text(f"{NEW}\n")
        if changed_first == "file":
            await rotate(NEW)
        await check_recovery(controller)


@pytest.mark.parametrize("kind", ["single", "sentinel", "cluster"])
async def test_a_new_password_of_one_user(serve: Serve, work_dir: Path, kind: str) -> None:
    file = work_dir / "password"
    file.write_text(OLD)
    async with by_user(work_dir, kind) as (url, rotate):
        await rotate(OLD)
        controller = await start(serve, url, file)
        await rotate(NEW)
        await wait_until(
            lambda: "invalid username-password" in degraded_reason(controller), "the old password is rejected"
        )
        file.write_text(NEW)
        await check_recovery(controller)


async def test_a_password_file_is_unusable_for_a_while(serve: Serve, work_dir: Path) -> None:
    file = work_dir / "password"
    file.write_text(OLD)
    async with by_requirepass(work_dir) as (url, rotate):
        await rotate(OLD)
        controller = await start(serve, url, file)
        file.write_text("")
        await rotate(NEW)
        await wait_until(
            lambda: f"--redis-password-file {file} is empty" in degraded_reason(controller),
            "the controller reports the empty file",
        )
        file.unlink()
        await wait_until(
            lambda: f"{file} cannot be read: No such file" in degraded_reason(controller),
            "the controller reports the missing file",
        )
        file.write_bytes(b"\xff" + NEW.encode())
        await wait_until(
            lambda: f"{file} cannot be read: it is not UTF-8" in degraded_reason(controller),
            "the controller reports the invalid encoding",
        )
        file.write_text(NEW)
        await check_recovery(controller)
