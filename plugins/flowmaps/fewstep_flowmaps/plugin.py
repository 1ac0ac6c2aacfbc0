"""What the flow-map plugin registers. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep import hookimpl

if TYPE_CHECKING:
    from fewstep.plugins.hookspecs import Register


@hookimpl
def register_objectives(register: Register) -> None:
    register(
        "meanflow",
        target="fewstep_flowmaps.meanflow:MeanFlow",
        config="fewstep_flowmaps.config:AdaptiveConfig",
        summary="MeanFlow: average velocity between any two times, by its derivative along the path",
    )
    register(
        "imeanflow",
        target="fewstep_flowmaps.meanflow:ImprovedMeanFlow",
        config="fewstep_flowmaps.config:AdaptiveConfig",
        summary="improved MeanFlow: the same as a loss on the velocity, differentiated along the student's own",
    )
    register(
        "alphaflow",
        target="fewstep_flowmaps.alphaflow:AlphaFlow",
        config="fewstep_flowmaps.config:AlphaFlowConfig",
        summary="AlphaFlow: from flow matching to MeanFlow in the course of a run",
    )
    register(
        "anyflow",
        target="meanflow+dmd2-jump",
        summary="AnyFlow: meanflow by central differences, then with dmd2 on the student's own jumps",
    )
    register(
        "shortcut",
        target="fewstep_flowmaps.splitting:Shortcut",
        config="fewstep_flowmaps.config:ShortcutConfig",
        summary="shortcut model: a jump is two jumps of half its length",
    )
    register(
        "split-meanflow",
        target="fewstep_flowmaps.splitting:SplitMeanFlow",
        config="fewstep_flowmaps.config:SplitConfig",
        summary="SplitMeanFlow: a jump is two jumps, split anywhere",
    )
    register(
        "imm",
        target="fewstep_flowmaps.imm:MomentMatching",
        config="fewstep_flowmaps.config:IMMConfig",
        summary="inductive moment matching: jumps from t and from a little before, compared by groups of samples",
    )
    register(
        "ayf",
        target="fewstep_flowmaps.ayf:AlignYourFlow",
        config="fewstep_flowmaps.config:AYFConfig",
        summary="Align Your Flow: the flow map differentiated by its start or by its end",
    )
