"""The limits that a replica's requests share: memory for bodies, and registrations by address."""

import asyncio
from typing import Any

import pytest

from controller.domain.errors import TooManyBodies, TooManyRegistrations
from controller.web.asgi import limits
from controller.web.asgi.endpoint import Answer, Endpoint
from controller.web.asgi.limits import SMALL_BODY, AddressRate, BodyMemory, RequestLimits

MIB = 1024 * 1024


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
    return clock


def delays(rate: AddressRate, clock: Clock, *addresses: str) -> list[float]:
    return [round(max(0.0, rate._reserve(address, clock.now)), 6) for address in addresses]


async def test_a_burst_passes_and_then_one_call_in_each_interval(clock: Clock) -> None:
    rate = AddressRate(2.0, max_delay=60.0, burst=3)
    assert delays(rate, clock, *["a"] * 6) == [0, 0, 0, 0, 0.5, 1.0]
    clock.now += 1.0
    assert delays(rate, clock, "a") == [0.5]
    clock.now += 100.0
    assert delays(rate, clock, *["a"] * 5) == [0, 0, 0, 0, 0.5]


async def test_a_call_is_refused_if_its_delay_would_be_too_long_and_does_not_count(clock: Clock) -> None:
    rate = AddressRate(1.0, max_delay=2.0, burst=0)
    assert delays(rate, clock, "a", "a", "a") == [0, 1, 2]
    for _ in range(5):
        with pytest.raises(TooManyRegistrations, match="a exceeds the 1 registrations per second") as refused:
            rate._reserve("a", clock.now)
        assert refused.value.retry_after == 1
    clock.now += 1.0
    assert delays(rate, clock, "a") == [2]


async def test_addresses_have_buckets_of_their_own_but_an_ipv6_network_has_one(clock: Clock) -> None:
    rate = AddressRate(1.0, max_delay=9.0, burst=0)
    assert delays(rate, clock, "10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1") == [0, 0, 1]
    assert delays(rate, clock, "::ffff:10.0.0.1") == [2]
    assert delays(rate, clock, "2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1", "fe80::1%eth0") == [0, 1, 0, 0]
    assert delays(rate, clock, "not:an:address", "") == [0, 0]


async def test_a_bounded_number_of_addresses_is_remembered(clock: Clock) -> None:
    rate = AddressRate(1.0, max_delay=100.0, burst=0, max_addresses=3)
    assert delays(rate, clock, "a", "b", "c") == [0, 0, 0]
    assert delays(rate, clock, "d", "e", "f") == [0, 1, 2], "these share a bucket"
    assert delays(rate, clock, "a") == [1]
    assert len(rate._due) == 4
    clock.now += 50.0
    assert delays(rate, clock, "d", "e", "a") == [0, 0, 0]
    for number in range(100):
        rate._reserve(f"address {number}", clock.now)
    assert len(rate._due) == 4


async def test_delayed_calls_begin_when_the_replica_ends() -> None:
    rate = AddressRate(0.001, max_delay=10_000.0, burst=0)
    await rate.admit("a")
    delayed = asyncio.create_task(rate.admit("a"))
    await asyncio.sleep(0.01)
    assert not delayed.done()
    rate.stop()
    await delayed


async def test_no_rate_limits_nothing() -> None:
    rate = AddressRate(0.0, max_delay=0.0)
    for _ in range(1000):
        await rate.admit("a")
    assert not rate._due


def test_body_memory_refuses_what_exceeds_it_and_counts_nothing_then() -> None:
    memory = BodyMemory(2 * MIB)
    memory.add(MIB)
    with pytest.raises(TooManyBodies, match="occupy 1 MiB of this replica, and --max-body-memory allows 2 MiB"):
        memory.add(MIB + 1)
    memory.add(MIB)
    memory.remove(2 * MIB)
    assert memory.used == 0
    unlimited = BodyMemory()
    unlimited.add(10**15)


PARTS = [
    [b"a" * SMALL_BODY],
    [b"a" * (SMALL_BODY + 1)],
    [b"a" * SMALL_BODY, b"a"],
    [b"a", b"b" * 100_000, b"c" * 100_000],
]


@pytest.mark.parametrize("end", ["answered", "failed", "disconnected", "too large", "no memory"])
@pytest.mark.parametrize("parts", PARTS, ids=[str([len(part) for part in parts]) for parts in PARTS])
async def test_an_endpoint_counts_large_bodies_while_it_has_them(parts: list[bytes], end: str) -> None:
    total = sum(map(len, parts))
    memory = BodyMemory(300_000 if end != "no memory" else 1)
    seen: list[int] = []

    async def handle(body: bytes) -> Answer:
        seen.append(memory.used)
        if end == "failed":
            raise ValueError
        return Answer(b"%d" % len(body))

    arriving = iter([(part, number < len(parts) - 1) for number, part in enumerate(parts)])

    async def receive() -> dict[str, Any]:
        if end == "disconnected" and len(parts) > 1:
            part = next(arriving, None)
            if part is None or not part[1]:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": part[0], "more_body": True}
        body, more = next(arriving)
        return {"type": "http.request", "body": body, "more_body": more}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    endpoint = Endpoint(handle)
    endpoint.limits = RequestLimits(memory)
    if end == "too large":
        endpoint.max_body = total - 1
    await endpoint({"type": "http", "path": "/", "headers": []}, receive, send)
    assert memory.used == 0
    is_large = total > SMALL_BODY
    if end == "no memory" and is_large:
        assert sent[0]["status"] == 503
        assert (b"retry-after", b"1") in sent[0]["headers"]
    elif end == "too large":
        assert sent[0]["status"] == 413
    elif end != "disconnected" or len(parts) == 1:
        assert seen == [total if is_large else 0]
