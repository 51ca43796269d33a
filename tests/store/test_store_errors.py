"""Errors of Redis and of its client: which count as an outage, and which as a bug."""

import pytest
from ports import free_port
from redis._parsers.base import BaseParser
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.exceptions import ClusterError, MaxConnectionsError, RedisClusterException, SlotNotCoveredError

from controller.domain.errors import StoreRejection, StoreUnavailable
from controller.store.errors import FAILURES, store_error

ERRORS = {
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": StoreUnavailable,
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist": StoreUnavailable,
    "NOREPLICAS Not enough good replicas to write.": StoreUnavailable,
    "NOREPLICAS Not enough good replicas to write. script: abc, on @user_script:105.": StoreUnavailable,
    "MISCONF Errors writing to the AOF file: No space left on device script: abc, on @user_script:1.": StoreUnavailable,
    "READONLY You can't write against a read only replica.": StoreUnavailable,
    "OOM command not allowed when used memory > 'maxmemory'. script: 1, on @user_script:8.": StoreUnavailable,
    "LOADING Redis is loading the dataset in memory": StoreUnavailable,
    "MASTERDOWN Link with MASTER is down": StoreUnavailable,
    "CLUSTERDOWN The cluster is down": StoreUnavailable,
    "TRYAGAIN Multiple keys request during rehashing of slot": StoreUnavailable,
    "NOAUTH Authentication required.": StoreUnavailable,
    "WRONGPASS invalid username-password pair or user is disabled.": StoreUnavailable,
    "NOPERM this user has no permissions to run the 'evalsha' command": StoreUnavailable,
    "DENIED Redis is running in protected mode": StoreUnavailable,
    "ERR max number of clients reached": StoreUnavailable,
    "ERR max number of clients + cluster connections reached": StoreUnavailable,
    "ERR DB index is out of range": StoreUnavailable,
    "ERR upstream failure": StoreUnavailable,
    "ERR Error running script: Script killed by user with SCRIPT KILL. on @user_script:3": StoreUnavailable,
    "ERR The user executing the script can't run this command or subcommand on @user_script:1": StoreUnavailable,
    "ERR user_script:12: attempt to index a nil value script: abc, on @user_script:12.": StoreRejection,
    "ERR Wrong number of args calling Redis command from script script: abc, on @user_script:3.": StoreRejection,
    "WRONGTYPE Operation against a key holding the wrong kind of value": StoreRejection,
    "WRONGTYPE Operation against a key script: abc, on @user_script:82.": StoreRejection,
    "CROSSSLOT Keys in request don't hash to the same slot": StoreRejection,
    "INVALID speed": StoreRejection,
}


@pytest.mark.parametrize(
    "error",
    [
        RedisClusterException("All slots are not covered"),
        SlotNotCoveredError("not covered"),
        ClusterError("TTL exhausted."),
        MaxConnectionsError("Too many connections"),
        MasterNotFoundError("No master found"),
        ConnectionResetError("reset"),
    ],
)
def test_client_failures_map_to_store_unavailable(error: Exception) -> None:
    assert isinstance(error, FAILURES)
    assert type(store_error(error)) is StoreUnavailable


def test_timeout_error_has_a_readable_message() -> None:
    assert "no reply within the timeout" in str(store_error(TimeoutError()))


@pytest.mark.parametrize("line", ERRORS)
def test_store_error_distinguishes_outages_from_rejections(line: str) -> None:
    error = BaseParser.parse_error(line)
    assert type(store_error(error)) is ERRORS[line], f"{type(error).__name__}: {error}"


async def test_unreachable_sentinels_are_named_without_the_configuration_of_their_clients() -> None:
    ports = [free_port(), free_port()]
    credentials = {"username": "user-of-sentinels", "password": "secret-of-sentinels"}
    sentinels = Sentinel([("127.0.0.1", port) for port in ports], sentinel_kwargs=credentials)
    with pytest.raises(MasterNotFoundError) as raised:
        await sentinels.discover_master("main")
    places = ", ".join(f"127.0.0.1:{port} - network:ConnectionError" for port in ports)
    assert f"(MasterNotFoundError: No master found for 'main' : {places})" in str(store_error(raised.value))
