"""Registrations that would make the controller contact other services of its network.

CVE-2024-10044 (FastChat) fetched any URL that was registered. CVE-2026-44284 (FastGPT) checked an address when it was
registered, and not when it was used. A connection to another machine also fails these tests: see
tests/support/network.py.
"""

import asyncio
import socket
import threading
from typing import Any

import httpx
import pytest

from controller.domain.errors import WorkerNotAllowed, WorkerUnreachable
from controller.domain.worker import Worker
from controller.tasks import end
from controller.upstream.client import WorkerClient
from tests.conftest import Store
from tests.security.conftest import NameServer, OpenApi
from tests.support.invariants import whole_state
from tests.support.samples import worker
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, answers, bad_worker, chunks, status
from tests.web.conftest import Api

METADATA = "http://169.254.169.254"
REQUESTS = ("/worker_generate_stream", "/worker_generate", "/count_token", "/v1/chat/completions")


def healthy(*models: str) -> Any:
    """Return a worker that serves all kinds of requests."""
    return bad_worker(
        worker_get_status=status(*models),
        worker_generate_stream=chunks(b"a\0"),
        worker_generate=answers(b"{}"),
        count_token=answers(b"{}"),
        completions=answers(b"{}"),
    )


def named(worker: BadWorker, host: str) -> str:
    return worker.address.replace("127.0.0.1", host)


async def register(api: Api, name: str, with_status: bool = True) -> tuple[int, str, str]:
    """Register a worker. Return the status, the error code and the message."""
    body: dict[str, object] = {"worker_name": name, "check_heart_beat": True}
    if with_status:
        body["worker_status"] = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    response = await api.post("/register_worker", body)
    error = (response.json() or {}).get("error", {})
    return response.status_code, error.get("code", ""), error.get("message", "")


async def known(api: Api, name: str) -> Worker:
    workers = (await api.registry.list_workers()).workers
    [found] = [worker for worker in workers if worker.name == name]
    return found


@pytest.mark.parametrize("with_status", [True, False])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (METADATA, "is a link-local address"),
        ("http://169.254.1.1:21002/latest/meta-data", "is a link-local address"),
        ("https://[fe80::1]:21002", "is a link-local address"),
        ("http://[::ffff:169.254.169.254]", "is a link-local address"),
        ("http://[64:ff9b::a9fe:a9fe]", "is a link-local address"),
        ("http://[fd00:ec2::254]", "is the address of a cloud metadata service"),
        ("http://100.100.100.200", "is the address of a cloud metadata service"),
        ("http://0.0.0.0:6379", "is unspecified"),
        ("http://[::]:6379", "is unspecified"),
        ("http://255.255.255.255", "is unspecified"),
        ("http://metadata.attack", "metadata.attack has the address 169.254.169.254:80, which is a link-local"),
        ("http://hidden.attack", "hidden.attack has the address 169.254.169.254:80, which is a link-local"),
        ("http://any.attack:6379", "any.attack has the address 0.0.0.0:6379, which is unspecified"),
    ],
)
async def test_registration_of_a_refused_address_is_a_400_and_changes_nothing(
    store: Store, open_guarded: OpenApi, names: NameServer, name: str, reason: str, with_status: bool
) -> None:
    names.answers = {
        "metadata.attack": [["169.254.169.254"]],
        "hidden.attack": [["127.0.0.1", "169.254.169.254"]],
        "any.attack": [["0.0.0.0"]],
    }
    async with open_guarded() as api:
        before = await whole_state(store.client, store.namespace)
        code, error, message = await register(api, name, with_status)
        assert (code, error) == (400, "worker_not_allowed")
        assert reason in message
        assert message.endswith(".")
        assert await whole_state(store.client, store.namespace) == before


async def test_worker_allow_decides_which_workers_register(open_guarded: OpenApi, names: NameServer) -> None:
    names.answers = {
        "a.gpu.internal": [["127.0.0.9"]],
        "b.other.internal": [["127.0.0.1"]],
        "c.other.internal": [["127.0.0.2"]],
    }
    async with open_guarded(worker_allow="*.gpu.internal,127.0.0.1:21000-21999,169.254.1.5") as api:
        for name, allowed in (
            ("http://a.gpu.internal:5", True),
            ("http://127.0.0.1:21002", True),
            ("http://b.other.internal:21002", True),
            ("http://169.254.1.5:7", True),
            ("http://127.0.0.1:22000", False),
            ("http://127.0.0.2:21002", False),
            ("http://c.other.internal:21002", False),
            ("http://169.254.1.6:7", False),
        ):
            code, error, _ = await register(api, name)
            assert (code, error) == ((200, "") if allowed else (400, "worker_not_allowed")), name


async def test_name_without_an_address_registers_only_if_no_rule_needs_the_address(
    open_guarded: OpenApi, names: NameServer
) -> None:
    """With --worker-allow, clients could resolve the name to an address that the controller has never checked."""
    async with open_guarded() as api:
        assert (await register(api, "http://unknown.attack:1"))[0] == 200
    async with open_guarded(worker_allow="127.0.0.0/8,*.gpu.internal") as api:
        assert (await register(api, "http://unknown.gpu.internal:1"))[0] == 200
        code, error, message = await register(api, "http://unknown.attack:1")
        assert (code, error) == (502, "worker_unreachable")
        assert "was not found, so it cannot be compared with --worker-allow" in message


async def test_lookup_at_a_registration_has_the_connect_timeout(
    open_guarded: OpenApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> None:
        released.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        async with open_guarded(worker_timeout=0.1) as api, asyncio.timeout(30):  # the connect timeout is 0.1 s, too
            assert (await register(api, "http://slow.attack:1"))[0] == 200
    finally:
        released.set()


async def test_heartbeats_and_dispatches_look_up_no_name(open_guarded: OpenApi, names: NameServer) -> None:
    names.answers = {"a.gpu.internal": [["127.0.0.1"]]}
    async with open_guarded() as api:
        assert (await register(api, "http://a.gpu.internal:1"))[0] == 200
        assert names.lookups == ["a.gpu.internal"]
        heartbeat = {"worker_name": "http://a.gpu.internal:1", "queue_length": 1}
        assert (await api.post("/receive_heart_beat", heartbeat)).json() == {"exist": True}
        assert await api.dispatch() == "http://a.gpu.internal:1"
        assert names.lookups == ["a.gpu.internal"]


def is_failure(response: httpx.Response) -> bool:
    """Return True if the response says in FastChat's or in OpenAI's form that the worker cannot be used."""
    return b"50006" in response.content or (response.status_code == 502 and b"worker_not_allowed" in response.content)


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize("name", [METADATA, "http://metadata.attack", "http://0.0.0.0:1", "http://127.0.0.1:1/x"])
async def test_older_registration_is_refused_at_the_connection(
    open_guarded: OpenApi, names: NameServer, caplog: pytest.LogCaptureFixture, name: str, path: str
) -> None:
    """A registration may be older than the rule, restored from a snapshot, or made by a replica with another rule."""
    names.answers = {"metadata.attack": [["169.254.169.254"]]}
    allow = "127.0.0.1:20000-65535" if name.startswith("http://127") else None
    async with open_guarded(worker_allow=allow) as api:
        await api.registry.register(worker(name))
        for _ in range(2):
            response = await api.post(path, {"model": "m"})
            assert is_failure(response)
        assert (await known(api, name)).failing == "request"
        assert (await known(api, name)).leased == 0
        assert len([message for message in caplog.messages if message.startswith("Refused to connect")]) == 1
        # The registry holds another worker of the model, so the request goes there.
        async with healthy("m") as other:
            await api.registry.register(worker(other.address))
            response = await api.post(path, {"model": "m"})
            assert (response.status_code, is_failure(response)) == (200, False)
            assert len(other.requests) == 1


async def test_refused_worker_is_deprioritised_by_a_poll(open_guarded: OpenApi) -> None:
    """A worker that is unreachable and has never answered a poll stays: its clients may be able to reach it."""
    async with open_guarded(poll_interval=0.1, snapshot_interval=0.05) as api:
        await api.registry.register(worker(METADATA))
        await api.registry.register(worker("http://127.0.0.1:1"))
        replica = api.replica
        runs = (replica.snapshots.run, replica.replicas.run, replica.poller.run)
        loops = [asyncio.create_task(run()) for run in runs]
        try:
            await wait_until(lambda: failing(api, METADATA), "the worker is deprioritised")
            await wait_until(lambda: api.replica.poller._unreachable, "the other worker has failed its polls")
        finally:
            await end(loops)
        assert not await failing(api, "http://127.0.0.1:1")


async def failing(api: Api, name: str) -> bool:
    return (await known(api, name)).failing == "request"


async def test_refresh_does_not_contact_a_refused_worker(
    open_guarded: OpenApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.fleet.refresh._PROBE_PAUSE", 0.0)
    async with open_guarded() as api, healthy("m") as other:
        await api.registry.register(worker(METADATA))
        await api.registry.register(worker(other.address))
        assert (await api.post("/refresh_all_workers")).status_code == 200
        assert [known.name for known in (await api.registry.list_workers()).workers] == [other.address]


async def rebinding(api: Api, names: NameServer, name: str) -> WorkerClient:
    """Register a worker whose host name gets the address of another service afterwards. Return the client."""
    names.answers = {"rebind.attack": [["127.0.0.1"], ["169.254.169.254"]]}
    assert (await register(api, name))[0] == 200
    assert names.lookups == ["rebind.attack"]
    return api.replica.workers


def drop_names(client: WorkerClient) -> None:
    """Do what happens after some seconds: aiohttp looks a name up again."""
    for connector in (client._session._kept, client._session._fresh):
        connector.clear_dns_cache()


@pytest.mark.parametrize("path", REQUESTS)
async def test_rebound_name_is_refused_when_a_request_is_forwarded(
    open_guarded: OpenApi, names: NameServer, path: str
) -> None:
    async with open_guarded() as api, healthy("m") as target:
        name = named(target, "rebind.attack")
        client = await rebinding(api, names, name)
        drop_names(client)
        response = await api.post(path, {"model": "m"})
        assert is_failure(response)
        assert len(names.lookups) == 2
        assert target.requests == []
        assert (await known(api, name)).failing == "request"


async def test_rebound_name_is_refused_when_the_worker_is_probed(open_guarded: OpenApi, names: NameServer) -> None:
    async with open_guarded() as api, healthy("m") as target:
        name = named(target, "rebind.attack")
        client = await rebinding(api, names, name)
        assert (await client.status(name)).model_names == ("m",)
        assert names.lookups == ["rebind.attack"], "the connection used the address that was checked"
        assert b"host: rebind.attack:" in target.heads[0].lower()
        drop_names(client)
        with pytest.raises(WorkerNotAllowed, match=r"rebind\.attack has the address 169\.254\.169\.254:\d+, which is"):
            await client.status(name)
        with pytest.raises(WorkerUnreachable):
            await client.post(name, "/worker_generate_stream", b"{}")
        assert len(target.requests) == 1


async def test_connection_uses_an_address_that_was_checked(names: NameServer) -> None:
    """One look-up gives the addresses that are checked, and the connection goes to one of them."""
    names.answers = {"twice.attack": [["127.0.0.1"], ["169.254.169.254"]]}
    client = WorkerClient(60.0, 60.0)
    async with healthy("m") as target:
        statuses = [client.status(named(target, "twice.attack")) for _ in range(8)]
        assert [status.model_names for status in await asyncio.gather(*statuses)] == [("m",)] * 8
    assert names.lookups == ["twice.attack"]
    await client.close()


async def test_ipv6_link_local_address_beside_another_is_not_connected_to(names: NameServer) -> None:
    names.answers = {"both.attack": [["fe80::1", "127.0.0.1"]]}
    client = WorkerClient(60.0, 60.0)
    async with healthy("m") as target:
        assert (await client.status(named(target, "both.attack"))).model_names == ("m",)
    await client.close()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirect_of_a_worker_is_not_followed(
    open_guarded: OpenApi, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.fleet.refresh._PROBE_PAUSE", 0.0)
    async with healthy("m") as target:
        redirect = answers(b"{}", f"{code} Elsewhere", f"Location: {target.address}/worker_get_status")
        paths = {path.rpartition("/")[2]: redirect for path in REQUESTS}
        async with open_guarded() as api, bad_worker(worker_get_status=redirect, **paths) as attacker:
            assert (await register(api, attacker.address, with_status=False))[:2] == (502, "worker_unreachable")
            assert (await register(api, attacker.address))[0] == 200
            with pytest.raises(WorkerUnreachable, match=f"returned status {code} instead of 200"):
                await api.replica.workers.status(attacker.address)
            for path in REQUESTS:
                await api.post(path, {"model": "m"})
            await api.post("/refresh_all_workers")
            asked = [path for path, _ in attacker.requests]
            assert sorted(set(asked)) == sorted({"worker_get_status", *paths})
        assert target.requests == []


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirect_of_a_parent_is_not_followed(open_guarded: OpenApi, code: int) -> None:
    async with bad_worker(register_worker=answers(b"null"), receive_heart_beat=answers(b'{"exist":true}')) as target:
        redirect = answers(b"", f"{code} Elsewhere", f"Location: {target.address}/receive_heart_beat")
        async with (
            bad_worker(register_worker=redirect, receive_heart_beat=redirect) as parent,
            open_guarded(
                parent=parent.address.replace("//", "//region:t0ken@"),
                advertise="http://127.0.0.1:1",
                parent_interval=0.2,
                snapshot_interval=0.05,
            ) as api,
        ):
            loops = [asyncio.create_task(run()) for run in (api.replica.snapshots.run, api.replica.parents.run)]
            try:
                await wait_until(lambda: len(parent.requests) > 1, "the parent was asked")
            finally:
                await end(loops)
        assert target.requests == []


async def test_refusal_is_logged_once_for_all_uses(open_guarded: OpenApi, caplog: pytest.LogCaptureFixture) -> None:
    async with open_guarded() as api:
        for _ in range(3):
            with pytest.raises(WorkerNotAllowed):
                await api.replica.workers.status(METADATA)
            with pytest.raises(WorkerNotAllowed):
                await api.replica.workers.post(METADATA, "/worker_generate", b"{}")
    [message] = caplog.messages
    assert message.startswith("Refused to connect to a worker: 169.254.169.254:80 is a link-local address")
