"""Which tests run together where pytest-xdist runs several files at once: each file by itself, but all containers.

Tests of containers mostly wait. One worker runs all of them, so that the others use the processor meanwhile, and the
images are built once.
"""

from xdist.scheduler import LoadFileScheduling

CONTAINERS = "tests/deploy/containers"  # no file
FILES = {f"tests/deploy/test_{name}.py" for name in ("compose", "leftovers", "regions", "topologies")}


class Scheduling(LoadFileScheduling):
    """`--dist loadfile` with the files of containers as one."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return CONTAINERS if file in FILES else file
