"""The examples do what they say."""

import subprocess
import sys
from pathlib import Path

from tests.system.conftest import Serve
from tests.system.processes import Process, answers, call, free_port
from tests.waiting import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_demo_shows_a_death_and_that_nothing_is_sent_to_the_dead() -> None:
    shown = subprocess.run(
        [sys.executable, EXAMPLES / "demo.py", "--seconds", "12"], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.count("has registered") == 3
    assert "is killed" in shown.stdout
    assert "is gone," in shown.stdout
    assert "and 0 after." in " ".join(shown.stdout.split())
    assert shown.stderr == ""


async def test_the_worker_registers_serves_and_registers_again(serve: Serve, work_dir: Path) -> None:
    controller = serve()
    port = free_port()
    flags = [
        "--port",
        str(port),
        "--controller-address",
        controller.url,
        "--heartbeat-interval",
        "0.2",
        "--speed",
        "20",
    ]
    worker = Process(work_dir / "worker.log", str(EXAMPLES / "worker.py"), *flags)
    try:
        worker.wait_for(lambda: answers(f"http://localhost:{port}/worker_get_status", "POST"), "the worker answers")
        await wait_until(controller.names, "it is registered")
        assert controller.names() == [f"http://localhost:{port}"]
        controller.post("/remove_worker", {"worker_name": f"http://localhost:{port}"})
        await wait_until(controller.names, "it is registered again")
        status = call(f"http://localhost:{port}/worker_get_status")
        assert status == {"model_names": ["echo"], "speed": 20.0, "queue_length": 0}
    finally:
        worker.kill()
