"""The norm kernels as the op table knows them. Triton is imported when one of them first runs."""

from __future__ import annotations

from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.ops.inputs import carries_tangent, needs_backward
from fewstep.ops.table import ALL, Kernel
from fewstep_kernels.norms.tiles import WIDEST
from fewstep_kernels.support import FLOATS, batched, reason

WIDEST_HEAD = 256


def _refusal(first: Tensor, *others: Tensor) -> str | None:
    """Each tensor may have a type of its own: under autocast the stream is float32 and the branches are half."""
    if found := reason(first):
        return found
    for x in others:
        if x.dtype not in FLOATS:
            return f"type {x.dtype}"
    return "within torch.func.vmap" if batched(first, *others) else None


def _qk_refusal(
    q: Tensor, k: Tensor, q_gamma: Tensor, k_gamma: Tensor, rotary: tuple[Tensor, Tensor] | None
) -> str | None:
    tables = rotary or ()
    if found := _refusal(q, k, q_gamma, k_gamma, *tables):
        return found
    if q.shape[-2:] != k.shape[-2:]:
        return f"heads differ ({tuple(q.shape[-2:])}, {tuple(k.shape[-2:])})"
    if q.shape[-1] > WIDEST_HEAD:
        return f"head width {q.shape[-1]} (at most {WIDEST_HEAD})"
    if carries_tangent(*tables) or needs_backward(*tables):
        return "a derivative of the rotary tables is asked for"
    return None


def _row_refusal(x: Tensor, second: Tensor, third: Tensor, layout: Packed | None, *_: float) -> str | None:
    if found := _refusal(x, second, third):
        return found
    return f"{x.shape[-1]} channels (at most {WIDEST})" if x.shape[-1] > WIDEST else None


def _qk(
    q: Tensor, k: Tensor, q_gamma: Tensor, k_gamma: Tensor, rotary: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    from fewstep_kernels.norms.heads import qk_rms_norm

    return qk_rms_norm(q, k, q_gamma, k_gamma, rotary)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor, layout: Packed | None, eps: float) -> Tensor:
    from fewstep_kernels.norms.modulation import modulated_norm

    return modulated_norm(x, shift, scale, layout, eps)


def _gated(x: Tensor, gate: Tensor, y: Tensor, layout: Packed | None) -> Tensor:
    from fewstep_kernels.norms.gate import gated_residual

    return gated_residual(x, gate, y, layout)


QK = Kernel("triton-qk-rms-norm", "qk_rms_norm", _qk, ALL, 20, "triton", _qk_refusal)
MODULATED = Kernel("triton-modulated-norm", "modulated_norm", _modulated, ALL, 20, "triton", _row_refusal)
GATED = Kernel("triton-gated-residual", "gated_residual", _gated, ALL, 20, "triton", _row_refusal)
