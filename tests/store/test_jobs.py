"""The locks of singleton jobs, which one replica does for all."""

from controller.store.registry import Registry
from tests.support.waiting import wait_until


async def test_job_lock_belongs_to_one_replica_until_the_job_is_due_again(registry: Registry) -> None:
    assert await registry.acquire_job("x", "a", 60.0) == (True, "")
    assert await registry.acquire_job("x", "b", 60.0, urgent=True) == (False, ""), "another replica holds the lock"
    assert await registry.acquire_job("x", "a", 60.0) == (True, ""), (
        "the same replica may repeat a call without a reply"
    )
    assert await registry.complete_job("x", "a", 60.0, "sent", 60.0)
    assert not await registry.complete_job("x", "a", 60.0, "twice", 60.0)
    assert await registry.acquire_job("x", "b", 60.0) == (False, "sent"), "the job is not due"
    assert await registry.acquire_job("x", "b", 60.0, urgent=True) == (True, "sent")
    assert await registry.complete_job("x", "b", 0.001, "", 60.0), "the job failed"

    async def due() -> bool:
        return (await registry.acquire_job("x", "c", 60.0))[0]

    await wait_until(due, "the job is due again")
    assert await registry.acquire_job("x", "a", 1.0) == (False, ""), "the earlier result is deleted"
