import pytest

from controller.domain.engine_status import EngineKind
from controller.domain.errors import WorkerUnreachable
from controller.upstream.client import WorkerClient
from controller.upstream.engines.detection import detect
from controller.upstream.engines.table import ENGINES
from tests.support.engines import DISCONNECTS, HANGS, NOT_FOUND, Answer, answer_server

UNKNOWN_OWNER = Answer(b'{"object":"list","data":[{"id":"m","owned_by":"me"}]}')
VERSION = Answer(b'{"version":"1.0"}')
SGLANG = Answer(b'{"internal_states":[]}')
PROPS = Answer(b'{"total_slots":1,"build_info":"b1"}')
INFO = Answer(b'{"router":"text-generation-router","model_id":"m"}')
LIE = Answer(b"<html>200 for every path</html>")


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ({"/version": VERSION}, EngineKind.VLLM),
        ({"/version": VERSION, "/server_info": SGLANG}, EngineKind.VLLM),
        ({"/server_info": SGLANG}, EngineKind.SGLANG),
        ({"/get_server_info": SGLANG}, EngineKind.SGLANG),
        ({"/server_info": SGLANG, "/api/version": VERSION}, EngineKind.SGLANG),  # SGLang has routes of Ollama
        ({"/props": PROPS}, EngineKind.LLAMACPP),
        ({"/props": PROPS, "/api/version": VERSION}, EngineKind.LLAMACPP),
        ({"/info": INFO}, EngineKind.TGI),
        ({"/api/version": VERSION}, EngineKind.OLLAMA),
        ({}, EngineKind.GENERIC),
        ({"/version": Answer(b'{"version":"1.0","commit":"a"}')}, EngineKind.GENERIC),
        ({"/version": Answer(b'{"version":1}'), "/info": Answer(b'{"router":"x"}')}, EngineKind.GENERIC),
        (dict.fromkeys(("/version", "/server_info", "/props", "/info", "/api/version"), LIE), EngineKind.GENERIC),
        ({"/version": Answer(status=400), "/props": Answer(status=501)}, EngineKind.GENERIC),
    ],
)
@pytest.mark.parametrize("models", [UNKNOWN_OWNER, NOT_FOUND, LIE, Answer(b'{"data":[5]}')])
async def test_kind_follows_from_the_routes(
    client: WorkerClient, answers: dict[str, Answer], kind: EngineKind, models: Answer
) -> None:
    async with answer_server({"/v1/models": models, **answers}) as engine:
        assert await detect(client, engine.address) is kind


def test_each_kind_has_an_owner_or_a_sign() -> None:
    for kind, engine in ENGINES.items():
        assert engine.owned_by or engine.sign or kind is EngineKind.GENERIC


async def test_owner_of_the_models_decides_at_once(client: WorkerClient) -> None:
    models = Answer(b'{"data":[{"id":"m","owned_by":"sglang"}]}')
    async with answer_server({"/v1/models": models, "/version": VERSION}) as engine:
        assert await detect(client, engine.address, "secret") is EngineKind.SGLANG
        assert engine.taken() == ["/v1/models"]
        assert b"Authorization: Bearer secret\r\n" in engine.heads[0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(b'{"error":{"message":"Loading model"}}', 503), r"status 503: Loading model\. Try again when"),
        (Answer(status=500), r"status 500\. Try again when"),
        (Answer(status=401), "requires a key"),
        (Answer(status=403), "requires a key"),
        (DISCONNECTS, "cannot be reached"),
    ],
)
async def test_engine_that_is_not_ready_has_no_kind(client: WorkerClient, answer: Answer, message: str) -> None:
    async with answer_server({"/v1/models": answer, "/version": VERSION}) as engine:
        with pytest.raises(WorkerUnreachable, match=message):
            await detect(client, engine.address)


async def test_hanging_engine_has_no_kind(impatient_client: WorkerClient) -> None:
    async with answer_server({}, HANGS) as engine:
        with pytest.raises(WorkerUnreachable, match=r"did not respond within 0\.2 s"):
            await detect(impatient_client, engine.address)


@pytest.mark.parametrize("failure", [DISCONNECTS, Answer(status=500), Answer(status=503)])
async def test_failing_routes_are_no_reason_to_take_an_engine_for_another_kind(
    client: WorkerClient, failure: Answer
) -> None:
    async with answer_server({"/v1/models": UNKNOWN_OWNER, "/server_info": failure}) as engine:
        with pytest.raises(WorkerUnreachable, match=r"is unclear: .*/server_info .*--engine"):
            await detect(client, engine.address)
        engine.answers["/props"] = PROPS  # a sign is found all the same
        assert await detect(client, engine.address) is EngineKind.LLAMACPP
