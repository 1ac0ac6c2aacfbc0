"""What the distribution plugin registers. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep import hookimpl

if TYPE_CHECKING:
    from fewstep.plugins.hookspecs import Register


@hookimpl
def register_objectives(register: Register) -> None:
    register(
        "dmd2",
        target="fewstep_distribution.dmd2:DMD2",
        config="fewstep_distribution.config:DMD2Config",
        summary="distribution matching: the difference of a critic's and the teacher's score moves the samples",
    )
    register(
        "dmd2-jump",
        target="fewstep_distribution.jumps:JumpDMD2",
        config="fewstep_distribution.config:DMD2Config",
        summary="dmd2 for a flow map, on samples made by its own jumps",
    )
    register(
        "f-distill",
        target="fewstep_distribution.f_distill:FDistill",
        config="fewstep_distribution.config:FDistillConfig",
        summary="distribution matching for other divergences, weighted by the density ratio of an adversarial head",
    )
    register(
        "drifting",
        target="fewstep_distribution.drifting:Drifting",
        config="fewstep_distribution.config:DriftingConfig",
        summary="drifting: one-step samples are attracted by the data and repel each other, without a teacher",
    )
    register(
        "sid",
        target="fewstep_distribution.sid:SiD",
        config="fewstep_distribution.config:SiDConfig",
        summary="score identity distillation: the Fisher divergence of samples and teacher, through both networks",
    )
    register(
        "vsd",
        target="fewstep_distribution.vsd:VSD",
        config="fewstep_distribution.config:VSDConfig",
        summary="variational score distillation: the noise predicted by the teacher and by its low-rank adaptation",
    )
    register(
        "ladd",
        target="fewstep_distribution.ladd:LADD",
        config="fewstep_distribution.config:LADDConfig",
        summary="latent adversarial distillation: discriminator heads on the teacher's inner layers",
    )
    register(
        "twinflow",
        target="fewstep_distribution.twinflow:TwinFlow",
        config="fewstep_distribution.config:TwinFlowConfig",
        summary="TwinFlow: a flow map that learns the velocity of its own samples at negative times",
    )
