"""Pages that open from disk without a network connection: ``report.html``, the result of a bench, and a viewer of
objects."""

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
    from rich.table import Table

    from fewstep.benchmark.report import BenchTable

LIMIT = 12_000_000  # characters of models in a page, which keeps the page below 15 MB
PICTURE, TRUTH = "picture.png", "true-object"  # file names beside the models of an object
ROOM = 15  # by how much the JPEG quality is below 100, for a small page


def write_page(table: BenchTable, suite: Suite, rows: Sequence[SheetRow], overview: Sequence[int], count: int) -> None:
    """Write ``report.html``, and the models in it as files into the folder ``objects``.

    Args:
        table: the result, whose ``sheet.png`` is there.
        rows: of the contact sheet.
        overview: indices of the rows that the viewer shows first.
        count: largest number of objects in the viewer.
    """
    exhibits = suite.gallery(rows, count)
    for exhibit in exhibits:
        _write_objects(exhibit, rows, table.folder / "objects" / _slug(exhibit.name))
    packed = [_packed(exhibit) for exhibit in exhibits]
    while len(packed) > 1 and sum(map(_size, packed)) > LIMIT:
        packed.pop()
    left_out = len(exhibits) - len(packed)
    less = f" {number_of(left_out, 'object')} more would make the page too large." if left_out else ""
    write_report(
        table.folder / "report.html",
        {
            "brand": "fewstep bench",
            "title": table.title,
            "objects": f"Every model is also a file in the folder objects, beside this page.{less}",
        },
        table.verdicts,
        table.tables,
        table.sheet(),
        table.notes,
        {**curves(table.lines, suite), **_shown(rows, overview, packed)},
    )


def write_report(
    path: Path,
    texts: Mapping[str, str],
    verdicts: Sequence[str],
    tables: Sequence[Table],
    sheet: Any,
    notes: Sequence[str],
    data: Mapping[str, Any],
) -> None:
    """Write a page with tables that can be sorted, a picture and notes.

    Args:
        path: of the page.
        texts: "brand", "title", and "objects", a line above the objects.
        sheet: a PIL image.
        data: charts and objects of the viewer, as the page's script reads them.
    """
    parts = {name: escape(text) for name, text in texts.items()} | {
        "verdicts": _list(verdicts, ' class="verdicts"'),
        "tables": "\n".join(f'<div class="wide">{html(table)}</div>' for table in tables),
        "sheet": _sheet(sheet),
        "notes": _list(notes),
    }
    parts["more"] = _filled("bench.html", parts)
    _write(path, parts, data)


def write_viewer(
    path: Path, title: str, exhibits: Sequence[Exhibit], rows: Sequence[SheetRow], overview: Sequence[int], note: str
) -> None:
    """Write a page with objects to rotate and nothing else.

    Args:
        path: of the page.
        title: its heading.
        exhibits: the objects; one without a picture is labelled with its name.
        rows: whose models they are.
        overview: indices of the rows that it shows first.
        note: a line above the objects.
    """
    parts = {"brand": "fewstep view", "title": escape(title), "verdicts": "", "objects": escape(note), "more": ""}
    _write(path, parts, {"measures": [], **_shown(rows, overview, [_packed(exhibit) for exhibit in exhibits])})


def _shown(rows: Sequence[SheetRow], overview: Sequence[int], packed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The data that the viewer reads."""
    labels = [{"label": row.label, "group": row.group} for row in rows]
    return {"rows": labels, "overview": list(overview), "exhibits": packed}


def _asset(name: str) -> str:
    """A file that pages are made of."""
    return (files("fewstep.benchmark") / "page" / name).read_text(encoding="utf-8")


def _filled(name: str, parts: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset(name))


def _write(path: Path, parts: Mapping[str, str], data: Mapping[str, Any]) -> None:
    fixed = {
        "style": _asset("page.css"),
        "data": json.dumps(data).replace("<", "\\u003c"),  # so that nothing in it can close the script element
        "viewer": _asset("viewer.js") if data["exhibits"] else "",
        "script": _asset("page.js"),
    }
    write_file(path, _filled("page.html", {**parts, **fixed}))


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
        base64.b64encode(gzip.compress(model, mtime=0)).decode() if model else ""
        for model in (exhibit.truth, *exhibit.models)
    )
    picture = _url(exhibit.picture, "image/png") if exhibit.picture else ""
    return {"name": exhibit.name, "picture": picture, "truth": truth, "models": models, "azimuth": exhibit.azimuth}


def _size(packed: Mapping[str, Any]) -> int:
    return len(packed["truth"]) + len(packed["picture"]) + sum(map(len, packed["models"]))


def _write_objects(exhibit: Exhibit, rows: Sequence[SheetRow], folder: Path) -> None:
    """Write picture, truth and models as files."""
    names = [TRUTH]
    for row in rows:
        name = _slug(row.label)
        names.append(name if name not in names else f"{name}-{len(names)}")
    write_bytes(folder / PICTURE, exhibit.picture)
    for name, model in zip(names, (exhibit.truth, *exhibit.models), strict=True):
        if model:
            write_bytes(folder / f"{name}.glb", model)


def _slug(text: str) -> str:
    """A short file name of letters, digits, underscores, dashes and inner dots."""
    return re.sub(r"[^\w.]+", "-", text)[:NAME].strip("-.") or "object"
