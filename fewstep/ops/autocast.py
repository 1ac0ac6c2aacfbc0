"""What ``torch.autocast`` does to the operands of a matrix product, for ops that it does not know."""

from __future__ import annotations

import torch
from torch import Tensor


def autocasting(x: Tensor) -> bool:
    """Whether autocast is on for the device of ``x``."""
    kind = x.device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)  # which asks about no device that has no autocast


def lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The operands in autocast's type, where it is on: as those of a linear layer. float64 stays, as with torch."""
    if not autocasting(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)
