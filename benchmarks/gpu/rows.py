"""The row that every section writes, and the CSV file that holds the rows. Imports no torch: the report needs none."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError, invalid

NOT_YET = "not yet measured"
MEASURED, RIGHT, WRONG, FAILED, SKIPPED = "measured", "right", "wrong", "failed", "skipped"
STATUSES = (MEASURED, RIGHT, WRONG, FAILED, SKIPPED, NOT_YET)
OUT_OF_TIME = "out of time"
EAGER, GRAPH = "eager", "graph"  # how calls are made


@dataclass(frozen=True)
class Row:
    """One implementation of one operation at one shape.

    Args:
        section: part of the benchmark.
        op: an op of the op table, a model or a stage.
        what: "forward", "backward", "value+tangent", "step", ...
        shape: in words.
        dtype: without "torch.".
        kernel: name in the op table, or of a peer.
        role: "ours", "peer" or "plain".
        median_ms, p20_ms, p80_ms: median and percentiles of the time of one call.
        tflops, gbs: operations, and minimal memory traffic, over the median.
        share: the shortest time that the roofline measured in this run allows, over the median.
        peer: what ``ratio`` compares with.
        ratio: the median of ``peer`` over ours; for ``peer="own forward"``, ours over that.
        target: key in ``benchmarks.gpu.targets`` that this row counts for.
        floor, goal: of that target.
        error: relative RMS against what the result was compared with.
        status: one of ``STATUSES``; timings of a dry run are "not yet measured", and the times are dropped.
        note: the reason where something is missing.
        device, commit, versions, date: of the run.
        host_ms: median time until the call returned to Python, without waiting for the device.
        mode: "eager", or "graph" for the replay of a CUDA graph.
    """

    section: str
    op: str
    what: str
    shape: str = ""
    dtype: str = ""
    kernel: str = ""
    role: str = ""
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    tflops: float | None = None
    gbs: float | None = None
    share: float | None = None
    peer: str = ""
    ratio: float | None = None
    target: str = ""
    floor: float | None = None
    goal: float | None = None
    error: float | None = None
    status: str = NOT_YET
    note: str = ""
    device: str = ""
    commit: str = ""
    versions: str = ""
    date: str = ""
    host_ms: float | None = None
    mode: str = EAGER

    def untimed(self) -> Row:
        """The same row as "not yet measured", without timings."""
        nothing: dict[str, Any] = dict.fromkeys(TIMED)
        return replace(self, **nothing, status=NOT_YET, note=f"dry run: {self.note}")


TIMED = ("median_ms", "p20_ms", "p80_ms", "tflops", "gbs", "share", "ratio", "host_ms")
COLUMNS = tuple(f.name for f in fields(Row))
NEWER = 2  # columns that the rows of 28 November 2026 lack
NUMBERS = frozenset(f.name for f in fields(Row) if "float" in str(f.type))


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else " ".join(str(value).split())


@dataclass
class Book:
    """A CSV file that grows by whole lines, so that a killed run loses nothing it measured.

    Several processes may append to the same file.

    Args:
        path: the file; its folder exists.
        common: columns that are the same in every row (device, commit, versions, date).
        dry: nothing counts as measured: rows lose their timings and whatever derives from them.
    """

    path: Path
    common: dict[str, str] = field(default_factory=dict)
    dry: bool = False

    def add(self, *rows: Row) -> None:
        """Append and flush. Raises FewstepError for an unknown status."""
        for row in rows:
            if row.status not in STATUSES:
                raise invalid("status", row.status, ", ".join(STATUSES))
        kept = [row.untimed() if self.dry and row.status == MEASURED else row for row in rows]
        lines = [_line(asdict(replace(row, **self.common)).values()) for row in kept]  # type: ignore[arg-type]
        with self.path.open("ab") as file:  # append mode: each write goes to the end, whoever else writes
            if file.tell() == 0:
                lines.insert(0, _line(COLUMNS))
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())


def _line(values: Iterable[object]) -> str:
    cells = [_text(value) for value in values]
    quoted = ['"' + c.replace('"', '""') + '"' if any(s in c for s in ',"') else c for c in cells]
    return ",".join(quoted) + "\n"


def read(path: Path) -> list[Row]:
    """The rows of a file. Raises FewstepError for any other kind of file."""
    if not path.is_file():
        raise invalid("rows", str(path), "a CSV file of the GPU benchmark")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names: Sequence[str] = reader.fieldnames or ()
        if tuple(names) not in (COLUMNS, COLUMNS[:-NEWER]):
            raise invalid(f"columns of {path}", ",".join(names)[:80], ",".join(COLUMNS))
        return [_row(cells, path) for cells in reader if cells["section"] != COLUMNS[0]]


def _row(cells: dict[str, str], path: Path) -> Row:
    try:
        values = {name: (float(text) if text else None) if name in NUMBERS else text for name, text in cells.items()}
    except (ValueError, TypeError):
        raise FewstepError(f"{path}: a row cannot be read: {cells}") from None
    return Row(**values)  # type: ignore[arg-type]
