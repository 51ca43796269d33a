"""Certificates that are replaced while the server runs."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trustme

from controller.server.certificate import Certificate

FetchCertificate = Callable[[], Awaitable[str]]


class Pair:
    """A certificate file and its key file."""

    def __init__(self, directory: Path) -> None:
        self.certfile, self.keyfile = directory / "certificate.pem", directory / "key.pem"

    def issue(self, name: str) -> str:
        """Write a new certificate for a name, and its key. Return the certificate."""
        issued = trustme.CA().issue_cert(name)
        self.keyfile.write_bytes(issued.private_key_pem.bytes())
        return self.write_certificate(issued)

    def write_certificate(self, issued: trustme.LeafCert) -> str:
        self.certfile.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return issued.cert_chain_pems[0].bytes().decode()


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


@contextlib.asynccontextmanager
async def serving(certificate: Certificate) -> AsyncIterator[FetchCertificate]:
    """Serve with the certificate. Yield a function that connects and returns the certificate of the server."""

    def make() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate._files)
        return context

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0, ssl=certificate.context(None, make))
    address = server.sockets[0].getsockname()

    async def fetch_certificate() -> str:
        return (await asyncio.to_thread(ssl.get_server_certificate, address)).strip() + "\n"

    async with server:
        yield fetch_certificate


async def test_new_connections_get_the_new_certificate(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    old = pair.issue("old.test")
    certificate = Certificate(pair.certfile, pair.keyfile)
    async with serving(certificate) as fetch_certificate:
        assert await fetch_certificate() == old
        new = pair.issue("new.test")
        with caplog.at_level("INFO"):
            certificate.reload()
            certificate.reload()
        assert await fetch_certificate() == new
    [line] = caplog.messages
    assert line.startswith("Certificate reloaded, valid until ")
    assert line.endswith(" GMT.")


async def test_certificate_without_its_key_is_not_used(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    old = pair.issue("old.test")
    certificate = Certificate(pair.certfile, pair.keyfile)
    async with serving(certificate) as fetch_certificate:
        issued = trustme.CA().issue_cert("new.test")
        new = pair.write_certificate(issued)
        certificate.reload()
        certificate.reload()
        assert await fetch_certificate() == old
        assert [record.levelname for record in caplog.records] == ["WARNING"], "it is logged once"
        assert "The old certificate stays in use" in caplog.text
        pair.keyfile.write_bytes(issued.private_key_pem.bytes())
        certificate.reload()
        assert await fetch_certificate() == new


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
async def test_missing_or_invalid_key_file_is_not_used(pair: Pair, content: bytes | None) -> None:
    old = pair.issue("old.test")
    certificate = Certificate(pair.certfile, pair.keyfile)
    async with serving(certificate) as fetch_certificate:
        if content is None:
            pair.keyfile.unlink()
        else:
            pair.keyfile.write_bytes(content)
        certificate.reload()
        assert await fetch_certificate() == old
        new = pair.issue("new.test")
        certificate.reload()
        assert await fetch_certificate() == new


async def test_replaced_symbolic_link_is_followed(tmp_path: Path) -> None:
    """Kubernetes replaces the files of a mounted secret in this way."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    old, new = Pair(tmp_path / "one").issue("old.test"), Pair(tmp_path / "two").issue("new.test")
    link = tmp_path / "data"
    link.symlink_to("one")
    certificate = Certificate(link / "certificate.pem", link / "key.pem")
    async with serving(certificate) as fetch_certificate:
        assert await fetch_certificate() == old
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").rename(link)
        certificate.reload()
        assert await fetch_certificate() == new


async def test_replica_that_starts_between_the_two_writes_waits_for_the_key(pair: Pair) -> None:
    pair.issue("old.test")
    issued = trustme.CA().issue_cert("new.test")
    new = pair.write_certificate(issued)
    certificate = Certificate(pair.certfile, pair.keyfile)
    attempts = 0
    load = certificate._load

    def load_and_complete() -> ssl.SSLContext:
        nonlocal attempts
        attempts += 1
        if attempts == 2:
            pair.keyfile.write_bytes(issued.private_key_pem.bytes())
        return load()

    certificate._load = load_and_complete  # type: ignore[method-assign]
    async with serving(certificate) as fetch_certificate:
        assert await fetch_certificate() == new
    assert attempts == 2
