"""The routes of operators: workers, their capacities, routes of model names, tokens, and metrics."""

import asyncio
from collections.abc import Mapping

from controller.domain.engine import Protocol
from controller.domain.errors import InvalidInput, StoreError
from controller.domain.worker import model_name
from controller.security.access import Caller
from controller.security.tokens import Plane
from controller.web.asgi.endpoint import Answer, degraded
from controller.web.routes.answers import EXISTS, NULL, UNKNOWN, empty_answer
from controller.web.schemas import admin
from controller.web.schemas import admin_responses as responses
from controller.web.schemas import fastchat as schemas
from controller.web.schemas.next_dispatch import NextDispatch
from controller.web.services import Services


async def drain_worker(services: Services, body: bytes, caller: Caller) -> Answer:
    """Stop dispatching to a worker. The requests that it has continue. A bound worker token may drain its own workers.

    `reason` is optional: at most 500 characters for the log and the events. The response comes at once. The worker has
    finished when GET `/workers` shows it as `drained`, or this route does when it is called again. A deadline for that
    is up to the client.
    """
    name, reason = schemas.parse_operation(body)
    caller.check_own_worker(name)
    exists = await services.membership.drain(name, caller=caller, reason=reason)
    return Answer(schemas.encode(responses.Draining(exists, exists and services.membership.has_drained(name))))


async def resume_worker(services: Services, body: bytes, caller: Caller) -> Answer:
    """Dispatch to a draining worker again. A bound worker token may resume its own workers."""
    name, reason = schemas.parse_operation(body)
    caller.check_own_worker(name)
    return EXISTS if await services.membership.drain(name, drain=False, caller=caller, reason=reason) else UNKNOWN


async def remove_worker(services: Services, body: bytes, caller: Caller) -> Answer:
    """Remove a worker, and stop polling it if it is an engine. A bound worker token may remove its own workers."""
    name, reason = schemas.parse_operation(body)
    caller.check_own_worker(name)
    was_polled = await services.engines.remove(name)  # first, or a replica could register it again
    removed = await services.membership.remove(name, caller=caller, reason=reason)
    return EXISTS if removed or was_polled else UNKNOWN


async def refresh_all_workers(services: Services, _: bytes, caller: Caller) -> Answer:
    """Probe all workers. A worker that answers is updated. A worker that fails two probes is removed.

    FastChat's API server calls this each time that one of its clients lists the models. With a client token it returns
    at once and removes no worker. Each replica starts such a refresh at most every 10 s.
    """
    if caller.plane is Plane.CLIENT:
        services.refresher.request()
        return NULL
    try:
        await services.refresher.refresh()
    except StoreError as error:
        return empty_answer(NULL.body, error)
    return NULL


async def workers(services: Services, _: bytes) -> Answer:
    """List all live workers, and the models that had one in the last 12 hours and have none now."""
    found, snapshot_age = await services.membership.list_workers()
    missing = services.known_models.missing()
    body = schemas.encode(responses.Workers.of(found, services.membership.stalled_for, missing))
    return Answer(body, headers=degraded(snapshot_age))


async def engines(services: Services, _: bytes) -> Answer:
    """List the registered engines. If an engine is not alive, the list says why.

    The reason is found out now, so the response may take as long as a poll (`--probe-timeout`).
    """
    return Answer(schemas.encode(responses.RegisteredEngines.of(await services.engines.list())))


async def replicas(services: Services, _: bytes) -> Answer:
    """List all live replicas, with their versions and their settings without secrets."""
    return Answer(schemas.encode(responses.Replicas.of(await services.replicas.list())))


async def explain(services: Services, query: Mapping[str, str], *_: object) -> Answer:
    """Explain which worker the next request of `model` without a lease would get. Nothing is booked.

    `candidates` has the first workers that are compared, the best first. Free ones come before `full` ones, and those
    before `failing` ones. Within a state, the worker with the lowest `cost` is chosen. While it is free, the cost is
    its requests per unit of speed. While it is full, the cost is how long the next request would wait, in units of the
    time of a request. In the lottery, workers have `odds` instead.

    If the name has a route, `routed_to` lists the models of the route. The workers are those of `served_model`, the
    first of these models that has a worker for the request.
    """
    if "model" not in query:
        raise InvalidInput("model", "is missing. Send it in the query: /explain?model=NAME")
    name = model_name(query["model"])
    routed_to = services.model_routes.models(name)
    explanation, snapshot_age = await services.explainer.explain(*(routed_to or [name]))
    body = NextDispatch.of(name, explanation, routed_to)
    return Answer(schemas.encode(body), headers=degraded(snapshot_age))


async def set_capacity(services: Services, body: bytes, caller: Caller) -> Answer:
    """Set how many requests a worker, or each worker of a model, runs at once.

    `capacity: null` removes what was set. The next dispatch uses the new capacity. A worker need not be registered. The
    setting is kept until it is removed.
    """
    change = await services.capacities.set(*admin.parse_capacity(body), caller)
    return Answer(schemas.encode(responses.PreviousCapacity(change.before, change.workers)))


async def capacities(services: Services, _: bytes) -> Answer:
    """List the capacities that were set for workers and models."""
    found, snapshot_age = await services.capacities.list()
    return Answer(schemas.encode(responses.SetCapacities.of(found)), headers=degraded(snapshot_age))


async def set_model_route(services: Services, body: bytes, caller: Caller) -> Answer:
    """Set which models serve the requests of a name: an alias, a split by weights, and fallbacks.

    It replaces an earlier route of the name. Targets and fallbacks are names of served models and never of routes, and
    need not have a worker yet. A target may be the name itself, which then means the served model. Requests to the
    routes of OpenAI's API obey the route. `/get_worker_address` and the other routes of FastChat do not. All replicas
    that reach Redis use it when the response arrives.
    """
    model, route = admin.parse_model_route(body)
    await services.model_routes.set(model, route, caller)
    served, _ = await _served_models(services)
    return Answer(schemas.encode(responses.Unserved.of(route, served)))


async def remove_model_route(services: Services, body: bytes, caller: Caller) -> Answer:
    """Remove the route of a name. No replica that reaches Redis uses it when the response arrives."""
    return EXISTS if await services.model_routes.remove(admin.parse_routed_name(body), caller) else UNKNOWN


async def model_routes(services: Services, _: bytes) -> Answer:
    """List the routes of model names."""
    routes, age = await services.model_routes.list()
    served, age_of_served = await _served_models(services)
    body = schemas.encode(responses.ModelRoutes.of(routes, served))
    return Answer(body, headers=degraded(age_of_served if age is None else age))


async def _served_models(services: Services) -> tuple[set[str], float | None]:
    """Return the models that a live worker of any protocol serves, and the age of the snapshot as in MaybeStale."""
    lists = await asyncio.gather(*(services.dispatcher.list_models(protocol=protocol) for protocol in Protocol))
    return {model for models, _ in lists for model in models}, lists[0].snapshot_age


async def create_token(services: Services, body: bytes, caller: Caller) -> Answer:
    """Create a token for a plane. The response has the secret, which is shown only this once.

    With `workers` or `models`, which are lists of patterns, a worker token is bound to these. All replicas that reach
    Redis know the token when the response arrives. 400 if there is a token with this name.
    """
    secret = await services.tokens.create(*admin.parse_token(body), caller)
    return Answer(schemas.encode(responses.NewSecret(secret)))


async def revoke_token(services: Services, body: bytes, caller: Caller) -> Answer:
    """Revoke a token that was created at runtime. All replicas that reach Redis refuse it when the response arrives."""
    return EXISTS if await services.tokens.revoke(admin.parse_token_name(body), caller) else UNKNOWN


async def tokens(services: Services, _: bytes) -> Answer:
    """List the tokens, without their secrets, and where each comes from."""
    return Answer(schemas.encode(responses.Tokens.of(services.access.tokens())))


async def diagnosis(services: Services, _: bytes) -> Answer:
    """Return facts about this replica and about its Redis, for `controller doctor`.

    A field is null if it is unknown. `unknown` names the commands that the user of Redis has no right to use. Without
    Redis, `unavailable` says why.
    """
    return Answer(schemas.encode(await services.diagnostician.diagnose()))


async def metrics(services: Services, _: bytes) -> Answer:
    """Return the metrics in Prometheus's text format."""
    return Answer(services.metrics.render(), content_type=b"text/plain; version=0.0.4; charset=utf-8")
