"""Records which keys the scripts access."""

from typing import Final

import pytest

from controller.store import scripts
from tests.support.clients import Client

_ACCESSES: Final = "accesses"
_RECORD: Final = """
local redis = (function(redis)
  local function record(command, ...)
    for _, argument in ipairs({ ... }) do
      local kind = tostring(argument):match("^%{[^}]*%}:([^:]+)")
      if kind then
        redis.call("SADD", "accesses", "SCRIPT " .. command .. " " .. kind)
      end
    end
  end
  local recording = { error_reply = redis.error_reply }
  function recording.call(...)
    record(...)
    return redis.call(...)
  end
  function recording.pcall(...)
    record(...)
    return redis.pcall(...)
  end
  return recording
end)(redis)
"""
_READS: Final = {
    *("APPEND", "EXISTS", "GET", "GETRANGE", "HGET", "HGETALL", "HINCRBY", "HLEN", "HMGET", "HSCAN", "INCR", "INCRBY"),
    *("MGET", "PTTL", "SSCAN", "ZCARD", "ZCOUNT", "ZRANGE", "ZRANGEBYSCORE", "ZSCAN", "ZSCORE", "XRANGE", "XREVRANGE"),
}
_WRITES: Final = {
    *("APPEND", "DEL", "HDEL", "HINCRBY", "HSET", "INCR", "INCRBY", "PEXPIRE", "SADD", "SET", "SREM", "ZADD", "ZREM"),
    *("RENAME", "UNLINK", "XADD"),
}


def record_accesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record the accesses of all scripts of registries that are opened from now on."""
    source = scripts.source
    monkeypatch.setattr(scripts, "source", lambda name: _RECORD.replace("SCRIPT", name) + source(name))


async def recorded_accesses(client: Client) -> set[tuple[str, str, str]]:
    """Return the accesses that were recorded, and delete them: script, kind of key, and "r" or "w"."""
    accesses = set()
    for entry in await client.smembers(_ACCESSES):
        script, command, kind = entry.split()
        assert command in _READS | _WRITES
        accesses |= {(script, kind, mode) for mode, commands in (("r", _READS), ("w", _WRITES)) if command in commands}
    await client.delete(_ACCESSES)
    return accesses
