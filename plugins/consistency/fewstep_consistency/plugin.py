"""What the consistency plugin registers. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep import hookimpl

if TYPE_CHECKING:
    from fewstep.plugins.hookspecs import Register


@hookimpl
def register_objectives(register: Register) -> None:
    register(
        "cm",
        target="fewstep_consistency.cm:Consistency",
        config="fewstep_consistency.config:ConsistencyConfig",
        summary="consistency distillation: neighbouring points of a path jump to the same data",
        aliases=("consistency-distillation",),
    )
    register(
        "pcm",
        target="fewstep_consistency.cm:PhasedConsistency",
        config="fewstep_consistency.config:PhasedConfig",
        summary="phased consistency: jumps to the end of a phase, as many phases as sampling steps",
    )
