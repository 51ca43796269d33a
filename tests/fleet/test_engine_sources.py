"""The addresses of names: which engines a source lists after each lookup."""

import asyncio
from collections.abc import Sequence

import pytest

from controller.fleet.engine_sources import DnsSource
from tests.fleet.engine_replicas import Resolver
from tests.support.waiting import wait_until


async def lookups(source: DnsSource, number: int) -> tuple[set[str], bool] | None:
    """Let some lookups end. Return what the source lists then."""
    for _ in range(number):
        await source.read()  # takes the result of the lookup before, and starts one
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    for name in source._names:
        name._due = float("inf")
    proposal = await source.read()
    for name in source._names:
        name._due = 0.0
    return (set(proposal.engines), proposal.is_complete) if proposal else None


ONE, TWO = "http://127.0.0.1:8000", "http://127.0.0.2:8000"


async def test_an_address_leaves_a_name_after_three_lookups_without_it(at_once: None) -> None:
    resolver = Resolver("127.0.0.1", "127.0.0.2")
    source = DnsSource([("engines", 8000)], resolver)
    assert await source.read() is None
    assert await lookups(source, 1) == ({ONE, TWO}, False), "others may be missing"
    assert await lookups(source, 3) == ({ONE, TWO}, True)
    resolver.answer = ["127.0.0.1"]
    assert await lookups(source, 2) == ({ONE, TWO}, True)
    resolver.answer = ["127.0.0.2"]
    assert await lookups(source, 1) == ({ONE, TWO}, True)
    resolver.answer = ["127.0.0.1"]
    assert await lookups(source, 2) == ({ONE, TWO}, True), "it was there in between"
    assert await lookups(source, 1) == ({ONE}, True)
    await source.close()


async def test_a_lookup_that_fails_removes_no_engine(at_once: None, caplog: pytest.LogCaptureFixture) -> None:
    resolver = Resolver("127.0.0.1")
    source = DnsSource([("engines", 8000)], resolver)
    await lookups(source, 3)
    failures: list[Sequence[str] | OSError] = [OSError("no such name"), []]
    for failure in failures:
        resolver.answer = failure
        assert await lookups(source, 5) == ({ONE}, True)
    assert [record.getMessage() for record in caplog.records] == [
        "--workers-dns: the lookup of engines failed, so its engines stay as they were: no such name"
    ]
    await source.close()


async def test_a_name_that_was_never_found_keeps_the_engines_that_may_be_its_own(at_once: None) -> None:
    found, missing = Resolver("127.0.0.1"), Resolver()
    missing.answer = OSError("no such name")
    source = DnsSource([("engines", 8000), ("missing", 8000)], found)
    source._names[1]._resolve = missing
    assert await lookups(source, 5) == ({ONE}, False)
    await source.close()


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["::1", "127.0.0.1"], {ONE}),
        (["::1"], {"http://[::1]:8000"}),
        (["fe80::1%eth0", "::1"], {"http://[::1]:8000"}),
    ],
)
async def test_a_machine_with_addresses_of_both_kinds_is_one_engine(
    at_once: None, addresses: list[str], expected: set[str]
) -> None:
    source = DnsSource([("engines", 8000)], Resolver(*addresses))
    assert await lookups(source, 1) == (expected, False)
    await source.close()


async def test_the_systems_resolver_is_used_and_a_hostile_name_fails(at_once: None) -> None:
    source = DnsSource([("localhost", 8000), ("a" * 63 + ".invalid", 8000)])

    async def first() -> set[str]:
        proposal = await source.read()
        return set(proposal.engines) if proposal else set()

    assert await wait_until(first, "localhost is found") <= {ONE, "http://[::1]:8000"}
    await source.close()
