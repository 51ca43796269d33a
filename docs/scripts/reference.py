"""Generate the tables of the reference pages, and some others, from the code.

    make docs-reference        or        python docs/scripts/reference.py

A page has markers, `<!-- generated: name -->` and `<!-- end -->`. The text between them is replaced. Words after the
name are arguments of the generator.
tests/test_docs.py fails if a page is stale.
"""

import ast
import inspect
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Final
from unittest.mock import create_autospec

import click

ROOT: Final = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from controller.availability.known_models import KnownModels  # noqa: E402
from controller.availability.snapshots import SnapshotManager  # noqa: E402
from controller.cli.main import main as command_line  # noqa: E402
from controller.domain import errors  # noqa: E402
from controller.domain.events import KINDS  # noqa: E402
from controller.fleet.events import EventFeed  # noqa: E402
from controller.fleet.replicas import Replicas  # noqa: E402
from controller.fleet.telemetry import Telemetry  # noqa: E402
from controller.metrics import Metrics  # noqa: E402
from controller.security.forward_paths import DEFAULT as DEFAULT_PATHS  # noqa: E402
from controller.settings import GROUPS, Settings  # noqa: E402
from controller.settings.declaration import environment_variables, flag  # noqa: E402
from controller.store import keys  # noqa: E402
from controller.store.registry import Registry  # noqa: E402
from controller.upstream.engines.gauges import Gauges  # noqa: E402
from controller.upstream.engines.table import ENGINES, Question  # noqa: E402
from docs.scripts import http_reference  # noqa: E402
from docs.scripts.markdown import code, table  # noqa: E402

# Labels whose values the page of the metrics lists.
_LISTED: Final = ("outcome", "reason", "direction", "limit", "state")
REFERENCE: Final = ROOT / "docs" / "reference"
LUA: Final = ROOT / "lua"
_BLOCK: Final = re.compile(r"(<!-- generated: ([a-z-]+)([^>\n]*) -->\n).*?(<!-- end -->)", re.DOTALL)


def settings() -> str:
    """Return a table for each group of the settings of `controller serve`."""
    header = "Flag | Environment variable | Default | Meaning"
    return "\n".join(f"## {group.title}\n\n{table(header, list(map(_setting_row, fields(group))))}" for group in GROUPS)


def _setting_row(setting: "Field[Any]") -> tuple[str, ...]:
    default = setting.default
    text, _, described = setting.metadata["help"].partition("  [default: ")
    has_none = default is None or default is False
    unit = setting.metadata["unit"]
    shown = f"{default:g} {unit}".rstrip() if isinstance(default, float) else "" if has_none else str(default)
    shown = described.removesuffix("]") or shown
    meaning = _sentences(text)
    if setting.metadata["choices"]:
        meaning += " One of " + ", ".join(code(str(choice)) for choice in setting.metadata["choices"]) + "."
    variables = "<br>".join(code(variable) for variable in environment_variables(setting))
    name = "" if setting.metadata["secret"] else flag(setting.name)
    return code(name), variables, code(shown), meaning


def _sentences(text: str) -> str:
    """Mark flags in a help text as code."""
    return re.sub(r"(?<![\w`])(--[a-z][a-z-]+[a-z])", r"`\1`", " ".join(text.split()))


def forward_paths() -> str:
    """Return the paths of the default of --forward-paths."""
    return "```\n" + "\n".join(DEFAULT_PATHS) + "\n```\n"


def metrics() -> str:
    """Return a table with a row for each metric, as a replica without workers reports it."""
    recorded = Metrics()
    recorded.measure_scripts(["..."])
    kinds = (SnapshotManager, KnownModels, Replicas, EventFeed, Registry)
    snapshots, known, replicas, events, registry = (create_autospec(kind, instance=True) for kind in kinds)
    known.missing.return_value, snapshots.workers.return_value, replicas.last_count, registry.memory = {}, (), 0, (0, 0)
    telemetry = Telemetry(Settings(worker_metrics="on"), recorded, snapshots, known, replicas, events, registry, int)
    rows = []
    for family in [*recorded.collect(), *telemetry.collect()]:
        labels: dict[str, list[str]] = {name: [] for name in getattr(family, "_labelnames", ())}
        for sample in family.samples:
            for name, value in sample.labels.items():
                labels.setdefault(name, []).append(value)
        labels.pop("le", None)
        shown = "<br>".join(
            f"{code(name)}: {', '.join(map(code, dict.fromkeys(values)))}" if name in _LISTED else code(name)
            for name, values in labels.items()
        )
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append((code(name), family.type, shown, family.documentation))
    return table("Metric | Type | Labels | Meaning", rows)


def events() -> str:
    """Return a table with a row for each kind of event."""
    return table("Kind | What happened", [(code(kind), text) for kind, text in KINDS.items()])


def redis_keys() -> str:
    """Return a table with a row for each key."""
    rows = []
    for pattern, description in _keys():
        kind, _, meaning = description.partition(": ")
        rows.append((code(pattern), kind, meaning[:1].upper() + meaning[1:]))
    return table("Key | Type | Holds", rows)


def _keys() -> Iterator[tuple[str, str]]:
    """Find the pattern and the description of each key."""
    for name, function in _functions(keys):
        if name != "namespace":
            parameters = list(inspect.signature(function).parameters)[1:]
            pattern = function("<ns>", *(f"<{parameter.replace('_', ' ')}>" for parameter in parameters))
            yield pattern, " ".join((inspect.getdoc(function) or "").split())


def key_users() -> str:
    """Return a table of the scripts that read and write each key, from the `Keys:` sections of their headers."""
    users: dict[str, dict[str, list[str]]] = {}
    for file in sorted(LUA.rglob("*.lua")):
        if "include" not in file.relative_to(LUA).parts:
            for key, access in declared_keys(file.read_text()):
                for mode in access:
                    users.setdefault(key, {}).setdefault(mode, []).append(code(file.stem))
    rows = []
    for pattern, _ in _keys():
        modes = users.pop(pattern.split(":")[1], {})
        if modes:
            rows.append((code(pattern), ", ".join(modes.get("r", ())), ", ".join(modes.get("w", ()))))
    if users:
        raise ValueError(f"Headers in {LUA} name keys that are not in controller/store/keys.py: {sorted(users)}")
    return "Scripts that read and write the keys:\n\n" + table("Key | Read by | Written by", rows)


def declared_keys(text: str) -> Iterator[tuple[str, str]]:
    """Find the keys in the header of a script: the name that follows the namespace, and "r", "w" or "rw"."""
    header = re.match(r"--\[\[(.*?)\]\]", text, re.DOTALL)
    section = header and re.search(r"(?ms)^ *Keys:(.*?)(?=^ *[A-Z]\w+:|\Z)", header[1])
    for entry in _KEY.finditer(section[1] if section else ""):
        yield entry["name"], entry["access"]


# An entry such as `model:<model> ZSET rw` or `{<ns>}:leases  ZSET with a TTL  r`.
_KEY: Final = re.compile(
    r"(?:^|,)[ `']*(?:\{[^}\n]*\}:)?(?P<name>[a-z_]+)(?::<[^>\n]*>)*[`']?"
    r"(?:\s+[A-Z]+)?(?: with a TTL)?,?\s+(?P<access>rw|r|w)\b",
    re.MULTILINE,
)


def _functions(module: Any) -> Iterator[tuple[str, Callable[..., str]]]:
    for name, function in vars(module).items():
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_"):
            yield name, function


def error_codes() -> str:
    """Return a table of the errors that have a code of their own, without the base classes."""
    rows = [
        (code(error.code), error.__name__, _summary(error))
        for error in _subclasses(errors.ControllerError)
        if "code" in vars(error) and error not in (errors.StoreError, errors.WorkerError)
    ]
    return table("Code | Class | Meaning", sorted(rows))


def error_tree() -> str:
    """Return the tree of all errors."""
    lines = ["```", "ControllerError"]

    def add(parent: type[errors.ControllerError], indent: str) -> None:
        children = parent.__subclasses__()
        for child in children:
            last = child is children[-1]
            lines.append(f"{indent}{'└' if last else '├'}── {child.__name__}")
            add(child, indent + ("    " if last else "│   "))

    add(errors.ControllerError, "")
    return "\n".join([*lines, "```"]) + "\n"


def _subclasses(parent: type[errors.ControllerError]) -> Iterator[type[errors.ControllerError]]:
    for child in parent.__subclasses__():
        yield child
        yield from _subclasses(child)


def _summary(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def layers() -> str:
    """Return a table of the packages and modules, from the highest layer to the lowest, and of their imports."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    order = [name.strip() for contract in contracts for row in contract.get("layers", ()) for name in row.split("|")]
    rows = []
    for name in order:
        package = ROOT / "controller" / name
        file = package / "__init__.py" if package.is_dir() else package.with_suffix(".py")
        docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
        imported = _imported(package if package.is_dir() else file) - {name}
        path = f"controller/{name}" if package.is_dir() else f"controller/{name}.py"
        imports = [code(one) for one in order if one in imported and (ROOT / "controller" / one).is_dir()]
        rows.append((code(path), docstring.partition("\n\n")[0], ", ".join(imports)))
    return table("Package or module | Its one job | Imports", rows)


def _imported(path: Path) -> set[str]:
    """Return the packages and modules of the controller that a package or module imports."""
    found = set()
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("controller."):
                found.add((node.module or "").split(".")[1])
    return found


# These commands take the settings as flags.
_LIKE_SERVE: Final[Mapping[str, str]] = {
    "serve": "",
    "config": " `--json` prints JSON, `--changed` leaves out the defaults, and `--no-color` turns off colors.",
}


def commands() -> str:
    """Return a section for each command, and one for each command of a group."""
    sections = []
    for name, command in _commands(command_line):
        text = inspect.cleandoc(command.help or "").replace("\b\n", "")
        arguments = "".join(
            f" {argument.metavar or str(argument.name).upper()}"
            for argument in command.params
            if isinstance(argument, click.Argument)
        )
        rows = []
        if name not in _LIKE_SERVE:
            for option in command.params:
                if isinstance(option, click.Option):
                    variable = option.envvar if isinstance(option.envvar, str) else ", ".join(option.envvar or ())
                    has_default = not option.is_flag and isinstance(option.default, str | int | float)
                    default = str(option.default) if has_default else ""
                    rows.append((", ".join(map(code, option.opts)), code(variable), code(default), option.help or ""))
        options = table("Flag | Environment variable | Default | Meaning", rows) if rows else ""
        if name in _LIKE_SERVE:
            options = f"[Settings](settings.md) lists the flags.{_LIKE_SERVE[name]}\n"
        heading = f"{'##' if ' ' not in name else '###'} controller {name}{arguments}"
        sections.append(f"{heading}\n\n{_indented(text)}\n" + (f"\n{options}" if options else ""))
    return "\n".join(sections)


def _commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield each command with its name. The commands of a group follow the group."""
    for name, command in sorted(group.commands.items()):
        yield prefix + name, command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix}{name} ")


def _indented(text: str) -> str:
    """Put a blank line before lines of code in a help text: Markdown needs one."""
    return re.sub(r"(?m)^((?!    ).*\S)\n(?=    \S)", r"\1\n\n", text)


def _lag(question: Question) -> str:
    at_start = f", at first {question.lag_at_start:g} s" if question.lag_at_start else ""
    return f"{question.lag:g} s{at_start}"


def engines() -> str:
    """Return a table of what each kind of engine is asked, and one of what follows from its answers."""
    asked, known = [], []
    for kind, engine in ENGINES.items():
        with_capacity = [question for question in (*engine.load, *engine.models) if _has_capacity(question)]
        topics = (engine.health, engine.models, engine.awake, engine.load, (*with_capacity, *engine.capacity))
        asked.append((code(kind), engine.title, *map(_paths, topics)))
        owner = f"`owned_by` is {code(engine.owned_by)}" if engine.owned_by else ""
        sign = "<br>".join(filter(None, (owner, _paths(engine.sign)))) or "nothing else fits"
        lag = "<br>".join(map(_lag, engine.load))
        known.append((code(kind), sign, lag, _tested(kind), engine.notes))
    return "\n".join(
        [
            table("Kind | Engine | Health | Models | Asleep | Load | Capacity", asked),
            table("Kind | Recognised by | Lag of the load | Tested with | Notes", known),
        ]
    )


def _paths(questions: Sequence[Question]) -> str:
    return "<br>".join(code(question.path) for question in questions)


def _has_capacity(question: Question) -> bool:
    return bool(question.read.capacity) if isinstance(question.read, Gauges) else question.has_capacity


def _tested(kind: str) -> str:
    """Return the versions of an engine whose answers the tests have."""
    versions: dict[str, bool] = {}
    for path in (ROOT / "tests/upstream/engines/answers").glob(f"{kind}-*/about.toml"):
        about = tomllib.loads(path.read_text())
        versions[about["version"]] = versions.get(about["version"], False) or about["recorded"]
    ordered = sorted(versions, key=lambda version: [int(number) for number in re.findall(r"\d+", version)])
    return ", ".join(f"{version} *(real)*" if versions[version] else version for version in ordered)


GENERATORS: Final[Mapping[str, Callable[..., str]]] = {
    "routes": http_reference.routes,
    "route": http_reference.route,
    "settings": settings,
    "forward-paths": forward_paths,
    "metrics": metrics,
    "events": events,
    "redis-keys": redis_keys,
    "key-users": key_users,
    "error-codes": error_codes,
    "error-tree": error_tree,
    "commands": commands,
    "layers": layers,
    "engines": engines,
}


def generated(text: str) -> str:
    """Return a page with its generated parts renewed."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{GENERATORS[block[2]](*block[3].split())}\n{block[4]}", text)


def pages() -> list[Path]:
    """Return the pages with generated parts."""
    return [page for page in sorted((ROOT / "docs").rglob("*.md")) if _BLOCK.search(page.read_text())]


def main() -> None:
    """Renew all pages."""
    for page in pages():
        before = page.read_text()
        after = generated(before)
        if after != before:
            page.write_text(after)
            print(f"{page.relative_to(ROOT)} renewed")


if __name__ == "__main__":
    main()
