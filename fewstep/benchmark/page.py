"""``report.html``: the whole result of a bench as one page, which opens from disk and needs no network."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.benchmark.chart import GREY, LEVELS, NAME, style
from fewstep.benchmark.entrants import RESERVED, TEACHER, UNDISTILLED
from fewstep.benchmark.rows import FLOW, Line
from fewstep.benchmark.summary import by_cell, seconds
from fewstep.benchmark.tables import html, measures
from fewstep.console import number_of
from fewstep.core.suite import Exhibit, SheetRow, Suite
from fewstep.files import write_bytes, write_file

if TYPE_CHECKING:
    from fewstep.benchmark.report import BenchTable

LIMIT = 12_000_000  # characters of models in a page: with the rest it stays below 15 MB
ROOM = 15  # of 100, the quality of JPEG that is given up for a small page
LINE_WIDTH = 2.4  # of the charts' lines, which dashes are measured in


def write_page(table: BenchTable, suite: Suite, rows: Sequence[SheetRow], overview: Sequence[int], count: int) -> None:
    """Write ``report.html``, and the models in it as files into the folder ``objects``.

    Args:
        table: the result, whose ``sheet.png`` is there.
        rows: of the contact sheet.
        overview: which of them the viewer shows first.
        count: objects to turn, at most.
    """
    exhibits = suite.gallery(rows, count)
    for exhibit in exhibits:
        _write_objects(exhibit, rows, table.folder / "objects" / _slug(exhibit.name))
    packed = [_packed(exhibit) for exhibit in exhibits]
    while len(packed) > 1 and sum(map(_size, packed)) > LIMIT:
        packed.pop()
    left_out = len(exhibits) - len(packed)
    less = f" {number_of(left_out, 'object')} more would make the page too large." if left_out else ""
    data = {
        **_numbers(table.lines, suite),
        "rows": [{"label": row.label, "group": row.group} for row in rows],
        "overview": list(overview),
        "exhibits": packed,
    }
    asset = files("fewstep.benchmark") / "page"
    parts = {
        "title": escape(table.title),
        "style": (asset / "page.css").read_text(encoding="utf-8"),
        "verdicts": _list(table.verdicts, ' class="verdicts"'),
        "objects": f"Every model is also a file in the folder objects, beside this page.{less}",
        "tables": "\n".join(f'<div class="wide">{html(one)}</div>' for one in table.tables),
        "sheet": _sheet(table.sheet()),
        "notes": _list(table.notes),
        "data": json.dumps(data).replace("<", "\\u003c"),  # nothing in it can end the element
        "viewer": (asset / "viewer.js").read_text(encoding="utf-8") if exhibits else "",
        "script": (asset / "page.js").read_text(encoding="utf-8"),
    }
    page = (asset / "page.html").read_text(encoding="utf-8")
    write_file(table.folder / "report.html", re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page))


def _numbers(lines: Sequence[Line], suite: Suite) -> dict[str, Any]:
    """What the charts show: measures, a series for each label, and levels."""
    cells = by_cell(lines)
    named: dict[str, list[tuple[int, Mapping[str, Line]]]] = {}
    for (label, steps), found in cells.items():
        named.setdefault(label, []).append((steps, found))
    students = [label for label in named if label not in RESERVED]
    styles = {UNDISTILLED: GREY, **{label: style(number) for number, label in enumerate(students)}}
    names = measures(lines, suite.headline)
    seen = [name for name in dict.fromkeys((suite.headline, *suite.charts, *names)) if name in names]
    series = [
        {"label": label, **_style(styles[label]), "points": [_point(label, *cell) for cell in named[label]]}
        for label in styles
        if label in named
    ]
    levels = [
        {"label": _level(label, *named[label][0]), "values": _values(named[label][0][1]), "dashes": _dashes(dashes)}
        for label, dashes in LEVELS.items()
        if label in named
    ]
    several = any(line.half is not None for line in lines)
    return {
        "measures": [_measure(name, suite) for name in seen],
        "series": {"cells": series, "budget": _by_budget(cells, styles)},
        "levels": levels,
        "interval": "Bands and bars are 95 % intervals." if several else "A single seed has no intervals.",
    }


def _measure(name: str, suite: Suite) -> dict[str, Any]:
    better = "lower" if name in suite.lower_is_better else "higher"
    return {"name": name, "words": suite.in_words(name), "better": better, "signed": name in suite.signed}


def _by_budget(cells: Mapping[tuple[str, int], Mapping[str, Line]], styles: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line a method through its students of different budgets, each in its fewest steps."""
    found: dict[str, dict[str, tuple[int, Mapping[str, Line]]]] = {}
    for (label, steps), cell in sorted(cells.items(), key=lambda item: item[0][1]):
        line = next(iter(cell.values()))
        if label not in RESERVED and _budget(cell):
            found.setdefault(line.method, {}).setdefault(label, (steps, cell))
    return [
        {
            "label": method,
            **_style(styles[next(iter(students))]),
            "points": [_point(label, *cell) for label, cell in students.items()],
        }
        for method, students in found.items()
        if len({_budget(cell) for _, cell in students.values()}) > 1
    ]


def _point(label: str, steps: int, found: Mapping[str, Line]) -> dict[str, Any]:
    return {
        "name": f"{label}, {number_of(steps, 'step')}",
        "steps": steps,
        "milliseconds": 1000 * seconds(found.values(), FLOW),
        "budget": _budget(found),
        "values": _values(found),
    }


def _budget(found: Mapping[str, Line]) -> float:
    """Evaluations that training took; 0 of what is no student."""
    evaluations = getattr(next(iter(found.values())), "evaluations", None)
    return float(evaluations or 0)


def _values(found: Mapping[str, Line]) -> dict[str, tuple[float, float, float]]:
    """Value and ends of the interval of every measure that is a number."""
    ends = {name: (line, line.bounds()) for name, line in found.items()}
    values = {n: (line.value, bounds.get("low", line.value), bounds.get("high", line.value))
              for n, (line, bounds) in ends.items()}  # fmt: skip
    return {name: value for name, value in values.items() if all(abs(end) < float("inf") for end in value)}


def _level(label: str, steps: int, found: Mapping[str, Line]) -> str:
    return f"{label}, {number_of(steps, 'step')}" if label == TEACHER else label


def _style(found: Any) -> dict[str, str]:
    colour, _, dashes = found
    return {"colour": colour, "dashes": _dashes(dashes)}


def _dashes(dashes: Any) -> str:
    """A line style of matplotlib as SVG has it."""
    named = {"-": (), "--": (3.7, 1.6), "-.": (6.4, 1.6, 1, 1.6), ":": (1, 1.65)}
    lengths = named[dashes] if isinstance(dashes, str) else dashes[1]
    return " ".join(f"{LINE_WIDTH * length:g}" for length in lengths)


def _list(texts: Sequence[str], attributes: str = "") -> str:
    return f"<ul{attributes}>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _sheet(image: Any) -> str:
    """The contact sheet as a URL."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=100 - ROOM)
    return _url(buffer.getvalue(), "image/jpeg")


def _url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _packed(exhibit: Exhibit) -> dict[str, Any]:
    """An exhibit as JSON: models compressed, in base64."""
    truth, *models = (
        base64.b64encode(gzip.compress(one, mtime=0)).decode() if one else ""
        for one in (exhibit.truth, *exhibit.models)
    )
    picture = _url(exhibit.picture, "image/png")
    return {"name": exhibit.name, "picture": picture, "truth": truth, "models": models, "azimuth": exhibit.azimuth}


def _size(packed: Mapping[str, Any]) -> int:
    return len(packed["truth"]) + len(packed["picture"]) + sum(map(len, packed["models"]))


def _write_objects(exhibit: Exhibit, rows: Sequence[SheetRow], folder: Path) -> None:
    """Picture, truth and models as files."""
    names = ["true-object"]
    for row in rows:
        name = _slug(row.label)
        names.append(name if name not in names else f"{name}-{len(names)}")
    write_bytes(folder / "picture.png", exhibit.picture)
    for name, model in zip(names, (exhibit.truth, *exhibit.models), strict=True):
        if model:
            write_bytes(folder / f"{name}.glb", model)


def _slug(text: str) -> str:
    """A short name for a file: letters, digits, dots within and dashes."""
    return re.sub(r"[^\w.]+", "-", text)[:NAME].strip("-.") or "object"
