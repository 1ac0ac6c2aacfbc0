"""Numbering of the cells of a box that holds the voxels of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

Box = tuple[list[int], list[int]]  # the least and the largest coordinate along each axis


def box_of(coords: Tensor) -> Box:
    """The box of coordinates [T, 3] of any integer type; zeros if there are none. Synchronises with the device."""
    if not len(coords):
        return [0, 0, 0], [0, 0, 0]
    low, high = torch.stack(torch.aminmax(coords, dim=0)).tolist()
    return low, high


@dataclass(frozen=True)
class Grid:
    """Cells of one box for all samples, numbered in the order of (sample, x, y, z).

    Args:
        low: [3] coordinates of a sample's first cell.
        size: [3] cells along each axis.
    """

    low: Sequence[int]
    size: Sequence[int]

    @classmethod
    def around(cls, box: Box, margin: int) -> Grid:
        """The cells of a box, and ``margin`` empty ones on each side: a step out of the box finds nothing."""
        return cls([a - margin for a in box[0]], [b - a + 1 + 2 * margin for a, b in zip(*box, strict=True)])

    @classmethod
    def coarse(cls, box: Box, factor: int, shift: int = 0) -> Grid:
        """The cells (coord + shift) // factor of a box."""
        low, high = ([(c + shift) // factor for c in corner] for corner in box)
        return cls.around((low, high), 0)

    @property
    def steps(self) -> tuple[int, int, int, int]:
        """Strides of the numbering along samples, x, y and z."""
        x, y, z = self.size
        return x * y * z, y * z, z, 1

    def keys(self, index: Tensor, cells: Tensor) -> Tensor:
        """int64 [T]: the number of each row's cell, from its sample and the cell's place [T, 3]."""
        sample, x, y, _ = self.steps
        first = sum(a * b for a, b in zip(self.low, self.steps[1:], strict=True))
        keys = cells[:, 2] - first
        return keys.add_(cells[:, 1], alpha=y).add_(cells[:, 0], alpha=x).add_(index, alpha=sample)

    def offsets(self, kernel_size: int) -> list[int]:
        """Differences of the numbers from a cell to those of a cubic kernel, first axis slowest."""
        line = range(-(kernel_size // 2), kernel_size // 2 + 1)
        return [sum(a * b for a, b in zip(at, self.steps[1:], strict=True)) for at in product(line, repeat=3)]
