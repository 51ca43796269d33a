"""Dispatches of whole batches, and helpers for their choices.

A replica dispatches as many requests as one call of bounded work allows, and puts the others into its next call. Tests
mostly want the choices for all of their requests.
"""

from collections.abc import Iterable, Sequence

from controller.domain.dispatch import DispatchMethod
from controller.store.registry import Choice, Registry, Request


async def dispatch(registry: Registry, method: DispatchMethod, requests: Sequence[Request]) -> list[Choice]:
    """Choose a worker for each request, in as many calls as that takes."""
    choices: dict[int, Choice] = {}
    while len(choices) < len(requests):
        left = [i for i in range(len(requests)) if i not in choices]
        answers = await registry.dispatch_some(method, [requests[i] for i in left])
        choices.update((i, answer) for i, answer in zip(left, answers, strict=True) if answer is not None)
    return [choices[i] for i in range(len(requests))]


async def dispatch_shortest_queue(registry: Registry, requests: Sequence[Request]) -> list[Choice]:
    return await dispatch(registry, DispatchMethod.SHORTEST_QUEUE, requests)


async def dispatch_lottery(registry: Registry, requests: Sequence[Request]) -> list[Choice]:
    return await dispatch(registry, DispatchMethod.LOTTERY, requests)


def workers_of(choices: Iterable[Choice]) -> list[str]:
    return [choice.worker for choice in choices]


def leases_of(choices: Iterable[Choice]) -> list[str]:
    return [choice.lease for choice in choices]


def worker_of_lease(lease: str) -> str:
    return lease.partition("@")[2]


def texts_of(choices: Iterable[Choice]) -> list[str]:
    """Return each choice as one text: its lease if it has one, otherwise its worker."""
    return [choice.lease or choice.worker for choice in choices]


def worker_of(text: str) -> str:
    """Return the worker of a text of texts_of()."""
    return worker_of_lease(text) if "@" in text else text


async def queues(registry: Registry) -> list[int]:
    """Return the estimated queue length of each live worker, sorted by name."""
    return [known.status.queue_length for known in (await registry.list_workers()).workers]
