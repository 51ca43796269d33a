"""Answers in one piece: nobody who is killed between two calls of the system has sent half of one."""

import asyncio

from controller.web.asgi.protocol import _WholeAnswers

HEAD, BODY = b"HTTP/1.1 200 OK\r\n\r\n", b"body"


class Recorder:
    """A transport that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def close(self) -> None:
        self.told.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.told


async def answered(*writes: bytes, close: bool = False) -> list[object]:
    recorder = Recorder()
    transport = _WholeAnswers(recorder, asyncio.get_running_loop())
    for data in writes:
        transport.write(data)
    if close:
        transport.close()
    told = list(recorder.told)
    await asyncio.sleep(0)
    assert transport.is_closing() == close
    return [told, recorder.told[len(told) :]]


async def test_a_head_goes_with_its_body() -> None:
    assert await answered(HEAD, BODY) == [[HEAD + BODY], []]
    assert await answered(HEAD, BODY, BODY) == [[HEAD + BODY, BODY], []]
    assert await answered(HEAD, BODY, HEAD, BODY) == [[HEAD + BODY, HEAD + BODY], []]


async def test_a_head_alone_does_not_wait_for_long() -> None:
    assert await answered(HEAD) == [[], [HEAD]]
    assert await answered(HEAD, HEAD, BODY) == [[HEAD + HEAD, BODY], []]


async def test_nothing_is_lost_when_it_closes() -> None:
    assert await answered(HEAD, close=True) == [[HEAD, "closed"], []]
    assert await answered(HEAD, BODY, close=True) == [[HEAD + BODY, "closed"], []]
