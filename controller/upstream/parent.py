"""An HTTP client for parent controllers, to which this cluster is one worker."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import msgspec

from controller.domain.errors import ParentRefused, ParentUnreachable
from controller.domain.worker import WorkerStatusTotal
from controller.security.parent_addresses import ParentAddress
from controller.upstream.response import UNREACHABLE, one_line
from controller.upstream.session import Body, Session

_MAX_RESPONSE_BYTES = 64 * 1024


class _HeartbeatResponse(msgspec.Struct):
    exist: bool


class ParentClient:
    """An HTTP client for parents. Create and close it in the running event loop.

    timeout: for a whole call, in seconds.
    parents: the parents that require credentials. Others may be left out.
    """

    def __init__(self, timeout: float, parents: Sequence[ParentAddress] = ()) -> None:
        self._timeout = timeout
        self._parents = {parent.address: parent for parent in parents}
        self._session = Session()

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def register(
        self, parent: str, name: str, status: WorkerStatusTotal, multimodal: bool, headers: Mapping[str, str]
    ) -> None:
        """Register this cluster as the worker `name`. Raises ParentUnreachable if the parent does not accept it."""
        fields = {"model_names": status.model_names, "speed": status.speed or 1, "queue_length": status.queue_length}
        if status.capacity is not None:
            fields["capacity"] = status.capacity
        body = {"worker_name": name, "check_heart_beat": True, "worker_status": fields, "multimodal": multimodal}
        await self._post(parent, "/register_worker", body, headers)

    async def heartbeat(self, parent: str, name: str, queue_length: int) -> bool:
        """Send a heartbeat. Return True if the parent has this cluster registered. Raises ParentUnreachable."""
        path = "/receive_heart_beat"
        response = await self._post(parent, path, {"worker_name": name, "queue_length": queue_length}, {})
        try:
            return msgspec.json.decode(response, type=_HeartbeatResponse).exist
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ParentUnreachable(f"{parent}{path} returned an invalid response: {error}") from error

    async def _post(self, parent: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> bytes:
        url = parent + path
        known = self._parents.get(parent, ParentAddress(parent))
        if known.authorization:
            headers = {**headers, "Authorization": known.authorization}
        try:
            async with (
                asyncio.timeout(self._timeout),
                await self._session.post(url, Body(msgspec.json.encode(body)), headers) as response,
            ):
                content = await _read_start(response.content)
                if response.status != 200:
                    raise _refusal(url, response.status, content, known)
                return content
        except TimeoutError as error:
            raise ParentUnreachable(f"{url} did not respond within {self._timeout:g} s.") from error
        except UNREACHABLE as error:
            raise ParentUnreachable(f"{url} cannot be reached: {one_line(error)}") from error


def _refusal(url: str, status: int, content: bytes, parent: ParentAddress) -> ParentUnreachable:
    """Return the error for a response that is not 200. Its text may be logged, so it has no credentials."""
    if status in (401, 403):
        given = "the token in --parent" if parent.authorization else "a call without a token"
        return ParentRefused(
            f"{url} returned status {status}: the parent does not accept {given}. Write a token that the parent "
            "accepts for workers into --parent: http://name:token@host:port."
        )
    text = parent.without_secrets(content.decode("utf-8", "replace"))[:300].replace("\n", " ")
    return ParentUnreachable(f"{url} returned status {status} instead of 200: {text}")


async def _read_start(content: aiohttp.StreamReader) -> bytes:
    """Return a body, or its first 64 KiB. Valid responses of a parent are shorter."""
    body = bytearray()
    while piece := await content.read(_MAX_RESPONSE_BYTES - len(body)):
        body += piece
    return bytes(body)
