"""Test that sequence numbers of 15 and 16 digits stay exact in all keys."""

import pytest

from controller.store import keys
from controller.store.reconciliation import split
from tests.conftest import Store
from tests.support.dispatches import dispatch_shortest_queue, leases_of, worker_of_lease, workers_of
from tests.support.samples import A, B, C, asks, worker

NAMES = [A, B, C]


async def test_sequence_numbers_keep_all_digits(store: Store) -> None:
    """Start the sequence at 2^52. Sequence numbers, index members and leases stay exact and ordered."""
    first = 2**52
    await store.client.set(keys.sequence(store.namespace), first)
    registry = store.registry(booking_decay=True)
    for name in (B, C, A):
        await registry.register(worker(name))
    assert [fields["seq"] for fields in await all_fields(store)] == [str(first + 3), str(first + 1), str(first + 2)]
    leases = leases_of(await dispatch_shortest_queue(registry, asks(["m"] * 6, 60_000)))
    assert list(map(worker_of_lease, leases)) == [B, C, A] * 2
    assert [int(lease.split("-")[2]) for lease in leases] == [first + 4 + i for i in range(6)]
    for part in ("seq", "index_seq"):
        assert [fields[part] for fields in await all_fields(store)] == [str(first + 9), str(first + 7), str(first + 8)]
    assert await registry.release(leases) == [True] * 6
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"] * 3))) == [B, C, A]
    assert [fields["seq"] for fields in await all_fields(store)] == [str(first + 12), str(first + 10), str(first + 11)]
    workers, sequence, *_ = await registry.list_workers()
    assert sequence == first + 12
    assert [known.registration for known in workers] == [first + 3, first + 1, first + 2]
    for reconciliation in split({}, [], first + 100):
        await registry.reconcile(reconciliation)
    assert await store.client.get(keys.sequence(store.namespace)) == str(first + 100)


@pytest.mark.parametrize("lease_ms", [0, 60_000])
@pytest.mark.parametrize("decays", [True, False])
async def test_idle_workers_rotate_at_any_sequence_number(store: Store, decays: bool, lease_ms: int) -> None:
    """A busy worker is never chosen before the idle ones."""
    registry = store.registry(booking_decay=decays)
    await registry.register(worker(C, queue_length=1, capacity=1))
    for sequence in (2**50, 2**52, 2**53 - 2_000_000_000):
        await store.client.set(keys.sequence(store.namespace), sequence)
        for name in (B, A):
            await registry.remove(name)
            await registry.register(worker(name))
        chosen = await dispatch_shortest_queue(registry, asks(["m"] * 2, lease_ms))
        assert workers_of(chosen) == [B, A]


async def all_fields(store: Store) -> list[dict[str, str]]:
    """Return the hashes of A, B and C."""
    return [await store.client.hgetall(keys.worker(store.namespace, name)) for name in NAMES]
