"""Points of a 2-D mixture, one per sample or as ragged sets, with their class as condition."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch, Condition
from fewstep.core.dataset import Dataset
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.mixture import Mixture
from fewstep_toy.config import PointsConfig, ToyConfig
from fewstep_toy.mixture import TARGETS


class ToyPoints(Dataset):
    """x0 [B, 2] dense, or [T, 2] packed: sets of points of one class; the condition is a one-hot [B, K]."""

    Config = PointsConfig

    def __init__(self, config: PointsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        found = getattr(backbone, "config", None)
        self.toy = found if isinstance(found, ToyConfig) else ToyConfig()
        self.mixture: Mixture = TARGETS[self.toy.target]()
        total = config.size + config.held_out
        draws = torch.Generator().manual_seed(config.seed)
        self.labels = self.mixture.draw_labels(total, draws)
        low, high = (1, 1) if config.layout == "dense" else config.points
        self.lengths = torch.randint(low, high + 1, (total,), generator=draws)
        self.starts = torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths.cumsum(0)])
        self.points = self.mixture.sample(self.labels.repeat_interleave(self.lengths), draws)

    def __len__(self) -> int:
        return int(self.config.size)

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        """These samples, without augmentation."""
        return self._batch(torch.tensor(indices))

    def held_out(self, limit: int | None = None) -> Batch:
        """The samples after the training ones, in order."""
        count = min(limit or self.config.held_out, self.config.held_out)
        return self._batch(torch.arange(len(self), len(self) + count))

    def held_out_labels(self) -> Tensor:
        """[rows] the class of every held-out point."""
        labels = self.labels[len(self) :]
        return labels.repeat_interleave(self.lengths[len(self) :])

    def _batch(self, rows: Tensor) -> Batch:
        lengths = self.lengths[rows].tolist()
        spans = [torch.arange(s, s + n) for s, n in zip(self.starts[rows].tolist(), lengths, strict=True)]
        x0 = self.points[torch.cat(spans)]
        packed = self.config.layout == "packed"
        layout: Layout = Packed.of_lengths(lengths) if packed else Dense(len(rows))
        return Batch(x0, layout, self._condition(rows))

    def _condition(self, rows: Tensor) -> Condition:
        if not self.toy.conditional:
            return Condition()
        one_hot = torch.nn.functional.one_hot(self.labels[rows], self.mixture.class_count)
        return Condition(one_hot.to(self.points.dtype))
