"""Layouts and conditions of several batches concatenated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep.core.layout import Dense, Layout, Packed


def joined_layouts(layouts: Sequence[Layout]) -> Layout:
    """The layout of all samples, on the device of the first.

    Raises:
        TypeError: for layouts that are neither all dense nor all packed.
        RuntimeError: for coordinates along different numbers of axes.
    """
    if all(isinstance(layout, Dense) for layout in layouts):
        return Dense(sum(layout.batch_size for layout in layouts))
    packed = [layout for layout in layouts if isinstance(layout, Packed)]
    if len(packed) < len(layouts):
        raise TypeError("they are neither all dense nor all packed")
    coords = [layout.coords for layout in packed if layout.coords is not None]
    lengths = [n for layout in packed for n in layout.lengths_list]
    return Packed.of_lengths(lengths, torch.cat(coords) if coords else None, packed[0].cu_seqlens.device)


def joined_conditions(conditions: Sequence[Condition]) -> Condition:
    """The conditions of all samples, of the class of the first; blank where all of them are.

    Raises:
        TypeError: where one condition has a field that another lacks, or they differ in what cannot be concatenated.
        RuntimeError: for tensors whose shapes do not fit together.
    """

    def joined(values: list[Any]) -> Any:
        if all(isinstance(value, Tensor) for value in values):
            return torch.cat(values)
        if all(isinstance(value, bool) for value in values):
            return all(values)
        if any(value != values[0] for value in values):
            raise TypeError("their conditions are of different kinds")
        return values[0]

    names = vars(conditions[0])
    return replace(conditions[0], **{name: joined([getattr(cond, name) for cond in conditions]) for name in names})
