"""Deletes directories that a process still writes to."""

import errno
import shutil
from pathlib import Path


def delete_tree(directory: Path) -> None:
    """Delete a directory and its files. If a process adds a file meanwhile, delete that too."""
    while True:
        try:
            shutil.rmtree(directory)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
        else:
            return
