"""Tokens that are created and revoked at runtime, and a file of tokens that changes."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from controller.tasks import end
from tests.conftest import Store
from tests.support.samples import A
from tests.support.waiting import wait_until
from tests.web.conftest import Api, open_api
from tests.web.tokens import SETTINGS, TOKENS, bearer, register

pytestmark = pytest.mark.usefixtures("fast_token_updates")


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def update_tokens() -> AsyncIterator[Callable[[Api], None]]:
    """Return a function that runs the token updates of a replica in the background."""
    tasks: list[asyncio.Task[None]] = []
    yield lambda api: tasks.append(asyncio.create_task(api.replica.tokens.run()))
    await end(tasks)


async def test_created_token_is_accepted_until_it_is_revoked(store: Store, stack: AsyncExitStack) -> None:
    first, second = [await stack.enter_async_context(open_api(store.registry(), **SETTINGS)) for _ in range(2)]
    admin = bearer(TOKENS["admin"])
    body = {"plane": "worker", "name": "gpu", "workers": ["127.0.0.1"], "models": ["m*"]}
    secret = (await first.http.post("/create_token", json=body, headers=admin)).json()["token"]
    for api in (first, second):
        await api.replica.tokens.update()
        assert (await register(api, secret, A)).status_code == 200
        assert (await register(api, secret, A, "gpt")).status_code == 403
        assert (await api.http.get("/workers", headers=bearer(secret))).status_code == 403
    again = await second.http.post("/create_token", json=body, headers=admin)
    assert (again.status_code, again.json()["error"]["code"]) == (400, "invalid_input")
    listed = (await second.http.get("/tokens", headers=admin)).json()["tokens"]
    assert [(each["name"], each["source"]) for each in listed] == [
        ("admin", "environment"),
        ("client", "environment"),
        ("gpu", "store"),
        ("worker", "environment"),
    ]
    stored = str(await store.client.hgetall(f"{{{store.namespace}}}:tokens"))
    assert secret not in stored
    revoked = await first.http.post("/revoke_token", json={"name": "gpu"}, headers=admin)
    assert revoked.json() == {"exist": True}
    await second.replica.tokens.update()
    for api in (first, second):
        assert (await register(api, secret, A)).status_code == 401
    assert (await first.http.post("/revoke_token", json={"name": "gpu"}, headers=admin)).json() == {"exist": False}
    from_environment = await first.http.post("/revoke_token", json={"name": "client"}, headers=admin)
    assert from_environment.status_code == 400


async def test_tokens_survive_a_loss_of_the_data_of_redis(store: Store) -> None:
    async with open_api(store.registry(), **SETTINGS) as api:
        body = {"plane": "client", "name": "web"}
        secret = (await api.http.post("/create_token", json=body, headers=bearer(TOKENS["admin"]))).json()["token"]
        await store.client.delete(f"{{{store.namespace}}}:tokens")
        await api.replica.tokens.update()
        assert (await api.http.post("/list_models", headers=bearer(secret))).status_code == 200
        assert await store.client.hget(f"{{{store.namespace}}}:tokens", "entry:web")


async def test_a_token_that_is_created_after_redis_lost_the_others_is_kept(store: Store) -> None:
    async with open_api(store.registry(), **SETTINGS) as api:
        admin = bearer(TOKENS["admin"])
        for name in ("web", "app"):
            await api.http.post("/create_token", json={"plane": "client", "name": name}, headers=admin)
        await store.client.delete(f"{{{store.namespace}}}:tokens")
        body = {"plane": "client", "name": "new"}
        secret = (await api.http.post("/create_token", json=body, headers=admin)).json()["token"]
        assert (await api.http.post("/list_models", headers=bearer(secret))).status_code == 200
        await store.client.delete(f"{{{store.namespace}}}:tokens")
        assert (await api.http.post("/revoke_token", json={"name": "web"}, headers=admin)).json() == {"exist": True}
        found = await store.client.hgetall(f"{{{store.namespace}}}:tokens")
        assert {name for name in found if name.startswith("entry:")} == {"entry:app", "entry:new"}


async def test_a_changed_tokens_file_is_read_again(
    store: Store,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    stack: AsyncExitStack,
    update_tokens: Callable[[Api], None],
) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"client web {TOKENS['client']}\n")
    api = await stack.enter_async_context(open_api(store.registry(), tokens_file=file))
    update_tokens(api)

    async def status(secret: str) -> int:
        return (await api.http.post("/list_models", headers=bearer(secret))).status_code

    assert [await status(TOKENS["client"]), await status(TOKENS["admin"])] == [200, 401]
    replaced = tmp_path / "new"
    replaced.write_text(f"client web {TOKENS['client']}x\nadmin ops {TOKENS['admin']}\n")
    replaced.replace(file)
    await wait_until(lambda: api.replica.access.token_named("ops"), "the new file is read")
    assert [await status(TOKENS["client"]), await status(TOKENS["admin"])] == [401, 200]
    before = file.stat()
    file.write_text(f"client web {TOKENS['client']}y\nadmin ops {TOKENS['admin']}\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `rsync --inplace --times` writes it

    async def is_read() -> bool:
        return await status(f"{TOKENS['client']}y") == 200

    await wait_until(is_read, "the file is read, although its time has not changed")
    assert await status(f"{TOKENS['client']}x") == 401
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        file.write_text(f"root ops {TOKENS['client']}\n")
        await wait_until(lambda: caplog.messages, "the wrong file is logged")
        assert await status(TOKENS["admin"]) == 200, "the tokens stay as they were"
    assert len(caplog.messages) == 1
    assert TOKENS["client"] not in caplog.text
