"""Decides which tests share a worker of pytest-xdist: those of one file, and all tests of containers.

Tests of containers mostly wait. One worker runs all of them, so that the others use the processor meanwhile. It also
builds the images only once.
"""

from xdist.scheduler import LoadFileScheduling

CONTAINERS = "tests/deploy/containers"  # the name of the group
FILES = {f"tests/deploy/test_{name}.py" for name in ("compose", "leftovers", "regions", "topologies")}


class Scheduling(LoadFileScheduling):
    """`--dist loadfile` that treats the files of containers as one file."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return CONTAINERS if file in FILES else file
