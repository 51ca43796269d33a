"""`python -m controller`, and the command `controller`."""

import os
import signal
import sys


def main() -> None:
    """Run the command line."""
    # First of all: as process 1 of a container, a program cannot be ended before it has asked for the signal, and to
    # import the rest takes a while.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from controller.cli.main import main as command_line

    try:
        command_line()
    except OSError as error:
        _drop_output()
        sys.exit(f"Error: The output cannot be written: {error.strerror or error}.")


def _drop_output() -> None:
    """Keep Python from writing the rest of the output at its end, which would fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


if __name__ == "__main__":
    main()
