"""Responses are written in one piece: a replica killed between two system calls has not sent half a response."""

import asyncio

from controller.web.asgi.transport import JoinedWrites

HEAD, BODY = b"HTTP/1.1 200 OK\r\n\r\n", b"body"


class Recorder(asyncio.Transport):
    """A transport that records its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[object] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.calls.append(data)

    def close(self) -> None:
        self.calls.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.calls


async def written(*writes: bytes, close: bool = False) -> list[object]:
    """Return what reaches the transport at once, and in the next round of the loop."""
    recorder = Recorder()
    transport = JoinedWrites(recorder, asyncio.get_running_loop())
    for data in writes:
        transport.write(data)
    if close:
        transport.close()
    before = list(recorder.calls)
    await asyncio.sleep(0)
    assert transport.is_closing() == close
    return [before, recorder.calls[len(before) :]]


async def test_head_is_written_together_with_its_body() -> None:
    assert await written(HEAD, BODY) == [[HEAD + BODY], []]
    assert await written(HEAD, BODY, BODY) == [[HEAD + BODY, BODY], []]
    assert await written(HEAD, BODY, HEAD, BODY) == [[HEAD + BODY, HEAD + BODY], []]


async def test_head_without_a_body_is_written_in_the_next_round_of_the_loop() -> None:
    assert await written(HEAD) == [[], [HEAD]]
    assert await written(HEAD, HEAD, BODY) == [[HEAD + HEAD, BODY], []]


async def test_close_writes_a_waiting_head_first() -> None:
    assert await written(HEAD, close=True) == [[HEAD, "closed"], []]
    assert await written(HEAD, BODY, close=True) == [[HEAD + BODY, "closed"], []]
