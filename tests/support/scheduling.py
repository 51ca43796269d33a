"""Decides which tests share a worker of pytest-xdist: those of one file, and those of some files with containers.

Tests of containers mostly wait. Two workers run all of them, so that the others use the processor meanwhile, and so
that few containers run at the same time.
"""

from typing import Final

from xdist.scheduler import LoadFileScheduling

GROUPS: Final = {
    f"tests/deploy/test_{name}.py": f"tests/deploy/{group}"
    for group, names in {"one Redis": ("compose", "leftovers"), "several": ("regions", "topologies")}.items()
    for name in names
}


class Scheduling(LoadFileScheduling):
    """`--dist loadfile` that treats the files of a group as one file."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return GROUPS.get(file, file)
