"""Write a picture of `controller top` with a stalled worker.

    python docs/scripts/picture_top.py [--output docs/images/top.svg]

Runs a controller and 12 workers on loopback addresses, and `controller top` in a terminal. It takes half a minute.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from docs.scripts.record_demo import picture, svg  # noqa: E402
from tests.support.fleet import fleet  # noqa: E402
from tests.support.terminal import Terminal  # noqa: E402
from tests.system.processes import ControllerProcess  # noqa: E402

_COLUMNS: Final = 100
_LINES: Final = 32
_TITLE: Final = "controller top: models, workers and events. One worker is stalled, and another one drains"


async def draw() -> str:
    """Return the picture as SVG."""
    with tempfile.TemporaryDirectory() as directory:
        process = ControllerProcess(Path(directory) / "data", "--poll-interval", "1")
        try:
            process.ready()
            return await _draw(process, Path(directory))
        finally:
            process.stop()


async def _draw(process: ControllerProcess, directory: Path) -> str:
    async with (
        fleet(process.url, 12, stuck=7, queue_length=5) as workers,
        Terminal(directory, _COLUMNS, _LINES, {"CONTROLLER_ADDRESS": process.url}) as shell,
    ):
        await asyncio.to_thread(
            process.post, "/drain_worker", {"worker_name": workers.names[3], "reason": "new driver"}
        )
        await shell.start("controller top --interval 0.5s --stalled-after 15s")
        await shell.until(lambda text: "stalled 1" in text and "drain" in text, "a worker is stalled")
        await shell.until(lambda text: "q: quit" in text, "the screen is complete")
        drawn = svg([(0.0, picture(shell.screen))], 1.0, _TITLE, _COLUMNS)
        shell.press("q")
        return drawn


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "top.svg")
    output: Path = parser.parse_args().output
    output.write_text(asyncio.run(draw()))
    print(f"{output}: {output.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
