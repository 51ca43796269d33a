"""Entry point of `python -m controller` and of the command `controller`."""

import io
import os
import signal
import sys


def main() -> None:
    """Run the command line."""
    try:
        _run()
    except KeyboardInterrupt:  # during the imports
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(130)


def _run() -> None:
    # Process 1 of a container ignores SIGTERM until it has a handler. Set one before the slow imports.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from controller.cli.completion import VARIABLE
    from controller.cli.main import main as command_line

    if isinstance(sys.stdout, io.TextIOWrapper):  # characters that the encoding lacks must not end a command
        sys.stdout.reconfigure(errors="replace")
    try:
        command_line(complete_var=VARIABLE)  # even if the command has another name
    except OSError as error:
        _drop_output()
        sys.exit(f"Error: The output cannot be written: {error.strerror or error}.")


def _drop_output() -> None:
    """Redirect standard output to the null device. Otherwise Python would flush the rest at its exit and fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


if __name__ == "__main__":
    main()
