"""Replicas that poll engines, and the answers of engines and resolvers."""

import asyncio
import json
from collections.abc import Sequence

from controller.domain.worker import Worker
from controller.replica import Replica
from controller.security.access import Caller
from controller.security.tokens import Plane
from controller.store.registry import Registry
from controller.tasks import end
from tests.conftest import Open
from tests.support.engines import Answer

ADMIN = Caller(Plane.ADMIN, "127.0.0.1")


def models(*names: str, owner: str = "vllm") -> Answer:
    data = [{"id": name, "object": "model", "owned_by": owner, "max_model_len": 4096} for name in names]
    return Answer(json.dumps({"object": "list", "data": data}).encode())


def gauges(running: int, waiting: int) -> Answer:
    return Answer(f"vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\n".encode())


class Starter:
    """Opens replicas that take snapshots, discover engines and poll them, and ends them."""

    def __init__(self, replica: Open) -> None:
        self._replica = replica
        self.tasks: dict[Replica, list[asyncio.Task[None]]] = {}

    def __call__(self, **settings: object) -> Replica:
        quick = {"engine_poll_interval": 0.05, "snapshot_interval": 0.05}
        opened = self._replica(**{**quick, **settings})
        loops = (
            opened.snapshots.run,
            opened.replicas.run,
            opened.engine_poller.run,
            opened.discovery.run,
            opened.events.run_recording,
        )
        self.tasks[opened] = [asyncio.create_task(loop()) for loop in loops]
        return opened

    async def stop(self, replica: Replica) -> None:
        await end(self.tasks.pop(replica))
        await replica.discovery.close()
        await replica.replicas.close()


async def only(registry: Registry) -> Worker | None:
    workers = (await registry.list_workers()).workers
    assert len(workers) <= 1
    return workers[0] if workers else None


async def is_alive(registry: Registry) -> bool:
    return await only(registry) is not None


class Resolver:
    """A resolver whose answers a test chooses."""

    def __init__(self, *addresses: str) -> None:
        self.answer: Sequence[str] | OSError = addresses

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer
