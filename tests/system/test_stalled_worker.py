"""A new user finds, with the terminal alone, which of 50 workers is stuck, drains it, and sees it drained."""

from pathlib import Path

import pytest

from tests.support.fleet import fleet
from tests.support.terminal import Terminal
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess

pytestmark = [pytest.mark.system, pytest.mark.smoke]

STUCK = 17


def serve_fleet(serve: Serve) -> ControllerProcess:
    return serve("--poll-interval", "1", "--probe-timeout", "30", "--snapshot-interval", "0.5")


def terminal(work_dir: Path, controller: ControllerProcess, columns: int = 80, lines: int = 24) -> Terminal:
    directory = work_dir / "bin"
    directory.mkdir(exist_ok=True)
    return Terminal(directory, columns, lines, {"CONTROLLER_ADDRESS": controller.url})


@pytest.mark.slow
async def test_a_stalled_worker_is_found_drained_and_seen_drained(serve: Serve, work_dir: Path) -> None:
    controller = serve_fleet(serve)
    async with (
        fleet(controller.url, 50, stuck=STUCK, queue_length=5) as workers,
        terminal(work_dir, controller) as shell,
    ):
        stuck = workers.names[STUCK - 1]

        def is_first_and_alone(_: str) -> bool:
            rows = [line.split() for line in shell.lines if line.strip().startswith("http")]
            return bool(rows) and rows[0][:2] == [stuck, "stalled"] and "stalled" not in str(rows[1:])

        await shell.start("controller top --stalled-after 5s --interval 1s")
        await shell.until(is_first_and_alone, "top names the stuck worker, and no other")
        assert "50 workers" in shell.lines[0]
        assert shell.lines[-1].endswith("q: quit"), shell.lines
        shell.press("q")
        status, lines = await shell.run("controller doctor --stalled-after 5s | tail -n 8; (exit ${PIPESTATUS[0]})")
        assert status == 1
        text = " ".join(" ".join(lines).split())
        assert "stalled workers:" in text
        assert stuck in text
        assert f"controller drain {stuck}" in text

        await shell.start(f"controller drain {stuck} --wait --deadline 10m --reason 'it hangs'")
        await shell.until(lambda text: "has 5 requests left" in text, "drain shows the progress")
        shell.press("\x03")
        await shell.until(lambda text: "The workers keep draining." in text, "drain says what Ctrl-C means")
        assert (await shell.ended())[0] == 130
        assert next(each for each in controller.workers() if each["worker_name"] == stuck)["draining"]

        await shell.start(f"controller drain 127.0.1.{STUCK}:* --wait")
        await shell.until(lambda text: "has 5 requests left" in text, "the same command continues")
        workers.queues[stuck] = 0  # it was restarted
        status, lines = await shell.ended()
        assert (status, [line for line in lines if line == f"{stuck} is idle."]) == (0, [f"{stuck} is idle."])

        status, lines = await shell.run(f"controller worker {stuck}")
        assert status == 0
        assert ["state", "drained"] in [line.split() for line in lines]
        assert any("worker draining" in line and stuck in line for line in lines)
        assert "(it hangs)" in "".join(lines)
        assert max(map(len, lines)) <= 80


@pytest.mark.slow
async def test_screens_follow_the_size_and_end_with_ctrl_c(serve: Serve, work_dir: Path) -> None:
    controller = serve_fleet(serve)
    async with (
        fleet(controller.url, 20, stuck=STUCK, queue_length=5) as workers,
        terminal(work_dir, controller, 100, 30) as shell,
    ):
        await shell.start("controller workers --watch --interval 0.5s --sort queue")
        await shell.until(lambda text: "20 live workers" in text and "leased" in text, "the table is shown")
        shell.resize(60, 12)
        await shell.until(
            lambda text: "20 live workers, the first 7" in text and "leased" not in text, "the table fits the terminal"
        )
        assert workers.names[STUCK - 1] in shell.lines[4], "it has the longest queue"
        shell.press("\x03")
        assert (await shell.ended())[0] == 0
        shell.resize(80, 24)
        shell.press(
            "clear\nTERM=dumb controller top --sort name | cat; TERM=dumb controller top | tail -n 3; echo status=$?\n"
        )
        status, _ = await shell.ended()
        assert status == 0, "without a screen, top ends by itself"


async def test_a_lost_controller_is_named_on_the_screen(serve: Serve, work_dir: Path) -> None:
    controller = serve("--poll-interval", "0")
    controller.register("http://127.0.0.1:1/a", check=False)
    async with terminal(work_dir, controller) as shell:
        await shell.start("controller top --interval 0.5s")
        await shell.until(lambda text: "http://127.0.0.1:1/a" in text, "the worker is shown")
        controller.stop()
        await shell.until(lambda text: "Trying again." in text and "127.0.0.1:1/a" in text, "the last state stays")
        controller.popen = serve("--poll-interval", "0", port=controller.port).popen
        await shell.until(lambda text: "Trying again." not in text, "the controller is back")
        shell.press("q")
        assert (await shell.ended())[0] == 0
