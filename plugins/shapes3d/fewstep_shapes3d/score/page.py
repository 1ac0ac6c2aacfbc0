"""``report.html`` of a score: tables, views of objects from the best to the worst, and some of them to turn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from rich.text import Text

from fewstep.benchmark.page import write_report
from fewstep.benchmark.tables import new_table
from fewstep.words import number
from fewstep_shapes3d.export.contact import contact_image
from fewstep_shapes3d.measures.held_out import from_best_to_worst
from fewstep_shapes3d.score.distances import CHAMFER
from fewstep_shapes3d.score.objects import PIXELS
from fewstep_shapes3d.score.work import load

if TYPE_CHECKING:
    from fewstep_shapes3d.score.report import Scores

SHOWN, TILE = 8, 128  # objects on the sheet, and pixels of a view


def write_page(scores: Scores) -> None:
    """Write ``report.html`` into the folder of the scores."""
    rows, sheet = _sheet(scores)
    texts = {"brand": "fewstep score", "title": scores.title, "objects": ""}
    data: dict[str, Any] = {"measures": [], "exhibits": []}
    write_report(scores.folder / "report.html", texts, [], [*scores.tables, rows], sheet, scores.remarks, data)


def _sheet(scores: Scores) -> tuple[Any, Any]:
    """A table of all objects, and the views of some, ranked by the Chamfer distance under the last alignment."""
    measure = f"{CHAMFER}/{scores.settings.align[-1]}"
    of = {label: [row.values[measure] for row in scores.objects[label]] for label in scores.labels}
    mean = torch.tensor(list(of.values())).mean(0)
    table = new_table(f"objects: {measure}", ["method", *scores.labels])
    names = [row.name for row in scores.objects[scores.labels[0]]]
    for at in mean.argsort().tolist():
        table.add_row(Text(names[at]), *(Text(number(of[label][at])) for label in scores.labels))
    shown = []
    if scores.settings.views:
        for at in from_best_to_worst(-mean, SHOWN):
            shown.append((f"{names[at]}, true", _views(scores.truth[names[at]])))
            for label in scores.labels:
                row = scores.objects[label][at]
                text = number(of[label][at]) if row.status == "ok" else row.status
                shown.append((f"{label}, {text}", _views(row.kept)))
    return table, contact_image(shown, TILE)


def _views(kept: Path | None) -> list[npt.NDArray[np.uint8]]:
    if kept is None:
        return [np.full((PIXELS, PIXELS, 3), 255, np.uint8)]
    return list(load(kept, "views")["views"].transpose(0, 2, 3, 1))
