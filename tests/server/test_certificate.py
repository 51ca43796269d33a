"""A certificate that is renewed while it is served."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trustme

from controller.server.certificate import Certificate

Served = Callable[[], Awaitable[str]]


class Pair:
    """A certificate file and its key file."""

    def __init__(self, directory: Path) -> None:
        self.certfile, self.keyfile = directory / "certificate.pem", directory / "key.pem"

    def issue(self, name: str) -> str:
        """Write a certificate for a name and its key; the certificate."""
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
async def serving(certificate: Certificate) -> AsyncIterator[Served]:
    """Serve with the certificate. Yields a call that connects and returns what was presented."""

    def make() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate._files)
        return context

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=certificate.context(None, make))
    address = server.sockets[0].getsockname()

    async def served() -> str:
        return (await asyncio.to_thread(ssl.get_server_certificate, address)).strip() + "\n"

    async with server:
        yield served


async def test_new_connections_get_the_new_certificate(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    old = pair.issue("old.test")
    certificate = Certificate(pair.certfile, pair.keyfile)
    async with serving(certificate) as served:
        assert await served() == old
        new = pair.issue("new.test")
        with caplog.at_level("INFO"):
            certificate.reload()
            certificate.reload()
        assert await served() == new
    [line] = caplog.messages
    assert line.startswith("Certificate reloaded, valid until ")
    assert line.endswith(" GMT.")


async def test_half_of_a_new_pair_changes_nothing(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    old = pair.issue("old.test")
    certificate = Certificate(pair.certfile, pair.keyfile)
    async with serving(certificate) as served:
        issued = trustme.CA().issue_cert("new.test")
        new = pair.write_certificate(issued)
        certificate.reload()
        certificate.reload()
        assert await served() == old
        assert [record.levelname for record in caplog.records] == ["WARNING"], "once"
        assert "The old certificate is served" in caplog.text
        pair.keyfile.write_bytes(issued.private_key_pem.bytes())
        certificate.reload()
        assert await served() == new


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
async def test_a_file_that_is_of_no_use_changes_nothing(pair: Pair, content: bytes | None) -> None:
    old = pair.issue("old.test")
    certificate = Certificate(pair.certfile, pair.keyfile)
    async with serving(certificate) as served:
        if content is None:
            pair.keyfile.unlink()
        else:
            pair.keyfile.write_bytes(content)
        certificate.reload()
        assert await served() == old
        new = pair.issue("new.test")
        certificate.reload()
        assert await served() == new


async def test_a_symbolic_link_on_the_way_is_followed(tmp_path: Path) -> None:
    """As Kubernetes replaces the files of a mounted secret."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    old, new = Pair(tmp_path / "one").issue("old.test"), Pair(tmp_path / "two").issue("new.test")
    link = tmp_path / "data"
    link.symlink_to("one")
    certificate = Certificate(link / "certificate.pem", link / "key.pem")
    async with serving(certificate) as served:
        assert await served() == old
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").rename(link)
        certificate.reload()
        assert await served() == new


async def test_a_replica_that_starts_between_two_files_waits_for_the_second(pair: Pair) -> None:
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
    async with serving(certificate) as served:
        assert await served() == new
    assert attempts == 2
