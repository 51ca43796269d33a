"""Fixtures of the histories."""

from tests.system.conftest import work_dir

__all__ = ["work_dir"]
