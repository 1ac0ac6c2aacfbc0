"""Launches of the gated residual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.ops.modulation import reference_gated_residual
from fewstep_kernels.norms.functions import Tangents, Tensors, call
from fewstep_kernels.norms.samples import Samples, empty_like, maybe_rows, promoted, row_steps, row_strides, rows_of
from fewstep_kernels.norms.tiles import MANY, block, many, tiles
from fewstep_kernels.support import on_its_device
from fewstep_kernels.tuning import CHOSEN, Tile, chosen

FORWARD = "gated-residual-forward"
COLUMNS = 1024  # per program instance, which needs no whole rows


@lru_cache(maxsize=1)
def _jit() -> Any:
    """The Triton kernels; importing them imports Triton."""
    from fewstep_kernels.norms import gate_jit

    return gate_jit


@lru_cache(maxsize=256)
def _columns(width: int) -> int:
    return min(COLUMNS, block(width))


@dataclass(frozen=True)
class GatedResidual:
    """One call of the op; its tensors are x, gate, y."""

    samples: Samples

    def plain(self, *tensors: Tensor) -> Tensors:
        x, gate, y = tensors
        return (reference_gated_residual(x, gate, y, self.samples.layout),)

    def launch(self, tensors: Tensors, tangents: Tangents | None, values: bool) -> tuple[Tensors, Tensors]:
        """See :class:`FusedOp`."""
        shape, dtype = tensors[0], promoted(*tensors)
        x, gate, y = (rows_of(v) for v in tensors)
        tx, tgate, ty = (maybe_rows(t) for t in tangents or (None, None, None))
        out = empty_like(shape, dtype) if values else None
        tout = None if tangents is None else empty_like(shape, dtype)
        columns = _columns(x.shape[1])

        def run(tile: Tile) -> None:
            _jit().forward_kernel[(-(-len(x) // tile.sizes["BLOCK_R"]), -(-x.shape[1] // columns))](
                x, gate, y, tx, tgate, ty, self.samples.index(), out, tout, len(x), self.samples.length(shape),
                *row_strides(x, gate, y, tx, tgate, ty), WIDTH=x.shape[1], BLOCK_C=columns, **tile.options,
            )  # fmt: skip

        if len(x):
            key = (FORWARD, x.device, x.dtype, x.shape[1], values, tangents is None, many(len(x)))
            run(chosen(key, tiles("BLOCK_R", columns, backward=False), run))
        return () if out is None else (out,), () if tout is None else (tout,)

    def gradients(self, tensors: Tensors, grads: Tensors, wanted: Sequence[bool]) -> list[Tensor]:
        """See :class:`FusedOp`. The gradient of x is that of the output, returned as a view."""
        _, gate, y, grad = (rows_of(v) for v in (*tensors, *grads))
        dy = empty_like(tensors[2], y.dtype) if wanted[2] else None
        programs, each = self.samples.programs(tensors[0])
        size = (programs, self.samples.batch(tensors[0]), y.shape[1])
        partial = torch.empty(size, device=y.device) if wanted[1] else None
        columns = _columns(y.shape[1])

        def run(tile: Tile) -> None:
            _jit().backward_kernel[(programs, size[1], -(-y.shape[1] // columns))](
                gate, y, self.samples.bounds(), grad, dy, partial, self.samples.length(tensors[0]), each,
                *row_strides(gate, y, grad), WIDTH=y.shape[1], BLOCK_C=columns, **tile.options,
            )  # fmt: skip

        if len(y) and (dy is not None or partial is not None):
            key = ("gated-residual-backward", y.device, y.dtype, y.shape[1], dy is None, partial is None, many(len(y)))
            run(chosen(key, tiles("BLOCK_R", columns, backward=True), run))
        found = (
            grads[0].view_as(grads[0]).to(tensors[0].dtype) if wanted[0] else None,
            None if partial is None else partial.sum(0).to(gate.dtype),
            dy,
        )
        return [g for g in found if g is not None]


@on_its_device
def direct(x: Tensor, gate: Tensor, y: Tensor, layout: Packed | None) -> Tensor:
    """The fast path of :func:`gated_residual` where only values are needed: two look-ups and a launch."""
    width = x.shape[-1]
    rows, length = (x.shape[0] * x.shape[1], x.shape[1]) if layout is None else (x.shape[0], 1)
    steps = row_steps(x, gate, y)
    if steps is None or not rows:
        return GatedResidual(Samples(layout)).launch((x, gate, y), None, True)[0][0]
    index = None if layout is None else Samples(layout).index()
    dtype = x.dtype if x.dtype is gate.dtype is y.dtype else promoted(x, gate, y)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    columns = _columns(width)

    def run(tile: Tile) -> None:
        _jit().forward_kernel[(-(-rows // tile.sizes["BLOCK_R"]), -(-width // columns))](
            x, gate, y, None, None, None, index, out, None, rows, length, *steps, 0, 0, 0,
            WIDTH=width, BLOCK_C=columns, **tile.options,
        )  # fmt: skip

    key = (FORWARD, x.device, x.dtype, width, True, True, rows >= MANY)
    run(CHOSEN[key] if key in CHOSEN else chosen(key, tiles("BLOCK_R", columns, backward=False), run))
    return out


def gated_residual(x: Tensor, gate: Tensor, y: Tensor, layout: Packed | None) -> Tensor:
    """:func:`fewstep.ops.gated_residual`."""
    return call(GatedResidual(Samples(layout)), x, gate, y)[0]
