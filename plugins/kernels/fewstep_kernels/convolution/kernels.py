"""The op table's entry for submanifold convolution. Triton is imported when it runs."""

from __future__ import annotations

from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.ops.convolution import convolution, like_voxels
from fewstep.ops.launches import Launches
from fewstep.ops.opaque import opaque
from fewstep.ops.table import Kernel
from fewstep_kernels.support import nested, reason


def submanifold(x: Tensor, weight: Tensor, layout: Packed) -> Tensor:
    """Implicit matrix product over sorted voxels: [T, Co], see :func:`fewstep.ops.submanifold_conv`.

    Every derivative is made of the same two products (``fewstep.ops.convolution``), derivatives of derivatives too.
    """
    from fewstep_kernels.convolution.launch import TritonMap

    size = weight.shape[1]
    return convolution(x, weight, layout.once(("triton map", size), lambda: TritonMap(layout, size)))


def check(x: Tensor, weight: Tensor, layout: Packed) -> str | None:
    """Why the kernel cannot serve; None where it can."""
    return reason(x, weight) or nested()


SUBMANIFOLD = Kernel(
    "triton-submanifold",
    "submanifold_conv",
    opaque("submanifold_conv_triton", Launches(submanifold, like_voxels)),
    frozenset({"forward", "backward", "jvp"}),
    20,
    "triton",
    check,
)
