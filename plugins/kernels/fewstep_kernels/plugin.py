"""What the kernels plugin registers. Imports neither torch nor Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep import hookimpl

if TYPE_CHECKING:
    import typer

    from fewstep.plugins.hookspecs import Register


@hookimpl
def register_kernels(register: Register) -> None:
    register(
        "triton-varlen-attention",
        target="fewstep_kernels.attention.kernels:VARLEN",
        summary="packed attention on sequences of any length",
    )
    register(
        "sdpa-by-sample",
        target="fewstep_kernels.attention.kernels:BY_SAMPLE",
        summary="gradients of packed attention on few long samples: torch's fused attention, sample by sample",
    )
    register(
        "triton-windowed-attention",
        target="fewstep_kernels.attention.kernels:WINDOWED",
        summary="attention within windows of voxels, without a copy into window order",
    )
    register(
        "triton-dense-attention",
        target="fewstep_kernels.attention.kernels:DENSE",
        summary="attention on sequences of equal length, with forward-mode derivatives",
    )
    register(
        "triton-submanifold-conv",
        target="fewstep_kernels.convolution.kernels:SUBMANIFOLD",
        summary="submanifold convolution as implicit GEMM",
    )
    register(
        "triton-qk-rms-norm",
        target="fewstep_kernels.norms.kernels:QK",
        summary="RMS norm of queries and keys, and rotary embedding, in one launch",
    )
    register(
        "triton-modulated-norm",
        target="fewstep_kernels.norms.kernels:MODULATED",
        summary="layer norm with per-sample modulation, in one pass",
    )
    register(
        "triton-gated-residual",
        target="fewstep_kernels.norms.kernels:GATED",
        summary="x + gate * y, in one pass",
    )


@hookimpl
def register_commands(app: typer.Typer) -> None:
    from fewstep_kernels.command import ops

    app.command()(ops)
