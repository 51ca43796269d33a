"""The coalescer turns concurrent calls into batches. Each caller gets its own result."""

import asyncio
from collections.abc import Sequence

import pytest

from controller.availability.coalescer import AGAIN, Again, Coalescer


class Call:
    """Doubles numbers when the gate is open, and records its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.gate.wait()
        if 13 in items:
            raise ValueError("13")
        return [2 * item for item in items]


async def test_items_that_arrive_during_a_call_go_into_the_next_batch() -> None:
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


async def test_batch_size_is_limited() -> None:
    call = Call()
    call.gate.set()
    coalescer = Coalescer(call, limit=2)
    assert await asyncio.gather(*map(coalescer.submit, range(5))) == [0, 2, 4, 6, 8]
    assert call.batches == [[0, 1], [2, 3], [4]]


async def test_error_reaches_only_the_callers_of_the_failed_batch() -> None:
    call = Call()
    coalescer = Coalescer(call, limit=2)
    futures = [coalescer.submit(item) for item in (13, 1, 2)]
    call.gate.set()
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError, int]


async def test_item_cancelled_before_the_call_is_left_out() -> None:
    call = Call()
    coalescer = Coalescer(call)
    first = coalescer.submit(1)
    await asyncio.sleep(0)
    cancelled, kept = coalescer.submit(2), coalescer.submit(3)
    cancelled.cancel()
    call.gate.set()
    assert (await first, await kept) == (2, 6)
    assert call.batches == [[1], [3]]


@pytest.mark.parametrize("item", [1, 13])
async def test_item_cancelled_during_the_call_does_not_disturb_later_calls(item: int) -> None:
    call = Call()
    coalescer = Coalescer(call)
    cancelled = coalescer.submit(item)
    await asyncio.sleep(0)
    cancelled.cancel()
    call.gate.set()
    assert await coalescer.submit(4) == 8


async def test_batch_of_cancelled_items_is_not_called() -> None:
    call = Call()
    call.gate.set()
    coalescer = Coalescer(call)
    coalescer.submit(1).cancel()
    assert await coalescer.submit(2) == 4
    assert call.batches == [[2]]


async def test_cancelling_the_call_cancels_all_waiting_callers() -> None:
    call = Call()
    coalescer = Coalescer(call)
    first = coalescer.submit(1)
    await asyncio.sleep(0)
    second = coalescer.submit(2)
    assert coalescer._task is not None
    coalescer._task.cancel()
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2


async def test_unprocessed_item_goes_behind_the_items_that_arrived_during_the_call() -> None:
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


async def test_items_that_the_call_did_not_reach_come_before_those_that_arrived_meanwhile() -> None:
    """An item that waits for something else, such as 1, goes behind them."""
    batches: list[list[int]] = []
    tried = 0

    async def call(items: Sequence[int]) -> Sequence[int | Again]:
        nonlocal tried
        batches.append(list(items))
        await asyncio.sleep(0)
        tried += 1
        return [AGAIN if i > 1 or (item == 1 and tried == 1) else item for i, item in enumerate(items)]

    coalescer = Coalescer(call)
    futures = [coalescer.submit(item) for item in (1, 2, 3, 4)]
    await asyncio.sleep(0)
    futures += [coalescer.submit(item) for item in (5, 6)]
    assert await asyncio.gather(*futures) == [1, 2, 3, 4, 5, 6]
    assert batches == [[1, 2, 3, 4], [3, 4, 5, 6, 1], [5, 6, 1], [1]]
