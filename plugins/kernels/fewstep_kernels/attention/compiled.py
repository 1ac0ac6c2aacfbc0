"""Attention as nodes of a compiled graph: the same launches as ``function.py`` makes, nothing run twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.ops.launches import Call, Launches, Maybe, Tensors, kept
from fewstep_kernels.attention.plain import plain_attention
from fewstep_kernels.attention.schedule import Sequences


class AttentionLaunches(Launches):
    """The results are the attention, as ``q`` but for its last axis, and the logarithm [H, T] of the softmax's sum.

    Args:
        sequences: from a call's arguments to what attends to what; queries are the first argument, keys and values
            the next two, each [T, H, D] or [B, L, H, D].
    """

    def __init__(self, sequences: Callable[..., Sequences]) -> None:
        super().__init__(self._plain, _like)
        self.sequences = sequences

    def _plain(self, *args: Any) -> Tensor:
        """The oracle; the only thing that derivatives of derivatives go through."""
        q, k, v = _rows(args[:3])
        out = plain_attention(q, k, v, self.sequences(*args))
        return out.view(*args[0].shape[:-1], out.shape[-1])

    def value(self, call: Call) -> Tensors:
        """See :class:`Launches`."""
        from fewstep_kernels.attention import launch

        q, k, v = _rows(call.tensors)
        out, log = launch.forward(q, k, v, self.sequences(*call.args))
        return out.view(call.tensors[0].shape), log

    def gradients(self, call: Call, results: Tensors, grads: Maybe, wanted: Sequence[bool]) -> Tensors:
        """See :class:`Launches`."""
        from fewstep_kernels.attention import launch

        deterministic = torch.are_deterministic_algorithms_enabled()
        out, grad = _rows([results[0], *kept(grads, grads)])
        q, k, v = _rows(call.tensors)
        found = launch.backward(q, k, v, out, results[1], grad, self.sequences(*call.args), deterministic)
        return [g.view(x.shape) for g, x in kept(list(zip(found, call.tensors, strict=True)), list(wanted))]

    def tangent(self, call: Call, tangents: Maybe) -> tuple[Tensors, Tensors]:
        """See :class:`Launches`."""
        from fewstep_kernels.attention import launch

        tq, tk, tv = (None if t is None else _rows([t])[0] for t in tangents)
        q, k, v = _rows(call.tensors)
        out, moved, log = launch.tangent(q, k, v, tq, tk, tv, self.sequences(*call.args))
        shape = call.tensors[0].shape
        return (out.view(shape), log), (moved.view(shape),)


def _rows(tensors: Sequence[Tensor]) -> Any:
    """[B, L, H, D] as [B L, H, D]."""
    return [x.flatten(0, -3) for x in tensors]


def _like(q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    rows = q.flatten(0, -3)
    return q.new_empty(q.shape), q.new_empty(rows.shape[1], rows.shape[0], dtype=torch.float32)
