"""Splits the suite: `--part quick` for each change, `--part rest` for tests that take long or need installed servers.

Together they are the whole suite, except the tests of `--part engines`. Tests marked `deep` run in both, with more
examples in `rest`. `--part engines` has the tests of engines that take minutes to install.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from zlib import crc32

import pytest
from hypothesis import settings

_LONGEST = {"deploy", "proxy", "soak", "system"}
_quick = False


def add_options(parser: pytest.Parser) -> None:
    parser.addoption("--part", choices=("quick", "rest", "engines"), help="run a part (default: quick and rest)")


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the part that was asked for."""
    part = config.getoption("--part")
    kept = [item for item in items if (part == "engines") is bool(item.get_closest_marker("engines"))]
    if part in ("quick", "rest"):
        kept = [item for item in kept if (part == "quick") is is_quick(item) or item.get_closest_marker("deep")]
    if part == "quick":
        kept = [item for item in kept if is_quick(item)]
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = sorted(kept, key=_place)


def _place(item: pytest.Item) -> tuple[bool, int]:
    """Return a sort key: tests/system and tests/deploy first, which take longest.

    Within each group, the order is mixed, so that files that wait run beside files that compute.
    """
    file = item.nodeid.partition("::")[0]
    return _LONGEST.isdisjoint(file.split("/")), crc32(file.encode())


def is_quick(item: pytest.Item) -> bool:
    """Return True for a short test that needs no server besides those that the packages install."""
    if any(item.get_closest_marker(name) for name in ("slow", "deploy")):
        return False
    if item.get_closest_marker("system") and not item.get_closest_marker("smoke"):
        return False
    if item.get_closest_marker("slow_on_fakeredis") and "fakeredis" in item.nodeid:
        return False
    return "redis-server" not in item.nodeid


def configure(config: pytest.Config) -> None:
    """Let Hypothesis try fewer examples in the quick part."""
    global _quick
    _quick = config.getoption("--part") == "quick"
    settings.register_profile("part", settings.get_profile("untimed"), max_examples=examples(100))
    settings.load_profile("part")


def examples(number: int) -> int:
    """Return `number`, or a fifth of it in the quick part: the Hypothesis examples of a test."""
    return max(2, number // 5) if _quick else number


def summary(reports: Iterable[pytest.TestReport]) -> list[str]:
    """Describe what the tests exercised, one line for each directory."""
    passed: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    stores: dict[str, set[str]] = {}
    for report in reports:
        file = report.nodeid.partition("::")[0].split("/")
        directory = file[1] if len(file) > 2 else "project"
        passed[directory] += 1
        seconds[directory] += report.duration
        for store in ("fakeredis", "embedded", "redis-server", "redis-server-acl"):
            if store in report.nodeid:
                stores.setdefault(directory, set()).add(store)
    return [
        f"{directory:<14}{passed[directory]:>6} passed {seconds[directory]:>8.0f} s  "
        f"{WHAT.get(directory, '')}{' on ' + ', '.join(sorted(stores[directory])) if directory in stores else ''}"
        for directory in sorted(passed)
    ]


WHAT = {
    "availability": "outages, degraded mode, recovery, random histories",
    "cli": "the command line",
    "deploy": "containers, load balancers, manifests",
    "domain": "names, hop lists, headers, clock",
    "history": "histories of real processes with faults, checked for linearizability",
    "model": "the reference model of the Lua scripts",
    "dispatch": "the dispatcher",
    "page": "the page for operators, in Chromium",
    "mutants": "the tool that changes the code to test the tests",
    "fleet": "membership, polls, refresh, parents",
    "project": "docs, packaging, settings, metrics",
    "proxy": "forwarding with leases and retries",
    "security": "tokens, networks, worker addresses, forwarded paths, limits, attacks, fuzzing",
    "server": "sockets and certificates",
    "tracing": "the spans of requests",
    "soak": "workers that come and go, with faults",
    "store": "Lua scripts, the reference model, connections",
    "system": "real processes, the real FastChat, kills and signals",
    "upstream": "HTTP to workers",
    "web": "routes, bodies, errors, the HTTP protocol",
}
