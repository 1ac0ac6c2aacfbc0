"""What the trajectory plugin registers. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep import hookimpl

if TYPE_CHECKING:
    from fewstep.plugins.hookspecs import Register


@hookimpl
def register_objectives(register: Register) -> None:
    register(
        "kd",
        target="fewstep_trajectory.pairs:KnowledgeDistillation",
        config="fewstep_trajectory.config:KDConfig",
        summary="knowledge distillation: one step from stored noise lands on the teacher's sample",
        aliases=("knowledge-distillation",),
    )
    register(
        "reflow",
        target="fewstep_trajectory.pairs:Reflow",
        config="fewstep_trajectory.config:ReflowConfig",
        summary="rectified flow: flow matching on stored pairs of the teacher, for straighter paths",
        aliases=("rectified-flow",),
    )
    register(
        "progressive",
        target="fewstep_trajectory.progressive:Progressive",
        config="fewstep_trajectory.config:ProgressiveConfig",
        summary="progressive distillation: two teacher steps in one, stage by stage down to one step",
        aliases=("progressive-distillation",),
    )
    register(
        "pi-flow",
        target="fewstep_trajectory.pi_flow:PiFlow",
        config="fewstep_trajectory.config:PiFlowConfig",
        summary="pi-Flow: one pass gives a policy for a whole step, which imitates the teacher along its own path",
    )
    register(
        "perflow",
        target="fewstep_trajectory.perflow:PeRFlow",
        config="fewstep_trajectory.config:PeRFlowConfig",
        summary="piecewise rectified flow: straight paths within each time window; the ODE is solved on the fly",
    )
