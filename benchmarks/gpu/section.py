"""One section in this process: ``python -m benchmarks.gpu.section NAME --out DIR --until EPOCH [--dry-run]``."""

from __future__ import annotations

import argparse
import time
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.gpu.bench import Bench, remarks
from benchmarks.gpu.plan import SECTIONS
from benchmarks.gpu.rows import Book, read
from benchmarks.gpu.sections.environment import commit, device_name, roof, versions
from benchmarks.gpu.times import Deadline

ROWS = "rows.csv"


def bench_for(name: str, out: Path, seconds: float, dry: bool) -> Bench:
    """The context of a section, with what earlier sections wrote to ``out``."""
    device = torch.device("cuda" if torch.cuda.is_available() and not dry else "cpu")
    common = {
        "device": device_name(device),
        "commit": commit(),
        "versions": ", ".join(f"{k} {v}" for k, v in versions().items()),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    rows = read(out / ROWS) if (out / ROWS).is_file() else []
    return Bench(name, device, dry, Book(out / ROWS, common, dry), Deadline(seconds), roof(rows), remarks(rows))


def main() -> None:
    names = {section.name: section for section in SECTIONS}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=names)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True, help="seconds since the epoch")
    parser.add_argument("--dry-run", action="store_true", help="a CPU and small shapes")
    given = parser.parse_args()
    torch.manual_seed(0)
    section = names[given.name]
    bench = bench_for(given.name, given.out, given.until - time.time(), given.dry_run)
    module = import_module(f"benchmarks.gpu.sections.{section.module}")
    module.run(bench, **section.arguments)


if __name__ == "__main__":
    main()
