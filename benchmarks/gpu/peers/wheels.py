"""Attention peers that come as compiled graphs, or as wheels placed beside the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.peers.attention import (
    CUDNN,
    EFFICIENT,
    FLASH,
    MATH,
    AttentionPeer,
    Call,
    Function,
    Nested,
    VarlenAttn,
    first,
    int32,
    off_gpu,
)
from fewstep.core.layout import Packed


@lru_cache(maxsize=1)
def _flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    torch.compiler.config.recompile_limit = 64  # one graph per length; torch gives up beyond 8 by default
    return torch.compile(flex_attention, dynamic=False)


class Flex:
    """Compiled FlexAttention, with a document mask if there is more than one sample."""

    name, provides = "flex", frozenset({"forward", "backward"})

    def available(self, call: Call) -> str | None:
        return off_gpu(call.q)

    def function(self, call: Call) -> Function:
        mask, flex = self._mask(call.q_layout, call.k_layout), _flex()

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = flex(*(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=mask)
            return out[0].transpose(0, 1)

        return run

    @staticmethod
    def _mask(q_layout: Packed, k_layout: Packed) -> Any:
        if q_layout.batch_size == 1:
            return None
        from torch.nn.attention.flex_attention import create_block_mask

        queries, keys = q_layout.index, k_layout.index

        def same(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return queries[i] == keys[j]

        return create_block_mask(same, None, None, q_layout.rows, k_layout.rows, device=str(queries.device))


class FlashAttention3:
    """A FlashAttention-3 wheel, forward only: ``fa3-fwd`` (bfloat16 only) or ``tokenspeed-fa3``."""

    name, provides = "fa3", frozenset({"forward"})
    modules = ("fa3_fwd_interface", "flash_attn_interface")

    def available(self, call: Call) -> str | None:
        if why := off_gpu(call.q):
            return why
        found = self._module()
        if found is None:
            return "no wheel of it (fa3-fwd or tokenspeed-fa3)"
        if call.q.dtype == torch.float16 and found.__name__ == self.modules[0]:
            return "the wheel fa3-fwd is built without float16"
        return "no kernel for float32" if call.q.dtype == torch.float32 else None

    def _module(self) -> Any:
        name = next((name for name in self.modules if find_spec(name)), None)
        return import_module(name) if name else None

    def function(self, call: Call) -> Function:
        attend = self._module().flash_attn_varlen_func
        (queries, longest), (keys, longest_keys) = int32(call.q_layout), int32(call.k_layout)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return first(attend(q, k, v, queries, keys, longest, longest_keys))

        return run


class JvpFlashAttention:
    """``jvp-flash-attention``: the same length for all queries and keys; the only peer with a tangent."""

    name, provides = "jvp-flash-attention", frozenset({"jvp"})

    def available(self, call: Call) -> str | None:
        if find_spec("jvp_flash_attention") is None:
            return "no wheel of it"
        length = call.q_layout.lengths_list[0]
        if call.uneven or length != call.k_layout.lengths_list[0] or length % 32:
            return "one length, a multiple of 32, for all queries and keys"
        return off_gpu(call.q)

    def function(self, call: Call) -> Function:
        dual = import_module("jvp_flash_attention.jvp_attention").JVPAttn.fwd_dual
        return call.batched(lambda q, k, v: dual(q, k, v))


PEERS: tuple[AttentionPeer, ...] = (
    VarlenAttn(),
    FLASH,
    CUDNN,
    EFFICIENT,
    MATH,
    Nested(),
    Flex(),
    FlashAttention3(),
    JvpFlashAttention(),
)
