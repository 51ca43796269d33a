"""Real engines of several kinds, for which the same tests run. All of their models say WORDS when they are asked.

Every run of the tests has llama.cpp. `make test-engines` installs vLLM and `transformers serve` in the directory that
the environment variable ENGINES names.
"""

import contextlib
import functools
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from openai import OpenAI
from ports import free_port

from tests.engines.tiny_model import CONTEXT, WORDS
from tests.support.llamacpp import llama_server
from tests.system.processes import Process

__all__ = ["CONTEXT", "KITS", "QUESTION", "SLOTS", "WORDS", "Engine", "EngineKit", "EnginePool"]

QUESTION: list[Any] = [{"role": "user", "content": "What time is it in Oslo?"}]
_ENVIRONMENT = Path(os.environ.get("ENGINES", ".cache/engines")).absolute()
_TINY_MODEL = Path(__file__).parents[1] / "engines" / "tiny_model.py"
_STARTUP = 600.0  # seconds
SLOTS = 2  # number of requests that each server runs at once


class Engine(Protocol):
    """A running server."""

    address: str

    @property
    def log(self) -> str: ...

    def kill(self) -> None: ...

    def stop(self) -> int: ...


@dataclass(frozen=True)
class EngineKit:
    """A kind of engine as the tests see it.

    kind: as the controller finds it out.
    model: name of the model in the engine. Tests register it as `tiny`.
    words: fields of a request to which the answer is WORDS.
    without_end: fields of a chat to which the answer is as long as the context of the model.
    missing: functions that the engine does not have. Their tests are skipped.
    generated: name of the metric that counts the generated tokens.
    prompt: text whose completion is WORDS.
    tokens: least number of tokens of WORDS.
    expiration: of the polled engine, in seconds.
    capacity: that the engine reports.
    """

    title: str
    kind: str
    model: str = "tiny"
    words: Mapping[str, Any] = field(default_factory=dict)
    without_end: Mapping[str, Any] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    generated: str = ""
    prompt: str = "<|answer|>"
    tokens: int = 8
    expiration: float = 3.0
    capacity: int | None = None

    def __str__(self) -> str:
        return self.title

    @property
    def polled_often(self) -> tuple[str, ...]:
        """Flags of a controller that notices soon that an engine has died."""
        return ("--engine-poll-interval", "0.2", "--engine-expiration", f"{self.expiration:g}")

    def needs(self, function: str) -> None:
        """Skip the test if the engine does not have a function."""
        if function in self.missing:
            pytest.skip(f"{self.title} has no {function}.")

    def says(self, client: OpenAI, model: str = "tiny", **options: Any) -> tuple[str, str]:
        """Send a chat. Return the model that served it, and the answer."""
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=QUESTION, extra_body=self.words, **options
        )
        return raw.headers["x-served-model"], raw.parse().choices[0].message.content or ""


LLAMACPP = EngineKit(
    "llama.cpp",
    "llamacpp",
    # The model has random weights. With this grammar, it can only generate these words.
    words={"grammar": f'root ::= "{WORDS}"'},
    without_end={"ignore_eos": True},
    generated="llamacpp:tokens_predicted_total",
    prompt="What time is it?",
    capacity=SLOTS,
    tokens=len(WORDS),
)
_FOREVER = {"messages": [{"role": "user", "content": "forever"}]}  # tests/engines/tiny_model.py
VLLM = EngineKit(
    "vLLM",
    "vllm",
    without_end=_FOREVER,
    missing=frozenset({"embeddings"}),
    generated="vllm:generation_tokens_total",
    expiration=10.0,
)
TRANSFORMERS = EngineKit(
    "transformers serve",
    "generic",
    model="tests/tiny",
    without_end={**_FOREVER, "max_tokens": 16_000},
    missing=frozenset({"embeddings", "metrics", "chosen tools", "checks of requests", "[DONE]", "optional usage"}),
    expiration=10.0,
)
KITS = [
    pytest.param(LLAMACPP, id="llamacpp"),
    *(pytest.param(kit, id=kit.title.replace(" ", "-"), marks=pytest.mark.engines) for kit in (VLLM, TRANSFORMERS)),
]


class InstalledEngine(Process):
    """A server of `make test-engines`, with its child processes in a process group of its own."""

    def __init__(self, log: Path, *command: str, **environment: str) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        command = (*command, "--host", "127.0.0.1", "--port", str(self.port))
        # No model is downloaded. Each server has one thread, because several run on a few cores.
        environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
        super().__init__(log, *command, python=str(_ENVIRONMENT / "bin" / "python"), **environment)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def ready(self) -> "InstalledEngine":
        self.wait_for(self._is_healthy, "the engine is healthy", _STARTUP)
        return self

    def _is_healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/health", timeout=5) as response:
            return bool(response.status == 200)
        return False


@functools.cache
def _hub(directory: Path) -> Path:
    """Return a directory of models as Hugging Face's hub fills it, with the tiny model as `tests/tiny`."""
    model = directory / "hub" / "models--tests--tiny"
    snapshot = model / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(snapshot.name)
    subprocess.run([_ENVIRONMENT / "bin" / "python", _TINY_MODEL, snapshot], check=True, capture_output=True)
    return snapshot


def _start_vllm(directory: Path, log: Path) -> InstalledEngine:
    options = {
        "model": str(_hub(directory)),
        "served-model-name": VLLM.model,
        "dtype": "float32",
        "max-num-seqs": str(SLOTS),
        "tool-call-parser": "hermes",
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    module = ("-m", "vllm.entrypoints.openai.api_server")  # `vllm serve` asks for the version of a package `vllm`
    return InstalledEngine(log, *module, *flags, "--enforce-eager", "--enable-auto-tool-choice", **environment)


def _start_transformers(directory: Path, log: Path) -> InstalledEngine:
    _hub(directory)
    program = str(_ENVIRONMENT / "bin" / "transformers")
    return InstalledEngine(log, program, "serve", "--device", "cpu", TRANSFORMERS.model, HF_HOME=str(directory))


_STARTERS = {VLLM.title: _start_vllm, TRANSFORMERS.title: _start_transformers}


class EnginePool:
    """Engines that take long to start. Tests share them, and a new one replaces each that a test has ended."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[InstalledEngine] = []
        self._title = ""
        self._started = 0

    def take(self, kit: EngineKit, number: int) -> Sequence[Engine]:
        """Return running engines. Skips the test if they are not installed."""
        if not (_ENVIRONMENT / ".installed").exists():
            pytest.skip(f"NOT TESTED: {kit.title}. `make test-engines` would install it in {_ENVIRONMENT}.")
        if kit.title != self._title:
            self.close()  # each needs a gigabyte or more
            self._title = kit.title
        self._running = [engine for engine in self._running if engine.popen.poll() is None]
        while len(self._running) < number:
            self._started += 1
            log = self._directory / f"{kit.kind}-{self._started}.log"
            self._running.append(_STARTERS[kit.title](self._directory, log))
        return [engine.ready() for engine in self._running[:number]]

    def close(self) -> None:
        for engine in self._running:
            engine.kill()
        self._running = []


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


@contextlib.contextmanager
def llama_servers(directory: Path, model: Path, *options: dict[str, Any]) -> Iterator[list[Engine]]:
    """Run a server for each of the given sets of options."""
    with contextlib.ExitStack() as stack:
        servers: list[Engine] = []
        for number, chosen in enumerate(options):
            folder = directory / f"engine-{number}"
            folder.mkdir()
            chosen = {"use_jinja": True, "chat_template": TEMPLATE, **chosen}
            servers.append(stack.enter_context(llama_server(folder, model, SLOTS, **chosen)))
        yield servers
