"""A fused op (``fewstep_kernels.norms.functions.FusedOp``) as a node of a compiled graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.ops.launches import Call, Launches, Maybe, Tensors

if TYPE_CHECKING:
    from fewstep_kernels.norms.functions import FusedOp


class FusedLaunches(Launches):
    """The same launches as outside of torch.compile; derivatives of derivatives go through the op's oracle.

    Args:
        bind: from a call's arguments to the op. Imports Triton, so that this module need not.
        like: see :class:`Launches`.
        outputs: how many.
    """

    def __init__(self, bind: Callable[..., FusedOp], like: Callable[..., Tensors], outputs: int = 1) -> None:
        super().__init__(self._plain, like, outputs=outputs)
        self.bind = bind

    def _plain(self, *args: Any) -> Any:
        found = self.bind(*args).plain(*Call(list(args)).tensors)
        return found[0] if self.outputs == 1 else found

    def value(self, call: Call) -> Tensors:
        """See :class:`Launches`."""
        return self.bind(*call.args).launch(tuple(call.tensors), None, values=True)[0]

    def gradients(self, call: Call, results: Tensors, grads: Maybe, wanted: Sequence[bool]) -> Tensors:
        """See :class:`Launches`."""
        filled = tuple(torch.zeros_like(y) if g is None else g for g, y in zip(grads, results, strict=True))
        return self.bind(*call.args).gradients(tuple(call.tensors), filled, wanted)

    def tangent(self, call: Call, tangents: Maybe) -> tuple[Tensors, Tensors]:
        """See :class:`Launches`."""
        return self.bind(*call.args).launch(tuple(call.tensors), tangents, values=True)


def promoted(*tensors: Tensor) -> torch.dtype:
    """The type that all of them promote to."""
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype
