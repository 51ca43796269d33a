"""Reads the file of --workers-file, which lists engines in YAML."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import yaml

from controller.domain.engine_entry import AUTO, MAX_ENGINES, MAX_KEY_LENGTH, EngineEntry, EngineSource
from controller.domain.errors import InvalidInput, SettingsError
from controller.domain.worker import worker_name

_MAX_BYTES: Final = 4 * 1024 * 1024
_MAX_DEPTH: Final = 8  # the file has a list of mappings with a mapping in each
# The parser in C is twenty times as fast. Wheels for some platforms lack it.
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Item(msgspec.Struct, forbid_unknown_fields=True):
    """One engine of the file."""

    url: str
    engine: str = AUTO
    models: dict[str, str] | list[str] = {}
    capacity: int | None = None
    speed: float = 1.0
    api_key_file: str = ""
    api_key_env: str = ""


class EngineList(NamedTuple):
    """The content of a file.

    engines: the entries by the names of the workers.
    key_files: the files with keys that it names.
    """

    engines: Mapping[str, EngineEntry]
    key_files: tuple[Path, ...]


def read_workers_file(path: Path) -> EngineList:
    """Return the engines that a file lists. Raises SettingsError with the line that is wrong.

    A relative path of a key file begins at the directory of the file.
    """
    try:
        return _read_list(path)
    except (OSError, UnicodeDecodeError, SettingsError) as error:
        problem = " ".join(str(error).split()).rstrip(".")
        raise SettingsError(f"--workers-file {path} cannot be used: {problem}.") from error


def _read_list(path: Path) -> EngineList:
    root, lines = _parse(_read(path, _MAX_BYTES))
    engines: dict[str, EngineEntry] = {}
    key_files: list[Path] = []
    for line, item in zip(lines, root, strict=True):
        try:
            name, entry = _entry(item, path.parent, key_files)
        except (InvalidInput, msgspec.ValidationError, SettingsError) as error:
            raise SettingsError(f"line {line}: {error}") from error
        if name in engines:
            raise SettingsError(f"line {line}: {name} is listed twice")
        engines[name] = entry
    return EngineList(engines, tuple(key_files))


def _read(path: Path, limit: int) -> str:
    if not stat.S_ISREG(path.stat().st_mode):
        raise SettingsError(f"{path} is not a regular file")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise SettingsError(f"{path} has more than {limit} bytes")
    return content.decode("utf-8-sig")


def _parse(text: str) -> tuple[list[Any], list[int]]:
    """Return the items of the list `workers`, and the line of each, from 1 on. Raises SettingsError."""
    try:
        _check_shape(text)
        loader = _LOADER(text)
        try:
            node = loader.get_single_node()
            _check_keys(node)
            root = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise SettingsError(f"{place}this is not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # such as a date that does not exist
        raise SettingsError(f"it is not YAML: {error}") from error
    if not isinstance(root, dict) or list(root) != ["workers"] or not isinstance(root["workers"], list):
        raise SettingsError("it must have the key `workers` with a list, which may be empty: `workers: []`")
    if len(root["workers"]) > MAX_ENGINES:
        raise SettingsError(f"it lists more than {MAX_ENGINES} engines")
    [(_, items)] = node.value
    return root["workers"], [item.start_mark.line + 1 for item in items.value]


def _check_shape(text: str) -> None:
    """Raise SettingsError for deep nesting, which could exhaust the stack, and for aliases, which could grow."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise SettingsError(f"line {line}: anchors (&) and aliases (*) are not supported")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise SettingsError(f"line {line}: it is nested too deeply")


def _check_keys(node: Any) -> None:
    """Raise SettingsError for a key that a mapping has twice. YAML forbids it, but the parser takes the last one."""
    for mapping in _mappings(node):
        seen = set()
        for key, _ in mapping.value:
            if key.value in seen:
                raise SettingsError(f"line {key.start_mark.line + 1}: the key {key.value!r} is there twice")
            if isinstance(key.value, str):
                seen.add(key.value)


def _mappings(node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _mappings(value)


def _entry(value: object, directory: Path, key_files: list[Path]) -> tuple[str, EngineEntry]:
    """Return the name and the entry of an item. Appends the file with its key to `key_files`."""
    item = msgspec.convert(value, _Item)
    names = item.models if isinstance(item.models, dict) else {name: name for name in item.models}
    if item.api_key_file and item.api_key_env:
        raise SettingsError("it has api_key_file and api_key_env. Leave one of them out")
    key = ""
    if item.api_key_file:
        path = directory / item.api_key_file
        key_files.append(path)
        key = _read(path, 2 * MAX_KEY_LENGTH).strip()
    elif item.api_key_env:
        key = os.environ.get(item.api_key_env, "").strip()
    if (item.api_key_file or item.api_key_env) and not key:
        raise SettingsError(f"{item.api_key_file or item.api_key_env} has no key in it")
    entry = EngineEntry(item.engine, names, key, item.speed, item.capacity, source=EngineSource.FILE)
    return worker_name(item.url), entry
