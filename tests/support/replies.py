"""Replies of the store that are lost on their way to one client."""

from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError


class Replies:
    """Between a client and its connections: it can lose the replies of the next scripts that run.

    The client sees the connection break after the script has run, and sends the same command again, as connect() tells
    it to. `lost` counts the replies that were lost.
    """

    def __init__(self, client: Redis) -> None:
        self.to_lose = 0
        self.lost = 0
        self._between: Callable[[], Awaitable[object]] | None = None
        self._sha: str | None = None
        self._send = client._send_command_parse_response
        client._send_command_parse_response = self._send_command_parse_response  # type: ignore[method-assign]

    def lose(
        self, number: int = 1, between: Callable[[], Awaitable[object]] | None = None, script: AsyncScript | None = None
    ) -> None:
        """Lose the replies of the next scripts, or of the next runs of one script.

        between is awaited after each of them, before the command is sent again.
        """
        self.to_lose, self.lost, self._between = number, 0, between
        self._sha = script.sha if script else None

    async def _send_command_parse_response(self, connection: Any, name: str, *args: Any, **options: Any) -> Any:
        reply = await self._send(connection, name, *args, **options)
        if self.to_lose and name == "EVALSHA" and self._sha in (None, args[1]):
            self.to_lose -= 1
            self.lost += 1
            if self._between is not None:
                await self._between()
            raise RedisConnectionError("The reply was lost.")
        return reply
