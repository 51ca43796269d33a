"""`python -m controller`, and the command `controller`."""

import signal
import sys


def main() -> None:
    """Run the command line."""
    # First of all: as process 1 of a container, a program cannot be ended before it has asked for the signal, and to
    # import the rest takes a while.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from controller.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
