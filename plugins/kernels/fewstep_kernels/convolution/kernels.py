"""The op table's entry for submanifold convolution. Triton is imported when it runs."""

from __future__ import annotations

from fewstep_shapes3d.sparse.convolution import convolution
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.ops.table import ALL, Kernel
from fewstep_kernels.support import nested, reason


def submanifold(x: Tensor, weight: Tensor, layout: Packed) -> Tensor:
    """Implicit GEMM over sorted voxels: [T, Co], see ``fewstep_shapes3d.sparse.submanifold_conv``.

    Derivatives of any order use the same two bilinear products.
    """
    from fewstep_kernels.convolution.launch import TritonMap

    return convolution(x, weight, TritonMap(layout, weight.shape[1]))


def check(x: Tensor, weight: Tensor, layout: Packed) -> str | None:
    """Why the kernel cannot serve; None where it can."""
    return reason(x, weight)


def guard(x: Tensor, weight: Tensor, layout: Packed) -> str | None:
    """Why a call under a ``torch.func`` transform is left to other kernels; None where it is not."""
    return nested(x, weight)


SUBMANIFOLD = Kernel("triton-submanifold", "submanifold_conv", submanifold, ALL, 20, "triton", check, guard)
