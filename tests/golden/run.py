"""Compare ours with a folder of golden numbers: ``python tests/golden/run.py DIR [--only NAME]``.

Leaves with 0 when every supported case holds, 1 when one is beyond its tolerance, 2 when there is nothing to run.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from fewstep.errors import FewstepError, unknown
from golden import (
    conditioning,
    dataset,
    export,
    mdt,
    mesh,
    models,
    orders,
    samplers,
    trellis2,
    trellis2_data,
    trellis2_facts,
    trellis2_parts,
)
from golden.cases import Case, Check, label, records

OTHER_KIND = "this kind of record"
KINDS = (
    models.cases,
    samplers.cases,
    mdt.cases,
    dataset.cases,
    orders.cases,
    conditioning.cases,
    mesh.cases,
    export.cases,
    trellis2_parts.cases,
    trellis2.cases,
    trellis2_data.cases,
    trellis2_facts.cases,
)


def collect(root: Path) -> list[Case]:
    """All cases below a folder, found by what the records hold and not by how the files are called.

    Raises:
        FewstepError: no such folder, or no case in it.
    """
    if not root.is_dir():
        raise FewstepError(f"golden folder {root}: no such folder")
    found: list[Case] = []
    for path, record in records(root):
        cases = [case for kind in KINDS for case in kind(root, path, record)]
        found += cases or [Case(label(root, path), missing=OTHER_KIND)]
    found += conditioning.preparations(root)
    if all(case.missing == OTHER_KIND for case in found):
        raise FewstepError(f"golden folder {root}: no case in it (no json record of models, samplers or objectives)")
    return found


def select(cases: list[Case], only: str | None) -> list[Case]:
    """The cases whose name contains ``only``. Raises FewstepError when there are none."""
    chosen = [case for case in cases if only is None or only in case.name]
    if not chosen:
        raise unknown("golden case", only, {"/".join(case.name.split("/")[:2]) for case in cases})
    return chosen


def gather(missing: list[Case]) -> dict[str, str]:
    """What is not supported, by name; records of other kinds are counted for each folder."""
    found = {case.name: case.missing for case in missing if case.missing != OTHER_KIND}
    others = Counter(case.name.split("/")[0] for case in missing if case.missing == OTHER_KIND)
    return found | {f"{top} ({count} records)": OTHER_KIND for top, count in sorted(others.items())}


def attempt(case: Case) -> list[Check]:
    """The checks of a case; a case that cannot be run is a failed check that says why."""
    assert case.run is not None
    try:
        return case.run()
    except (FewstepError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, FewstepError) else str(error)
        return [Check(f"did not run: {reason}", float("inf"), 0.0)]


def worst(checks: Iterable[Check]) -> list[Check]:
    """The most strained check for each tolerance."""
    by_tolerance = groupby(sorted(checks, key=lambda c: c.tolerance), key=lambda c: c.tolerance)
    return [max(group, key=lambda c: c.strain) for _, group in by_tolerance]


def report(console: Console, results: dict[str, list[Check]], missing: list[Case]) -> None:
    """Print the table and the list of what is not supported."""
    table = Table("case", "checks", "worst", "error", "allowed", "")
    for name, checks in results.items():
        for check in worst(checks):
            count = sum(c.tolerance == check.tolerance for c in checks)
            allowed = f"{check.tolerance:.0e}" if check.tolerance else "exact"
            verdict = "[green]ok[/]" if check.ok else "[red]OFF[/]"
            table.add_row(name, str(count), check.what, f"{check.error:.1e}", allowed, verdict)
    if results:
        console.print(table)
    for name, lack in gather(missing).items():
        console.print(f"{name}: not supported yet: {lack}", markup=False, highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="run.py", description="Compare ours with a folder of golden numbers.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder with models/, samplers/, mdt/")
    parser.add_argument("--only", metavar="NAME", help="only cases whose name contains this")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    console = Console() if sys.stdout.isatty() else Console(width=140)
    try:
        cases = select(collect(given.folder), given.only)
    except FewstepError as error:
        print(error, file=sys.stderr)
        return 2
    results = {case.name: attempt(case) for case in cases if case.run is not None}
    report(console, results, [case for case in cases if case.run is None])
    checks = [check for found in results.values() for check in found]
    off = sum(not check.ok for check in checks)
    console.print(f"{len(results)} cases, {len(checks)} comparisons, {off} off")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
