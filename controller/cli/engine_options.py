"""The options that describe an engine, which `controller register` and `controller agent` share."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from controller.domain.errors import ControllerError


class Description(NamedTuple):
    """The description of an engine by the options.

    models: names, or the engine's own name and the public name with = between.
    speed: relative to other workers.
    capacity: how many requests it runs at once. None to ask the engine.
    key_file: has the key that the engine requires. None if it requires none.
    """

    models: tuple[str, ...] = ()
    speed: float = 1.0
    capacity: int | None = None
    key_file: Path | None = None

    def public_names(self) -> dict[str, str]:
        """Return the public name of each model by its own name. The last = separates the two."""
        names = {}
        for model in self.models:
            own, separator, public = model.rpartition("=")
            names[own if separator else public] = public
        return names

    def read_key(self) -> str:
        """Return the key of the engine. "" if it requires none. Raises ControllerError if the file is unreadable."""
        if self.key_file is None:
            return ""
        try:
            return self.key_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ControllerError(f"The key cannot be read from {self.key_file}: {error}.") from error


def describes_engine(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that describe an engine, as one argument `description`."""

    @click.option(
        "--model",
        "models",
        multiple=True,
        metavar="NAME[=PUBLIC]",
        help="A model to register, and the name under which clients ask for this model. Repeat for several. Default: "
        "all models, under their own names.",
    )
    @click.option("--speed", type=click.FLOAT, default=1.0, show_default=True, help="Speed, relative to other workers.")
    @click.option(
        "--capacity",
        type=click.IntRange(1),
        help="Number of requests that run at once. By default, the engine or worker is asked.",
    )
    @click.option(
        "--api-key-file",
        "key_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="File with the key that the engine requires.",
    )
    @functools.wraps(command)
    def described(
        *args: Any,
        models: tuple[str, ...],
        speed: float,
        capacity: int | None,
        key_file: Path | None,
        **values: Any,
    ) -> None:
        command(*args, description=Description(models, speed, capacity, key_file), **values)

    return described
