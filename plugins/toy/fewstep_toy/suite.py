"""The toy's evaluation: distance to the true density and to the teacher's own result, and scatter plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.layout import Layout
from fewstep.core.suite import Suite
from fewstep.errors import need
from fewstep.metrics import mmd_rbf, sliced_wasserstein
from fewstep_toy.dataset import ToyPoints
from fewstep_toy.mixture import most_probable

COLUMNS, SPAN = 4, 3.2
DIRECTIONS = 64
MMD_ROWS, MMD_BANDWIDTH = 2000, 0.3  # the width of the narrow parts: the median distance would see only the whole


class ToySuite(Suite):
    """Points are their own objects. Truth is a fresh sample of the density, ten times the held-out points."""

    headline = "sliced_w2"
    lower_is_better = frozenset({"sliced_w2", "mmd", "teacher_rms", "wrong_class"})
    charts = ("teacher_rms",)
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

    def measure(self, objects: Any, teacher_objects: Any) -> dict[str, float]:
        found = {
            "sliced_w2": sliced_wasserstein(objects, self.truth, DIRECTIONS),
            "mmd": mmd_rbf(objects[:MMD_ROWS], self.truth[:MMD_ROWS], MMD_BANDWIDTH),
            "teacher_rms": float((objects - teacher_objects).square().sum(-1).mean().sqrt()),
        }
        if self.dataset.toy.conditional:
            labels = self.dataset.held_out_labels()[: len(objects)]
            found["wrong_class"] = float((most_probable(self.dataset.mixture, objects) != labels).float().mean())
        return found

    def sheet(self, rows: Sequence[tuple[str, Any]], path: Path, count: int) -> None:
        """One panel with the truth, and one for each row with all of its points; ``count`` has no meaning here."""
        del count
        panels = [("truth", self.truth[: len(self.dataset.held_out().x0)]), *rows]
        columns = min(COLUMNS, len(panels))
        lines = math.ceil(len(panels) / columns)
        need("matplotlib")
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3 * columns, 3 * lines + 0.3), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (label, points) in zip(figure.subplots(lines, columns, squeeze=False).flat, panels, strict=False):
            colours = most_probable(self.dataset.mixture, points).numpy()
            axes.scatter(points[:, 0], points[:, 1], s=1, c=colours, cmap="tab10", vmin=0, vmax=9)
            axes.set(title=label, xlim=(-SPAN, SPAN), ylim=(-SPAN, SPAN), aspect="equal", xticks=[], yticks=[])
        for axes in figure.axes[len(panels) :]:
            axes.set_axis_off()
        figure.savefig(path, dpi=120)
