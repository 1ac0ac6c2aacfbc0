"""Attention peers: the protocol, and those that come with torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core.layout import Packed

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
EXPLICIT = 8 * 2**30  # largest float32 score matrix, in bytes, for explicit attention


@dataclass(frozen=True)
class Call:
    """q [T, H, D] packed as ``q_layout``, k and v [S, H, D] as ``k_layout``."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_layout: Packed
    k_layout: Packed

    @property
    def args(self) -> tuple[Tensor, Tensor, Tensor, Packed, Packed]:
        """The arguments of ``fewstep.ops.varlen_attention``."""
        return self.q, self.k, self.v, self.q_layout, self.k_layout

    @cached_property
    def uneven(self) -> str | None:
        """Why this is not a dense batch; None if it is one."""
        same = all(len(set(layout.lengths_list)) == 1 for layout in (self.q_layout, self.k_layout))
        return None if same else "the lengths differ"

    def batched(self, f: Function) -> Function:
        """``f`` on [B, H, L, D] as a function of packed rows, without a copy on the way in."""
        batch = self.q_layout.batch_size

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = f(*(x.unflatten(0, (batch, -1)).transpose(1, 2) for x in (q, k, v)))
            return out.transpose(1, 2).reshape(q.shape)

        return run


class AttentionPeer(Protocol):
    """A third-party attention. ``provides`` is a subset of {"forward", "backward", "jvp"}."""

    @property
    def name(self) -> str: ...

    @property
    def provides(self) -> frozenset[str]: ...

    def available(self, call: Call) -> str | None:
        """None if it can serve this call on this machine; else why not."""

    def function(self, call: Call) -> Function:
        """The function from packed (q, k, v) to the packed output; one-time preparation happens here."""


def off_gpu(x: Tensor) -> str | None:
    """Why a CUDA kernel cannot serve a tensor; None if it can."""
    return None if x.is_cuda else "needs a CUDA device"


def int32(layout: Packed) -> tuple[Tensor, int]:
    """int32 boundaries and the largest length, as CUDA kernels take them."""
    return layout.cu_seqlens.int(), max(layout.lengths_list)


def first(out: Any) -> Tensor:
    """The output, without the statistics that may come with it."""
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


class VarlenAttn:
    """``torch.nn.attention.varlen.varlen_attn``: FlashAttention-2 in torch."""

    name, provides = "varlen_attn", frozenset({"forward", "backward"})

    def available(self, call: Call) -> str | None:
        try:
            import torch.nn.attention.varlen
        except ImportError as error:
            return str(error)
        if call.q.dtype == torch.float32:
            return "no kernel for float32"
        return off_gpu(call.q)

    def function(self, call: Call) -> Function:
        from torch.nn.attention.varlen import varlen_attn

        (queries, longest), (keys, longest_keys) = int32(call.q_layout), int32(call.k_layout)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return first(varlen_attn(q, k, v, queries, keys, longest, longest_keys))

        return run


@dataclass(frozen=True)
class Sdpa:
    """One backend of ``scaled_dot_product_attention``, on equal lengths."""

    name: str
    backend: SDPBackend
    provides: frozenset[str] = frozenset({"forward", "backward"})

    def available(self, call: Call) -> str | None:
        if call.uneven:
            return call.uneven
        if self.backend != SDPBackend.MATH:
            return off_gpu(call.q)
        scores = call.q_layout.batch_size * call.q.shape[1] * max(call.q_layout.lengths_list)
        wanted = 4 * scores * max(call.k_layout.lengths_list)
        return None if wanted <= EXPLICIT else f"scores of {wanted / 2**30:.0f} GiB"

    def function(self, call: Call) -> Function:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(self.backend):
                return F.scaled_dot_product_attention(q, k, v)

        return call.batched(run)


class Nested:
    """SDPA on jagged nested tensors."""

    name, provides = "nested", frozenset({"forward", "backward"})

    def available(self, call: Call) -> str | None:
        if 0 in (*call.q_layout.lengths_list, *call.k_layout.lengths_list):
            return "a length is 0"
        return off_gpu(call.q)

    def function(self, call: Call) -> Function:
        bounds = [(x.cu_seqlens, min(x.lengths_list), max(x.lengths_list)) for x in (call.q_layout, call.k_layout)]

        def jagged(x: Tensor, which: int) -> Tensor:
            offsets, shortest, longest = bounds[which]
            made: Tensor = torch.nested.nested_tensor_from_jagged(
                x, offsets, min_seqlen=shortest, max_seqlen=longest
            ).transpose(1, 2)
            return made

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Any = F.scaled_dot_product_attention(jagged(q, 0), jagged(k, 1), jagged(v, 1))
            values: Tensor = out.transpose(1, 2).values()
            return values

        return run


ALL = frozenset({"forward", "backward", "jvp"})
FLASH = Sdpa("sdpa-flash", SDPBackend.FLASH_ATTENTION)
CUDNN = Sdpa("sdpa-cudnn", SDPBackend.CUDNN_ATTENTION)
EFFICIENT = Sdpa("sdpa-efficient", SDPBackend.EFFICIENT_ATTENTION)
MATH = Sdpa("sdpa-math", SDPBackend.MATH, ALL)
