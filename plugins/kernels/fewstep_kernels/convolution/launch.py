"""The two bilinear products of a submanifold convolution, launched: a ``fewstep_shapes3d.sparse.convolution.Map``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep_kernels.convolution import conv_jit
from fewstep_kernels.convolution.plan import pairs, tiles
from fewstep_kernels.convolution.tiles import candidates
from fewstep_kernels.support import on_its_device, precision, upcast
from fewstep_kernels.tuning import Tile, chosen

PROGRAMS = 264  # twice the multiprocessors of an H100: about as many the gradient of small weights is split into


@dataclass(frozen=True, eq=False)
class TritonMap:
    """A layout's neighbour map, for one kernel size."""

    layout: Packed
    kernel_size: int

    def convolve(self, x: Tensor, matrices: Tensor) -> Tensor:
        """[T, Ci] by [K, Ci, Co] to [T, Co]."""
        return _convolve(x, matrices, self.layout, self.kernel_size)

    def outer(self, x: Tensor, grad: Tensor) -> Tensor:
        """[T, Ci] and [T, Co] to [K, Ci, Co], in the type of x; deterministic."""
        return _outer(x, grad, self.layout, self.kernel_size)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _constants(x: Tensor) -> dict[str, Any]:
    return {"UPCAST": upcast(x), "PRECISION": precision(x)}


def _chosen(kind: str, x: Tensor, channels: tuple[int, int], kernel_size: int, run: Any) -> Tile:
    shipped = candidates(kind, x.dtype, channels[1], precision(x) == "ieee")
    name = str(x.dtype).removeprefix("torch.")
    return chosen((f"convolution-{kind}", x.device, name, precision(x), *channels, kernel_size), shipped, run)


@on_its_device
def _convolve(x: Tensor, matrices: Tensor, layout: Packed, kernel_size: int) -> Tensor:
    volume, ci, co = matrices.shape
    x, out = _rows(x), x.new_empty(len(x), co)

    def run(tile: Tile) -> None:
        plan = tiles(layout, kernel_size, tile.sizes["BLOCK_M"])
        grid = (len(plan.counts), -(-co // tile.sizes["BLOCK_N"]))
        conv_jit.conv_kernel[grid](
            x, matrices, out, plan.order, plan.near, plan.offsets, plan.counts, len(x), volume, ci, co,
            x.stride(0), *matrices.stride(), out.stride(0), **_constants(x), **tile.options,
        )  # fmt: skip

    if out.numel():
        run(_chosen("convolve", x, (ci, co), kernel_size, run))
    return out


@on_its_device
def _outer(x: Tensor, grad: Tensor, layout: Packed, kernel_size: int) -> Tensor:
    x, grad = _rows(x), _rows(grad)
    (rows, ci), co, volume = x.shape, grad.shape[1], kernel_size**3
    if not rows:
        return x.new_zeros(volume, ci, co)
    found: list[Tensor] = []

    def run(tile: Tile) -> None:
        plan = pairs(layout, kernel_size)
        across = -(-ci // tile.sizes["BLOCK_M"]) * -(-co // tile.sizes["BLOCK_N"])
        splits = max(1, min(16, PROGRAMS // (across * volume)))
        dtype = x.dtype if splits == 1 else torch.float32
        parts = torch.empty(splits, volume, ci, co, dtype=dtype, device=x.device)
        conv_jit.outer_kernel[across, volume, splits](
            x, grad, parts, plan.sources, plan.targets, plan.counts, rows, volume, ci, co, splits,
            x.stride(0), grad.stride(0), **_constants(x), **tile.options,
        )  # fmt: skip
        found[:] = [parts]

    run(_chosen("outer", x, (ci, co), kernel_size, run))
    parts = found[0]
    return parts[0] if len(parts) == 1 else parts.sum(0).to(x.dtype)
