"""The protection of tests/support/network.py: a test fails if one of our clients connects to another machine."""

import socket
from collections.abc import AsyncIterator

import pytest

from controller.domain.errors import WorkerUnreachable
from controller.upstream.client import WorkerClient
from tests.support import network
from tests.support.workers import bad_worker, status


@pytest.fixture
async def client() -> AsyncIterator[WorkerClient]:
    opened = WorkerClient(probe_timeout=60.0, worker_timeout=60.0)
    yield opened
    await opened.close()


@pytest.mark.parametrize("name", ["http://192.0.2.1:1", "http://[2001:db8::1]:1", "http://gpu-7.example.com"])
async def test_worker_on_another_machine_is_not_contacted(client: WorkerClient, name: str) -> None:
    with pytest.raises(AssertionError, match="not on this machine"):
        await client.status(name)
    assert network.outside
    network.outside.clear()
    with pytest.raises(AssertionError, match="not on this machine"):
        network.check_worker(name)


@pytest.mark.parametrize("name", ["http://127.1.2.3:1", "http://localhost:1", "http://worker.invalid:1"])
async def test_worker_that_does_not_exist_is_unreachable(client: WorkerClient, name: str) -> None:
    network.check_worker(name)
    with pytest.raises(WorkerUnreachable):
        await client.status(name)


async def test_worker_on_this_machine_is_contacted(client: WorkerClient) -> None:
    async with bad_worker(worker_get_status=status("m")) as worker:
        assert (await client.status(worker.address)).model_names == ("m",)


def test_name_under_invalid_does_not_resolve() -> None:
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("worker.invalid", 80)
