"""A model of two stages, dense points and packed ones on their signs, registered by ``install``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from fewstep_shapes3d.sparse.noise import voxel_noise
from torch import Tensor

from fewstep.config.base import Strict
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.dataset import Dataset
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.suite import Suite
from fewstep.plugins.registry import Entry, registry
from fewstep.testing import TinyBackbone
from fewstep.testing.tiny import CHANNELS, COND, TinyConfig

COUNT, POINTS = 7, 4
STAGES = {"first": "duo", "second": "duo-second"}
SHIPPED: dict[str, dict[str, Path]] = {"first": {}, "second": {}}  # what ``students`` answers, by stage


class First(TinyBackbone):
    """Velocity of points [B, 4, 3]."""

    provides: ClassVar[frozenset[str]] = frozenset({"dense", "jvp"})
    dataset = "duo-data"
    stage = "first"
    stages: ClassVar[Mapping[str, str]] = STAGES

    @classmethod
    def teacher(cls, config: TinyConfig) -> Teacher:
        return Teacher(cls(config.width, seed=len(cls.stage)), Guidance(2.0))

    @classmethod
    def students(cls) -> dict[str, Path]:
        return SHIPPED[cls.stage]

    @classmethod
    def suite(cls, config: Any, dataset: Dataset) -> Suite:
        return Signs()


class Second(First):
    """Velocity of points [T, 3]."""

    provides: ClassVar[frozenset[str]] = frozenset({"packed", "jvp"})
    stage = "second"

    @classmethod
    def suite(cls, config: Any, dataset: Dataset) -> Suite:
        return Sums()


class Points(Dataset):
    """Points of a Gaussian, in the layout of the stage that asks."""

    Config = Strict

    def __len__(self) -> int:
        return 40

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        x0 = torch.randn(len(indices) * POINTS, CHANNELS, generator=generator)
        cond = Condition(torch.randn(len(indices), COND, generator=generator))
        if self.backbone.stage == "second":
            return Batch(x0, Packed.of_lengths([POINTS] * len(indices)), cond)
        return Batch(x0.reshape(-1, POINTS, CHANNELS), Dense(len(indices)), cond)


def held_out(rows: int) -> tuple[Tensor, Condition]:
    """x0 [7 rows, 3] and the condition that both stages have."""
    draws = torch.Generator().manual_seed(11)
    tokens = torch.randn(COUNT, COND, generator=draws)
    return torch.randn(COUNT * rows, CHANNELS, generator=draws), Condition(tokens)


class Signs(Suite):
    """Decodes a sample to which of its points lie above 0 in x: the second stage has a row for each of these."""

    headline, lower_is_better = "above", frozenset({"above"})

    def prompts(self, limit: int | None = None) -> Batch:
        x0, cond = held_out(POINTS)
        rows = torch.arange(limit or COUNT)
        return Batch(x0.reshape(COUNT, POINTS, CHANNELS), Dense(COUNT), cond).select(rows)

    def decode(self, x: Tensor, layout: Layout) -> Tensor:
        return x[..., 0] > 0

    def following(self, objects: Tensor) -> Packed:
        places = objects.nonzero()
        return Packed.of_index(places[:, 0], places[:, 1:], len(objects))

    def measure(self, objects: Any, teacher_objects: Any) -> dict[str, float]:
        return {"above": float(objects.float().mean()), "same": float((objects == teacher_objects).float().mean())}

    def sheet(self, rows: Sequence[tuple[str, Any]], path: Path, count: int) -> None:
        path.write_text("\n".join(label for label, _ in rows))


class Sums(Signs):
    """Decodes a sample to the sum over its rows."""

    headline, lower_is_better = "size", frozenset({"size", "far"})

    def prompts(self, limit: int | None = None) -> Batch:
        x0, cond = held_out(2)
        coords = torch.tensor([[0], [3]] * COUNT)
        return Batch(x0, Packed.of_lengths([2] * COUNT, coords), cond).select(torch.arange(limit or COUNT))

    def noise(self, seed: int, batch: Batch) -> Tensor:
        return voxel_noise(seed, batch.layout, batch.x0)

    def decode(self, x: Tensor, layout: Layout) -> Tensor:
        return torch.stack([layout.sum(x[:, i]) for i in range(CHANNELS)], 1)

    def measure(self, objects: Any, teacher_objects: Any) -> dict[str, float]:
        return {"size": float(objects.norm()), "far": float((objects - teacher_objects).norm())}


def install() -> None:
    """File all of it; a test module's fixture forgets it again."""
    for name, cls in (("duo", "First"), ("duo-second", "Second")):
        registry().add(Entry("backbone", name, "duo", f"stages_helpers:{cls}"))
    registry().add(Entry("dataset", "duo-data", "duo", "stages_helpers:Points"))
