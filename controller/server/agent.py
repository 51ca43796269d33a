"""Runs `controller agent`: the agent of one engine, until a signal ends it."""

import asyncio
import logging.config
from collections.abc import Sequence
from typing import Final, NamedTuple

from controller.domain.engine_entry import EngineEntry
from controller.fleet.agent import Agent, End
from controller.logs import logging_config
from controller.security.parent_addresses import ParentAddress
from controller.server.signals import EndSignals, accept_reloads
from controller.upstream.client import WorkerClient
from controller.upstream.controllers import Controllers
from controller.upstream.trust import warn_of_bundle

_TIMEOUT: Final = 5.0  # seconds for one response of the engine, or of a controller


class AgentOptions(NamedTuple):
    """The options of the command line. engine, name, entry, interval and deadline are as in Agent."""

    engine: str
    name: str
    entry: EngineEntry
    controllers: Sequence[ParentAddress]
    interval: float
    deadline: float
    log_format: str


def run_agent(options: AgentOptions) -> End:
    """Represent an engine until SIGTERM or Ctrl-C, and until it is idle then. A second signal ends the waiting."""
    logging.config.dictConfig(logging_config("info", options.log_format))
    warn_of_bundle()
    accept_reloads()
    return asyncio.run(_run(options))


async def _run(options: AgentOptions) -> End:
    client, controllers = WorkerClient(_TIMEOUT, _TIMEOUT), Controllers(options.controllers, _TIMEOUT)
    client.cluster_id = lambda: "agent"  # a controller then names the clusters behind it, which an engine does not
    agent = Agent(client, controllers, *options[:3], options.interval, options.deadline)
    loop = asyncio.get_running_loop()
    for number in EndSignals.handled():
        loop.add_signal_handler(number, agent.stop)
    try:
        return await agent.run()
    finally:
        await controllers.close()
        await client.close()
