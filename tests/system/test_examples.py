"""The examples do what they say."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastchat.conversation import Conversation, SeparatorStyle

from tests.support.waiting import wait_until
from tests.support.workers import answers, bad_worker
from tests.system.conftest import Serve
from tests.system.processes import PYDANTIC_1, Process, Server, call, fastchat, free_port, listens

WORKER = "controller.examples.worker"


@contextmanager
def example_worker(work_dir: Path, controller: str, *flags: str) -> Iterator[Server]:
    port = free_port()
    command = ["-m", WORKER, "--port", str(port), "--controller-address", controller, "--speed", "20", *flags]
    worker = Server(f"http://localhost:{port}", work_dir / "worker.log", *command)
    try:
        worker.wait_for(lambda: listens(port), "the worker listens")
        yield worker
    finally:
        worker.kill()


def test_the_demo_shows_a_death_and_that_nothing_is_sent_to_the_dead() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "controller.examples.demo", "--seconds", "12"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.count("has registered") == 3
    assert "is killed" in shown.stdout
    assert "is gone," in shown.stdout
    assert "and 0 after." in " ".join(shown.stdout.split())
    assert shown.stderr == ""


def test_the_demo_on_a_terminal_without_utf_8() -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "controller.examples.demo", "--seconds", "2"]
    shown = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert "is killed" in shown.stdout
    assert shown.stderr == ""


async def test_the_worker_registers_serves_and_registers_again(serve: Serve, work_dir: Path) -> None:
    controller = serve()
    with example_worker(work_dir, controller.url, "--heartbeat-interval", "0.2") as worker:
        await wait_until(lambda: controller.names() == [worker.url], "it is registered")
        controller.post("/remove_worker", {"worker_name": worker.url})
        again = f"{worker.url} re-registered at {controller.url}\n"
        await wait_until(lambda: again in worker.log, "it says that it has registered again")
        assert controller.names() == [worker.url]
        status = call(f"{worker.url}/worker_get_status")
        assert status == {"model_names": ["echo"], "speed": 20.0, "queue_length": 0}
        assert worker.log == f"{worker.url} registered at {controller.url}\n{again}"


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
async def test_the_worker_says_that_there_is_no_controller_and_leaves_cleanly(
    serve: Serve, work_dir: Path, ending: signal.Signals
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with example_worker(work_dir, url) as worker:
        nobody = f"no controller at {url}, trying again every 1 s\n"
        await wait_until(lambda: nobody in worker.log, "it says that nobody is there")
        controller = serve(port=port)
        await wait_until(lambda: controller.names() == [worker.url], "it is registered")
        worker.popen.send_signal(ending)
        assert worker.popen.wait(120) == 0
        assert controller.names() == []
        assert worker.log.count(nobody) == 1
        assert worker.log.endswith(f"{worker.url} removed from {url}\n")
        assert "Traceback" not in worker.log


async def test_the_worker_says_why_it_is_refused(serve: Serve, work_dir: Path) -> None:
    controller = serve()
    with example_worker(work_dir, controller.url, "--worker-address", "http://169.254.1.1:1") as worker:
        await wait_until(lambda: "400" in worker.log, "it says so")
        assert "is a link-local address" in worker.log


async def test_the_worker_survives_answers_that_are_none(serve: Serve, work_dir: Path) -> None:
    json_type = "Content-Type: application/json"
    good = answers(b'{"exist": true}', "200 OK", json_type)
    async with bad_worker(register_worker=answers(b"null", "200 OK", json_type), receive_heart_beat=good) as odd:
        starting = example_worker(work_dir, odd.address, "--heartbeat-interval", "0.2")
        worker = await asyncio.to_thread(starting.__enter__)
        try:
            await wait_until(lambda: len(odd.requests) >= 2, "it has registered and sent a heartbeat")
            for nonsense in (b"{}", b"null", b"[]", b'"exist"', b"<html>"):
                seen = len(odd.requests)
                odd.behaviours["receive_heart_beat"] = answers(nonsense, "200 OK", json_type)
                await wait_until(lambda seen=seen: len(odd.requests) >= seen + 2, "it tries again")
            odd.behaviours["receive_heart_beat"] = good
            await wait_until(lambda: "answers again" in worker.log, "it takes the good answer")
            assert worker.log.count("trying again") == 1
        finally:
            starting.__exit__(None, None, None)


async def test_a_second_worker_on_the_same_port_does_not_register(serve: Serve, work_dir: Path) -> None:
    controller = serve()
    with example_worker(work_dir, controller.url) as worker:
        await wait_until(lambda: controller.names() == [worker.url], "the first is registered")
        port = worker.url.rpartition(":")[2]
        command = [sys.executable, "-m", WORKER, "--port", port, "--controller-address", controller.url]
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert second.returncode != 0
        assert "address already in use" in second.stderr
        assert "registered" not in second.stdout


async def test_fastchats_api_server_streams_and_counts_with_the_worker(serve: Serve, work_dir: Path) -> None:
    """With pydantic 1, by which alone FastChat's API server can stream; tests/system/test_tour.py does the rest."""
    controller = serve()
    with (
        example_worker(work_dir, controller.url) as worker,
        fastchat(work_dir, "openai_api_server", "--controller-address", controller.url, PYTHONPATH=PYDANTIC_1) as api,
    ):
        await wait_until(lambda: controller.names() == [worker.url], "the worker is registered")
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello there"}]
        chat = {"model": "echo", "messages": messages, "max_tokens": 3}
        events = stream(f"{api.url}/v1/chat/completions", {**chat, "stream": True})
        [choices] = zip(*(event["choices"] for event in events), strict=True)
        assert "".join(choice["delta"].get("content") or "" for choice in choices) == "Be brief. hello"
        assert choices[-1]["finish_reason"] == "length"
        whole = call(f"{api.url}/v1/chat/completions", chat)
        assert whole["choices"][0]["message"]["content"] == "Be brief. hello"
        assert whole["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
        events = stream(f"{api.url}/v1/completions", {"model": "echo", "prompt": "once upon", "stream": True})
        assert "".join(event["choices"][0]["text"] for event in events) == "once upon"
        embeddings = call(f"{api.url}/v1/embeddings", {"model": "echo", "input": ["aab", "b c"]})
        assert [len(one["embedding"]) for one in embeddings["data"]] == [26, 26]
        assert embeddings["usage"]["prompt_tokens"] == 3
        check = {"prompts": [{"model": "echo", "prompt": "a b", "max_tokens": 10}]}
        [checked] = call(f"{api.url}/api/v1/token_check", check)["prompts"]
        assert checked == {"fits": True, "contextLength": 2048, "tokenCount": 2}


def stream(url: str, body: object) -> list[dict[str, list[dict[str, object]]]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        lines = [line.decode().removeprefix("data: ").strip() for line in response]
    *events, done = [line for line in lines if line]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def test_the_template_makes_a_line_of_each_message() -> None:
    from controller.examples.worker import CONVERSATION

    conversation = Conversation(**CONVERSATION)
    assert conversation.sep_style == SeparatorStyle.NO_COLON_SINGLE
    conversation.messages = [("", "hello"), ("", "there"), ("", None)]
    assert conversation.get_prompt().split("\n") == ["", "hello", "there", ""]


async def test_the_load_says_where_it_went(serve: Serve, work_dir: Path) -> None:
    controller = serve()
    with example_worker(work_dir, controller.url) as worker:
        await wait_until(lambda: controller.names() == [worker.url], "the worker is registered")
        load = Process(work_dir / "load.log", "-m", "controller.examples.load", "--controller-address", controller.url)
        try:
            await wait_until(lambda: f" {worker.url}; slowest dispatch " in load.log, "requests were answered")
            load.popen.send_signal(signal.SIGINT)
            assert load.popen.wait(120) == 0
            assert "Traceback" not in load.log
        finally:
            load.kill()
