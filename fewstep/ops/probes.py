"""A small call of each op, by which ``fewstep ops`` finds out what is chosen on a machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.ops.geometry import pooling

Make = Callable[["Draw"], tuple[Any, ...]]
HEADS, WIDTH = 2, 64


class Draw:
    """Makes the tensors of a probe.

    Args:
        device: where.
        dtype: of floating-point tensors.
        need: "forward", "backward" (tensors require gradients) or "jvp" (tensors carry tangents).
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, need: str) -> None:
        self.device, self.dtype, self.need = device, dtype, need

    def __call__(self, *shape: int) -> Tensor:
        """Zeros of this shape."""
        x = torch.zeros(shape, device=self.device, dtype=self.dtype, requires_grad=self.need == "backward")
        if self.need == "jvp":
            dual: Tensor = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            return dual
        return x

    def voxels(self) -> Packed:
        """Two samples of 27 and 8 voxels."""
        cells = torch.cartesian_prod(*[torch.arange(3)] * 3)
        small = cells[(cells < 2).all(1)]
        return Packed.of_lengths([27, 8], torch.cat([cells, small]).to(self.device))


def _heads(draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    return draw(35, HEADS, WIDTH), draw(35, HEADS, WIDTH), draw(35, HEADS, WIDTH)


def _varlen(draw: Draw) -> tuple[Any, ...]:
    layout = draw.voxels()
    return (*_heads(draw), layout, layout)


def _attention(draw: Draw) -> tuple[Any, ...]:
    return tuple(x.unflatten(0, (5, 7)) for x in _heads(draw))


PROBES: dict[str, Make] = {
    "attention": _attention,
    "varlen_attention": _varlen,
    "windowed_attention": lambda draw: (*_heads(draw), draw.voxels(), 2, 0),
    "submanifold_conv": lambda draw: (draw(35, 64), draw(64, 3, 3, 3, 64), draw.voxels()),
    "pool_mean": lambda draw: (draw(35, 64), pooling(draw.voxels())),
    "unpool": lambda draw: (draw(pooling(draw.voxels()).coarse.rows, 64), pooling(draw.voxels())),
    "subdivide": lambda draw: (draw(35, 64),),
    "sample_group_norm": lambda draw: (draw(35, 64), draw.voxels(), 32, draw(64), draw(64), 1e-5),
    "qk_rms_norm": lambda draw: (*_heads(draw)[:2], draw(HEADS, WIDTH), draw(HEADS, WIDTH), None),
    "modulated_norm": lambda draw: (draw(35, 64), draw(2, 64), draw(2, 64), draw.voxels(), 1e-6),
    "gated_residual": lambda draw: (draw(35, 64), draw(2, 64), draw(35, 64), draw.voxels()),
    "linear_gelu": lambda draw: (draw(35, 64), draw(128, 64), draw(128)),
}


def register_probe(op: str, make: Make) -> None:
    """Let ``fewstep ops`` show what is chosen for an op: ``make`` gives a call's arguments from a :class:`Draw`."""
    PROBES[op] = make
