"""The toy's evaluation: distance to the true density and to the teacher's own result, and scatter plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from fewstep.batch import Batch
from fewstep.layout import Layout
from fewstep.suite import Suite
from fewstep_toy.dataset import ToyPoints
from fewstep_toy.measures import mmd, sliced_w2
from fewstep_toy.mixture import most_probable

MMD_POINTS = 2000
COLUMNS = 4


class ToySuite(Suite):
    """Points are their own objects. Truth is a fresh sample of the density, ten times the held-out points.

    Measures: ``sliced_w2`` and ``mmd`` to the truth; ``teacher_rms``, the distance to the point that the teacher makes
    from the same noise; with a condition ``wrong_class``, the share of points that most probably have another class.
    """

    headline = "sliced_w2"
    lower_is_better = frozenset({"sliced_w2", "mmd", "teacher_rms", "wrong_class"})

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
            "sliced_w2": sliced_w2(objects, self.truth),
            "mmd": mmd(objects[:MMD_POINTS], self.truth[:MMD_POINTS]),
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
        figure = Figure(figsize=(3 * columns, 3 * lines + 0.3), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (label, points) in zip(figure.subplots(lines, columns, squeeze=False).flat, panels, strict=False):
            colours = most_probable(self.dataset.mixture, points).numpy()
            axes.scatter(points[:, 0], points[:, 1], s=1, c=colours, cmap="tab10", vmin=0, vmax=9)
            axes.set(title=label, xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", xticks=[], yticks=[])
        for axes in figure.axes[len(panels) :]:
            axes.set_axis_off()
        figure.savefig(path, dpi=120)
