"""Decides what the error response of an engine means: a fault of the engine, of the request, or no room now."""

import json
import re
import zlib
from enum import Enum
from typing import Final

from controller.domain.headers import Headers, content_coding
from controller.upstream.decoding import CODINGS
from controller.upstream.engines.reading import OtherShape, field, parse_json

_MAX_DECODED: Final = 64 * 1024
# Engines return a 500 for some requests that are invalid or too long (vLLM: vllm-project/router#148; llama.cpp returns
# one if a request is not JSON, or does not fit its template). Each phrase is from the message of an engine.
_INVALID: Final = re.compile(
    r"context (length|size|window)|maximum (model|context|input|sequence) ?length|max_model_len"
    r"|longer than the (maximum|model)|exceeds? the (maximum|available|context|model)|maximum allowed length"
    r"|(prompt|input|request|message|content|sequence|text|image|schema|grammar)s? (is|are|was) too (long|large|many)"
    r"|too (long|large|many) (prompt|input|token|message|image|stop)"
    r"|validation error|invalid (request|param|json|prompt|message|role|tool|schema|grammar|image)|bad ?request"
    r"|json\.exception|(failed|unable) to parse (the )?(request|messages|input|prompt|tool|json|grammar|schema|chat)"
    r"|unsupported param|must be (one of|at least|at most|between|less than|greater than|positive|non-negative)"
    r"|must be an? ([a-z-]+ )?(array|list|string|object|number|integer|boolean|dict)",
    re.IGNORECASE,
)
# These say that the engine itself has failed, whatever else is in the message.
_FAULT: Final = re.compile(
    r"\b(cuda|nccl|rocm|hip|gpu|out of memory|oom|errno|engine ?core|enginedead|worker (process|died)|device"
    r"|traceback|broken pipe|segmentation|assertion)",
    re.IGNORECASE,
)
_INVALID_TYPES: Final = re.compile(
    r"bad_?request|invalid_?request|validation|exceed_context_size|context_length|unprocessable|value_?error",
    re.IGNORECASE,
)
# Ollama returns a 503 without Retry-After if its queue is full.
_BUSY: Final = re.compile(r"\bbusy\b|overloaded|maximum pending requests|queue (is )?full|at capacity", re.IGNORECASE)


class Verdict(Enum):
    """The meaning of an error response.

    REQUEST: the request cannot be served, by no engine.
    BUSY: the engine has no room now.
    FAULT: the engine has failed.
    """

    REQUEST = "request"
    BUSY = "busy"
    FAULT = "fault"


def may_be_retried(status: int) -> bool:
    """Return True if the verdict on a response with this status depends on its body, or is not REQUEST.

    A 501 says that the engine does not have the function that the request needs, such as embeddings.
    """
    return status == 429 or (status >= 500 and status != 501)


def judge(status: int, headers: Headers, body: bytes) -> Verdict:
    """Return what an error response means. body: as the engine has encoded it."""
    if not may_be_retried(status):
        return Verdict.REQUEST
    if status == 429 or (status == 503 and any(name == b"retry-after" for name, _ in headers)):
        return Verdict.BUSY
    if status not in (500, 503):
        return Verdict.FAULT
    message, kinds, code = _read(_decoded(headers, body))
    if status == 503:
        return Verdict.BUSY if _BUSY.search(message) else Verdict.FAULT
    if _FAULT.search(message):
        return Verdict.FAULT
    is_invalid = 400 <= code <= 499 or _INVALID.search(message) or any(map(_INVALID_TYPES.search, kinds))
    return Verdict.REQUEST if is_invalid else Verdict.FAULT


def is_openai_error(body: bytes) -> bool:
    """Return True if a body is an error in OpenAI's form."""
    try:
        return isinstance(field(parse_json(body), "error", "message"), str)
    except OtherShape:
        return False


def _read(body: bytes) -> tuple[str, list[str], int]:
    """Return the message of an error, its types and its code, as the engines write them. "", [] and 0 if unknown."""
    try:
        value = parse_json(body)
    except OtherShape:
        return body.decode("utf-8", "replace"), [], 0
    message = next(
        (text if isinstance(text, str) else json.dumps(text) for text in _found(value, "message", "detail") if text), ""
    )
    if not message and isinstance(text := field(value, "error"), str):
        message = text
    kinds = [text for text in (*_found(value, "type"), *_found(value, "code")) if isinstance(text, str)]
    code = next((number for number in _found(value, "code") if isinstance(number, int)), 0)
    return message, kinds, code


def _found(value: object, *names: str) -> list[object]:
    return [found for name in names for found in (field(value, "error", name), field(value, name)) if found is not None]


def _decoded(headers: Headers, body: bytes) -> bytes:
    """Return the first part of a body without its compression. b"" if that is damaged or unknown."""
    coding = content_coding(headers)
    if coding in (b"", b"identity"):
        return body
    if coding not in CODINGS:
        return b""
    try:
        return zlib.decompressobj(32 + zlib.MAX_WBITS).decompress(body, _MAX_DECODED)  # gzip or zlib
    except zlib.error:
        return b""
