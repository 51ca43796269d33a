"""The controller recognises each kind of engine, and reads its state, from the answers in answers/."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from controller.domain.engine_status import EngineKind, EngineModel, EngineStatus
from controller.upstream.client import WorkerClient
from controller.upstream.engines.detection import detect
from controller.upstream.engines.gauges import Gauges
from controller.upstream.engines.probe import EngineProbe
from controller.upstream.engines.table import ENGINES
from tests.support.engines import Answer, answer_server

CASES = sorted(path.parent for path in Path(__file__).with_name("answers").glob("*/about.toml"))


def about(case: Path) -> dict[str, Any]:
    return tomllib.loads((case / "about.toml").read_text())


def answers_of(case: Path) -> dict[str, Answer]:
    """Return the answer of each path."""
    return {
        path: Answer((case / answer["file"]).read_bytes() if "file" in answer else b"", answer.get("status", 200))
        for path, answer in about(case)["answers"].items()
    }


def expected_status(case: Path) -> EngineStatus:
    expected: dict[str, Any] = about(case)["expected"]
    models = (EngineModel(name, none_if_unknown(length)) for name, length in expected.pop("models").items())
    del expected["kind"]
    return EngineStatus(models=tuple(models), **{field: none_if_unknown(value) for field, value in expected.items()})


def none_if_unknown(value: Any) -> Any:
    return None if value == "unknown" else value


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_kind_and_state_are_read(client: WorkerClient, case: Path) -> None:
    expected = expected_status(case)
    async with answer_server(answers_of(case)) as engine:
        kind = await detect(client, engine.address)
        assert kind == about(case)["expected"]["kind"]
        assert case.name.startswith(f"{kind}-")
        probe = EngineProbe(client, engine.address, kind)
        assert await probe.poll() == expected
        assert await probe.poll() == expected, "a later poll asks fewer questions"


@pytest.mark.parametrize("kind", EngineKind)
def test_each_kind_has_answers(kind: EngineKind) -> None:
    assert any(about(case)["expected"]["kind"] == kind for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_about_toml_lists_each_file_and_names_the_source(case: Path) -> None:
    content = about(case)
    files = {answer["file"] for answer in content["answers"].values() if "file" in answer}
    assert files | {"about.toml"} == {path.name for path in case.iterdir()}
    assert "https://" in content["source"]
    assert content["version"]
    assert isinstance(content["recorded"], bool)


@pytest.mark.parametrize("kind", EngineKind)
def test_the_table_says_which_answers_have_the_capacity(kind: EngineKind) -> None:
    for question in (*ENGINES[kind].load, *ENGINES[kind].models):
        found = [
            answers_of(case).get(question.path.partition("?")[0])
            for case in CASES
            if about(case)["expected"]["kind"] == kind
        ]
        if found and not isinstance(question.read, Gauges):
            bodies = [answer.body for answer in found if answer and answer.status == 200]
            has_capacity = any(question.read(body).capacity is not None for body in bodies)
            assert bodies or not question.has_capacity, question.path
            assert has_capacity == question.has_capacity, question.path
