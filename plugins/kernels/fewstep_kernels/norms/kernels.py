"""The op table's entries for norms and gates. Triton is imported when one of them first runs."""

from __future__ import annotations

from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.ops.inputs import carries_tangent, needs_backward
from fewstep.ops.table import ALL, Kernel
from fewstep_kernels.norms import gate, heads, modulation
from fewstep_kernels.norms.tiles import WIDEST
from fewstep_kernels.support import FLOATS, batched, reason

WIDEST_HEAD = 256


def _refusal(first: Tensor, *others: Tensor) -> str | None:
    """Why the kernels cannot serve, or None. Types may differ: under autocast the residual stream stays float32."""
    if found := reason(first):
        return found
    for x in others:
        if x.dtype not in FLOATS:
            return f"type {x.dtype}"
    return None


def _guard(*tensors: Tensor) -> str | None:
    return "within torch.func.vmap" if batched(*tensors) else None


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
    return None


def _qk_guard(
    q: Tensor, k: Tensor, q_gamma: Tensor, k_gamma: Tensor, rotary: tuple[Tensor, Tensor] | None
) -> str | None:
    tables = rotary or ()
    if carries_tangent(*tables) or needs_backward(*tables):
        return "a derivative of the rotary tables is asked for"
    return _guard(q, k, q_gamma, k_gamma, *tables)


def _row_guard(x: Tensor, second: Tensor, third: Tensor, *_: Packed | float | None) -> str | None:
    return _guard(x, second, third)


def _row_refusal(x: Tensor, second: Tensor, third: Tensor, layout: Packed | None, *_: float) -> str | None:
    if found := _refusal(x, second, third):
        return found
    return f"{x.shape[-1]} channels (at most {WIDEST})" if x.shape[-1] > WIDEST else None


QK = Kernel(
    "triton-qk-rms-norm", "qk_rms_norm", heads.qk_rms_norm, ALL, 20, "triton", _qk_refusal, _qk_guard, heads.direct
)
MODULATED = Kernel(
    "triton-modulated-norm", "modulated_norm", modulation.modulated_norm, ALL, 20, "triton", _row_refusal, _row_guard,
    modulation.direct,
)  # fmt: skip
GATED = Kernel(
    "triton-gated-residual", "gated_residual", gate.gated_residual, ALL, 20, "triton", _row_refusal, _row_guard,
    gate.direct,
)  # fmt: skip
