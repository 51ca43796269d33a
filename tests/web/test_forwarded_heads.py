"""The part of a worker's response head that reaches the client, over HTTP."""

import gzip
import zlib

import pytest

from controller.domain.hops import HEADER
from controller.upstream.decoding import DecodedBody
from tests.support.workers import bad_worker, plain, sends
from tests.web.conftest import Api

FRAME = b'{"text": "one", "error_code": 0}\0'
HEADERS = (
    b"Content-Type: text/plain",
    b"X-Model-Id: 7",
    b"X-Request-Id: of-the-worker",
    b"Set-Cookie: a=1",
    b"Set-Cookie: b=2",
    b"Retry-After: 3",
    b"Location: /elsewhere",
    b"Connection: close, X-Hop",
    b"X-Hop: 1",
    b"Keep-Alive: timeout=5",
    b"Proxy-Authenticate: Basic",
    b"X-Controller-Degraded: 9",
    b"X-Accel-Redirect: /secret",
    b"X-Accel-Buffering: yes",
)
PASSED = [
    (b"x-request-id", b"of-the-client"),
    (b"location", b"/elsewhere"),
    (b"retry-after", b"3"),
    (b"set-cookie", b"a=1"),
    (b"set-cookie", b"b=2"),
    (b"x-model-id", b"7"),
]

REQUEST_ID = {"X-Request-Id": "of-the-client"}


@pytest.mark.parametrize("path", ["/worker_generate_stream", "/worker_generate", "/v1/rerank"])
async def test_end_to_end_headers_reach_the_client(api: Api, path: str) -> None:
    answers = sends(plain(FRAME, *HEADERS), end="closed")
    async with bad_worker(worker_generate_stream=answers, worker_generate=answers, rerank=answers) as worker:
        await api.register(worker.address)
        response = await api.http.post(path, json={"model": "m"}, headers=REQUEST_ID)
        assert (response.status_code, response.content) == (200, FRAME)
        length = [] if path == "/worker_generate_stream" else [(b"content-length", b"%d" % len(FRAME))]
        ours = [*length, (b"content-type", b"text/plain"), (b"x-accel-buffering", b"no")]
        passed = PASSED
        if path == "/v1/rerank":
            ours.append((b"x-served-model", b"m"))
            passed = [header for header in PASSED if header[0] != b"location"]  # it may have the engine's address
        assert sorted(response.headers.raw) == sorted([*passed, *ours])


@pytest.mark.parametrize("status", [b"307 Moved", b"413 Too large", b"503 Busy"])
async def test_refusal_keeps_its_headers(api: Api, status: bytes) -> None:
    answers = sends(plain(b"no", *HEADERS, status=status), end="closed")
    async with bad_worker(worker_generate=answers, worker_generate_stream=answers) as worker:
        await api.register(worker.address)
        response = await api.http.post("/worker_generate", json={"model": "m"}, headers=REQUEST_ID)
        assert (response.status_code, response.content) == (int(status[:3]), b"no")
        kept = [header for header in response.headers.raw if not header[0].startswith(b"x-accel")]
        assert sorted(kept) == sorted([*PASSED, (b"content-length", b"2"), (b"content-type", b"text/plain")])
        for headers in ({}, {HEADER: "top"}):
            response = await api.http.post(
                "/worker_generate_stream", json={"model": "m"}, headers={**REQUEST_ID, **headers}
            )
            assert b"50006" in response.content
            own = (b"content-length", b"%d" % len(response.content))
            frames = (b"content-type", b"application/octet-stream")
            assert sorted(response.headers.raw) == sorted([*PASSED, own, frames])


@pytest.mark.parametrize("path", ["/worker_generate_stream", "/worker_generate"])
async def test_response_with_an_unknown_coding_is_passed_on_with_its_headers(api: Api, path: str) -> None:
    body = b"\0not\0to be\0read"
    answers = sends(plain(body, b"Content-Encoding: br"), end="closed")
    async with bad_worker(worker_generate=answers, worker_generate_stream=answers) as worker:
        await api.register(worker.address)
        async with api.http.stream("POST", path, json={"model": "m"}) as response:
            received = b"".join([part async for part in response.aiter_raw()])
        assert received == body
        assert response.headers["content-encoding"] == "br"
        assert response.headers["content-length"] == str(len(body))


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


COMPRESSED = {
    "gzip": gzip.compress(FRAME * 10_000),
    "x-gzip": gzip.compress(FRAME) + gzip.compress(FRAME * 9_999),  # two members
    "GZIP": gzip.compress(FRAME * 10_000, compresslevel=0),
    "deflate": zlib.compress(FRAME * 10_000),
    "deflate ": raw_deflate(FRAME * 10_000),
}


@pytest.mark.parametrize("coding", COMPRESSED)
@pytest.mark.parametrize("path", ["/worker_generate_stream", "/worker_generate"])
async def test_compressed_response_is_decompressed(api: Api, path: str, coding: str) -> None:
    """The request to the worker did not allow compression, so the client may be unable to decompress."""
    answers = sends(plain(COMPRESSED[coding], b"Content-Encoding: " + coding.encode(), b"ETag: x"), end="closed")
    async with bad_worker(worker_generate=answers, worker_generate_stream=answers) as worker:
        await api.register(worker.address)
        response = await api.http.post(path, json={"model": "m"}, headers={"Accept-Encoding": "identity"})
        assert response.content == FRAME * 10_000
        assert not {"content-encoding", "content-length", "etag"} & response.headers.keys()


@pytest.mark.parametrize("damage", ["cut off", "garbage"])
async def test_damaged_compressed_stream_ends_with_an_error_frame(api: Api, damage: str) -> None:
    body = gzip.compress(FRAME * 10_000, compresslevel=0)
    body = body[:200_000] if damage == "cut off" else body[:200_000] + b"?" * 200_000
    answers = sends(plain(body, b"Content-Encoding: gzip"), end="closed")
    async with bad_worker(worker_generate_stream=answers) as worker:
        await api.register(worker.address)
        response = await api.post("/worker_generate_stream", {"model": "m"})
        whole, _, error = response.content[:-1].rpartition(b"\0")
        assert b"50006" in error
        assert whole + b"\0" == FRAME * (len(whole) // len(FRAME) + 1), "whole frames"
        assert len(whole) > 100_000


async def test_a_small_body_that_unfolds_to_much_is_passed_on_in_small_pieces() -> None:
    body = gzip.compress(b"x" * 50_000_000)
    parts = iter([body, b""])

    async def read() -> bytes:
        return next(parts)

    decoded = DecodedBody(b"gzip", read, 1_000)
    assert {len(await decoded.read()) for _ in range(1_000)} == {1_000}


async def test_compressed_status_is_read(api: Api) -> None:
    status = gzip.compress(b'{"model_names": ["m"], "speed": 1, "queue_length": 0}')
    async with bad_worker(worker_get_status=sends(plain(status, b"Content-Encoding: gzip"), end="closed")) as worker:
        response = await api.post("/register_worker", {"worker_name": worker.address, "check_heart_beat": True})
        assert response.status_code == 200
        assert (await api.post("/list_models", {})).json() == {"models": ["m"]}


async def test_truncated_compressed_refusal_is_passed_on_without_its_body(api: Api) -> None:
    answers = sends(plain(b"x" * 100_000, b"Content-Encoding: br", status=b"500 Oops"), end="closed")
    async with bad_worker(worker_generate=answers) as worker:
        await api.register(worker.address)
        response = await api.post("/worker_generate", {"model": "m"})
        assert (response.status_code, response.content) == (500, b"")
        assert "content-encoding" not in response.headers


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_response_without_a_body_is_passed_on(api: Api, status: bytes) -> None:
    answers = sends(b"HTTP/1.1 %s\r\nETag: x\r\n\r\n" % status, end="open")
    async with bad_worker(worker_generate=answers) as worker:
        await api.register(worker.address)
        response = await api.post("/worker_generate", {"model": "m"})
        assert (response.status_code, response.content) == (int(status[:3]), b"")
        ours = (b"x-request-id", response.headers["x-request-id"].encode())
        assert response.headers.raw == [(b"etag", b"x"), (b"x-accel-buffering", b"no"), ours]


LARGE_HEADS = {
    "a header of 10 kB": [b"X-Policy: " + b"x" * 10_000],
    "a header of 60 kB": [b"X-Policy: " + b"x" * 60_000],
    "500 headers": [b"X-%d: 1" % i for i in range(500)],
}


@pytest.mark.parametrize("case", LARGE_HEADS)
async def test_large_head_of_a_worker_is_accepted_and_shortened(api: Api, case: str) -> None:
    answers = sends(plain(FRAME, *LARGE_HEADS[case]), end="closed")
    async with bad_worker(worker_generate_stream=answers, worker_get_status=answers) as worker:
        await api.register(worker.address)
        response = await api.post("/worker_generate_stream", {"model": "m"})
        assert response.content == FRAME
        assert len(response.headers.raw) < 100
