"""Dispatching in Redis: the scripts that choose a worker and book it."""

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, Final, NamedTuple, assert_never

from controller.domain.dispatch import DispatchMethod, RankedWorker
from controller.store.connection import StoreClient
from controller.store.reconciliation import Reconciliation
from controller.store.runner import ScriptRunner

# Instead of a lease, if no more leases may be granted at all, or for the token of the request.
REFUSED: Final = "refused"
TOKEN_REFUSED: Final = "token_refused"  # noqa: S105 (no password)
_MAX_FINDS: Final = 12  # calls for a model with hundreds of expired workers, which the sweep has yet to purge


class Request(NamedTuple):
    """A request for a worker.

    lease_ms: milliseconds until its lease expires, 0 for a request without a lease.
    token: name of the token whose leases are limited. "" if the lease counts for none.
    affinity: the keys of its affinity, the most specific one first. Only shortest_queue uses them.
    """

    model: str
    lease_ms: int = 0
    token: str = ""
    affinity: tuple[str, ...] = ()


class Choice(NamedTuple):
    """The worker chosen for a request, "" if there is none, and its lease, "" without one.

    There is none if the model has no live worker, or if the lease is REFUSED or TOKEN_REFUSED.

    affinity: "hit" if a worker was chosen that a key of the request's affinity remembered, otherwise why none was:
        "overloaded", "gone" or "new". "" for a request without affinity.
    """

    worker: str = ""
    lease: str = ""
    affinity: str = ""


class Find(NamedTuple):
    """A search for any live worker of a model.

    excluded: names of workers that are not to be found.
    """

    model: str
    excluded: frozenset[str] = frozenset()


class DispatchStore(ScriptRunner):
    """Chooses workers and books them.

    draw: returns a random number from [0, 1).
    on_unanswered: gets the id of each call that may have booked requests, but was not answered.
    options: further ones of ScriptRunner.
    """

    def __init__(
        self,
        client: StoreClient,
        namespace: str,
        heartbeat_expiration: float,
        deadline: float = 5.0,
        booking_decay: bool = True,
        booking_delay: float = 0.2,
        draw: Callable[[], float] = random.random,
        **options: Any,
    ) -> None:
        super().__init__(client, namespace, heartbeat_expiration, deadline, booking_decay, booking_delay, **options)
        self._draw = draw
        self.on_unanswered: Callable[[str], None] = lambda _: None

    async def dispatch_some(self, method: DispatchMethod, requests: Sequence[Request]) -> list[Choice | None]:
        """Choose a worker for as many requests as one call of bounded work allows, and book them.

        Returns None for each request that is left. Call again for these.
        """
        arguments: Iterable[str | int]
        match method:
            case DispatchMethod.SHORTEST_QUEUE:
                script = "dispatch_shortest_queue"
                arguments = (
                    a
                    for model, lease_ms, token, affinity in requests
                    for a in (model, self._lease(lease_ms, token, affinity))
                )
            case DispatchMethod.LOTTERY:
                script = "dispatch_lottery"
                arguments = (
                    a
                    for model, lease_ms, token, _ in requests
                    for a in (model, self._lease(lease_ms, token), repr(self._draw()))
                )
            case _:
                assert_never(method)
        call_id, reply_ttl_ms = self._repeatable()
        try:
            answers = await self._run(script, call_id, reply_ttl_ms, self._decays, self._max_leases, *arguments)
        except BaseException:  # also when cancelled
            self.on_unanswered(call_id)
            raise
        pairs = zip(answers[0 : 2 * len(requests) : 2], answers[1 : 2 * len(requests) : 2], strict=True)
        choices = [None if worker is None else Choice(worker, lease) for worker, lease in pairs]
        if len(answers) > 2 * len(requests):
            _add_outcomes(choices, requests, answers[2 * len(requests) :])
        return choices

    def _lease(self, lease_ms: int, token: str, affinity: Sequence[str] = ()) -> int | str:
        text = f"{lease_ms}@{token}@{self._max_leases_per_token}" if token else lease_ms
        if affinity:
            return f"{text}#{self._affinity_ttl_ms}#{self._max_affinity_keys}#{','.join(affinity)}"
        return text

    async def find_workers(self, finds: Sequence[Find]) -> list[str]:
        """Find a live worker at random for each model, and book nothing. Returns "" if a model has no such worker.

        Failing workers are found only if the model has no others.
        """
        found = [""] * len(finds)
        left = list(range(len(finds)))
        for _ in range(_MAX_FINDS):
            answers = await self._run_each("find_workers", tuple, left, lambda i: self._find_arguments(finds[i]))
            for i, answer in zip(left, answers, strict=True):
                found[i] = answer or ""
            left = [i for i, answer in zip(left, answers, strict=True) if answer is None]
            if not left:
                break
        return found

    def _find_arguments(self, find: Find) -> tuple[str, str, str]:
        return find.model, repr(self._draw()), "\n".join(find.excluded)

    async def rank_workers(self, model: str) -> list[RankedWorker]:
        """Return the workers that shortest_queue compares for the next request without a lease, the best first."""
        return [
            RankedWorker(
                name, float(cost), float(requests), int(leased), int(capacity) if capacity else None, float(speed),
                failing == "1",
            )
            for name, cost, requests, leased, capacity, speed, failing in await self._run(
                "rank_workers", model, self._decays
            )
        ]  # fmt: skip

    async def reconcile(self, reconciliation: Reconciliation) -> None:
        """Correct the bookings after an outage. A repeated report counts once."""
        items: list[tuple[str, str | int]]
        items = [*((call_id, "") for call_id in reconciliation.unanswered), *reconciliation.bookings.items()]
        done = 0
        for run in count():  # each handles as many items as its budget allows, perhaps a part of one
            done += await self._run(
                "reconcile",
                f"{reconciliation.request_id}-{run}",  # a repeated report runs with the same ids in the same order
                max(self._reply_ttl_ms, self._expiration_ms),  # it may be repeated after a long outage
                reconciliation.sequence,
                self._decays,
                *(argument for item in items[done:] for argument in item),
            )
            if done >= len(items):
                return


def _add_outcomes(choices: list[Choice | None], requests: Sequence[Request], outcomes: Iterable[str]) -> None:
    """Add the outcomes to the choices of the requests with an affinity that got a worker."""
    left = iter(outcomes)
    for number, choice in enumerate(choices):
        if choice is not None and choice.worker and requests[number].affinity:
            choices[number] = choice._replace(affinity=next(left))
