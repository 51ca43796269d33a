"""GET requests to workers: each ends with the whole response, or with one error of one line."""

import asyncio
import zlib
from pathlib import Path

import pytest

from controller.domain.errors import WorkerUnreachable
from controller.security.upstream_tokens import UpstreamTokens
from controller.upstream import connections
from controller.upstream.client import WorkerClient
from tests.support.engines import Answer, answer_server
from tests.support.workers import (
    Behaviour,
    answers,
    bad_worker,
    chunks,
    compression_bomb,
    hangs,
    keeping_worker,
    plain,
    sends_without_end,
)


@pytest.mark.parametrize("status", [200, 204, 302, 404, 500, 599])
async def test_response_is_returned_whatever_its_status_is(client: WorkerClient, status: int) -> None:
    body = b"" if status == 204 else b"body"
    async with answer_server({"/a": Answer(body, status, ("X-Name: value", "Location: /b"))}) as worker:
        answer = await client.get(worker.address, "/a?b=c,d")
        assert (answer.status, answer.headers["x-name"], answer.body) == (status, "value", body)
        assert worker.requests == ["/a?b=c,d"]
        assert worker.heads[0].startswith(b"GET /a?b=c,d HTTP/1.1\r\n")
        assert b"authorization" not in worker.heads[0].lower()


async def test_key_goes_before_the_token_in_the_file(tmp_path: Path) -> None:
    async with answer_server({}) as worker:
        (tmp_path / "tokens").write_text(f"{worker.address} of-the-file\n")
        client = WorkerClient(60.0, 60.0, tokens=UpstreamTokens(tmp_path / "tokens"))
        for key, sent in (("", b"of-the-file"), ("of-the-engine", b"of-the-engine")):
            await client.get(worker.address, "/", key)
            assert b"Authorization: Bearer " + sent + b"\r\n" in worker.heads[-1]
        await client.close()


async def test_unrequested_compression_is_undone(client: WorkerClient) -> None:
    behaviour = answers(zlib.compress(b"body"), "200 OK", "Content-Encoding: deflate")
    async with bad_worker(a=behaviour) as worker:
        assert (await client.get(worker.address, "/a")).body == b"body"


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (hangs, r"did not respond within 0\.1 s"),
        (sends_without_end, r"returned more than 4194304 bytes"),
        (compression_bomb, r"more than 4194304 bytes"),
        (chunks(b"{", end=False), r"cannot be reached"),
        (answers(b"xx", "200 OK", "Content-Encoding: gzip"), r"cannot be reached: the compressed body is damaged"),
    ],
)
async def test_incomplete_response_is_an_error(behaviour: Behaviour, message: str) -> None:
    client = WorkerClient(probe_timeout=0.1 if behaviour is hangs else 60.0, worker_timeout=60.0)
    async with bad_worker(a=behaviour) as worker:
        with pytest.raises(WorkerUnreachable, match=message) as caught:
            await client.get(worker.address, "/a", "secret")
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
    await client.close()


async def test_request_is_sent_again_if_a_kept_connection_was_just_closed(
    client: WorkerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_RACE_WINDOW", 60.0)

    def behave(_: int, request: int, writer: asyncio.StreamWriter) -> bool:
        if request == 1:
            writer.write(plain(b"body"))
        return request == 1

    async with keeping_worker(behave) as kept:
        for _ in range(2):
            assert (await client.get(kept.address, "/a")).body == b"body"
        assert kept.connections == 2
