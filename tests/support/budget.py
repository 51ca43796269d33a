"""Scripts whose limits for the work of a call differ from the real ones (lua/include/spend.lua)."""

import re

import pytest

from controller.store import scripts

_LINE = "local BUDGET, MAX_SECONDS, CLOCK_STEP = {}, {}, {}\n"
_LIMITS = re.compile(r"local BUDGET, MAX_SECONDS, CLOCK_STEP = .*\n")
_HOUR = 3600


def set_limits(monkeypatch: pytest.MonkeyPatch, *limits: float) -> None:
    """Set the units of work, the seconds of processor time, and the units between two looks at the clock."""
    source = scripts.source
    assert _LIMITS.search(source("sweep"))
    monkeypatch.setattr(scripts, "source", lambda name: _LIMITS.sub(_LINE.format(*limits), source(name)))


def small_budget(monkeypatch: pytest.MonkeyPatch, units: int = 1) -> None:
    """Let few items exceed the budget, in registries that are opened from now on."""
    set_limits(monkeypatch, units, _HOUR, 40)


def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a call end as soon as it looks at the clock for the second time."""
    set_limits(monkeypatch, 1500, 1e-9, 1)


def no_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only the units of work count. A slow machine, or fakeredis, would end calls earlier."""
    set_limits(monkeypatch, 1500, _HOUR, 40)
