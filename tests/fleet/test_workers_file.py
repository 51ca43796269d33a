"""The file of --workers-file: what it may say, and the sentences for what is wrong in it."""

import logging
from pathlib import Path

import pytest

from controller.domain.engine_entry import EngineEntry
from controller.domain.errors import SettingsError
from controller.fleet.engine_sources import FileSource
from controller.settings.workers_file import read_workers_file

ONE = "workers:\n- url: http://127.0.0.1:8000\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "workers.yaml"
    path.write_text(text)
    return path


def test_all_that_a_file_may_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("secret-1\n")
    monkeypatch.setenv("ENGINE_KEY", "secret-2")
    path = write(
        tmp_path,
        """\
        # engines of rack 1
        workers:
          - url: HTTP://10.0.0.5:8000/
            engine: vllm
            models: {Qwen/Qwen3-8B: qwen-8b}
            capacity: 64
            speed: 2
            api_key_file: key
          - {url: "http://10.0.0.6:8000", models: [a, b], api_key_env: ENGINE_KEY}
          - url: http://[::1]:80
        """,
    )
    found = read_workers_file(path)
    assert found.engines == {
        "http://10.0.0.5:8000": EngineEntry("vllm", {"Qwen/Qwen3-8B": "qwen-8b"}, "secret-1", 2, 64, source="file"),
        "http://10.0.0.6:8000": EngineEntry(names={"a": "a", "b": "b"}, key="secret-2", source="file"),
        "http://[::1]": EngineEntry(source="file"),
    }
    assert found.key_files == (tmp_path / "key",)
    assert read_workers_file(write(tmp_path, "workers: []")).engines == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must have the key `workers` with a list"),
        ("[]", "must have the key `workers` with a list"),
        ("workers:\n", "must have the key `workers` with a list"),
        ("workers: []\nmore: 1\n", "must have the key `workers` with a list"),
        ("workers: [\n", "line 2: this is not YAML: did not find expected"),
        ("workers: []\n---\nworkers: []\n", "line 2: this is not YAML: but found another document"),
        ("workers:\n- url: http://a\n  url: http://b\n", "line 3: the key 'url' is there twice"),
        ("workers:\n- url: http://a:8000\n- url: http://a:8000/\n", "line 3: http://a:8000 is listed twice"),
        ("workers:\n- 10.0.0.5:8000\n", "line 2: Expected `object`, got `str`"),
        ("workers:\n- url: 10.0.0.5:8000\n", "line 2: worker_name: must begin with http://"),
        ("workers:\n- {url: http://a, speed: .nan}\n", "line 2: speed: must be a number"),
        ("workers:\n- {url: http://a, speed: fast}\n", r"line 2: Expected `float`, got `str` - at `\$.speed`"),
        ("workers:\n- {url: http://a, capacity: 0}\n", "line 2: capacity: must be a whole number"),
        ("workers:\n- {url: http://a, capacity: yes}\n", r"line 2: Expected `int | null`, got `bool`"),
        ("workers:\n- {url: http://a, engine: vlm}\n", "line 2: engine: must be one of auto, vllm"),
        ("workers:\n- {url: http://a, model_list: [m]}\n", "line 2: Object contains unknown field `model_list`"),
        ("workers:\n- {url: http://a, models: {a: x, b: x}}\n", "line 2: models: gives two models the same name"),
        ("workers:\n- {url: http://a, models: {1: x}}\n", "line 2: Expected `str`, got `int`"),
        ("workers:\n- {url: http://a, api_key_env: NOT_SET_1}\n", "line 2: NOT_SET_1 has no key in it"),
        ("workers:\n- {url: http://a, api_key_env: A, api_key_file: b}\n", "line 2: it has api_key_file and api_key"),
        ("workers:\n- {url: http://a, api_key_file: none}\n", "No such file"),
        ("workers:\n- {url: http://a, api_key_file: /dev/zero}\n", "line 2: /dev/zero is not a regular file"),
        ("workers: &a\n- *a\n", "line 1: anchors"),
        (
            "workers: !!python/object/apply:os.getcwd []\n",
            "line 1: this is not YAML: could not determine a constructor",
        ),
        ("workers: [{url: 2001-99-99}]\n", "it is not YAML: month must be in 1..12"),
        ("workers: " + "[" * 100_000, "line 1: it is nested too deeply"),
        ("workers: [" + "1" * 5000 + "]", "it is not YAML: Exceeds the limit"),
        ("workers: [\0]", "it is not YAML: .*control characters are not allowed"),
        ("#" * (4 * 1024 * 1024 + 1), "has more than 4194304 bytes"),
        ("workers:\n" + "- url: http://a\n" * 10_001, "lists more than 10000 engines"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError, match=problem) as caught:
        read_workers_file(path)
    assert str(caught.value).startswith(f"--workers-file {path} cannot be used: ")
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "workers.yaml"
    path.write_bytes(b"workers: [\xff]")
    with pytest.raises(SettingsError, match="can't decode byte 0xff"):
        read_workers_file(path)
    with pytest.raises(SettingsError, match="is not a regular file"):
        read_workers_file(tmp_path)


async def test_a_changed_file_counts_at_the_second_look(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "controller")
    source = FileSource(write(tmp_path, ONE))

    async def listed() -> list[str]:
        proposal = await source.read()
        return sorted(proposal.engines) if proposal else []

    assert await listed() == ["http://127.0.0.1:8000"]
    write(tmp_path, "workers:\n")
    assert await listed() == ["http://127.0.0.1:8000"], "it may be written further"
    write(tmp_path, ONE + "- url: http://127.0.0.2:8000\n")
    assert await listed() == ["http://127.0.0.1:8000"], "it has changed once more"
    assert await listed() == ["http://127.0.0.1:8000", "http://127.0.0.2:8000"]
    write(tmp_path, "workers: 1")
    for _ in range(4):
        assert len(await listed()) == 2
    (tmp_path / "workers.yaml").unlink()
    for _ in range(4):
        assert len(await listed()) == 2
    problems = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(problems) == 2, "each problem is logged once"
    assert all(problem.endswith("The engines stay as they were.") for problem in problems)
    write(tmp_path, "workers: []")
    assert len(await listed()) == 2
    assert await listed() == []


async def test_a_changed_key_is_read_again(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("one")
    source = FileSource(write(tmp_path, ONE + "  api_key_file: key\n"))

    async def key_of_engine() -> str:
        proposal = await source.read()
        assert proposal is not None
        return proposal.engines["http://127.0.0.1:8000"].key

    assert await key_of_engine() == "one"
    await source.read()
    await source.read()
    other = tmp_path / "other"
    other.write_text("two")
    other.replace(key)
    await source.read()
    assert await key_of_engine() == "two"


async def test_no_engines_until_the_file_is_right(tmp_path: Path) -> None:
    source = FileSource(tmp_path / "workers.yaml")
    assert await source.read() is None
    write(tmp_path, ONE)
    assert await source.read() is None
    assert await source.read() is not None
