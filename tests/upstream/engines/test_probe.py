"""The probe: its questions to an engine, their times, and the state that follows from the answers."""

import asyncio
import json
import string
from collections.abc import Mapping
from dataclasses import replace

import pytest

from controller.domain.engine_status import EngineKind, EngineModel, EngineStatus
from controller.domain.errors import WorkerNotAllowed, WorkerUnreachable
from controller.security.worker_addresses import WorkerAddresses
from controller.upstream.client import WorkerClient
from controller.upstream.engines.probe import EngineProbe
from tests.support.engines import DISCONNECTS, HANGS, NOT_FOUND, Answer, answer_server
from tests.upstream.engines.conftest import FakeClock

MODELS = Answer(b'{"object":"list","data":[{"id":"m"}]}')
NO_MODELS = Answer(b'{"object":"list","data":[]}')
OK = Answer()
UNAVAILABLE = Answer(status=503)
METRICS = Answer(b"vllm:num_requests_running 3\nvllm:num_requests_waiting 0\n")
AWAKE = b'vllm:engine_sleep_state{engine="0",sleep_state="awake"} %d\n'
VLLM = {"/v1/models": MODELS, "/health": OK, "/metrics": METRICS}
LOADS = Answer(b'{"loads":[{"dp_rank":0,"num_running_reqs":2,"num_waiting_reqs":1}]}')
SGLANG_METRICS = Answer(b"sglang:num_running_reqs 7\nsglang:num_queue_reqs 0\n")
SGLANG = {"/v1/models": MODELS, "/health": OK, "/v1/loads": LOADS, "/metrics": SGLANG_METRICS}
READY = EngineStatus(models=(EngineModel("m"),), running=3, waiting=0, full=False, lag=6.0)


async def test_each_poll_asks_for_the_load_and_rarely_for_the_rest(client: WorkerClient, clock: FakeClock) -> None:
    async with answer_server(VLLM) as engine:
        probe = EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock)
        assert await probe.poll() == READY
        first = ["/health", "/is_sleeping", "/metrics", "/server_info?config_format=json", "/v1/models"]
        assert engine.taken() == first
        for _ in range(4):
            clock.now += 1.0
            assert await probe.poll() == READY
            assert engine.taken() == ["/metrics"]
        clock.now += 1.0
        assert await probe.poll() == READY
        assert engine.taken() == ["/health", "/metrics", "/v1/models"]  # the other routes do not exist


async def test_load_may_lag_for_longer_until_the_engine_has_reported_a_request(
    client: WorkerClient, clock: FakeClock
) -> None:
    idle = Answer(b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n")
    async with answer_server({**VLLM, "/metrics": idle}) as engine:
        probe = EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock)
        assert [(await probe.poll()).lag for _ in range(2)] == [18.0, 18.0]
        engine.answers["/metrics"] = METRICS
        assert (await probe.poll()).lag == 6.0
        engine.answers["/metrics"] = idle
        assert (await probe.poll()).lag == 6.0
        engine.answers = dict.fromkeys(VLLM, DISCONNECTS)
        with pytest.raises(WorkerUnreachable):
            await probe.poll()
        engine.answers = {**VLLM, "/metrics": idle}
        assert (await probe.poll()).lag == 18.0, "it may have been restarted"


async def test_requests_of_a_poll_share_one_connection(client: WorkerClient, clock: FakeClock) -> None:
    async with answer_server(VLLM) as engine:
        probe = EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock)
        for _ in range(3):
            await probe.poll()
            assert len(engine.writers) == 1


async def test_capacity_is_asked_every_minute(client: WorkerClient, clock: FakeClock) -> None:
    props = Answer(b'{"total_slots":4}')
    slots = Answer(b'[{"is_processing":true},{"is_processing":false}]')
    async with answer_server({"/v1/models": MODELS, "/health": OK, "/props": props}) as engine:
        probe = EngineProbe(client, engine.address, EngineKind.LLAMACPP, clock=clock)
        assert (await probe.poll()).capacity == 4
        assert "/props" in engine.taken()
        engine.answers["/props"] = Answer(b'{"total_slots":8}')
        clock.now += 59.0
        assert (await probe.poll()).capacity == 4
        assert "/props" not in engine.taken()
        clock.now += 1.0
        assert (await probe.poll()).capacity == 8
    async with answer_server({"/v1/models": MODELS, "/health": OK, "/props": props, "/slots": slots}) as engine:
        probe = EngineProbe(client, engine.address, EngineKind.LLAMACPP, clock=clock)
        for _ in range(3):
            assert (await probe.poll()).capacity == 2  # the answer with the load has the capacity of this moment
            assert "/props" not in engine.taken()
            clock.now += 60.0


@pytest.mark.parametrize("kind", [EngineKind.OLLAMA, EngineKind.GENERIC])
async def test_each_poll_of_an_engine_without_load_sends_one_request(
    client: WorkerClient, clock: FakeClock, kind: EngineKind
) -> None:
    async with answer_server({"/v1/models": MODELS, "/api/version": Answer(b'{"version":"1"}')}) as engine:
        probe = EngineProbe(client, engine.address, kind, clock=clock)
        await probe.poll()
        engine.taken()
        clock.now += 1.0
        status = await probe.poll()
        assert engine.taken() == ["/api/version" if kind is EngineKind.OLLAMA else "/v1/models"]
        assert status == EngineStatus(models=(EngineModel("m"),))
        assert status.ready
        assert status.queue_length is None


@pytest.mark.parametrize(
    ("answer", "not_ready"),
    [
        ({"/health": UNAVAILABLE}, "/health returned status 503"),
        (
            {"/health": Answer(b'{"error":{"message":"Loading model","type":"unavailable_error"}}', 503)},
            "/health returned status 503: Loading model",
        ),
        ({"/health": Answer(b'{"detail":"\\u001b[2J\\nbad"}', 500)}, r"/health returned status 500: \x1b[2J\nbad"),
        (
            {"/health": Answer(status=307, headers=("Location: http://127.0.0.1:1/health",))},
            "/health returned status 307, a redirect. Register the address to which it leads",
        ),
        ({"/v1/models": NO_MODELS}, "it lists no models"),
        ({"/v1/models": Answer(status=404)}, "/v1/models returned status 404"),
        ({"/v1/models": Answer(status=500)}, "/v1/models returned status 500"),
        ({"/v1/models": Answer(b"<html>")}, "the answer of /v1/models is not JSON"),
        (
            {"/v1/models": Answer(status=401)},
            "/v1/models returned status 401: the engine requires a key, or rejects the key that is sent",
        ),
        ({"/is_sleeping": Answer(b'{"is_sleeping":true}')}, "it is asleep"),
        (
            {"/metrics": Answer(METRICS.body + b'vllm:engine_healthy{engine="0"} 0\n')},
            "its engine processes are not healthy",
        ),
        ({"/metrics": Answer(METRICS.body + AWAKE % 0), "/is_sleeping": NOT_FOUND}, "it is asleep"),
    ],
)
async def test_engine_that_is_not_ready_is_asked_at_each_poll_until_it_is(
    client: WorkerClient, clock: FakeClock, answer: Mapping[str, Answer], not_ready: str
) -> None:
    healed = {**VLLM, "/is_sleeping": Answer(b'{"is_sleeping":false}'), "/metrics": Answer(METRICS.body + AWAKE % 1)}
    async with answer_server({**healed, **answer}) as engine:
        probe = EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock)
        for _ in range(2):
            status = await probe.poll()
            assert status.not_ready == not_ready
            assert not status.ready
            assert {"/health", "/metrics", "/v1/models"} <= set(engine.taken())
            clock.now += 1.0
        engine.answers.update(healed)
        assert await probe.poll() == READY


async def test_missing_health_route_leaves_the_decision_to_the_models(client: WorkerClient, clock: FakeClock) -> None:
    async with answer_server({**VLLM, "/health": Answer(status=404)}) as engine:
        probe = EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock)
        assert await probe.poll() == READY
        engine.taken()
        clock.now += 5.0
        assert await probe.poll() == READY
        assert engine.taken() == ["/metrics", "/v1/models"]


@pytest.mark.parametrize("answer", [Answer(status=404), Answer(status=405), Answer(status=501), Answer(b"{}")])
async def test_route_that_does_not_exist_is_not_asked_again(
    client: WorkerClient, clock: FakeClock, answer: Answer
) -> None:
    async with answer_server({**SGLANG, "/v1/loads": answer}) as engine:
        probe = EngineProbe(client, engine.address, EngineKind.SGLANG, clock=clock)
        status = await probe.poll()
        assert (status.running, status.waiting, status.lag) == (7, 0, 5.0)
        engine.answers["/v1/loads"] = LOADS
        engine.taken()
        clock.now += 1.0
        assert (await probe.poll()).running == 7
        assert engine.taken() == ["/metrics"]
        registered_again = EngineProbe(client, engine.address, EngineKind.SGLANG, clock=clock)
        assert (await registered_again.poll()).running == 2


@pytest.mark.parametrize(
    "answer", [DISCONNECTS, UNAVAILABLE, Answer(status=500), Answer(status=429), Answer(status=302)]
)
async def test_route_that_fails_for_a_moment_is_asked_again(
    client: WorkerClient, clock: FakeClock, answer: Answer
) -> None:
    async with answer_server({**SGLANG, "/v1/loads": answer}) as engine:
        probe = EngineProbe(client, engine.address, EngineKind.SGLANG, clock=clock)
        status = await probe.poll()
        assert status.ready  # the other routes respond
        assert (status.running, status.waiting, status.full, status.queue_length) == (None, None, None, None)
        assert "/metrics" not in engine.taken()
        engine.answers["/v1/loads"] = LOADS
        clock.now += 1.0
        status = await probe.poll()
        assert (status.running, status.waiting, status.queue_length) == (2, 1, 3)


async def test_failing_load_leads_to_a_look_at_the_health(client: WorkerClient, clock: FakeClock) -> None:
    async with answer_server(VLLM) as engine:
        probe = EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock)
        assert (await probe.poll()).ready
        engine.answers.update({"/metrics": Answer(status=500), "/health": UNAVAILABLE})
        clock.now += 1.0
        await probe.poll()
        clock.now += 1.0
        assert not (await probe.poll()).ready


async def test_one_silence_of_the_health_route_is_tolerated(client: WorkerClient, clock: FakeClock) -> None:
    async with answer_server(VLLM) as engine:
        probe = EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock)
        assert (await probe.poll()).ready
        engine.answers["/health"] = DISCONNECTS
        clock.now += 5.0
        assert (await probe.poll()).ready
        clock.now += 5.0
        assert "/health cannot be reached" in (await probe.poll()).not_ready
        engine.answers["/health"] = OK
        assert (await probe.poll()).ready
        engine.answers["/health"] = DISCONNECTS
        clock.now += 5.0
        assert (await probe.poll()).ready  # the earlier silences do not count any more


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
async def test_engine_whose_state_was_never_answered_is_silent(
    client: WorkerClient, clock: FakeClock, path: str
) -> None:
    """It may be ready, and serve requests of another replica. So it is not reported as one that is not."""
    async with answer_server({**VLLM, path: DISCONNECTS}) as engine:
        probe = EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock)
        with pytest.raises(WorkerUnreachable, match=f"{path} cannot be reached"):
            await probe.poll()
        engine.answers[path] = VLLM[path]
        assert (await probe.poll()).ready


async def test_silent_engine_is_unreachable_although_only_its_load_was_due(
    client: WorkerClient, clock: FakeClock
) -> None:
    async with answer_server(VLLM) as engine:
        probe = EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock)
        await probe.poll()
        engine.answers, engine.default = {}, DISCONNECTS
        clock.now += 1.0
        engine.taken()
        with pytest.raises(WorkerUnreachable, match="/metrics cannot be reached"):
            await probe.poll()
        assert set(engine.taken()) == {"/health", "/metrics"}


async def test_hanging_engine_is_unreachable(impatient_client: WorkerClient, clock: FakeClock) -> None:
    async with answer_server({}, HANGS) as engine:
        probes = [EngineProbe(impatient_client, engine.address, kind, clock=clock) for kind in EngineKind]
        for error in await asyncio.gather(*(probe.poll() for probe in probes), return_exceptions=True):
            assert isinstance(error, WorkerUnreachable)
            assert "did not respond within 0.2 s" in str(error)


async def test_engine_that_was_silent_is_asked_for_everything_again(client: WorkerClient, clock: FakeClock) -> None:
    """It may have been restarted with other options."""
    async with answer_server(VLLM) as engine:
        probe = EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock)
        assert (await probe.poll()).capacity is None
        engine.answers, engine.default = {}, DISCONNECTS
        with pytest.raises(WorkerUnreachable):
            await probe.poll()
        info = Answer(b'{"vllm_config":{"scheduler_config":{"max_num_seqs":8}}}')
        engine.answers, engine.default = {**VLLM, "/server_info": info}, NOT_FOUND
        assert await probe.poll() == replace(READY, capacity=8)


async def test_key_is_sent_to_the_engine_and_nowhere_else(client: WorkerClient, clock: FakeClock) -> None:
    async with answer_server({}) as other:
        redirect = Answer(status=302, headers=(f"Location: {other.address}/metrics",))
        async with answer_server({**VLLM, "/metrics": redirect}) as engine:
            await EngineProbe(client, engine.address, EngineKind.VLLM, "secret", clock=clock).poll()
            assert engine.heads
            for head in engine.heads:
                assert b"Authorization: Bearer secret\r\n" in head
                assert b"Accept-Encoding: identity\r\n" in head
        assert other.requests == []


async def test_key_that_is_no_header_is_an_error_without_the_key(client: WorkerClient, clock: FakeClock) -> None:
    async with answer_server(VLLM) as engine:
        with pytest.raises(WorkerUnreachable) as caught:
            await EngineProbe(client, engine.address, EngineKind.VLLM, "sec\r\nret: 1", clock=clock).poll()
        assert "ret" not in str(caught.value).replace(engine.address, "")
        assert engine.requests == []


async def test_address_that_is_not_allowed_gets_no_request(clock: FakeClock) -> None:
    client = WorkerClient(60.0, 60.0, WorkerAddresses("10.0.0.0/8"))
    async with answer_server(VLLM) as engine:
        with pytest.raises(WorkerNotAllowed):
            await EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock).poll()
        assert engine.requests == []
    await client.close()


async def test_huge_answer_is_unknown(client: WorkerClient, clock: FakeClock) -> None:
    huge = Answer(METRICS.body + b"# " + b"x" * 5 * 1024 * 1024)
    async with answer_server({**VLLM, "/metrics": huge}) as engine:
        status = await EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock).poll()
        assert status.ready
        assert status.running is None
        engine.answers["/metrics"] = METRICS
        assert await EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock).poll() == READY


async def test_engine_below_a_path_is_asked_below_it(client: WorkerClient, clock: FakeClock) -> None:
    async with answer_server({f"/gpu1{path}": answer for path, answer in VLLM.items()}) as engine:
        probe = EngineProbe(client, f"{engine.address}/gpu1", EngineKind.VLLM, clock=clock)
        assert await probe.poll() == READY


async def test_models_that_no_worker_can_register_are_left_out(client: WorkerClient, clock: FakeClock) -> None:
    names = ["m", "m", "", "with\nnewline", "x" * 513, None, 5, {"a": 1}, "ünïcode", "a" * 512]
    lengths: list[object] = [4096, 1, 1, 1, 1, 1, 1, 1, True, -5]
    cards = [{"id": name, "max_model_len": length} for name, length in zip(names, lengths, strict=True)]
    others: list[object] = [None, 7, []]
    for models in ([*cards], [*others, *cards]):
        answer = Answer(json.dumps({"data": models}).encode())
        async with answer_server({**VLLM, "/v1/models": answer}) as engine:
            status = await EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock).poll()
        expected = (EngineModel("m", 4096), EngineModel("ünïcode"), EngineModel("a" * 512))
        assert status == replace(READY, models=expected)


async def test_number_of_models_is_limited(client: WorkerClient, clock: FakeClock) -> None:
    too_many = Answer(json.dumps({"data": [{}] * 10_001}).encode())
    async with answer_server({**VLLM, "/v1/models": too_many}) as engine:
        status = await EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock).poll()
        assert status.not_ready == "the answer of /v1/models has more than 10000 entries"
    short = [{"id": f"m{number}"} for number in range(2000)]
    long = [{"id": letter * 500} for letter in string.ascii_letters + string.digits] * 3
    longer = [{"id": f"{number:0500}"} for number in range(200)]
    for models, kept in ((short, 512), (long, 62), (longer, 131)):
        answer = Answer(json.dumps({"data": models}).encode())
        async with answer_server({**VLLM, "/v1/models": answer}) as engine:
            status = await EngineProbe(client, engine.address, EngineKind.VLLM, clock=clock).poll()
        assert len(status.models) == kept
