"""Each command of the tour in docs/getting-started.md prints what the page shows. Only the ports differ."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_port

from tests.system.processes import Process, listens, serves

pytestmark = [pytest.mark.system, pytest.mark.smoke]

PAGE = (Path(__file__).parents[2] / "docs" / "getting-started.md").read_text()
PORTS = ("21001", "21002", "21003", "8000")
LEASE = re.compile(r"\d{13}-\d+-\d+-\d+@http://[^\"]+")
# Patterns of text that differs between runs, with their placeholders.
VARIABLE = (
    (re.compile(r"(?m)^.* INFO .*\n"), ""),
    (LEASE, "LEASE"),
    (re.compile(r'("address":"http://localhost:)\d+'), r"\1PORT"),
    (re.compile(r"\d+\.\d s"), "TIME"),
    (re.compile(r"(?m)^( http\S+ +serving) +\d+( +echo) +\d+ "), r"\1 QUEUE\2 LEASED "),
    (re.compile(r"[━─]+"), "─"),
    (re.compile(r" +"), " "),
    (re.compile(r"(?m) $"), ""),
)


def commands() -> list[tuple[str, str]]:
    """Return each command of the tour with the output that the page shows."""
    [tour] = re.findall(r"## A tour of two minutes\n(.*?)\n## ", PAGE, re.DOTALL)
    found = []
    for block in re.findall(r"```\n(.*?)```", tour, re.DOTALL):
        for step in re.split(r"(?m)^\$ ", block)[1:]:
            command, _, printed = step.partition("\n")
            found.append((command.partition("  #")[0].strip(), printed))
    return found


def without_variables(printed: str) -> str:
    for pattern, replacement in VARIABLE:
        printed = pattern.sub(replacement, printed)
    return printed.strip()


def pattern(expected: str) -> str:
    """Return a regular expression for an output on the page, where " ... " stands for omitted text."""
    return ".*".join(re.escape(part) for part in without_variables(expected).split(" ... "))


class Tour:
    """Runs the commands of the page on ports of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        free = sorted(str(free_port()) for _ in PORTS)  # workers are listed in the order of their addresses
        self.ports = dict(zip(PORTS, free, strict=True))
        self.url = f"http://localhost:{self.ports['21001']}"
        self.controller: Process | None = None
        self.lease = ""
        self.processes: list[Process] = []

    def start(self, *command: str) -> Process:
        log = self.directory / f"{len(self.processes)}.log"
        self.processes.append(Process(log, *command, LOGDIR=str(self.directory)))
        return self.processes[-1]

    def run(self, command: str, expected: str) -> None:
        if command == "make serve":
            flags = ("--port", self.ports["21001"], "--data-dir", str(self.directory / "data"))
            self.controller = self.start("-m", "controller", "serve", *flags)
            self.controller.wait_for(lambda: serves(self.url), "the controller is ready")
        elif command.startswith("kill -9 "):
            assert self.controller is not None
            self.controller.kill()
        elif command.startswith(".venv/bin/python -m "):
            self.start_server(command, expected)
        else:
            assert re.fullmatch(pattern(expected), without_variables(self.shell(command)), re.DOTALL), command

    def start_server(self, command: str, expected: str) -> None:
        [port] = re.findall(r"--port (\d+)", command)
        arguments = self.translated(command).split()[1:]
        if "--controller-address" not in arguments:
            arguments += ["--controller-address", self.url]
        server = self.start(*arguments)
        server.wait_for(lambda: listens(int(self.ports[port])), f"{command} listens")
        server.wait_for(lambda: self.translated(expected) in server.log, f"{command} prints what the page shows")

    def shell(self, command: str) -> str:
        python = shlex.quote(sys.executable)
        command = self.translated(command).replace(".venv/bin/controller", f"{python} -m controller")
        environment = {**os.environ, "CONTROLLER_ADDRESS": self.url}
        done = subprocess.run(  # noqa: S602 - the commands are our own
            LEASE.sub(self.lease, command), shell=True, capture_output=True, text=True, env=environment, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        self.lease = next(iter(LEASE.findall(done.stdout)), self.lease)
        printed = done.stdout
        for port, ours in self.ports.items():
            printed = printed.replace(f":{ours}", f":{port}")
        return printed

    def translated(self, text: str) -> str:
        for port, ours in self.ports.items():
            text = re.sub(rf"\b{port}\b", ours, text)
        return text


@pytest.fixture
def tour(work_dir: Path) -> Iterator[Tour]:
    tour = Tour(work_dir)
    yield tour
    for process in reversed(tour.processes):
        process.stop()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on PATH")
def test_each_command_of_the_tour_prints_what_the_page_shows(tour: Tour) -> None:
    found = commands()
    assert len(found) > 15
    for command, printed in found:
        tour.run(command, printed)
