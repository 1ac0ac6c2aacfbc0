"""The norm kernels as the op table knows them. Triton is imported when one of them first runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.ops.opaque import opaque
from fewstep.ops.table import Kernel
from fewstep.ops.tangents import carries_tangent, in_transform, needs_backward, transforms
from fewstep_kernels.norms.tiles import WIDEST
from fewstep_kernels.opaque import FusedLaunches, promoted
from fewstep_kernels.support import FLOATS, reason

if TYPE_CHECKING:
    from fewstep_kernels.norms.functions import FusedOp

ALL = frozenset({"forward", "backward", "jvp"})
WIDEST_HEAD = 256


def _refusal(first: Tensor, *others: Tensor) -> str | None:
    """Each tensor may have a type of its own: under autocast the stream is float32 and the branches are half."""
    if found := reason(first):
        return found
    for x in others:
        if x.dtype not in FLOATS:
            return f"type {x.dtype}"
    return "within torch.func.vmap" if in_transform() and "vmap" in transforms() else None


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
    return _qk_flat(q, k, q_gamma, k_gamma, *((None, None) if rotary is None else rotary))  # type: ignore[no-any-return]


def _qk_eager(
    q: Tensor, k: Tensor, q_gamma: Tensor, k_gamma: Tensor, cos: Tensor | None, sin: Tensor | None
) -> tuple[Tensor, Tensor]:
    from fewstep_kernels.norms.heads import qk_rms_norm

    return qk_rms_norm(q, k, q_gamma, k_gamma, None if cos is None or sin is None else (cos, sin))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor, layout: Packed | None, eps: float) -> Tensor:
    from fewstep_kernels.norms.modulation import modulated_norm

    return modulated_norm(x, shift, scale, layout, eps)


def _gated(x: Tensor, gate: Tensor, y: Tensor, layout: Packed | None) -> Tensor:
    from fewstep_kernels.norms.gate import gated_residual

    return gated_residual(x, gate, y, layout)


def _head_norm(q: Tensor, k: Tensor, q_gamma: Tensor, k_gamma: Tensor, *tables: Tensor | None) -> FusedOp:
    from fewstep_kernels.norms.heads import HeadNorm

    return HeadNorm(tables[0] is not None)


def _modulation(x: Tensor, shift: Tensor, scale: Tensor, layout: Packed | None, eps: float) -> FusedOp:
    from fewstep_kernels.norms.modulation import ModulatedNorm
    from fewstep_kernels.norms.samples import Samples

    return ModulatedNorm(Samples(layout), eps)


def _gate(x: Tensor, gate: Tensor, y: Tensor, layout: Packed | None) -> FusedOp:
    from fewstep_kernels.norms.gate import GatedResidual
    from fewstep_kernels.norms.samples import Samples

    return GatedResidual(Samples(layout))


def _like_qk(q: Tensor, k: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return q, k


def _like_rows(x: Tensor, second: Tensor, third: Tensor, *_: object) -> tuple[Tensor]:
    return (x.new_empty(x.shape, dtype=promoted(x, second, third)),)


_qk_flat = opaque("qk_rms_norm_triton", FusedLaunches(_head_norm, _like_qk, outputs=2), _qk_eager)
_modulated_node = opaque("modulated_norm_triton", FusedLaunches(_modulation, _like_rows), _modulated)
_gated_node = opaque("gated_residual_triton", FusedLaunches(_gate, _like_rows), _gated)
QK = Kernel("triton-qk-rms-norm", "qk_rms_norm", _qk, ALL, priority=20, backend="triton", check=_qk_refusal)
MODULATED = Kernel(
    "triton-modulated-norm", "modulated_norm", _modulated_node, ALL, priority=20, backend="triton", check=_row_refusal
)
GATED = Kernel(
    "triton-gated-residual", "gated_residual", _gated_node, ALL, priority=20, backend="triton", check=_row_refusal
)
