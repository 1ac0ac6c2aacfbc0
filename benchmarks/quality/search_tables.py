"""Tables of a search: the best settings of each method, and what each key does on its own."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

Row = Mapping[str, Any]
Space = Mapping[str, Mapping[str, Sequence[Any]]]


def summary(rows: Sequence[Row], space: Space, rank: str, lower: bool) -> str:
    """Markdown.

    Args:
        rows: trials, as in ``trials.csv``.
        rank: the column that ranks.
        lower: whether small values are good.
    """
    columns = [key for key in rows[0] if key.startswith("at_")]
    lines = [f"Undistilled: {', '.join(f'{_steps(key)} {_number(rows[0][key])}' for key in columns)}.", ""]
    lines += ["## Best settings", "", f"| method | seeds | {' | '.join(map(_steps, columns))} | settings |"]
    lines += ["|---" * (len(columns) + 3) + "|"]
    for method in space:
        for settings, found in _ranked([row for row in rows if row["method"] == method], rank, lower)[:3]:
            cells = [_spread([float(row[key]) for row in found if row.get(key)]) for key in columns]
            lines.append(f"| {method} | {len(found)} | {' | '.join(cells)} | `{settings}` |")
    lines += ["", "## Each key on its own", "", f"Median over the trials under seed 0 ({_steps(rank)}), by value.", ""]
    for method, keys in space.items():
        lines += [f"### {method}", "", "| key | value | trials | median | best |", "|---|---|---|---|---|"]
        first = [row for row in rows if row["method"] == method and int(row["seed"]) == 0 and row.get(rank)]
        for key, values in keys.items():
            for value in values:
                found = [float(row[rank]) for row in first if json.loads(row["settings"])[key] == value]
                if found and len(values) > 1:
                    best = min(found) if lower else max(found)
                    shown = f"{len(found)} | {_number(median(found))} | {_number(best)}"
                    lines.append(f"| {key} | `{json.dumps(value)}` | {shown} |")
        lines.append("")
    return "\n".join(lines)


def _ranked(rows: Sequence[Row], rank: str, lower: bool) -> list[tuple[str, list[Row]]]:
    """Settings with their trials, best first: those that got further, with more seeds, then by mean."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.get(rank):
            groups[row["settings"]].append(row)

    def order(item: tuple[str, list[Row]]) -> tuple[int, float]:
        mean = fmean(float(row[rank]) for row in item[1])
        return -len(item[1]), mean if lower else -mean

    return sorted(groups.items(), key=order)


def _steps(column: str) -> str:
    count = column.removeprefix("at_")
    return f"{count} step" + ("s" if count != "1" else "")


def _spread(values: Sequence[float]) -> str:
    """Mean, with the standard deviation over seeds."""
    if not values:
        return ""
    return _number(fmean(values)) + (f" ± {_number(stdev(values))}" if len(values) > 1 else "")


def _number(value: Any) -> str:
    return f"{float(value):.4g}"
