"""Many calls become few; each caller gets its own answer."""

import asyncio
from collections.abc import Sequence

import pytest

from controller.availability.coalescer import AGAIN, Coalescer


class Call:
    """Doubles numbers, when it is let; remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.gate.wait()
        if 13 in items:
            raise ValueError("13")
        return [2 * item for item in items]


async def test_what_arrives_meanwhile_goes_together() -> None:
    call = Call()
    coalescer = Coalescer(call)
    first = coalescer.submit(1)
    await asyncio.sleep(0)
    others = [coalescer.submit(item) for item in (2, 3, 2)]
    await asyncio.sleep(0)
    assert call.batches == [[1]]
    call.gate.set()
    assert await asyncio.gather(first, *others) == [2, 4, 6, 4]
    assert call.batches == [[1], [2, 3, 2]]
    assert await coalescer.submit(5) == 10
    assert call.batches[2:] == [[5]]


async def test_a_batch_has_its_limit() -> None:
    call = Call()
    call.gate.set()
    coalescer = Coalescer(call, limit=2)
    assert await asyncio.gather(*map(coalescer.submit, range(5))) == [0, 2, 4, 6, 8]
    assert call.batches == [[0, 1], [2, 3], [4]]


async def test_an_error_reaches_those_who_waited_for_that_call_and_nobody_else() -> None:
    call = Call()
    coalescer = Coalescer(call, limit=2)
    futures = [coalescer.submit(item) for item in (13, 1, 2)]
    call.gate.set()
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError, int]


async def test_who_goes_away_before_the_call_is_left_out() -> None:
    call = Call()
    coalescer = Coalescer(call)
    first = coalescer.submit(1)
    await asyncio.sleep(0)
    gone, stays = coalescer.submit(2), coalescer.submit(3)
    gone.cancel()
    call.gate.set()
    assert (await first, await stays) == (2, 6)
    assert call.batches == [[1], [3]]


@pytest.mark.parametrize("item", [1, 13])
async def test_who_goes_away_during_the_call_disturbs_nobody(item: int) -> None:
    call = Call()
    coalescer = Coalescer(call)
    gone = coalescer.submit(item)
    await asyncio.sleep(0)
    gone.cancel()
    call.gate.set()
    assert await coalescer.submit(4) == 8


async def test_a_batch_of_nobody_is_not_called() -> None:
    call = Call()
    call.gate.set()
    coalescer = Coalescer(call)
    coalescer.submit(1).cancel()
    assert await coalescer.submit(2) == 4
    assert call.batches == [[2]]


async def test_cancelling_the_call_cancels_all_who_wait() -> None:
    call = Call()
    coalescer = Coalescer(call)
    first = coalescer.submit(1)
    await asyncio.sleep(0)
    second = coalescer.submit(2)
    assert coalescer._task is not None
    coalescer._task.cancel()
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2


async def test_an_item_that_the_call_did_not_get_to_goes_behind_those_that_arrived_meanwhile() -> None:
    batches: list[list[int]] = []
    gate = asyncio.Event()

    async def call(items: Sequence[int]) -> list[object]:
        batches.append(list(items))
        await gate.wait()
        return [item if len(batches) > 2 or item > 1 else AGAIN for item in items]

    coalescer: Coalescer[int, object] = Coalescer(call, limit=2)
    early = [coalescer.submit(item) for item in (1, 2)]
    await asyncio.sleep(0)
    late = [coalescer.submit(item) for item in (3, 4)]
    gate.set()
    assert await asyncio.gather(*early, *late) == [1, 2, 3, 4]
    assert batches == [[1, 2], [3, 4], [1]]
