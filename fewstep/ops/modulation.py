"""Modulated norms and gated residuals: adaptive layer norm around a block, with shift, scale and gate per sample."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import invalid
from fewstep.ops.calls import call
from fewstep.ops.example import ROWS, Draw
from fewstep.ops.inputs import needs_backward
from fewstep.ops.norms import wide
from fewstep.ops.table import ALL, Kernel, register


def of_rows(v: Tensor, layout: Packed | None) -> Tensor:
    """[B, C] in a shape that broadcasts against the rows: [B, 1, C] for a dense batch, [T, C] (or [1, C]) for a packed
    one."""
    if layout is None:
        return v.unsqueeze(1)
    if layout.batch_size == 1:
        return v
    # The backward pass of index_select is an index_add, which is faster than that of v[index]. A GPU rounds after each
    # row that it adds: in half precision a sum of ones would stop at 2,048.
    source = wide(v) if needs_backward(v) else v
    return source.index_select(0, layout.index).to(v.dtype)


def reference_modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, layout: Packed | None, eps: float) -> Tensor:
    """The oracle of :func:`modulated_norm`. The norm is cast to the type of ``x`` before it is modulated."""
    normed = F.layer_norm(wide(x), x.shape[-1:], eps=eps)
    normed = normed if normed.dtype is x.dtype else normed.to(x.dtype)
    return normed * of_rows(1 + scale, layout) + of_rows(shift, layout)


def reference_gated_residual(x: Tensor, gate: Tensor, y: Tensor, layout: Packed | None) -> Tensor:
    """The oracle of :func:`gated_residual`."""
    return x + of_rows(gate, layout) * y


def _norm_example(draw: Draw) -> tuple[Tensor | Packed | float, ...]:
    return draw(ROWS, 64), draw(2, 64), draw(2, 64), draw.layout(), 1e-6


def _gate_example(draw: Draw) -> tuple[Tensor | Packed, ...]:
    return draw(ROWS, 64), draw(2, 64), draw(ROWS, 64), draw.layout()


def _validate_norm(x: Tensor, shift: Tensor, scale: Tensor, layout: Packed | None, _: float) -> None:
    wanted = _check(x, layout)
    _check_beside("shift", shift, x, wanted, "[B, C] = ")
    _check_beside("scale", scale, x, wanted, "[B, C] = ")


def _validate_gate(x: Tensor, gate: Tensor, y: Tensor, layout: Packed | None) -> None:
    _check_beside("gate", gate, x, _check(x, layout), "[B, C] = ")
    _check_beside("y", y, x, x.shape, "the shape of x, ")


def _check(x: Tensor, layout: Packed | None) -> tuple[int, int]:
    """(B, C), after checking that x fits its layout; a meta tensor fits on any device."""
    if not x.is_floating_point():
        raise invalid("type of x", x.dtype, "a floating-point type")
    if layout is None:
        if x.dim() != 3:
            raise invalid("shape of x", tuple(x.shape), "[B, L, C], or [T, C] with a layout")
        return x.shape[0], x.shape[2]
    if x.dim() != 2 or len(x) != layout.rows or (x.device != layout.index.device and not x.is_meta):
        got = f"{tuple(x.shape)} on {x.device}"
        raise invalid("x", got, f"[T, C] with T = {layout.rows} on {layout.index.device}, as its layout says")
    return layout.batch_size, x.shape[1]


def _check_beside(name: str, v: Tensor, x: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if v.shape != shape or v.device != x.device or not v.is_floating_point():
        got = f"{v.dtype} {tuple(v.shape)} on {v.device}"
        raise invalid(name, got, f"a floating-point type, {meaning}{list(shape)} on {x.device}")


register(
    Kernel(
        "reference", "modulated_norm", reference_modulated_norm, ALL, 0, "reference",
        example=_norm_example, validate=_validate_norm,
    )
)  # fmt: skip
register(
    Kernel(
        "reference", "gated_residual", reference_gated_residual, ALL, 0, "reference",
        example=_gate_example, validate=_validate_gate,
    )
)  # fmt: skip


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, layout: Packed | None = None, eps: float = 1e-6) -> Tensor:
    """Layer norm n without parameters, then n (1 + scale) + shift per sample: adaptive layer norm.

    The norm is computed in float32 (float64 stays). Source: Peebles and Xie 2022, "Scalable Diffusion Models with
    Transformers".

    Args:
        x: [B, L, C], or [T, C] packed as ``layout``.
        shift, scale: [B, C]; slices of one projection are not copied.
        layout: of a packed ``x``.
        eps: added to the variance.

    Returns:
        Shaped like ``x``, in the type that all three promote to.

    Raises:
        FewstepError: for shapes, types or devices that do not fit together.
    """
    out: Tensor = call("modulated_norm", x, shift, scale, layout, eps)
    return out


def gated_residual(x: Tensor, gate: Tensor, y: Tensor, layout: Packed | None = None) -> Tensor:
    """x + gate y, with a gate for each sample and channel.

    Args:
        x, y: [B, L, C], or [T, C] packed as ``layout``.
        gate: [B, C].
        layout: of a packed ``x``.

    Returns:
        Shaped like ``x``, in the type that all three promote to.

    Raises:
        FewstepError: for shapes, types or devices that do not fit together.
    """
    out: Tensor = call("gated_residual", x, gate, y, layout)
    return out
