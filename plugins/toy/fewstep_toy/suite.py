"""The toy's evaluation: distance to the true density and to the teacher's own result, and scatter plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.layout import Layout
from fewstep.core.suite import Record, Rows, SheetRow, Suite
from fewstep.errors import need
from fewstep.metrics.resampled import mean_resampled, mmd_rbf_resampled, sliced_wasserstein_resampled
from fewstep.words import chart_escaped, shortened
from fewstep_toy.dataset import ToyPoints

COLUMNS, PANEL, SPAN, TITLE = 4, 2.2, 3.2, 42  # panels per line, inches per panel, axis limit, characters of a title
DIRECTIONS = 64
MMD_ROWS, MMD_BANDWIDTH = 2000, 0.3  # the scale of the narrow parts, far below the usual median distance


class ToySuite(Suite):
    """Points need no decoding. The truth is a fresh sample of the density, ten times as many as the held-out points."""

    headline = "sliced_w2"
    lower_is_better = frozenset({"sliced_w2", "mmd", "teacher_rms", "wrong_class"})
    signed = frozenset({"mmd"})
    charts = ("teacher_rms",)
    sampled = 2000
    titles: Mapping[str, str] = {
        "sliced_w2": "sliced Wasserstein distance",
        "teacher_rms": "distance to the teacher's points",
    }
    legend: Mapping[str, str] = {
        "sliced_w2": "sliced 2-Wasserstein distance to fresh points of the exact density",
        "mmd": f"squared maximum mean discrepancy to them, Gaussian kernel of width {MMD_BANDWIDTH}",
        "teacher_rms": "root mean square distance to the teacher's own point from the same noise",
        "wrong_class": "share of points that most probably belong to another class than asked for",
    }

    def __init__(self, dataset: ToyPoints) -> None:
        self.dataset = dataset
        generator = torch.Generator().manual_seed(dataset.config.seed + 1)
        count = 10 * len(dataset.held_out().x0)
        self.truth = dataset.mixture.sample(dataset.mixture.draw_labels(count, generator), generator)

    def prompts(self, limit: int | None = None) -> Batch:
        return self.dataset.held_out(limit)

    def decode(self, x: Tensor, layout: Layout) -> Tensor:
        return x.detach().float().cpu()

    def record(self, objects: Any, teacher_objects: Any) -> Record:
        found = {"points": objects, "teacher_squared": (objects - teacher_objects).square().sum(-1)}
        if self.dataset.toy.conditional:
            labels = self.dataset.held_out_labels()[: len(objects)]
            found["wrong_class"] = self.dataset.mixture.most_probable(objects) != labels
        return found

    def score(self, record: Record, teacher: Record, other: Record | None, counts: Tensor) -> dict[str, Tensor]:
        points = record["points"]
        found = {
            "sliced_w2": sliced_wasserstein_resampled(points, self.truth, counts, DIRECTIONS),
            "mmd": mmd_rbf_resampled(points[:MMD_ROWS], self.truth[:MMD_ROWS], counts[:, :MMD_ROWS], MMD_BANDWIDTH),
            "teacher_rms": mean_resampled(record["teacher_squared"], counts).sqrt(),
        }
        if "wrong_class" in record:
            found["wrong_class"] = mean_resampled(record["wrong_class"], counts)
        return found

    def sheet(self, rows: Rows, path: Path, count: int) -> None:
        """A panel with all points for the truth and for each row, one line per group; ``count`` is not used."""
        del count
        first, *others = SheetRow.of(rows)
        lines = [[SheetRow("truth", self.truth[: len(self.dataset.held_out().x0)]), first]]
        for row in others:
            if len(lines[-1]) == COLUMNS or row.group != lines[-1][-1].group:
                lines.append([])
            lines[-1].append(row)
        columns = max(map(len, lines))
        need("matplotlib")
        from fewstep.benchmark.chart import drawing

        with drawing(path, PANEL * max(columns, 2), (PANEL + 0.4) * len(lines)) as figure:
            panels = figure.subplots(len(lines), columns, squeeze=False)
            for line, drawn in zip(panels, lines, strict=True):
                for axes, row in zip(line, drawn, strict=False):
                    colours = self.dataset.mixture.most_probable(row.objects).numpy()
                    axes.scatter(*row.objects.T, s=1, c=colours, cmap="tab10", vmin=0, vmax=9)
                    text = "\n".join([shortened(row.label, TITLE), *(shortened(note, TITLE) for note in row.notes)])
                    axes.set_title(chart_escaped(text), loc="left", fontsize=7.5)
                    axes.set(xlim=(-SPAN, SPAN), ylim=(-SPAN, SPAN), aspect="equal", xticks=[], yticks=[])
                    axes.spines[:].set_visible(True)
                for axes in line[len(drawn) :]:
                    axes.set_axis_off()
