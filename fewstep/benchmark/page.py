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

from fewstep.benchmark.chart import NAME
from fewstep.benchmark.curves import curves
from fewstep.benchmark.tables import html
from fewstep.console import number_of
from fewstep.core.suite import Exhibit, SheetRow, Suite
from fewstep.files import write_bytes, write_file

if TYPE_CHECKING:
    from fewstep.benchmark.report import BenchTable

LIMIT = 12_000_000  # characters of models in a page: with the rest it stays below 15 MB
ROOM = 15  # of 100, the quality of JPEG that is given up for a small page


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
        **curves(table.lines, suite),
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
