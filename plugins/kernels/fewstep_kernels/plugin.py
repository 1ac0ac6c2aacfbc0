"""What the kernels plugin registers. Imports neither torch nor Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep import hookimpl

if TYPE_CHECKING:
    from fewstep.hookspecs import Register


@hookimpl
def register_kernels(register: Register) -> None:
    register(
        "triton-varlen-attention",
        target="fewstep_kernels.attention.kernels:VARLEN",
        summary="packed attention, forward, backward and forward-mode, any lengths",
    )
