"""Launches of the modulated norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.ops.modulation import reference_modulated_norm
from fewstep_kernels.norms.functions import Tangents, Tensors, call
from fewstep_kernels.norms.samples import Samples, empty_like, maybe_rows, promoted, row_steps, row_strides, rows_of
from fewstep_kernels.norms.tiles import MANY, block, many, tiles
from fewstep_kernels.support import on_its_device
from fewstep_kernels.tuning import CHOSEN, Tile, chosen

FORWARD = "modulated-norm-forward"


@lru_cache(maxsize=1)
def _jit() -> Any:
    """The Triton kernels; importing them imports Triton."""
    from fewstep_kernels.norms import modulation_jit

    return modulation_jit


@dataclass(frozen=True)
class ModulatedNorm:
    """One call of the op; its tensors are x, shift, scale."""

    samples: Samples
    eps: float

    def plain(self, *tensors: Tensor) -> Tensors:
        x, shift, scale = tensors
        return (reference_modulated_norm(x, shift, scale, self.samples.layout, self.eps),)

    def launch(self, tensors: Tensors, tangents: Tangents | None, values: bool) -> tuple[Tensors, Tensors]:
        """See :class:`FusedOp`."""
        shape, dtype = tensors[0], promoted(*tensors)
        x, shift, scale = (rows_of(v) for v in tensors)
        tx, tshift, tscale = (maybe_rows(t) for t in tangents or (None, None, None))
        y = empty_like(shape, dtype) if values else None
        ty = None if tangents is None else empty_like(shape, dtype)

        def run(tile: Tile) -> None:
            _jit().forward_kernel[(-(-len(x) // tile.sizes["BLOCK_R"]),)](
                x, tx, shift, scale, tshift, tscale, self.samples.index(), y, ty, len(x), self.samples.length(shape),
                *row_strides(x, tx, shift, scale, tshift, tscale), self.eps,
                WIDTH=x.shape[1], BLOCK_C=block(x.shape[1]), **tile.options,
            )  # fmt: skip

        if len(x):
            key = (FORWARD, x.device, x.dtype, x.shape[1], values, tangents is None, many(len(x)))
            run(chosen(key, tiles("BLOCK_R", block(x.shape[1]), backward=False), run))
        return () if y is None else (y,), () if ty is None else (ty,)

    def gradients(self, tensors: Tensors, grads: Tensors, wanted: Sequence[bool]) -> list[Tensor]:
        """See :class:`FusedOp`."""
        x, _, scale, grad = (rows_of(v) for v in (*tensors, *grads))
        dx = empty_like(tensors[0], x.dtype) if wanted[0] else None
        programs, each = self.samples.programs(tensors[0])
        size = (programs, self.samples.batch(tensors[0]), 2, x.shape[1])
        partial = torch.empty(size, device=x.device) if any(wanted[1:]) else None

        def run(tile: Tile) -> None:
            _jit().backward_kernel[(programs, size[1])](
                x, scale, self.samples.bounds(), grad, dx, partial, self.samples.length(tensors[0]), each,
                *row_strides(x, scale, grad), self.eps,
                WIDTH=x.shape[1], BLOCK_C=block(x.shape[1]), **tile.options,
            )  # fmt: skip

        if len(x):
            key = ("modulated-norm-backward", x.device, x.dtype, x.shape[1], dx is None, partial is None, many(len(x)))
            run(chosen(key, tiles("BLOCK_R", block(x.shape[1]), backward=True), run))
        sums: Sequence[Tensor | None] = (None, None) if partial is None else partial.sum(0).unbind(1)
        found = (dx, *(None if s is None else s.to(v.dtype) for s, v in zip(sums, tensors[1:], strict=True)))
        return [g for g, want in zip(found, wanted, strict=True) if want and g is not None]


@on_its_device
def direct(x: Tensor, shift: Tensor, scale: Tensor, layout: Packed | None, eps: float) -> Tensor:
    """The fast path of :func:`modulated_norm` where only values are needed: two look-ups and a launch."""
    width = x.shape[-1]
    rows, length = (x.shape[0] * x.shape[1], x.shape[1]) if layout is None else (x.shape[0], 1)
    steps = row_steps(x, shift, scale)
    if steps is None or not rows:
        return ModulatedNorm(Samples(layout), eps).launch((x, shift, scale), None, True)[0][0]
    index = None if layout is None else Samples(layout).index()
    dtype = x.dtype if x.dtype is shift.dtype is scale.dtype else promoted(x, shift, scale)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)

    def run(tile: Tile) -> None:
        _jit().forward_kernel[(-(-rows // tile.sizes["BLOCK_R"]),)](
            x, None, shift, scale, None, None, index, out, None, rows, length,
            steps[0], 0, steps[1], steps[2], 0, 0, eps, WIDTH=width, BLOCK_C=block(width), **tile.options,
        )  # fmt: skip

    key = (FORWARD, x.device, x.dtype, width, True, True, rows >= MANY)
    run(CHOSEN[key] if key in CHOSEN else chosen(key, tiles("BLOCK_R", block(width), backward=False), run))
    return out


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, layout: Packed | None, eps: float) -> Tensor:
    """:func:`fewstep.ops.modulated_norm`."""
    return call(ModulatedNorm(Samples(layout), eps), x, shift, scale)[0]
