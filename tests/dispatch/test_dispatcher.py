"""Requests that the dispatcher answers without Redis."""

from controller.domain.worker import MAX_MODEL_NAME_LENGTH
from controller.store.registry import Registry
from tests.conftest import Open
from tests.support.outage import Link
from tests.support.samples import A, worker


async def test_model_name_that_is_too_long_to_be_registered_never_reaches_redis(replica: Open, link: Link) -> None:
    """The name may be as long as a whole body."""
    dispatcher = replica().dispatcher
    name = "m" * (MAX_MODEL_NAME_LENGTH + 1)
    assert (await dispatcher.dispatch(name)).value == ""
    assert (await dispatcher.dispatch_with_lease(name)).value == ("", "")
    assert (await dispatcher.find_worker(name)).value == ""
    assert link.delivered == []


async def test_longest_model_name_is_dispatched(registry: Registry, replica: Open) -> None:
    dispatcher = replica(registry).dispatcher
    name = "m" * MAX_MODEL_NAME_LENGTH
    await registry.register(worker(A, name))
    assert (await dispatcher.dispatch(name)).value == A
    assert (await dispatcher.dispatch_with_lease(name)).value.address == A
    assert (await dispatcher.find_worker(name)).value == A
