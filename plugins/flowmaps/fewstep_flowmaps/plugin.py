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
        summary="MeanFlow: the average velocity between any two times, by its derivative along the path",
    )
    register(
        "imeanflow",
        target="fewstep_flowmaps.meanflow:ImprovedMeanFlow",
        config="fewstep_flowmaps.config:AdaptiveConfig",
        summary="improved MeanFlow: a loss on the velocity, with dF/dt along the student's own velocity",
    )
    register(
        "alphaflow",
        target="fewstep_flowmaps.alphaflow:AlphaFlow",
        config="fewstep_flowmaps.config:AlphaFlowConfig",
        summary="AlphaFlow: a curriculum from flow matching to MeanFlow",
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
        summary="shortcut model: one jump matches two jumps of half its length",
    )
    register(
        "split-meanflow",
        target="fewstep_flowmaps.splitting:SplitMeanFlow",
        config="fewstep_flowmaps.config:SplitConfig",
        summary="SplitMeanFlow: one jump matches two jumps, split anywhere",
    )
    register(
        "imm",
        target="fewstep_flowmaps.imm:MomentMatching",
        config="fewstep_flowmaps.config:IMMConfig",
        summary="inductive moment matching: jumps from two neighbouring times, matched in distribution by MMD",
    )
    register(
        "ayf",
        target="fewstep_flowmaps.ayf:AlignYourFlow",
        config="fewstep_flowmaps.config:AYFConfig",
        summary="Align Your Flow: the flow map's derivative in its start time or in its end time",
    )
