"""Fixtures of the soak."""

from tests.system.conftest import work_dir

__all__ = ["work_dir"]
