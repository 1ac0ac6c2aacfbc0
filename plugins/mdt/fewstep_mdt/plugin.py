"""What the MDT plugin registers. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep import hookimpl

if TYPE_CHECKING:
    from fewstep.plugins.hookspecs import Register


@hookimpl
def register_objectives(register: Register) -> None:
    register(
        "mdt-vd",
        target="fewstep_mdt.vd:MDT",
        config="fewstep_mdt.config:MDTConfig",
        summary="MDT-dist: velocity matching and velocity distillation",
        aliases=("mdt",),
    )
    register(
        "mdt-vm",
        target="fewstep_mdt.vm:VelocityMatching",
        config="fewstep_mdt.config:VMConfig",
        summary="MDT-dist's velocity matching alone",
    )
