"""A mutant: one small change to one source file."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Mutant:
    """One change to a file.

    line, column: where the change begins, counted from 1. Mutants of the same place are variants of each other.
    kind: the rule that made the mutant.
    apply: returns the changed text of the file.
    """

    path: PurePosixPath
    line: int
    column: int
    kind: str
    apply: Callable[[str], str]

    @property
    def place(self) -> tuple[PurePosixPath, int, int]:
        return self.path, self.line, self.column

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column} {self.kind}"

    def diff(self, text: str) -> str:
        """Return the change as a diff without context."""
        lines = difflib.unified_diff(text.splitlines(), self.apply(text).splitlines(), lineterm="", n=0)
        return "\n".join(f"    {line}" for line in list(lines)[2:] if not line.startswith("@@"))
