"""The compile-time constants of a call: widths and precision, never lengths."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fewstep_kernels import support
from fewstep_kernels.attention.schedule import Sequences
from fewstep_kernels.attention.tiles import variant
from fewstep_kernels.support import upcast

ROOM = 163_840  # bytes of shared memory per block that tf32 needs for heads wider than 64 channels


def scale(q: Tensor) -> float:
    """The factor s of the scores, 1 / sqrt(HEAD)."""
    return float(q.shape[-1] ** -0.5)


def widths(q: Tensor) -> dict[str, int]:
    """HEAD, the channels of a head, and WIDTH, the power of two that holds them."""
    head = q.shape[-1]
    return {"HEAD": head, "WIDTH": max(16, 1 << (head - 1).bit_length())}


def constants(kind: str, q: Tensor, seq: Sequences) -> dict[str, Any]:
    """The constants of a kernel of ``tiles.KINDS``, except those of its tile."""
    numbers = {"UPCAST": upcast(q), "PRECISION": precision(q)}
    own = variant(kind, q.dtype, q.shape[-1], precision(q) == "ieee")
    return {**widths(q), "INDEXED": seq.order is not None, **numbers, **own}


def precision(q: Tensor) -> str:
    """Of float32 products: tf32 where torch allows it, but not for wide heads on GPUs with too little shared memory."""
    return "ieee" if q.shape[-1] > 64 and q.is_cuda and not _roomy(q.device.index) else support.precision(q)


@lru_cache(maxsize=8)
def _roomy(index: int) -> bool:
    return bool(torch.cuda.get_device_properties(index).shared_memory_per_block_optin >= ROOM)  # type: ignore[attr-defined]
