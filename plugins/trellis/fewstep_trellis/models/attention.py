"""Multi-head self and cross attention with optional query and key norms."""

from __future__ import annotations

from torch import Tensor, nn

from fewstep.ops import attention, qk_rms_norm
from fewstep.ops.norms import Rotary, rotate_pairs, wide
from fewstep_trellis.models.arguments import check_divides
from fewstep_trellis.models.linear import Linear
from fewstep_trellis.models.norms import HeadRMSNorm


def number_of_heads(channels: int, heads: int | None, head_channels: int | None) -> int:
    """``heads`` if given, else as many heads of width ``head_channels`` (default 64) as fit, at least one."""
    return heads or max(1, channels // (head_channels or 64))


class Heads(nn.Module):
    """What all attention layers share. Subclasses make their projections first, in the order of the checkpoints."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        check_divides("model_channels", channels, heads, "num_heads")
        self.heads, self.width = heads, channels // heads

    def finish(self, channels: int, qk_rms_norm: bool) -> None:
        """Make the norms and the output projection, after the input projections."""
        self.qk_rms_norm = qk_rms_norm
        if qk_rms_norm:
            self.q_rms_norm = HeadRMSNorm(self.width, self.heads)
            self.k_rms_norm = HeadRMSNorm(self.width, self.heads)
        self.to_out = Linear(channels, channels)

    def split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """``[..., parts * C]`` to ``parts`` tensors ``[..., H, D]``."""
        return x.reshape(*x.shape[:-1], parts, self.heads, self.width).unbind(-3)

    def normed(self, q: Tensor, k: Tensor, rotary: Rotary | None = None) -> tuple[Tensor, Tensor]:
        """Queries and keys, normalised if this module does so, then rotated if ``rotary`` is given."""
        if self.qk_rms_norm:
            return qk_rms_norm(q, k, self.q_rms_norm.gamma, self.k_rms_norm.gamma, rotary)
        if rotary is None:
            return q, k
        return rotate_pairs(wide(q), rotary).to(q.dtype), rotate_pairs(wide(k), rotary).to(k.dtype)


class SelfAttention(Heads):
    """Attention among the tokens ``[B, L, C]``, to the same shape.

    Args:
        channels: C.
        heads: number of heads; must divide C, else FewstepError.
        qk_rms_norm: normalise queries and keys, see :class:`HeadRMSNorm`.
        qkv_bias: bias of the input projection.
    """

    def __init__(self, channels: int, heads: int, qk_rms_norm: bool = False, qkv_bias: bool = True) -> None:
        super().__init__(channels, heads)
        self.to_qkv = Linear(channels, 3 * channels, bias=qkv_bias)
        self.finish(channels, qk_rms_norm)

    def forward(self, x: Tensor, rotary: Rotary | None = None) -> Tensor:
        q, k, v = self.split(self.to_qkv(x), 3)
        q, k = self.normed(q, k, rotary)
        out: Tensor = self.to_out(attention(q, k, v).flatten(-2))
        return out


class ToCondition(Heads):
    """Cross attention, for dense and for packed tokens: they give the queries, a condition the keys and values."""

    to_q: nn.Module
    to_kv: nn.Module

    def queries(self, x: Tensor) -> Tensor:
        """``[..., C]`` to the queries ``[..., H, D]``, normalised where this module does so."""
        q: Tensor = self.to_q(x).reshape(*x.shape[:-1], self.heads, self.width)
        return self.q_rms_norm(q) if self.qk_rms_norm else q

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``[..., Cc]`` to the keys, normalised where this module does so, and the values ``[..., H, D]``."""
        k, v = self.split(self.to_kv(tokens), 2)
        return (self.k_rms_norm(k) if self.qk_rms_norm else k), v

    def of_blank(self, like: Tensor) -> Tensor:
        """``[C]``: the output for every query where all tokens of the condition are 0.

        All keys are equal then, with or without their norm, so each attention weight is 1 / L and the mean of the
        values is the projection's bias.
        """
        bias: Tensor | None = self.to_kv.bias  # type: ignore[assignment]
        width = self.heads * self.width
        out: Tensor = self.to_out((like.new_zeros(2 * width) if bias is None else bias)[width:])
        return out


class CrossAttention(ToCondition):
    """Attention of the tokens ``[B, L, C]`` to a condition ``[B, M, Cc]``, to ``[B, L, C]``.

    Args:
        channels: C.
        cond_channels: Cc.
        heads: number of heads; must divide C, else FewstepError.
        qk_rms_norm: normalise queries and keys, see :class:`HeadRMSNorm`.
        qkv_bias: bias of the input projections.
    """

    def __init__(
        self, channels: int, cond_channels: int, heads: int, qk_rms_norm: bool = False, qkv_bias: bool = True
    ) -> None:
        super().__init__(channels, heads)
        self.to_q = Linear(channels, channels, bias=qkv_bias)
        self.to_kv = Linear(cond_channels, 2 * channels, bias=qkv_bias)
        self.finish(channels, qk_rms_norm)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        k, v = self.keys_values(tokens)
        out: Tensor = self.to_out(attention(self.queries(x), k, v).flatten(-2))
        return out
