"""Verdicts on error responses, with the bodies that engines send."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.upstream.engines.verdicts import Verdict, is_openai_error, judge, may_be_retried


def openai(message: str, kind: str = "InternalServerError", code: object = 500) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def flat(message: str, kind: str = "InternalServerError", code: object = 500) -> bytes:
    return json.dumps({"object": "error", "message": message, "type": kind, "param": None, "code": code}).encode()


TOO_LONG = "This model's maximum context length is 512 tokens. However, you requested 600 tokens (500 in the messages)."
INVALID = {
    "vllm": openai(TOO_LONG),
    "vllm, older": flat(TOO_LONG),
    "vllm, prompt": openai("The decoder prompt (length 600) is longer than the maximum model length of 512."),
    "vllm, nested code": openai("Unknown.", "InternalServerError", 400),
    "vllm, type": openai("No.", "BadRequestError"),
    "vllm, validation": openai("1 validation error for ChatCompletionRequest"),
    "sglang": flat("Input length (600 tokens) exceeds the maximum allowed length (512 tokens)."),
    "sglang, requested": flat("Requested token count exceeds the model's maximum context length of 512 tokens."),
    "llama.cpp": openai(
        "the request exceeds the available context size, try increasing it", "exceed_context_size_error"
    ),
    "llama.cpp, json": openai("[json.exception.parse_error.101] parse error at line 1", "server_error"),
    "llama.cpp, template": openai("Failed to parse messages: Missing 'content'", "server_error"),
    "tgi": b'{"error":"Input validation error: `inputs` must have less than 512 tokens","error_type":"validation"}',
    "ollama": b'{"error":"invalid request: unexpected EOF"}',
    "fastapi": b'{"detail":[{"type":"missing","msg":"Field required"}],"code":422}',
    "text": b"prompt is too long",
}
FAULTS = {
    "vllm": openai("EngineCore encountered an issue. See stack trace (above) for the root cause."),
    "sglang": flat("Internal Server Error"),
    "llama.cpp": openai("failed to decode the batch", "server_error"),
    "starlette": b"Internal Server Error",
    "html": b"<html><body>Bad gateway</body></html>",
    "other json": b"[1, 2]",
    "null": b"null",
    "nothing": b"",
    "bytes": b"\xff\x00",
    "cuda": openai("CUDA out of memory. Tried to allocate 2.00 GiB."),
}


@pytest.mark.parametrize("engine", INVALID)
def test_500_about_the_request_is_no_fault_of_the_engine(engine: str) -> None:
    assert judge(500, (), INVALID[engine]) is Verdict.REQUEST
    assert judge(502, (), INVALID[engine]) is Verdict.FAULT


@pytest.mark.parametrize("engine", FAULTS)
@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
def test_other_5xx_is_a_fault_of_the_engine(engine: str, status: int) -> None:
    assert judge(status, (), FAULTS[engine]) is Verdict.FAULT


@pytest.mark.parametrize("status", [400, 401, 404, 405, 408, 413, 422, 499, 501])
def test_4xx_and_a_missing_function_are_about_the_request(status: int) -> None:
    assert judge(status, ((b"retry-after", b"1"),), b"busy") is Verdict.REQUEST
    assert not may_be_retried(status)


def test_engine_without_room_is_busy() -> None:
    assert judge(429, (), b'{"error":"Model is overloaded","error_type":"overloaded"}') is Verdict.BUSY
    assert judge(503, ((b"retry-after", b"1"),), b"") is Verdict.BUSY
    ollama = b'{"error":"server busy, please try again.  maximum pending requests exceeded"}'
    assert judge(503, (), ollama) is Verdict.BUSY
    assert judge(500, (), ollama) is Verdict.FAULT
    loading = b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'
    assert judge(503, (), loading) is Verdict.FAULT


def test_compressed_error_is_read() -> None:
    body = INVALID["vllm"]
    gzipped = ((b"content-encoding", b"gzip"),)
    assert judge(500, gzipped, gzip.compress(body)) is Verdict.REQUEST
    assert judge(500, gzipped, body) is Verdict.FAULT
    assert judge(500, ((b"content-encoding", b"br"),), body) is Verdict.FAULT
    assert judge(500, gzipped, gzip.compress(b"x" * 10**7)) is Verdict.FAULT


@given(
    st.integers(200, 599), st.binary(max_size=200) | st.from_type(type(None)).map(lambda _: b'{"error":{"code":true}}')
)
def test_any_answer_gets_a_verdict(status: int, body: bytes) -> None:
    assert isinstance(judge(status, (), body), Verdict)
    assert is_openai_error(body) is False


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: invalid argument",
        "[Errno 24] Too many open files",
        "EngineCore is dead: failed to parse response",
        "NCCL error: invalid argument",
        "CUDA error: too many resources requested for launch",
        "CUDA out of memory. The input is too large",
        "too many open files",
        "internal error: invalid value of the scheduler",
        "the worker must be a leader",
    ],
)
def test_words_that_requests_share_with_faults_do_not_hide_a_fault(message: str) -> None:
    assert judge(500, (), json.dumps({"error": {"message": message, "code": 500}}).encode()) is Verdict.FAULT
