"""Students that take the guidance strength w as an input, where ``objective.guidance`` is a list or a range.

A strength is drawn for each iteration (from a list) or micro-batch (from a range), for the teacher's guidance and for
the student's input. When the student is sampled, one evaluation per step is enough for any strength (LCM, arXiv
2310.04378; iMeanFlow, arXiv 2512.02012).
"""

from __future__ import annotations

from dataclasses import replace

from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.objective import Step
from fewstep.methods.point import Look, Range, Strengths


def embeds(strengths: Strengths) -> bool:
    """Whether there are several strengths for the student to tell apart."""
    return isinstance(strengths, Range) or (isinstance(strengths, tuple) and len(strengths) > 1)


def needed(strengths: Strengths) -> frozenset[str]:
    """What a method with these strengths needs of the backbone."""
    return frozenset({"guidance_input"}) if embeds(strengths) else frozenset()


def promised(contract: Contract, strengths: Strengths) -> Contract:
    """The contract of a student with this input: by default the middle of a range, or the first of a list."""
    if isinstance(strengths, Range):
        bounds, default = (strengths.low, strengths.high), (strengths.low + strengths.high) / 2
    elif isinstance(strengths, tuple) and embeds(strengths):
        bounds, default = (min(strengths), max(strengths)), strengths[0]
    else:
        return contract
    return contract.model_copy(update={"strength": default, "strengths": bounds})


def told(look: Look, batch: Batch, step: Step) -> Batch:
    """The batch with this step's strength in its condition: the one that ``look`` guides the teacher with."""
    strength = look.strength(step)
    if strength is None or not embeds(look.strengths):
        return batch
    return replace(batch, cond=batch.cond.with_strength(strength, batch.x0, batch.layout))
