"""Loses replies of the store to one client."""

from collections.abc import Awaitable, Callable
from typing import Any

from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.support.clients import Client


class Replies:
    """The replies to one client, of which it can lose those of the next scripts.

    The client sees the connection break after the script has run. It then sends the same command again, because
    connect() configures it so. `lost` counts the lost replies.
    """

    def __init__(self, client: Client) -> None:
        self.to_lose = 0
        self.lost = 0
        self._between: Callable[[], Awaitable[object]] | None = None
        self._sha: str | None = None
        self._send = client._send_command_parse_response
        client._send_command_parse_response = self._send_command_parse_response

    def lose(
        self, number: int = 1, between: Callable[[], Awaitable[object]] | None = None, script: AsyncScript | None = None
    ) -> None:
        """Lose the replies of the next scripts, or of the next runs of one script.

        between: awaited after each lost reply, before the command is sent again.
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
