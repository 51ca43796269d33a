"""The programs in controller/examples work as documented."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastchat.conversation import Conversation, SeparatorStyle
from ports import free_port

from tests.support.waiting import wait_until
from tests.support.workers import answers, bad_worker
from tests.system.conftest import Serve
from tests.system.processes import PYDANTIC_1, Process, Server, call, fastchat, listens

pytestmark = pytest.mark.system

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


@pytest.mark.slow
def test_the_demo_kills_a_worker_and_sends_it_no_more_requests() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "controller.examples.demo", "--seconds", "12"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.count("has registered") == 3
    assert "was killed" in shown.stdout
    assert "has expired," in shown.stdout
    assert "After it expired, 0 more were sent to it." in " ".join(shown.stdout.split())
    assert shown.stderr == ""


@pytest.mark.slow
def test_the_demo_on_a_terminal_without_utf_8() -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "controller.examples.demo", "--seconds", "2"]
    shown = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert "was killed" in shown.stdout
    assert shown.stderr == ""


async def test_the_worker_registers_serves_and_registers_again(serve: Serve, work_dir: Path) -> None:
    controller = serve()
    with example_worker(work_dir, controller.url, "--heartbeat-interval", "0.2") as worker:
        await wait_until(lambda: controller.names() == [worker.url], "the worker is registered")
        controller.post("/remove_worker", {"worker_name": worker.url})
        again = f"{worker.url} re-registered at {controller.url}\n"
        await wait_until(lambda: again in worker.log, "the worker logs its second registration")
        assert controller.names() == [worker.url]
        status = call(f"{worker.url}/worker_get_status")
        assert status == {"model_names": ["echo"], "speed": 20.0, "queue_length": 0}
        assert worker.log == f"{worker.url} registered at {controller.url}\n{again}"


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
async def test_the_worker_reports_a_missing_controller_and_ends_cleanly(
    serve: Serve, work_dir: Path, ending: signal.Signals
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with example_worker(work_dir, url) as worker:
        warning = f"no controller at {url}, trying again every 1 s\n"
        await wait_until(lambda: warning in worker.log, "the worker reports the missing controller")
        controller = serve(port=port)
        await wait_until(lambda: controller.names() == [worker.url], "the worker is registered")
        worker.popen.send_signal(ending)
        assert worker.popen.wait(120) == 0
        assert controller.names() == []
        assert worker.log.count(warning) == 1
        assert worker.log.endswith(f"{worker.url} removed from {url}\n")
        assert "Traceback" not in worker.log


async def test_the_worker_reports_why_its_registration_was_rejected(serve: Serve, work_dir: Path) -> None:
    controller = serve()
    with example_worker(work_dir, controller.url, "--worker-address", "http://169.254.1.1:1") as worker:
        await wait_until(lambda: "400" in worker.log, "the worker reports the status")
        assert "is a link-local address" in worker.log


@pytest.mark.slow
async def test_the_worker_survives_malformed_responses(serve: Serve, work_dir: Path) -> None:
    json_type = "Content-Type: application/json"
    valid = answers(b'{"exist": true}', "200 OK", json_type)
    async with bad_worker(
        register_worker=answers(b"null", "200 OK", json_type), receive_heart_beat=valid
    ) as fake_controller:
        starting = example_worker(work_dir, fake_controller.address, "--heartbeat-interval", "0.2")
        worker = await asyncio.to_thread(starting.__enter__)
        try:
            await wait_until(
                lambda: len(fake_controller.requests) >= 2, "the worker has registered and sent a heartbeat"
            )

            def two_more_since(before: int) -> bool:
                return len(fake_controller.requests) >= before + 2

            for malformed in (b"{}", b"null", b"[]", b'"exist"', b"<html>"):
                before = len(fake_controller.requests)
                fake_controller.behaviours["receive_heart_beat"] = answers(malformed, "200 OK", json_type)
                await wait_until(partial(two_more_since, before), "the worker tries again")
            fake_controller.behaviours["receive_heart_beat"] = valid
            await wait_until(lambda: "responds again" in worker.log, "the worker accepts the valid response")
            assert worker.log.count("trying again") == 1
        finally:
            starting.__exit__(None, None, None)


async def test_a_second_worker_on_the_same_port_does_not_register(serve: Serve, work_dir: Path) -> None:
    controller = serve()
    with example_worker(work_dir, controller.url) as worker:
        await wait_until(lambda: controller.names() == [worker.url], "the first worker is registered")
        port = worker.url.rpartition(":")[2]
        command = [sys.executable, "-m", WORKER, "--port", port, "--controller-address", controller.url]
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert second.returncode != 0
        assert "address already in use" in second.stderr
        assert "registered" not in second.stdout


async def test_fastchats_api_server_streams_and_counts_tokens(serve: Serve, work_dir: Path) -> None:
    """FastChat's API server streams only with pydantic 1. test_tour.py runs it with pydantic 2."""
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
        completion = call(f"{api.url}/v1/chat/completions", chat)
        assert completion["choices"][0]["message"]["content"] == "Be brief. hello"
        assert completion["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
        events = stream(f"{api.url}/v1/completions", {"model": "echo", "prompt": "once upon", "stream": True})
        assert "".join(event["choices"][0]["text"] for event in events) == "once upon"
        embeddings = call(f"{api.url}/v1/embeddings", {"model": "echo", "input": ["aab", "b c"]})
        assert [len(item["embedding"]) for item in embeddings["data"]] == [26, 26]
        assert embeddings["usage"]["prompt_tokens"] == 3
        check = {"prompts": [{"model": "echo", "prompt": "a b", "max_tokens": 10}]}
        [checked] = call(f"{api.url}/api/v1/token_check", check)["prompts"]
        assert checked == {"fits": True, "contextLength": 2048, "tokenCount": 2}


def stream(url: str, body: object) -> list[dict[str, list[dict[str, Any]]]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        lines = [line.decode().removeprefix("data: ").strip() for line in response]
    *events, done = [line for line in lines if line]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def test_the_template_puts_each_message_on_a_line() -> None:
    from controller.examples.worker import CONVERSATION

    conversation = Conversation(**CONVERSATION)
    assert conversation.sep_style == SeparatorStyle.NO_COLON_SINGLE
    conversation.messages = [("", "hello"), ("", "there"), ("", None)]
    assert conversation.get_prompt().split("\n") == ["", "hello", "there", ""]


async def test_the_load_prints_the_workers_that_it_used(serve: Serve, work_dir: Path) -> None:
    controller = serve()
    with example_worker(work_dir, controller.url) as worker:
        await wait_until(lambda: controller.names() == [worker.url], "the worker is registered")
        load = Process(work_dir / "load.log", "-m", "controller.examples.load", "--controller-address", controller.url)
        try:
            await wait_until(
                lambda: f" {worker.url}; slowest dispatch " in load.log, "the load prints answered requests"
            )
            load.popen.send_signal(signal.SIGINT)
            assert load.popen.wait(120) == 0
            assert "Traceback" not in load.log
        finally:
            load.kill()
