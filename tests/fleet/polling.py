"""A worker that is polled, and what replicas know of it."""

import asyncio
import json

from controller.domain.worker import Worker
from tests.conftest import Store
from tests.support.workers import BadWorker, answers

INTERVAL = 0.1


class StatusRoute:
    """The status route of a worker. It counts polls, and can fail or hang.

    fails: it answers 500.
    fails_every_other: it answers 500 to every second poll.
    goes_on: it hangs until this event is set.
    """

    def __init__(self) -> None:
        self.polls = 0
        self.queue_length = 0
        self.fails = False
        self.fails_every_other = False
        self.failed_in_a_row = 0
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def __call__(self, server: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        self.polls += 1
        if self.fails_every_other:
            self.fails = self.polls % 2 == 0
        self.failed_in_a_row = self.failed_in_a_row + 1 if self.fails else 0
        await self.goes_on.wait()
        status = json.dumps({"model_names": ["m"], "speed": 1, "queue_length": self.queue_length}).encode()
        await answers(status, "500 Down" if self.fails else "200 OK")(server, writer, body)


async def known(store: Store, name: str) -> Worker:
    return {found.name: found for found in (await store.registry().list_workers()).workers}[name]


async def queue_is(store: Store, name: str, queue_length: int) -> bool:
    return (await known(store, name)).status.queue_length == queue_length


async def was_polled(store: Store, name: str) -> bool:
    return (await known(store, name)).polled


async def is_deprioritised(store: Store, name: str) -> bool:
    return (await known(store, name)).failing == "polls"


async def is_not_failing(store: Store, name: str) -> bool:
    return not (await known(store, name)).failing
