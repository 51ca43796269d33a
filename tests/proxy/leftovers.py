"""Checks of what requests through the gateway leave behind."""

from functools import partial

import aiohttp

from controller.replica import Replica
from controller.store.registry import Registry
from tests.support.waiting import wait_until


def _is_free(connector: aiohttp.BaseConnector) -> bool:
    return not connector._acquired


async def nothing_is_left(replica: Replica, registry: Registry) -> None:
    """Wait until no request holds a lease, a connection to an engine, or a task."""

    async def is_idle() -> bool:
        leased = {known.leased for known in (await registry.list_workers()).workers}
        return leased == {0} and not replica.running.count

    await wait_until(is_idle, "the lease is released")
    for connector in (replica.workers._session._kept, replica.workers._session._fresh):
        await wait_until(partial(_is_free, connector), "no connection is in use")
    assert replica.bookings._renewals == {}
