"""RMS norms of queries and keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.errors import invalid
from fewstep.ops.calls import call
from fewstep.ops.example import HEADS, WIDTH, Draw
from fewstep.ops.table import ALL, Kernel, register

TINY = 1e-12  # a shorter head vector is divided by this, not by its length
Rotary = tuple[Tensor, Tensor]


def wide(x: Tensor) -> Tensor:
    """Half precision converted to float32; float32 and float64 as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def rotate_pairs(x: Tensor, rotary: Rotary) -> Tensor:
    """[..., T, H, D] with channels 2i and 2i + 1 rotated by the angle whose cosine and sine are [T, D/2]."""
    cos, sin = (table[:, None, :].to(x.dtype) for table in rotary)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def _head_norm(x: Tensor, gamma: Tensor, rotary: Rotary | None) -> Tensor:
    if not x.numel():
        return x
    out = F.normalize(wide(x), dim=-1, eps=TINY) * (gamma * x.shape[-1] ** 0.5)
    return (out if rotary is None else rotate_pairs(out, rotary)).to(x.dtype)


def reference_qk_rms_norm(
    q: Tensor, k: Tensor, q_gamma: Tensor, k_gamma: Tensor, rotary: Rotary | None = None
) -> tuple[Tensor, Tensor]:
    """The oracle of :func:`qk_rms_norm`, in elementary operations."""
    return _head_norm(q, q_gamma, rotary), _head_norm(k, k_gamma, rotary)


def fused_qk_rms_norm(
    q: Tensor, k: Tensor, q_gamma: Tensor, k_gamma: Tensor, rotary: Rotary | None = None
) -> tuple[Tensor, Tensor]:
    """By torch's RMS norm, which divides by sqrt(|x|^2 / D + eps): the same for all but the shortest vectors."""
    eps = TINY * TINY / q.shape[-1]
    q_out, k_out = F.rms_norm(wide(q), q.shape[-1:], None, eps), F.rms_norm(wide(k), k.shape[-1:], None, eps)
    return (q_out * q_gamma).to(q.dtype), (k_out * k_gamma).to(k.dtype)


def _no_rotary(q: Tensor, k: Tensor, q_gamma: Tensor, k_gamma: Tensor, rotary: Rotary | None) -> str | None:
    return None if rotary is None else "rotary embedding"


def _example(draw: Draw) -> tuple[Tensor | None, ...]:
    return (*draw.heads()[:2], draw(HEADS, WIDTH), draw(HEADS, WIDTH), None)


def _validate(q: Tensor, k: Tensor, q_gamma: Tensor, k_gamma: Tensor, rotary: Rotary | None) -> None:
    for name, x, gamma in (("q", q, q_gamma), ("k", k, k_gamma)):
        if x.dim() < 3 or gamma.shape != x.shape[-2:]:
            raise invalid(f"shape of {name}_gamma", tuple(gamma.shape), f"[H, D] of {name} {tuple(x.shape)}")
        if not (x.is_floating_point() and gamma.is_floating_point()) or x.device != gamma.device:
            got = f"{x.dtype} on {x.device}, its gamma {gamma.dtype} on {gamma.device}"
            raise invalid(name, got, "floating-point types on one device")
        if rotary is not None:
            _check_rotary(name, x, rotary)


def _check_rotary(name: str, x: Tensor, rotary: Rotary) -> None:
    wanted = (x.shape[-3], x.shape[-1] // 2)
    if x.shape[-1] % 2 or any(table.shape != wanted or table.device != x.device for table in rotary):
        got = [f"{tuple(table.shape)} on {table.device}" for table in rotary]
        raise invalid("rotary", got, f"two tables [T, D/2] beside {name} {tuple(x.shape)} on {x.device}, D even")


register(
    Kernel("reference", "qk_rms_norm", reference_qk_rms_norm, ALL, 0, "reference", example=_example, validate=_validate)
)
register(Kernel("rms-norm", "qk_rms_norm", fused_qk_rms_norm, ALL, 10, "torch", _no_rotary))


def qk_rms_norm(
    q: Tensor, k: Tensor, q_gamma: Tensor, k_gamma: Tensor, rotary: Rotary | None = None
) -> tuple[Tensor, Tensor]:
    """RMS norm of each head of the queries and the keys, then rotary position embedding if ``rotary`` is given.

    y = x / max(|x|, 1e-12) sqrt(D) gamma for each token and head, in float32 (float64 stays), then cast back: QK norm
    (Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters") without centring. The rotary
    embedding (Su et al. 2021, "RoFormer") rotates pairs of neighbouring channels, (2i, 2i + 1).

    Args:
        q: [..., T, H, D], of any strides: slices of a fused projection are not copied.
        k: [..., S, H, D]; the lengths may differ.
        q_gamma, k_gamma: [H, D] gains, of any floating-point type.
        rotary: cosines and sines, each [T, D/2] with a row for each position along the token axis (dimension -3); they
            are shared by q and k, so S = T, and by all samples of a dense batch.

    Returns:
        The normalised q and k, in their shapes and types.

    Raises:
        FewstepError: for shapes, types or devices that do not fit together.
    """
    out: tuple[Tensor, Tensor] = call("qk_rms_norm", q, k, q_gamma, k_gamma, rotary)
    return out


def head_rms_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """:func:`qk_rms_norm` of queries or keys alone: [..., T, H, D] and [H, D] to [..., T, H, D]."""
    empty = x[..., :0, :, :] if x.dim() >= 3 else x
    return qk_rms_norm(x, empty, gamma, gamma)[0]
