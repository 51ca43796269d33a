"""Agents that represent an engine at a replica, in one process."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from controller.domain.engine_entry import EngineEntry
from controller.domain.errors import (
    ControllerBusy,
    ControllerError,
    ControllerRefused,
    ControllerUnreachable,
    Forbidden,
    StoreUnavailable,
)
from controller.domain.worker import Worker
from controller.fleet.agent import Agent, End
from controller.replica import Replica
from controller.security.access import Caller
from controller.store.registry import Registry
from controller.upstream.client import WorkerClient
from controller.web.routes import admin, worker
from tests.fleet.engine_replicas import ADMIN, only
from tests.support.engines import AnswerServer

NAME = "http://127.0.0.1:8000"


class InProcess:
    """Stands for Controllers: calls the routes of a replica."""

    def __init__(self, replica: Replica, caller: Caller = ADMIN) -> None:
        self.is_away = False
        self.calls: list[str] = []
        services = replica.services
        self._routes: dict[str, Callable[[bytes], Any]] = {
            "/register_engine": lambda body: worker.register_engine(services, body, "", caller),
            "/receive_heart_beat": lambda body: worker.receive_heart_beat(services, body, caller),
            "/drain_worker": lambda body: admin.drain_worker(services, body, caller),
            "/remove_worker": lambda body: admin.remove_worker(services, body, caller),
        }

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        self.calls.append(path)
        if self.is_away:
            raise ControllerUnreachable("it is away")
        try:
            return json.loads((await self._routes[path](json.dumps(body).encode())).body)
        except Forbidden as error:
            raise ControllerRefused(str(error)) from error
        except StoreUnavailable as error:
            raise ControllerBusy(str(error)) from error
        except ControllerError as error:
            raise ControllerUnreachable(str(error)) from error


class Fleet:
    """A replica that takes snapshots, and agents that represent the engine at it."""

    def __init__(self, replica: Replica, engine: AnswerServer) -> None:
        self.replica = replica
        self.client = WorkerClient(1.0, 60.0)
        self.tasks = [asyncio.create_task(replica.snapshots.run())]
        self._engine = engine

    def start(
        self, entry: EngineEntry | None = None, deadline: float = 3600, caller: Caller = ADMIN
    ) -> tuple[Agent, InProcess, "asyncio.Task[End]"]:
        link = InProcess(self.replica, caller)
        address = self._engine.address
        agent = Agent(self.client, link, address, NAME, entry or EngineEntry(), 0.05, deadline)  # type: ignore[arg-type]
        running = asyncio.create_task(agent.run())
        self.tasks.append(running)  # type: ignore[arg-type]
        return agent, link, running


async def found(registry: Registry, test: Callable[[Worker], bool] = lambda _: True) -> bool:
    known = await only(registry)
    return known is not None and test(known)


async def is_gone(registry: Registry) -> bool:
    return await only(registry) is None
