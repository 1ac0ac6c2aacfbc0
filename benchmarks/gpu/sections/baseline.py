"""The eager baseline of a whole model: peers as entries of the op table, and none of our kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.peers.attention import Call, VarlenAttn
from benchmarks.gpu.peers.convolution import as_kernel
from fewstep.core.layout import Packed
from fewstep.ops.table import Kernel, forcing, register, table

EAGER = "eager torch, FA2"
# FlashAttention-2 for half precision; the others serve float32, which it lacks. cuDNN is excluded.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_eager_now: list[bool] = []


def _varlen(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> Tensor:
    return VarlenAttn().function(Call(q, k, v, q_layout, k_layout))(q, k, v)


def _varlen_refuses(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> str | None:
    if not _eager_now:
        return "a peer, for the baseline of the benchmark only"
    return VarlenAttn().available(Call(q, k, v, q_layout, k_layout))


def register_baseline() -> None:
    """Register peers as entries of the op table that serve only the baseline."""
    both = frozenset({"forward", "backward"})
    varlen = Kernel("varlen_attn", "varlen_attention", _varlen, both, 15, "torch", _varlen_refuses)
    for kernel in (varlen, as_kernel(lambda: bool(_eager_now))):
        if kernel.name not in table()[kernel.op]:
            register(kernel)


@contextmanager
def eager(device: torch.device) -> Iterator[None]:
    """Within this context the eager baseline runs, without our fused kernels."""
    _eager_now.append(True)
    try:
        with forcing("torch"), sdpa_kernel(BACKENDS, set_priority=True) if device.type == "cuda" else nullcontext():
            yield
    finally:
        _eager_now.pop()
