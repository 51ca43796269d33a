"""Scripts that stop after less work than the real ones, so that few items are enough to see it."""

import pytest

from controller.store import scripts

_LINE = "local BUDGET = 1500\n"


def small_budget(monkeypatch: pytest.MonkeyPatch, units: int = 1) -> None:
    """The scripts of registries that are opened from now on have this budget for one call."""
    source = scripts.source
    assert _LINE in source("sweep")
    monkeypatch.setattr(scripts, "source", lambda name: source(name).replace(_LINE, f"local BUDGET = {units}\n"))
