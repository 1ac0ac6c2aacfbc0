"""``python -m fewstep_kernels.aot``: compile every shipped tile without a GPU; write the table, or compare with it."""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path

from fewstep_kernels.aot.measure import CAPS, Measured, faults, measure
from fewstep_kernels.aot.specimen import Specimen
from fewstep_kernels.aot.table import read, worse, write

FAMILIES = ("attention", "convolution", "norms")
TABLES = Path("benchmarks/kernels/aot")


def specimens(families: tuple[str, ...] = FAMILIES) -> dict[str, Specimen]:
    """All shipped tiles by name."""
    found: dict[str, Specimen] = {}
    for family in families:
        for specimen in import_module(f"fewstep_kernels.{family}.shipped").specimens():
            found[specimen.name] = specimen
    return found


def _one(job: tuple[str, str, int]) -> Measured | str:
    family, name, arch = job
    try:
        return measure(specimens((family,))[name], arch)
    except Exception as error:  # whatever the compiler raises goes into the report
        first = str(error).strip().splitlines() or [""]
        return f"does not compile: {type(error).__name__}: {first[-1][:200]}"


def compiled(arch: int, families: tuple[str, ...], processes: int) -> dict[str, Measured | str]:
    """What every tile compiles to, or why it does not compile."""
    jobs = [(family, name, arch) for family in families for name in specimens((family,))]
    with ProcessPoolExecutor(processes) as pool:
        return {job[1]: result for job, result in zip(jobs, pool.map(_one, jobs, chunksize=4), strict=True)}


def check(arch: int, families: tuple[str, ...], processes: int, path: Path) -> list[str]:
    """What is wrong, or worse than in the table, one line each; so are rows of tiles that are no longer shipped."""
    shipped, known, lines = specimens(families), read(path), []
    for name, found in compiled(arch, families, processes).items():
        bad = [found] if isinstance(found, str) else faults(found, shipped[name]) + worse(found, known.get(name))
        lines += [f"sm_{arch} {name}: {line}" for line in bad]
    gone = set(known) - set(shipped) if families == FAMILIES else set()
    return lines + [f"sm_{arch} {name}: in the table, but not shipped" for name in sorted(gone)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fewstep_kernels.aot", description=__doc__)
    parser.add_argument(
        "--arch", default="90", help="compute capabilities, comma-separated, of 80, 90, 120 (default: 90)"
    )
    parser.add_argument(
        "--family", choices=FAMILIES, action="append", help="only this family of kernels; repeatable (default: all)"
    )
    parser.add_argument("--check", action="store_true", help="compare with the table instead of writing it")
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of the tables")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "") in ("1", "true", "on", "yes"):
        parser.error("TRITON_INTERPRET is set: kernels cannot be compiled in this process")
    arches, families = [int(a) for a in options.arch.split(",")], tuple(options.family or FAMILIES)
    if unknown := sorted(set(arches) - set(CAPS)):
        parser.error(f"--arch: got {unknown[0]}; accepted: {', '.join(map(str, CAPS))}")
    return sum(_run(arch, families, options) for arch in arches) and 1


def _run(arch: int, families: tuple[str, ...], options: argparse.Namespace) -> int:
    """Print the complaints about one architecture; returns how many there are."""
    path = options.tables / f"sm{arch}.csv"
    if options.check:
        lines = check(arch, families, options.processes, path)
    else:
        found, shipped = compiled(arch, families, options.processes), specimens(families)
        write(path, (row for row in found.values() if isinstance(row, Measured)))
        lines = [
            f"sm_{arch} {name}: {line}"
            for name, row in found.items()
            for line in ([row] if isinstance(row, str) else faults(row, shipped[name]))
        ]
    print("\n".join(lines) or f"sm_{arch}: {len(specimens(families))} tiles, none worse than it may be", flush=True)
    return len(lines)


if __name__ == "__main__":
    sys.exit(main())
