"""Real engines that a file or a name of the system's resolver lists, with two replicas and real files."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.llamacpp import LlamaServer, llama_server, tiny_model
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, call

__all__ = ["tiny_model"]  # a fixture

pytestmark = pytest.mark.system


@pytest.fixture
def llama(tiny_model: Path, work_dir: Path) -> Iterator[LlamaServer]:
    with llama_server(work_dir, tiny_model) as server:
        yield server


def listed(controller: ControllerProcess) -> dict[str, bool]:
    engines = call(f"{controller.url}/engines", method="GET")["engines"]
    return {engine["worker_name"]: engine["alive"] for engine in engines}


async def test_engines_of_a_file_come_and_go(serve: Serve, llama: LlamaServer, work_dir: Path) -> None:
    file = work_dir / "workers.yaml"
    file.write_text(f"workers:\n- url: {llama.address}\n  models: {{tiny: public}}\n")
    controller = serve("--replicas", "2", "--workers-file", str(file))
    await wait_until(lambda: listed(controller) == {llama.address: True}, "the engine of the file serves")
    body = {"model": "public", "max_tokens": 2, "messages": [{"role": "user", "content": "a"}]}
    assert call(f"{controller.url}/v1/chat/completions", body)["object"] == "chat.completion"
    file.write_text("workers: [")
    await wait_until(lambda: "The engines stay as they were" in controller.log, "the wrong file is logged")
    assert listed(controller) == {llama.address: True}
    file.write_text("workers: []")
    await wait_until(lambda: listed(controller) == {}, "the engine is removed")


def can_mount() -> bool:
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([unshare, "-m", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="NOT TESTED: the system's resolver, because mounts are not permitted")
async def test_addresses_of_a_name_come_and_go(serve: Serve, llama: LlamaServer, work_dir: Path) -> None:
    """The system's resolver reads /etc/hosts, where a file of the test is mounted for the controller."""
    hosts = work_dir / "hosts"
    hosts.write_text("127.0.0.1 localhost engines.test\n127.0.0.9 engines.test\n")
    mount = 'mount --bind "$0" /etc/hosts && exec "$@"'
    port = llama.address.rpartition(":")[2]
    wrap = ("unshare", "-m", "sh", "-c", mount, str(hosts))
    controller = serve("--workers-dns", f"engines.test:{port}", wrap=wrap)
    other = f"http://127.0.0.9:{port}"
    await wait_until(lambda: listed(controller) == {llama.address: True, other: False}, "both addresses are known")
    hosts.write_text("127.0.0.1 localhost\n127.0.0.9 engines.test\n")
    await wait_until(lambda: listed(controller) == {other: False}, "the address that has left the name is removed")
    hosts.write_text("127.0.0.1 localhost\n")
    await wait_until(lambda: "lookup of engines.test failed" in controller.log, "the name is not found")
    assert listed(controller) == {other: False}
