"""Speaks to the controllers above this cluster, as a worker does."""

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from controller.domain.errors import ParentUnreachable
from controller.domain.worker import WorkerStatusTotal
from controller.upstream.answer import UNREACHABLE, one_line
from controller.upstream.session import Body, Session

_MAX_ANSWER_BYTES = 64 * 1024


class _Known(msgspec.Struct):
    exist: bool


class ParentClient:
    """An HTTP client for parents; create and close it in the running event loop. timeout is for a call, in seconds."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._session = Session()

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def register(
        self, parent: str, name: str, status: WorkerStatusTotal, multimodal: bool, headers: Mapping[str, str]
    ) -> None:
        """Register this cluster as the worker `name`. Raises ParentUnreachable if the parent does not take it."""
        told = {"model_names": status.model_names, "speed": status.speed or 1, "queue_length": status.queue_length}
        if status.capacity is not None:
            told["capacity"] = status.capacity
        body = {"worker_name": name, "check_heart_beat": True, "worker_status": told, "multimodal": multimodal}
        await self._post(f"{parent}/register_worker", body, headers)

    async def heartbeat(self, parent: str, name: str, queue_length: int) -> bool:
        """Tell how many requests there are; whether the parent knows this cluster. Raises ParentUnreachable."""
        url = f"{parent}/receive_heart_beat"
        answer = await self._post(url, {"worker_name": name, "queue_length": queue_length}, {})
        try:
            return msgspec.json.decode(answer, type=_Known).exist
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ParentUnreachable(f"{url} answered with something that tells nothing: {error}") from error

    async def _post(self, url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> bytes:
        try:
            async with (
                asyncio.timeout(self._timeout),
                await self._session.post(url, Body(msgspec.json.encode(body)), headers) as response,
            ):
                answer = await _beginning(response.content)
                if response.status != 200:
                    said = answer[:300].decode("utf-8", "replace").replace("\n", " ")
                    raise ParentUnreachable(f"{url} answered {response.status} where 200 is expected: {said}")
                return answer
        except TimeoutError as error:
            raise ParentUnreachable(f"{url} did not answer in time.") from error
        except UNREACHABLE as error:
            raise ParentUnreachable(f"{url} cannot be reached: {one_line(error)}") from error


async def _beginning(content: aiohttp.StreamReader) -> bytes:
    """An answer, or as much of it as is of use; it may come in pieces."""
    came = bytearray()
    while piece := await content.read(_MAX_ANSWER_BYTES - len(came)):
        came += piece
    return bytes(came)
