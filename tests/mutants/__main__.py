"""Changes the code in small ways, and reports the changes that no test notices.

python -m tests.mutants lua/leases                      all mutants of a folder
python -m tests.mutants lua/leases/release.lua:32       those of a line
python -m tests.mutants --sample 120 --seed 1 lua       120 places, drawn at random, with one mutant each
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Final

from tests.mutants import lua, runs
from tests.mutants.chosen_tests import chosen_for, selection
from tests.mutants.mutant import Mutant

ROOT: Final = Path(__file__).parents[2]
DEFAULT: Final = [
    "lua",
    *(f"controller/{package}" for package in ("security", "domain", "store", "dispatch", "availability")),
]
_Results = dict[Mutant, runs.Outcome]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser("tests.mutants", description="Report changes of the code that no test notices.")
    parser.add_argument("paths", nargs="*", default=DEFAULT, help="files, folders, or FILE:LINE (default: all)")
    parser.add_argument("--sample", type=int, metavar="N", help="draw N places at random, with one mutant each")
    parser.add_argument("--seed", type=int, default=1, help="seed of --sample (default: 1)")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="leave out the first N, to continue a run")
    parser.add_argument("--kind", default="", help="only mutants whose kind contains this text")
    parser.add_argument("--limit", type=float, default=300, help="seconds for all tests of a mutant (default: 300)")
    parser.add_argument("--test-limit", type=float, default=90, help="seconds for one test (default: 90)")
    parser.add_argument("--list", action="store_true", help="show the mutants, and run no tests")
    arguments = parser.parse_args()
    found = [mutant for path in arguments.paths for mutant in _mutants_at(path) if arguments.kind in mutant.kind]
    if not found:
        sys.exit(f"There is nothing to mutate in {' '.join(arguments.paths)}.")
    chosen = _sample(found, arguments.sample, arguments.seed) if arguments.sample else found
    chosen = chosen[arguments.skip :]
    if arguments.list:
        for mutant in chosen:
            print(f"{mutant}\n{mutant.diff(_text(mutant.path))}")
        return
    print(f"{len(chosen)} of {len(found)} mutants, seed {arguments.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no run of tests is left behind
    runs.preload()
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        project = runs.Project(ROOT, Path(directory))
        results: _Results = {}
        try:
            for mutant in chosen:
                results[mutant] = _run(project, mutant, arguments.limit, arguments.test_limit)
        except KeyboardInterrupt:
            print("Interrupted. These are the results so far.")
        _report(results)
        _check_tests(project, results)


def _text(path: PurePosixPath) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def _mutants_at(argument: str) -> Iterator[Mutant]:
    name, _, line = argument.partition(":")
    path = ROOT / name
    files = [path] if path.is_file() else sorted(path.rglob("*.lua")) + sorted(path.rglob("*.py"))
    for file in files:
        relative = PurePosixPath(file.relative_to(ROOT).as_posix())
        if file.suffix == ".lua":
            mutants = lua.mutants(relative, _text(relative))
        else:
            from tests.mutants import python  # needs cosmic-ray, which Lua does not

            mutants = python.mutants(relative, _text(relative))
        yield from (mutant for mutant in mutants if not line or mutant.line == int(line))


def _sample(mutants: list[Mutant], number: int, seed: int) -> list[Mutant]:
    """Draw places, and one mutant of each. Otherwise a `+` with twelve variants would count twelve times."""
    generator = random.Random(seed)
    ordered = sorted(mutants, key=lambda mutant: (mutant.place, mutant.kind))
    places = [list(group) for _, group in groupby(ordered, key=lambda mutant: mutant.place)]
    drawn = generator.sample(places, min(number, len(places)))
    return sorted((generator.choice(group) for group in drawn), key=lambda mutant: mutant.place)


def _run(project: runs.Project, mutant: Mutant, limit: float, test_limit: float) -> runs.Outcome:
    text = _text(mutant.path)
    started = time.monotonic()
    with project.changed(Path(mutant.path), mutant.apply(text)):
        outcome = project.run(chosen_for(mutant.path), limit, test_limit, selection(mutant.path))
    name = {"passed": "SURVIVED", "failed": "killed", "timed out": "TIMED OUT"}[outcome.result]
    print(f"{name:<9} {time.monotonic() - started:5.0f} s  {mutant}  {outcome.test}", flush=True)
    if outcome.result != "failed":
        print(mutant.diff(text), flush=True)
    return outcome


def _report(results: _Results) -> None:
    counts = {path: Counter[str]() for path in dict.fromkeys(mutant.path for mutant in results)}
    total: Counter[str] = Counter()
    for mutant, outcome in results.items():
        counts[mutant.path][outcome.result] += 1
        total[outcome.result] += 1
    print(f"\n{'file':<48}{'mutants':>8}{'killed':>8}{'survived':>9}{'timed out':>10}{'score':>7}")
    for name, count in [*counts.items(), ("all", total)]:
        number, killed, late = count.total(), count["failed"], count["timed out"]
        score = (killed + late) / number if number else 0
        print(f"{name!s:<48}{number:>8}{killed:>8}{count['passed']:>9}{late:>10}{score:>7.0%}")
    print("A mutant that timed out counts as killed.")


def _check_tests(project: runs.Project, results: _Results) -> None:
    """Run the tests that noticed mutants without any mutant. Tests that fail then have noticed nothing."""
    tests = sorted({outcome.test for outcome in results.values() if "::" in outcome.test})
    failing = []
    while tests:
        outcome = project.run(tests, limit=3600, test_limit=300)
        if outcome.result == "passed" or outcome.test not in tests:
            break
        failing.append(outcome.test)
        tests.remove(outcome.test)
    for mutant, found in results.items():
        if found.test in failing:
            print(f"UNSURE: {mutant} was killed by {found.test}, which fails without it, too.")


if __name__ == "__main__":
    main()
