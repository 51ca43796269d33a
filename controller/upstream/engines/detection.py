"""Finds out what kind of engine serves an address."""

import asyncio
from typing import Final

from controller.domain.engine_status import EngineKind
from controller.domain.errors import WorkerUnreachable
from controller.upstream.client import WorkerAnswer, WorkerClient
from controller.upstream.engines.answers import owners
from controller.upstream.engines.reading import OtherShape
from controller.upstream.engines.refusals import REFUSED_KEY, refusal, refuse_own_cluster
from controller.upstream.engines.table import ENGINES, Question

_MODELS: Final = "/v1/models"
_AT_ONCE: Final = 4  # signs that are looked for together
# In the order of the table. vLLM comes before SGLang there: it can have SGLang's route, too.
_SIGNS: Final = [(kind, question) for kind, engine in ENGINES.items() for question in engine.sign]
_ADVICE: Final = "Try again when the engine is ready, or name its kind with --engine."


async def detect(client: WorkerClient, address: str, key: str = "") -> EngineKind:
    """Return the kind of the engine at an address.

    Most engines name themselves as the owner of their models. The others have routes that no other engine has.

    key: the token that the engine requires. By default, that of --upstream-tokens-file.

    Raises WorkerUnreachable if the engine does not respond, rejects the key, is the cluster that asks, or responds with
    errors from which its kind does not follow. Raises WorkerNotAllowed if its address is not allowed.
    """
    answer = await client.get(address, _MODELS, key)
    refuse_own_cluster(answer, address)
    if answer.status == 200:
        if kind := _by_owner(answer.body):
            return kind
    elif answer.status in REFUSED_KEY or answer.status >= 500:
        raise WorkerUnreachable(f"{address}{_MODELS} {refusal(answer)}. {_ADVICE}")
    problems: list[str] = []
    for begin in range(0, len(_SIGNS), _AT_ONCE):
        some = _SIGNS[begin : begin + _AT_ONCE]
        tests = (_is_sign(client, address, key, question, problems) for _, question in some)
        for (kind, _), found in zip(some, await asyncio.gather(*tests), strict=True):
            if found:
                return kind
    if problems:
        raise WorkerUnreachable(f"The kind of the engine at {address} is unclear: {problems[0]} {_ADVICE}")
    return EngineKind.GENERIC


def _by_owner(models: bytes) -> EngineKind | None:
    try:
        names = owners(models)
    except OtherShape:
        return None
    return next((kind for kind, engine in ENGINES.items() if engine.owned_by in names and engine.owned_by), None)


async def _is_sign(client: WorkerClient, address: str, key: str, question: Question, problems: list[str]) -> bool:
    """Return True if a route answers as only one kind of engine does. Add to `problems` if that is unclear."""
    try:
        answer = await client.get(address, question.path, key)
    except WorkerUnreachable as error:
        problems.append(str(error))
        return False
    if answer.status >= 500 and answer.status != 501:
        problems.append(f"{address}{question.path} {refusal(answer)}.")
    return answer.status == 200 and _has_shape(question, answer)


def _has_shape(question: Question, answer: WorkerAnswer) -> bool:
    try:
        question.read(answer.body)
    except OtherShape:
        return False
    return True
