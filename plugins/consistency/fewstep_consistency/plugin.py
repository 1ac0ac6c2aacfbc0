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
    register(
        "ect",
        target="fewstep_consistency.ect:ECT",
        config="fewstep_consistency.config:ECTConfig",
        summary="easy consistency tuning: consistency with an interval that shrinks over the run",
    )
    register(
        "scm",
        target="fewstep_consistency.scm:ContinuousConsistency",
        config="fewstep_consistency.config:SCMConfig",
        summary="continuous-time consistency with normalised tangents and a warm-up",
    )
    register(
        "rcm",
        target="scm+dmd2",
        summary="rCM: scm, regularised by dmd2 on the student's own samples",
    )
    register(
        "lcm",
        target="fewstep_consistency.lcm:LatentConsistency",
        config="fewstep_consistency.config:LCMConfig",
        summary="latent consistency models: consistency on the guided path, in wide steps on a grid of times",
    )
    register(
        "tcm",
        target="fewstep_consistency.tcm:TruncatedConsistency",
        config="fewstep_consistency.config:TCMConfig",
        summary="truncated consistency: one network for the later times, another for the earlier ones",
    )
