"""The number and the choice of engines for one request: after failures, while engines are busy, and for trials."""

import asyncio
from collections import Counter

import httpx
import pytest
from aiohttp import web

from controller.domain.engine import Protocol
from controller.domain.errors import WorkerBusy
from controller.proxy import trials
from controller.proxy.busy_engines import BusyEngines
from controller.proxy.trials import Outcome
from controller.store.registry import Registry
from tests.proxy.conftest import Serve
from tests.support.openai_engines import answers, engine_worker, openai_engine
from tests.support.samples import worker
from tests.support.waiting import wait_until
from tests.support.workers import answers as worker_answers
from tests.support.workers import bad_worker

CHAT = "/v1/chat/completions"


async def ask(http: httpx.AsyncClient, address: str, **headers: str) -> tuple[int, bytes]:
    response = await http.post(address + CHAT, json={"model": "m"}, headers=headers)
    return response.status_code, response.content


@pytest.mark.parametrize(("tries", "sent"), [(1, "a"), (2, "aa"), (3, "aab"), (4, "aabb"), (5, "aabbc"), (6, "aabbc")])
async def test_tries_count_for_all_names_of_a_request_together(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, tries: int, sent: str
) -> None:
    reached = []

    async def fails(request: web.Request) -> web.StreamResponse:
        reached.append((await request.json())["model"])
        return web.Response(body=b"oops", status=500)

    async with (
        openai_engine(fails) as a1,
        openai_engine(fails) as a2,
        openai_engine(fails) as b1,
        openai_engine(fails) as b2,
        openai_engine(answers(b"good")) as c,
        serve(forward_tries=tries) as (replica, address),
    ):
        for engine, model in ((a1, "a"), (a2, "a"), (b1, "b"), (b2, "b"), (c, "c")):
            await registry.register(engine_worker(engine.address, model))
        replica.gateway._candidates = lambda _: ("absent", "a", "gone", "b", "c")
        status, _ = await ask(http, address)
        assert "".join(reached) + "c" * len(c.requests) == sent
        assert status == (200 if "c" in sent else 500)


async def test_worker_of_fastchats_protocol_shares_the_tries(
    serve: Serve, registry: Registry, http: httpx.AsyncClient
) -> None:
    fails = worker_answers(b"oops", "500 No")
    async with (
        openai_engine(answers(b"oops", 500)) as engine,
        bad_worker(completions=fails) as one,
        bad_worker(completions=fails) as other,
        serve(forward_tries=2) as (replica, address),
    ):
        await registry.register(engine_worker(engine.address, "a"))
        await registry.register(worker(one.address, "b"))
        await registry.register(worker(other.address, "b"))
        replica.gateway._candidates = lambda _: ("a", "b")
        assert await ask(http, address) == (500, b"oops")
        assert (len(engine.requests), len(one.requests) + len(other.requests)) == (1, 1)


async def test_worker_without_the_route_uses_no_try(serve: Serve, registry: Registry, http: httpx.AsyncClient) -> None:
    async with (
        bad_worker(completions=worker_answers(b"no route", "404 No")) as fastchat,
        openai_engine(answers(b"oops", 500)) as bad,
        openai_engine(answers(b"good")) as good,
        serve(forward_tries=2) as (replica, address),
    ):
        await registry.register(worker(fastchat.address, "a"))
        await registry.register(engine_worker(bad.address, "b"))
        await registry.register(engine_worker(good.address, "c"))
        replica.gateway._candidates = lambda _: ("a", "b", "c")
        assert await ask(http, address) == (200, b"good")


async def test_name_with_workers_of_fastchats_protocol_does_not_end_the_search(
    serve: Serve, registry: Registry, http: httpx.AsyncClient
) -> None:
    async with (
        bad_worker(completions=worker_answers(b"no route", "404 No")) as fastchat,
        openai_engine(answers(b"good")) as engine,
        serve(forward_tries=1) as (replica, address),
    ):
        await registry.register(worker(fastchat.address, "a"))
        await registry.register(engine_worker(engine.address, "b"))
        replica.gateway._candidates = lambda _: ("a", "b")
        assert await ask(http, address) == (200, b"good")
        await registry.remove(engine.address)
        replica.gateway._candidates = lambda _: ("a", "absent")
        response = await http.post(address + CHAT, json={"model": "m"})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "wrong_protocol")


@pytest.mark.parametrize("affinity", ["off", "session"])
async def test_busy_engine_is_left_alone_for_a_while(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, affinity: str
) -> None:
    """An engine that refuses at once has no load, so it stays the cheapest one."""
    async with (
        openai_engine(answers(b"busy", 429, {"Retry-After": "30"})) as busy,
        openai_engine(answers(b"good")) as good,
        serve(affinity=affinity, retry_budget=0.0) as (replica, address),
    ):
        await registry.register(engine_worker(busy.address))
        assert (await ask(http, address, **{"X-Session-Id": "s"}))[0] == 429
        await registry.register(engine_worker(good.address, queue_length=100))
        for _ in range(20):
            assert await ask(http, address, **{"X-Session-Id": "s"}) == (200, b"good")
        assert len(busy.requests) == 1
        await wait_until(lambda: not replica.bookings._background, "the leases are released")
        assert {known.leased for known in (await registry.list_workers()).workers} == {0}
        await registry.remove(good.address)
        assert (await ask(http, address))[0] == 429, "if all engines are busy, they are asked"


async def test_busy_engine_without_load_is_replaced_by_one_with_many_leases(
    serve: Serve, registry: Registry, http: httpx.AsyncClient
) -> None:
    async with (
        openai_engine(answers(b"busy", 429)) as busy,
        openai_engine(answers(b"good")) as good,
        serve(retry_budget=1.0) as (replica, address),
    ):
        await registry.register(engine_worker(good.address))
        held = [(await replica.bookings.choose("m", Protocol.OPENAI)).value for _ in range(60)]
        await registry.register(engine_worker(busy.address))
        for _ in range(5):
            assert await ask(http, address) == (200, b"good")
        for each in held:
            replica.bookings.end(each)


async def test_lease_of_a_busy_engine_is_released_if_the_client_leaves_before_another_is_found(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    searching = asyncio.Event()

    async def search_for_ever(*_: object) -> None:
        searching.set()
        await asyncio.Event().wait()

    async def leases() -> list[int]:
        return [known.leased for known in (await registry.list_workers()).workers]

    async def all_released() -> bool:
        return await leases() == [0, 0]

    async with (
        openai_engine(answers(b"busy", 429, {"Retry-After": "30"})) as busy,
        openai_engine(answers(b"good")) as good,
        serve(retry_budget=0.0) as (replica, address),
    ):
        await registry.register(engine_worker(busy.address))
        assert (await ask(http, address))[0] == 429
        await registry.register(engine_worker(good.address, queue_length=100))
        monkeypatch.setattr(replica.bookings, "choose_another", search_for_ever)
        asked = asyncio.create_task(ask(http, address))
        await searching.wait()
        assert sorted(await leases()) == [0, 1], "the busy engine was chosen first"
        asked.cancel()
        await wait_until(all_released, "the lease is released")
        assert len(busy.requests) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, 1), (b"0", 1), (b"7", 7), (b"30", 30), (b"86400", 30), (b"9" * 400, 1), (b"-5", 1), (b"x", 1), (b"", 1)],
)
def test_busy_engine_is_remembered_for_its_retry_after(value: bytes | None, seconds: int) -> None:
    now = 100.0
    busy = BusyEngines(lambda: now)
    headers = () if value is None else ((b"retry-after", value),)
    busy.note("a", WorkerBusy("busy", 429, headers, b""))
    now += seconds - 0.01
    assert busy.names() == {"a"}
    now += 0.02
    assert busy.names() == set()


def test_pause_and_limit_of_trials_are_doubled_up_to_a_limit() -> None:
    """After 1,024 failed trials, which take less than a day, 2.0**failed overflows."""
    assert [trials._doubled(1.0, failed, 60.0) for failed in (0, 1, 5, 6, 1_024, 10**9)] == [1, 2, 32, 60, 60, 60]


@pytest.mark.slow_on_fakeredis
async def test_a_trial_that_succeeds_ends_the_count_of_those_that_failed(
    serve: Serve, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(trials, "_NEXT_LOOK", 0.01)
    name = "http://127.0.0.1:1/a"
    async with serve() as (replica, _):
        await registry.register(engine_worker(name))
        await registry.register(engine_worker("http://127.0.0.1:1/b"))
        await registry.report_failure(name)
        await replica.snapshots.take_now()
        limits = []
        for outcome in (Outcome.UNKNOWN, Outcome.FAILED, Outcome.UNKNOWN, Outcome.FAILED, Outcome.SUCCEEDED):
            await wait_until(lambda: replica.trials.take("m") == name, "a trial is due")
            limits.append(replica.trials.time_limit(name))
            replica.trials.end(name, outcome)
        await wait_until(lambda: replica.trials.take("m") == name, "the next trial is due")
        assert [*limits, replica.trials.time_limit(name)] == [10, 10, 20, 20, 40, 10]


@pytest.mark.slow_on_fakeredis
async def test_trial_of_an_engine_that_hangs_ends(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request goes to another engine, even if the budget has no room any more."""
    monkeypatch.setattr(trials, "_FIRST_LIMIT", 0.2)
    monkeypatch.setattr(trials, "_MAX_LIMIT", 0.4)
    monkeypatch.setattr(trials, "_MAX_PAUSE", 1.0)
    mode = "fails"

    async def behaviour(_: web.Request) -> web.StreamResponse:
        if mode == "hangs":
            await asyncio.sleep(3600)
        return web.Response(body=b"oops", status=500) if mode == "fails" else web.Response(body=b"back")

    async with (
        openai_engine(behaviour) as bad,
        openai_engine(answers(b"good")) as good,
        serve(snapshot_interval=0.1) as (_, address),
    ):
        await registry.register(engine_worker(bad.address))
        await registry.register(engine_worker(good.address, queue_length=100))
        assert await ask(http, address) == (200, b"good")
        mode = "hangs"
        served: Counter[tuple[int, bytes]] = Counter()

        async def two_trials_ended() -> bool:
            served[await ask(http, address)] += 1
            return bad.cancelled >= 2

        await wait_until(two_trials_ended, "two trials were ended")
        assert set(served) == {(200, b"good")}
        mode = "serves"

        async def is_back() -> bool:
            return await ask(http, address) == (200, b"back")

        await wait_until(is_back, "the engine gets requests again")
