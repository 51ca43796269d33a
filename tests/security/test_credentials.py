"""Our credentials for workers and parents reach only those that they are for, and appear nowhere else."""

import asyncio
import contextlib
import json
import os
from base64 import b64decode
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.store.connection import connect
from controller.tasks import end
from tests.security.conftest import OpenApi
from tests.support.samples import worker
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, answers, bad_worker, chunks, status
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess

TOKEN, OTHER = "s3cret-for-a", "s3cret-for-others"
REQUESTS = ("/worker_generate_stream", "/worker_generate", "/count_token", "/v1/rerank")


def engine() -> Any:
    return bad_worker(
        worker_get_status=status("m"),
        worker_generate_stream=chunks(b"a\0"),
        worker_generate=answers(b"{}"),
        count_token=answers(b"{}"),
        rerank=answers(b"{}"),
    )


def authorization(server: BadWorker) -> list[str]:
    """Return the Authorization header of each request, "" if it had none."""
    return [
        next(
            (line[15:] for line in head.decode("latin-1").split("\r\n") if line.lower().startswith("authorization: ")),
            "",
        )
        for head in server.heads
    ]


async def test_token_is_sent_to_its_worker_with_each_kind_of_request(
    open_guarded: OpenApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine() as known, engine() as stranger:
        path = tmp_path / "tokens"
        path.write_text(f"{known.address} {TOKEN}\n")
        settings = {"poll_interval": 0.05, "snapshot_interval": 0.05, "upstream_tokens_file": path}
        async with open_guarded(**settings) as api:
            for server in (known, stranger):
                body = {"worker_name": server.address, "check_heart_beat": False}  # without a status, so it is probed
                assert (await api.post("/register_worker", body)).status_code == 200
                assert len(server.requests) == 1
            await api.post("/refresh_all_workers")
            replica = api.replica
            loops = (replica.snapshots.run, replica.replicas.run, replica.poller.run)
            polls = [asyncio.create_task(run()) for run in loops]
            try:
                await wait_until(lambda: min(len(known.heads), len(stranger.heads)) > 3, "both workers are polled")
            finally:
                await end(polls)
            for path_of_request in REQUESTS:
                for server in (known, stranger):
                    await api.registry.drain(server.address, True)
                    response = await api.post(path_of_request, {"model": "m"})
                    assert response.status_code == 200
                    await api.registry.drain(server.address, False)
            for server in (known, stranger):
                assert {name for name, _ in server.requests} == {"worker_get_status"} | {
                    name.rpartition("/")[2] for name in REQUESTS
                }
            assert set(authorization(known)) == {f"Bearer {TOKEN}"}
            assert set(authorization(stranger)) == {""}


@pytest.mark.parametrize("first_has_token", [True, False])
async def test_retried_request_has_the_token_of_its_new_worker(
    open_guarded: OpenApi, tmp_path: Path, first_has_token: bool
) -> None:
    async with bad_worker(rerank=answers(b"no", "503 Busy")) as busy, engine() as free:
        path = tmp_path / "tokens"
        path.write_text(f"{(busy if first_has_token else free).address} {TOKEN}\n")
        async with open_guarded(upstream_tokens_file=path) as api:
            await api.registry.register(worker(busy.address))
            await api.registry.register(worker(free.address, queue_length=5))
            response = await api.post("/v1/rerank", {"model": "m"})
            assert response.status_code == 200
            assert authorization(busy) == [f"Bearer {TOKEN}" if first_has_token else ""]
            assert authorization(free) == ["" if first_has_token else f"Bearer {TOKEN}"]


async def test_token_of_a_client_does_not_replace_ours(open_guarded: OpenApi, tmp_path: Path) -> None:
    async with engine() as known:
        path = tmp_path / "tokens"
        path.write_text(f"127.0.0.1 {TOKEN}\n")
        async with open_guarded(upstream_tokens_file=path) as api:
            await api.registry.register(worker(known.address))
            headers = {"Authorization": "Bearer of-the-client"}
            assert (await api.http.post("/v1/rerank", json={"model": "m"}, headers=headers)).status_code == 200
            assert authorization(known) == [f"Bearer {TOKEN}"]


async def test_redirecting_worker_gets_the_token_for_no_other_place(open_guarded: OpenApi, tmp_path: Path) -> None:
    async with engine() as target:
        redirect = answers(b"{}", "307 Elsewhere", f"Location: {target.address}/v1/rerank")
        async with bad_worker(worker_generate=redirect, rerank=redirect) as known:
            path = tmp_path / "tokens"
            path.write_text(f"{known.address} {TOKEN}\n")
            async with open_guarded(upstream_tokens_file=path) as api:
                await api.registry.register(worker(known.address))
                for route, passed_on in (("/worker_generate", 307), ("/v1/rerank", 502)):
                    response = await api.post(route, {"model": "m"})
                    assert response.status_code == passed_on
                    assert TOKEN not in str(response.headers) + response.text
        assert target.requests == []


@pytest.mark.system
@pytest.mark.smoke
async def test_changed_tokens_are_used_without_a_restart_and_never_logged(serve: Serve, work_dir: Path) -> None:
    path = work_dir / "tokens"
    path.write_text(f"127.0.0.1 {OTHER}\n")
    controller = serve("--poll-interval", "0.1", "--log-level", "debug", "--upstream-tokens-file", str(path))
    async with engine() as known:
        controller.register(known.address)
        await wait_until(lambda: f"Bearer {OTHER}" in authorization(known), "the token is sent")
        async with httpx.AsyncClient(timeout=60.0) as http:
            for path_of_request in (*REQUESTS, "/refresh_all_workers"):
                response = await http.post(controller.url + path_of_request, json={"model": "m"})
                assert response.status_code == 200
        assert set(authorization(known)) == {f"Bearer {OTHER}"}
        new = work_dir / "new"
        new.write_text(f"# changed\n{known.address} {TOKEN}\n")
        os.replace(new, path)  # noqa: PTH105 - as a mounted Secret is replaced
        await wait_until(lambda: authorization(known)[-1] == f"Bearer {TOKEN}", "the new token is sent")
        path.write_text(f"{known.address} {TOKEN} and more\n")
        await wait_until(lambda: "stay in use" in controller.log, "the invalid file is reported")
        sent = len(known.heads)
        await wait_until(lambda: len(known.heads) > sent + 2, "polls continue")
        assert authorization(known)[-1] == f"Bearer {TOKEN}"
    await wait_until(lambda: "failed 2 status polls" in controller.log, "the missing worker is reported")
    assert_nowhere(controller, TOKEN, OTHER)


def assert_nowhere(controller: ControllerProcess, *secrets: str) -> None:
    """Assert that the log and the lists of a controller have none of the secrets."""
    listed = str([controller.workers(), controller.post("/list_models"), controller.post("/worker_get_status")])
    for secret in secrets:
        assert secret not in controller.log
        assert secret not in listed


@pytest.mark.system
@pytest.mark.parametrize("answer", ["200 OK", "401 Unauthorized", "403 Forbidden", "500 Broken"])
async def test_credentials_of_a_parent_reach_only_the_parent(serve: Serve, answer: str) -> None:
    """A parent that refuses them repeats them in its response, to see them in our log."""
    accepted = answer == "200 OK"
    secret, encoded = "s3cret/or@region", "cmVnaW9uOnMzY3JldC9vckByZWdpb24="
    assert b64decode(encoded).decode() == f"region:{secret}"

    async def refuse(server: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        text = f"bad credentials: Basic {encoded}, {secret}".encode()
        await answers(text, answer)(server, writer, body)

    registered, heartbeat = (answers(b"null"), answers(b'{"exist": true}')) if accepted else (refuse, refuse)
    async with (
        bad_worker(register_worker=registered, receive_heart_beat=heartbeat) as parent,
        bad_worker(register_worker=answers(b"null"), receive_heart_beat=answers(b'{"exist": true}')) as other,
        engine() as below,
    ):
        address = parent.address.replace("//", "//region:s3cret%2For%40region@")
        flags = ("--parent-interval", "4", "--poll-interval", "0.1", "--log-level", "debug")
        controller = serve(
            *flags, CONTROLLER_PARENT=f"{address},{other.address}", CONTROLLER_ADVERTISE="http://127.0.0.1:1"
        )
        controller.register(below.address)
        await wait_until(lambda: len(parent.heads) > 1 and other.heads, "both parents were asked")
        assert set(authorization(parent)) == {f"Basic {encoded}"}
        assert set(authorization(other)) == {""}
        assert set(authorization(below)) == {""}
        host = parent.address.removeprefix("http://")
        assert all(f"host: {host}\r\n".encode() in head.lower() for head in parent.heads)
        async with contextlib.aclosing(connect(controller.store_url, timeout=60.0)) as client:
            stored = [await contents(client, key) for key in await client.keys("*")]
        assert any(parent.address in str(each) for each in stored) or not accepted
        for each in (secret, "s3cret", encoded):
            assert each not in str(stored)
        assert_nowhere(controller, secret, "s3cret", encoded, "s3cret%2For%40region")
        if not accepted:
            code = answer.partition(" ")[0]
            advice = f"returned status {code}: the parent does not accept the token in --parent. Write a token"
            repeated = f"returned status {code} instead of 200: bad credentials: Basic ***, ***"
            messages = [json.loads(line)["message"] for line in controller.log.splitlines() if line.startswith("{")]
            assert sum((repeated if code == "500" else advice) in message for message in messages) == 1


async def contents(client: Any, key: Any) -> object:
    kind = await client.type(key)
    if kind == "string":
        return key, await client.get(key)
    if kind == "hash":
        return key, await client.hgetall(key)
    if kind == "set":
        return key, await client.smembers(key)
    if kind == "stream":
        return key, await client.xrange(key)
    assert kind in ("zset", "none")  # a reply may have expired by now
    return key, await client.zrange(key, 0, -1)


@pytest.mark.system
def test_refused_start_shows_no_credentials(serve: Serve, work_dir: Path) -> None:
    path = work_dir / "tokens"
    path.write_text("127.0.0.1 s3cret one\n")
    for number, variables in enumerate(
        (
            {"CONTROLLER_PARENT": "http://region:s3cret/x@top:1", "CONTROLLER_ADVERTISE": "http://127.0.0.1:1"},
            {"CONTROLLER_PARENT": "http://s3cret@top:1", "CONTROLLER_ADVERTISE": "http://127.0.0.1:1"},
            {"CONTROLLER_PARENT": "http://region:s3cret@top:1"},
            {"CONTROLLER_UPSTREAM_TOKENS_FILE": str(path)},
        )
    ):
        controller = serve(ready=False, data=f"data-{number}", **variables)
        assert controller.popen.wait(120) == 1
        assert len(controller.log.splitlines()) == 1
        assert "s3cret" not in controller.log


@pytest.mark.system
async def test_cluster_registers_at_a_parent_that_requires_a_token(serve: Serve) -> None:
    secret, wrong = "s3cret-of-the-region-0123", "s3cret-of-another-0123456"
    parent = serve(
        data="parent", CONTROLLER_WORKER_TOKENS=f"region={secret}", CONTROLLER_CLIENT_TOKENS="c=client-0123456789"
    )
    address = parent.url.replace("//", "//region:{}@")
    async with engine() as below:

        def join(name: str, token: str) -> ControllerProcess:
            flags = ("--parent-interval", "4", "--poll-interval", "0", "--advertise", f"http://127.0.0.1:1/{name}")
            child = serve(*flags, data=name, CONTROLLER_PARENT=address.format(token))
            child.register(below.address)
            return child

        refused = join("wrong", wrong)
        await wait_until(lambda: "returned status 401" in refused.log, "the refused token is reported")
        assert "does not accept the token in --parent. Write a token" in refused.log
        accepted = join("right", secret)
        await wait_until(lambda: "Registered at parent" in accepted.log, "the cluster is registered")
        assert "worker http://127.0.0.1:1/right: models" in parent.log
        assert "worker http://127.0.0.1:1/wrong: models" not in parent.log
        for process in (parent, refused, accepted):
            assert secret not in process.log
            assert wrong not in process.log
