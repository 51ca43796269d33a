"""Take the pictures of the page for operators, with Debian's Chromium.

    python docs/scripts/screenshots.py [--seconds 60] [--output docs/images]

Starts a controller with an embedded store, registers invented workers, and lets invented clients use them for
`--seconds`, so that the line of the dispatch rate has something to show. Needs the packages of the tests, and Pillow.
"""

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT: Final = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # tests/system/processes.py imports benchmarks/ports.py

from tests.system.processes import ControllerProcess  # noqa: E402

_MODELS: Final = (("vicuna-7b", "vicuna-13b"), ("vicuna-7b",), ("llama-3-70b",))
_CAPACITY: Final = 8
_COLOURS: Final = 96


class Picture(NamedTuple):
    """A screenshot to take. height: height of the window in pixels, or 0 for the whole page."""

    file: str
    width: int
    height: int
    scheme: str
    fragment: str = ""


_FEW: Final = (
    Picture("page-light.png", 1200, 0, "light"),
    Picture("page-dark.png", 1200, 0, "dark"),
    Picture("page-narrow.png", 380, 780, "light"),
)
_MANY: Final = (
    Picture("page-many-light.png", 1200, 820, "light", "#sort=-queue"),
    Picture("page-many-dark.png", 1200, 820, "dark", "#sort=-queue"),
    Picture("page-narrow-dark.png", 380, 780, "dark", "#model=vicuna-7b"),
)


class Fleet:
    """Invented workers of a controller, and the requests that they have."""

    def __init__(self, controller: ControllerProcess, names: Sequence[str]) -> None:
        self._controller = controller
        self._random = random.Random(7)  # noqa: S311 - pictures need no secrets
        self._leases: dict[str, list[str]] = {name: [] for name in names}
        # Requests of other clients, because ours cannot keep many workers busy.
        self._others = {name: self._random.choice((0, 2, 3, 4, 5, 8, 9)) if len(names) > 9 else 0 for name in names}
        self._reports = dict.fromkeys(names, 0)
        for number, name in enumerate(names):
            queue = self._others[name]
            status = {"model_names": _MODELS[number % 3], "speed": 1, "queue_length": queue, "capacity": _CAPACITY}
            controller.post(
                "/register_worker", {"worker_name": name, "check_heart_beat": True, "worker_status": status}
            )
        controller.post("/drain_worker", {"worker_name": names[1], "reason": "new driver"})

    def work(self, stop: threading.Event) -> None:
        """Send requests and heartbeats until `stop` is set. The number of requests rises and falls."""
        chance, call = self._random, self._controller.post
        for step in itertools.count():
            if stop.wait(0.1):
                return
            busy = min(0.8 * _CAPACITY * len(self._leases), 60.0) * (1 + step % 90 / 90) / 2
            if sum(map(len, self._leases.values())) < busy:
                for model in chance.sample(("vicuna-7b", "vicuna-7b", "llama-3-70b"), 2):
                    found = call("/get_worker_address", {"model": model, "lease": 600})
                    if found["address"]:
                        self._leases[found["address"]].append(found["lease"])
            for name, leases in self._leases.items():
                if leases and chance.random() < 0.12 * len(leases):
                    call("/release_worker", {"lease": leases.pop(0)})
                if chance.random() < (0.1 if leases else 0.01):
                    self._reports[name] += 1
                    shrinks = self._others[name] > 0 and self._reports[name] % 2  # otherwise it would count as stalled
                    queue = self._others[name] - int(shrinks) + len(leases)
                    call("/receive_heart_beat", {"worker_name": name, "queue_length": queue})


def take(browser: Browser, url: str, picture: Picture, output: Path) -> None:
    """Take a screenshot, and write it with few colours."""
    size = {"width": picture.width, "height": picture.height or 600}
    page = browser.new_page(viewport=size, color_scheme=picture.scheme)  # type: ignore[arg-type]
    page.goto(f"{url}/{picture.fragment}")
    page.locator("#workers tbody tr").first.wait_for()
    page.wait_for_timeout(3_000)  # for some updates, and for the response of /explain that the dialog of a model shows
    taken = page.screenshot(full_page=not picture.height)
    page.close()
    image = Image.open(BytesIO(taken)).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    image.save(output / picture.file, optimize=True)
    print(f"{picture.file}: {(output / picture.file).stat().st_size // 1000} kB")


def take_all(browser: Browser, workers: int, pictures: Sequence[Picture], seconds: float, output: Path) -> None:
    """Take the screenshots of a controller with some workers."""
    flags = ["--poll-interval", "0", "--heartbeat-expiration", "300"]  # a thousand workers send heartbeats rarely
    with tempfile.TemporaryDirectory() as directory:
        process = ControllerProcess(Path(directory) / "data", *flags)
        stop = threading.Event()
        try:
            process.ready()
            names = [f"http://127.0.{number // 200}.{number % 200 + 1}:21002" for number in range(workers)]
            clients = threading.Thread(target=Fleet(process, names).work, args=(stop,))
            clients.start()
            time.sleep(seconds)
            for picture in pictures:
                take(browser, process.url, picture, output)
            stop.set()
            clients.join()
        finally:
            stop.set()
            process.stop()


def main() -> None:
    """Take all screenshots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long clients work before a picture")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        take_all(browser, 3, _FEW, args.seconds, args.output)
        take_all(browser, 1_000, _MANY, args.seconds, args.output)


if __name__ == "__main__":
    main()
