"""`python -m controller` is the command `controller`."""

from controller.cli import main

if __name__ == "__main__":
    main()
