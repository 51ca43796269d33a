"""Replies of the store that are lost on their way to one client."""

from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError


class Replies:
    """Between a client and its connections: it can lose the replies of the next scripts that run.

    The client sees the connection break after the script has run, and sends the same command again, as connect() tells
    it to. `lost` counts the replies that were lost. `between` is awaited after each of them, before the command is sent
    again.
    """

    def __init__(self, client: Redis) -> None:
        self.to_lose = 0
        self.lost = 0
        self.between: Callable[[], Awaitable[object]] | None = None
        self._read = client.parse_response
        client.parse_response = self._parse_response  # type: ignore[method-assign]

    def lose(self, number: int = 1, between: Callable[[], Awaitable[object]] | None = None) -> None:
        """Lose the replies of the next scripts."""
        self.to_lose, self.lost, self.between = number, 0, between

    async def _parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        reply = await self._read(connection, command_name, **options)
        if command_name == "EVALSHA" and self.to_lose:
            self.to_lose -= 1
            self.lost += 1
            if self.between is not None:
                await self.between()
            raise RedisConnectionError("The reply was lost.")
        return reply
