"""Trusted certificates: a bundle in REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE replaces those of the system."""

import asyncio
import contextlib
import logging
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme

from controller.cli.options import Controller
from controller.cli.workers import fetch_workers
from controller.domain.errors import ControllerUnreachable, ParentUnreachable, WorkerUnreachable
from controller.upstream.client import WorkerClient
from controller.upstream.parent import ParentClient
from controller.upstream.trust import trusted, warn_of_bundle
from tests.support.workers import BadWorker, answers, chunks, status

VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> Path:
    file = tmp_path / "bundle.pem"
    authority.cert_pem.write_to_path(file)
    return file


@pytest.fixture
async def worker(authority: trustme.CA) -> AsyncIterator[BadWorker]:
    """Serve the routes of a worker, a controller and a parent, with a certificate of the test's authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    served = BadWorker(
        worker_get_status=status("m"),
        worker_generate_stream=chunks(b"a\0"),
        receive_heart_beat=answers(b'{"exist":true}'),
        workers=answers(b'{"workers":[]}', "200 OK", "Content-Type: application/json"),
    )
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0, ssl=context)
    served.address = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield served
    server.close()
    for writer in list(served.writers):
        writer.transport.abort()
    await asyncio.sleep(0)


async def trusting_clients(address: str) -> set[str]:
    """Return the kinds of our clients that trust the server."""
    workers, parents = WorkerClient(5.0, 5.0), ParentClient(5.0)
    trusting = set()
    with contextlib.suppress(WorkerUnreachable):
        await workers.status(address)
        trusting.add("status")
    with contextlib.suppress(WorkerUnreachable):
        answer = await workers.post(address, "/worker_generate_stream", b"{}")
        assert [frame async for frame in answer.frames()] == [b"a\0"]
        answer.close()
        trusting.add("request")
    with contextlib.suppress(ParentUnreachable):
        await parents.heartbeat(address, "http://a:1", 0)
        trusting.add("parent")
    with contextlib.suppress(ControllerUnreachable):
        await fetch_workers(Controller(address))
        trusting.add("console")
    await workers.close()
    await parents.close()
    return trusting


ALL = {"status", "request", "parent", "console"}


async def test_certificate_of_an_unknown_authority_is_not_trusted(worker: BadWorker) -> None:
    assert await trusting_clients(worker.address) == set()


async def test_error_says_what_is_wrong_with_tls(worker: BadWorker) -> None:
    client = WorkerClient(5.0, 5.0)
    with pytest.raises(WorkerUnreachable, match="the certificate is not trusted: "):
        await client.status(worker.address)

    async def answer_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer_at_once, "127.0.0.1", 0)
    async with server:
        with pytest.raises(WorkerUnreachable, match="the port does not speak TLS"):
            await client.status(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await client.close()


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
async def test_certificates_in_a_bundle_are_trusted(
    worker: BadWorker, bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, str(bundle))
    assert await trusting_clients(worker.address) == ALL


async def test_requests_ca_bundle_takes_precedence(
    worker: BadWorker, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(bundle))
    assert await trusting_clients(worker.address) == set()
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    assert await trusting_clients(worker.address) == ALL, "SSL_CERT_FILE is trusted as well"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not on PATH")
async def test_certificates_in_a_directory_are_trusted(
    worker: BadWorker, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["openssl", "x509", "-hash", "-noout", "-in", str(bundle)]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    directory = bundle.parent / "trusted"
    directory.mkdir()
    shutil.copy(bundle, directory / f"{name}.0")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(directory))
    assert await trusting_clients(worker.address) == ALL


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, "controller"):
        yield caplog


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_unusable_bundle_is_logged_once(
    log: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "bundle.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    warn_of_bundle()
    [message] = log.messages
    assert f"REQUESTS_CA_BUNDLE names {path}, which cannot be used: " in message
    assert trusted() is True
    assert log.messages == [message]


def test_usable_bundle_is_not_logged(
    log: pytest.LogCaptureFixture, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warn_of_bundle()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    warn_of_bundle()
    assert log.messages == []


def test_bundle_is_read_once_until_it_is_replaced(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    first = trusted()
    assert trusted() is first
    trustme.CA().cert_pem.write_to_path(bundle)
    assert trusted() is not first
