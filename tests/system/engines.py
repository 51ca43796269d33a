"""Clusters of two replicas with real llama.cpp servers, which are registered as an operator does it."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from openai import OpenAI

from tests.support.llamacpp import LlamaServer, llama_server
from tests.system.processes import ControllerProcess, call

# A chat template with tools. llama.cpp passes tools only to templates that have them.
TEMPLATE = """\
{% if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content %}{{ message.content }}{% endif %}{% if message.tool_calls %}{% for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# A model with random weights generates noise. With this grammar, it can only generate these words.
WORDS = "It is twelve o'clock in Oslo."
SAYS_THE_WORDS = {"grammar": f'root ::= "{WORDS}"'}
# Without a grammar, it generates tokens until its context is full.
WITHOUT_END = {"ignore_eos": True}
QUESTION: list[Any] = [{"role": "user", "content": "What time is it in Oslo?"}]
NO_TOKEN = "none"  # of a client, if the controller has no tokens. The SDK requires one


def command(controller: ControllerProcess, *arguments: str, address: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command of `controller`. address: of the controller, if it is not its URL."""
    run = [sys.executable, "-m", "controller", *arguments, "--controller-address", address or controller.url]
    return subprocess.run(run, capture_output=True, text=True, check=False)


def register(controller: ControllerProcess, engine: LlamaServer, *options: str, address: str = "") -> None:
    """Register an engine with one command. It is alive when the command ends."""
    ran = command(controller, "register", engine.address, *options, address=address)
    assert ran.returncode == 0, ran.stderr
    assert f"Registered {engine.address}, an engine of the kind llamacpp." in ran.stdout
    assert "gets no requests" not in ran.stdout


def listed(controller: ControllerProcess) -> dict[str, dict[str, Any]]:
    """Return the live workers by name."""
    return {worker["worker_name"]: worker for worker in call(f"{controller.url}/workers", method="GET")["workers"]}


@contextlib.contextmanager
def llama_servers(directory: Path, model: Path, *options: dict[str, Any]) -> Iterator[list[LlamaServer]]:
    """Run a server for each of the given sets of options."""
    with contextlib.ExitStack() as stack:
        servers = []
        for number, chosen in enumerate(options):
            folder = directory / f"engine-{number}"
            folder.mkdir()
            chosen = {"use_jinja": True, "chat_template": TEMPLATE, **chosen}
            servers.append(stack.enter_context(llama_server(folder, model, **chosen)))
        yield servers


def sdk(controller: ControllerProcess, token: str = NO_TOKEN) -> OpenAI:
    """Return a client of the `openai` package. It does not retry, so each failure is seen."""
    return OpenAI(base_url=f"{controller.url}/v1", api_key=token, max_retries=0, timeout=60.0)


def says(client: OpenAI, model: str = "tiny", **options: Any) -> tuple[str, str]:
    """Send a chat. Return the model that served it, and the answer."""
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=QUESTION, extra_body=SAYS_THE_WORDS, **options
    )
    return raw.headers["x-served-model"], raw.parse().choices[0].message.content or ""


def events(body: bytes) -> Sequence[str]:
    """Return the data of the events of a stream."""
    return [event.removeprefix("data: ") for event in body.decode().split("\n\n") if event.startswith("data: ")]


def last_error(body: bytes) -> dict[str, Any]:
    """Return the error with which a stream ends. Fails if it ends with another event."""
    error: dict[str, Any] = json.loads(events(body)[-1])["error"]
    return error
