"""The routes of workers: registration and heartbeats."""

from controller.security.access import Caller
from controller.web.asgi.endpoint import Answer
from controller.web.routes.answers import EXISTS, NULL, UNKNOWN
from controller.web.schemas import admin, admin_responses
from controller.web.schemas import fastchat as schemas
from controller.web.services import Services


async def register_worker(services: Services, body: bytes, hops: str, caller: Caller) -> Answer:
    """Register a worker. 502 if the worker did not return its status. 508 if the worker is this cluster itself.

    A token that is bound to workers or models registers only these.
    """
    request = schemas.parse_register(body)
    await services.membership.register(
        request.name,
        check_heart_beat=request.check_heart_beat,
        status=request.status,
        multimodal=request.multimodal,
        hops=hops,
        caller=caller,
    )
    return NULL


async def register_engine(services: Services, body: bytes, _: str, caller: Caller) -> Answer:
    """Register an inference engine, such as vLLM, or register it with other values. It is asked for its state first.

    From then on, the replicas poll it. It is alive while it is ready, and is registered until it is removed.
    502 if it does not respond. Then nothing is registered. A token that is bound to workers or models registers only
    these.

    With a `status`, the agent of the engine registers it. The controller then does not ask the engine. The agent sends
    heartbeats with `engine_age`.
    """
    name, entry, status = admin.parse_engine(body)
    if status is None:
        state = await services.engines.register(name, entry, caller)
    else:
        state = await services.engines.register_unpolled(name, entry, status, caller)
    return Answer(schemas.encode(admin_responses.RegisteredEngine.of(state)))


async def receive_heart_beat(services: Services, body: bytes, caller: Caller) -> Answer:
    """Record a heartbeat. `exist` is false only if Redis holds no such worker. While Redis is unavailable, 503."""
    name, queue_length, engine_age = schemas.parse_heartbeat(body)
    caller.check_worker(name)
    known = await services.membership.heartbeat(name, queue_length, engine_age)
    return EXISTS if known else UNKNOWN
