"""Scripts with a smaller budget than the real ones, so that few items exceed it."""

import pytest

from controller.store import scripts

_LINE = "local BUDGET = 1500\n"


def small_budget(monkeypatch: pytest.MonkeyPatch, units: int = 1) -> None:
    """Set the budget of a call, for registries that are opened from now on."""
    source = scripts.source
    assert _LINE in source("sweep")
    monkeypatch.setattr(scripts, "source", lambda name: source(name).replace(_LINE, f"local BUDGET = {units}\n"))
